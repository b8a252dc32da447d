package queue

import (
	"context"
	"fmt"
	"maps"
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
	Subscriptions                   []string
}

// Stats tells the queue's fill.
func (q *Queue) Stats() Stats {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := Stats{MemoryRecords: q.memoryRecords, MemoryBytes: q.memoryBytes, PendingBatches: q.pendingBatches, PendingRecords: q.pendingRecords,
		AppendedRecords: q.appendedRecords, SpilledRecords: q.spilledRecords, Store: q.storeStats}
	for _, sub := range q.subs {
		s.Subscriptions = append(s.Subscriptions, sub.Name)
	}
	slices.Sort(s.Subscriptions)
	return s
}

// PartitionView is a source partition as the queue knows it.
type PartitionView struct {
	Partition              Partition
	Appended, Safe, Resume int64
	Held                   int64 // where the oldest batch that is held begins; Appended when there is none
	Superseded             bool  // Kafka has another incarnation by now
}

// Partitions lists the source partitions by topic, cluster and number.
func (q *Queue) Partitions() []PartitionView {
	q.mu.Lock()
	defer q.mu.Unlock()
	var views []PartitionView
	for _, p := range q.partitionsLocked() {
		v := PartitionView{Partition: p.id, Appended: p.appended, Safe: p.safe, Resume: p.appended, Held: p.appended, Superseded: q.supersededLocked(p)}
		if len(p.pieces) > 0 {
			v.Held = p.pieces[0].own.First
		}
		views = append(views, v)
	}
	return views
}

// SubscriptionView is a subscription's state.
type SubscriptionView struct {
	SubscriptionConfig
	Paused, Configured           bool
	PendingRecords, PendingBytes int64 // of what is held
	Deferred                     int64 // offsets that are pending and not held
	Leased, Sessions             int
	// Since Open.
	Delivered, DeadLettered, Dropped, Lost, Redelivered int64
	// OldestPending is when the oldest pending batch was appended; zero when nothing is pending.
	OldestPending time.Time
	Partitions    []ProgressView
}

// ProgressView is a subscription's progress in one partition.
type ProgressView struct {
	Partition Partition
	Settled   Settled
	Appended  int64
}

// Subscriptions lists the subscriptions by name.
func (q *Queue) Subscriptions() []SubscriptionView {
	q.mu.Lock()
	defer q.mu.Unlock()
	views := make([]SubscriptionView, 0, len(q.subs))
	for _, sub := range q.subs {
		v := SubscriptionView{SubscriptionConfig: sub.SubscriptionConfig, Paused: sub.paused, Configured: sub.configured,
			PendingRecords: sub.pendingRecords, PendingBytes: sub.pendingBytes, Deferred: sub.deferredOffsets(), Leased: sub.leased, Sessions: len(sub.sessions),
			Delivered: sub.delivered, DeadLettered: sub.deadLettered, Dropped: sub.dropped, Lost: sub.lost, Redelivered: sub.redelivered}
		for _, p := range q.partitionsLocked() {
			g := p.progress[sub]
			if g == nil {
				continue
			}
			settled := g.settled
			settled.Above = slices.Clone(settled.Above)
			v.Partitions = append(v.Partitions, ProgressView{Partition: p.id, Settled: settled, Appended: p.appended})
			if pc := g.oldestPending(); pc != nil {
				if at := q.opened.Add(time.Duration(pc.appended)); v.OldestPending.IsZero() || at.Before(v.OldestPending) {
					v.OldestPending = at
				}
			}
		}
		views = append(views, v)
	}
	slices.SortFunc(views, func(a, b SubscriptionView) int { return strings.Compare(a.Name, b.Name) })
	return views
}

// oldestPending is the first piece the subscription has not settled.
func (g *progress) oldestPending() *piece {
	for i := g.part.pieceIndex(g.settled.Floor); i < len(g.part.pieces); i++ {
		if pc := g.part.pieces[i]; g.needs(pc.own) {
			return pc
		}
	}
	return nil
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
			Leased: len(s.leases), Credit: s.credit, StateEntries: len(s.state), OpenedAt: s.openedAt})
	}
	return views
}

// Peek returns up to n pending batches of a subscription, the oldest of each partition first. Load
// fetches their payloads.
func (q *Queue) Peek(subscription string, n int) ([]*Lease, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	sub := q.subscription(subscription)
	if sub == nil {
		return nil, fmt.Errorf("%w: %q", ErrNoSubscription, subscription)
	}
	var batches []*Lease
	for _, g := range sub.progress {
		for i := g.part.pieceIndex(g.settled.Floor); i < len(g.part.pieces) && len(batches) < n; i++ {
			if pc := g.part.pieces[i]; g.needs(pc.own) {
				batches = append(batches, q.peekLocked(g, pc))
			}
		}
	}
	return batches, nil
}

func (q *Queue) peekLocked(g *progress, pc *piece) *Lease {
	return &Lease{Batch: pc.out(), Settled: g.skip(pc), ref: pc.ref}
}

// skip is what of a batch is not to be delivered: what is settled, and what other batches answer for.
func (g *progress) skip(pc *piece) []Range {
	var skip []Range
	if pc.own.First > pc.batch.First {
		skip = append(skip, Range{pc.batch.First, pc.own.First})
	}
	skip = append(skip, g.settled.Within(pc.own)...)
	if pc.own.Next < pc.batch.Next {
		skip = append(skip, Range{pc.own.Next, pc.batch.Next})
	}
	return skip
}

// Pause stops or resumes leasing of a subscription, and returns when that is durable. What is leased
// may still be acked.
func (q *Queue) Pause(ctx context.Context, subscription string, paused bool) error {
	return q.manage(ctx, func() (*change, error) {
		sub := q.subscription(subscription)
		if sub == nil {
			return nil, fmt.Errorf("%w: %q", ErrNoSubscription, subscription)
		}
		return &change{Subscription: sub.id, Pause: &paused}, nil
	})
}
