package buffer

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// collector reads the queues when it is scraped, so that nothing is counted twice.
type collector struct{ s *Service }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("spillway_buffer_"+name, help, labels, nil)
}

var (
	descOpen           = desc("queue_open", "1 when the queue is open, 0 while it is recovered.", "queue")
	descFenced         = desc("queue_fenced", "1 when another buffer has taken the shard over, or the topics that keep it were replaced, and this one does not open it again.", "queue")
	descMemoryRecords  = desc("memory_records", "Records in the memory window.", "queue")
	descMemoryBytes    = desc("memory_bytes", "Payload bytes in the memory window.", "queue")
	descPendingRecords = desc("pending_records", "Records that at least one subscription still needs.", "queue")
	descDiskBytes      = desc("disk_bytes", "Bytes the store uses on disk.", "queue")
	descMemoryLimit    = desc("memory_limit_bytes", "Bound of the memory window in payload bytes.", "queue")
	descDiskLimit      = desc("disk_limit_bytes", "Bound of what the store uses on disk.", "queue")
	descTimeToFull     = desc("time_to_full_seconds", "When the disk bound is reached if the use grows as it did in the window; +Inf when it does not grow.", "queue", "window")
	descAppended       = desc("appended_records_total", "Records accepted since the queue was opened.", "queue")
	descSpilled        = desc("spilled_records_total", "Records written to disk since the queue was opened.", "queue")

	descCapacity = desc("capacity_records", "Bound of the records that are pending, disk.records.", "queue")

	descUnread     = desc("unread_offsets", "Offsets that required subscriptions need, that the store does not have, and whose partitions no ingest has read for minutes, of a queue that is kept in Kafka.", "queue")
	descBehind     = desc("ledger_behind_total", "Partitions that ingest was assigned and had committed further than the ledger says is safe: its end was lost, or the group has read for another queue.", "queue")
	descRevision   = desc("queue_revision", "Revision of the configuration whose subscriptions and disk bounds count, of a queue that is kept in Kafka; else 0.", "queue")
	descPartitions = desc("partitions", "Source partitions that are known; no new ones are taken above 100000.", "queue")

	descLock = desc("queue_lock_seconds", "Longest time that the queue's lock was held, in the last minute or two.", "queue")

	descSubPending     = desc("subscription_pending_records", "Records the subscription has not settled.", "subscription")
	descSubBytes       = desc("subscription_pending_bytes", "Payload bytes the subscription has not settled.", "subscription")
	descSubAge         = desc("subscription_age_seconds", "Time since the oldest batch that the subscription still needs was appended; 0 without a backlog.", "subscription")
	descTimeToDrain    = desc("time_to_drain_seconds", "When the backlog is gone if it shrinks as it did in the window; +Inf when it does not shrink.", "subscription", "window")
	descSubLimit       = desc("subscription_limit_bytes", "Bound of the payload bytes that are not settled, as configured; 0 is the bound of the queue.", "subscription")
	descSubLeased      = desc("subscription_leased_batches", "Batches leased now.", "subscription")
	descSubParked      = desc("subscription_parked_batches", "Batches that were given back and are not leased again before a time.", "subscription")
	descSubSessions    = desc("subscription_sessions", "Live sessions.", "subscription")
	descSubDelivered   = desc("subscription_delivered_records_total", "Records delivered since the queue was opened.", "subscription")
	descSubDead        = desc("subscription_dead_lettered_records_total", "Records dead-lettered since the queue was opened.", "subscription")
	descSubDeferred    = desc("subscription_deferred_offsets", "Offsets that are pending and not held: to be refetched from Kafka.", "subscription")
	descSubDropped     = desc("subscription_dropped_offsets_total", "Offsets dropped by policy since the queue was opened.", "subscription")
	descSubLost        = desc("subscription_lost_offsets_total", "Offsets that Kafka no longer had, since the queue was opened.", "subscription")
	descSubRedelivered = desc("subscription_redelivered_batches_total", "Batches leased again since the queue was opened.", "subscription")
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, t prometheus.ValueType, v int64, label string) {
		ch <- prometheus.MustNewConstMetric(d, t, float64(v), label)
	}
	c.collectSpares(ch)
	for _, name := range c.s.names() {
		open := int64(0)
		q, _ := c.s.queues[name].get()
		if q != nil {
			open = 1
		}
		if q != nil || !c.s.queues[name].isSpare() {
			send(descOpen, prometheus.GaugeValue, open, name)
		}
		fenced := int64(0)
		if c.s.queues[name].isLost() {
			fenced = 1
		}
		send(descFenced, prometheus.GaugeValue, fenced, name)
		send(descBehind, prometheus.CounterValue, c.s.queues[name].behind.times(), name)
	}
	c.s.eachOpen(func(name string, q *queue.Queue) {
		s := q.Stats()
		send(descMemoryRecords, prometheus.GaugeValue, s.MemoryRecords, name)
		send(descMemoryBytes, prometheus.GaugeValue, s.MemoryBytes, name)
		send(descCapacity, prometheus.GaugeValue, s.Limits.DiskRecords, name)
		send(descPendingRecords, prometheus.GaugeValue, s.PendingRecords, name)
		send(descDiskBytes, prometheus.GaugeValue, s.Store.DiskBytes, name)
		send(descMemoryLimit, prometheus.GaugeValue, c.s.queues[name].cfg.MemoryBytes, name)
		send(descDiskLimit, prometheus.GaugeValue, s.Limits.DiskBytes, name)
		for _, w := range windows {
			ch <- prometheus.MustNewConstMetric(descTimeToFull, prometheus.GaugeValue, c.s.forecasts.full(name, s.Limits.DiskBytes, w.length), name, w.name)
		}
		send(descAppended, prometheus.CounterValue, s.AppendedRecords, name)
		send(descSpilled, prometheus.CounterValue, s.SpilledRecords, name)
		send(descPartitions, prometheus.GaugeValue, int64(s.Partitions), name)
		unread := int64(0)
		for u := range q.Unread() {
			unread += u.Offsets
		}
		send(descUnread, prometheus.GaugeValue, unread, name)
		revision, _ := q.Revision()
		send(descRevision, prometheus.GaugeValue, revision, name)
		ch <- prometheus.MustNewConstMetric(descLock, prometheus.GaugeValue, q.LongestHold().Seconds(), name)
		for _, v := range q.Subscriptions() {
			sub := name + "/" + v.Name
			send(descSubPending, prometheus.GaugeValue, v.PendingRecords, sub)
			send(descSubBytes, prometheus.GaugeValue, v.PendingBytes, sub)
			ch <- prometheus.MustNewConstMetric(descSubAge, prometheus.GaugeValue, c.s.forecasts.age(sub).Seconds(), sub)
			for _, w := range windows {
				ch <- prometheus.MustNewConstMetric(descTimeToDrain, prometheus.GaugeValue, c.s.forecasts.drained(sub, w.length), sub, w.name)
			}
			send(descSubLimit, prometheus.GaugeValue, v.Limit, sub)
			send(descSubLeased, prometheus.GaugeValue, int64(v.Leased), sub)
			send(descSubParked, prometheus.GaugeValue, int64(v.Parked), sub)
			send(descSubSessions, prometheus.GaugeValue, int64(v.Sessions), sub)
			send(descSubDelivered, prometheus.CounterValue, v.Delivered, sub)
			send(descSubDead, prometheus.CounterValue, v.DeadLettered, sub)
			send(descSubDeferred, prometheus.GaugeValue, v.Deferred, sub)
			send(descSubDropped, prometheus.CounterValue, v.Dropped, sub)
			send(descSubLost, prometheus.CounterValue, v.Lost, sub)
			send(descSubRedelivered, prometheus.CounterValue, v.Redelivered, sub)
		}
	})
}
