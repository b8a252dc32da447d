package queue

import (
	"fmt"
	"slices"
)

// maxAuditRanges bounds the ranges of one Account.
const maxAuditRanges = 1000

// AuditRange is a range of offsets and what became of it: an Outcome's name, or "memory", "stored",
// "leased", "deferred", "settling", or "hole".
type AuditRange struct {
	Range
	State string
}

const holeState = "hole"

// Account is what became of the offsets of a partition for a subscription since its start. Outcomes,
// Pending and Holes add up to the distance from Start to Appended.
type Account struct {
	Subscription   string
	Partition      Partition
	Start, Settled int64 // where the subscription began; below Settled, everything is settled
	Appended, Safe int64
	Outcomes       map[Outcome]int64
	Pending, Holes int64
	Ranges         []AuditRange // from Settled to Appended without gaps, at most maxAuditRanges
}

// Audit accounts for all offsets of a subscription, or of all for "". It reads the ledger, the pieces and
// the leases, and trusts none of the queue's own counters.
func (q *Queue) Audit(subscription string) ([]Account, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if subscription != "" && q.subscription(subscription) == nil {
		return nil, fmt.Errorf("%w: %q", ErrNoSubscription, subscription)
	}
	var accounts []Account
	for _, sub := range q.subs {
		if subscription != "" && sub.Name != subscription {
			continue
		}
		for _, p := range q.partitionsLocked() {
			if g := p.progress[sub]; g != nil {
				accounts = append(accounts, g.audit())
			}
		}
	}
	return accounts, nil
}

func (g *progress) audit() Account {
	p := g.part
	a := Account{Subscription: g.sub.Name, Partition: p.id, Start: g.settled.Start, Settled: g.settled.Floor,
		Appended: max(p.appended, g.settled.Start), Safe: p.safe, Outcomes: g.settled.Totals()}
	for o := g.settled.Floor; o < a.Appended; {
		next, state := g.state(o, a.Appended)
		a.add(Range{o, next}, state)
		o = next
	}
	// Below the floor only counts are kept: they must be as many as there are offsets.
	below := g.settled.Floor - g.settled.Start
	for _, n := range g.settled.Counts {
		below -= n
	}
	if below != 0 {
		a.Holes += max(below, -below)
		a.Ranges = append([]AuditRange{{Range{g.settled.Start, g.settled.Floor}, holeState}}, a.Ranges...)
	}
	return a
}

// state is what became of the offset o, and where something else may begin, at most limit.
func (g *progress) state(o, limit int64) (next int64, state string) {
	for i := range g.settled.Above {
		if v := &g.settled.Above[i]; v.First <= o && o < v.Next {
			return min(v.Next, limit), v.Outcome.String()
		} else if v.First > o {
			limit = min(limit, v.First)
			break
		}
	}
	if until := g.deferred.Until(o); until > o {
		return min(until, limit), "deferred"
	}
	limit = g.deferred.NextIn(o, limit)
	if pc := g.part.pieceAt(o); pc != nil {
		limit = min(limit, pc.own.Next)
		_, leased := g.leaseIndex(pc.own.First)
		switch {
		case leased:
			return limit, "leased"
		case pc.stored:
			return limit, "stored"
		}
		return limit, "memory"
	}
	if i := g.part.pieceIndex(o); i < len(g.part.pieces) {
		limit = min(limit, g.part.pieces[i].own.First)
	}
	if until := g.part.settling.Until(o); until > o {
		return min(until, limit), "settling"
	}
	return g.part.settling.NextIn(o, limit), holeState
}

func (a *Account) add(r Range, state string) {
	switch state {
	case holeState:
		a.Holes += r.Len()
	case "memory", "stored", "leased", "deferred", "settling":
		a.Pending += r.Len()
	}
	if n := len(a.Ranges); n > 0 && a.Ranges[n-1].State == state && a.Ranges[n-1].Next == r.First {
		a.Ranges[n-1].Next = r.Next
		return
	}
	if len(a.Ranges) < maxAuditRanges {
		a.Ranges = append(a.Ranges, AuditRange{r, state})
	}
}

// Undelivered lists what of a subscription ended otherwise than delivered or filtered, oldest first.
func (q *Queue) Undelivered(subscription string) ([]Undelivered, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	sub := q.subscription(subscription)
	if sub == nil {
		return nil, fmt.Errorf("%w: %q", ErrNoSubscription, subscription)
	}
	return slices.Clone(sub.undelivered), nil
}
