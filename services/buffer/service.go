// Package buffer is the service between ingest and delivery: it keeps queues, takes batches from
// Append streams and leases them to Consume sessions.
//
// A queue whose store fails is closed, which ends its streams, and opened again: what it then finds
// on disk is the truth. Each queue has one goroutine that opens, runs and reopens it; each stream has
// two, one for each direction.
package buffer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/buffer/store/nutsstore"
	"github.com/spillwayio/spillway/services/internal/backoff"
	"github.com/spillwayio/spillway/services/internal/config"
)

// Deps is what code injects.
type Deps struct {
	Log        *slog.Logger
	Registerer prometheus.Registerer
	// OnReady is called when readiness changes, with the reason when not ready.
	OnReady func(ready bool, reason string)
	// OpenStore opens the store of a queue in a directory of its own; nil opens a nutsstore.
	OpenStore func(dir string, o queue.StoreOptions) (queue.Store, error)
}

// Service is the buffer. New starts nothing; Run opens the queues.
type Service struct {
	cfg    config.Buffer
	deps   Deps
	queues map[string]*managedQueue
}

// managedQueue is a queue that is opened again when its store fails.
type managedQueue struct {
	name string
	cfg  queue.Config
	dir  string

	mu      sync.Mutex
	current *queue.Queue // nil while it is not open
	state   string
}

// New prepares the queues of the configuration.
func New(cfg config.Buffer, deps Deps) (*Service, error) {
	if deps.OpenStore == nil {
		deps.OpenStore = func(dir string, o queue.StoreOptions) (queue.Store, error) {
			return nutsstore.Open(dir, nutsstore.Config{}, o)
		}
	}
	s := &Service{cfg: cfg, deps: deps, queues: make(map[string]*managedQueue)}
	for name, q := range cfg.Queues {
		qc := queue.Config{
			MemoryRecords: q.Memory.Records, MemoryBytes: int64(q.Memory.Bytes),
			DiskRecords: q.Disk.Records, DiskBytes: int64(q.Disk.Bytes),
			SpillAfter: q.SpillAfter, Delivered: q.CommitAfter == "delivered", LeaseDuration: q.Lease,
			Log: deps.Log.With("queue", name),
		}
		for _, sub := range slices.Sorted(maps.Keys(q.Subscriptions)) {
			sc := q.Subscriptions[sub]
			qc.Subscriptions = append(qc.Subscriptions, queue.SubscriptionConfig{Name: sub, Topics: sc.Topics, Required: sc.Required,
				OnFull: onFull[sc.OnFull], Limit: int64(sc.Limit)})
		}
		s.queues[name] = &managedQueue{name: name, cfg: qc, dir: filepath.Join(cfg.DataDir, name), state: "opening"}
	}
	if deps.Registerer != nil {
		if err := deps.Registerer.Register(&collector{s}); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return s, nil
}

var onFull = map[string]queue.OnFull{"": queue.Block, "block": queue.Block, "drop_oldest": queue.DropOldest, "defer": queue.Defer}

// Register adds the buffer's gRPC services.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	spillwayv1.RegisterBufferServiceServer(r, &server{s: s})
	spillwayv1.RegisterBufferAdminServiceServer(r, &admin{s: s})
}

// Run keeps the queues open until ctx ends; then it writes out what is in memory and closes them.
func (s *Service) Run(ctx context.Context) error {
	s.ready()
	var wg sync.WaitGroup
	for _, m := range s.queues {
		wg.Go(func() { s.keepOpen(ctx, m) })
	}
	wg.Wait()
	return nil
}

// keepOpen opens a queue, runs it, and opens it again after backoff when its store failed.
func (s *Service) keepOpen(ctx context.Context, m *managedQueue) {
	wait := backoff.Backoff{Initial: 200 * time.Millisecond, Max: 10 * time.Second}
	failing := false
	for {
		q, err := queue.Open(m.cfg, func(o queue.StoreOptions) (queue.Store, error) { return s.deps.OpenStore(m.dir, o) })
		if err == nil {
			stats := q.Stats()
			s.deps.Log.Info("queue is open", "queue", m.name, "pending_records", stats.PendingRecords, "disk_bytes", stats.Store.DiskBytes)
			failing = false
			s.set(m, q, "open")
			err = q.Run(ctx)
			s.set(m, nil, "closed")
		}
		if ctx.Err() != nil {
			if err != nil {
				s.deps.Log.Error("queue did not close cleanly; what it did not report safe is read from Kafka again", "queue", m.name, "error", err)
			}
			return
		}
		s.set(m, nil, fmt.Sprintf("recovering: %v", err))
		if !failing {
			s.deps.Log.Error("queue is not open; trying again with backoff", "queue", m.name, "error", err)
		}
		failing = true
		if wait.Wait(ctx) != nil {
			return
		}
	}
}

func (s *Service) set(m *managedQueue, q *queue.Queue, state string) {
	m.mu.Lock()
	m.current, m.state = q, state
	m.mu.Unlock()
	s.ready()
}

// ready reports whether every queue is open.
func (s *Service) ready() {
	if s.deps.OnReady == nil {
		return
	}
	var waiting []string
	for _, name := range s.names() {
		if q, state := s.queues[name].get(); q == nil {
			waiting = append(waiting, fmt.Sprintf("queue %s: %s", name, state))
		}
	}
	s.deps.OnReady(len(waiting) == 0, strings.Join(waiting, "; "))
}

func (m *managedQueue) get() (*queue.Queue, string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.current, m.state
}

func (s *Service) names() []string { return slices.Sorted(maps.Keys(s.queues)) }

// queue finds an open queue.
func (s *Service) queue(name string) (*queue.Queue, error) {
	m := s.queues[name]
	if m == nil {
		return nil, fmt.Errorf("%w: %q; there are: %s", errNoQueue, name, strings.Join(s.names(), ", "))
	}
	q, state := m.get()
	if q == nil {
		return nil, fmt.Errorf("%w: %s is %s", errRecovering, name, state)
	}
	return q, nil
}

// subscription splits "queue/subscription" and finds its open queue.
func (s *Service) subscription(name string) (*queue.Queue, string, error) {
	queueName, sub, ok := strings.Cut(name, "/")
	if !ok {
		return nil, "", fmt.Errorf("%w subscription name %q: want queue/subscription", queue.ErrInvalid, name)
	}
	q, err := s.queue(queueName)
	return q, sub, err
}

// leaseDuration is the queue's, for "queue/subscription".
func (s *Service) leaseDuration(subscription string) time.Duration {
	name, _, _ := strings.Cut(subscription, "/")
	return s.queues[name].cfg.LeaseDuration
}

// eachOpen calls f with every open queue by name.
func (s *Service) eachOpen(f func(name string, q *queue.Queue)) {
	for _, name := range s.names() {
		if q, _ := s.queues[name].get(); q != nil {
			f(name, q)
		}
	}
}

// isGone says whether an error is the other side's or the context's, and not worth a line in the log.
func isGone(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, queue.ErrClosed)
}
