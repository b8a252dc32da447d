package queue

import (
	"path"
	"slices"
	"time"
)

// subscription is one destination's claim on the queue.
type subscription struct {
	id         int64 // never reused; names the subscription in the journal
	name       string
	topics     []string // globs of path.Match
	required   bool
	paused     bool
	configured bool

	progress []*progress // of the partitions it wants, in the order they were first seen
	ready    []*progress // those that may have something to lease, in turn
	sessions []*Session  // live
	// orphans are dead sessions whose sink state waits for a live session.
	orphans []*Session

	pendingRecords, pendingBytes int64
	leased                       int
	delivered, deadLettered      int64
	redelivered                  int64
}

// wants says whether a topic matches one of the globs.
func (s *subscription) wants(topic string) bool {
	for _, glob := range s.topics {
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
	cursor  int64      // pieces that begin before it have been leased, or are in returned
	inReady bool       // is in sub.ready
	leases  []*lease   // held, ascending by offset
	back    []returned // to be leased again, ascending by offset
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

// next finds what to lease next, without taking it. With ordered, that is the lowest pending piece or nothing.
func (g *progress) next(now time.Time, ordered bool) (pc *piece, fromBack int) {
	g.dropSettled()
	for i, r := range g.back {
		if !r.due.After(now) {
			return r.piece, i
		}
		if ordered {
			return nil, -1
		}
	}
	for i := g.part.pieceIndex(g.cursor); i < len(g.part.pieces); i++ {
		pc := g.part.pieces[i]
		if pc.own.First >= g.cursor && !g.settled.Covers(pc.own) {
			return pc, -1
		}
		g.cursor = max(g.cursor, pc.own.Next)
	}
	return nil, -1
}

// dropSettled forgets returned pieces that were settled in the meantime.
func (g *progress) dropSettled() {
	g.back = slices.DeleteFunc(g.back, func(r returned) bool { return g.settled.Covers(r.piece.own) })
}

// giveBack makes a piece leasable again.
func (g *progress) giveBack(r returned) {
	i, _ := slices.BinarySearchFunc(g.back, r.piece.own.First, func(r returned, o int64) int { return int(min(max(r.piece.own.First-o, -1), 1)) })
	g.back = slices.Insert(g.back, i, r)
}

// holder is the session that holds leases of the partition, if any.
func (g *progress) holder() *Session {
	if len(g.leases) == 0 {
		return nil
	}
	return g.leases[0].session
}

func (g *progress) removeLease(l *lease) {
	if i := slices.Index(g.leases, l); i >= 0 {
		g.leases = slices.Delete(g.leases, i, i+1)
	}
}

func (g *progress) addLease(l *lease) {
	i, _ := slices.BinarySearchFunc(g.leases, l.piece.own.First, func(l *lease, o int64) int { return int(min(max(l.piece.own.First-o, -1), 1)) })
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
