package queue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
)

// Start is where a subscription begins, or is moved to, in a partition.
type Start struct {
	Partition Partition `json:"part"`
	Offset    int64     `json:"at"`
}

// Place is a start in every partition.
type Place uint8

const (
	Nowhere  Place = 0 // leaves a partition where it is
	Earliest Place = 1 // the oldest batch that is held
	Latest   Place = 2 // what is appended from now on
)

// subscriptionName is what the configuration can name, too.
var subscriptionName = regexp.MustCompile(`^[A-Za-z0-9]+([-_][A-Za-z0-9]+)*$`)

// maxNameBytes bounds the name of a subscription.
const maxNameBytes = 100

func validateName(name string) error {
	if len(name) > maxNameBytes || !subscriptionName.MatchString(name) {
		return fmt.Errorf("%w subscription name %.200q: want letters and digits, with single '-' and '_' between them, at most %d", ErrInvalid, name, maxNameBytes)
	}
	return nil
}

func (c *SubscriptionConfig) validate() error {
	switch {
	case len(c.Topics) == 0:
		return fmt.Errorf("%w subscription %s: it wants no topics", ErrInvalid, c.Name)
	case len(c.Topics) > maxGlobs:
		return fmt.Errorf("%w subscription %s: it has %d topic globs, at most %d", ErrInvalid, c.Name, len(c.Topics), maxGlobs)
	case c.OnFull < Block || c.OnFull > Defer:
		return fmt.Errorf("%w subscription %s: on_full %d", ErrInvalid, c.Name, c.OnFull)
	case c.Limit < 0:
		return fmt.Errorf("%w subscription %s: limit of %d bytes", ErrInvalid, c.Name, c.Limit)
	}
	for _, glob := range c.Topics {
		if _, err := path.Match(glob, ""); err != nil || glob == "" || len(glob) > MaxTopicBytes {
			return fmt.Errorf("%w subscription %s: topic glob %.300q", ErrInvalid, c.Name, glob)
		}
	}
	return nil
}

// Subscribe adds a subscription, and returns when that is durable. It begins at place, but for the
// partitions that starts names. What lies before the oldest batch held is refetched.
func (q *Queue) Subscribe(ctx context.Context, c SubscriptionConfig, place Place, starts []Start) error {
	c.OnFull = max(c.OnFull, Block)
	if err := errors.Join(validateName(c.Name), c.validate()); err != nil {
		return err
	}
	return q.manage(ctx, func() (*change, error) {
		if q.subscription(c.Name) != nil {
			return nil, fmt.Errorf("%w: %q", ErrExists, c.Name)
		}
		if len(q.subs) >= maxSubscriptions {
			return nil, fmt.Errorf("%w: the queue has %d subscriptions, at most %d", ErrTooMany, len(q.subs), maxSubscriptions)
		}
		at, err := q.startsLocked(place, starts, c.Topics)
		if err != nil {
			return nil, err
		}
		q.nextSubscription++
		return &change{Subscribe: &subscriptionChange{ID: q.nextSubscription, Config: c, Starts: at}, Epoch: q.cfg.Now().UnixMilli(), guards: true}, nil
	})
}

// Update changes a subscription, and returns when that is durable. What it begins to want is
// delivered from what is appended next, or from where it was when it wanted it before. What is
// pending of topics that it ceases to want is kept.
func (q *Queue) Update(ctx context.Context, name string, alter func(*SubscriptionConfig)) error {
	return q.update(ctx, name, false, alter)
}

// update is Update; with seed, the result is what the configuration says.
func (q *Queue) update(ctx context.Context, name string, seed bool, alter func(*SubscriptionConfig)) error {
	return q.manage(ctx, func() (*change, error) {
		sub := q.subscription(name)
		if sub == nil {
			return nil, fmt.Errorf("%w: %q", ErrNoSubscription, name)
		}
		c := sub.SubscriptionConfig
		alter(&c)
		c.Name = name
		if err := c.validate(); err != nil {
			return nil, err
		}
		at, err := q.startsLocked(Latest, nil, c.Topics)
		if err != nil {
			return nil, err
		}
		at = slices.DeleteFunc(at, func(s Start) bool { return q.partitions[s.Partition].progress[sub] != nil })
		next := &subscription{SubscriptionConfig: c}
		var ends []Start
		var ended []*progress
		for _, g := range sub.progress {
			if !g.unwanted && !next.wants(g.part.id.Topic) {
				ends = append(ends, Start{g.part.id, g.part.appended})
				ended = append(ended, g)
			}
		}
		q.revokeManyLocked(ended)
		moved := &change{Subscribe: &subscriptionChange{ID: sub.id, Config: c, Starts: at, Ends: ends, Seed: seed}, Epoch: q.cfg.Now().UnixMilli(), guards: true}
		moved.moves(sub)
		return moved, nil
	})
}

