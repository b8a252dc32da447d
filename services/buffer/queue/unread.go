package queue

import (
	"iter"
	"time"
)

// A partition that no ingest reads has left the configuration of its source, or all ingests that
// read it are away. Nobody tells then how near it is that Kafka deletes what the queue lacks of
// it. So it counts as old: any ingest of the cluster is asked for it, and it goes to the store.
// Where there is none it is said, since when, for whoever can start one before Kafka deletes it.

// unreadGrace is how long nobody reads a partition before that means anything: ingests are
// restarted, and groups divide their partitions anew.
const unreadGrace = 2 * time.Minute

// unread is what is known of a partition that no ingest reads.
type unread struct {
	since time.Time // zero: one reads it, or nothing of it is lacking
	told  bool
}

// Unread is a partition that no ingest reads, and of which a required subscription needs what the
// queue does not hold.
type Unread struct {
	Partition Partition
	Since     time.Time
	Offsets   int64 // of all such subscriptions together
}

// watchUnreadLocked looks whether anybody reads a partition of which something is lacking.
func (q *Queue) watchUnreadLocked(p *partition, now time.Time) {
	if !q.cfg.KeepsOld {
		return
	}
	if len(q.watching[p.id]) > 0 {
		p.unread = unread{}
		return
	}
	if p.unread.since.IsZero() {
		p.unread.since = now
	}
	// Another ingest of the cluster may have it soon.
	if p.unread.told || now.Sub(p.unread.since) < 2*unreadGrace {
		return
	}
	offsets, first := q.lackedLocked(p)
	if offsets == 0 {
		return
	}
	p.unread.told = true
	q.unreadTold.tell(now, func(more bool) {
		if more {
			q.cfg.Log.Error("more partitions that no ingest reads have records pending which only Kafka has; spillway_buffer_unread_offsets counts them")
			return
		}
		q.cfg.Log.Error("no ingest reads the partition, and records that are pending are with Kafka only, which deletes them when its retention is over: have an ingest of that cluster read the topic again until they are delivered, or raise the topic's retention",
			"cluster", p.id.Cluster, "topic", p.id.Topic, "partition", p.id.Number, "offsets", offsets, "from_offset", first, "unread_since", p.unread.since.UTC().Format(time.RFC3339))
	})
}

// lackedLocked returns how much required subscriptions have deferred, and where that begins.
func (q *Queue) lackedLocked(p *partition) (offsets, first int64) {
	first = maxOffset
	for sub, g := range p.progress {
		if sub.Required && !g.deferred.Empty() && !g.replaysNext() {
			offsets += g.deferred.Len()
			first = min(first, g.deferred.First().First)
		}
	}
	return offsets, first
}

// leftLocked says whether nobody has read a partition for so long that what is lacking of it is to
// be in the store.
func (q *Queue) leftLocked(p *partition) bool {
	return !p.unread.since.IsZero() && q.cfg.Now().Sub(p.unread.since) >= unreadGrace
}

// spillUnwatchedLocked has the writer take what is in memory a while after an ingest ceased to
// read partitions: of one that has left the configuration for good, nobody may be asked again.
func (q *Queue) spillUnwatchedLocked() {
	if !q.unwatched.IsZero() && q.cfg.Now().Sub(q.unwatched) >= unreadGrace {
		q.unwatched = time.Time{}
		q.spillOldLocked()
	}
}

// Unread yields the partitions that no ingest has read for a while and that lack something, by
// topic, cluster and number, of a queue with Config.KeepsOld; nothing of others.
func (q *Queue) Unread() iter.Seq[Unread] {
	if !q.cfg.KeepsOld {
		return func(func(Unread) bool) {}
	}
	return gather(q, Partition{}, func(p *partition) (Unread, int, bool) {
		if !q.leftLocked(p) {
			return Unread{}, 0, false
		}
		offsets, _ := q.lackedLocked(p)
		return Unread{p.id, p.unread.since, offsets}, len(p.progress), offsets > 0
	})
}

// few bounds the lines of the log that say the same of many partitions. It is backoff.Few by the
// queue's clock: this package stands on the standard library alone.
type few struct {
	since time.Time
	said  int
}

// tell calls say a few times a minute, and then once with more.
func (f *few) tell(now time.Time, say func(more bool)) {
	const most = 8
	if now.Sub(f.since) > time.Minute {
		*f = few{since: now}
	}
	if f.said++; f.said <= most+1 {
		say(f.said > most)
	}
}
