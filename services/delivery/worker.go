package delivery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/backoff"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

const (
	drainTimeout  = 30 * time.Second // for the sink to finish what it holds
	closeTimeout  = 5 * time.Second  // for the buffer to end its side of a stream
	defaultMemory = 64 << 20
)

// Deps is what code injects.
type Deps struct {
	Log        *slog.Logger
	Registerer prometheus.Registerer // may be nil
	// OnReady is called when readiness changes, with the reason when not ready. It may be nil, and
	// must not call the service.
	OnReady func(ready bool, reason string)
	// Instance names this process in logs and the admin API; empty is the host's name.
	Instance string
	// Dial connects to the buffer; nil is rpc.Dial.
	Dial func(addr string) (*grpc.ClientConn, error)
}

// Service delivers one subscription to one Sink. New starts nothing; Run holds one session after the
// other.
type Service struct {
	name   string
	kind   string
	buffer string
	cfg    sessionConfig
	sink   Sink
	deps   Deps
	log    *slog.Logger

	counters    counters
	link        *backoff.Trouble // with the buffer
	destination *backoff.Trouble

	mu       sync.Mutex
	session  *session // nil when there is none
	paused   bool
	draining bool
	ready    bool
	reason   string
}

// New prepares the delivery called name. The sink is the service's from now on: when it is an
// io.Closer, Run closes it at its end.
func New(name string, cfg *config.Delivery, buffers []string, sink Sink, deps Deps) (*Service, error) {
	if len(buffers) != 1 {
		if len(buffers) == 0 {
			return nil, errors.New("no buffer address is configured")
		}
		return nil, fmt.Errorf("buffers: several buffers (shards) are not supported yet; there are %d", len(buffers))
	}
	ordering := sink.Ordering()
	switch cfg.Ordering {
	case "":
	case "partition":
		ordering = spillwayv1.Ordering_ORDERING_PARTITION
	case "none":
		ordering = spillwayv1.Ordering_ORDERING_NONE
	default:
		return nil, fmt.Errorf("delivery.%s.ordering is %q: want partition or none", name, cfg.Ordering)
	}
	if deps.Instance == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("name the instance: %w", err)
		}
		deps.Instance = host
	}
	if deps.Dial == nil {
		deps.Dial = rpc.Dial
	}
	memory := int64(cfg.Memory)
	if memory <= 0 {
		memory = defaultMemory
	}
	log := deps.Log.With("delivery", name, "subscription", cfg.Subscription)
	s := &Service{
		name: name, kind: kindOf(cfg), buffer: buffers[0], sink: sink, deps: deps, log: log,
		cfg:         sessionConfig{subscription: cfg.Subscription, consumer: deps.Instance, ordering: ordering, memory: memory},
		link:        backoff.NewTrouble(log, "no session with the buffer"),
		destination: backoff.NewTrouble(log, "the destination fails"),
		reason:      "not started",
	}
	if timed, ok := sink.(Timed); ok {
		s.cfg.watermarks = timed.WantsWatermarks()
	}
	s.cfg.acked = s.destination.Over
	if err := s.counters.register(deps.Registerer, name, s.held); err != nil {
		return nil, err
	}
	return s, nil
}

// kindOf names the destination for the admin API.
func kindOf(cfg *config.Delivery) string {
	switch {
	case cfg.Kafka != nil:
		return "kafka"
	case cfg.HDFS != nil && strings.HasPrefix(cfg.HDFS.URL, "file:"):
		return "file"
	default:
		return "hdfs"
	}
}

// Register adds the delivery's gRPC service.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	spillwayv1.RegisterDeliveryAdminServiceServer(r, &admin{s: s})
}

// Run delivers until ctx ends; then it finishes and acks what the sink holds, for at most 30 s, and
// closes the sink. Neither a buffer nor a destination that is away ends it.
func (s *Service) Run(ctx context.Context) error {
	conn, err := s.deps.Dial(s.buffer)
	if err != nil {
		return fmt.Errorf("connect to the buffer: %w", err)
	}
	s.run(ctx, conn)
	s.setReady(false, "stopped")
	if err := conn.Close(); err != nil {
		return fmt.Errorf("close connection to the buffer: %w", err)
	}
	if c, ok := s.sink.(io.Closer); ok {
		if err := c.Close(); err != nil {
			return fmt.Errorf("close destination: %w", err)
		}
	}
	return nil
}

