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
	var syncs uint64
	var all, synced float64 // seconds
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
				switch f.GetName() {
				case "spillway_buffer_commit_seconds":
					commits, all = f.Metric[0].Histogram.GetSampleCount(), f.Metric[0].Histogram.GetSampleSum()
				case "spillway_buffer_store_sync_seconds":
					syncs, synced = f.Metric[0].Histogram.GetSampleCount(), f.Metric[0].Histogram.GetSampleSum()
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
	if syncs == 0 || synced <= 0 || all <= 0 {
		t.Errorf("%d syncs took %v s, and the commits %v s", syncs, synced, all)
	}
	if took > 20*time.Millisecond {
		t.Errorf("the fastest of ten scrapes took %s", took)
	}
}
