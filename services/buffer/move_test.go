package buffer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/buffer/store/kafkastore"
	"github.com/spillwayio/spillway/services/buffer/store/nutsstore"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/failpoint"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

// movable is a queue that is moved between a directory and Kafka, and what is to be delivered of
// it.
type movable struct {
	t       *testing.T
	dir     string // of a buffer
	inKafka func(*config.Queue, *Deps)
	shards  int // in Kafka
	shard   int // that is exported
	of      int // shards in the directory
	pending map[string]map[queue.Partition]map[int64]bool
	end     map[queue.Partition]int64
}

func newMovable(t *testing.T, shards int) *movable {
	m := &movable{t: t, dir: t.TempDir(), shards: shards, of: 1, end: make(map[queue.Partition]int64),
		pending: map[string]map[queue.Partition]map[int64]bool{"a": {}, "b": {}}}
	kept := inKafkaShards(t, shards)
	m.inKafka = func(q *config.Queue, d *Deps) {
		kept(q, d)
		q.Store.Kafka.Topic = "spillway.n.moved"
	}
	q := &config.Queue{Shards: shards}
	m.inKafka(q, nil)
	if _, _, err := kafkastore.Init(t.Context(), KafkaTopics("c", q, kafkaclient.Access{}), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		id := queue.Partition{Cluster: "k", Topic: "t", Number: int32(i)}
		m.end[id] = 0
		m.pending["a"][id], m.pending["b"][id] = map[int64]bool{}, map[int64]bool{}
	}
	return m
}

func (m *movable) config(kafka bool) config.Buffer {
	cfg := lifecycleConfig("c")
	cfg.DataDir = m.dir
	q := cfg.Queues["c"]
	q.Shards, q.SpillAfter, q.Lease = m.of, time.Millisecond, time.Minute
	q.Memory.Records, q.Disk.Records = 1<<20, 1<<20
	q.Subscriptions = map[string]*config.Subscription{"a": {Topics: []string{"*"}, Required: true}, "b": {Topics: []string{"*"}}}
	if kafka {
		q.Shards = m.shards
		m.inKafka(q, nil)
	}
	return cfg
}

