package buffer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/buffer/store/kafkastore"
	"github.com/spillwayio/spillway/services/internal/backoff"
)

// What opens and closes the queue of a shard is here, and nowhere else: own for an owner that is
// fixed by the configuration, keepOpen for whoever is told when the shard is this buffer's
// (group.go).

// own keeps the queue of a shard open that the configuration gives to this buffer, until ctx ends.
// What was lost stays lost: two buffers that are both configured to have a shard would take it
// from each other for ever.
func (s *Service) own(ctx context.Context, h *shard) {
	err := s.keepOpen(ctx, h)
	if err == nil {
		return
	}
	todo := "if the other buffer is to have the shard, stop this one; else stop the other one, and start this one again"
	if !errors.Is(err, kafkastore.ErrFenced) {
		todo = "find out who has deleted, restored or emptied the topics; start this buffer again when they are right"
	}
	s.deps.Log.Error("the shard is not this buffer's any more: nothing of it is answered, and it is not opened again", "queue", h.name, "shard", h.number, "error", err, "todo", todo)
	<-ctx.Done()
	s.set(h, nil, "closed")
}

// stableAfter is how long a queue must have been open before its next failure counts as a new
// trouble, with a short wait and a line in the log of its own.
const stableAfter = time.Minute

// keepOpen owns a shard until ctx ends: it opens the queue, runs it, and opens it again after
// backoff when its store failed. The backoff goes on over a queue that opens and fails soon
// afterwards. An error says that the shard is lost: another buffer has taken it over
// (kafkastore.ErrFenced), or its topics were replaced (kafkastore.ErrReplaced). The queue is
// closed then, and may be opened again only by whoever knows that the shard is to be here.
func (s *Service) keepOpen(ctx context.Context, h *shard) error {
	failing := backoff.NewTrouble(h.logTo(s.deps.Log.With("queue", h.name)), "queue is not open", "queue is open")
	s.setLost(h, false)
	attempt := opening{instance: rand.Text()}
	for {
		o, err := s.open(ctx, h, attempt)
		if err == nil {
			attempt.after = o.epoch
			err = s.run(ctx, h, o, failing)
		}
		switch {
		case ctx.Err() != nil:
			s.set(h, nil, "closed")
			if err != nil && !errors.Is(err, context.Canceled) {
				s.deps.Log.Error("queue did not close cleanly; what it did not report safe is read from Kafka again", "queue", h.name, "error", err)
			}
			return nil
		case errors.Is(err, kafkastore.ErrFenced):
			s.setLost(h, true)
			s.set(h, nil, fmt.Sprintf("fenced: %v", err))
			return err
		case errors.Is(err, kafkastore.ErrReplaced):
			s.setLost(h, true)
			s.set(h, nil, fmt.Sprintf("stopped: %v", err))
			return err
		}
		s.set(h, nil, fmt.Sprintf("recovering: %v", err))
		if failing.Failed(ctx, err) != nil {
			s.set(h, nil, "closed")
			return nil
		}
	}
}

func (s *Service) setLost(h *shard, lost bool) {
	h.mu.Lock()
	h.lost = lost
	h.mu.Unlock()
}

// opening is one of several attempts to have a shard. One that comes after a failure does not take
// the shard from another buffer that has had it since.
type opening struct {
	instance string
	after    uint64 // epoch of the attempt before that succeeded; 0: none
}

// opened is a queue that was opened, and not yet told to anybody.
type opened struct {
	q     *queue.Queue
	epoch uint64
	store KafkaStore // nil: it is in a directory
	since sync.Mutex
	began time.Time // of the write that is under way; zero: there is none
}

// open opens the queue. It returns as soon as ctx ends, since reading a large store takes a
// while; the queue is closed again once it is open.
func (s *Service) open(ctx context.Context, h *shard, attempt opening) (*opened, error) {
	type result struct {
		o   *opened
		err error
	}
	done := make(chan result, 1)
	o := &opened{}
	cfg := h.config()
	go func() {
		var err error
		o.q, err = queue.Open(cfg, func(opts queue.StoreOptions) (queue.Store, error) { return s.openStore(ctx, h, attempt, o, opts) })
		done <- result{o, err}
	}()
	select {
	case r := <-done:
		return r.o, r.err
	case <-ctx.Done():
	}
	select {
	case r := <-done:
		return r.o, r.err
	default:
	}
	s.deps.Log.Info("stopping while the queue is being opened; what is stored stays as it is", "queue", h.name)
	go func() {
		if r := <-done; r.err == nil {
			_ = r.o.q.Run(ctx) // closes the store
		}
	}()
	return nil, ctx.Err()
}

// openStore opens the store of a queue and has its commits timed.
func (s *Service) openStore(ctx context.Context, h *shard, attempt opening, o *opened, opts queue.StoreOptions) (queue.Store, error) {
	if err := h.checkPlace(); err != nil {
		return nil, err
	}
	var store queue.Store
	var err error
	if h.kafka != nil {
		cfg := *h.kafka
		cfg.Shard, cfg.Instance, cfg.After = h.number, attempt.instance, int64(attempt.after)
		if o.store, err = s.deps.OpenKafka(ctx, cfg, opts); err == nil {
			store, o.epoch = o.store, uint64(o.store.Epoch())
		}
	} else {
		store, err = s.deps.OpenStore(h.dir, opts)
	}
	if err != nil {
		return nil, err
	}
	if t, ok := store.(interface{ OnCommit(func(time.Duration)) }); ok {
		t.OnCommit(func(d time.Duration) { s.syncs.Note(d, h.name) })
	}
	return timedStore{store, o, func(d time.Duration) { s.commits.Note(d, h.name) }}, nil
}

// run runs an open queue until it fails or ctx ends.
func (s *Service) run(ctx context.Context, h *shard, o *opened, failing *backoff.Trouble) error {
	q := o.q
	stats := q.Stats()
	log := s.deps.Log.With("queue", h.name)
	if h.kafka != nil {
		log = log.With("shard", h.number, "epoch", o.epoch)
	}
	log.Info("queue is open", "pending_records", stats.PendingRecords, "disk_bytes", stats.Store.DiskBytes)
	h.mu.Lock()
	h.epoch, h.store, h.running = q.EpochBase()+o.epoch, o.store, q
	given := h.given
	h.mu.Unlock()
	if given != nil {
		given.Watch(o.waits)
		given.Opened(o.epoch)
	}
	s.set(h, q, "open")
	stable := time.AfterFunc(stableAfter, failing.Over)
	defer stable.Stop()
	ended, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-q.Done(): // its writer may still wait for the store
			s.set(h, nil, "closing")
		case <-ended:
		}
	}()
	err := q.Run(ctx)
	close(ended)
	<-watched
	h.mu.Lock()
	h.store, h.running = nil, nil
	h.divideLocked()
	h.mu.Unlock()
	if err != nil && o.store != nil {
		_ = o.store.Close() // it may still wait for brokers that are away
	}
	return err
}
