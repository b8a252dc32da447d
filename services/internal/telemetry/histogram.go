package telemetry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Seconds is a histogram of durations for each value of its labels. Its buckets are few, since
// every one of them is a series.
type Seconds struct{ *prometheus.HistogramVec }

// NewCallSeconds is for calls that somebody waits for: from a millisecond to a minute.
func NewCallSeconds(name, help string, labels ...string) Seconds {
	return newSeconds(name, help, []float64{.001, .005, .025, .1, .5, 2, 10, 60}, labels)
}

// NewAgeSeconds is for the time that records are on their way: from a tenth of a second to half a
// day.
func NewAgeSeconds(name, help string, labels ...string) Seconds {
	return newSeconds(name, help, []float64{.1, .5, 1, 2, 5, 15, 60, 300, 1800, 7200, 43200}, labels)
}

func newSeconds(name, help string, buckets []float64, labels []string) Seconds {
	return Seconds{prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)}
}

// Since notes the time since a call began. On a zero Seconds it does nothing.
func (s Seconds) Since(began time.Time, labels ...string) { s.Note(time.Since(began), labels...) }

// Note notes a duration. On a zero Seconds it does nothing.
func (s Seconds) Note(d time.Duration, labels ...string) {
	if s.HistogramVec != nil {
		s.WithLabelValues(labels...).Observe(d.Seconds())
	}
}