// open opens the queue as buffers do, all shards of it, and calls use with them.
func (m *movable) open(kafka bool, use func([]*queue.Queue)) error {
	m.t.Helper()
	numbers := []int{m.shard}
	if kafka {
		numbers = nil
		for i := range m.shards {
			numbers = append(numbers, i)
		}
	}
	var all []*queue.Queue
	var ends []func() error
	var failed error
	for _, shard := range numbers {
		cfg := m.config(kafka)
		cfg.Shard = shard
		s, err := New(cfg, Deps{Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			m.t.Fatal(err)
		}
		o, err := s.open(m.t.Context(), s.only("c"), opening{instance: fmt.Sprint(m.t.Name(), shard)})
		if err != nil {
			failed = err
			break
		}
		ctx, cancel := context.WithCancel(m.t.Context())
		done := make(chan error, 1)
		go func() { done <- o.q.Run(ctx) }()
		ends = append(ends, func() error { cancel(); return <-done })
		all = append(all, o.q)
	}
	if failed == nil {
		use(all)
	}
	for _, end := range ends {
		if err := end(); err != nil {
			m.t.Errorf("a queue ended with %v", err)
		}
	}
	return failed
}

func payloadOf(id queue.Partition, first int64) []byte {
	return fmt.Appendf(nil, "%d/%d %s", id.Number, first, strings.Repeat("x", 2000))
}

// fill appends batches to all partitions, and waits until they are stored.
func (m *movable) fill(all []*queue.Queue) {
	m.t.Helper()
	const batches, records = 8, 10
	for id := range m.end {
		for _, q := range all {
			if !q.Owns(id.Cluster, id.Topic, id.Number) {
				continue
			}
			if a, err := q.Assign(id, false); err != nil || a.Resume != m.end[id] && m.end[id] > 0 {
				m.t.Fatalf("partition %d goes on at %d, want %d: %v", id.Number, a.Resume, m.end[id], err)
			}
			for range batches {
				first := m.end[id]
				b := queue.Batch{Partition: id, Range: queue.Range{First: first, Next: first + records}, Records: records, Codec: 1, Payload: payloadOf(id, first)}
				if _, err := q.Append(m.t.Context(), b, 0); err != nil {
					m.t.Fatal(err)
				}
				m.end[id] = first + records
				for o := first; o < first+records; o++ {
					m.pending["a"][id][o], m.pending["b"][id][o] = true, true
				}
			}
		}
	}
	for _, q := range all {
		for began := time.Now(); q.Stats().MemoryRecords > 0; time.Sleep(time.Millisecond) {
			if time.Since(began) > time.Minute {
				m.t.Fatal("batches are not stored")
			}
		}
	}
}

// deliver has a subscription get so many batches of each queue, or all when that is 0. Each must
// be pending, and have its payload.
func (m *movable) deliver(all []*queue.Queue, sub string, most int) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), time.Minute)
	defer cancel()
	for i, q := range all {
		s, err := q.OpenSession(sub, "d", false)
		if err == nil {
			err = s.AddCredit(1 << 30)
		}
		if err != nil {
			m.t.Fatal(err)
		}
		left := func() (n int) {
			for id, offsets := range m.pending[sub] {
				if q.Owns(id.Cluster, id.Topic, id.Number) {
					n += len(offsets)
				}
			}
			return n
		}
		acked := uint64(0)
		for (most == 0 || int(acked) < most) && left() > 0 {
			events, err := s.Events(ctx)
			if err != nil {
				m.t.Fatalf("queue %d of %s, %d offsets are left: %v", i, sub, left(), err)
			}
			for _, e := range events {
				if e.Lease == nil || most > 0 && int(acked) == most {
					continue
				}
				id, first := e.Lease.Batch.Partition, e.Lease.Batch.First
				if err := q.Load(e.Lease); err != nil || string(e.Lease.Batch.Payload) != string(payloadOf(id, first)) {
					m.t.Fatalf("partition %d at %d: %d bytes, %v", id.Number, first, len(e.Lease.Batch.Payload), err)
				}
				for o := first; o < e.Lease.Batch.Next; o++ {
					if !m.pending[sub][id][o] {
						m.t.Errorf("%s gets offset %d of partition %d again", sub, o, id.Number)
					}
					delete(m.pending[sub][id], o)
				}
				acked++
				state := []queue.StateChange{{Key: "file", Value: fmt.Append(nil, first)}}
				if err := s.Ack(queue.Ack{ID: acked, Leases: []queue.AckedLease{{ID: e.Lease.ID}}, State: state}); err != nil {
					m.t.Fatal(err)
				}
			}
		}
		for answered := uint64(0); answered < acked; {
			events, err := s.Events(ctx)
			if err != nil {
				m.t.Fatal(err)
			}
			for _, e := range events {
				if e.Ack != nil {
					answered = e.Ack.ID
					if e.Ack.Err != nil {
						m.t.Fatal(e.Ack.Err)
					}
				}
			}
			if left() == 0 || most > 0 { // the acks were answered in order, maybe before
				break
			}
		}
		s.Close()
	}
}

// nothingDeferred fails when something is pending that the queues do not hold.
func (m *movable) nothingDeferred(all []*queue.Queue) {
	m.t.Helper()
	for i, q := range all {
		for _, s := range q.Subscriptions() {
			if s.Deferred > 0 {
				m.t.Errorf("queue %d: %s lacks %d offsets", i, s.Name, s.Deferred)
			}
		}
	}
}

func (m *movable) mover() *Mover {
	cfg := m.config(true)
	cfg.Shard = m.shard
	mover, err := NewMover(&cfg, "c", slog.New(slog.DiscardHandler))
	if err != nil {
		m.t.Fatal(err)
	}
	return mover
}

var errStopped = errors.New("stopped")

var everyStep = []string{failpoint.MoveCopying, failpoint.MoveCopied, failpoint.MoveMarked, failpoint.MoveLedger, failpoint.MoveDone}