// DropUnwanted settles as dropped what is pending of topics that the subscription does not want
// any more, and returns when that is durable.
func (q *Queue) DropUnwanted(ctx context.Context, name string) error {
	return q.manage(ctx, func() (*change, error) {
		sub := q.subscription(name)
		if sub == nil {
			return nil, fmt.Errorf("%w: %q", ErrNoSubscription, name)
		}
		c := &change{Subscription: sub.id}
		for _, g := range sub.progress {
			if !g.unwanted {
				continue
			}
			if r := (Range{g.settled.Floor, g.end()}); r.Len() > 0 {
				c.Settle = append(c.Settle, settleChange{Partition: g.part.id, First: g.part.first, Range: r, Except: []Interval{{r, Dropped}}, Reason: reasonUnwanted, AtMs: q.cfg.Now().UnixMilli()})
			}
		}
		return c, nil
	})
}

const (
	reasonUnwanted = "the subscription did not want the topic any more, and an operator gave them up"
	reasonSkipped  = "an operator moved the subscription ahead"
)

// Unsubscribe forgets a subscription's progress, and returns when that is durable. It is refused
// while the subscription has sessions or sink state: files in use would stay so for ever. With
// force, both end with it.
func (q *Queue) Unsubscribe(ctx context.Context, name string, force bool) error {
	return q.manage(ctx, func() (*change, error) {
		sub := q.subscription(name)
		switch {
		case sub == nil:
			return nil, fmt.Errorf("%w: %q", ErrNoSubscription, name)
		case sub.configured:
			return nil, fmt.Errorf("%w: %q would come back with the next start; take it out of the file first", ErrConfigured, name)
		case !force:
			if err := q.inUseLocked(sub); err != nil {
				return nil, err
			}
		}
		sub.deleted = true
		for _, s := range sub.sessions {
			s.endLocked(fmt.Errorf("%w: %q was deleted", ErrNoSubscription, name))
		}
		if sub.pendingRecords > 0 || sub.deferred > 0 {
			q.cfg.Log.Warn("the subscription is deleted, and with it what is pending for it", "subscription", name,
				"pending_records", sub.pendingRecords, "deferred_offsets", sub.deferred)
		}
		c := &change{Unsubscribe: sub.id, guards: true}
		c.moves(sub)
		return c, nil
	})
}

// inUseLocked is ErrInUse while deliveries hang on a subscription.
func (q *Queue) inUseLocked(sub *subscription) error {
	entries := 0
	for _, s := range q.sessions {
		if s.sub == sub {
			entries += len(s.state)
		}
	}
	if len(sub.sessions) == 0 && entries == 0 {
		return nil
	}
	return fmt.Errorf("%w: %q has %d sessions and %d entries of sink state (files in use, for instance, which would stay so for ever): stop its deliveries "+
		"once they have finished their files (RollFiles, and SIGTERM), or say force", ErrInUse, sub.Name, len(sub.sessions), entries)
}

// Seek moves a subscription, and returns when that is durable. Its leases are revoked. When the
// new place is below, everything from there is delivered again; when it is above, what is pending
// before it is settled as dropped. Earliest skips nothing that is pending.
func (q *Queue) Seek(ctx context.Context, name string, place Place, starts []Start) error {
	return q.manage(ctx, func() (*change, error) {
		sub := q.subscription(name)
		if sub == nil {
			return nil, fmt.Errorf("%w: %q", ErrNoSubscription, name)
		}
		at, err := q.startsLocked(place, starts, sub.Topics)
		if err != nil {
			return nil, err
		}
		var moved []*progress
		for i, s := range at {
			g := q.partitions[s.Partition].progress[sub]
			if g == nil {
				continue
			}
			if place == Earliest && i >= len(starts) {
				at[i].Offset = min(s.Offset, g.settled.Floor)
			}
			moved = append(moved, g)
		}
		q.revokeManyLocked(moved)
		c := &change{Subscription: sub.id, Seek: at, Epoch: q.cfg.Now().UnixMilli(), guards: true}
		c.moves(sub)
		return c, nil
	})
}

