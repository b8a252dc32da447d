// Package ingest reads Kafka and appends to the buffer. It commits to Kafka the safe offsets that the
// buffer reports and nothing else, so that what the buffer lost is read again.
//
// The way of a record: consumer.go (the group's partitions) → partition.go (fetch, make batches) →
// appender.go (the stream to the buffer). Goroutines: one per source; while it is in the group, one per
// partition, one that receives from the buffer and one that commits. Locks: none is held while another
// is taken.
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
)

// Deps is what code injects.
type Deps struct {
	Log        *slog.Logger
	Registerer prometheus.Registerer // may be nil
	// OnReady is called when readiness changes, with the reason when not ready. It may be nil, and must
	// not call the service.
	OnReady func(ready bool, reason string)
	// Instance names this process in logs, in the buffer and in Kafka's group; empty is the host's name.
	Instance string
	// Dial connects to the buffer; nil is rpc.Dial.
	Dial func(addr string) (*grpc.ClientConn, error)
}

// Service is the ingest. New starts nothing; Run reads.
type Service struct {
	buffer  string
	deps    Deps
	sources []*source // by name
	memory  []*budget

	mu      sync.Mutex
	waiting map[string]string // source → what it waits for before it is ready
}

// New prepares the sources of the configuration.
func New(cfg config.Ingest, buffers []string, deps Deps) (*Service, error) {
	switch len(buffers) {
	case 0:
		return nil, errors.New("no buffer address is configured")
	case 1:
	default:
		return nil, fmt.Errorf("buffers: several buffers (shards) are not supported yet; there are %d", len(buffers))
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
	s := &Service{buffer: buffers[0], deps: deps, waiting: make(map[string]string)}
	// Each queue has its part: one that takes nothing for a while, or is held back, shall not hold back the others' sources.
	memory := make(map[string]*budget)
	for _, source := range cfg.Sources {
		memory[source.Queue] = nil
	}
	for queue := range memory {
		memory[queue] = newBudget(max(int64(cfg.Memory)/int64(len(memory)), 1))
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
		if err := deps.Registerer.Register(&collector{s}); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return s, nil
}

// Register adds the ingest's gRPC service.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	spillwayv1.RegisterIngestAdminServiceServer(r, &admin{s: s})
}

// Run reads until ctx ends; then it commits what is safe and leaves the groups. Neither a Kafka nor a
// buffer that is away ends it.
func (s *Service) Run(ctx context.Context) error {
	conn, err := s.deps.Dial(s.buffer)
	if err != nil {
		return fmt.Errorf("connect to the buffer: %w", err)
	}
	var wg sync.WaitGroup
	for _, source := range s.sources {
		wg.Go(func() { source.run(ctx, conn) })
	}
	wg.Wait()
	if err := conn.Close(); err != nil {
		return fmt.Errorf("close connection to the buffer: %w", err)
	}
	return nil
}

// setReady reports readiness: every source has reached Kafka and the buffer. Topics may be missing.
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
