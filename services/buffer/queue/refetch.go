package queue

import (
	"time"
)

const (
	// refetchTimeout is after what silence another ingest is asked.
	refetchTimeout = 30 * time.Second
	// refetchPause is the time before the same offsets are asked for again when an answer did not
	// help.
	refetchPause = time.Second
	// refetchOffsets bounds one request: a refetch takes window and stream from what the group
	// brings.
	refetchOffsets = 10_000
)

// Refetch asks an ingest for offsets that subscriptions need and the queue does not hold.
type Refetch struct {
	ID        uint64
	Partition Partition
	Range     Range
	Prints    []Fingerprint // of records of the partition: what has others is not to be appended
}

// refetch is a Refetch that is out, or, without a watcher, the pause before the next. There is
// one at a time in a partition.
type refetch struct {
	Refetch
	watcher  *Watcher
	deadline time.Time
}

// refetchLocked asks for what is deferred, where there is room for it, and holds for a
// subscription again what is held for others. It goes through the partitions that lack something,
// as many as can be looked at in one hold of the lock, and says whether there are more.
func (q *Queue) refetchLocked() (more bool) {
	now := q.cfg.Now()
	left := q.holdItems
	for range q.lacking.n {
		if left <= 0 {
			return true
		}
		p, _ := q.lacking.first()
		q.lacking.push(&p.lacks)
		left--
		q.refetchPartLocked(p, now, &left)
	}
	return false
}

func (q *Queue) refetchPartLocked(p *partition, now time.Time, left *int) {
	q.watchUnreadLocked(p, now)
	if q.supersededLocked(p) {
		q.giveUpLocked(p, left)
	} else if r := p.refetch; r == nil || !now.Before(r.deadline) {
		if r != nil && r.watcher != nil {
			q.cfg.Log.Warn("an ingest does not answer a refetch; asking again", "topic", p.id.Topic, "partition", p.id.Number,
				"first_offset", r.Range.First, "next_offset", r.Range.Next, "client", r.watcher.client)
		}
		if r != nil {
			q.endRefetchLocked(p)
		}
		if wanted, ok := q.deferredLocked(p, left); ok {
			q.askLocked(p, wanted, now)
		}
	}
	if p.refetch == nil && !p.lacksAny() {
		p.unread = unread{}
		p.lacks.leave()
	}
}

// lacksAny says whether a subscription has deferred something of the partition.
func (p *partition) lacksAny() bool {
	for _, g := range p.progress {
		if !g.deferred.Empty() {
			return true
		}
	}
	return false
}

// askLocked sends a Refetch to one of the cluster's ingests, each in its turn.
func (q *Queue) askLocked(p *partition, wanted Range, now time.Time) {
	if !below(q.memoryBytes, q.windowLocked(), lowWatermarkPercent) || !below(q.memoryRecords, q.cfg.MemoryRecords, lowWatermarkPercent) ||
		q.storeStats.DiskBytes >= q.cfg.DiskBytes || q.pendingRecords >= q.cfg.DiskRecords || !q.noSpaceUntil.IsZero() {
		return
	}
	to := q.ingestLocked(p.id.Cluster)
	if to == nil {
		return
	}
	q.nextRefetch++
	to.asked = q.nextRefetch
	p.refetch = &refetch{Refetch: Refetch{ID: q.nextRefetch, Partition: p.id, Range: wanted, Prints: p.knownRecords()}, watcher: to, deadline: now.Add(refetchTimeout)}
	q.refetches[p.refetch.ID] = p.refetch
	for _, g := range p.progress {
		q.chargeReplayLocked(g, wanted)
	}
	to.refetches = append(to.refetches, p.refetch.Refetch)
	to.signalLocked()
}

func (q *Queue) endRefetchLocked(p *partition) {
	delete(q.refetches, p.refetch.ID)
	p.refetch = nil
}

// refetchedLocked notes that a Refetch, if there is one of that id, is answered up to next.
func (q *Queue) refetchedLocked(p *partition, id uint64, next int64) {
	r := q.refetches[id]
	if r == nil || p == nil || p.refetch != r {
		return
	}
	now := q.cfg.Now()
	r.deadline = now.Add(refetchTimeout)
	if q.leftLocked(p) {
		q.spillOldLocked()
	}
	if next < r.Range.Next {
		return
	}
	q.endRefetchLocked(p)
	if q.supersededLocked(p) {
		return
	}
	left := q.holdItems
	if wanted, ok := q.deferredLocked(p, &left); ok && wanted.First == r.Range.First {
		p.refetch = &refetch{deadline: now.Add(refetchPause)}
		return
	} else if ok {
		q.askLocked(p, wanted, now)
	}
}