func (s *Service) run(ctx context.Context, conn *grpc.ClientConn) {
	if p, ok := s.sink.(Prober); ok {
		s.setReady(false, "waiting for the destination")
		for err := p.Probe(ctx); err != nil; err = p.Probe(ctx) {
			if ctx.Err() != nil {
				return
			}
			s.setReady(false, fmt.Sprintf("waiting for the destination: %v", err))
			if s.destination.Failed(ctx, err) != nil {
				return
			}
		}
		s.destination.Over()
	}
	client := spillwayv1.NewBufferServiceClient(conn)
	s.setReady(false, "waiting for the buffer")
	for ctx.Err() == nil {
		session, err := openSession(ctx, client, s.sessionConfig(), s.log, &s.counters)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			s.setReady(false, fmt.Sprintf("waiting for the buffer: %v", err))
			if s.link.Failed(ctx, err) != nil {
				return
			}
			conn.ResetConnectBackoff() // the waiting has been done
			continue
		}
		s.link.Over()
		s.counters.sessions.Add(1)
		s.begin(session)
		err = s.serve(ctx, session)
		lost := s.finish(session)
		switch {
		case ctx.Err() != nil:
			if err != nil {
				s.log.Warn("drained incompletely; what is left is delivered by another session", "error", err)
			}
		case lost != nil:
			_ = s.link.Failed(ctx, lost) // the loop looks at ctx
		default:
			if err == nil {
				err = errors.New("the sink stopped")
			}
			_ = s.destination.Failed(ctx, err)
		}
	}
}

// sessionConfig is what the next session asks for.
func (s *Service) sessionConfig() sessionConfig {
	s.mu.Lock()
	defer s.mu.Unlock()
	cfg := s.cfg
	cfg.paused = s.paused
	return cfg
}

// begin makes the session known to the admin API.
func (s *Service) begin(session *session) {
	s.mu.Lock()
	s.session = session
	session.Pause(s.paused)
	s.mu.Unlock()
	s.log.Info("session opened", "session", session.id, "ordering", s.cfg.ordering)
	s.setReady(true, "")
}

// serve runs the sink on a session until the sink returns.
func (s *Service) serve(ctx context.Context, session *session) error {
	sinkCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- s.sink.Serve(sinkCtx, session) }()

	stop, lost := ctx.Done(), session.Lost()
	var deadline <-chan time.Time
	for {
		select {
		case err := <-served:
			return err
		case <-stop:
			stop = nil
			timer := time.NewTimer(drainTimeout)
			defer timer.Stop()
			deadline = timer.C
			s.drain(session)
		case <-lost:
			lost = nil
			cancel()
		case <-deadline:
			s.log.Warn("the sink did not finish in time", "after", drainTimeout)
			cancel()
		}
	}
}

func (s *Service) drain(session *session) {
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
	s.setReady(false, "draining")
	s.log.Info("draining", "leases", session.Held())
	session.Drain()
}

// finish ends the session and returns why it was lost, if it was. A sink that ran into its ctx's end
// may have left leases: closing hands them to other sessions.
func (s *Service) finish(session *session) (lost error) {
	lost = session.Err()
	if lost != nil {
		s.setReady(false, lost.Error())
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	session.Close(ctx)
	s.mu.Lock()
	s.session = nil
	s.mu.Unlock()
	return lost
}

func (s *Service) setReady(ready bool, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ready == ready && s.reason == reason {
		return
	}
	s.ready, s.reason = ready, reason
	if s.deps.OnReady != nil {
		s.deps.OnReady(ready, reason)
	}
}

func (s *Service) held() int {
	s.mu.Lock()
	session := s.session
	s.mu.Unlock()
	if session == nil {
		return 0
	}
	return session.Held()
}

// pause withholds batches from the sink, or stops doing so.
func (s *Service) pause(paused bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.paused != paused {
		s.log.Info("paused by the admin API", "paused", paused)
	}
	s.paused = paused
	if s.session != nil {
		s.session.Pause(paused)
	}
}
