package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestTargetWithFewerPartitions: the target topic is deleted and created again with half of its
// partitions, while records whose keys spread over all of them wait. They are delivered to those
// that are there.
func TestTargetWithFewerPartitions(t *testing.T) {
	t.Parallel()
	const n = 2000
	p := newPipeline(t, stack.kafka, `topic: "out-%{topic}"}`, `topic: "out-%{topic}", partitioner: key, missing_topic: wait}`)
	admin := kadm.NewClient(newClient(t, stack.kafka))
	createTopic(t, stack.kafka, p.topic, nil)
	createTopic(t, stack.kafka, p.out, nil)
	p.start()
	source := newClient(t, stack.kafka)
	produce := func(from int) {
		t.Helper()
		for i := range n {
			source.Produce(t.Context(), &kgo.Record{Topic: p.topic, Partition: int32(i % partitions), Key: fmt.Append(nil, "key ", i), Value: value(from + i)}, nil)
		}
		if err := source.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	produce(0)
	eventually(t, time.Minute, "the first are delivered", func() error { return p.settled(n, "test", "hdfs") })
	if _, err := admin.DeleteTopic(t.Context(), p.out); err != nil {
		t.Fatal(err)
	}
	produce(n)
	eventually(t, time.Minute, "HDFS has them all", func() error { return p.settled(2*n, "hdfs") })
	eventually(t, 30*time.Second, "the target is created again", func() error {
		_, err := admin.CreateTopic(t.Context(), partitions/2, 1, nil, p.out)
		return err
	})
	eventually(t, time.Minute, "the rest is delivered", func() error { return p.settled(2*n, "test") })
	seen := make(map[int]bool)
	readTopic(t, stack.kafka, p.out, func(r *kgo.Record) {
		if number, err := numberOf(r.Value); err != nil {
			t.Error(err)
		} else {
			seen[number] = true
		}
	})
	for i := n; i < 2*n; i++ {
		if !seen[i] {
			t.Fatalf("record %d is settled and not in the new topic, which has %d others", i, len(seen))
		}
	}
	began := time.Now()
	p.kafka.stop()
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("the delivery took %s to end", took)
	}
}

// TestSecondLifeOfAQueue: with exactly_once the disk of the buffer is lost, and the pipeline
// begins anew with another group and another target topic. Progress of the former life is still on
// the target cluster under the same names, and counts for nothing: every record is produced again,
// once.
func TestSecondLifeOfAQueue(t *testing.T) {
	t.Parallel()
	const n = 30_000
	p := newPipeline(t, stack.kafka, `topic: "out-%{topic}"}`, `topic: "out-%{topic}", exactly_once: true}`)
	createTopic(t, stack.kafka, p.topic, nil)
	source := newProducer(t, stack.kafka, p.topic)
	if err := source.produce(n, 0); err != nil {
		t.Fatal(err)
	}
	p.start()
	eventually(t, time.Minute, "some are delivered", func() error {
		subs, err := p.subscriptions()
		if err == nil && subs["test"].DeliveredRecords < n/10 {
			err = fmt.Errorf("%d records", subs["test"].DeliveredRecords)
		}
		return err
	})
	p.kafka.kill() // with what it produced and not acked
	p.kafka.start()
	eventually(t, 2*time.Minute, "all are delivered", func() error { return p.settled(n, "test", "hdfs") })
	checkCommitted(t, stack.kafka, p.out, n)
	p.stop()
	if err := os.RemoveAll(filepath.Join(p.dir, "data")); err != nil {
		t.Fatal(err)
	}
	p.rewrite(fmt.Sprintf("group: %q", p.topic), fmt.Sprintf("group: %q", p.topic+"-2"), `topic: "out-%{topic}"`, `topic: "out2-%{topic}"`)
	p.start()
	eventually(t, 2*time.Minute, "all are delivered again", func() error { return p.settled(n, "test") })
	checkCommitted(t, stack.kafka, "out2-"+p.topic, n)
}
