package ingest

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

// gathered returns the number of series that a registry has, and the values of those without
// labels of partitions.
func gathered(t *testing.T, r *prometheus.Registry) (series int, values map[string]float64) {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values = make(map[string]float64)
	for _, f := range families {
		series += len(f.Metric)
		for _, m := range f.Metric {
			if len(m.Label) <= 1 {
				values[f.GetName()] = m.GetGauge().GetValue()
			}
		}
	}
	return series, values
}

// TestManyPartitionsAreFewSeries: with 10,000 topics a source is a handful of series, and what
// alerts are about is still in them.
func TestManyPartitionsAreFewSeries(t *testing.T) {
	registry := prometheus.NewRegistry()
	s, err := New(config.Ingest{Memory: config.MiB, Sources: map[string]*config.Source{"s": {Brokers: []string{"localhost:1"}, Topics: []string{"*"}, Queue: "q"}}},
		[]string{"localhost:1"}, Deps{Log: slog.New(slog.DiscardHandler), Registerer: registry})
	if err != nil {
		t.Fatal(err)
	}
	source := s.sources[0]
	for _, test := range []struct{ topics, least, most int }{{10, 100, 120}, {maxPartitionSeries, 10 * maxPartitionSeries, 10*maxPartitionSeries + 20}, {10_000, 5, 20}} {
		source.partitions = nil
		for i := range test.topics {
			source.partitions = append(source.partitions, newPartition(source, nil, topicPartition{fmt.Sprint("t", i), 0}, 0))
		}
		p := source.partitions[test.topics/2]
		p.position.Store(100)
		p.end.Store(142)
		p.unsafeAge.Store(900)
		p.retention.Store(&kafkaclient.Retention{After: time.Second})
		p.undecided.Store(time.Now().Add(-time.Hour).UnixMilli())
		series, values := gathered(t, registry)
		if series < test.least || series > test.most {
			t.Errorf("%d topics are %d series, want %d to %d", test.topics, series, test.least, test.most)
		}
		if n := values["spillway_ingest_source_partitions"]; n != float64(test.topics) {
			t.Errorf("%v partitions, want %d", n, test.topics)
		}
		if lag := values["spillway_ingest_source_lag_records"]; lag != 42 {
			t.Errorf("a lag of %v, want 42", lag)
		}
		if used := values["spillway_ingest_source_retention_used_ratio"]; used != 0.9 {
			t.Errorf("%v of the retention is used, want 0.9", used)
		}
		if held := values["spillway_ingest_source_held_back_seconds"]; held < 3600 || held > 3700 {
			t.Errorf("held back for %v s, want an hour", held)
		}
	}
}
