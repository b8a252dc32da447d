package queue

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
)

// Moving a queue from one store to another, while nobody has it open: first the batches that are
// still needed, then, in one write, the ledger. Whoever does it says in the journal of the store
// that is not to be opened meanwhile, or any more, that it was Moved.

// Moved says why a queue must not be opened from a store.
type Moved struct {
	// Ledger is the LedgerID of what is moved, and ID a random name of the move.
	Ledger string `json:"ledger"`
	ID     string `json:"id"`
	// Arriving says that the move is to the store, which has not all of it yet. Else the store is
	// where it was moved from.
	Arriving bool   `json:"arriving,omitempty"`
	Where    string `json:"where"` // the other store, for people
	By       string `json:"by"`    // the command that moves it, for people
}

// In a journal it is the Meta of a ChangeEntry, or of a SnapshotEntry when it is all that there
// is, in a JSON array, so that versions that know no moves refuse to open the queue. The next
// snapshot supersedes it.
func (m *Moved) meta() []byte { return mustJSON([]*Moved{m}) }

// parseMoved returns nil for any other entry.
func parseMoved(meta []byte) (*Moved, error) {
	if len(meta) == 0 || meta[0] != '[' {
		return nil, nil
	}
	var m []*Moved
	if err := json.Unmarshal(meta, &m); err != nil || len(m) != 1 || m[0] == nil {
		return nil, fmt.Errorf("decode entry: it is of a later version: %w", errors.Join(err, ErrInvalid))
	}
	return m[0], nil
}

// refuse is the error of opening a queue that was moved.
func (m *Moved) refuse() error {
	switch {
	case m == nil:
		return nil
	case m.Arriving:
		return fmt.Errorf("%w: %s has not moved all of it here from %s yet: run %s again, which goes on", ErrMoved, m.By, m.Where, m.By)
	}
	return fmt.Errorf("%w: %s has moved it to %s: take store.kafka out of the file there, or move it back from there with spillway store import", ErrMoved, m.By, m.Where)
}

// EpochBase is added to the epochs of a store's owners, so that those of a queue rise when it is
// moved to a store that counts anew.
func (q *Queue) EpochBase() uint64 { return uint64(q.epochs) }

// Contents are what a store has of a queue that nobody has open.
type Contents struct {
	q          *Queue
	number, of int // the shard
	// What Keep chooses from.
	sorted      []*partition
	sessions    map[uint64]*Session
	undelivered map[*subscription][]Undelivered
	copies      map[*subscription][]*piece
}

// Load recovers the contents of a store, and changes nothing in it. Close closes the store.
func Load(log *slog.Logger, openStore func(StoreOptions) (Store, error)) (*Contents, error) {
	q, err := load(Config{Delivered: true, Log: log}, openStore, func(*Queue) error { return nil })
	if err != nil {
		return nil, err
	}
	c := &Contents{q: q, sorted: q.sorted, sessions: q.sessions, undelivered: make(map[*subscription][]Undelivered), copies: make(map[*subscription][]*piece), of: 1}
	if q.shard != nil {
		c.number, c.of = int(q.shard.Number), q.shard.Of
	}
	for _, sub := range q.subs {
		c.undelivered[sub], c.copies[sub] = sub.undelivered, sub.copies
	}
	return c, nil
}

// Close closes the store.
func (c *Contents) Close() error { return c.q.store.Close() }

// LedgerID is as the Queue's; empty: the store has no ledger.
func (c *Contents) LedgerID() string { return c.q.ledger }

// Moved returns why the queue must not be opened from the store; nil: it may.
func (c *Contents) Moved() *Moved { return c.q.moved }

// EpochBase is as the Queue's.
func (c *Contents) EpochBase() uint64 { return c.q.EpochBase() }

// Shard returns which part of a queue it is.
func (c *Contents) Shard() (number, of int) { return c.number, c.of }

// Subscriptions shows the subscriptions, and what is pending for them.
func (c *Contents) Subscriptions() []SubscriptionView { return c.q.Subscriptions() }

// Totals is what there is to be moved.
type Totals struct {
	Batches    int   `json:"batches"`
	Bytes      int64 `json:"bytes"`
	Partitions int   `json:"partitions"`
	States     int   `json:"states"` // entries of sink state, as for files in use
}

