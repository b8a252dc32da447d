package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/rpc"
	"github.com/spillwayio/spillway/services/internal/shards"
	"github.com/spillwayio/spillway/services/internal/tracing"
)

// Deps is what code injects.
type Deps struct {
	Log        *slog.Logger
	Registerer prometheus.Registerer // may be nil
	// OnReady is called when readiness changes, with the reason when not ready. It may be nil,
	// and must not call the service.
	OnReady func(ready bool, reason string)
	// Instance names this process in logs, in the buffer and in Kafka's group; empty is the
	// host's name.
	Instance string
	// Dial connects to the buffer; nil is rpc.Dial.
	Dial func(addr string) (*grpc.ClientConn, error)
	// Tracer makes a span for each batch; nil makes none.
	Tracer *tracing.Tracer
}

// Service is the ingest. New starts nothing; Run reads.
type Service struct {
	buffers []string
	deps    Deps
	sources []*source // by name
	memory  []*memory

	mu      sync.Mutex
	waiting map[string]string // source → what it waits for before it is ready
}

// New prepares the sources of the configuration.
func New(cfg config.Ingest, buffers []string, deps Deps) (*Service, error) {
	if len(buffers) == 0 {
		return nil, errors.New("no buffer address is configured")
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
	s := &Service{buffers: buffers, deps: deps, waiting: make(map[string]string)}
	// Each queue has its part: one that takes nothing for a while, or is held back, shall not
	// hold back the others' sources.
	memory := make(map[string]*memory)
	for _, source := range cfg.Sources {
		memory[source.Queue] = nil
	}
	large := oversize{arrived: newSlot(), unpacked: newSlot()}
	for queue := range memory {
		memory[queue] = newMemory(max(int64(cfg.Memory)/int64(len(memory)), 1), large)
		s.memory = append(s.memory, memory[queue])
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Sources)) {
		s.waiting[name] = "not started"
		source, err := newSource(name, cfg.Sources[name], memory[cfg.Sources[name].Queue], deps, func(ready bool, reason string) { s.setReady(name, ready, reason) })
		if err != nil {
			return nil, fmt.Errorf("source %s: %w", name, err)
		}
		s.sources = append(s.sources, source)
	}
	if deps.Registerer != nil {
		collectors := []prometheus.Collector{&collector{s}}
		for _, source := range s.sources {
			collectors = append(collectors, prometheus.WrapCollectorWith(prometheus.Labels{"source": source.name}, source.access.Metrics("spillway_ingest_")))
		}
		for _, c := range collectors {
			if err := deps.Registerer.Register(c); err != nil {
				return nil, fmt.Errorf("register metrics: %w", err)
			}
		}
	}
	return s, nil
}

// Register adds the ingest's gRPC service.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	spillwayv1.RegisterIngestAdminServiceServer(r, &admin{s: s})
}

// Run reads until ctx ends; then it commits what is safe and leaves the groups. Neither a Kafka
// nor a buffer that is away ends it.
func (s *Service) Run(ctx context.Context) error {
	buffers, err := shards.Dial(s.buffers, s.deps.Dial)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for _, source := range s.sources {
		wg.Go(func() { source.run(ctx, buffers) })
	}
	wg.Wait()
	return buffers.Close()
}

// setReady reports readiness: every source has reached the buffer and joined its group. Topics
// may be missing.
func (s *Service) setReady(source string, ready bool, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ready {
		delete(s.waiting, source)
	} else {
		s.waiting[source] = reason
	}
	var reasons []string
	for _, name := range slices.Sorted(maps.Keys(s.waiting)) {
		reasons = append(reasons, fmt.Sprintf("source %s: %s", name, s.waiting[name]))
	}
	if s.deps.OnReady != nil {
		s.deps.OnReady(len(reasons) == 0, strings.Join(reasons, "; "))
	}
}
