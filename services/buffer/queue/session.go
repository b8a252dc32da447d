package queue

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Limits of sink state.
const (
	MaxStateKeyBytes   = 4 << 10
	MaxStateValueBytes = 64 << 10
	MaxStateEntries    = 100_000
)

// Session is a delivery's claim on a subscription. It gets leases while it has credit, owns sink
// state, and is dead for good once it is closed.
type Session struct {
	ID       uint64
	Consumer string

	q        *Queue
	sub      *subscription
	ordered  bool
	live     bool
	credit   int64
	leases   map[uint64]*lease
	state    map[string][]byte
	holds    map[string]int64 // StateChange.HoldsMs of entries of state
	acking   int              // acks being made durable
	openedAt time.Time

	watermarks bool // it wants to be told
	told       Watermark

	events []Event
	signal chan struct{} // has room for one: events are there, or the session is dead
}

// Event is something to tell the delivery; exactly one field is set.
type Event struct {
	Lease     *Lease
	Ack       *AckResult
	Adopt     *Adoption
	Revoked   []uint64
	Watermark *Watermark
}

// Lease is a batch on loan. Load fetches the payload.
type Lease struct {
	ID      uint64
	Batch   Batch // Payload may be nil before Load
	Attempt int
	Settled []Range // parts of Batch.Range that are not to be delivered
	Epoch   int64   // Settled.Epoch
	Last    bool    // nothing was waiting behind it
	ref     Ref
}

// Size is the number of payload bytes, also before Load.
func (l *Lease) Size() int64 { return max(int64(len(l.Batch.Payload)), int64(l.ref.Length)) }

// AckResult is the answer to an ack. A nil Err means durable.
type AckResult struct {
	ID  uint64
	Err error
}

// Adoption is the sink state of a dead session, now the session's own.
type Adoption struct {
	SessionID uint64
	State     map[string][]byte
}

// Ack is what a session wants settled in one durable write, all or nothing.
type Ack struct {
	ID     uint64 // chosen by the delivery
	Leases []AckedLease
	State  []StateChange
}

// AckedLease settles a lease: what is named neither filtered nor a dead letter is delivered.
type AckedLease struct {
	ID          uint64
	Filtered    []Range
	DeadLetters []DeadLetter
	// Only, when not empty, is all that is settled, ascending. The lease is kept for the rest, also when there is
	// none, until it is acked without Only or given back.
	Only []Range
}

// DeadLetter is a record that can never be delivered.
type DeadLetter struct {
	Offset int64  `json:"at"`
	Reason string `json:"why"`
}

// StateChange puts an entry of sink state, or deletes it when Value is nil.
type StateChange struct {
	Key   string `json:"k"`
	Value []byte `json:"v"` // null deletes
	// HoldsMs keeps Watermark.Complete below it while the entry is there; 0 does not.
	HoldsMs int64 `json:"holds,omitempty"`
}

