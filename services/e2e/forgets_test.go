package e2e

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// forgetful is a pipeline kept in Kafka whose source forgets records while a destination is away.
type forgetful struct {
	*keptPipeline
	written int
}

// place is a partition of an incarnation of the source's topic.
type place struct {
	partition   int32
	incarnation uint32
}

// deferring leaves most of the backlog to the source.
var deferring = []string{`test: {topics: ["*"], on_full: block}`, `test: {topics: ["*"], on_full: defer, limit: 64KiB}`}

// TestSourceForgetsInManyWays: a destination is away, and its backlog is in memory or left to the
// source. A buffer is killed and its disk lost, another one is moved as planned. When the backlog
// is stored as far as the source may soon forget it, the source does: it deletes half of its
// records, or is compacted, or its topic is created again, that also while the backlog is in
// memory only. Then buffers are moved and lost once more.
// Everything arrives once, and the audit has nothing that is lost.
func TestSourceForgetsInManyWays(t *testing.T) {
	const n = 12_000

	t.Run("bytes", func(t *testing.T) {
		p := newForgetful(t, map[string]string{"retention.bytes": "1000000000"}, deferring...)
		halves := p.backlog(n)
		for at := range halves {
			halves[at] /= 2
		}
		p.loseAndMove()
		p.awaitStored(halves)
		deleted := make(kadm.Offsets)
		for at, half := range halves {
			deleted.AddOffset(p.topic, at.partition, half, -1)
		}
		resp, err := p.admin().DeleteRecords(t.Context(), deleted)
		if err := errors.Join(err, resp.Error()); err != nil {
			t.Fatal(err)
		}
		p.moveAndLose(nil)
		p.check()
	})

	t.Run("compacted", func(t *testing.T) {
		p := newForgetful(t, map[string]string{"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.01", "delete.retention.ms": "0"}, deferring...)
		ends := p.backlog(n)
		p.loseAndMove()
		p.awaitStored(ends)
		// Only segments that are full are compacted; these are at the next record.
		p.configure(map[string]string{"segment.ms": "1000"})
		p.write(100*partitions, p.written+100*partitions)
		eventually(t, 30*time.Second, "the source is compacted", func() error {
			left := 0
			readTopic(t, stack.kafka, p.topic, func(*kgo.Record) { left++ })
			if left > n/4 {
				return fmt.Errorf("it has %d of %d records", left, p.written)
			}
			t.Logf("the source has %d of %d records", left, p.written)
			return nil
		})
		p.moveAndLose(nil)
		p.check()
	})

	t.Run("recreatedCached", func(t *testing.T) {
		p := newForgetful(t, nil, "spill_after: 1s", "spill_after: 5m")
		ends := p.backlog(n)
		p.loseAndMove()
		eventually(t, 30*time.Second, "what the lost one had in memory is read again", func() error {
			if states := p.states(ends); states["deferred"] > 0 {
				return fmt.Errorf("%v", states)
			}
			return nil
		})
		if states := p.states(ends); states["memory"] < n/4 {
			t.Fatalf("the backlog is %v: that is no test", states)
		}
		p.recreate()
		p.write(n, 100)
		eventually(t, time.Minute, "one destination has both topics", func() error { return p.settled(p.written, "hdfs") })
		p.moveAndLose(ends)
		p.check()
	})

	t.Run("recreatedUnseen", func(t *testing.T) {
		p := newForgetful(t, nil, "spill_after: 1s", "spill_after: 5m")
		ends := p.backlog(n)
		if states := p.states(ends); states["memory"] < n/4 {
			t.Fatalf("the backlog is %v: that is no test", states)
		}
		p.ingest.kill() // so that no buffer is told: it stores what it has as it ends
		p.recreate()
		p.move(2)
		t.Logf("after the move the backlog is %v", p.states(ends))
		p.ingest.start()
		p.write(n, 100)
		eventually(t, time.Minute, "one destination has both topics", func() error { return p.settled(p.written, "hdfs") })
		p.moveAndLose(ends)
		p.check()
	})

	t.Run("recreatedDeferred", func(t *testing.T) {
		p := newForgetful(t, map[string]string{"cleanup.policy": "compact"}, deferring...)
		ends := p.backlog(n)
		p.loseAndMove()
		p.awaitStored(ends)
		p.recreate()
		p.write(n, 100)
		eventually(t, time.Minute, "one destination has both topics", func() error { return p.settled(p.written, "hdfs") })
		p.moveAndLose(ends)
		p.check()
	})
}

// newForgetful has the source's topic so configured, and one destination away.
func newForgetful(t *testing.T, configs map[string]string, edit ...string) *forgetful {
	t.Helper()
	p := &forgetful{keptPipeline: newKeptPipeline(t, []string{stack.kafka.addr()}, 1, edit...)}
	if configs != nil {
		p.configure(configs)
	}
	p.start()
	p.kafka.kill()
	return p
}

func (p *forgetful) admin() *kadm.Client {
	p.t.Helper()
	return kadm.NewClient(newClient(p.t, stack.kafka))
}

