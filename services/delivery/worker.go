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
	"github.com/spillwayio/spillway/services/delivery/transform"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/rpc"
	"github.com/spillwayio/spillway/services/internal/shards"
	"github.com/spillwayio/spillway/services/internal/tracing"
)

const (
	drainTimeout = 30 * time.Second // for the sink to finish what it holds
	closeTimeout = 5 * time.Second  // for the buffer to end its side of a stream, and for a sink to stop when told to
	// shortLived is how soon a session has failed at once when it got no ack accepted. After one,
	// the link counts as well again only when the next has done better.
	shortLived    = 10 * time.Second
	defaultMemory = 48 << 20 // as in the configuration
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
	// Tracer makes a span for each commit; nil makes none.
	Tracer *tracing.Tracer
	// Letters is written what is dead-lettered, before the buffer is told; nil is nobody. It is
	// the service's, which closes it.
	Letters LetterWriter
}

// Service delivers one subscription to one Sink. New starts nothing; Run has a link with the owner
// of each shard.
type Service struct {
	name    string
	kind    string
	buffers []string
	cfg     sessionConfig // but for what is a shard's
	sink    Sink
	deps    Deps
	log     *slog.Logger

	counters *counters

	mu         sync.Mutex
	links      []*link // by shard; only the first before it is known how many there are
	pausedHere bool    // in this instance only (pause.go)
	draining   bool
	ready      bool
	reason     string
	stuck      bool // the sink did not stop when told to: it is not closed
}

// errStuck means that a sink did not stop when told to.
var errStuck = errors.New("the destination's code does not return")

// New prepares the delivery called name. The sink is the service's from now on: when it is an
// io.Closer, Run closes it at its end.
func New(name string, cfg *config.Delivery, buffers []string, sink Sink, deps Deps) (*Service, error) {
	if len(buffers) == 0 {
		return nil, errors.New("no buffer address is configured")
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
	transforms, err := transform.New(cfg.Transforms)
	if err != nil {
		return nil, fmt.Errorf("delivery.%s: %w", name, err)
	}
	log := deps.Log.With("subscription", cfg.Subscription)
	s := &Service{
		name: name, kind: kindOf(cfg), buffers: buffers, sink: sink, deps: deps, log: log,
		cfg:      sessionConfig{subscription: cfg.Subscription, delivery: name, letters: deps.Letters, consumer: deps.Instance, ordering: ordering, memory: memory, transforms: transforms, time: newTimes(1), tracer: deps.Tracer},
		reason:   "not started",
		counters: newCounters(),
	}
	s.links = []*link{newLink(s, 0, 1)}
	if timed, ok := sink.(Timed); ok {
		s.cfg.watermarks = timed.WantsWatermarks()
	}
	files, _ := sink.(FileLister)
	if err := s.counters.register(deps.Registerer, name, s.held, files); err != nil {
		return nil, err
	}
	if m, ok := sink.(Metered); ok && deps.Registerer != nil {
		r := prometheus.WrapRegistererWith(prometheus.Labels{"delivery": name}, deps.Registerer)
		for _, c := range m.Metrics() {
			if err := r.Register(c); err != nil {
				return nil, fmt.Errorf("register metrics of the destination: %w", err)
			}
		}
	}
	return s, nil
}

// kindOf names the destination for the admin API.
func kindOf(cfg *config.Delivery) string {
	switch {
	case cfg.Manifest != nil:
		return "manifest"
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

// Run delivers until ctx ends; then it finishes and acks what the sink holds, for at most 30 s,
// and closes the sink. Neither a buffer nor a destination that is away ends it.
func (s *Service) Run(ctx context.Context) error {
	buffers, err := shards.Dial(s.buffers, s.deps.Dial)
	if err != nil {
		return err
	}
	s.run(ctx, buffers)
	s.setReady(false, "stopped")
	failed := []error{buffers.Close()}
	if s.deps.Letters != nil && !s.isStuck() {
		failed = append(failed, s.deps.Letters.Close())
	}
	if c, ok := s.sink.(io.Closer); ok && !s.isStuck() {
		if err := c.Close(); err != nil {
			failed = append(failed, fmt.Errorf("close destination: %w", err))
		}
	}
	return errors.Join(failed...)
}

// probe is Prober.Probe, but that it returns soon after ctx has ended.
func (s *Service) probe(ctx context.Context, p Prober) error {
	result := make(chan error, 1)
	go func() { result <- p.Probe(ctx) }()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-result:
		return err
	case <-time.After(closeTimeout):
		s.setStuck()
		return errStuck
	}
}

func (s *Service) isStuck() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stuck
}

func (s *Service) setStuck() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stuck = true
}

func (s *Service) run(ctx context.Context, buffers *shards.Buffers) {
	if !s.awaitDestination(ctx) {
		return
	}
	s.setReady(false, "waiting for the buffer")
	links := s.findShards(ctx, buffers)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	for _, l := range links {
		wg.Go(func() {
			l.run(ctx, buffers)
			if s.isStuck() {
				cancel() // the others drain
			}
		})
	}
	wg.Wait()
}

// awaitDestination waits for the destination to answer, and says whether it did before ctx ended.
func (s *Service) awaitDestination(ctx context.Context) bool {
	p, ok := s.sink.(Prober)
	if !ok {
		return true
	}
	destination := s.links[0].destination
	s.setReady(false, "waiting for the destination")
	for err := s.probe(ctx, p); err != nil; err = s.probe(ctx, p) {
		if ctx.Err() != nil {
			return false
		}
		s.setReady(false, fmt.Sprintf("waiting for the destination: %v", err))
		if destination.Failed(ctx, err) != nil {
			return false
		}
	}
	destination.Over()
	return true
}

// findShards waits until a buffer tells how many shards the queue has, and returns a link for
// each; none when ctx ends before.
func (s *Service) findShards(ctx context.Context, buffers *shards.Buffers) []*link {
	queue, _, _ := strings.Cut(s.cfg.subscription, "/")
	trouble := s.links[0].trouble
	n, err := buffers.Shards(ctx, queue)
	for ; err != nil; n, err = buffers.Shards(ctx, queue) {
		if ctx.Err() != nil {
			return nil
		}
		s.setReady(false, fmt.Sprintf("waiting for the buffer: %v", err))
		if trouble.Failed(ctx, err) != nil {
			return nil
		}
	}
	if n > 1 {
		trouble.Over()
		s.mu.Lock()
		s.cfg.time = newTimes(n)
		s.links = nil
		for shard := range n {
			s.links = append(s.links, newLink(s, shard, n))
		}
		s.mu.Unlock()
	}
	return s.links
}

func (s *Service) setReady(ready bool, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setReadyLocked(ready, reason)
}

func (s *Service) setReadyLocked(ready bool, reason string) {
	if s.ready == ready && s.reason == reason {
		return
	}
	s.ready, s.reason = ready, reason
	if s.deps.OnReady != nil {
		s.deps.OnReady(ready, reason)
	}
}

// sessions are those that are open now.
func (s *Service) sessions() []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*session
	for _, l := range s.links {
		if l.session != nil {
			all = append(all, l.session)
		}
	}
	return all
}

// held is how many leases all sessions have.
func (s *Service) held() int {
	n := 0
	for _, session := range s.sessions() {
		n += session.Held()
	}
	return n
}
