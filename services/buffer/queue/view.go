package queue

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
)

// Stats is the queue's fill.
type Stats struct {
	MemoryRecords, MemoryBytes      int64
	PendingBatches, PendingRecords  int64
	AppendedRecords, SpilledRecords int64 // since Open
	Store                           StoreStats
	Limits                          Limits
	Partitions                      int // source partitions that are known, at most MaxPartitions
	Subscriptions                   []string
	PausedSources                   []string // of any cluster
}

// Stats tells the queue's fill.
func (q *Queue) Stats() Stats {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := Stats{MemoryRecords: q.memoryRecords, MemoryBytes: q.memoryBytes, PendingBatches: q.pendingBatches, PendingRecords: q.pendingRecords,
		AppendedRecords: q.appendedRecords, SpilledRecords: q.spilledRecords, Store: q.storeStats, Limits: q.limitsLocked(), Partitions: len(q.partitions) + len(q.empty)}
	for _, sub := range q.subs {
		s.Subscriptions = append(s.Subscriptions, sub.Name)
	}
	slices.Sort(s.Subscriptions)
	for _, one := range q.pausedLocked() {
		if one.Source != "" {
			s.PausedSources = append(s.PausedSources, one.Source)
		}
	}
	s.PausedSources = slices.Compact(s.PausedSources)
	return s
}

// PartitionView is a source partition as the queue knows it.
type PartitionView struct {
	Partition              Partition
	Appended, Safe, Resume int64
	Held                   int64 // where the oldest batch that is held begins; Appended when there is none
	Superseded             bool  // Kafka has another incarnation by now
}

// Partitions yields the source partitions behind after by topic, cluster and number; those of the
// zero Partition are all.
func (q *Queue) Partitions(after Partition) iter.Seq[PartitionView] {
	return gather(q, after, func(p *partition) (PartitionView, int, bool) {
		return PartitionView{Partition: p.id, Appended: p.appended, Safe: p.safe, Resume: p.appended, Held: p.heldFrom(0, p.appended), Superseded: q.supersededLocked(p)}, 1, true
	})
}

// gather yields what view makes of the partitions behind after, in their order. view is called
// with the lock held, tells how many items it looked at, and false for what is left out. The lock
// is let go of in between.
func gather[V any](q *Queue, after Partition, view func(*partition) (v V, items int, ok bool)) iter.Seq[V] {
	return func(yield func(V) bool) {
		var some []V
		for more := true; more; {
			some = some[:0]
			more = q.hold(func() bool {
				i, found := slices.BinarySearchFunc(q.sorted, after, func(p *partition, id Partition) int { return p.id.compare(id) })
				if found {
					i++
				}
				left := q.holdItems
				for ; i < len(q.sorted) && left > 0; i++ {
					after = q.sorted[i].id
					v, items, ok := view(q.sorted[i])
					if left -= 1 + items; ok {
						some = append(some, v)
					}
				}
				return i < len(q.sorted)
			})
			for _, v := range some {
				if !yield(v) {
					return
				}
			}
		}
	}
}

// SubscriptionView is a subscription's state.
type SubscriptionView struct {
	SubscriptionConfig
	Paused, Configured           bool
	PendingRecords, PendingBytes int64 // of what is held
	Deferred                     int64 // offsets that are pending and not held
	Leased, Sessions             int
	Parked                       int         // batches that were given back and are not leased again before a time
	Replay                       *ReplayView // the last one; nil: none was begun since the subscription is there
	Redriving                    int64       // offsets that are redriven, and not settled again yet
	PausedDeliveries             []string    // that PauseDelivery has paused
	DeadListed                   int64       // dead letters that are listed as undelivered
	Trouble                      Trouble     // of the live session that has failed for longest
	// Since Open.
	Delivered, DeadLettered, Dropped, Lost, Redelivered int64
}

// Subscriptions lists the subscriptions by name.
func (q *Queue) Subscriptions() []SubscriptionView {
	q.mu.Lock()
	views := make([]SubscriptionView, 0, len(q.subs))
	for _, sub := range q.subs {
		views = append(views, q.viewLocked(sub))
	}
	q.mu.Unlock()
	slices.SortFunc(views, func(a, b SubscriptionView) int { return strings.Compare(a.Name, b.Name) })
	return views
}

func (q *Queue) viewLocked(s *subscription) SubscriptionView {
	v := SubscriptionView{SubscriptionConfig: s.SubscriptionConfig, Paused: s.paused, Configured: s.configured,
		PendingRecords: s.pendingRecords, PendingBytes: s.pendingBytes, Deferred: s.deferred, Leased: s.leased, Sessions: len(s.sessions), Parked: s.parked, Replay: s.replayView(), Redriving: s.redriving, DeadListed: s.deadListed,
		Delivered: s.delivered, DeadLettered: s.deadLettered, Dropped: s.dropped, Lost: s.lost, Redelivered: s.redelivered}
	for _, session := range s.sessions {
		if t := session.trouble; t.Error != "" && (v.Trouble.Error == "" || t.Since.Before(v.Trouble.Since)) {
			v.Trouble = t
		}
	}
	if len(q.paused) > 0 {
		for _, one := range q.pausedLocked() {
			if one.Sub == s.id && one.Delivery != "" {
				v.PausedDeliveries = append(v.PausedDeliveries, one.Delivery)
			}
		}
	}
	return v
}

