package queue

import (
	"context"
	"fmt"
	"time"
)

// Replay is a subscription's delivery, once more, of what it has settled in some ranges. It goes
// on beside what is new, over restarts, until all of it is settled again or it is cancelled.
type Replay struct {
	AtMs   int64 `json:"at"`              // when it was begun, like all times in ms since the Unix epoch
	FromMs int64 `json:"from,omitempty"`  // the times that the ranges stand for; 0: they stand for none
	ToMs   int64 `json:"until,omitempty"` // the first one that is not meant
	// PerSecond bounds the offsets a second; 0 does not.
	PerSecond float64 `json:"rate,omitempty"`
	Offsets   int64   `json:"offsets,omitempty"` // in all; Replay fills it in
	EndedMs   int64   `json:"ended,omitempty"`   // when it was cancelled; 0: it was not
}

// ReplayView is a Replay with what is left of it: 0 when it is done, or cancelled.
type ReplayView struct {
	Replay
	Left int64
}

// replayRun is a subscription's last Replay.
type replayRun struct {
	Replay
	told    bool // that it is done
	buckets map[*progress]*bucket
}

// bucket has the offsets that a partition may be given now for a replay.
type bucket struct {
	tokens float64
	at     int64 // when they were counted, on the queue's clock
}

func replayOf(r *Replay) *replayRun {
	if r == nil {
		return nil
	}
	return &replayRun{Replay: *r, buckets: make(map[*progress]*bucket)}
}

func (r *replayRun) state() *Replay {
	if r == nil {
		return nil
	}
	state := r.Replay
	return &state
}

func (s *subscription) replayView() *ReplayView {
	if s.replay == nil {
		return nil
	}
	return &ReplayView{s.replay.Replay, s.replaying}
}

// Window is a range of a source partition.
type Window struct {
	Partition Partition
	Range     Range
}

// ReplayPart is what a replay of a window would do.
type ReplayPart struct {
	Window
	Again   int64 // offsets that are settled, and would be delivered once more
	Pending int64 // offsets that are delivered anyway
	Held    int64 // offsets that the queue has; the others are read from Kafka
}

// Replay begins a replay of what is settled in the windows, and returns when that is durable.
// Leases of these partitions are revoked. A subscription has one replay at a time.
func (q *Queue) Replay(ctx context.Context, name string, windows []Window, r Replay) error {
	return q.manage(ctx, func() (*change, error) {
		sub := q.subscription(name)
		if sub == nil {
			return nil, q.noSubscriptionLocked(name)
		}
		if sub.replaying > 0 {
			return nil, fmt.Errorf("%w: %d offsets of it are left; cancel it, or wait", ErrReplaying, sub.replaying)
		}
		r.AtMs, r.Offsets, r.EndedMs = q.cfg.Now().UnixMilli(), 0, 0
		c := &change{Subscription: sub.id, Replay: &r, Epoch: r.AtMs}
		var moved []*progress
		find := q.finderLocked()
		for _, w := range windows {
			g, err := q.replayableLocked(find, sub, &w)
			if err != nil {
				return nil, err
			}
			if g == nil || len(g.settled.within(w.Range)) == 0 {
				continue
			}
			c.Repeat = append(c.Repeat, repeatChange{g.part.id, []Interval{{w.Range, 0}}})
			moved = append(moved, g)
		}
		if len(moved) == 0 {
			return nil, fmt.Errorf("%w replay of %s: nothing is settled there that could be delivered again", ErrInvalid, name)
		}
		q.revokeManyLocked(moved)
		c.moves(sub)
		return c, nil
	})
}

// drainPoll is how often Drain looks.
const drainPoll = 10 * time.Millisecond

// Drain has nothing more leased of a subscription until resume is called, and returns when nothing
// is leased, or ctx has ended. A Replay or Redrive that begins then takes no lease back, so that a
// delivery loses nothing that it has produced and not acked yet.
func (q *Queue) Drain(ctx context.Context, name string) (resume func(), err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	sub := q.subscription(name)
	if sub == nil {
		return nil, q.noSubscriptionLocked(name)
	}
	sub.moving++
	for sub.leased > 0 && q.closed == nil && ctx.Err() == nil {
		q.mu.Unlock()
		select {
		case <-time.After(drainPoll):
		case <-ctx.Done():
		}
		q.mu.Lock()
	}
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		sub.moving--
		if q.closed == nil {
			q.dispatchLocked(sub)
			q.refetchLocked()
		}
	}, nil
}