// configure changes the configuration of the source's topic.
func (p *forgetful) configure(configs map[string]string) {
	p.t.Helper()
	var changes []kadm.AlterConfig
	for name, value := range configs {
		changes = append(changes, kadm.AlterConfig{Name: name, Value: &value})
	}
	resp, err := p.admin().AlterTopicConfigs(p.t.Context(), changes, p.topic)
	for _, r := range resp {
		err = errors.Join(err, r.Err)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

// write writes the next n records, with so many keys.
func (p *forgetful) write(n, keys int) {
	p.t.Helper()
	client := newClient(p.t, stack.kafka)
	records := make([]*kgo.Record, n)
	for i := range records {
		number := p.written + i
		records[i] = &kgo.Record{Topic: p.topic, Partition: int32(number % partitions), Key: fmt.Append(nil, number%keys), Value: value(number)}
	}
	if err := client.ProduceSync(p.t.Context(), records...).FirstErr(); err != nil {
		p.t.Fatal(err)
	}
	p.written += n
}

// backlog writes n records, and returns where the partitions end when the destination that is not
// away has them.
func (p *forgetful) backlog(n int) map[place]int64 {
	p.t.Helper()
	p.write(n, 100)
	eventually(p.t, time.Minute, "one destination has everything", func() error { return p.settled(n, "hdfs") })
	ends := make(map[place]int64)
	err := p.eachPending(func(a *spillwayv1.AuditPartition) { ends[placeOf(a)] = a.AppendedOffset })
	if err != nil || len(ends) != partitions {
		p.t.Fatalf("the backlog is in %v, %v", ends, err)
	}
	p.t.Logf("the backlog is %v", p.states(ends))
	return ends
}

func placeOf(a *spillwayv1.AuditPartition) place {
	return place{a.Source.Partition, a.Source.Incarnation}
}

// eachPending yields the account of each partition for the destination that is away.
func (p *forgetful) eachPending(each func(*spillwayv1.AuditPartition)) error {
	for _, b := range p.buffers() {
		audit, err := auditOf(b)
		if err != nil {
			return err
		}
		for _, a := range audit.Partitions {
			if a.Subscription == "c/test" {
				each(a)
			}
		}
	}
	return nil
}

// states counts by state what the destination that is away lacks before these offsets.
func (p *forgetful) states(before map[place]int64) map[string]int64 {
	states := make(map[string]int64)
	if err := p.eachPending(func(a *spillwayv1.AuditPartition) {
		for _, r := range a.Ranges {
			if offsets := min(r.Range.Next, before[placeOf(a)]) - r.Range.First; offsets > 0 {
				states[r.State] += offsets
			}
		}
	}); err != nil {
		states[err.Error()]++
	}
	return states
}

// awaitStored waits until all before these offsets is in the store.
func (p *forgetful) awaitStored(before map[place]int64) {
	p.t.Helper()
	all := int64(0)
	for _, offset := range before {
		all += offset
	}
	began := time.Now()
	eventually(p.t, 90*time.Second, "what the source may forget is stored", func() error {
		if states := p.states(before); len(states) != 1 || states["stored"] != all {
			return fmt.Errorf("%v of %d", states, all)
		}
		return nil
	})
	p.t.Logf("%d offsets that the source may forget were stored after %v", all, time.Since(began).Round(100*time.Millisecond))
}

// lose kills the machine of a shard, and has the other one, which has nothing, take over.
func (p *forgetful) lose(shard int) {
	p.t.Helper()
	(*p.owner(shard)).kill()
	p.takeOver(shard)
	(*p.owner(shard)).waitReady()
}

// move ends the buffer of a shard as planned, and has another one take over.
func (p *forgetful) move(shard int) {
	p.t.Helper()
	(*p.owner(shard)).stop()
	p.takeOver(shard)
	(*p.owner(shard)).waitReady()
}

// loseAndMove is while the source has everything.
func (p *forgetful) loseAndMove() {
	p.t.Helper()
	p.lose(1)
	p.move(2)
}

// moveAndLose is when the source has forgotten. What was in memory then is stored at once, also
// by a buffer that ends.
func (p *forgetful) moveAndLose(cached map[place]int64) {
	p.t.Helper()
	p.move(1)
	if cached != nil {
		p.awaitStored(cached)
	}
	p.lose(0)
	p.lose(2)
	p.move(1)
}

// recreate deletes the source's topic and creates it again.
func (p *forgetful) recreate() {
	p.t.Helper()
	if _, err := p.admin().DeleteTopic(p.t.Context(), p.topic); err != nil {
		p.t.Fatal(err)
	}
	eventually(p.t, 30*time.Second, "the topic is created again", func() error {
		_, err := p.admin().CreateTopic(p.t.Context(), partitions, 1, nil, p.topic)
		return err
	})
}

// check has the destination come back, and wants everything there once.
func (p *forgetful) check() {
	p.t.Helper()
	p.kafka.start()
	p.awaitRest(p.written, time.Minute, p.hdfs)
	delivered := int64(0)
	if err := p.eachPending(func(a *spillwayv1.AuditPartition) {
		for outcome, offsets := range a.Outcomes {
			if outcome != "delivered" && offsets > 0 {
				p.t.Errorf("the audit has %d offsets that are %s: %v", offsets, outcome, a)
			}
		}
		delivered += a.Outcomes["delivered"]
	}); err != nil {
		p.t.Error(err)
	}
	p.t.Logf("the audit has %d offsets delivered", delivered)
	tallyHDFS(p.t, p.hdfsDir, p.written).check(p.t, "HDFS", false)
	y := newTally(p.written)
	eachCommitted(p.t, stack.kafka, p.out, func(r *kgo.Record) { y.add(r.Value) })
	y.check(p.t, p.out, false)
}