// Totals counts what Keep has left.
func (c *Contents) Totals() (t Totals) {
	for pc := range c.batches() {
		t.Batches++
		t.Bytes += int64(pc.size)
	}
	t.Partitions = len(c.q.sorted)
	for _, s := range c.q.sessions {
		t.States += len(s.state)
	}
	return t
}

// Keep leaves the part of the queue that is to be a shard, for what is called afterwards. Where
// that divides it, all that sinks left behind is of shard 0: what they finish is about no records.
func (c *Contents) Keep(number, of int, shardOf func(cluster, topic string, partition int32) int) {
	here := func(id Partition) bool { return of <= 1 || shardOf(id.Cluster, id.Topic, id.Number) == number }
	q := c.q
	q.mu.Lock()
	defer q.mu.Unlock()
	q.shard = (&Config{Shard: uint16(number), Shards: of}).shard()
	q.sorted = nil
	for _, p := range c.sorted {
		if here(p.id) {
			q.sorted = append(q.sorted, p)
		}
	}
	if q.sessions = c.sessions; number > 0 && c.of != of {
		q.sessions = nil
	}
	for _, sub := range q.subs {
		sub.undelivered = slices.DeleteFunc(slices.Clone(c.undelivered[sub]), func(u Undelivered) bool { return !here(u.Partition) })
		sub.copies = slices.DeleteFunc(slices.Clone(c.copies[sub]), func(pc *piece) bool { return !here(pc.part.id) })
	}
}

// batches are the stored batches that somebody needs, and the subscription that has one as a copy
// of dead letters, or 0.
func (c *Contents) batches() iter.Seq2[*piece, int64] {
	return func(yield func(*piece, int64) bool) {
		for _, p := range c.q.sorted {
			for pc := range p.pieces.all() {
				if pc.stored && !yield(pc, 0) {
					return
				}
			}
		}
		for _, sub := range c.q.subs {
			for _, pc := range sub.copies {
				if !yield(pc, sub.id) {
					return
				}
			}
		}
	}
}

// MarkMoved says in the store that the queue must not be opened from it.
func (c *Contents) MarkMoved(m Moved) error {
	if _, err := c.q.store.Append([]Entry{{Kind: ChangeEntry, Meta: m.meta()}}); err != nil {
		return fmt.Errorf("write to the store that the queue is moved: %w", err)
	}
	c.q.moved = &m
	return nil
}

// batchKey says whether a batch is there already.
type batchKey struct {
	partition  Partition
	batch, own Range
	crc        uint32
	copyOf     int64
}

func (m *batchMeta) key() batchKey { return batchKey{m.Partition, m.Batch, m.Own, m.CRC, m.Copy} }

// Found is what a store has to which a queue is to be moved.
type Found struct {
	Ledger  string // LedgerID
	Moved   *Moved
	Empty   bool // nothing was ever stored
	batches map[batchKey]bool
}

// recover is for StoreOptions.
func (f *Found) recover(e Recovered) error {
	f.Empty = false
	switch e.Kind {
	case BatchEntry:
		var m batchMeta
		if err := json.Unmarshal(e.Meta, &m); err != nil {
			return fmt.Errorf("decode batch entry of group %d: %w", e.Ref.Group, err)
		}
		f.batches[m.key()] = true
	case SnapshotEntry:
		if moved, err := parseMoved(e.Meta); moved != nil || err != nil {
			f.Ledger, f.Moved = "", moved
			return err
		}
		var head snapshotHead
		if err := json.Unmarshal(e.Meta, &head); err != nil {
			return fmt.Errorf("decode snapshot entry: %w", err)
		}
		f.Ledger, f.Moved = head.Ledger, nil
	case ChangeEntry:
		moved, err := parseMoved(e.Meta)
		if moved != nil || err != nil {
			f.Moved = moved
			return err
		}
		var c struct {
			Ledger string `json:"ledger"`
		}
		if err := json.Unmarshal(e.Meta, &c); err != nil {
			return fmt.Errorf("decode change entry: %w", err)
		}
		if c.Ledger != "" {
			f.Ledger = c.Ledger
		}
	default:
		return fmt.Errorf("decode entry: unknown kind %d", e.Kind)
	}
	return nil
}