// replayableLocked finds the ledger of a window, and cuts the window to what was appended. Nil is
// one that nothing can be replayed in: nobody wants the topic, or Kafka has another one by now.
func (q *Queue) replayableLocked(find func(Partition) (Partition, error), sub *subscription, w *Window) (*progress, error) {
	id, err := find(w.Partition)
	if err != nil {
		return nil, err
	}
	if w.Range.First < 0 || w.Range.First > maxOffset {
		return nil, fmt.Errorf("%w offset %d of %s/%d", ErrInvalid, w.Range.First, id.Topic, id.Number)
	}
	p := q.partitions[id]
	g := p.progress[sub]
	if g == nil || g.unwanted || q.supersededLocked(p) {
		return nil, nil
	}
	w.Partition, w.Range.Next = id, min(w.Range.Next, g.end())
	if w.Range.Len() <= 0 {
		return nil, nil
	}
	return g, nil
}

// PlanReplay tells what a Replay would do, and does nothing.
func (q *Queue) PlanReplay(name string, windows []Window) (parts []ReplayPart, err error) {
	for len(windows) > 0 && err == nil {
		q.hold(func() bool {
			sub := q.subscription(name)
			if sub == nil {
				err = q.noSubscriptionLocked(name)
				return false
			}
			find := q.finderLocked()
			for left := q.holdItems; left > 0 && len(windows) > 0 && err == nil; windows = windows[1:] {
				w := windows[0]
				var g *progress
				if g, err = q.replayableLocked(find, sub, &w); g != nil {
					part, items := g.plan(w)
					parts = append(parts, part)
					left -= items
				}
				left--
			}
			return false
		})
	}
	return parts, err
}

// plan is PlanReplay for a partition. It returns how many items it looked at.
func (g *progress) plan(w Window) (part ReplayPart, items int) {
	part = ReplayPart{Window: w, Pending: w.Range.Len()}
	for _, r := range g.settled.Within(w.Range) {
		part.Again += r.Len()
		items++
	}
	part.Pending -= part.Again
	for pc := range g.part.pieces.from(g.part.pieces.over(w.Range.First)) {
		if pc.own.First >= w.Range.Next {
			break
		}
		part.Held += min(pc.own.Next, w.Range.Next) - max(pc.own.First, w.Range.First)
		items++
	}
	return part, items
}

// CancelReplay ends a replay, and returns when that is durable. What is with deliveries is
// finished.
func (q *Queue) CancelReplay(ctx context.Context, name string) error {
	return q.manage(ctx, func() (*change, error) {
		sub := q.subscription(name)
		switch {
		case sub == nil:
			return nil, q.noSubscriptionLocked(name)
		case sub.replay == nil || sub.replaying == 0:
			return nil, fmt.Errorf("%w: %q", ErrNoReplay, name)
		}
		ended := sub.replay.Replay
		ended.EndedMs = q.cfg.Now().UnixMilli()
		c := &change{Subscription: sub.id, Replay: &ended}
		for _, g := range sub.progress {
			c.Settle = append(c.Settle, g.cancelled()...)
		}
		c.moves(sub)
		return c, nil
	})
}

// cancelled settles what a replay has left in a partition and no session has leased.
func (g *progress) cancelled() (changes []settleChange) {
	if g.settled.Again == nil {
		return nil
	}
	var leased Set
	for l := range g.leases.all() {
		leased.Add(l.piece.own)
	}
	for v := range g.settled.Again.list.all() {
		if v.Outcome != 0 {
			continue
		}
		for _, r := range leased.Without(v.Range) {
			s := unrepeat(Interval{r, 0})
			s.Partition, s.First = g.part.id, g.part.first
			changes = append(changes, s)
		}
	}
	return changes
}

