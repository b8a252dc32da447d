package buffer

import (
	"maps"
	"math"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// collector reads the queues when it is scraped, so that nothing is counted twice.
type collector struct{ s *Service }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("spillway_buffer_"+name, help, labels, nil)
}

var (
	descSpare          = desc("spare", "1 when the group of the buffers has given this one no shard of the queue, and would give it one; 0 when it has one, was drained, has no place in the group, or the queue has no group.", "queue")
	descOpen           = desc("queue_open", "1 when the queue is open, 0 while it is recovered.", "queue")
	descFenced         = desc("queue_fenced", "1 when another buffer has taken the shard over, or the topics that keep it were replaced, and this one does not open it again.", "queue")
	descMemoryRecords  = desc("memory_records", "Records in the memory window.", "queue")
	descMemoryBytes    = desc("memory_bytes", "Payload bytes in the memory window.", "queue")
	descPendingRecords = desc("pending_records", "Records that at least one subscription still needs.", "queue")
	descDiskBytes      = desc("disk_bytes", "Bytes the store uses on disk.", "queue")
	descMemoryLimit    = desc("memory_limit_bytes", "Bound of the memory window in payload bytes.", "queue")
	descDiskLimit      = desc("disk_limit_bytes", "Bound of what the store uses on disk.", "queue")
	descTimeToFull     = desc("time_to_full_seconds", "When the disk bound is reached if the use grows as it did in the window; +Inf when it does not grow.", "queue", "window")
	descAppended       = desc("appended_records_total", "Records accepted since the process began.", "queue")
	descSpilled        = desc("spilled_records_total", "Records written to disk since the process began.", "queue")

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
	descSubDelivered   = desc("subscription_delivered_records_total", "Records delivered since the process began.", "subscription")
	descSubDead        = desc("subscription_dead_lettered_records_total", "Records dead-lettered since the process began.", "subscription")
	descSubDeferred    = desc("subscription_deferred_offsets", "Offsets that are pending and not held: to be refetched from Kafka.", "subscription")
	descSubDropped     = desc("subscription_dropped_offsets_total", "Offsets dropped by policy since the process began.", "subscription")
	descSubLost        = desc("subscription_lost_offsets_total", "Offsets that Kafka no longer had, since the process began.", "subscription")
	descSubRedelivered = desc("subscription_redelivered_batches_total", "Batches leased again since the process began.", "subscription")
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector. A queue's series are of all its shards that are here.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	for _, name := range c.s.names() {
		m := c.s.queues[name]
		here, open, past := m.counted()
		all := make(sums)
		isOpen, fenced := 1.0, 0.0
		if len(open) < max(len(here), 1) {
			isOpen = 0
		}
		for _, h := range here {
			if h.isLost() {
				fenced = 1
			}
		}
		isSpare, spare := m.isSpare(), 0.0
		if isSpare && !m.group.Draining() {
			spare = 1
		}
		all.add(descSpare, spare, name)
		if len(here) > 0 || !isSpare {
			all.add(descOpen, isOpen, name)
		}
		all.add(descFenced, fenced, name)
		all.add(descBehind, float64(m.behind.times()), name)
		for _, o := range open {
			stats, views := o.Stats(), o.Queue.Subscriptions()
			all.count(o.name, stats, views)
			c.fill(all, o, stats, views)
		}
		for of, n := range past {
			if _, counted := all[of]; counted {
				all[of] += n
			}
		}
		all.send(ch)
	}
}

// sums are the values of series, which several shards may have.
type sums map[series]float64

// series is named by its labels. There are two at most.
type series struct {
	desc   *prometheus.Desc
	labels [2]string
}

func seriesOf(d *prometheus.Desc, labels []string) (s series) {
	s.desc = d
	copy(s.labels[:], labels)
	return s
}

func (s sums) add(d *prometheus.Desc, v float64, labels ...string) { s[seriesOf(d, labels)] += v }

// choose takes one of the values that shards have.
func (s sums) choose(d *prometheus.Desc, better func(v, than float64) bool, v float64, labels ...string) {
	of := seriesOf(d, labels)
	if than, known := s[of]; !known || better(v, than) {
		s[of] = v
	}
}

// fullest has the use of the disk, and its bound, be those of the fullest shard: of a sum nobody
// would see that one is full.
func (s sums) fullest(name string, bytes, limit float64) {
	use, bound := seriesOf(descDiskBytes, []string{name}), seriesOf(descDiskLimit, []string{name})
	if than, known := s[bound]; !known || bytes/limit > s[use]/than {
		s[use], s[bound] = bytes, limit
	}
}

