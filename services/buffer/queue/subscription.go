package queue

import (
	"cmp"
	"math"
	"path"
	"slices"
	"sort"
	"time"
)

// OnFull is what happens when a subscription's backlog reaches its limit. The numbers are those of
// spillway.v1.OnFull and of the journal.
type OnFull uint8

const (
	Block      OnFull = 1 // appends are refused
	DropOldest OnFull = 2 // the oldest pending batches are settled as dropped
	Defer      OnFull = 3 // newer batches are not kept, and refetched later
)

// SubscriptionConfig is a subscription as somebody wants it.
type SubscriptionConfig struct {
	Name   string   `json:"name"`
	Topics []string `json:"topics"` // globs of path.Match
	// Required subscriptions hold back the safe offset. What another one still needs after a crash is
	// refetched.
	Required bool   `json:"required"`
	OnFull   OnFull `json:"on_full"` // 0 is Block
	// Limit bounds the payload bytes of the backlog; 0 leaves Block to the queue's disk bound, and is
	// policyPercent of that for the others.
	Limit int64 `json:"limit"`
}

// policyPercent of the queue's disk bound is the limit of a subscription that drops or defers and has
// no limit of its own: it gives way before the disk bound holds back the others.
const policyPercent = 80

func (c *SubscriptionConfig) equal(o *SubscriptionConfig) bool {
	return c.Name == o.Name && slices.Equal(c.Topics, o.Topics) && c.Required == o.Required && c.OnFull == o.OnFull && c.Limit == o.Limit
}

// subscription is one destination's claim on the queue.
type subscription struct {
	SubscriptionConfig
	id         int64 // never reused; names the subscription in the journal
	seed       *SubscriptionConfig
	paused     bool
	configured bool // the configuration names it now
	deleted    bool

	progress []*progress // of the partitions it wants, in the order they were first seen
	ready    []*progress // those that may have something to lease, in turn
	sessions []*Session  // live
	// orphans are dead sessions whose sink state waits for a live session.
	orphans []*Session

	undelivered []Undelivered // the newest maxUndelivered, oldest first; durable

	pendingRecords, pendingBytes int64 // of the pieces it needs
	droppingBytes                int64 // of pieces whose drop is being written
	leased                       int
	leasedRecords, leasedBytes   int64   // of the pieces that are leased
	taken                        int64   // payload bytes leased for the first time since pace was measured
	pace                         float64 // how many a second are, about
	// Since Open.
	delivered, deadLettered, dropped, lost, redelivered int64
}

// maxUndelivered bounds what is remembered of a subscription's undelivered ranges.
const maxUndelivered = 10_000

// Undelivered is a range that ended otherwise than delivered or filtered.
type Undelivered struct {
	Partition Partition `json:"part"`
	Range     Range     `json:"range"`
	Outcome   Outcome   `json:"o"`
	Reason    string    `json:"why"`
	AtMs      int64     `json:"at"` // since the Unix epoch
}

// note remembers an undelivered range, joined with the one before when that is alike.
func (s *subscription) note(u Undelivered) {
	if n := len(s.undelivered); n > 0 {
		last := &s.undelivered[n-1]
		if last.Partition == u.Partition && last.Outcome == u.Outcome && last.Reason == u.Reason && last.Range.Next == u.Range.First {
			last.Range.Next, last.AtMs = u.Range.Next, u.AtMs
			return
		}
	}
	if len(s.undelivered) >= maxUndelivered {
		s.undelivered = slices.Delete(s.undelivered, 0, maxUndelivered/10)
	}
	s.undelivered = append(s.undelivered, u)
}

// wants says whether a topic matches one of the globs.
func (s *subscription) wants(topic string) bool {
	for _, glob := range s.Topics {
		if ok, _ := path.Match(glob, topic); ok {
			return true
		}
	}
	return false
}

// ordered says whether partitions are leased in order, to one session at a time.
func (s *subscription) ordered() bool {
	return slices.ContainsFunc(s.sessions, func(x *Session) bool { return x.ordered })
}

// progress is a subscription's way through one partition.
type progress struct {
	sub     *subscription
	part    *partition
	settled Settled
	// deferred is pending and not held: to be refetched. It is not written down, since it follows from
	// the ledger and what is held.
	deferred      Set
	deferredBytes int64      // about what deferred has
	dropping      Set        // its drop is being written
	cursor        int64      // pieces that begin before it have been leased, or are in back
	inReady       bool       // is in sub.ready
	turn          int64      // bytes that were leased since it is first in sub.ready
	again         bool       // what was leased last had been leased before
	leases        []*lease   // held, ascending by offset
	back          []returned // to be leased again, ascending by offset
}

// returned is a piece to be leased, again or out of turn.
type returned struct {
	piece   *piece
	attempt int // of the last lease, 0 when it never was leased
	due     time.Time
}

// lease is a piece on loan to a session.
type lease struct {
	id       uint64
	piece    *piece
	progress *progress
	session  *Session
	attempt  int
	deadline time.Time
	acking   bool // its ack is being made durable: neither expires nor is revoked
}

// doneUntil returns the first offset at or after o that is neither settled nor deferred.
func (g *progress) doneUntil(o int64) int64 {
	for {
		next := g.deferred.Until(g.settled.Until(o))
		if next == o {
			return o
		}
		o = next
	}
}

