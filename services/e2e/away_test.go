package e2e

import (
	"os"
	"testing"
	"time"
)

// outageEnv is for how long the buffer is away, after the lag is there; without it 5 s.
const outageEnv = "E2E_OUTAGE"

// TestBufferIsAwayWithALag: the buffer is dead while a million records are written. Ingest holds
// no more memory than it may, and takes them all in when the buffer is back.
func TestBufferIsAwayWithALag(t *testing.T) {
	const n = 1_000_000
	outage := 5 * time.Second
	if s := os.Getenv(outageEnv); s != "" {
		var err error
		if outage, err = time.ParseDuration(s); err != nil {
			t.Fatalf("%s: %v", outageEnv, err)
		}
	}
	p := newRoute(t, stack.kafka)
	createTopic(t, stack.kafka, p.topic, nil)
	createTopic(t, stack.kafka, p.out, nil)
	p.startRoute()
	source := newProducer(t, stack.kafka, p.topic)
	if err := source.produce(1000, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the first are delivered", func() error { return p.settledTopic(p.topic, 1000) })
	p.buffer.kill()
	if err := source.produce(n-1000, 0); err != nil {
		t.Fatal(err)
	}
	pause(t, outage)
	_, lagging := p.ingest.memoryBytes()
	p.buffer.start()
	began := time.Now()
	eventually(t, 2*time.Minute, "the lag is delivered", func() error { return p.settledTopic(p.topic, n) })
	took := time.Since(began)
	_, caughtUp := p.ingest.memoryBytes()
	t.Logf("%d records %.1f s after the start of the buffer: %.0f records/s; ingest was at most %d MiB resident with the buffer away, %d MiB in the end",
		n, took.Seconds(), n/took.Seconds(), lagging>>20, caughtUp>>20)
	if limit := int64(64+256) << 20; caughtUp > limit {
		t.Errorf("ingest was %d MiB resident, want at most %d", caughtUp>>20, limit>>20)
	}
	eventually(t, 30*time.Second, "all of it is committed to Kafka", p.committedAll)
	tallyTopic(t, stack.kafka, p.out, n).check(t, p.out, true)
}
