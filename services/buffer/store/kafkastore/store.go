package kafkastore

import (
	"cmp"
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// DefaultSegmentBytes is what is written between two snapshots at least.
const DefaultSegmentBytes = 64 << 20

// snapshotEvery is how old the newest snapshot gets.
const snapshotEvery = 24 * time.Hour

// Config says which shard a store is of.
type Config struct {
	Topics Topics
	Shard  int
	// Address is where this buffer is reached, for people who ask who owns a shard.
	Address string
	// Instance is a random name of whoever opens the store. After is the epoch that it had the
	// shard in, when it opens it once more because the store failed: if another instance has had
	// the shard since, Open returns ErrFenced and leaves it to that one. 0 is for who is to have
	// it.
	Instance string
	After    int64
	// SegmentBytes is about how much is written before a snapshot replaces what came before it,
	// and how much of the payload topic is given back at a time; 0 is DefaultSegmentBytes.
	SegmentBytes int64
	// Log is told of what stops and goes on; nil discards.
	Log *slog.Logger
}

// Store is one shard of a queue, in one partition of each of two topics. It implements queue.Store
// and queue.Checker.
type Store struct {
	cfg      Config
	opts     queue.StoreOptions
	log      *slog.Logger
	want     Identity // but for the life
	identity Identity
	ctx      context.Context // of everything the store does; a store is its own lifetime
	end      context.CancelCauseFunc
	payloads *payloads
	settings func(ctx context.Context) error // checks the topics again; nil in tests without any

	w sync.Mutex // before mu: the writer's. It guards what owner and the next lines have
	owner
	fresh    bool      // nothing was appended yet
	snapshot *snapshot // under way
	since    int64     // bytes written since the last snapshot began
	last     int64     // bytes of that snapshot
	lastAt   time.Time // when it began

	mu    sync.Mutex
	dead  error  // why the store is no longer usable
	marks []mark // by begin; the first is where the journal begins

	keeping sync.Mutex // held while space is given back
	kick    chan struct{}
	done    chan struct{}
}

// Open takes a shard over from whoever has it and recovers it. It returns when the former owner
// can write nothing more that counts, and waits, until ctx ends, for a Kafka that is away. Topics
// that are not this shard's, or would lose data, are refused by name.
func Open(ctx context.Context, cfg Config, opts queue.StoreOptions) (*Store, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Shard < 0 || cfg.Shard >= cfg.Topics.Shards {
		return nil, fmt.Errorf("shard %d of %d", cfg.Shard, cfg.Topics.Shards)
	}
	t := cfg.Topics
	client := t.client() // one: a broker that throttles is left alone by all of the store
	check := func(ctx context.Context) (map[string][16]byte, error) {
		ids, err := t.check(ctx, client)
		return ids, final(err)
	}
	ids, err := keepTrying(ctx, cfg.Log, "describe the topics", func() (map[string][16]byte, error) { return check(ctx) })
	if err != nil {
		client.Close()
		return nil, fmt.Errorf("open the store of shard %d in %s: %w", cfg.Shard, t.Name, err)
	}
	journal, payload := t.logs(client, ids, cfg.Shard)
	want := Identity{JournalID: idText(ids[t.journal()]), PayloadID: idText(ids[t.payload()])}
	s, err := open(ctx, cfg, opts, want, journal, payload, func(ctx context.Context) error {
		ids, err := check(ctx)
		if ids != nil && (ids[t.journal()] != journal.id || ids[t.payload()] != payload.id) {
			err = ErrReplaced
		}
		return err
	})
	if err != nil {
		client.Close()
		return nil, fmt.Errorf("open the store of shard %d in %s: %w", cfg.Shard, t.Name, err)
	}
	return s, nil
}

// open is Open on logs, which the store closes.
func open(ctx context.Context, cfg Config, opts queue.StoreOptions, want Identity, journal, payload partitionLog, settings func(context.Context) error) (*Store, error) {
	cfg.SegmentBytes = cmp.Or(cfg.SegmentBytes, DefaultSegmentBytes)
	want.Namespace, want.Queue, want.Shard, want.Shards, want.Reader = cfg.Topics.Namespace, cfg.Topics.Queue, cfg.Shard, cfg.Topics.Shards, readerVersion
	var nonce [8]byte
	_, _ = crand.Read(nonce[:]) // never fails
	s := &Store{cfg: cfg, opts: opts, log: cfg.Log, want: want, settings: settings, payloads: &payloads{log: payload}, fresh: true, lastAt: time.Now(),
		owner: owner{journal: journal, log: cfg.Log, nonce: binary.BigEndian.Uint64(nonce[:])},
		kick:  make(chan struct{}, 1), done: make(chan struct{})}
	s.ctx, s.end = context.WithCancelCause(context.Background())
	err := mayTrim(ctx, journal, cfg.Log)
	if err == nil {
		err = mayTrim(ctx, payload, cfg.Log)
	}
	if err == nil {
		err = s.takeShard(ctx)
	}
	if err != nil {
		journal.close()
		payload.close()
		return nil, err
	}
	go s.keep()
	return s, nil
}

// mayTrim tries whether records may be deleted, without which the store would grow for ever.
func mayTrim(ctx context.Context, l partitionLog, log *slog.Logger) error {
	first, _, err := boundsOf(ctx, l, log)
	if err == nil {
		_, err = keepTrying(ctx, log, "delete no records", func() (int64, error) { return first, l.trim(ctx, first) })
	}
	return err
}

// Epoch returns a number that is larger than that of each owner before, in the same life.
func (s *Store) Epoch() int64 { return s.epoch }

// Identity returns what the store's topics say they are.
func (s *Store) Identity() Identity { return s.identity }

// fail notes the first reason why the store is no longer usable.
func (s *Store) fail(err error) {
	s.mu.Lock()
	if s.dead == nil {
		s.dead = err
	}
	s.mu.Unlock()
	s.end(err)
}

func (s *Store) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dead
}

