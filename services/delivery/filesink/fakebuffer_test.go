package filesink_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// fakeBuffer does with leases, acks and sink state what the buffer does: an ack is all or
// nothing, the state of a dead session goes to the next one, and what a dead session says has no
// effect.
type fakeBuffer struct {
	mu          sync.Mutex
	sessions    uint64
	leases      uint64
	batches     []*fakeBatch
	orphans     map[uint64]map[string][]byte // state of dead sessions
	holds       map[string]int64             // StateChange.HoldsMs of all of it
	live        *fakeSession
	deadLetters []delivery.DeadLetter
	nacks       int
	partial     int  // leases of which a part was settled
	deleted     bool // the subscription is: the session ends for that
	shards      int  // of the queue; 0 is 1
	// fate decides what becomes of an ack; nil lets all succeed. It is called under mu.
	fate func(*delivery.Ack) fate
}

type fate int

const (
	accepted   fate = iota
	refused         // a lease expired before
	lostBefore      // the stream breaks, and the ack has no effect
	lostAfter       // the ack takes effect, and the stream breaks before the answer
)

// fakeBatch is what a lease is made of.
type fakeBatch struct {
	source      *spillwayv1.SourcePartition
	first, next int64
	count       int
	ms          int64 // of its first record
	payload     []byte
	settled     bool
	parts       []*spillwayv1.OffsetRange // that are settled, ascending
	lease       *delivery.Lease           // nil when it is nobody's
	due         time.Time                 // when it may be leased again
}

// nackDelay is the fake's backoff.
const nackDelay = 10 * time.Millisecond

// fakeSession is a delivery.Session.
type fakeSession struct {
	b          *fakeBuffer
	id         uint64
	leases     chan *delivery.Lease
	adoptions  chan *delivery.Adoption
	watermarks chan delivery.Watermark // has room for one
	changed    chan struct{}           // has room for one
	lost       chan struct{}
	drained    chan struct{}
	ended      chan struct{} // the pump has
	state      map[string][]byte
	err        error // under b.mu
}

func newFakeBuffer() *fakeBuffer {
	return &fakeBuffer{sessions: 1000, orphans: make(map[uint64]map[string][]byte), holds: make(map[string]int64)}
}

// open begins a session, which inherits the state of the dead ones.
func (b *fakeBuffer) open() *fakeSession {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sessions++
	s := &fakeSession{b: b, id: b.sessions, leases: make(chan *delivery.Lease), adoptions: make(chan *delivery.Adoption, len(b.orphans)), watermarks: make(chan delivery.Watermark, 1),
		changed: make(chan struct{}, 1), lost: make(chan struct{}), drained: make(chan struct{}), ended: make(chan struct{}), state: make(map[string][]byte)}
	for _, id := range slices.Sorted(maps.Keys(b.orphans)) {
		a := &delivery.Adoption{SessionID: id}
		for _, k := range slices.Sorted(maps.Keys(b.orphans[id])) {
			a.Entries = append(a.Entries, &spillwayv1.StateEntry{Key: k, Value: b.orphans[id][k]})
			s.state[k] = b.orphans[id][k]
		}
		s.adoptions <- a
	}
	clear(b.orphans)
	b.live = s
	b.watermarkLocked()
	go s.pump()
	return s
}

// add makes a batch of records, and tells the session.
func (b *fakeBuffer) add(source *spillwayv1.SourcePartition, first int64, records ...recordbatch.Record) {
	var payload []byte
	for i := range records {
		records[i].OffsetDelta = int64(i)
		payload = recordbatch.AppendRecord(payload, &records[i])
	}
	b.addBatch(&fakeBatch{source: source, first: first, next: first + int64(len(records)), count: len(records), ms: records[0].TimestampMs, payload: payload})
}

func (b *fakeBuffer) addBatch(x *fakeBatch) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.batches = append(b.batches, x)
	b.tellLocked()
}

func (b *fakeBuffer) tellLocked() {
	if b.live != nil {
		select {
		case b.live.changed <- struct{}{}:
		default:
		}
	}
}

// watermarkLocked tells the session how far the time of records has come.
func (b *fakeBuffer) watermarkLocked() {
	w := delivery.Watermark{PassedMs: math.MaxInt64}
	for _, x := range b.batches {
		if !x.settled {
			w.PassedMs = min(w.PassedMs, x.ms)
		}
	}
	w.CompleteMs = w.PassedMs
	for _, ms := range b.holds {
		w.CompleteMs = min(w.CompleteMs, ms-1)
	}
	select {
	case <-b.live.watermarks:
	default:
	}
	b.live.watermarks <- w
}

func (b *fakeBuffer) unsettled() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, x := range b.batches {
		if !x.settled {
			n++
		}
	}
	return n
}

// settled says whether the batch at an offset is.
func (b *fakeBuffer) settled(first int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, x := range b.batches {
		if x.first == first {
			return x.settled
		}
	}
	return false
}

// entries are the keys and values of all state.
func (b *fakeBuffer) entries() (all []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	live := map[string][]byte{}
	if b.live != nil {
		live = b.live.state
	}
	for _, state := range append(slices.Collect(maps.Values(b.orphans)), live) {
		for k, v := range state {
			all = append(all, k+"="+string(v))
		}
	}
	return all
}

// stateSize is the number of entries of all sessions.
func (b *fakeBuffer) stateSize() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, s := range b.orphans {
		n += len(s)
	}
	if b.live != nil {
		n += len(b.live.state)
	}
	return n
}