// Events waits until there is something to tell, and returns all of it.
func (s *Session) Events(ctx context.Context) ([]Event, error) {
	for {
		s.q.mu.Lock()
		events, live := s.takeEventsLocked(), s.live
		s.q.mu.Unlock()
		if len(events) > 0 {
			return events, nil
		}
		if !live {
			return nil, ErrClosed
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
	events := slices.DeleteFunc(s.events, func(e Event) bool {
		if e.Lease == nil || s.leases[e.Lease.ID] != nil {
			return false
		}
		s.credit += e.Lease.Size()
		return true
	})
	s.events = nil
	return events
}

// Holds says whether the session still has a lease.
func (s *Session) Holds(leaseID uint64) bool {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	return s.leases[leaseID] != nil
}

func (s *Session) tellLocked(e Event) {
	if !s.live {
		return
	}
	s.events = append(s.events, e)
	select {
	case s.signal <- struct{}{}:
	default:
	}
}

// AddCredit allows more payload bytes to be leased.
func (s *Session) AddCredit(bytes int64) error {
	if bytes <= 0 {
		return fmt.Errorf("%w credit of %d bytes", ErrInvalid, bytes)
	}
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	if !s.live {
		return ErrNoSession
	}
	s.credit += bytes
	s.q.dispatchLocked(s.sub)
	if s.q.paced && s.credit > 0 { // what waits is not for it, or not yet
		s.q.roomLocked()
	}
	return nil
}

// Ack asks for a durable write. Its result comes as an Event. An error is returned for what is
// malformed; a lease that is not held is a result, ErrLeaseGone.
func (s *Session) Ack(a Ack) error {
	if err := a.validate(); err != nil {
		return err
	}
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	if !s.live {
		return ErrNoSession
	}
	leases := make([]*lease, 0, len(a.Leases))
	for _, al := range a.Leases {
		l := s.leases[al.ID]
		if l == nil || l.acking {
			s.tellLocked(Event{Ack: &AckResult{ID: a.ID, Err: fmt.Errorf("ack %d: lease %d: %w", a.ID, al.ID, ErrLeaseGone)}})
			return nil
		}
		if err := al.validate(l.piece.batch); err != nil {
			return err
		}
		leases = append(leases, l)
	}
	if n := len(s.state) + len(a.State); n > MaxStateEntries {
		return fmt.Errorf("%w ack: %d entries of sink state, at most %d", ErrInvalid, n, MaxStateEntries)
	}
	for _, l := range leases {
		l.acking = true
	}
	s.acking++
	s.q.enqueueLocked(s.ackChange(a, leases))
	return nil
}

func (a *Ack) validate() error {
	ids := make(map[uint64]struct{}, len(a.Leases))
	for _, l := range a.Leases {
		if _, twice := ids[l.ID]; twice {
			return fmt.Errorf("%w ack %d: lease %d is in it twice", ErrInvalid, a.ID, l.ID)
		}
		ids[l.ID] = struct{}{}
	}
	for _, c := range a.State {
		if c.Key == "" || len(c.Key) > MaxStateKeyBytes || len(c.Value) > MaxStateValueBytes {
			return fmt.Errorf("%w ack %d: state key of %d bytes (1 to %d) with value of %d bytes (at most %d)",
				ErrInvalid, a.ID, len(c.Key), MaxStateKeyBytes, len(c.Value), MaxStateValueBytes)
		}
	}
	return nil
}

func (al *AckedLease) validate(batch Range) error {
	for _, r := range al.Filtered {
		if r.First >= r.Next || r.First < batch.First || r.Next > batch.Next {
			return fmt.Errorf("%w ack of lease %d: filtered range [%d,%d) is not inside [%d,%d)", ErrInvalid, al.ID, r.First, r.Next, batch.First, batch.Next)
		}
	}
	for _, d := range al.DeadLetters {
		if d.Offset < batch.First || d.Offset >= batch.Next {
			return fmt.Errorf("%w ack of lease %d: dead letter %d is not inside [%d,%d)", ErrInvalid, al.ID, d.Offset, batch.First, batch.Next)
		}
	}
	for i, r := range al.Only {
		if r.First >= r.Next || r.First < batch.First || r.Next > batch.Next || i > 0 && r.First < al.Only[i-1].Next {
			return fmt.Errorf("%w ack of lease %d: range [%d,%d) is not inside [%d,%d), or not behind the one before it",
				ErrInvalid, al.ID, r.First, r.Next, batch.First, batch.Next)
		}
	}
	return nil
}

// settles is what of own the ack settles.
func (al *AckedLease) settles(own Range) []Range {
	if len(al.Only) == 0 {
		return []Range{own}
	}
	var parts []Range
	for _, r := range al.Only {
		if r = (Range{max(r.First, own.First), min(r.Next, own.Next)}); r.Len() > 0 {
			parts = append(parts, r)
		}
	}
	return parts
}

// ackChange is the journal's form of an ack.
func (s *Session) ackChange(a Ack, leases []*lease) *change {
	c := &change{Subscription: s.sub.id, Session: s.ID, State: a.State}
	for i, l := range leases {
		for _, part := range a.Leases[i].settles(l.piece.own) {
			settle := settleChange{Partition: l.progress.part.id, Range: part}
			for _, r := range a.Leases[i].Filtered {
				if r = (Range{max(r.First, part.First), min(r.Next, part.Next)}); r.Len() > 0 {
					settle.Except = append(settle.Except, Interval{r, Filtered})
				}
			}
			for _, d := range a.Leases[i].DeadLetters {
				if d.Offset >= part.First && d.Offset < part.Next {
					settle.DeadLetters = append(settle.DeadLetters, d)
				}
			}
			c.Settle = append(c.Settle, settle)
		}
	}
	c.done = func(q *Queue) {
		for i, l := range leases {
			if len(a.Leases[i].Only) == 0 {
				q.endLeaseLocked(l)
			}
		}
		s.acking--
		if s.live {
			s.tellLocked(Event{Ack: &AckResult{ID: a.ID}})
		} else {
			q.buryLocked(s)
		}
		for i, l := range leases {
			if len(a.Leases[i].Only) > 0 {
				q.keepLeaseLocked(l)
			}
		}
		q.dispatchLocked(s.sub)
	}
	return c
}

// Nack gives a lease back, not to be leased again before delay has passed; 0 asks for the queue's own
// backoff, less than 0 for none. A lease that is not held is ignored.
func (s *Session) Nack(id uint64, delay time.Duration) {
	q := s.q
	q.mu.Lock()
	defer q.mu.Unlock()
	l := s.leases[id]
	if l == nil || l.acking {
		return
	}
	if delay == 0 {
		delay = redeliveryDelay(l.attempt, q.cfg.Random())
	}
	q.returnLeaseLocked(l, q.cfg.Now().Add(delay))
	q.dispatchLocked(s.sub)
}

// Extend moves the deadline of the leases; those that are not held come back as Revoked.
func (s *Session) Extend(ids []uint64) {
	q := s.q
	q.mu.Lock()
	defer q.mu.Unlock()
	deadline := q.cfg.Now().Add(q.cfg.LeaseDuration)
	var gone []uint64
	for _, id := range ids {
		if l := s.leases[id]; l != nil {
			l.deadline = deadline
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
	q := s.q
	q.mu.Lock()
	defer q.mu.Unlock()
	if !s.live {
		return
	}
	s.endLocked()
	s.sub.sessions = slices.DeleteFunc(s.sub.sessions, func(x *Session) bool { return x == s })
	now := q.cfg.Now()
	for _, id := range slices.Sorted(maps.Keys(s.leases)) {
		if l := s.leases[id]; l != nil && !l.acking { // ordering may have taken it with an earlier one
			q.returnLeaseLocked(l, now)
		}
	}
	q.buryLocked(s)
	q.dispatchLocked(s.sub)
}

// endLocked makes the session dead to its owner.
func (s *Session) endLocked() {
	s.live, s.events = false, nil
	select {
	case s.signal <- struct{}{}:
	default:
	}
}

// Damaged gives back a lease whose stored bytes cannot be read any more. They are refetched from Kafka, once no ack of
// them is being written.
func (s *Session) Damaged(id uint64, why error) {
	q := s.q
	q.mu.Lock()
	defer q.mu.Unlock()
	l := s.leases[id]
	if l == nil || l.acking {
		return
	}
	pc := l.piece
	for _, g := range pc.part.progress {
		if i, leased := g.leaseIndex(pc.own.First); leased && g.leases[i].acking { // refetched, it would be leased again before that
			q.returnLeaseLocked(l, q.cfg.Now().Add(redeliveryDelay(l.attempt, q.cfg.Random())))
			q.dispatchLocked(s.sub)
			return
		}
	}
	q.cfg.Log.Error("stored bytes are damaged; they are refetched from Kafka", "topic", pc.part.id.Topic, "partition", pc.part.id.Number,
		"first_offset", pc.own.First, "next_offset", pc.own.Next, "error", why)
	for _, g := range pc.part.progress {
		if i, leased := g.leaseIndex(pc.own.First); leased {
			other := g.leases[i]
			q.returnLeaseLocked(other, q.cfg.Now())
			if other != l { // the owner of l has not heard of it
				other.session.tellLocked(Event{Revoked: []uint64{other.id}})
			}
		}
		if g.needs(pc.own) {
			q.deferLocked(g, pc)
		}
	}
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
			heir.acking--
			if heir.live {
				heir.tellLocked(Event{Adopt: &Adoption{SessionID: dead.ID, State: maps.Clone(dead.state)}})
			} else {
				q.buryLocked(heir)
			}
		}})
	}
	sub.orphans = nil
}
