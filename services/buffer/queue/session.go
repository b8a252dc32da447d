package queue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"
)

// Limits of sink state.
const (
	MaxStateKeyBytes   = 4 << 10
	MaxStateValueBytes = 64 << 10
	MaxStateEntries    = 100_000 // of a session
	// MaxStateBytes bounds what the sessions of a subscription keep, in bytes of keys and values
	// and stateOverhead an entry.
	MaxStateBytes = 256 << 20
	stateOverhead = 200
	// adoptBytes is about how much sink state one Adoption has, so that it fits into a message.
	adoptBytes = 4 << 20
)

// maxCredit is all the credit that a session can have, in bytes.
const maxCredit = 1 << 60

// maxNackDelay bounds the delay of Nack: with ordering a whole partition waits, and a delivery
// that asks for a year has a fault.
const maxNackDelay = 15 * time.Minute

// Session is a delivery's claim on a subscription. It gets leases while it has credit, owns sink
// state, and is dead for good once it is closed.
type Session struct {
	ID       uint64
	Consumer string

	q        *Queue
	sub      *subscription
	ordered  bool
	live     bool
	why      error // with live no more: why it ended
	credit   int64
	joined   uint64 // in this order
	slot     int    // in sub.takers
	withheld int64  // credit that counts again once less is leased and waits
	leases   map[uint64]*lease
	expiry   line[*lease]    // leases by their deadlines, but for those whose acks are made durable
	ready    line[*progress] // with ordering: partitions it holds leases of that may have something to lease
	state    map[string][]byte
	holds    map[string]int64 // StateChange.HoldsMs of entries of state
	since    map[string]int64 // when entries of state were first put, in ms since the Unix epoch
	acking   int              // acks being made durable
	openedAt time.Time

	watermarks bool   // it wants to be told
	delivery   string // SetDelivery's
	trouble    Trouble
	told       Watermark

	events  []Event
	answers int           // of events, those that are not leases
	signal  chan struct{} // has room for one: events are there, or the session is dead
	taken   chan struct{} // has room for one: events were taken, or the session is dead
}

// Trouble is why a delivery fails, as it says itself. An empty error says that it does not.
type Trouble struct {
	Error string
	Since time.Time // by the delivery's clock
}

// SetTrouble notes why the delivery fails, or that it does not.
func (s *Session) SetTrouble(t Trouble) {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	s.trouble = t
}

// Event is something to tell the delivery; exactly one field is set.
type Event struct {
	Lease     *Lease
	Ack       *AckResult
	Adopt     *Adoption
	Revoked   []uint64
	Watermark *Watermark
	Paused    *bool // whether the session's delivery is, as of now
}

// Lease is a batch on loan. It comes without its payload: Load fetches it.
type Lease struct {
	ID      uint64
	Batch   Batch // Payload is nil before Load
	Attempt int
	Settled []Range // parts of Batch.Range that are not to be delivered
	Epoch   int64   // Settled.Epoch
	Last    bool    // nothing was waiting behind it
	piece   *piece
	lease   *lease // nil in the answer to Peek
}

// Size is the number of payload bytes, also before Load.
func (l *Lease) Size() int64 { return int64(l.piece.size) }

// Adoption is the sink state of a dead session, now the session's own.
type Adoption struct {
	SessionID uint64
	State     map[string][]byte
}

