package e2e

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestManyPartitions: one ingest reads a topic of 1,000 partitions, within its memory.
func TestManyPartitions(t *testing.T) {
	t.Parallel()
	const many, n = 1_000, 200_000
	p := newRoute(t, stack.kafka)
	client := newClient(t, stack.kafka)
	if _, err := kadm.NewClient(client).CreateTopic(t.Context(), many, 1, nil, p.topic); err != nil {
		t.Fatal(err)
	}
	if _, err := kadm.NewClient(client).CreateTopic(t.Context(), partitions, 1, nil, p.out); err != nil {
		t.Fatal(err)
	}
	records := make([]*kgo.Record, n)
	for i := range records {
		records[i] = &kgo.Record{Topic: p.topic, Partition: int32(i % many), Value: value(i)}
	}
	if err := client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	p.startRoute()
	eventually(t, 2*time.Minute, "everything is delivered", func() error { return p.settledTopic(p.topic, n) })
	for i := range records[:many] {
		records[i] = &kgo.Record{Topic: p.topic, Partition: int32(i), Value: value(n + i)}
	}
	if err := client.ProduceSync(t.Context(), records[:many]...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	eventually(t, time.Minute, "the later ones are delivered", func() error { return p.settledTopic(p.topic, n+many) })
	t.Logf("one record in each partition took %s", time.Since(began).Round(time.Millisecond))
	tallyTopic(t, stack.kafka, p.out, n+many).check(t, p.out, true)
	for _, s := range []*service{p.ingest, p.buffer, p.kafka} {
		_, peak := s.memoryBytes()
		t.Logf("%s: at most %d MiB resident", s.name, peak>>20)
		if peak>>20 > 64+256 {
			t.Errorf("%s was %d MiB resident, want at most 64 of payload and 256", s.name, peak>>20)
		}
	}
}
