package delivery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/types/known/durationpb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// openTimeout bounds the wait for the buffer's answer to open.
const openTimeout = 10 * time.Second

// sessionConfig is what a session asks of the buffer.
type sessionConfig struct {
	subscription string
	consumer     string
	ordering     spillwayv1.Ordering
	memory       int64 // bound of granted credit and held payload bytes, but for one batch over it
	watermarks   bool
	paused       bool
	acked        func() // called for every accepted ack; may be nil
}

// session is the client's side of one Consume stream.
//
// Two goroutines live from openSession until Close: receive takes messages off the stream, and run
// does all that may have to wait: it sends, extends, and hands out leases and adoptions. Everybody
// else changes the state under mu and wakes run. So a slow sink holds up no ack, and a slow stream no
// receiver. What waits to be sent is bounded by the leases held and the callers waiting in Ack.
type session struct {
	id       uint64
	log      *slog.Logger
	counters *counters
	memory   int64
	duration time.Duration // of a lease
	acked    func()
	zstd     *zstd.Decoder

	stream spillwayv1.BufferService_ConsumeClient
	cancel context.CancelFunc // of the stream
	wg     sync.WaitGroup
	wake   chan struct{} // has room for one: there is something for run to do
	lost   chan struct{} // closed when the stream has ended, for whatever reason

	leases     chan *Lease // run sends and closes
	adoptions  chan *Adoption
	watermarks chan Watermark // has room for one: the newest

	mu        sync.Mutex
	err       error // why the stream ended
	paused    bool
	draining  bool
	closing   bool
	held      map[uint64]*Lease // leased and neither settled, given back nor revoked
	waiting   []*Lease          // those of held that the sink has not taken, in the buffer's order
	inherited []*Adoption       // not handed out yet
	outbox    []*spillwayv1.ConsumeRequest
	acks      map[uint64]*pendingAck
	lastAck   uint64
	credit    int64 // granted and not used up
	heldBytes int64
}

// pendingAck is an ack without an answer.
type pendingAck struct {
	leases []AckedLease
	result chan error // has room for one
}

// openSession opens a stream and returns when the buffer has accepted it. The session does not end
// with ctx; its owner must Close it.
func openSession(ctx context.Context, client spillwayv1.BufferServiceClient, cfg sessionConfig, log *slog.Logger, c *counters) (*session, error) {
	streamCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stream, opened, err := open(ctx, streamCtx, cancel, client, cfg)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("open session on %s: %w", cfg.subscription, err)
	}
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxPayloadBytes))
	if err != nil {
		cancel()
		return nil, fmt.Errorf("prepare zstd: %w", err)
	}
	s := &session{
		id: opened.SessionId, log: log.With("session", opened.SessionId), counters: c,
		memory: cfg.memory, duration: opened.LeaseDuration.AsDuration(), zstd: decoder,
		stream: stream, cancel: cancel, paused: cfg.paused, acked: cfg.acked,
		wake: make(chan struct{}, 1), lost: make(chan struct{}),
		leases: make(chan *Lease), adoptions: make(chan *Adoption), watermarks: make(chan Watermark, 1),
		held: make(map[uint64]*Lease), acks: make(map[uint64]*pendingAck),
	}
	s.wg.Go(s.receive)
	s.wg.Go(s.run)
	return s, nil
}

// open does the handshake; the end of ctx and the timeout break it off by cancelling streamCtx.
func open(ctx, streamCtx context.Context, cancel context.CancelFunc, client spillwayv1.BufferServiceClient, cfg sessionConfig) (spillwayv1.BufferService_ConsumeClient, *spillwayv1.ConsumeOpened, error) {
	stopCtx := context.AfterFunc(ctx, cancel)
	timer := time.AfterFunc(openTimeout, cancel)
	stream, opened, err := shakeHands(streamCtx, client, cfg)
	canceled, late := !stopCtx(), !timer.Stop()
	switch {
	case canceled:
		return nil, nil, ctx.Err()
	case late:
		return nil, nil, fmt.Errorf("no answer within %s", openTimeout)
	}
	return stream, opened, err
}

func shakeHands(ctx context.Context, client spillwayv1.BufferServiceClient, cfg sessionConfig) (spillwayv1.BufferService_ConsumeClient, *spillwayv1.ConsumeOpened, error) {
	stream, err := client.Consume(ctx)
	if err != nil {
		return nil, nil, err
	}
	// The reason of a failed Send is what Recv returns.
	_ = stream.Send(&spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Open{Open: &spillwayv1.ConsumeOpen{
		Subscription: cfg.subscription, Consumer: cfg.consumer, Ordering: cfg.ordering, Watermarks: cfg.watermarks}}})
	m, err := stream.Recv()
	if err != nil {
		return nil, nil, err
	}
	opened := m.GetOpened()
	if opened.GetLeaseDuration().AsDuration() <= 0 {
		return nil, nil, fmt.Errorf("%w: answered %T, want opened with a lease duration", errProtocol, m.Message)
	}
	return stream, opened, nil
}

