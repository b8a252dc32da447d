package buffer

import (
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillwayio/spillway/services/internal/config"
)

// TestAScrapeIsSmall: neither the number of series nor the time of a scrape, during which it asks
// the queue, grows with topics.
func TestAScrapeIsSmall(t *testing.T) {
	registry := prometheus.NewRegistry()
	r := start(t, t.TempDir(), func(_ *config.Queue, d *Deps) { d.Registerer = registry })
	in := r.appendStream()
	scrape := func() (series int, commits uint64, took time.Duration) {
		t.Helper()
		took = time.Hour
		for range 10 {
			began := time.Now()
			families, err := registry.Gather()
			took = min(took, time.Since(began))
			if err != nil {
				t.Fatal(err)
			}
			series = 0
			for _, f := range families {
				series += len(f.Metric)
				if f.GetName() == "spillway_buffer_commit_seconds" {
					commits = f.Metric[0].Histogram.GetSampleCount()
				}
			}
		}
		return series, commits, took
	}
	r.assign(in, "t")
	r.appended(in, batch("t", 0, 1, "x"))
	eventually(t, "a commit", func() bool { _, commits, _ := scrape(); return commits > 0 })
	one, _, _ := scrape()
	const topics = 2000
	for i := range topics {
		topic := fmt.Sprint("topic", i)
		r.assign(in, topic)
		r.appended(in, batch(topic, 0, 1, "x"))
	}
	many, _, took := scrape()
	if many != one {
		t.Errorf("%d series with %d topics, and %d with one", many, topics, one)
	}
	if took > 20*time.Millisecond {
		t.Errorf("the fastest of ten scrapes took %s", took)
	}
}
