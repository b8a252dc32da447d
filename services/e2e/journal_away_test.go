package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/owners"
)

// TestJournalIsSlowAndAway: the broker that keeps the queue takes a megabyte a second from its
// buffers, which have more to store since a destination is away; then the broker is away for 45 s.
// No queue is opened again, acks wait and go on afterwards, and everything arrives once.
func TestJournalIsSlowAndAway(t *testing.T) {
	const n, later, quota, outage = 200_000, 20_000, 1e6, 45 * time.Second
	store := secondBroker(t)
	if err := store.start(); err != nil {
		t.Fatal(err)
	}
	p := newKeptPipeline(t, []string{store.addr()}, 1)
	admin := kadm.NewClient(newClient(t, store))
	client := "spillway-buffer"
	altered, err := admin.AlterClientQuotas(t.Context(), []kadm.AlterClientQuotaEntry{{Entity: kadm.ClientQuotaEntity{{Type: "client-id", Name: &client}},
		Ops: []kadm.AlterClientQuotaOp{{Key: "producer_byte_rate", Value: quota}}}})
	for _, a := range altered {
		err = errors.Join(err, a.Err)
	}
	if err != nil {
		t.Fatal(err)
	}
	p.start()
	p.kafka.kill()
	epochs := p.epochs()
	source := newProducer(t, stack.kafka, p.topic)
	began := time.Now()
	if err := source.produce(n, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Minute, "one destination has everything", func() error { return p.settled(n, "hdfs") })
	took := time.Since(began)
	logs, err := admin.DescribeAllLogDirs(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	stored := int64(0)
	logs.Each(func(d kadm.DescribedLogDir) {
		d.Topics.Each(func(x kadm.DescribedLogDirPartition) {
			if strings.HasPrefix(x.Topic, "spillway.") {
				stored += x.Size
			}
		})
	})
	t.Logf("%d records in %.1f s, in which the broker took %.1f MB: %.2f MB/s", n, took.Seconds(), float64(stored)/1e6, float64(stored)/1e6/took.Seconds())
	if stored < 8*quota {
		t.Errorf("the broker took %d bytes: its quota of %.0f a second is no test", stored, quota)
	}
	if after := p.epochs(); !slices.Equal(epochs, after) {
		t.Errorf("the epochs were %v, and are %v: a queue was opened again", epochs, after)
	}

	if err := store.crash(); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	if err := source.produce(later, 0); err != nil {
		t.Fatal(err)
	}
	for until := began.Add(outage); time.Now().Before(until); pause(t, time.Second) {
		if err := p.settled(n+later, "hdfs"); err == nil {
			t.Error("all acks were answered while the broker was away")
			break
		}
	}
	t.Logf("after %v: %v", time.Since(began).Round(time.Second), p.settled(n+later, "hdfs"))
	if err := store.start(); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	eventually(t, 2*time.Minute, "acks go on", func() error { return p.settled(n+later, "hdfs") })
	t.Logf("all acks are answered %.1f s after the broker's return", time.Since(began).Seconds())
	p.kafka.start()
	p.awaitRest(n+later, 2*time.Minute, p.hdfs)
	if after := p.epochs(); !slices.Equal(epochs, after) {
		t.Errorf("the epochs were %v, and are %v: a queue was opened again", epochs, after)
	}
	for _, b := range p.buffers() {
		if opened := strings.Count(b.logTail(100_000), `"queue is open"`); opened != 1 {
			t.Errorf("%s opened its queue %d times, want once", b.name, opened)
		}
	}
	tallyHDFS(t, p.hdfsDir, n+later).check(t, "HDFS", false)
	checkCommitted(t, stack.kafka, p.out, n+later)
}

// epochs are those of the shards at their owners.
func (p *keptPipeline) epochs() (all []uint64) {
	p.t.Helper()
	for shard := range p.spares {
		s, err := shardAt(*p.owner(shard))
		if err != nil {
			p.t.Fatal(err)
		}
		all = append(all, s.Epoch)
	}
	return all
}

// at are the shards that a buffer has open, with their epochs.
func (c *chaosCluster) at(b *service) (map[int32]uint64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	list, err := spillwayv1.NewClusterServiceClient(b.conn).ListShards(ctx, &spillwayv1.ListShardsRequest{})
	all := make(map[int32]uint64)
	for _, s := range list.GetShards() {
		if s.State == "open" {
			all[s.Number] = s.Epoch
		}
	}
	return all, err
}

// TestOneLeaderIsOutOfReach: one buffer cannot reach the leader of a shard's partition any more,
// but that of the group. Another buffer has the shard within a minute, the first one keeps those
// whose leaders it reaches, of journal and payload, and everything arrives once.
func TestOneLeaderIsOutOfReach(t *testing.T) {
	c := newChaosCluster(t, chaosShards, 0)
	c.start()
	c.open(t, "all shards are open", time.Minute)
	c.even(t)
	admin := kadm.NewClient(newClient(t, c.brokers[0]))
	topics, err := admin.ListTopics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	leaders, payloads, group := make(map[int32]int32), make(map[int32]int32), ""
	for name, topic := range topics {
		if strings.HasSuffix(name, ".payload") {
			for _, partition := range topic.Partitions {
				payloads[partition.Partition] = partition.Leader
			}
		}
		if of, ok := strings.CutSuffix(name, ".journal"); ok {
			group = owners.GroupOf(of)
			for _, partition := range topic.Partitions {
				leaders[partition.Partition] = partition.Leader
			}
		}
	}
	coordinators := admin.FindGroupCoordinators(t.Context(), group)
	if err := coordinators.Error(); err != nil {
		t.Fatal(err)
	}
	coordinator := coordinators[group].NodeID
	victim, shard := -1, int32(0)
	var before map[int32]uint64
	for i, b := range c.buffers() {
		all, err := c.at(b)
		if err != nil {
			t.Fatal(err)
		}
		for s := range all {
			if leaders[s] != coordinator {
				victim, shard, before = i, s, all
			}
		}
	}
	if victim < 0 {
		t.Fatalf("broker %d leads all of %v", coordinator, leaders)
	}
	source := newProducer(t, stack.kafka, c.topic)
	source.over = chaosPartitions
	produced := repeat(0, func() error {
		return source.produce(3000, 1500)
	})
	eventually(t, 30*time.Second, "records flow", func() error {
		if c.settled(0, "hdfs") == nil {
			return errors.New("nothing is appended yet")
		}
		return nil
	})
	link := c.journal[victim][leaders[shard]-1]
	t.Logf("%s has %v; it is cut off from broker %d, of leaders %v and %v; that of the group is %d", c.buffers()[victim].name, before, leaders[shard], leaders, payloads, coordinator)
	link.part()
	began := time.Now()
	poll(t, 20*time.Millisecond, time.Minute, fmt.Sprintf("another buffer has shard %d", shard), func() error {
		var errs []error
		for i, b := range c.buffers() {
			all, err := c.at(b)
			if _, has := all[shard]; has && i != victim {
				return nil
			}
			errs = append(errs, fmt.Errorf("%s has %v: %w", b.name, all, err))
		}
		return errors.Join(errs...)
	})
	t.Logf("another buffer has shard %d after %v", shard, time.Since(began).Round(100*time.Millisecond))
	pause(t, 5*time.Second)
	now, err := c.at(c.buffers()[victim])
	if err != nil {
		t.Error(err)
	}
	for s, epoch := range before {
		if leaders[s] != leaders[shard] && payloads[s] != leaders[shard] && now[s] != epoch {
			t.Errorf("shard %d, whose leaders can be reached, had the epoch %d there, and has %d", s, epoch, now[s])
		}
	}
	c.open(t, "all shards are open", 30*time.Second)
	link.mend()
	if err := produced(); err != nil {
		t.Fatal(err)
	}
	n := int(source.written.Load())
	c.awaitRest(n, 2*time.Minute, c.hdfs)
	tallyHDFS(t, c.hdfsDir, n).check(t, "HDFS", false)
	checkCommittedOf(t, stack.kafka, c.out, n, chaosPartitions)
}
