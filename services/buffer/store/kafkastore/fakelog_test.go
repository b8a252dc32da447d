package kafkastore

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/buffer/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeLog is a partition of Kafka in memory, with what a network and other owners do to it.
type fakeLog struct {
	mu      sync.Mutex
	first   int64
	records []record

	// before is called, without the lock, with what is produced. It may append to the log, and
	// return errors: the first before the records are stored, the second after.
	before func(l *fakeLog, records []record) (lost, unanswered error)
	// keeps has the log keep what is trimmed.
	keeps bool
}

var errNetwork = errors.New("connection reset")

func (l *fakeLog) produce(ctx context.Context, records []record) (int64, error) {
	l.mu.Lock()
	before := l.before
	l.mu.Unlock()
	var unanswered error
	if before != nil {
		var lost error
		if lost, unanswered = before(l, records); lost != nil {
			return 0, lost
		}
	}
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	return l.append(records...), unanswered
}

// append stores copies of records.
func (l *fakeLog) append(records ...record) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	base := l.first + int64(len(l.records))
	for _, r := range records {
		l.records = append(l.records, record{slices.Clone(r.key), slices.Clone(r.value)})
	}
	return base
}

func (l *fakeLog) read(_ context.Context, from int64, yield func(int64, record) error) (int64, error) {
	l.mu.Lock()
	if from < l.first {
		l.mu.Unlock()
		return from, errTrimmed
	}
	bytes, some := 0, []record(nil)
	for _, r := range l.records[min(from-l.first, int64(len(l.records))):] {
		some = append(some, r)
		if bytes += len(r.value); bytes > 256<<10 {
			break
		}
	}
	l.mu.Unlock()
	for _, r := range some {
		if err := yield(from, r); err != nil {
			return from, err
		}
		from++
	}
	return from, nil
}

func (l *fakeLog) bounds(context.Context) (int64, int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first, l.first + int64(len(l.records)), nil
}

func (l *fakeLog) trim(_ context.Context, before int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if end := l.first + int64(len(l.records)); before > l.first && before <= end && !l.keeps {
		l.records = slices.Clone(l.records[before-l.first:])
		l.first = before
	}
	return nil
}

func (l *fakeLog) close() {}

// fakeShard is the topics of a shard in memory.
type fakeShard struct {
	t                *testing.T
	journal, payload *fakeLog
	cfg              Config
}

func newFakeShard(t *testing.T) *fakeShard {
	f := &fakeShard{t: t, journal: &fakeLog{}, payload: &fakeLog{},
		cfg: Config{Topics: Topics{Namespace: "n", Queue: "q", Shards: 1}, SegmentBytes: storetest.SegmentBytes, Log: slog.New(slog.DiscardHandler)}}
	f.init()
	return f
}

func (f *fakeShard) init() {
	f.t.Helper()
	id := Identity{Namespace: "n", Queue: "q", Life: newLife(), Shards: 1, Reader: readerVersion}
	if _, err := writeIdentity(f.t.Context(), f.journal, &id, f.cfg.Log); err != nil {
		f.t.Fatal(err)
	}
}

// Open implements storetest.Harness.
func (f *fakeShard) Open(opts queue.StoreOptions) (queue.Store, error) {
	s, err := open(f.t.Context(), f.cfg, opts, Identity{}, f.journal, f.payload, nil)
	if err != nil {
		return nil, err
	}
	f.t.Cleanup(func() { _ = s.Close() })
	return s, nil
}

// Crash implements storetest.Harness. A process that is killed sends nothing more.
func (f *fakeShard) Crash(s queue.Store) { crash(s) }

// Settle implements storetest.Harness.
func (f *fakeShard) Settle(s queue.Store) { settle(f.t, s) }

func crash(s queue.Store) {
	s.(*Store).fail(errors.New("killed"))
	<-s.(*Store).done
}

func settle(t *testing.T, s queue.Store) {
	t.Helper()
	if err := s.(*Store).giveBack(); err != nil {
		t.Errorf("give back space: %v", err)
	}
}

func newFakeHarness(t *testing.T, segmentBytes int64) storetest.Harness {
	f := newFakeShard(t)
	f.cfg.SegmentBytes = segmentBytes
	return f
}

func TestConformance(t *testing.T) { storetest.Run(t, newFakeHarness) }

func TestTakeover(t *testing.T) { storetest.RunTakeover(t, newFakeHarness) }

var discard = slog.New(slog.DiscardHandler)
