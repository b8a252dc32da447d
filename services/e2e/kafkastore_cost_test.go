package e2e

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// TestKafkaStoreCost measures how many groups a shard writes in a second when they come one after
// the other as fast as they are answered, on three brokers of which two must have each: of one
// shard, of six at a time, and of one whose brokers sync each write. Each group is one request to
// the leader of the shard's partition, which its followers fetch. A queue writes all that waits in
// one group, so this is the most that a shard asks of its brokers, whatever comes in.
func TestKafkaStoreCost(t *testing.T) {
	brokers := startBrokers(t, 3)
	addresses := addressesOf(brokers)
	for _, c := range []struct {
		name   string
		shards int
		fsync  bool
	}{{"one shard", 1, false}, {"six shards", 6, false}, {"one shard, with --fsync", 1, true}, {"six shards, with --fsync", 6, true}} {
		h := newShards(t, addresses, 3, 16<<20, c.shards, c.fsync)
		var all []*numbers
		for shard := range c.shards {
			cfg := h.cfg
			cfg.Shard = shard
			n, _ := openNumbers(t, cfg)
			all = append(all, n)
		}
		const warm, long = 2 * time.Second, 5 * time.Second
		counts := make([]int, c.shards)
		began := time.Now()
		var wg sync.WaitGroup
		for shard, n := range all {
			wg.Go(func() {
				for i := 0; time.Since(began) < warm+long; i++ {
					if _, err := n.store.Append([]queue.Entry{{Kind: queue.ChangeEntry, Meta: fmt.Appendf(nil, "%0100d", i)}}); err != nil {
						t.Error(err)
						return
					}
					if time.Since(began) > warm {
						counts[shard]++
					}
				}
			})
		}
		wg.Wait()
		total := 0
		for _, n := range counts {
			total += n
		}
		perSecond := float64(total) / long.Seconds() / float64(c.shards)
		t.Logf("%s: %.0f groups a second and shard, %.1f ms each", c.name, perSecond, 1000/perSecond)
		if perSecond < 1 {
			t.Errorf("%s: %.1f groups a second and shard", c.name, perSecond)
		}
		for _, n := range all {
			if err := n.store.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