// moves has nothing leased of a subscription until the change is applied: an ack of it would
// count for what the change begins anew.
func (c *change) moves(sub *subscription) {
	sub.moving++
	c.moved = sub
}

// manage writes a change that make decides on, and waits until it is durable.
func (q *Queue) manage(ctx context.Context, make func() (*change, error)) error {
	q.mu.Lock()
	if q.closed != nil {
		q.mu.Unlock()
		return q.closed
	}
	c, err := make()
	if err != nil {
		q.mu.Unlock()
		return err
	}
	durable := q.durableLocked(c)
	q.mu.Unlock()
	select {
	case <-durable:
		return nil
	case <-q.done:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// durableLocked enqueues a change and returns a channel that is closed when it is on disk and
// applied.
func (q *Queue) durableLocked(c *change) <-chan struct{} {
	durable := make(chan struct{})
	c.done = func(q *Queue) {
		close(durable)
		if c.moved != nil {
			c.moved.moving--
		}
		for _, sub := range slices.Clone(q.subs) {
			before := q.nextLease
			q.dispatchLocked(sub)
			q.letOthersIn(int(q.nextLease - before))
		}
		q.refetchLocked()
	}
	q.enqueueLocked(c)
	return durable
}

// startsLocked is a place in every partition that matches the topics, in offsets.
func (q *Queue) startsLocked(place Place, starts []Start, topics []string) ([]Start, error) {
	wants := (&subscription{SubscriptionConfig: SubscriptionConfig{Topics: topics}}).wants
	var at []Start
	named := make(map[Partition]bool)
	find := q.finderLocked()
	for _, s := range starts {
		id, err := find(s.Partition)
		switch {
		case err != nil:
			return nil, err
		case s.Offset < 0 || s.Offset > maxOffset:
			return nil, fmt.Errorf("%w offset %d of %s/%d", ErrInvalid, s.Offset, id.Topic, id.Number)
		case named[id]:
			return nil, fmt.Errorf("%w start: %s/%d is there twice", ErrInvalid, id.Topic, id.Number)
		case !wants(id.Topic):
			return nil, fmt.Errorf("%w offset of %s/%d: the subscription does not want the topic", ErrInvalid, id.Topic, id.Number)
		}
		named[id] = true
		at = append(at, Start{id, s.Offset})
	}
	if place == Nowhere {
		return at, nil
	}
	for _, p := range q.sorted {
		if !wants(p.id.Topic) || named[p.id] {
			continue
		}
		offset := p.appended
		if oldest, held := p.pieces.first(); held && place == Earliest {
			offset = oldest.own.First
		}
		at = append(at, Start{p.id, offset})
	}
	return at, nil
}

// finderLocked returns what finds a partition that people name; the cluster may be left out when
// there is one.
func (q *Queue) finderLocked() func(Partition) (Partition, error) {
	var byName map[Partition][]Partition // without their clusters; made when somebody leaves one out
	return func(id Partition) (Partition, error) {
		if q.partitions[id] != nil {
			return id, nil
		}
		var found []Partition
		if id.Cluster == "" {
			if byName == nil {
				byName = make(map[Partition][]Partition)
				for known := range q.partitions {
					name := known
					name.Cluster = ""
					byName[name] = append(byName[name], known)
				}
			}
			found = byName[id]
		}
		switch len(found) {
		case 1:
			return found[0], nil
		case 0:
			return id, fmt.Errorf("%w partition %s/%d: the queue has never seen it", ErrInvalid, id.Topic, id.Number)
		}
		return id, fmt.Errorf("%w partition %s/%d: several clusters have it; name one", ErrInvalid, id.Topic, id.Number)
	}
}

// subscribeLocked applies a subscriptionChange.
func (q *Queue) subscribeLocked(c *subscriptionChange, epoch int64) {
	sub := q.subscriptionByID(c.ID)
	if sub == nil {
		sub = &subscription{id: c.ID}
		q.subs = append(q.subs, sub)
		q.nextSubscription = max(q.nextSubscription, c.ID)
	}
	sub.SubscriptionConfig = c.Config
	if c.Seed {
		seed := c.Config
		sub.seed = &seed
	}
	starts, ends := offsetsOf(c.Starts), offsetsOf(c.Ends)
	kept := false
	sub.moving++
	defer func() { sub.moving-- }()
	for _, p := range slices.Clone(q.sorted) { // those that become known meanwhile have it from the beginning
		q.letOthersIn(1)
		g := p.progress[sub]
		switch wants := sub.wants(p.id.Topic); {
		case wants && g == nil:
			start, ok := starts[p.id]
			if !ok {
				start = p.first
			}
			q.beginLocked(q.addProgress(sub, p, NewSettled(start, epoch)))
		case wants && g.unwanted:
			q.wantLocked(g)
		case !wants && g != nil && !g.unwanted:
			until, ok := ends[p.id]
			if !ok {
				until = g.settled.Floor
			}
			q.unwantLocked(g, until)
			kept = true
		}
		q.raiseSafeLocked(p)
		q.reachLocked(p)
	}
	if kept {
		q.warnKeptLocked(sub)
	}
}

func offsetsOf(starts []Start) map[Partition]int64 {
	offsets := make(map[Partition]int64, len(starts))
	for _, s := range starts {
		offsets[s.Partition] = s.Offset
	}
	return offsets
}

// unsubscribeLocked applies the end of a subscription.
func (q *Queue) unsubscribeLocked(id int64) {
	sub := q.subscriptionByID(id)
	if sub == nil {
		return
	}
	sub.deleted = true
	q.control = q.control.without(sub.Name)
	maps.DeleteFunc(q.paused, func(one pausedOne, _ bool) bool { return one.Sub == id })
	for _, s := range sub.sessions {
		s.endLocked(fmt.Errorf("%w: %q was deleted", ErrNoSubscription, sub.Name))
		delete(q.sessions, s.ID)
	}
	for _, s := range sub.orphans {
		delete(q.sessions, s.ID)
	}
	for id, s := range q.sessions { // recovered ones
		if s.sub == sub {
			delete(q.sessions, id)
		}
	}
	sub.sessions, sub.takers, sub.orderedSessions, sub.orphans = nil, nil, 0, nil
	for _, pc := range sub.copies {
		q.releaseCopyLocked(sub, pc)
	}
	sub.copies = nil
	q.subs = slices.DeleteFunc(q.subs, func(x *subscription) bool { return x == sub }) // nothing new comes to it
	for len(sub.progress) > 0 {
		g := sub.progress[len(sub.progress)-1]
		q.detachLocked(g)
		q.raiseSafeLocked(g.part)
		q.reachLocked(g.part)
		q.letOthersIn(1)
	}
}

// seekLocked applies a move of a subscription.
func (q *Queue) seekLocked(id int64, starts []Start, epoch int64) {
	sub := q.subscriptionByID(id)
	if sub == nil {
		return
	}
	replaying := sub.replaying
	for _, s := range starts {
		if p := q.partitions[s.Partition]; p != nil && p.progress[sub] != nil {
			q.rewindLocked(p.progress[sub], s.Offset, epoch)
			q.letOthersIn(1)
		}
	}
	if replaying > 0 && sub.replaying == 0 && sub.replay != nil { // nothing is left of the ledgers that it was about
		sub.replay.EndedMs = epoch
		q.replayDoneLocked(sub)
	}
}

// skipLocked returns the ledger of a subscription that is moved ahead: what was pending before
// the place is dropped, and nothing is settled after it.
func (q *Queue) skipLocked(g *progress, start, epoch, atMs int64) Settled {
	ahead := Settled{Start: g.settled.Start, Floor: start, Counts: g.settled.Counts, Epoch: epoch}
	for v := range g.settled.Above.all() {
		ahead.Counts[v.Outcome] += max(min(v.Next, start)-v.First, 0)
	}
	skipped := int64(0)
	parts := g.settled.Unsettled(Range{g.settled.Floor, start})
	for i, r := range parts {
		skipped += r.Len()
		if len(parts)-i <= maxUndelivered { // the others would be forgotten at once
			g.sub.note(Undelivered{Partition: g.part.id, Range: r, Outcome: Dropped, Reason: reasonSkipped, AtMs: atMs})
		}
	}
	ahead.Counts[Dropped] += skipped
	g.sub.count(Dropped, skipped)
	if skipped > 0 && q.store != nil {
		q.cfg.Log.Warn("the subscription is moved ahead; what was pending before is dropped", "subscription", g.sub.Name, "topic", g.part.id.Topic,
			"partition", g.part.id.Number, "to_offset", start, "dropped_offsets", skipped)
	}
	return ahead
}
