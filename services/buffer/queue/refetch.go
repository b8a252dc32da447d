package queue

import (
	"time"
)

const (
	// refetchTimeout is after what silence another ingest is asked.
	refetchTimeout = 30 * time.Second
	// refetchPause is the time before the same offsets are asked for again when an answer did not help.
	refetchPause = time.Second
	// refetchOffsets bounds one request: a refetch takes window and stream from what the group brings.
	refetchOffsets = 10_000
)

// Refetch asks an ingest for offsets that subscriptions need and the queue does not hold.
type Refetch struct {
	ID        uint64
	Partition Partition
	Range     Range
	Prints    []Fingerprint // of records of the partition: what has others is not to be appended
}

// refetch is a Refetch that is out, or, without a watcher, the pause before the next. There is one at a
// time in a partition.
type refetch struct {
	Refetch
	watcher  *Watcher
	deadline time.Time
}

// refetchLocked asks for what is deferred, where there is room for it, and holds for a subscription again
// what is held for others.
func (q *Queue) refetchLocked() {
	now := q.cfg.Now()
	for _, p := range q.partitions {
		if q.supersededLocked(p) {
			q.giveUpLocked(p)
			continue
		}
		if r := p.refetch; r != nil {
			if now.Before(r.deadline) {
				continue
			}
			if r.watcher != nil {
				q.cfg.Log.Warn("an ingest does not answer a refetch; asking again", "topic", p.id.Topic, "partition", p.id.Number,
					"first_offset", r.Range.First, "next_offset", r.Range.Next, "client", r.watcher.client)
			}
			q.endRefetchLocked(p)
		}
		if wanted, ok := q.deferredLocked(p); ok {
			q.askLocked(p, wanted, now)
		}
	}
}

// deferredLocked is the lowest deferred range of a partition that is to be held now.
func (q *Queue) deferredLocked(p *partition) (wanted Range, ok bool) {
	for _, g := range p.progress {
		for len(g.deferred) > 0 && q.takesBackLocked(g) {
			first := g.deferred[0]
			if pc := p.pieceAt(first.First); pc != nil {
				g.undefer(pc.own)
				q.needLocked(g, pc)
				q.dispatchLocked(g.sub)
				continue
			}
			if !ok || first.First < wanted.First {
				wanted, ok = g.firstDeferred(), true
			}
			break
		}
	}
	wanted.Next = min(wanted.Next, wanted.First+refetchOffsets)
	return wanted, ok
}

// firstDeferred is the lowest deferred range, joined with those behind it where only settled offsets are between: of
// batches that were settled in parts there are many, and each Refetch takes its time.
func (g *progress) firstDeferred() Range {
	r := g.deferred[0]
	for _, more := range g.deferred[1:] {
		held := g.part.pieceIndex(r.Next)
		if more.First >= r.First+refetchOffsets || held < len(g.part.pieces) && g.part.pieces[held].own.First < more.First {
			break
		}
		r.Next = more.Next
	}
	return r
}

// takesBackLocked says whether there is room for what a subscription has deferred. What lies before all that
// is held for it has to come back in any case: in order, nothing can be delivered before it.
func (q *Queue) takesBackLocked(g *progress) bool {
	if q.supersededLocked(g.part) {
		return true // or it is lost when the others have it
	}
	if g.sub.paused {
		return false
	}
	if g.sub.OnFull != Defer || g.sub.pendingBytes < q.limit(g.sub)/2 {
		return true
	}
	held := g.oldestPending()
	return held != nil && g.deferred[0].First < held.own.First
}

// askLocked sends a Refetch to one of the cluster's ingests, each in its turn.
func (q *Queue) askLocked(p *partition, wanted Range, now time.Time) {
	if !below(q.memoryBytes, q.cfg.MemoryBytes, lowWatermarkPercent) || !below(q.memoryRecords, q.cfg.MemoryRecords, lowWatermarkPercent) ||
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
	if next < r.Range.Next {
		return
	}
	q.endRefetchLocked(p)
	if q.supersededLocked(p) {
		return
	}
	if wanted, ok := q.deferredLocked(p); ok && wanted.First == r.Range.First {
		p.refetch = &refetch{deadline: now.Add(refetchPause)}
		return
	} else if ok {
		q.askLocked(p, wanted, now)
	}
}