// move imports or exports, and is stopped at steps before, once each. Never are both places
// usable.
func (m *movable) move(export bool, steps ...string) (last MovedShard) {
	m.t.Helper()
	for _, stop := range append(steps, "") {
		mover := m.mover()
		mover.DryRun = true
		run := func() error {
			if export {
				one, err := mover.Export(m.t.Context())
				if err == nil {
					last = *one
				}
				return err
			}
			all, err := mover.Import(m.t.Context())
			if err == nil {
				last = all[0]
			}
			return err
		}
		if err := run(); err != nil {
			m.t.Fatalf("dry run before it stops at %q: %v", stop, err)
		}
		mover.DryRun = false
		stopped := false
		mover.at = func(step string) error {
			if stopped = step == stop; stopped {
				return errStopped
			}
			return nil
		}
		if err := run(); stopped != errors.Is(err, errStopped) || !stopped && err != nil {
			m.t.Fatalf("stopped at %q: %v", stop, err)
		}
		mover.Close()
		open := 0
		for _, kafka := range []bool{false, true} {
			err := m.open(kafka, func(all []*queue.Queue) {
				open++
				m.nothingDeferred(all)
			})
			if err != nil && !errors.Is(err, errOtherPlace) && !errors.Is(err, queue.ErrMoved) {
				m.t.Errorf("stopped at %q: %v", stop, err)
			}
			if err != nil && !strings.Contains(err.Error(), "spillway store ") {
				m.t.Errorf("stopped at %q: the error names no command: %v", stop, err)
			}
		}
		if open > 1 || stop == "" && open != 1 {
			m.t.Errorf("stopped at %q: %d places can be opened", stop, open)
		}
	}
	return last
}

// TestAQueueMoves moves a queue with a backlog to Kafka, back, and to Kafka again, stopped at each
// step. Everything that was pending is delivered once.
func TestAQueueMoves(t *testing.T) {
	t.Parallel()
	m := newMovable(t, 1)
	use := func(kafka bool, f func(all []*queue.Queue)) {
		t.Helper()
		if err := m.open(kafka, f); err != nil {
			t.Fatal(err)
		}
	}
	use(false, func(all []*queue.Queue) {
		m.fill(all)
		m.deliver(all, "a", 15)
	})
	var epochs []uint64
	steps := everyStep
	for round := range 2 {
		m.move(false, steps...)
		if nutsstore.IsStore(filepath.Join(m.dir, "c")) {
			t.Error("the directory still has the store")
		}
		use(true, func(all []*queue.Queue) {
			m.nothingDeferred(all)
			m.fill(all)
			m.deliver(all, "a", 15)
			m.deliver(all, "b", 20)
			epochs = append(epochs, all[0].EpochBase())
		})
		m.move(true, steps...)
		steps = nil
		use(false, func(all []*queue.Queue) {
			m.nothingDeferred(all)
			if round == 0 {
				m.fill(all)
			}
			m.deliver(all, "b", 10)
			epochs = append(epochs, all[0].EpochBase())
		})
	}
	if epochs[0] != 0 || epochs[1] == 0 || epochs[3] <= epochs[1] {
		t.Errorf("epochs of owners are counted from %v", epochs)
	}
	use(false, func(all []*queue.Queue) {
		m.deliver(all, "a", 0)
		m.deliver(all, "b", 0)
	})
}

