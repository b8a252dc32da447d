package queue

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"sort"
	"time"
)

// AckResult is the answer to an ack. A nil Err means durable.
type AckResult struct {
	ID  uint64
	Err error
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
	// Only, when not empty, is all that is settled, ascending. The lease is kept for the rest,
	// also when there is none, until it is acked without Only or given back.
	Only []Range
	// Copies are batches to keep of DeadLetters, each of consecutive ones and with the records of
	// all its offsets; the queue keeps their payloads.
	Copies []Batch
}

// DeadLetter is the records from Offset up to Next that can never be delivered. Next is 0 for
// Offset+1: older journals have one record in each.
type DeadLetter struct {
	Offset int64  `json:"at"`
	Next   int64  `json:"to,omitempty"`
	Reason string `json:"why"`
}

// offsets returns the range that is dead.
func (d *DeadLetter) offsets() Range {
	if d.Next == 0 {
		return Range{d.Offset, d.Offset + 1}
	}
	return Range{d.Offset, d.Next}
}

// StateChange puts an entry of sink state, or deletes it when Value is nil.
type StateChange struct {
	Key   string `json:"k"`
	Value []byte `json:"v"` // null deletes
	// HoldsMs keeps Watermark.Complete below it while the entry is there; 0 does not.
	HoldsMs int64 `json:"holds,omitempty"`
	AtMs    int64 `json:"at,omitempty"` // when it was put, in ms since the Unix epoch; Ack fills it in
}

// Ack asks for a durable write. Its result comes as an Event. An error is returned for what is
// malformed; a lease that is not held is a result, ErrLeaseGone.
func (s *Session) Ack(a Ack) error {
	if err := a.validate(); err != nil {
		return err
	}
	a.sort()
	leases, err := s.find(&a)
	if leases == nil || err != nil {
		return err
	}
	// Between the two holds of the lock: an ack may be of 100,000 leases, and what this reads of
	// them does not change.
	for i := range a.State {
		a.State[i].AtMs = 0
		if a.State[i].Value != nil {
			a.State[i].AtMs = s.q.cfg.Now().UnixMilli()
		}
	}
	last := make(map[string]int, len(a.State)) // the size of the last value put under a key, 0 for none
	for i := range a.State {
		last[a.State[i].Key] = stateSize(a.State[i].Key, a.State[i].Value)
	}
	c := s.ackChange(a, leases)
	c.Settle = a.settle(leases, s.q.cfg.Now())
	if err := c.addCopies(&a, leases); err != nil {
		return err
	}
	if bytes, _ := c.cost(); bytes > maxChangeBytes {
		return fmt.Errorf("%w ack %d: it takes about %d bytes to note, at most %d", ErrInvalid, a.ID, bytes, maxChangeBytes)
	}
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	if !s.live {
		return s.goneLocked()
	}
	for _, l := range leases {
		if x := s.leaseLocked(l.id); x == nil || x.acking {
			s.refuseLocked(a.ID, l.id)
			return nil
		}
	}
	if err := s.stateFitsLocked(last); err != nil {
		return fmt.Errorf("ack %d: %w", a.ID, err)
	}
	for _, l := range leases {
		l.acking = true
	}
	s.acking++
	s.q.enqueueLocked(c)
	return nil
}

// stateFitsLocked returns an error when the session would have too much sink state after changes,
// which are sizes by key. What makes it no larger always fits.
func (s *Session) stateFitsLocked(changes map[string]int) error {
	var entries int
	var bytes int64
	for key, size := range changes {
		value, had := s.state[key]
		if size > 0 {
			entries++
		}
		if had {
			entries--
			size -= stateSize(key, value)
		}
		bytes += int64(size)
	}
	if n := len(s.state) + entries; entries > 0 && n > MaxStateEntries {
		return fmt.Errorf("%w ack: %d entries of sink state, at most %d", ErrInvalid, n, MaxStateEntries)
	}
	if n := s.sub.stateBytes + bytes; bytes > 0 && n > MaxStateBytes {
		return fmt.Errorf("%w ack: the sessions of subscription %s would keep %d bytes of sink state, at most %d",
			ErrInvalid, s.sub.Name, n, MaxStateBytes)
	}
	return nil
}

// stateSize is what an entry counts in memory. It is 0 when there is no value.
func stateSize(key string, value []byte) int {
	if value == nil {
		return 0
	}
	return len(key) + len(value) + stateOverhead
}

// find is the leases of an ack, or nil when it is refused.
func (s *Session) find(a *Ack) ([]*lease, error) {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	if !s.live {
		return nil, s.goneLocked()
	}
	leases := make([]*lease, 0, len(a.Leases))
	for i := range a.Leases {
		al := &a.Leases[i]
		l := s.leaseLocked(al.ID)
		if l == nil || l.acking {
			s.refuseLocked(a.ID, al.ID)
			return nil, nil
		}
		if err := al.validate(l.piece.batch); err != nil {
			return nil, err
		}
		leases = append(leases, l)
	}
	return leases, nil
}

// refuseLocked answers an ack that is of a lease which is not held.
func (s *Session) refuseLocked(ack, lease uint64) {
	s.tellLocked(Event{Ack: &AckResult{ID: ack, Err: fmt.Errorf("ack %d: lease %d: %w", ack, lease, ErrLeaseGone)}})
}