// Events waits until there is something to tell, and returns all of it.
func (s *Session) Events(ctx context.Context) ([]Event, error) {
	for {
		s.q.mu.Lock()
		events, why := s.takeEventsLocked(), s.why
		s.q.mu.Unlock()
		if len(events) > 0 {
			return events, nil
		}
		if why != nil {
			return nil, why
		}
		select {
		case <-s.signal:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// takeEventsLocked leaves out leases that were taken back before the delivery heard of them.
func (s *Session) takeEventsLocked() []Event {
	if s.sub.undispatched && s.live {
		s.q.dispatchLocked(s.sub)
	}
	events := slices.DeleteFunc(s.events, func(e Event) bool {
		if e.Lease == nil || s.leaseLocked(e.Lease.ID) != nil {
			return false
		}
		s.creditLocked(e.Lease.Size())
		return true
	})
	if len(s.events) > 0 {
		s.events, s.answers = nil, 0
		select {
		case s.taken <- struct{}{}:
		default:
		}
		if s.q.giveCreditLocked(s) {
			s.q.dispatchLocked(s.sub)
		}
	}
	return events
}

// AwaitTaken waits while so many answers wait to be taken with Events that no more should be
// asked for, until the session is dead or ctx ends.
func (s *Session) AwaitTaken(ctx context.Context) error {
	for {
		s.q.mu.Lock()
		waits := s.live && s.answers >= maxAnswers
		s.q.mu.Unlock()
		if !waits {
			return nil
		}
		select {
		case <-s.taken:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// withholdLocked leases nothing more to a session that has its part of all leases, or as many
// events waiting: it is slow, or does not read at all.
func (q *Queue) withholdLocked(s *Session) {
	if share := q.leaseShareLocked(s); s.credit > 0 && (len(s.leases) >= share || len(s.events) >= share) {
		s.withheld += s.credit
		s.creditLocked(-s.credit)
	}
}

// giveCreditLocked ends what withholdLocked began once there is room for more than a few, and
// says whether it did.
func (q *Queue) giveCreditLocked(s *Session) bool {
	if s.withheld == 0 {
		return false
	}
	most := q.leaseShareLocked(s) / 4 * 3
	if len(s.leases) > most || len(s.events) > most {
		return false
	}
	s.creditLocked(s.withheld)
	s.withheld = 0
	return true
}

// leaseShareLocked is how many batches a session may have leased: an equal part of all, among the
// sessions that have any. Those that have none lend half of theirs, and have the other half as
// soon as they want it. So all together have at most half as many again as Config.MaxLeases, while
// what was lent comes back.
func (q *Queue) leaseShareLocked(s *Session) int {
	busy := q.leasing
	if len(s.leases) == 0 {
		busy++
	}
	own := max(q.cfg.MaxLeases/max(2*q.liveSessions, 1), minLeases)
	free := q.cfg.MaxLeases - q.leased - max(q.liveSessions-busy, 0)*own
	if free <= 0 {
		return own
	}
	return max(own, min(q.cfg.MaxLeases/busy, len(s.leases)+free))
}

// Holds says whether the session still has a lease.
func (s *Session) Holds(leaseID uint64) bool {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	return s.leaseLocked(leaseID) != nil
}

// leaseLocked is a lease that the session holds, or nil.
func (s *Session) leaseLocked(id uint64) *lease {
	l := s.leases[id]
	if l == nil || l.goesBack() {
		return nil
	}
	return l
}

func (s *Session) tellLocked(e Event) {
	if !s.live {
		return
	}
	switch n := len(s.events); {
	case e.Lease != nil:
	case e.Watermark != nil && n > 0 && s.events[n-1].Watermark != nil: // nobody has heard of the one before
		s.events[n-1] = e
		return
	default:
		s.answers++
	}
	s.events = append(s.events, e)
	s.signalLocked()
}

func (s *Session) signalLocked() {
	select {
	case s.signal <- struct{}{}:
	default:
	}
}

// AddCredit allows more payload bytes to be leased.
func (s *Session) AddCredit(bytes int64) error {
	if bytes <= 0 || bytes > maxCredit {
		return fmt.Errorf("%w credit of %d bytes", ErrInvalid, bytes)
	}
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	if !s.live {
		return s.goneLocked()
	}
	if s.withheld > 0 {
		s.withheld = min(s.withheld+bytes, maxCredit)
		return nil
	}
	s.creditLocked(min(bytes, maxCredit-s.credit))
	s.q.dispatchLocked(s.sub)
	if s.q.paced && s.credit > 0 { // what waits is not for it, or not yet
		s.q.roomLocked()
	}
	return nil
}

// Nack gives a lease back, not to be leased again before delay has passed, at most 15 minutes; 0
// asks for the queue's own backoff, less than 0 for none. A lease that is not held is ignored.
// why is for people.
func (s *Session) Nack(id uint64, delay time.Duration, why string) {
	q := s.q
	q.mu.Lock()
	defer q.mu.Unlock()
	l := s.leaseLocked(id)
	if l == nil || l.acking {
		return
	}
	if delay == 0 {
		delay = redeliveryDelay(l.attempt, q.cfg.Random())
	}
	delay = min(delay, maxNackDelay)
	q.returnLeaseLocked(l, q.clock()+int64(delay))
	q.parkedLocked(s, l, delay, why)
	q.dispatchLocked(s.sub)
}

// Extend moves the deadline of the leases; those that are not held come back as Revoked.
func (s *Session) Extend(ids []uint64) {
	for some := range slices.Chunk(ids, idsAtOnce) {
		s.extend(some)
	}
}

func (s *Session) extend(ids []uint64) {
	q := s.q
	q.mu.Lock()
	defer q.mu.Unlock()
	var gone []uint64
	for _, id := range ids {
		if l := s.leaseLocked(id); l != nil {
			q.extendLocked(l)
		} else {
			gone = append(gone, id)
		}
	}
	if len(gone) > 0 {
		s.tellLocked(Event{Revoked: gone})
	}
}

// Close ends the session: its leases go to others, and so does its sink state.
func (s *Session) Close() {
	var leases []*lease
	if s.q.hold(func() bool {
		if !s.live {
			return false
		}
		leases = s.leaveLocked(ErrClosed)
		return true
	}) {
		s.giveUp(leases)
	}
}

// leaveLocked ends a session that is live, and returns its leases. Its owner hears why. giveUp
// must follow.
func (s *Session) leaveLocked(why error) []*lease {
	if !s.live {
		return nil
	}
	s.endLocked(why)
	s.q.partLocked(s)
	return slices.Collect(maps.Values(s.leases))
}

// giveUp returns the leases of a session that has ended, and puts up its sink state.
func (s *Session) giveUp(leases []*lease) {
	q := s.q
	// The last go first: with ordering, a lease takes those behind it along. As long as there are
	// some, the partition is leased to nobody else then.
	slices.SortFunc(leases, func(a, b *lease) int { return cmp.Compare(b.id, a.id) })
	for len(leases) > 0 {
		q.hold(func() bool {
			n := min(q.holdItems, len(leases))
			for _, l := range leases[:n] {
				if s.leases[l.id] == l && !l.acking { // not revoked meanwhile
					q.returnOneLocked(l, q.clock())
				}
			}
			leases = leases[n:]
			return false
		})
	}
	q.hold(func() bool {
		q.buryLocked(s)
		q.dispatchLocked(s.sub)
		return false
	})
}

// goneLocked is what a dead session's owner is told.
func (s *Session) goneLocked() error {
	if s.why == nil || errors.Is(s.why, ErrClosed) {
		return ErrNoSession
	}
	return s.why
}

// endLocked makes the session dead to its owner, who hears why.
func (s *Session) endLocked(why error) {
	if s.live {
		s.why = why
		s.q.liveSessions--
	}
	s.live, s.events = false, nil
	s.signalLocked()
	select {
	case s.taken <- struct{}{}:
	default:
	}
}

// Damaged gives back a lease whose stored bytes cannot be read any more. They are refetched from
// Kafka, once no ack of them is being written.
func (s *Session) Damaged(id uint64, why error) {
	q := s.q
	q.mu.Lock()
	defer q.mu.Unlock()
	l := s.leaseLocked(id)
	if l == nil || l.acking {
		return
	}
	pc := l.piece
	for _, g := range pc.part.progress {
		if leased := g.leaseOf(pc.own.First); leased != nil && leased.acking { // refetched, it would be leased again before that
			q.returnLeaseLocked(l, q.clock()+int64(redeliveryDelay(l.attempt, q.cfg.Random())))
			q.dispatchLocked(s.sub)
			return
		}
	}
	q.cfg.Log.Error("stored bytes are damaged; they are refetched from Kafka", "topic", pc.part.id.Topic, "partition", pc.part.id.Number,
		"first_offset", pc.own.First, "next_offset", pc.own.Next, "error", why)
	for _, g := range pc.part.progress {
		if other := g.leaseOf(pc.own.First); other != nil {
			q.returnLeaseLocked(other, q.clock())
			if other != l { // the owner of l has not heard of it
				other.session.tellLocked(Event{Revoked: []uint64{other.id}})
			}
		}
		if g.needs(pc.own) {
			q.deferLocked(g, pc)
		}
	}
	// What was safe because these bytes were stored stays so.
	q.enqueueLocked(&change{Safe: []Start{{pc.part.id, pc.part.safe}}})
	q.refetchLocked()
	q.dispatchLocked(s.sub)
}

// buryLocked puts a dead session's sink state up for adoption, once its last ack is durable.
func (q *Queue) buryLocked(s *Session) {
	if s.live || s.acking > 0 {
		return
	}
	if len(s.state) == 0 || s.sub.deleted {
		delete(q.sessions, s.ID)
		return
	}
	s.sub.orphans = append(s.sub.orphans, s)
	q.adoptLocked(s.sub)
}

// adoptLocked hands orphaned sink state to the live session that owns the least. The journal holds
// the new owner before that one hears of it.
func (q *Queue) adoptLocked(sub *subscription) {
	if len(sub.sessions) == 0 {
		return
	}
	for _, dead := range sub.orphans {
		heir := slices.MinFunc(sub.sessions, func(a, b *Session) int { return len(a.state) - len(b.state) })
		heir.acking++ // not buried before it owns the state
		q.enqueueLocked(&change{Subscription: sub.id, Session: heir.ID, Adopt: dead.ID, done: func(q *Queue) {
			for state := range inMessages(dead.state) { // which nobody else has any more
				if heir.live {
					heir.tellLocked(Event{Adopt: &Adoption{SessionID: dead.ID, State: state}})
				}
				q.letOthersIn(len(state))
			}
			if heir.acking--; !heir.live {
				q.buryLocked(heir)
			}
		}})
	}
	sub.orphans = nil
}

// inMessages yields copies of parts of the state, each small enough for a message.
func inMessages(state map[string][]byte) iter.Seq[map[string][]byte] {
	return func(yield func(map[string][]byte) bool) {
		part, bytes := make(map[string][]byte), 0
		for key, value := range state {
			if size := stateSize(key, value); bytes+size > adoptBytes && bytes > 0 {
				if !yield(part) {
					return
				}
				part, bytes = make(map[string][]byte), 0
			}
			part[key] = value
			bytes += stateSize(key, value)
		}
		yield(part)
	}
}