// TestAQueueIsDivided moves a queue from a directory to three shards in Kafka, which divide its
// partitions, and each of them to a directory of its own.
func TestAQueueIsDivided(t *testing.T) {
	t.Parallel()
	m := newMovable(t, 3)
	err := m.open(false, func(all []*queue.Queue) {
		m.fill(all)
		m.deliver(all, "a", 15)
	})
	if err != nil {
		t.Fatal(err)
	}
	m.move(false, failpoint.MoveCopied, failpoint.MoveLedger)
	states := 0
	err = m.open(true, func(all []*queue.Queue) {
		for _, q := range all {
			list, err := q.State("a")
			if err != nil {
				t.Fatal(err)
			}
			states += len(list)
		}
		m.fill(all)
		m.deliver(all, "b", 3)
	})
	if err != nil || states != 1 {
		t.Fatalf("%d entries of sink state, want 1; %v", states, err)
	}
	m.of = 3
	for shard := range 3 {
		m.dir, m.shard = t.TempDir(), shard
		m.move(true)
		err := m.open(false, func(all []*queue.Queue) {
			m.nothingDeferred(all)
			m.deliver(all, "a", 0)
			m.deliver(all, "b", 0)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for sub, partitions := range m.pending {
		for id, offsets := range partitions {
			if len(offsets) > 0 {
				t.Errorf("%s lacks %d offsets of partition %d", sub, len(offsets), id.Number)
			}
		}
	}
}

// TestMovesAreRefused: what would lose or double data is refused, with what to do.
func TestMovesAreRefused(t *testing.T) {
	t.Parallel()
	m := newMovable(t, 1)
	refused := func(what, words string, run func(*Mover) error) {
		t.Helper()
		mover := m.mover()
		defer mover.Close()
		if err := run(mover); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, want %q", what, err, words)
		}
	}
	importing := func(mover *Mover) error { _, err := mover.Import(t.Context()); return err }
	exporting := func(mover *Mover) error { _, err := mover.Export(t.Context()); return err }
	refused("nothing is in the directory", "there is nothing to move", importing)
	refused("nothing is in Kafka", "there is nothing to move", exporting)
	err := m.open(false, func(all []*queue.Queue) {
		m.fill(all)
		refused("a buffer has the directory", "in use", importing)
	})
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(copied, os.DirFS(filepath.Join(m.dir, "c"))); err != nil {
		t.Fatal(err)
	}
	if err := importing(m.mover()); err != nil {
		t.Fatal(err)
	}
	if err := m.open(true, func([]*queue.Queue) {}); err != nil {
		t.Fatal(err)
	}
	dir := m.dir
	m.dir = t.TempDir()
	if err := os.CopyFS(filepath.Join(m.dir, "c"), os.DirFS(copied)); err != nil {
		t.Fatal(err)
	}
	refused("a copy of what was moved", "it is a copy; remove it", importing)
	refused("a copy in the way", "has data of the queue already", exporting)
	other := newMovable(t, 1)
	other.inKafka = m.inKafka
	if err := other.open(false, other.fill); err != nil {
		t.Fatal(err)
	}
	m.dir = other.dir
	refused("another queue's data", "has other data of the queue", importing)
	m.dir = dir
	if err := exporting(m.mover()); err != nil {
		t.Fatal(err)
	}
	m.dir = t.TempDir()
	refused("it was exported elsewhere", "has moved the queue to", exporting)
	m.dir = dir
	if err := m.open(false, func(all []*queue.Queue) { m.deliver(all, "a", 0) }); err != nil {
		t.Fatal(err)
	}
}

// TestAnImportIsGivenUp: an import that has not ended can be taken back.
func TestAnImportIsGivenUp(t *testing.T) {
	t.Parallel()
	m := newMovable(t, 2)
	m.fillDir()
	mover := m.mover()
	mover.at = func(step string) error {
		if step == failpoint.MoveMarked {
			return errStopped
		}
		return nil
	}
	if _, err := mover.Import(t.Context()); !errors.Is(err, errStopped) {
		t.Fatal(err)
	}
	out, err := m.mover().Export(t.Context())
	if err != nil || out.Result != GivenUp {
		t.Fatalf("%+v, %v", out, err)
	}
	if err := m.open(false, func(all []*queue.Queue) { m.deliver(all, "a", 0) }); err != nil {
		t.Fatal(err)
	}
	// Where one of two shards is whole in Kafka already, there is no way back but forward.
	mover = m.mover()
	mover.at = func(step string) error {
		if step == failpoint.MoveLedger {
			return errStopped
		}
		return nil
	}
	if _, err := mover.Import(t.Context()); !errors.Is(err, errStopped) {
		t.Fatal(err)
	}
	m.shard = 1
	if _, err := m.mover().Export(t.Context()); err == nil || !strings.Contains(err.Error(), "has moved shard 0 already") {
		t.Errorf("export of a half: %v", err)
	}
	if _, err := m.mover().Import(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.open(true, func(all []*queue.Queue) { m.deliver(all, "b", 0) }); err != nil {
		t.Fatal(err)
	}
}

func (m *movable) fillDir() {
	m.t.Helper()
	if err := m.open(false, m.fill); err != nil {
		m.t.Fatal(err)
	}
}
