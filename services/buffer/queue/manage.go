package queue

import (
	"context"
	"fmt"
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

var subscriptionName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,100}$`)

func (c *SubscriptionConfig) validate() error {
	switch {
	case !subscriptionName.MatchString(c.Name):
		return fmt.Errorf("%w subscription name %q: want letters, digits, '.', '_' and '-', at most 100", ErrInvalid, c.Name)
	case len(c.Topics) == 0:
		return fmt.Errorf("%w subscription %s: it wants no topics", ErrInvalid, c.Name)
	case c.OnFull < Block || c.OnFull > Defer:
		return fmt.Errorf("%w subscription %s: on_full %d", ErrInvalid, c.Name, c.OnFull)
	case c.Limit < 0:
		return fmt.Errorf("%w subscription %s: limit of %d bytes", ErrInvalid, c.Name, c.Limit)
	}
	for _, glob := range c.Topics {
		if _, err := path.Match(glob, ""); err != nil || glob == "" {
			return fmt.Errorf("%w subscription %s: topic glob %q", ErrInvalid, c.Name, glob)
		}
	}
	return nil
}

// Subscribe adds a subscription, and returns when that is durable. It begins at place, but for the
// partitions that starts names. What lies before the oldest batch held is refetched.
func (q *Queue) Subscribe(ctx context.Context, c SubscriptionConfig, place Place, starts []Start) error {
	c.OnFull = max(c.OnFull, Block)
	if err := c.validate(); err != nil {
		return err
	}
	return q.manage(ctx, func() (*change, error) {
		if q.subscription(c.Name) != nil {
			return nil, fmt.Errorf("%w: %q", ErrExists, c.Name)
		}
		at, err := q.startsLocked(place, starts, c.Topics)
		if err != nil {
			return nil, err
		}
		q.nextSubscription++
		return &change{Subscribe: &subscriptionChange{ID: q.nextSubscription, Config: c, Starts: at}, Epoch: q.cfg.Now().UnixMilli()}, nil
	})
}

// Update changes a subscription, and returns when that is durable. What it begins to want is delivered
// from what is appended next.
func (q *Queue) Update(ctx context.Context, name string, alter func(*SubscriptionConfig)) error {
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
		return &change{Subscribe: &subscriptionChange{ID: sub.id, Config: c, Starts: at}, Epoch: q.cfg.Now().UnixMilli()}, err
	})
}

// Unsubscribe ends a subscription's sessions and forgets its progress, and returns when that is durable.
func (q *Queue) Unsubscribe(ctx context.Context, name string) error {
	return q.manage(ctx, func() (*change, error) {
		sub := q.subscription(name)
		switch {
		case sub == nil:
			return nil, fmt.Errorf("%w: %q", ErrNoSubscription, name)
		case sub.configured:
			return nil, fmt.Errorf("%w: %q would come back with the next start; take it out of the file first", ErrConfigured, name)
		}
		return &change{Unsubscribe: sub.id}, nil
	})
}

// Seek moves a subscription, and returns when that is durable. Its leases are revoked. What lies before is
// delivered again when the new place is below, and counts as settled when it is above.
func (q *Queue) Seek(ctx context.Context, name string, place Place, starts []Start) error {
	return q.manage(ctx, func() (*change, error) {
		sub := q.subscription(name)
		if sub == nil {
			return nil, fmt.Errorf("%w: %q", ErrNoSubscription, name)
		}
		at, err := q.startsLocked(place, starts, sub.Topics)
		return &change{Subscription: sub.id, Seek: at, Epoch: q.cfg.Now().UnixMilli()}, err
	})
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

// durableLocked enqueues a change and returns a channel that is closed when it is on disk and applied.
func (q *Queue) durableLocked(c *change) <-chan struct{} {
	durable := make(chan struct{})
	c.done = func(q *Queue) {
		close(durable)
		for _, sub := range q.subs {
			q.dispatchLocked(sub)
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
	for _, s := range starts {
		id, err := q.findLocked(s.Partition)
		switch {
		case err != nil:
			return nil, err
		case s.Offset < 0:
			return nil, fmt.Errorf("%w offset %d of %s/%d", ErrInvalid, s.Offset, id.Topic, id.Number)
		case slices.ContainsFunc(at, func(x Start) bool { return x.Partition == id }):
			return nil, fmt.Errorf("%w start: %s/%d is there twice", ErrInvalid, id.Topic, id.Number)
		case !wants(id.Topic):
			return nil, fmt.Errorf("%w offset of %s/%d: the subscription does not want the topic", ErrInvalid, id.Topic, id.Number)
		}
		at = append(at, Start{id, s.Offset})
	}
	if place == Nowhere {
		return at, nil
	}
	for _, p := range q.partitionsLocked() {
		if !wants(p.id.Topic) || slices.ContainsFunc(at, func(s Start) bool { return s.Partition == p.id }) {
			continue
		}
		offset := p.appended
		if place == Earliest && len(p.pieces) > 0 {
			offset = p.pieces[0].own.First
		}
		at = append(at, Start{p.id, offset})
	}
	return at, nil
}

// findLocked finds a partition that people name; the cluster may be left out when there is one.
func (q *Queue) findLocked(id Partition) (Partition, error) {
	if q.partitions[id] != nil {
		return id, nil
	}
	var found []Partition
	for known := range q.partitions {
		if known.Topic == id.Topic && known.Number == id.Number && known.Incarnation == id.Incarnation && (id.Cluster == "" || id.Cluster == known.Cluster) {
			found = append(found, known)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return id, fmt.Errorf("%w partition %s/%d: the queue has never seen it", ErrInvalid, id.Topic, id.Number)
	}
	return id, fmt.Errorf("%w partition %s/%d: several clusters have it; name one", ErrInvalid, id.Topic, id.Number)
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
	for _, p := range q.partitions {
		g := p.progress[sub]
		switch wants := sub.wants(p.id.Topic); {
		case wants && g == nil:
			start := p.first
			if i := slices.IndexFunc(c.Starts, func(s Start) bool { return s.Partition == p.id }); i >= 0 {
				start = c.Starts[i].Offset
			}
			q.attachLocked(q.addProgress(sub, p, NewSettled(start, epoch)))
		case !wants && g != nil:
			if n := p.appended - g.settled.Floor; n > 0 && q.store != nil {
				q.cfg.Log.Warn("the subscription does not want the topic any more: what is pending of it is not delivered", "subscription", sub.Name,
					"topic", p.id.Topic, "partition", p.id.Number, "offsets_at_most", n)
			}
			q.detachLocked(g)
			delete(p.progress, sub)
			sub.progress = slices.DeleteFunc(sub.progress, func(x *progress) bool { return x == g })
		}
	}
}

// unsubscribeLocked applies the end of a subscription.
func (q *Queue) unsubscribeLocked(id int64) {
	sub := q.subscriptionByID(id)
	if sub == nil {
		return
	}
	sub.deleted = true
	for _, s := range sub.sessions {
		s.endLocked()
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
	for _, g := range sub.progress {
		q.detachLocked(g)
		delete(g.part.progress, sub)
		q.raiseSafeLocked(g.part)
	}
	sub.progress, sub.ready, sub.sessions, sub.orphans = nil, nil, nil, nil
	q.subs = slices.DeleteFunc(q.subs, func(x *subscription) bool { return x == sub })
}

// seekLocked applies a move of a subscription.
func (q *Queue) seekLocked(id int64, starts []Start, epoch int64) {
	sub := q.subscriptionByID(id)
	if sub == nil {
		return
	}
	for _, s := range starts {
		if p := q.partitions[s.Partition]; p != nil && p.progress[sub] != nil {
			q.rewindLocked(p.progress[sub], s.Offset, epoch)
		}
	}
}

// rewindLocked makes a subscription go on at an offset.
func (q *Queue) rewindLocked(g *progress, start, epoch int64) {
	before := g.needed()
	q.revokeLocked(g)
	epoch = max(epoch, g.settled.Epoch+1) // the clock may have been set back
	g.settled, g.cursor = NewSettled(start, epoch), start
	g.deferred, g.deferredBytes, g.dropping, g.back = nil, 0, nil, nil
	q.attachLocked(g)
	for _, pc := range before { // counted twice by now, or not needed any more
		q.letGoLocked(g, pc)
	}
}

// attachLocked makes a subscription need what is held of a partition, and defers what is not.
func (q *Queue) attachLocked(g *progress) {
	for i := g.part.pieceIndex(g.settled.Floor); i < len(g.part.pieces); i++ {
		q.needLocked(g, g.part.pieces[i])
	}
	g.derive()
	q.readyLocked(g)
}

// detachLocked ends a subscription's interest in a partition.
func (q *Queue) detachLocked(g *progress) {
	needed := g.needed()
	q.revokeLocked(g)
	for _, pc := range needed {
		q.letGoLocked(g, pc)
	}
	g.sub.ready = slices.DeleteFunc(g.sub.ready, func(x *progress) bool { return x == g })
}

// needed lists the pieces that are held for the subscription.
func (g *progress) needed() []*piece {
	var needed []*piece
	for i := g.part.pieceIndex(g.settled.Floor); i < len(g.part.pieces); i++ {
		if pc := g.part.pieces[i]; g.needs(pc.own) {
			needed = append(needed, pc)
		}
	}
	return needed
}

// revokeLocked takes back the leases in a partition, but for those whose ack is being written.
func (q *Queue) revokeLocked(g *progress) {
	for _, l := range slices.Clone(g.leases) {
		if !l.acking {
			q.endLeaseLocked(l)
			l.session.tellLocked(Event{Revoked: []uint64{l.id}})
		}
	}
}
