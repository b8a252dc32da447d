package delivery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/types/known/durationpb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/delivery/transform"
	"github.com/spillwayio/spillway/services/internal/rpc"
	"github.com/spillwayio/spillway/services/internal/shards"
	"github.com/spillwayio/spillway/services/internal/tracing"
)

// openTimeout bounds the wait for the buffer's answer to open.
const openTimeout = 10 * time.Second

// sessionConfig is what a session asks of the buffer.
type sessionConfig struct {
	buffer       string // its address, for errors
	subscription string
	delivery     string // its name in the configuration
	consumer     string
	ordering     spillwayv1.Ordering
	memory       int64 // bound of granted credit and held payload bytes, but for one batch over it
	watermarks   bool
	target       *spillwayv1.FlowTarget // nil: it does not produce to Kafka
	paused       bool
	letters      LetterWriter     // nil: dead letters are kept by the buffer only
	acked        func()           // called for every accepted ack; may be nil
	heard        func(bool)       // called with the buffer's word on whether the delivery is paused; may be nil
	transforms   *transform.Chain // may be nil
	time         *times           // of all shards
	seen         *shards.Seen     // the shard
	tracer       *tracing.Tracer  // may be nil
}

// session is the client's side of one Consume stream.
//
// Two goroutines live from openSession until Close: receive takes messages off the stream, and
// run does all that may have to wait: it sends, extends, and hands out leases and adoptions.
// Everybody else changes the state under mu and wakes run. So a slow sink holds up no ack, and a
// slow stream no receiver. What waits to be sent is bounded by the leases held and the callers
// waiting in Ack.
type session struct {
	id       uint64
	shard    int
	shards   int // of the queue
	time     *times
	ledger   string
	ranges   bool // the buffer takes dead letters as ranges
	log      *slog.Logger
	counters *counters
	memory   int64
	duration time.Duration // of a lease
	acked    func()
	accepted atomic.Bool // an ack was
	letters  LetterWriter
	keeps    bool // the buffer keeps whether the delivery is paused
	hears    bool // the buffer wants to know why the delivery fails
	heard    func(paused bool)
	zstd     *zstd.Decoder
	// transforms of the delivery, behind the filters of the subscription; each lease has a clone.
	transforms *transform.Chain
	tracing    traced

	stream spillwayv1.BufferService_ConsumeClient
	buffer string             // its address
	cancel context.CancelFunc // of the stream
	wg     sync.WaitGroup
	wake   chan struct{} // has room for one: there is something for run to do
	lost   chan struct{} // closed when the stream has ended, for whatever reason

	leases     chan *Lease // run sends and closes
	adoptions  chan *Adoption
	watermarks chan Watermark // has room for one: the newest
	flows      atomic.Pointer[spillwayv1.Flows]

	mu        sync.Mutex
	err       error         // why the stream ended
	paused    bool          // by Pause
	stopped   bool          // by the buffer's word
	told      chan struct{} // closed and replaced when the buffer says whether it is
	troubled  string        // the error that the buffer was told last; empty: none
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
	taken     int64 // of them, those that the sink has
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
		id: opened.SessionId, ledger: opened.LedgerId, ranges: opened.DeadLetterRanges, log: log.With("session", opened.SessionId), counters: c,
		memory: cfg.memory, duration: opened.LeaseDuration.AsDuration(), zstd: decoder,
		stream: stream, buffer: cfg.buffer, cancel: cancel, paused: cfg.paused, acked: cfg.acked,
		letters: cfg.letters, keeps: opened.KeepsPauses, hears: opened.HearsTroubles, heard: cfg.heard, told: make(chan struct{}),
		wake: make(chan struct{}, 1), lost: make(chan struct{}),
		leases: make(chan *Lease), adoptions: make(chan *Adoption), watermarks: make(chan Watermark, 1),
		held: make(map[uint64]*Lease), acks: make(map[uint64]*pendingAck), transforms: cfg.transforms.Behind(opened.Headers),
		shard: cfg.seen.Number, shards: cfg.seen.Of, time: cfg.time, tracing: traced{cfg.tracer, cfg.subscription, cfg.consumer},
	}
	s.time.join(s)
	s.hear(opened.Paused)
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
	return stream, opened, rpc.Explain(err, "buffer", cfg.buffer)
}

func shakeHands(ctx context.Context, client spillwayv1.BufferServiceClient, cfg sessionConfig) (spillwayv1.BufferService_ConsumeClient, *spillwayv1.ConsumeOpened, error) {
	stream, err := client.Consume(ctx)
	if err != nil {
		return nil, nil, err
	}
	// The reason of a failed Send is what Recv returns.
	_ = stream.Send(&spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Open{Open: &spillwayv1.ConsumeOpen{
		Subscription: cfg.subscription, Consumer: cfg.consumer, Ordering: cfg.ordering, Watermarks: cfg.watermarks, Target: cfg.target, FiltersHeaders: true, Shard: cfg.seen.Claim(), Delivery: cfg.delivery}}})
	m, err := stream.Recv()
	if err != nil {
		return nil, nil, err
	}
	opened := m.GetOpened()
	if opened.GetLeaseDuration().AsDuration() <= 0 {
		return nil, nil, fmt.Errorf("%w: answered %T, want opened with a lease duration", errProtocol, m.Message)
	}
	if err := cfg.seen.Admit(cfg.buffer, opened.LedgerId, opened.Epoch); err != nil {
		return nil, nil, err
	}
	return stream, opened, nil
}

// ID implements Session.
func (s *session) ID() uint64 { return s.id }

// Flows is what is read into the buffer and produced from it, as far as the buffer told; nil when
// it did not. It is another pointer when it is another, and nobody changes it.
func (s *session) Flows() *spillwayv1.Flows { return s.flows.Load() }

// Sessions implements Session.
func (s *session) Sessions() int { return s.shards }

// LedgerID implements Session.
func (s *session) LedgerID() string { return s.ledger }

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

// Pause withholds credit and leases from the sink, or stops doing so, whatever the buffer says.
// What was leased already stays here, at most the memory bound.
func (s *session) Pause(paused bool) {
	s.mu.Lock()
	s.paused = paused
	s.mu.Unlock()
	s.wakeUp()
}

// Drain grants no more credit, gives back what the sink has not taken, and closes Leases. Acks go
// on.
func (s *session) Drain() {
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
	s.wakeUp()
}

// Close sends what is to be sent, ends the stream, and returns when both goroutines have ended.
// When ctx ends before the buffer has ended its side, the stream is cut.
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
		Nack: &spillwayv1.Nack{LeaseId: id, Delay: delay, Reason: cutReason(reason.Error())}}})
}

// releaseLocked forgets a lease that is not among those waiting, and frees its bytes.
func (s *session) releaseLocked(l *Lease) {
	delete(s.held, l.ID)
	s.heldBytes -= l.bytes
	if l.taken {
		s.taken -= l.bytes
	}
}

func (s *session) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// errDraining is the reason of leases that are given back untouched.
var errDraining = errors.New("the delivery is draining")