// Check implements queue.Checker.
func (s *Store) Check() error { return s.failed() }

// Append implements queue.Store. It returns when all replicas in sync have the group, however long
// that takes: only Close, or the loss of the shard, ends it.
func (s *Store) Append(entries []queue.Entry) ([]queue.Ref, error) {
	var payloads [][]byte
	bytes := int64(0)
	for i, e := range entries {
		if e.Kind != queue.BatchEntry && (e.Kind != queue.ChangeEntry || len(e.Payload) > 0) {
			return nil, fmt.Errorf("append entry %d: kind %d cannot be stored, or not with a payload", i, e.Kind)
		}
		if e.Kind == queue.BatchEntry {
			if len(e.Payload) > payloadMessageBytes-payloadMessageBytes/8 {
				return nil, fmt.Errorf("append entry %d: a payload of %d bytes is too large for the payload topic", i, len(e.Payload))
			}
			payloads = append(payloads, e.Payload)
			bytes += int64(len(e.Payload))
		}
	}
	if limit := s.opts.DiskBytes; limit > 0 && len(payloads) > 0 && s.Stats().DiskBytes+bytes > limit {
		return nil, fmt.Errorf("append group: %w: the store's bound is %d bytes", queue.ErrNoSpace, limit)
	}
	s.w.Lock()
	defer s.w.Unlock()
	if err := s.failed(); err != nil {
		return nil, fmt.Errorf("append group: %w", err)
	}
	refs, err := s.append(entries, payloads)
	if err != nil {
		s.fail(err)
		return nil, fmt.Errorf("append group: %w", err)
	}
	s.wake()
	return refs, nil
}

func (s *Store) append(entries []queue.Entry, all [][]byte) ([]queue.Ref, error) {
	places, err := s.putPayloads(all)
	if err != nil {
		return nil, err
	}
	if err := s.snapshotFirst(); err != nil {
		return nil, err
	}
	refs := make([]queue.Ref, len(entries))
	var stream, head []byte
	n := 0
	for i, e := range entries {
		head = head[:0]
		if e.Kind == queue.BatchEntry {
			refs[i] = places[n].ref
			head = places[n].append(head)
			n++
		}
		stream = appendEntry(stream, byte(e.Kind), head, e.Meta)
	}
	if err := s.putStream(groupFrame, stream); err != nil {
		return nil, err
	}
	s.payloads.hold(places, s.cfg.SegmentBytes)
	s.fresh = false
	return refs, nil
}

// try repeats what the store does with Kafka for as long as the store lives.
func (s *Store) try(what string) func(do func() (int64, error)) (int64, error) {
	return func(do func() (int64, error)) (int64, error) { return keepTrying(s.ctx, s.log, what, do) }
}

func (s *Store) putPayloads(all [][]byte) ([]place, error) {
	if len(all) == 0 {
		return nil, nil
	}
	for _, b := range all {
		s.since += int64(len(b))
	}
	return s.payloads.put(s.ctx, all, s.try("write payloads"))
}

// putStream writes a stream of its own, in as many frames as it takes.
func (s *Store) putStream(kind byte, stream []byte) error {
	for flags := byte(firstFlag); flags&lastFlag == 0; flags &^= firstFlag {
		n := min(len(stream), frameBytes)
		if n == len(stream) {
			flags |= lastFlag
		}
		if _, err := s.putFrame(kind, flags, stream[:n]); err != nil {
			return err
		}
		stream = stream[n:]
	}
	return nil
}

// putFrame writes a frame and counts it.
func (s *Store) putFrame(kind, flags byte, value []byte) (int64, error) {
	at, err := s.put(s.ctx, kind, flags, value)
	if err != nil {
		return 0, err
	}
	n := int64(frameKeyBytes + len(value))
	s.since += n
	if s.snapshot != nil {
		s.snapshot.journal += n
	}
	s.mu.Lock()
	s.marks[len(s.marks)-1].bytes += n
	s.mu.Unlock()
	return at, nil
}

// Read implements queue.Store.
func (s *Store) Read(ref queue.Ref) ([]byte, error) {
	err := s.failed()
	var b []byte
	if err == nil {
		b, err = s.payloads.read(s.ctx, ref, s.try("read payloads"))
	}
	if err != nil {
		return nil, fmt.Errorf("read group %d: %w", ref.Group, err)
	}
	return b, nil
}

// Release implements queue.Store.
func (s *Store) Release(refs []queue.Ref) {
	if s.failed() == nil {
		s.payloads.release(refs)
		s.wake()
	}
}

// Stats implements queue.Store. What a broker has deleted it gives back minutes later, so this is
// what the store has asked for, of one replica.
func (s *Store) Stats() queue.StoreStats {
	bytes, segments := s.payloads.stats()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.marks {
		bytes += m.bytes
	}
	return queue.StoreStats{DiskBytes: bytes, Segments: len(s.marks) + max(0, segments-1)}
}

// Close implements queue.Store. It ends an Append that is under way, of which nothing is known
// then.
func (s *Store) Close() error {
	s.fail(errClosed)
	<-s.done
	s.w.Lock()
	defer s.w.Unlock()
	if n := s.snapshot; n != nil && n.parts != nil {
		n.parts.Abandon()
		n.parts = nil
	}
	return nil
}

// wake has the keeper look for something to do.
func (s *Store) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}
