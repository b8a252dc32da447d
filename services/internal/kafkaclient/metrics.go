package kafkaclient

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// ThrottleCollector exports what a Throttle counts.
type ThrottleCollector struct {
	throttle *Throttle
	seconds  *prometheus.Desc
	answers  *prometheus.Desc
}

// NewThrottleCollector exports metrics whose names begin with a service's prefix, as in
// spillway_delivery.
func NewThrottleCollector(prefix string, t *Throttle) *ThrottleCollector {
	return &ThrottleCollector{throttle: t,
		seconds: prometheus.NewDesc(prefix+"_kafka_throttled_seconds_total",
			"Time for which a broker muted this client because a quota was exceeded.", []string{"broker"}, nil),
		answers: prometheus.NewDesc(prefix+"_kafka_throttled_answers_total",
			"Answers of a broker that named a throttle time.", []string{"broker"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *ThrottleCollector) Describe(to chan<- *prometheus.Desc) {
	to <- c.seconds
	to <- c.answers
}

// Collect implements prometheus.Collector.
func (c *ThrottleCollector) Collect(to chan<- prometheus.Metric) {
	c.throttle.Totals(func(broker string, answers int, total time.Duration) {
		to <- prometheus.MustNewConstMetric(c.seconds, prometheus.CounterValue, total.Seconds(), broker)
		to <- prometheus.MustNewConstMetric(c.answers, prometheus.CounterValue, float64(answers), broker)
	})
}