func (s sums) send(ch chan<- prometheus.Metric) {
	for of, v := range s {
		kind, labels := prometheus.GaugeValue, of.labels[:1]
		if counters[of.desc] {
			kind = prometheus.CounterValue
		}
		if of.desc == descTimeToFull || of.desc == descTimeToDrain {
			labels = of.labels[:]
		}
		ch <- prometheus.MustNewConstMetric(of.desc, kind, v, labels...)
	}
}

// Which of two shards counts. What is not known yet is NaN.
func most(v, than float64) bool    { return v > than }
func least(v, than float64) bool   { return v < than }
func soonest(v, than float64) bool { return v < than || math.IsNaN(than) }
func latest(v, than float64) bool  { return v > than || math.IsNaN(than) }

// counters are those of a shard, which goes to another buffer with its ledger, but not with them.
var counters = map[*prometheus.Desc]bool{descBehind: true, descAppended: true, descSpilled: true, descSubDelivered: true, descSubDead: true, descSubDropped: true, descSubLost: true, descSubRedelivered: true}

// count adds the counters of a shard of a queue.
func (s sums) count(name string, stats queue.Stats, views []queue.SubscriptionView) {
	s.add(descAppended, float64(stats.AppendedRecords), name)
	s.add(descSpilled, float64(stats.SpilledRecords), name)
	for _, v := range views {
		sub := name + "/" + v.Name
		s.add(descSubDelivered, float64(v.Delivered), sub)
		s.add(descSubDead, float64(v.DeadLettered), sub)
		s.add(descSubDropped, float64(v.Dropped), sub)
		s.add(descSubLost, float64(v.Lost), sub)
		s.add(descSubRedelivered, float64(v.Redelivered), sub)
	}
}

// counted returns the shards that are here and those that are open, with what others counted
// before.
func (m *managedQueue) counted() (here []*shard, open []openShard, past sums) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.hereLocked(), m.openLocked(), maps.Clone(m.past)
}

// closedLocked keeps what a shard has counted that was open until now, so that the sum does not
// fall when the shard goes to another buffer: Prometheus takes that for a counter that was reset.
// What subscriptions counted that are gone is forgotten.
func (m *managedQueue) closedLocked(h *shard) {
	if h.current == nil {
		return
	}
	all := make(sums)
	all.count(h.name, h.current.Stats(), h.current.Subscriptions())
	for of, n := range m.past {
		if _, there := all[of]; there {
			all[of] += n
		}
	}
	m.past = all
}

// fill adds everything but the counters of a shard.
func (c *collector) fill(all sums, o openShard, s queue.Stats, views []queue.SubscriptionView) {
	name := o.name
	all.add(descMemoryRecords, float64(s.MemoryRecords), name)
	all.add(descMemoryBytes, float64(s.MemoryBytes), name)
	all.add(descCapacity, float64(s.Limits.DiskRecords), name)
	all.add(descPendingRecords, float64(s.PendingRecords), name)
	all.fullest(name, float64(s.Store.DiskBytes), float64(s.Limits.DiskBytes))
	all.choose(descMemoryLimit, most, float64(o.managedQueue.memory().Bytes), name)
	for _, w := range windows {
		all.choose(descTimeToFull, soonest, c.s.forecasts.full(o.trendOf(""), s.Limits.DiskBytes, w.length), name, w.name)
	}
	all.add(descPartitions, float64(s.Partitions), name)
	unread := int64(0)
	for u := range o.Unread() {
		unread += u.Offsets
	}
	all.add(descUnread, float64(unread), name)
	revision, _ := o.Revision()
	all.choose(descRevision, most, float64(revision), name)
	all.choose(descLock, most, o.LongestHold().Seconds(), name)
	for _, v := range views {
		sub, of := name+"/"+v.Name, o.trendOf(v.Name)
		all.add(descSubPending, float64(v.PendingRecords), sub)
		all.add(descSubBytes, float64(v.PendingBytes), sub)
		all.choose(descSubAge, most, c.s.forecasts.age(of).Seconds(), sub)
		for _, w := range windows {
			all.choose(descTimeToDrain, latest, c.s.forecasts.drained(of, w.length), sub, w.name)
		}
		all.add(descSubLimit, float64(v.Limit), sub)
		all.add(descSubLeased, float64(v.Leased), sub)
		all.add(descSubParked, float64(v.Parked), sub)
		all.choose(descSubSessions, least, float64(v.Sessions), sub) // a delivery has one with each shard
		all.add(descSubDeferred, float64(v.Deferred), sub)
	}
}
