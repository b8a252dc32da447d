package queue

import (
	"context"
	"fmt"
)

// Undelivered ranges are listed until an operator has them delivered once more, or forgets them.

// Redrive has the parts of undelivered ranges that pick chooses be delivered once more, and
// returns when that is durable: they leave the list, and come back to it when they cannot be
// delivered again. It returns how many offsets they are. Those of topics that the subscription
// does not want, or that Kafka has no more, stay listed.
func (q *Queue) Redrive(ctx context.Context, name string, pick func(*Undelivered) Range) (offsets int64, err error) {
	err = q.manage(ctx, func() (*change, error) {
		sub := q.subscription(name)
		if sub == nil {
			return nil, q.noSubscriptionLocked(name)
		}
		c := &change{Subscription: sub.id, Epoch: q.cfg.Now().UnixMilli()}
		var moved []*progress
		at := make(map[Partition]int) // in c.Repeat
		for i := range sub.undelivered {
			u := &sub.undelivered[i]
			p := q.partitions[u.Partition]
			chosen := pick(u)
			if p == nil || chosen.Len() <= 0 {
				continue
			}
			g := p.progress[sub]
			if g == nil || g.unwanted || q.supersededLocked(p) && sub.copyOf(u.Partition, chosen.First) == nil {
				continue
			}
			k, there := at[u.Partition]
			if !there {
				k = len(c.Repeat)
				at[u.Partition] = k
				c.Repeat = append(c.Repeat, repeatChange{Partition: u.Partition})
				moved = append(moved, g)
			}
			c.Repeat[k].Ranges = append(c.Repeat[k].Ranges, Interval{chosen, u.Outcome})
			for _, r := range g.settled.Within(chosen) {
				offsets += r.Len()
			}
		}
		if len(c.Repeat) == 0 {
			return nil, fmt.Errorf("%w: %s has nothing undelivered that was chosen and can be delivered again", ErrNoUndelivered, name)
		}
		c.Forgotten = c.Repeat
		q.revokeManyLocked(moved)
		c.moves(sub)
		return c, nil
	})
	return offsets, err
}

// ForgetUndelivered takes the parts of undelivered ranges that pick chooses off the list, and
// returns how many offsets they were when that is durable. They stay settled as they are.
func (q *Queue) ForgetUndelivered(ctx context.Context, name string, pick func(*Undelivered) Range) (offsets int64, err error) {
	err = q.manage(ctx, func() (*change, error) {
		sub := q.subscription(name)
		if sub == nil {
			return nil, q.noSubscriptionLocked(name)
		}
		c := &change{Subscription: sub.id}
		for i := range sub.undelivered {
			u := &sub.undelivered[i]
			if chosen := pick(u); chosen.Len() > 0 {
				c.Forgotten = append(c.Forgotten, repeatChange{u.Partition, []Interval{{chosen, u.Outcome}}})
				offsets += chosen.Len()
			}
		}
		if len(c.Forgotten) == 0 {
			return nil, fmt.Errorf("%w: %s has nothing undelivered that was chosen", ErrNoUndelivered, name)
		}
		return c, nil
	})
	return offsets, err
}

// forget takes ranges off the list of what was not delivered, with the outcomes that they have.
func (s *subscription) forget(all []repeatChange) {
	if len(all) == 0 {
		return
	}
	type of struct {
		Partition
		Outcome
	}
	gone := make(map[of]*Set)
	for _, c := range all {
		for _, v := range c.Ranges {
			key := of{c.Partition, v.Outcome}
			if gone[key] == nil {
				gone[key] = &Set{}
			}
			gone[key].Add(v.Range)
		}
	}
	left := make([]Undelivered, 0, len(s.undelivered)) // a snapshot may still read the old one
	s.reasonBytes, s.deadListed = 0, 0
	for _, u := range s.undelivered {
		rest := []Range{u.Range}
		if set := gone[of{u.Partition, u.Outcome}]; set != nil {
			rest = set.Without(u.Range)
		}
		for _, r := range rest {
			part := u
			part.Range = r
			left = append(left, part)
			s.reasonBytes += len(u.Reason)
			s.deadListed += part.dead()
		}
	}
	s.undelivered = left
}
