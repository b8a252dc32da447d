// Package buffer is the service between ingest and delivery: it keeps queues, takes batches from
// Append streams and leases them to Consume sessions.
//
// A queue whose store fails is closed, which ends its streams, and opened again: what it then
// finds in the store is the truth. One that is kept in Kafka may be taken over by another buffer,
// and is not opened again then (shard.go). Each queue has one goroutine that opens, runs and
// reopens it; each stream has one for each direction, and an Append stream one for what is held
// back.
package buffer

import (
	"cmp"
	"context"
	crand "crypto/rand"
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

	"github.com/spillwayio/spillway/gen/externalscaler"
	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/buffer/store/kafkastore"
	"github.com/spillwayio/spillway/services/buffer/store/nutsstore"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
	"github.com/spillwayio/spillway/services/internal/shards"
	"github.com/spillwayio/spillway/services/internal/telemetry"
)

// Deps is what code injects.
type Deps struct {
	Log        *slog.Logger
	Registerer prometheus.Registerer
	// OnReady is called when readiness changes, with the reason when not ready.
	OnReady func(ready bool, reason string)
	// OpenStore opens the store of a queue in a directory of its own; nil opens a nutsstore.
	OpenStore func(dir string, o queue.StoreOptions) (queue.Store, error)
	// OpenKafka opens the store of a shard that is kept in Kafka; nil is kafkastore.Open.
	OpenKafka func(ctx context.Context, cfg kafkastore.Config, o queue.StoreOptions) (KafkaStore, error)
	// Dial connects to a buffer, as which this one answers there; nil asks nobody.
	Dial func(address string) (*grpc.ClientConn, error)
}

// KafkaStore is a store that another buffer may take over.
type KafkaStore interface {
	queue.Store
	queue.Checker
	// Epoch returns a number that is larger than that of each owner before.
	Epoch() int64
}

// Service is the buffer. New starts nothing; Run opens the queues.
type Service struct {
	cfg       config.Buffer
	deps      Deps
	queues    map[string]*managedQueue
	flight    *flight
	forecasts *forecasts
	commits   telemetry.Seconds
	syncs     telemetry.Seconds // the part of it that is the store's write and fsync
	arrivals  arrivals
	taps      taps
	flows     *flows
	accesses  []kafkaclient.Access // to the stores in Kafka
	clients   []*kafkaclient.Client
	drainFor  time.Duration // at most, before a replay begins
	advertise string        // where others reach this buffer
	instance  string        // random: who is it that answers there

	stopping chan struct{} // closed when Run's context has ended

	readyMu sync.Mutex // held while OnReady is called
	copying sync.Mutex // held while a batch is taken apart for copies: there is one at a time in memory
}

// New prepares the queues of the configuration.
func New(cfg config.Buffer, deps Deps) (*Service, error) {
	if deps.OpenStore == nil {
		deps.OpenStore = openStores(deps.Log)
	}
	if deps.OpenKafka == nil {
		deps.OpenKafka = func(ctx context.Context, cfg kafkastore.Config, o queue.StoreOptions) (KafkaStore, error) {
			return kafkastore.Open(ctx, cfg, o)
		}
	}
	s := &Service{cfg: cfg, deps: deps, queues: make(map[string]*managedQueue), flows: newFlows(), flight: newFlight(flightBytes), forecasts: newForecasts(), drainFor: drainFor,
		stopping: make(chan struct{}), advertise: cmp.Or(cfg.Advertise, addressOf(cfg.Listen)), instance: crand.Text(),
		commits: telemetry.NewCallSeconds("spillway_buffer_commit_seconds", "Time to write a group of batches and acks to disk, with its fsync.", "queue"),
		syncs:   telemetry.NewCallSeconds("spillway_buffer_store_sync_seconds", "Time of a transaction of the store to be appended to its file and synced (fsync).", "queue")}
	kept := maps.Clone(cfg.Queues)
	maps.DeleteFunc(kept, func(_ string, q *config.Queue) bool { return !q.InGroup() && cfg.Shard >= max(q.Shards, 1) })
	for name, q := range kept {
		limits, subs := configured(q)
		qc := queue.Config{
			MemoryRecords: q.Memory.Records, MemoryBytes: int64(q.Memory.Bytes),
			DiskRecords: limits.DiskRecords, DiskBytes: limits.DiskBytes, Subscriptions: subs,
			SpillAfter: q.SpillAfter, Delivered: q.CommitAfter == "delivered", LeaseDuration: q.Lease,
			FreeBatches: queue.DefaultFreeBatches / int64(len(kept)), MaxLeases: queue.DefaultMaxLeases / len(kept),
			Shards: q.Shards, ShardOf: func(cluster, topic string, partition int32) int {
				return shards.Of(cluster, topic, partition, q.Shards)
			},
			Oversize: &queue.Oversize{},
			Log:      deps.Log.With("queue", name),
		}
		m := &managedQueue{name: name, cfg: qc, shards: make(map[int]*shard), behind: behind{log: qc.Log}}
		if cfg.DataDir != "" {
			m.dir = filepath.Join(cfg.DataDir, name)
		}
		if q.Store.Kafka != nil {
			if err := s.keepInKafka(m, q); err != nil {
				return nil, err
			}
		}
		if m.group == nil {
			m.add(cfg.Shard, nil)
		}
		s.queues[name] = m
	}
	if deps.Registerer != nil {
		for _, c := range []prometheus.Collector{&collector{s}, s.commits, s.syncs} {
			if err := deps.Registerer.Register(c); err != nil {
				return nil, fmt.Errorf("register metrics: %w", err)
			}
		}
	}
	return s, nil
}