// steerLocked applies what operators have delivered again, or listed no more.
func (q *Queue) steerLocked(c *change) {
	if c.Replay == nil && len(c.Repeat) == 0 && len(c.Forgotten) == 0 {
		return
	}
	sub := q.subscriptionByID(c.Subscription)
	if sub == nil {
		return
	}
	if c.Replay != nil {
		sub.replay = replayOf(c.Replay)
	}
	for i := range c.Repeat {
		r := &c.Repeat[i]
		p := q.partitions[r.Partition]
		if p == nil || p.progress[sub] == nil {
			continue
		}
		if n := q.repeatLocked(p.progress[sub], r.Ranges, c.Epoch); c.Replay != nil {
			sub.replay.Offsets += n
		}
		q.holdCopiesLocked(q.takeCopiesLocked(sub, r.Partition, r.Ranges))
		q.letOthersIn(1 + len(r.Ranges))
	}
	for i := range c.Forgotten {
		f := &c.Forgotten[i]
		for _, pc := range q.takeCopiesLocked(sub, f.Partition, f.Ranges) {
			q.settledRefs = append(q.settledRefs, pc.ref)
		}
	}
	sub.forget(c.Forgotten)
}

// replayDoneLocked says once that a replay is done.
func (q *Queue) replayDoneLocked(sub *subscription) {
	r := sub.replay
	if r == nil || r.told || sub.replaying > 0 || r.Offsets == 0 || q.store == nil {
		return
	}
	r.told = true
	q.cfg.Log.Info("the replay is over", "subscription", sub.Name, "offsets", r.Offsets, "cancelled", r.EndedMs > 0,
		"took", q.cfg.Now().Sub(time.UnixMilli(r.AtMs)).Round(time.Second))
}

// replaysNext says whether what a partition lacks first is for a replay.
func (g *progress) replaysNext() bool {
	if g.sub.replay == nil || g.settled.Again == nil || g.deferred.Empty() {
		return false
	}
	first := g.deferred.First().First
	v, ok := g.settled.Again.list.at(g.settled.Again.list.over(first))
	return ok && v.First <= first && v.Outcome == 0
}

// replaysNowLocked says whether what a partition lacks first may be held now: what is for a replay
// only as fast as that may go, and never so much that the subscription would be full of it. With
// ordering what is new waits for it, so that a backlog must not hold it back.
func (q *Queue) replaysNowLocked(g *progress) bool {
	if !g.replaysNext() {
		return true
	}
	if limit := q.limit(g.sub); limit > 0 && g.sub.pendingBytes >= limit/2 && !g.sub.ordered() {
		return false
	}
	b, least := q.bucketLocked(g)
	return b == nil || b.tokens >= least
}

// bucketLocked returns what a partition may be given of a replay now, nil when there is no bound;
// and the least that is worth asking for, about what comes in a second. Each partition has the
// part of the rate that it has of what is left, so that they go on together, and end together.
func (q *Queue) bucketLocked(g *progress) (b *bucket, least float64) {
	r := g.sub.replay
	if r == nil || r.PerSecond <= 0 || g.settled.Again == nil || g.sub.replaying == 0 {
		return nil, 0
	}
	left, _ := g.settled.Again.counts()
	rate := r.PerSecond * float64(left) / float64(g.sub.replaying)
	least = max(1, min(rate, refetchOffsets, float64(left)))
	now := q.clock()
	if b = r.buckets[g]; b == nil {
		b = &bucket{least, now}
		r.buckets[g] = b
	}
	b.tokens = min(b.tokens+rate*time.Duration(now-b.at).Seconds(), 2*least)
	b.at = now
	return b, least
}

// replayRoomLocked returns how many of the offsets that a partition lacks may be asked for now.
func (q *Queue) replayRoomLocked(g *progress) int64 {
	if g.replaysNext() {
		if b, _ := q.bucketLocked(g); b != nil {
			return max(1, int64(b.tokens))
		}
	}
	return maxOffset
}

// chargeReplayLocked counts what of r is for a replay.
func (q *Queue) chargeReplayLocked(g *progress, r Range) {
	if b, _ := q.bucketLocked(g); b != nil {
		for _, part := range g.settled.Again.set.Within(r) {
			b.tokens -= float64(part.Len())
		}
	}
}
