package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// TestDeliveriesOfAZombie: each delivery has eight sessions, one a shard, and one shard has no
// partition. A buffer is cut off from Kafka and from nothing else: others have its shards, while
// its clients reach it, too. Another one is killed, and its shards are nobody's for half a minute.
// Everything arrives once, in files and in a Kafka that is written exactly once, within the bounds
// of memory, and no directory gets its _SUCCESS while a shard is nobody's that has records for it.
func TestDeliveriesOfAZombie(t *testing.T) {
	const of, long = 8, 30 * time.Second
	c := newChaosCluster(t, of, 1, `path: "/e2e/%{topic}/%Y-%m-%d"`, `path: "/e2e/%{topic}/%Y-%m-%d/%H-%M-%S", round: true, round_value: 10, round_unit: second, time_zone: UTC, success_after: 5s`,
		"idle: 2s", "idle: 1m")
	zombie, dead := c.buffers()[1], c.buffers()[2]
	file := dead.args[len(dead.args)-1]
	text, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, []byte(strings.Replace(string(text), fmt.Sprint("session_timeout: ", chaosSession), fmt.Sprint("session_timeout: ", long), 1)), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.start()
	c.open(t, "all shards are open", time.Minute)
	c.even(t)
	for _, subscription := range []string{"c/hdfs", "c/test"} {
		eventually(t, 30*time.Second, "a session a shard of "+subscription, func() error {
			if n, err := c.sessions(subscription); err != nil || n != of {
				return fmt.Errorf("%d sessions, %v", n, err)
			}
			return nil
		})
	}

	records := &timedRecords{in: make(map[string][]int), marks: make(map[string]bool)}
	client := newClient(t, stack.kafka)
	produced := repeat(100*time.Millisecond, func() error {
		now := time.Now()
		var batch []*kgo.Record
		for i := range 240 {
			batch = append(batch, &kgo.Record{Topic: c.topic, Partition: int32(i % chaosPartitions), Value: value(records.note(now)), Timestamp: now})
		}
		return client.ProduceSync(t.Context(), batch...).FirstErr()
	})
	looked := records.watch(t, c.hdfsDir)
	eventually(t, 30*time.Second, "records flow", func() error {
		if c.settled(0, "hdfs") == nil {
			return errors.New("nothing is appended yet")
		}
		return nil
	})

	had, err := c.at(zombie)
	if err != nil || len(had) == 0 {
		t.Fatalf("%s has %v, %v", zombie.name, had, err)
	}
	for _, link := range c.journal[1] {
		link.part()
	}
	began := time.Now()
	elsewhere := func() (still int, err error) {
		all := make(map[int32]bool)
		for _, b := range c.buffers() {
			at, err := c.at(b)
			if err != nil {
				return 0, err
			}
			for shard, epoch := range at {
				switch {
				case b == zombie:
					still++
				case epoch > had[shard]:
					all[shard] = true
				}
			}
		}
		for shard := range had {
			if !all[shard] {
				err = errors.Join(err, fmt.Errorf("nobody else has shard %d", shard))
			}
		}
		return still, err
	}
	still, sessions := 0, 0
	poll(t, 20*time.Millisecond, time.Minute, "others have the zombie's shards", func() (err error) {
		if still, err = elsewhere(); err != nil {
			return err
		}
		for _, subscription := range []string{"c/hdfs", "c/test"} {
			n, err := liveSessions(zombie, subscription)
			if err != nil {
				t.Logf("sessions of the zombie: %v", err)
			}
			sessions += n
		}
		return nil
	})
	t.Logf("others have %d shards %v after they were cut off from Kafka; the zombie has %d open, with %d sessions of deliveries", len(had), time.Since(began).Round(100*time.Millisecond), still, sessions)
	if still == 0 {
		t.Error("the zombie has nothing open when others have its shards: that is no test")
	}
	eventually(t, time.Minute, "the zombie ends its shards", func() error {
		if still, err := elsewhere(); err != nil || still > 0 {
			return fmt.Errorf("it has %d: %v", still, err)
		}
		return nil
	})
	t.Logf("the zombie ended its shards %v after it was cut off", time.Since(began).Round(100*time.Millisecond))
	for _, link := range c.journal[1] {
		link.mend()
	}
	eventually(t, time.Minute, "the zombie is ready", zombie.ready)

	lost, err := c.at(dead)
	if err != nil || len(lost) == 0 {
		t.Fatalf("%s has %v, %v", dead.name, lost, err)
	}
	dead.kill()
	began = time.Now()
	var marked []string // that ended since
	for {
		records.mu.Lock()
		marked = marked[:0]
		ended := 0
		for dir := range records.in {
			if end := endOf(t, dir); end.After(began) && time.Now().After(end) {
				ended++
				if records.marks[dir] {
					marked = append(marked, dir)
				}
			}
		}
		records.mu.Unlock()
		missing := maps.Clone(lost)
		for _, b := range c.buffers()[:2] {
			at, err := c.at(b)
			if err != nil {
				t.Fatal(err)
			}
			for shard := range at {
				delete(missing, shard)
			}
		}
		if len(missing) == 0 {
			t.Logf("%d shards were nobody's for %v; %d directories ended in this time", len(lost), time.Since(began).Round(100*time.Millisecond), ended)
			break
		}
		if len(marked) > 0 {
			t.Fatalf("%v are marked while the shards %v are nobody's", marked, missing)
		}
		if time.Since(began) > 2*long {
			t.Fatalf("the shards %v are nobody's for %v", missing, time.Since(began))
		}
		pause(t, 200*time.Millisecond)
	}
	dead.start()
	pause(t, successBuckets)
	if err := produced(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Minute, "all directories are marked", records.unmarked)
	looked()
	c.awaitRest(records.n, 2*time.Minute, c.hdfs)
	tallyHDFS(t, c.hdfsDir, records.n).check(t, "HDFS", false)
	checkCommittedOnce(t, c.pipeline, records.n)
	for _, s := range []*service{c.hdfs, c.kafka} {
		_, peak := s.memoryBytes()
		t.Logf("%s was at most %d MiB resident", s.name, peak>>20)
		if limit := int64(32 + 256); peak>>20 > limit {
			t.Errorf("%s was %d MiB resident, want at most %d", s.name, peak>>20, limit)
		}
	}
}

// liveSessions is how many sessions a subscription has at a buffer.
func liveSessions(b *service, subscription string) (n int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	list, err := spillwayv1.NewBufferAdminServiceClient(b.conn).ListSessions(ctx, &spillwayv1.ListSessionsRequest{Subscription: subscription})
	for _, s := range list.GetSessions() {
		if s.Live {
			n++
		}
	}
	return n, err
}

// sessions is how many a subscription has at all buffers.
func (c *chaosCluster) sessions(subscription string) (n int, err error) {
	for _, b := range c.buffers() {
		at, e := liveSessions(b, subscription)
		n, err = n+at, errors.Join(err, e)
	}
	return n, err
}