// pump leases what is pending until the session drains or is lost.
func (s *fakeSession) pump() {
	defer close(s.ended)
	defer close(s.leases)
	for {
		l := s.next()
		out := s.leases
		if l == nil {
			out = nil
		}
		select {
		case out <- l:
		case <-s.changed:
			s.takeBack(l)
		case <-s.lost:
			return
		case <-s.drained:
			s.takeBack(l)
			return
		}
	}
}

func (s *fakeSession) next() *delivery.Lease {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if s.err != nil {
		return nil
	}
	waiting := func(x *fakeBatch) bool { return !x.settled && x.lease == nil }
	for _, x := range s.b.batches {
		if waiting(x) && !x.due.After(time.Now()) {
			s.b.leases++
			x.lease = delivery.NewLease(s.b.leases, x.source, x.first, x.next, x.count, x.payload, x.parts...)
			x.lease.Last = !slices.ContainsFunc(s.b.batches, waiting)
			return x.lease
		}
	}
	return nil
}

func (s *fakeSession) takeBack(l *delivery.Lease) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if x := s.b.heldLocked(l); x != nil && s.err == nil {
		x.lease = nil
	}
}

func (b *fakeBuffer) heldLocked(l *delivery.Lease) *fakeBatch {
	if l == nil {
		return nil
	}
	for _, x := range b.batches {
		if x.lease == l {
			return x
		}
	}
	return nil
}

func (s *fakeSession) ID() uint64                           { return s.id }
func (s *fakeSession) Sessions() int                        { return cmp.Or(s.b.shards, 1) }
func (s *fakeSession) LedgerID() string                     { return "ledger" }
func (s *fakeSession) Leases() <-chan *delivery.Lease       { return s.leases }
func (s *fakeSession) Adoptions() <-chan *delivery.Adoption { return s.adoptions }

func (s *fakeSession) Watermarks() <-chan delivery.Watermark { return s.watermarks }

func (s *fakeSession) Err() error {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	return s.err
}

func (s *fakeSession) Ack(ctx context.Context, ack *delivery.Ack) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b := s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	decided := accepted
	if b.fate != nil {
		decided = b.fate(ack)
	}
	if decided == refused && len(ack.Leases) > 0 {
		if x := b.heldLocked(ack.Leases[0].Lease); x != nil {
			x.lease = nil
			b.tellLocked()
		}
	}
	if decided == lostBefore {
		s.loseLocked()
		return s.err
	}
	var batches []*fakeBatch
	for _, l := range ack.Leases {
		x := b.heldLocked(l.Lease)
		if x == nil {
			return fmt.Errorf("%w (lease %d)", delivery.ErrRefused, l.Lease.ID)
		}
		batches = append(batches, x)
	}
	for i, x := range batches {
		b.deadLetters = append(b.deadLetters, ack.Leases[i].DeadLetters...)
		if only := ack.Leases[i].Only; len(only) > 0 {
			x.parts = append(slices.Clone(x.parts), only...) // the lease has the other
			slices.SortFunc(x.parts, func(a, b *spillwayv1.OffsetRange) int { return cmp.Compare(a.First, b.First) })
			b.partial++
			continue
		}
		x.settled, x.lease = true, nil
	}
	for _, c := range ack.State {
		delete(b.holds, c.Key)
		if c.HoldsMs != 0 {
			b.holds[c.Key] = c.HoldsMs
		}
		if c.Value == nil {
			delete(s.state, c.Key)
		} else {
			s.state[c.Key] = c.Value
		}
	}
	b.watermarkLocked()
	if decided == lostAfter {
		s.loseLocked()
		return s.err
	}
	return nil
}

func (s *fakeSession) Nack(l *delivery.Lease, _ time.Duration, _ error) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if x := s.b.heldLocked(l); x != nil && s.err == nil {
		s.b.nacks++
		x.lease, x.due = nil, time.Now().Add(nackDelay)
		time.AfterFunc(nackDelay, func() {
			s.b.mu.Lock()
			defer s.b.mu.Unlock()
			s.b.tellLocked()
		})
	}
}

// lose breaks the stream.
func (s *fakeSession) lose() {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.loseLocked()
}

func (s *fakeSession) loseLocked() {
	if s.err != nil {
		return
	}
	s.err = fmt.Errorf("%w: injected", delivery.ErrSessionLost)
	if s.b.deleted {
		s.err = fmt.Errorf("%w: %w", delivery.ErrSubscriptionGone, s.err)
		clear(s.state)
	}
	for _, x := range s.b.batches {
		x.lease = nil
	}
	if len(s.state) > 0 {
		s.b.orphans[s.id] = s.state
	}
	s.b.live = nil
	close(s.lost)
}

// drain closes Leases as a session does that is told to stop.
func (s *fakeSession) drain() { close(s.drained) }

// serve runs the sink on s in the background. The function it returns waits for the end, closes
// the session and returns what Serve returned.
func serve(t *testing.T, sink delivery.Sink, s *fakeSession) (wait func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- sink.Serve(ctx, s) }()
	go func() {
		select {
		case <-s.lost:
			cancel()
		case <-ctx.Done():
		}
	}()
	return func() error {
		err := <-served
		cancel()
		s.lose()
		<-s.ended
		return err
	}
}

// settleAll drains s when nothing is unsettled any more, and fails when that takes longer than a
// minute.
func settleAll(t *testing.T, b *fakeBuffer, s *fakeSession) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for b.unsettled() > 0 {
		if s.Err() != nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("not everything was delivered within a minute")
		}
		time.Sleep(time.Millisecond) // of a synctest bubble's clock
	}
	s.drain()
}
