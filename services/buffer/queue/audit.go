package queue

import (
	"iter"
	"math"
	"slices"
	"strings"
)

// maxAuditRanges bounds the ranges of one Account.
const maxAuditRanges = 1000

// AuditRange is a range of offsets and what became of it: an Outcome's name, or "memory",
// "stored", "leased", "deferred", "settling", or "hole".
type AuditRange struct {
	Range
	State string
}

const holeState = "hole"

// Account is what became of the offsets of a partition for a subscription since its start.
// Outcomes, Pending and Holes add up to the distance from Start to Appended.
type Account struct {
	Subscription   string
	Partition      Partition
	Start, Settled int64 // where the subscription began; below Settled, everything is settled
	Appended, Safe int64
	Outcomes       map[Outcome]int64
	Pending, Holes int64
	Ranges         []AuditRange // from Settled to Appended without gaps, at most maxAuditRanges
}

// Audit accounts for all offsets of a subscription, or of all for "". It reads the ledger, the
// pieces and the leases, and trusts none of the queue's own counters.
func (q *Queue) Audit(subscription string) ([]Account, error) {
	accounts, err := q.Accounts(subscription, AuditPosition{})
	if err != nil {
		return nil, err
	}
	return slices.Collect(accounts), nil
}

// AuditPosition is an account in the order of an audit: by subscription, then by partition. The
// zero value is before the first.
type AuditPosition struct {
	Subscription string
	Partition    Partition
}

// Accounts yields what Audit returns, from behind after. The lock is let go of in between, also
// within a large account: each offset is told as it was at some moment meanwhile.
func (q *Queue) Accounts(name string, after AuditPosition) (iter.Seq[Account], error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if name != "" && q.subscription(name) == nil {
		return nil, q.noSubscriptionLocked(name)
	}
	subs := slices.Clone(q.subs)
	slices.SortFunc(subs, func(a, b *subscription) int { return strings.Compare(a.Name, b.Name) })
	return func(yield func(Account) bool) {
		for _, sub := range subs { // of one that is deleted meanwhile there is nothing
			if name != "" && sub.Name != name || sub.Name < after.Subscription {
				continue
			}
			from := Partition{}
			if sub.Name == after.Subscription {
				from = after.Partition
			}
			for a := range gather(q, from, func(p *partition) (a *audit, items int, ok bool) {
				if p.progress[sub] == nil {
					return nil, 0, false
				}
				a = &audit{sub: sub, part: p}
				items = q.holdItems - a.goOn(q.holdItems)
				return a, items, true
			}) {
				for !a.done {
					q.hold(func() bool { a.goOn(q.holdItems); return false })
				}
				if !a.gone && !yield(a.Account) {
					return
				}
			}
		}
	}, nil
}

// audit makes an account in parts. What was looked at may change afterwards, and counts as it was;
// but when the ledger's floor comes past what is to be looked at next, or the ledger is another
// one, it begins again.
type audit struct {
	Account
	sub  *subscription
	part *partition
	next int64 // the offset to look at
	done bool
	gone bool // the subscription has no ledger of the partition any more
}

// goOn looks at some more ranges, at most so many, and returns how many are left of these.
func (a *audit) goOn(most int) (left int) {
	g := a.part.progress[a.sub]
	if g == nil {
		a.done, a.gone = true, true
		return most
	}
	if ledger := &g.settled; a.Outcomes == nil || ledger.Start != a.Start || ledger.Floor > a.next || max(g.end(), ledger.Floor) < a.Appended {
		a.begin(g)
	}
	states := g.statesFrom(a.next)
	for ; a.next < a.Appended && most > 0; most-- {
		next, state := states.at(a.next, a.Appended)
		a.add(Range{a.next, next}, state)
		a.next = next
	}
	a.done = a.next >= a.Appended
	return most
}

// begin accounts for what is below the floor. Only counts are kept of it: they must be as many as
// there are offsets.
func (a *audit) begin(g *progress) {
	ledger := &g.settled
	a.Account = Account{Subscription: a.sub.Name, Partition: a.part.id, Start: ledger.Start, Settled: ledger.Floor,
		Appended: max(g.end(), ledger.Floor), Safe: a.part.safe, Outcomes: make(map[Outcome]int64)}
	a.next = ledger.Floor
	below := ledger.Floor - ledger.Start
	for o, n := range ledger.Counts {
		if below -= n; n > 0 {
			a.Outcomes[Outcome(o)] = n
		}
	}
	if below != 0 {
		a.add(Range{ledger.Start, ledger.Floor}, holeState)
		a.Holes = max(below, -below)
	}
}

