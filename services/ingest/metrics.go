package ingest

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// maxPartitionSeries is up to how many partitions of a source are exported one by one. Each costs
// ten series; a source with more has the series of the source only.
const maxPartitionSeries = 500

// collector exports the sources and the partitions that are read now.
type collector struct{ s *Service }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("spillway_ingest_"+name, help, append([]string{"source"}, labels...), nil)
}

var (
	recordsDesc   = desc("records_total", "Records accepted by the buffer.")
	bytesDesc     = desc("bytes_total", "Key, value and header bytes of those records.")
	heldDesc      = prometheus.NewDesc("spillway_ingest_held_bytes", "Bytes fetched and not yet accepted by the buffer, and what decompression takes.", nil, nil)
	positionDesc  = desc("position_offset", "The next offset to fetch.", "topic", "partition")
	safeDesc      = desc("safe_offset", "The buffer's safe offset.", "topic", "partition")
	committedDesc = desc("committed_offset", "The offset last committed to Kafka.", "topic", "partition")
	firstDesc     = desc("first_offset", "The first offset that Kafka still has, as of the last fetch.", "topic", "partition")
	endDesc       = desc("end_offset", "Kafka's end offset (high watermark), as of the last fetch.", "topic", "partition")
	stableDesc    = desc("stable_offset", "The last stable offset, as of the last fetch: an open transaction holds back what comes after it.", "topic", "partition")
	heldBackDesc  = desc("held_back_seconds", "For how long an open transaction has held back records; 0 when none does.", "topic", "partition")
	throttledDesc = desc("throttled_seconds_total", "Time for which brokers told this source to wait because of a quota.")
	foreignDesc   = desc("foreign_clients", "Client ids in the group that are not of Spillway: what they are given is not read here.")
	unsafeDesc    = desc("oldest_unsafe_seconds", "Age of the record at the safe offset, as of the last look; 0 when there is none.", "topic", "partition")
	retentionDesc = desc("retention_seconds", "How long the topic keeps records; 0 when for ever, or unknown.", "topic", "partition")
	// Of a source's partitions together, however many there are.
	partitionsDesc = desc("source_partitions", "Partitions that are read now.")
	sourceLagDesc  = desc("source_lag_records", "Records in Kafka that are not fetched yet, of all partitions.")
	sourceHeldDesc = desc("source_held_back_seconds", "For how long an open transaction has held back records, at most.")
	sourceUsedDesc = desc("source_retention_used_ratio", "Age of the oldest record that is not safe, as a part of its topic's retention, at most.")

	lagDesc = desc("lag_records", "Kafka's end offset minus the next offset to fetch, as of the last fetch.", "topic", "partition")
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{recordsDesc, bytesDesc, heldDesc, positionDesc, safeDesc, committedDesc, firstDesc, endDesc, unsafeDesc, retentionDesc, lagDesc, stableDesc, heldBackDesc, throttledDesc, foreignDesc,
		partitionsDesc, sourceLagDesc, sourceHeldDesc, sourceUsedDesc} {
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
		s.mu.Lock()
		foreign := len(s.foreign)
		s.mu.Unlock()
		send(foreignDesc, prometheus.GaugeValue, int64(foreign), s.name)
		throttled := time.Duration(0)
		s.client.Throttle().Totals(func(_ string, _ int, total time.Duration) { throttled += total })
		ch <- prometheus.MustNewConstMetric(throttledDesc, prometheus.CounterValue, throttled.Seconds(), s.name)
		partitions := s.partitionStatus()
		send(partitionsDesc, prometheus.GaugeValue, int64(len(partitions)), s.name)
		var lag, heldBack int64
		used := 0.0
		for _, p := range partitions {
			lag += p.Lag
			heldBack = max(heldBack, heldBackSeconds(p))
			if p.RetentionMs > 0 {
				used = max(used, float64(p.OldestUnsafeMs)/float64(p.RetentionMs))
			}
		}
		send(sourceLagDesc, prometheus.GaugeValue, lag, s.name)
		send(sourceHeldDesc, prometheus.GaugeValue, heldBack, s.name)
		ch <- prometheus.MustNewConstMetric(sourceUsedDesc, prometheus.GaugeValue, used, s.name)
		if len(partitions) > maxPartitionSeries {
			continue
		}
		for _, p := range partitions {
			number := strconv.Itoa(int(p.Partition))
			send(positionDesc, prometheus.GaugeValue, p.Position, s.name, p.Topic, number)
			send(safeDesc, prometheus.GaugeValue, p.SafeOffset, s.name, p.Topic, number)
			send(committedDesc, prometheus.GaugeValue, p.CommittedOffset, s.name, p.Topic, number)
			send(firstDesc, prometheus.GaugeValue, p.FirstOffset, s.name, p.Topic, number)
			send(endDesc, prometheus.GaugeValue, p.EndOffset, s.name, p.Topic, number)
			send(stableDesc, prometheus.GaugeValue, p.StableOffset, s.name, p.Topic, number)
			send(heldBackDesc, prometheus.GaugeValue, heldBackSeconds(p), s.name, p.Topic, number)
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

// heldBackSeconds is for how long an open transaction has held back records of a partition.
func heldBackSeconds(p *spillwayv1.PartitionStatus) int64 {
	if p.HeldBackSinceMs == 0 {
		return 0
	}
	return max(int64(time.Since(time.UnixMilli(p.HeldBackSinceMs)).Seconds()), 0)
}
