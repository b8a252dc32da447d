package ingest

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// collector exports the sources and the partitions that are read now.
type collector struct{ s *Service }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("spillway_ingest_"+name, help, append([]string{"source"}, labels...), nil)
}

var (
	recordsDesc   = desc("records_total", "Records accepted by the buffer.")
	bytesDesc     = desc("bytes_total", "Key, value and header bytes of those records.")
	heldDesc      = prometheus.NewDesc("spillway_ingest_held_bytes", "Bytes fetched, or about to be, and not yet accepted by the buffer.", nil, nil)
	positionDesc  = desc("position_offset", "The next offset to fetch.", "topic", "partition")
	safeDesc      = desc("safe_offset", "The buffer's safe offset.", "topic", "partition")
	committedDesc = desc("committed_offset", "The offset last committed to Kafka.", "topic", "partition")
	firstDesc     = desc("first_offset", "The first offset that Kafka still has, as of the last fetch.", "topic", "partition")
	endDesc       = desc("end_offset", "The offset after the last record that may be read, as of the last fetch.", "topic", "partition")
	unsafeDesc    = desc("oldest_unsafe_seconds", "Age of the record at the safe offset, as of the last look; 0 when there is none.", "topic", "partition")
	retentionDesc = desc("retention_seconds", "How long the topic keeps records; 0 when for ever, or unknown.", "topic", "partition")
	lagDesc       = desc("lag_records", "Kafka's end offset minus the next offset to fetch, as of the last fetch.", "topic", "partition")
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{recordsDesc, bytesDesc, heldDesc, positionDesc, safeDesc, committedDesc, firstDesc, endDesc, unsafeDesc, retentionDesc, lagDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, t prometheus.ValueType, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, t, float64(v), labels...)
	}
	for _, s := range c.s.sources {
		send(recordsDesc, prometheus.CounterValue, s.records.Load(), s.name)
		send(bytesDesc, prometheus.CounterValue, s.bytes.Load(), s.name)
		for _, p := range s.partitionStatus() {
			number := strconv.Itoa(int(p.Partition))
			send(positionDesc, prometheus.GaugeValue, p.Position, s.name, p.Topic, number)
			send(safeDesc, prometheus.GaugeValue, p.SafeOffset, s.name, p.Topic, number)
			send(committedDesc, prometheus.GaugeValue, p.CommittedOffset, s.name, p.Topic, number)
			send(firstDesc, prometheus.GaugeValue, p.FirstOffset, s.name, p.Topic, number)
			send(endDesc, prometheus.GaugeValue, p.EndOffset, s.name, p.Topic, number)
			send(unsafeDesc, prometheus.GaugeValue, p.OldestUnsafeMs/1000, s.name, p.Topic, number)
			send(retentionDesc, prometheus.GaugeValue, p.RetentionMs/1000, s.name, p.Topic, number)
			send(lagDesc, prometheus.GaugeValue, p.Lag, s.name, p.Topic, number)
		}
	}
	held := int64(0)
	for _, memory := range c.s.memory {
		held += memory.held()
	}
	send(heldDesc, prometheus.GaugeValue, held)
}