func (a *Ack) validate() error {
	items := len(a.Leases) + len(a.State)
	for _, l := range a.Leases {
		items += len(l.Filtered) + len(l.DeadLetters) + len(l.Only)
	}
	if items > maxAckItems {
		return fmt.Errorf("%w ack %d: %d leases, ranges, dead letters and entries of state, at most %d in one ack", ErrInvalid, a.ID, items, maxAckItems)
	}
	ids := make(map[uint64]struct{}, len(a.Leases))
	for _, l := range a.Leases {
		if _, twice := ids[l.ID]; twice {
			return fmt.Errorf("%w ack %d: lease %d is in it twice", ErrInvalid, a.ID, l.ID)
		}
		ids[l.ID] = struct{}{}
	}
	if n := len(a.State); n > 2*MaxStateEntries { // enough to replace all of them
		return fmt.Errorf("%w ack %d: %d changes of sink state, at most %d", ErrInvalid, a.ID, n, 2*MaxStateEntries)
	}
	for _, c := range a.State {
		if c.Key == "" || len(c.Key) > MaxStateKeyBytes || len(c.Value) > MaxStateValueBytes {
			return fmt.Errorf("%w ack %d: state key of %d bytes (1 to %d) with value of %d bytes (at most %d)",
				ErrInvalid, a.ID, len(c.Key), MaxStateKeyBytes, len(c.Value), MaxStateValueBytes)
		}
	}
	return nil
}

// sort sorts what the leases name by offset, and has neither filtered ranges nor dead letters
// overlap, so that each part of a lease finds its own.
func (a *Ack) sort() {
	for i := range a.Leases {
		al := &a.Leases[i]
		slices.SortFunc(al.Filtered, func(a, b Range) int { return cmp.Compare(a.First, b.First) })
		joined := al.Filtered[:0]
		for _, r := range al.Filtered {
			if n := len(joined); n > 0 && r.First < r.Next && r.First <= joined[n-1].Next {
				joined[n-1].Next = max(joined[n-1].Next, r.Next)
				continue
			}
			joined = append(joined, r)
		}
		al.Filtered = joined
		slices.SortStableFunc(al.DeadLetters, func(a, b DeadLetter) int { return cmp.Compare(a.Offset, b.Offset) })
		dead := al.DeadLetters[:0]
		for _, d := range al.DeadLetters {
			r := d.offsets()
			malformed := r.Len() <= 0 // validate refuses it
			if n := len(dead); n > 0 && !malformed {
				r.First = max(r.First, dead[n-1].Next)
			}
			if n := len(dead); n > 0 && !malformed && r.First == dead[n-1].Next && d.Reason == dead[n-1].Reason {
				dead[n-1].Next = max(r.Next, r.First)
				continue
			}
			if malformed || r.Len() > 0 {
				dead = append(dead, DeadLetter{Offset: r.First, Next: r.Next, Reason: d.Reason})
			}
		}
		al.DeadLetters = dead
	}
}

func (al *AckedLease) validate(batch Range) error {
	for _, r := range al.Filtered {
		if r.First >= r.Next || r.First < batch.First || r.Next > batch.Next {
			return fmt.Errorf("%w ack of lease %d: filtered range [%d,%d) is not inside [%d,%d)", ErrInvalid, al.ID, r.First, r.Next, batch.First, batch.Next)
		}
	}
	for _, d := range al.DeadLetters {
		if r := d.offsets(); r.First >= r.Next || r.First < batch.First || r.Next > batch.Next {
			return fmt.Errorf("%w ack of lease %d: dead letters [%d,%d) are not inside [%d,%d)", ErrInvalid, al.ID, r.First, r.Next, batch.First, batch.Next)
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
func (al *AckedLease) settles(own Range) iter.Seq[Range] {
	return func(yield func(Range) bool) {
		if len(al.Only) == 0 {
			yield(own)
			return
		}
		for _, r := range al.Only {
			if r = (Range{max(r.First, own.First), min(r.Next, own.Next)}); r.Len() > 0 && !yield(r) {
				return
			}
		}
	}
}

// ackChange returns what the journal has of an ack, without what Ack.settle returns.
func (s *Session) ackChange(a Ack, leases []*lease) *change {
	c := &change{Subscription: s.sub.id, Session: s.ID, State: a.State}
	c.done = func(q *Queue) {
		for i, l := range leases {
			if len(a.Leases[i].Only) == 0 {
				q.endLeaseLocked(l)
				q.letOthersIn(1)
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
				q.letOthersIn(1)
			}
		}
		q.dispatchLocked(s.sub)
	}
	return c
}

// settle is what the ack of the leases settles. It needs no lock: what it reads of leases does
// not change.
func (a *Ack) settle(leases []*lease, now time.Time) []settleChange {
	changes := make([]settleChange, 0, len(leases))
	for i, l := range leases {
		for part := range a.Leases[i].settles(l.piece.own) {
			settle := settleChange{Partition: l.progress.part.id, First: l.progress.part.first, Range: part}
			filtered, dead := a.Leases[i].Filtered, a.Leases[i].DeadLetters
			for k := sort.Search(len(filtered), func(k int) bool { return filtered[k].Next > part.First }); k < len(filtered) && filtered[k].First < part.Next; k++ {
				settle.Except = append(settle.Except, Interval{Range{max(filtered[k].First, part.First), min(filtered[k].Next, part.Next)}, Filtered})
			}
			for k := sort.Search(len(dead), func(k int) bool { return dead[k].Next > part.First }); k < len(dead) && dead[k].Offset < part.Next; k++ {
				d := dead[k]
				if d.Offset, d.Next = max(d.Offset, part.First), min(d.Next, part.Next); d.Next == d.Offset+1 {
					d.Next = 0
				}
				settle.DeadLetters, settle.AtMs = append(settle.DeadLetters, d), now.UnixMilli()
			}
			changes = append(changes, settle)
		}
	}
	return changes
}