// ID implements Session.
func (s *session) ID() uint64 { return s.id }

// Leases implements Session.
func (s *session) Leases() <-chan *Lease { return s.leases }

// Adoptions implements Session.
func (s *session) Adoptions() <-chan *Adoption { return s.adoptions }

// Watermarks implements Session.
func (s *session) Watermarks() <-chan Watermark { return s.watermarks }

// Err implements Session.
func (s *session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Lost is closed when the stream has ended.
func (s *session) Lost() <-chan struct{} { return s.lost }

// Held is the number of leases held.
func (s *session) Held() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held)
}

// Pause withholds credit and leases from the sink, or stops doing so. What was leased already stays
// here, at most the memory bound.
func (s *session) Pause(paused bool) {
	s.mu.Lock()
	s.paused = paused
	s.mu.Unlock()
	s.wakeUp()
}

// Drain grants no more credit, gives back what the sink has not taken, and closes Leases. Acks go on.
func (s *session) Drain() {
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
	s.wakeUp()
}

// Close sends what is to be sent, ends the stream, and returns when both goroutines have ended. When
// ctx ends before the buffer has ended its side, the stream is cut.
func (s *session) Close(ctx context.Context) {
	s.mu.Lock()
	s.draining, s.closing = true, true
	s.mu.Unlock()
	s.wakeUp()
	select {
	case <-s.lost:
	case <-ctx.Done():
	}
	s.cancel()
	s.wg.Wait()
	s.zstd.Close()
}

// Ack implements Session.
func (s *session) Ack(ctx context.Context, ack *Ack) error {
	p, err := s.enqueueAck(ack)
	if err != nil {
		return err
	}
	s.wakeUp()
	select {
	case err := <-p.result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *session) enqueueAck(ack *Ack) (*pendingAck, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	if s.closing {
		return nil, fmt.Errorf("%w: it is being closed", ErrSessionLost)
	}
	for _, l := range ack.Leases {
		if s.held[l.Lease.ID] != l.Lease {
			s.counters.refusedAcks.Add(1)
			return nil, fmt.Errorf("%w (lease %d)", ErrRefused, l.Lease.ID)
		}
	}
	s.lastAck++
	p := &pendingAck{leases: ack.Leases, result: make(chan error, 1)}
	s.acks[s.lastAck] = p
	s.outbox = append(s.outbox, &spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Ack{Ack: ack.message(s.lastAck)}})
	return p, nil
}

func (a *Ack) message(id uint64) *spillwayv1.Ack {
	m := &spillwayv1.Ack{Id: id}
	for _, l := range a.Leases {
		al := &spillwayv1.AckedLease{LeaseId: l.Lease.ID}
		for _, d := range l.DeadLetters {
			al.DeadLetters = append(al.DeadLetters, &spillwayv1.DeadLetter{Offset: d.Offset, Reason: d.Reason})
		}
		al.Only = l.Only
		m.Leases = append(m.Leases, al)
	}
	for _, c := range a.State {
		m.StateChanges = append(m.StateChanges, &spillwayv1.StateChange{Key: c.Key, Value: c.Value, HoldsMs: c.HoldsMs})
	}
	return m
}

// Nack implements Session.
func (s *session) Nack(l *Lease, delay time.Duration, reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[l.ID] != l || s.closing {
		return
	}
	s.releaseLocked(l)
	var d *durationpb.Duration
	if delay > 0 {
		d = durationpb.New(delay)
	}
	s.nackLocked(l.ID, d, reason)
	s.wakeUp()
}

// nackLocked queues a nack. A nil delay asks for the buffer's backoff.
func (s *session) nackLocked(id uint64, delay *durationpb.Duration, reason error) {
	s.counters.nacks.Add(1)
	s.outbox = append(s.outbox, &spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Nack{
		Nack: &spillwayv1.Nack{LeaseId: id, Delay: delay, Reason: reason.Error()}}})
}

// releaseLocked forgets a lease that is not among those waiting, and frees its bytes.
func (s *session) releaseLocked(l *Lease) {
	delete(s.held, l.ID)
	s.heldBytes -= l.bytes
}

func (s *session) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// errDraining is the reason of leases that are given back untouched.
var errDraining = errors.New("the delivery is draining")
