package e2e

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
)

// TestTopicIsCreatedAgain: the topic is deleted and created again while everything runs, then
// once more while ingest is down; the second one becomes longer than what was read before, the
// third is shorter. All records of all three arrive, those of the first topic that the dead
// target had not taken included.
func TestTopicIsCreatedAgain(t *testing.T) {
	t.Parallel()
	target := secondBroker(t)
	if err := target.start(); err != nil {
		t.Fatal(err)
	}
	p := newPipeline(t, target)
	createTopic(t, stack.kafka, p.topic, nil)
	p.start()
	total := 0
	produce := func(n int) {
		t.Helper()
		source := newProducer(t, stack.kafka, p.topic)
		source.written.Store(int64(total))
		if err := source.produce(n, 0); err != nil {
			t.Fatal(err)
		}
		total += n
	}
	recreate := func() {
		t.Helper()
		if _, err := kadm.NewClient(newClient(t, stack.kafka)).DeleteTopic(t.Context(), p.topic); err != nil {
			t.Fatal(err)
		}
		eventually(t, 30*time.Second, "the topic is created again", func() error {
			_, err := kadm.NewClient(newClient(t, stack.kafka)).CreateTopic(t.Context(), partitions, 1, nil, p.topic)
			return err
		})
	}
	produce(10_000)
	eventually(t, time.Minute, "the first topic is delivered", func() error { return p.settled(total, "hdfs", "test") })
	if err := target.crash(); err != nil {
		t.Fatal(err)
	}
	produce(5_000)
	eventually(t, time.Minute, "HDFS has the rest of it", func() error { return p.settled(total, "hdfs") })
	recreate()
	produce(30_000)
	eventually(t, time.Minute, "HDFS has the second topic", func() error { return p.settled(total, "hdfs") })
	p.ingest.kill()
	recreate()
	produce(2_000)
	p.ingest.start()
	eventually(t, time.Minute, "HDFS has the third topic", func() error { return p.settled(total, "hdfs") })
	p.buffer.kill()
	p.buffer.start()
	if err := target.start(); err != nil {
		t.Fatal(err)
	}
	p.awaitRest(total, 2*time.Minute, p.hdfs)
	tallyHDFS(t, p.hdfsDir, total).check(t, "HDFS", false)
	tallyTopic(t, target, p.out, total).check(t, p.out, true)
	eventually(t, 30*time.Second, "all of it is committed to Kafka", p.committedAll)
}