// needs says whether something in r has to be held for the subscription.
func (g *progress) needs(r Range) bool { return g.doneUntil(r.First) < r.Next }

// deferRange makes the unsettled parts of r deferred. bytes is about what r has.
func (g *progress) deferRange(r Range, bytes int64) {
	n := int64(0)
	for _, part := range g.settled.Unsettled(r) {
		g.deferred.Add(part)
		n += part.Len()
	}
	g.deferredBytes += bytes * n / max(r.Len(), 1)
}

// undefer takes r out of deferred.
func (g *progress) undefer(r Range) {
	if len(g.deferred) == 0 {
		return
	}
	before := g.deferred.Len()
	g.deferred.Remove(r)
	g.deferredBytes = g.deferredBytes * g.deferred.Len() / max(before, 1)
}

// next finds what to lease next, without taking it. What was given back, again and again maybe, takes turns with what
// was never leased, so that neither holds up the other. With ordered, that is the lowest pending piece or
// nothing: a deferred range below it has to come back first, and a drop has to be on disk.
func (g *progress) next(now time.Time, ordered bool) (pc *piece, fromBack int) {
	g.back = slices.DeleteFunc(g.back, func(r returned) bool {
		return !g.needs(r.piece.own) || g.part.pieceAt(r.piece.own.First) != r.piece // refetched meanwhile
	})
	barrier := int64(math.MaxInt64)
	if ordered && len(g.deferred) > 0 {
		barrier = g.deferred[0].First
	}
	again := -1
	for i, r := range g.back {
		if r.piece.own.First > barrier {
			return nil, -1
		}
		if !r.due.After(now) && g.dropping.Until(r.piece.own.First) == r.piece.own.First {
			if again = i; ordered || !g.again {
				return r.piece, i
			}
			break
		}
		if ordered {
			return nil, -1
		}
	}
	if pc := g.fresh(ordered, barrier); pc != nil {
		return pc, -1
	}
	if again >= 0 {
		return g.back[again].piece, again
	}
	return nil, -1
}

// fresh is the next piece that was never leased, if it may be.
func (g *progress) fresh(ordered bool, barrier int64) *piece {
	if g.sub.scattered() {
		return nil
	}
	for i := g.part.pieceIndex(g.cursor); i < len(g.part.pieces); i++ {
		pc := g.part.pieces[i]
		isDropped := g.dropping.Until(pc.own.First) > pc.own.First
		if pc.own.First > barrier || ordered && isDropped {
			return nil
		}
		if pc.own.First >= g.cursor && !isDropped && g.needs(pc.own) {
			return pc
		}
		g.cursor = max(g.cursor, pc.own.Next)
	}
	return nil
}

// maxScattered bounds the ledger of a subscription, whose acks may settle every other record of what they lease
// while the rest waits for long.
const maxScattered = 100_000

// scattered says whether so many ranges are settled above some that are not, that nothing more is to be leased but
// what has been leased before. What was settled ahead of the leases, as there are no records, does not count.
func (s *subscription) scattered() bool {
	n := 0
	for _, g := range s.progress {
		n += len(g.settled.Above)
	}
	if n <= maxScattered {
		return false
	}
	n = 0
	for _, g := range s.progress {
		n += sort.Search(len(g.settled.Above), func(i int) bool { return g.settled.Above[i].First >= g.cursor })
	}
	return n > maxScattered
}

// giveBack makes a piece leasable again. An entry of before it was deferred may still be there.
func (g *progress) giveBack(r returned) {
	i, found := slices.BinarySearchFunc(g.back, r.piece.own.First, func(r returned, o int64) int { return cmp.Compare(r.piece.own.First, o) })
	if found {
		g.back[i] = r
		return
	}
	g.back = slices.Insert(g.back, i, r)
}

// waitsBefore says whether something before o is to be leased again, or to be refetched.
func (g *progress) waitsBefore(o int64) bool {
	return len(g.deferred) > 0 && g.deferred[0].First < o ||
		slices.ContainsFunc(g.back, func(r returned) bool { return r.piece.own.First < o && g.needs(r.piece.own) })
}

// holder is the session that holds leases of the partition, if any.
func (g *progress) holder() *Session {
	if len(g.leases) == 0 {
		return nil
	}
	return g.leases[0].session
}

// leaseIndex is where a lease of a piece that begins at o is in leases, or would be.
func (g *progress) leaseIndex(o int64) (int, bool) {
	return slices.BinarySearchFunc(g.leases, o, func(l *lease, o int64) int { return cmp.Compare(l.piece.own.First, o) })
}

func (g *progress) removeLease(l *lease) {
	if i := slices.Index(g.leases, l); i >= 0 {
		g.leases = slices.Delete(g.leases, i, i+1)
	}
}

func (g *progress) addLease(l *lease) {
	i, _ := g.leaseIndex(l.piece.own.First)
	g.leases = slices.Insert(g.leases, i, l)
}

// redeliveryDelay is the buffer's own backoff: 100ms after the first attempt, doubled up to 30s, and
// between half and all of it by chance.
func redeliveryDelay(attempt int, random float64) time.Duration {
	const first, most = 100 * time.Millisecond, 30 * time.Second
	d := most
	if attempt < 10 {
		d = min(most, first<<max(attempt-1, 0))
	}
	return d/2 + time.Duration(random*float64(d/2))
}
