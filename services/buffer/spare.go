package buffer

import "github.com/prometheus/client_golang/prometheus"

var descSpare = desc("spare", "1 when the group of the buffers has given this one no shard of the queue, and would give it one; 0 when it has one, was drained, has no place in the group, or the queue has no group.", "queue")

// collectSpares says of which queues this buffer is a spare: one that would take a shard, and has
// none.
func (c *collector) collectSpares(ch chan<- prometheus.Metric) {
	for _, name := range c.s.names() {
		m := c.s.queues[name]
		spare := 0.0
		if m.isSpare() && !m.group.Draining() {
			spare = 1
		}
		ch <- prometheus.MustNewConstMetric(descSpare, prometheus.GaugeValue, spare, name)
	}
}