// Subscription shows one subscription.
func (q *Queue) Subscription(name string) (SubscriptionView, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if sub := q.subscription(name); sub != nil {
		return q.viewLocked(sub), nil
	}
	return SubscriptionView{}, q.noSubscriptionLocked(name)
}

// noSubscriptionLocked says which subscriptions there are instead.
func (q *Queue) noSubscriptionLocked(name string) error {
	names := make([]string, 0, len(q.subs))
	for _, sub := range q.subs {
		names = append(names, sub.Name)
	}
	slices.Sort(names)
	return fmt.Errorf("%w: %.200q; the queue has: %s", ErrNoSubscription, name, strings.Join(names, ", "))
}

// OldestPending is when the oldest pending batch of a subscription was appended; zero when
// nothing is pending.
func (q *Queue) OldestPending(subscription string) time.Time {
	oldest := int64(math.MaxInt64)
	for i, more := 0, true; more; {
		more = q.hold(func() bool {
			sub := q.subscription(subscription)
			if sub == nil || sub.pendingRecords == 0 {
				return false
			}
			for left := q.holdItems; i < len(sub.progress) && left > 0; i++ {
				left--
				if pc := sub.progress[i].oldestPending(); pc != nil {
					oldest = min(oldest, pc.appended)
				}
			}
			return i < len(sub.progress)
		})
	}
	if oldest == math.MaxInt64 {
		return time.Time{}
	}
	return q.opened.Add(time.Duration(oldest))
}

// ProgressView is a subscription's progress in one partition.
type ProgressView struct {
	Partition      Partition
	Start, Settled int64 // below Settled, everything is settled
	Appended       int64
	Unwanted       bool // what is pending is kept, and delivered when the subscription wants the topic again
	Outcomes       map[Outcome]int64
	Above          []Range // settled above Settled, at most maxViewRanges
}

// maxViewRanges bounds the ranges of one ProgressView.
const maxViewRanges = 1000

// Progress yields a subscription's progress in the partitions behind after.
func (q *Queue) Progress(subscription string, after Partition) iter.Seq[ProgressView] {
	q.mu.Lock()
	sub := q.subscription(subscription)
	q.mu.Unlock()
	return gather(q, after, func(p *partition) (v ProgressView, items int, ok bool) {
		g := p.progress[sub]
		if g == nil {
			return v, 0, false
		}
		v = ProgressView{Partition: p.id, Start: g.settled.Start, Settled: g.settled.Floor, Appended: g.end(), Unwanted: g.unwanted, Outcomes: g.settled.Totals()}
		for r := range g.settled.above.All() {
			if len(v.Above) == maxViewRanges {
				break
			}
			v.Above = append(v.Above, r)
		}
		return v, g.settled.Scattered(), true
	})
}

// SessionView is a live session, or a dead one whose sink state waits for an heir.
type SessionView struct {
	ID                     uint64
	Subscription, Consumer string
	Live, Ordered          bool
	Leased                 int
	Credit                 int64
	StateEntries           int
	OpenedAt               time.Time // zero for a session of before Open
}

// Sessions lists the sessions by id.
func (q *Queue) Sessions() []SessionView {
	q.mu.Lock()
	defer q.mu.Unlock()
	var views []SessionView
	for _, id := range slices.Sorted(maps.Keys(q.sessions)) {
		s := q.sessions[id]
		views = append(views, SessionView{ID: id, Subscription: s.sub.Name, Consumer: s.Consumer, Live: s.live, Ordered: s.ordered,
			Leased: len(s.leases), Credit: s.credit + s.withheld, StateEntries: len(s.state), OpenedAt: s.openedAt})
	}
	return views
}

// Peek returns up to n pending batches of a subscription, the oldest of each partition first. Load
// fetches their payloads.
func (q *Queue) Peek(subscription string, n int) ([]*Lease, error) {
	return q.peek(subscription, n, 0, func(Partition) bool { return true })
}

// PeekFrom is Peek of one partition, without batches that end before an offset. An empty cluster
// stands for any.
func (q *Queue) PeekFrom(subscription string, p Partition, offset int64, n int) ([]*Lease, error) {
	return q.peek(subscription, n, offset, func(id Partition) bool {
		if p.Cluster == "" {
			id.Cluster = ""
		}
		return id == p
	})
}

func (q *Queue) peek(subscription string, n int, offset int64, wanted func(Partition) bool) ([]*Lease, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	sub := q.subscription(subscription)
	if sub == nil {
		return nil, q.noSubscriptionLocked(subscription)
	}
	var batches []*Lease
	for _, g := range sub.progress {
		if len(batches) == n {
			break
		}
		if !wanted(g.part.id) {
			continue
		}
		for pc := g.needed(g.part.pieces.over(max(g.settled.lowest(), offset))); pc != nil && len(batches) < n; pc = g.needed(g.part.pieces.seek(pc.own.Next)) {
			batches = append(batches, q.peekLocked(g, pc))
		}
	}
	return batches, nil
}

func (q *Queue) peekLocked(g *progress, pc *piece) *Lease {
	return &Lease{Batch: pc.out(), Settled: g.skip(pc), piece: pc}
}

// Pause stops or resumes leasing of a subscription, and returns when that is durable. What is
// leased may still be acked.
func (q *Queue) Pause(ctx context.Context, subscription string, paused bool) error {
	return q.manage(ctx, func() (*change, error) {
		sub := q.subscription(subscription)
		if sub == nil {
			return nil, fmt.Errorf("%w: %q", ErrNoSubscription, subscription)
		}
		return &change{Subscription: sub.id, Pause: &paused}, nil
	})
}