// state is what became of the offset o, and where something else may begin, at most limit.
func (g *progress) state(o, limit int64) (next int64, state string) {
	return g.statesFrom(o).at(o, limit)
}

// states tells what became of ascending offsets of a partition, in one pass over what is known of
// it.
type states struct {
	g        *progress
	settled  walker[Interval]
	deferred walker[Range]
	pieces   walker[*piece]
	leases   walker[*lease]
	settling walker[Range]
}

func (g *progress) statesFrom(o int64) *states {
	return &states{g, walk(g.settled.Above, o), walk(g.deferred.ranges, o), walk(g.part.pieces, o), walkLeases(g.leases, o), walk(g.part.settling.ranges, o)}
}

// at is what became of o, and where something else may begin, at most limit.
func (s *states) at(o, limit int64) (next int64, state string) {
	if v, ok, begins := s.settled.over(o); ok {
		return min(v.Next, limit), v.Outcome.String()
	} else {
		limit = min(limit, begins)
	}
	if r, ok, begins := s.deferred.over(o); ok {
		return min(r.Next, limit), "deferred"
	} else {
		limit = min(limit, begins)
	}
	pc, ok, begins := s.pieces.over(o)
	if ok {
		limit = min(limit, pc.own.Next)
		switch {
		case s.leased(pc):
			return limit, "leased"
		case pc.stored:
			return limit, "stored"
		}
		return limit, "memory"
	}
	limit = min(limit, begins)
	r, ok, begins := s.settling.over(o)
	if ok {
		return min(r.Next, limit), "settling"
	}
	return min(limit, begins), holeState
}

// leased says whether there is a lease of a piece.
func (s *states) leased(pc *piece) bool {
	for l, ok := s.leases.item(); ok && l.piece.own.First <= pc.own.First; l, ok = s.leases.item() {
		if l.piece.own.First == pc.own.First {
			return true
		}
		s.leases.p = s.leases.l.next(s.leases.p)
	}
	return false
}

// walker goes up a list.
type walker[T ranged] struct {
	l list[T]
	p place
}

// walk begins at the first item that ends after o.
func walk[T ranged](l list[T], o int64) walker[T] { return walker[T]{l, l.over(o)} }

// walkLeases is walk for leases, which may overlap.
func walkLeases(l list[*lease], o int64) walker[*lease] {
	p := l.seek(o)
	for before := l.prev(p); ; before = l.prev(before) {
		if x, ok := l.at(before); !ok || x.piece.own.Next <= o {
			return walker[*lease]{l, p}
		}
		p = before
	}
}

func (w *walker[T]) item() (T, bool) { return w.l.at(w.p) }

// over is the item that has the offset o, or else where the next one begins.
func (w *walker[T]) over(o int64) (item T, ok bool, begins int64) {
	for item, ok = w.l.at(w.p); ok; item, ok = w.l.at(w.p) {
		switch r := item.offsets(); {
		case r.First > o:
			return item, false, r.First
		case r.Next > o:
			return item, true, r.First
		}
		w.p = w.l.next(w.p)
	}
	return item, false, math.MaxInt64
}

func (a *Account) add(r Range, state string) {
	switch state {
	case holeState:
		a.Holes += r.Len()
	case "memory", "stored", "leased", "deferred", "settling":
		a.Pending += r.Len()
	default:
		a.Outcomes[outcomeOf(state)] += r.Len()
	}
	if n := len(a.Ranges); n > 0 && a.Ranges[n-1].State == state && a.Ranges[n-1].Next == r.First {
		a.Ranges[n-1].Next = r.Next
		return
	}
	if len(a.Ranges) < maxAuditRanges {
		a.Ranges = append(a.Ranges, AuditRange{r, state})
	}
}

// UndeliveredView is an undelivered range as it is listed.
type UndeliveredView struct {
	Undelivered
	Kept bool // there is a copy of the first record
}

// Undelivered lists what of a subscription ended otherwise than delivered or filtered, oldest
// first.
func (q *Queue) Undelivered(subscription string) ([]UndeliveredView, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	sub := q.subscription(subscription)
	if sub == nil {
		return nil, q.noSubscriptionLocked(subscription)
	}
	list := make([]UndeliveredView, 0, len(sub.undelivered))
	first := make(map[Window]bool, len(sub.copies))
	for _, pc := range sub.copies {
		first[Window{pc.part.id, Range{First: pc.own.First}}] = true
	}
	for _, u := range sub.undelivered {
		list = append(list, UndeliveredView{u, u.Outcome == DeadLettered && first[Window{u.Partition, Range{First: u.Range.First}}]})
	}
	return list, nil
}
