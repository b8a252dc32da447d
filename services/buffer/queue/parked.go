package queue

import (
	"iter"
	"slices"
	"time"
)

const (
	// longPark is how long a batch must be parked for the log to say so, and parkedInterval how
	// often it does.
	longPark, parkedInterval = 10 * time.Second, time.Minute
	// maxParkedReason bounds what is kept of the reason of each batch, in bytes.
	maxParkedReason = 200
)

// ParkedView is a batch that was given back and is not leased again before a time.
type ParkedView struct {
	Partition Partition
	Range     Range
	Records   int32
	Attempts  int
	Until     time.Time
	Reason    string
	// HoldsPartition says that, with ordering, what is behind it in the partition waits for it.
	HoldsPartition bool
}

// Parked yields the parked batches of a subscription by partition and offset, from behind the one
// that begins at after; the zero Start is before the first. The lock is let go of in between.
func (q *Queue) Parked(subscription string, after Start) (iter.Seq[ParkedView], error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	sub := q.subscription(subscription)
	if sub == nil {
		return nil, q.noSubscriptionLocked(subscription)
	}
	return func(yield func(ParkedView) bool) {
		from := after
		var some []ParkedView
		for more := true; more; {
			some = some[:0]
			more = q.hold(func() (more bool) {
				some, more = q.someParkedLocked(some, sub, &from)
				return more
			})
			for _, v := range some {
				if !yield(v) {
					return
				}
			}
		}
	}, nil
}

// someParkedLocked appends some of what Parked yields, moves after to the last, and says whether
// there may be more.
func (q *Queue) someParkedLocked(views []ParkedView, sub *subscription, after *Start) ([]ParkedView, bool) {
	i, _ := slices.BinarySearchFunc(q.sorted, after.Partition, func(p *partition, id Partition) int { return p.id.compare(id) })
	for left := q.holdItems; i < len(q.sorted); i++ {
		p := q.sorted[i]
		if p.id != after.Partition {
			*after = Start{p.id, -1}
		}
		if left--; left < 0 {
			return views, true
		}
		g := p.progress[sub]
		if g == nil || sub.parked == 0 {
			continue
		}
		for r := range g.back.from(g.back.seek(after.Offset + 1)) {
			if left--; left < 0 {
				return views, true
			}
			after.Offset = r.piece.own.First
			if r.parked() {
				views = append(views, ParkedView{Partition: p.id, Range: r.piece.own, Records: r.piece.records, Attempts: r.attempt,
					Until: q.opened.Add(time.Duration(r.due)), Reason: r.why, HoldsPartition: sub.ordered()})
			}
		}
	}
	return views, false
}

// parkedLocked notes why a lease was given back, and has the log say now and then that batches
// wait for long.
func (q *Queue) parkedLocked(s *Session, l *lease, delay time.Duration, why string) {
	g, own := l.progress, l.piece.own
	r, ok := g.back.at(g.back.seek(own.First))
	if !ok || r.piece != l.piece || !r.parked() {
		return
	}
	if len(why) > maxParkedReason {
		why = string([]rune(why[:maxParkedReason])) // a copy: the whole one is not kept
	}
	r.why = why
	now := q.clock()
	if delay < longPark || now < g.sub.parkedQuiet {
		return
	}
	g.sub.parkedQuiet = now + int64(parkedInterval)
	q.cfg.Log.Warn("a delivery gave a batch back, not to be leased again for long; ListParkedBatches lists all of them", "subscription", g.sub.Name,
		"consumer", s.Consumer, "topic", g.part.id.Topic, "partition", g.part.id.Number, "first_offset", own.First, "next_offset", own.Next,
		"delay", delay, "reason", why, "holds_partition", g.sub.ordered(), "parked_batches", g.sub.parked)
}
