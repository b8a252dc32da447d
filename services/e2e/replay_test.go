package e2e

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// TestReplayBesideLiveRecords: what was delivered in a time is delivered once more, at a rate and
// beside live records, to HDFS and, in transactions, to Kafka, while the buffer and both
// deliveries die of SIGKILL. Each record is there once, and once more when it is of that time. The
// subscription of the one to Kafka is paused until nothing is with its delivery when its replay
// begins, as docs/operations.md says: what is would be there twice.
func TestReplayBesideLiveRecords(t *testing.T) {
	const early, late, rate = 12_000, 18_000, 2_000
	p := newPipeline(t, stack.kafka, `topic: "out-%{topic}"}`, `topic: "out-%{topic}", exactly_once: true}`)
	createTopic(t, stack.kafka, p.topic, nil)
	p.start()
	source := newProducer(t, stack.kafka, p.topic)
	began := time.Now()
	if err := source.produce(early, 0); err != nil {
		t.Fatal(err)
	}
	p.awaitRest(early, time.Minute, p.hdfs)
	pause(t, 1100*time.Millisecond) // times of a replay are to the millisecond, and brokers' clocks are this one
	ended := time.Now()

	produced := make(chan error, 1)
	go func() { produced <- source.produce(late, rate) }()
	for _, name := range []string{"c/hdfs", "c/test"} {
		plan := []string{"replay", name, "--from", began.Add(-time.Second).Format(time.RFC3339Nano), "--to", ended.Format(time.RFC3339Nano), "--rate", fmt.Sprintf("%d/s", rate)}
		if out, err := p.ask(append(plan, "--dry-run")...); err != nil {
			t.Fatal(err)
		} else {
			t.Logf("%s", out)
		}
		if name == "c/test" {
			if _, err := p.ask("subscriptions", "pause", name); err != nil {
				t.Fatal(err)
			}
			eventually(t, 30*time.Second, "nothing is with the delivery", func() error {
				subs, err := p.subscriptions()
				if err == nil && subs["test"].LeasedBatches > 0 {
					err = fmt.Errorf("%d batches are", subs["test"].LeasedBatches)
				}
				return err
			})
		}
		if _, err := p.ask(append(plan, "--confirm", name)...); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.ask("subscriptions", "resume", "c/test"); err != nil {
		t.Fatal(err)
	}
	left := func(name string) int64 {
		subs, err := p.subscriptions()
		if err != nil || subs[name] == nil || subs[name].Replay == nil {
			return -1
		}
		return subs[name].Replay.LeftOffsets
	}
	for _, victim := range []*service{p.buffer, p.hdfs, p.kafka, p.buffer} {
		pause(t, 600*time.Millisecond)
		t.Logf("killing %s: %d and %d offsets are left of the replays, %d of the records are written", victim.name, left("hdfs"), left("test"), source.written.Load())
		victim.kill()
		victim.start()
	}
	if err := <-produced; err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Minute, "the replays are done", func() error {
		if a, b := left("hdfs"), left("test"); a != 0 || b != 0 {
			return fmt.Errorf("%d and %d offsets are left", a, b)
		}
		return nil
	})
	p.awaitRest(early+late, time.Minute, p.hdfs)

	files := newCounts(early + late)
	for line := range bytes.Lines(hdfsTool(t, "hdfs-dfs", append([]string{"-cat"}, hdfsFiles(t, p.hdfsDir)...)...)) {
		files.add(t, bytes.TrimSuffix(line, []byte("\n")))
	}
	files.check(t, "HDFS", early)
	topic := newCounts(early + late)
	eachCommitted(t, stack.kafka, p.out, func(r *kgo.Record) { topic.add(t, r.Value) })
	topic.check(t, p.out, early)
}

// counts is how often each record arrived.
type counts []int

func newCounts(n int) counts { return make(counts, n) }

func (c counts) add(t testing.TB, value []byte) {
	t.Helper()
	n, err := numberOf(value)
	if err != nil || n >= len(c) {
		t.Errorf("record %d: %v", n, err)
		return
	}
	c[n]++
}

// check wants the first ones twice, and the others once.
func (c counts) check(t testing.TB, where string, twice int) {
	t.Helper()
	wrong := make(map[string]int)
	for i, n := range c {
		want := 1
		if i < twice {
			want = 2
		}
		if n != want {
			wrong[fmt.Sprintf("%d times in place of %d", n, want)]++
		}
	}
	if len(wrong) > 0 {
		t.Errorf("%s: records are there %v", where, wrong)
	}
}