// openStores opens nutsstores. One that this process has opened before is not begun anew when its
// directory is gone: what was reported safe is in it.
func openStores(log *slog.Logger) func(string, queue.StoreOptions) (queue.Store, error) {
	var opened sync.Map // by directory
	return func(dir string, o queue.StoreOptions) (queue.Store, error) {
		_, existing := opened.Load(dir)
		s, err := nutsstore.Open(dir, nutsstore.Config{Existing: existing, Log: log}, o)
		if err != nil {
			return nil, err
		}
		opened.Store(dir, true)
		return s, nil
	}
}

var onFull = map[string]queue.OnFull{"": queue.Block, "block": queue.Block, "drop_oldest": queue.DropOldest, "defer": queue.Defer}

// Register adds the buffer's gRPC services.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	spillwayv1.RegisterBufferServiceServer(r, &server{s: s})
	spillwayv1.RegisterBufferAdminServiceServer(r, &admin{s: s})
	spillwayv1.RegisterClusterServiceServer(r, &cluster{s: s})
	externalscaler.RegisterExternalScalerServer(r, &scaler{s: s})
}

// Run keeps the queues open until ctx ends; then it writes out what is in memory and closes them.
func (s *Service) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { close(s.stopping) })()
	s.ready()
	go s.warnStray(ctx) // reads for a while; nobody waits for it
	var wg sync.WaitGroup
	wg.Go(func() { s.forecasts.run(ctx, s) })
	wg.Go(func() { s.forecasts.ages(ctx, s) })
	for _, m := range s.queues {
		if m.group != nil {
			wg.Go(func() { m.group.Run(ctx) })
			continue
		}
		for _, h := range m.here() {
			wg.Go(func() { s.own(ctx, h) })
		}
	}
	wg.Wait()
	for _, client := range s.clients {
		client.Close()
	}
	for _, access := range s.accesses {
		access.Close()
	}
	return nil
}

// ready reports whether every queue is open. Reports are made one after the other, each of the
// state at its time: of two queues that open at once, the second report must not be overtaken by
// the first.
func (s *Service) ready() {
	if s.deps.OnReady == nil {
		return
	}
	s.readyMu.Lock()
	defer s.readyMu.Unlock()
	var waiting []string
	for _, name := range s.names() {
		if trouble := s.queues[name].notOpen(); trouble != "" {
			waiting = append(waiting, fmt.Sprintf("queue %s: %s", name, trouble))
		}
	}
	s.deps.OnReady(len(waiting) == 0, strings.Join(waiting, "; "))
}

func (s *Service) names() []string { return slices.Sorted(maps.Keys(s.queues)) }

// managed finds a queue.
func (s *Service) managed(name string) (*managedQueue, error) {
	if m := s.queues[name]; m != nil {
		return m, nil
	}
	if q := s.cfg.Queues[name]; q != nil {
		return nil, fmt.Errorf("%w: queue %s has shards 0 to %d, and this buffer has shard %d of those that have so many; ask the others", errNotOwner, name, max(q.Shards, 1)-1, s.cfg.Shard)
	}
	return nil, fmt.Errorf("%w: %.200q; there are: %s", errNoQueue, name, strings.Join(s.names(), ", "))
}

// openShards finds the shards of a queue that this buffer has. There is at least one, and all are
// open: an answer without one would look complete.
func (s *Service) openShards(name string) ([]openShard, error) {
	m, err := s.managed(name)
	if err != nil {
		return nil, err
	}
	var all []openShard
	for _, h := range m.here() {
		q, err := h.queue()
		if err != nil {
			return nil, err
		}
		all = append(all, openShard{q, h})
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: %s is %s", errNotOwner, name, m.withoutShards())
	}
	return all, nil
}

// subscription splits "queue/subscription" and finds the open shards of its queue.
func (s *Service) subscription(name string) ([]openShard, string, error) {
	queueName, sub, err := splitName(name)
	if err != nil {
		return nil, "", err
	}
	all, err := s.openShards(queueName)
	return all, sub, err
}

func splitName(name string) (queueName, sub string, err error) {
	queueName, sub, ok := strings.Cut(name, "/")
	if !ok {
		err = fmt.Errorf("%w subscription name %.300q: want queue/subscription", queue.ErrInvalid, name)
	}
	return queueName, sub, err
}

// headers returns the header filters of a subscription: those of the configuration that this buffer
// has, or of the one that counts (queue.Config.Numbered).
func (s *Service) headers(o openShard, v queue.SubscriptionView) (all []*spillwayv1.HeaderFilter) {
	filters := v.Headers
	if q := s.cfg.Queues[o.name]; !o.cfg.Numbered && q != nil && q.Subscriptions[v.Name] != nil {
		filters = headerFilters(q.Subscriptions[v.Name])
	}
	for _, f := range filters {
		all = append(all, &spillwayv1.HeaderFilter{Name: f.Name, Values: f.Values, Except: f.Except})
	}
	return all
}

// headerFilters returns what a subscription of the configuration says of headers.
func headerFilters(c *config.Subscription) (all []queue.HeaderFilter) {
	for _, f := range c.Headers {
		all = append(all, queue.HeaderFilter{Name: f.Name, Values: slices.Concat(f.In, f.NotIn), Except: len(f.NotIn) > 0})
	}
	return all
}

// eachOpen calls f with every open shard, by the names of the queues.
func (s *Service) eachOpen(f func(openShard)) {
	for _, name := range s.names() {
		for _, o := range s.queues[name].open() {
			f(o)
		}
	}
}

// isGone says whether an error is the other side's or the context's, and not worth a line in the
// log.
func isGone(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, queue.ErrClosed)
}