// LookAt opens a store to which a queue is to be moved, and says what it has.
func LookAt(log *slog.Logger, openStore func(StoreOptions) (Store, error)) (Store, *Found, error) {
	return lookAt(log, openStore, func() Snapshot { return &WholeSnapshot{} })
}

func lookAt(log *slog.Logger, openStore func(StoreOptions) (Store, error), snapshot func() Snapshot) (Store, *Found, error) {
	f := &Found{Empty: true, batches: make(map[batchKey]bool)}
	store, err := openStore(StoreOptions{Recover: f.recover, Snapshot: snapshot,
		Damage: func(d string) { log.Error("store is damaged", "damage", d) }})
	return store, f, err
}

// Arrive opens the store to which the queue is to be moved, and says in it that not all is there.
// What the store had does not count any more, but for batches, which need not be copied again.
func (c *Contents) Arrive(m Moved, openStore func(StoreOptions) (Store, error)) (Store, *Found, error) {
	m.Arriving = true
	store, found, err := lookAt(c.q.cfg.Log, openStore, func() Snapshot {
		s := WholeSnapshot(m.meta())
		return &s
	})
	if err != nil {
		return nil, nil, err
	}
	if _, err := store.Append([]Entry{{Kind: ChangeEntry, Meta: m.meta()}}); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("write to the store that a queue is moved to it: %w", err), store.Close())
	}
	return store, found, nil
}

const (
	movedBytes   = 2 << 20
	movedBatches = 1000
)

// Copied is how much of the batches was looked at by Copy.
type Copied struct {
	Batches, There, Damaged int // There: of Batches, that an earlier attempt had copied
	Bytes                   int64
}

// Copy writes the batches that the store does not have to it, in groups, and says after each how
// far it is. What is damaged is left out: it is read from the source again.
func (c *Contents) Copy(to Store, there *Found, progress func(Copied) error) error {
	var done Copied
	var group []Entry
	var bytes int64
	write := func() error {
		if len(group) > 0 {
			if _, err := to.Append(group); err != nil {
				return fmt.Errorf("write batches: %w", err)
			}
			for more := true; more; {
				var err error
				if more, err = to.Continue(); err != nil {
					return fmt.Errorf("write batches: %w", err)
				}
			}
		}
		group, bytes = group[:0], 0
		return progress(done)
	}
	for pc, copyOf := range c.batches() {
		m := c.q.metaOf(pc)
		m.Copy = copyOf
		done.Batches++
		done.Bytes += int64(pc.size)
		if there.batches[m.key()] {
			done.There++
			continue
		}
		payload, err := c.q.store.Read(pc.ref)
		if errors.Is(err, ErrDamaged) {
			done.Damaged++
			c.q.cfg.Log.Error("a stored batch is damaged and stays behind; what is pending of it is read from the source again", "topic", m.Partition.Topic, "partition", m.Partition.Number,
				"first", m.Own.First, "next", m.Own.Next, "error", err)
			continue
		}
		if err != nil {
			return fmt.Errorf("read a batch: %w", err)
		}
		group = append(group, Entry{Kind: BatchEntry, Meta: mustJSON(m), Payload: payload})
		if bytes += int64(len(payload)); bytes >= movedBytes || len(group) == movedBatches {
			if err := write(); err != nil {
				return err
			}
		}
	}
	return write()
}

// Complete opens the store once more and writes the ledger, with which everything counts that Copy
// has written. Epochs is what is added to the epochs of the owners from now on. It fails when a
// batch is missing that was copied.
func (c *Contents) Complete(epochs uint64, damaged int, openStore func(StoreOptions) (Store, error)) error {
	c.q.epochs = int64(epochs)
	store, found, err := lookAt(c.q.cfg.Log, openStore, c.q.snapshot)
	if err != nil {
		return err
	}
	missing := -damaged
	for pc, copyOf := range c.batches() {
		m := c.q.metaOf(pc)
		if m.Copy = copyOf; !found.batches[m.key()] {
			missing++
		}
	}
	if missing > 0 {
		return errors.Join(fmt.Errorf("%d batches that were written are not found in the store again", missing), store.Close())
	}
	// The snapshot that is written first has all of the ledger.
	if _, err = store.Append([]Entry{{Kind: ChangeEntry, Meta: mustJSON(&change{})}}); err != nil {
		err = fmt.Errorf("write the ledger: %w", err)
	}
	return errors.Join(err, store.Close())
}
