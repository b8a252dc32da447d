package kafkastore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// hostile drives real stores over one shard. Any number of them believe that they are its owner;
// requests are lost, answered although they fail, and stored again at any later time.
type hostile struct {
	t       *testing.T
	rng     *rand.Rand
	shard   *fakeShard
	owners  []*player
	lateMu  sync.Mutex // stores write on goroutines of their own, too
	late    []record   // copies that are still under way
	named   int
	settled map[string]bool // what an owner was answered, or a later one has found: it counts for ever
	kept    map[string]queue.Ref
	newest  *player
	fenced  int
}

// player is a store with the queue's side of it: the ledger is the list of all changes.
type player struct {
	store  *Store
	ledger []string
	refs   map[string]queue.Ref // of batches that were found or written
}

// lockedSource is a source for several goroutines: stores write on their own, beside the test's.
type lockedSource struct {
	mu     sync.Mutex
	source rand.Source
}

// Uint64 implements rand.Source.
func (l *lockedSource) Uint64() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.source.Uint64()
}

func newHostile(t *testing.T, seed uint64) *hostile {
	h := &hostile{t: t, rng: rand.New(&lockedSource{source: rand.NewPCG(seed, 1)}), shard: newFakeShard(t), settled: make(map[string]bool), kept: make(map[string]queue.Ref)}
	h.shard.cfg.SegmentBytes = 4 << 10
	h.shard.journal.before = func(l *fakeLog, records []record) (lost, unanswered error) {
		h.lateMu.Lock()
		h.late = append(h.late, records...)
		for h.rng.IntN(4) == 0 {
			l.append(h.late[h.rng.IntN(len(h.late))])
		}
		h.lateMu.Unlock()
		switch h.rng.IntN(8) {
		case 0:
			return errNetwork, nil
		case 1:
			return nil, errNetwork
		}
		return nil, nil
	}
	h.shard.payload.before = func(_ *fakeLog, _ []record) (lost, unanswered error) {
		switch h.rng.IntN(16) {
		case 0:
			return errNetwork, nil
		case 1:
			return nil, errNetwork
		}
		return nil, nil
	}
	return h
}

// open has another owner take over. All that counted before must be there, once.
func (h *hostile) open() {
	h.t.Helper()
	p := &player{refs: make(map[string]queue.Ref)}
	h.open1(p)
	found := make(map[string]bool)
	for _, name := range p.ledger {
		if found[name] {
			h.t.Fatalf("%s counts twice in %q", name, p.ledger)
		}
		found[name] = true
	}
	for name := range h.settled {
		if !found[name] {
			h.t.Fatalf("%s was answered, or found by an owner, and is not in %q", name, p.ledger)
		}
	}
	for name, ref := range h.kept {
		if p.refs[name] != ref {
			h.t.Fatalf("the batch of %s has ref %+v, want %+v", name, p.refs[name], ref)
		}
	}
	maps.Copy(h.settled, found)
	h.owners, h.newest = append(h.owners, p), p
}

func (h *hostile) open1(p *player) {
	h.t.Helper()
	s, err := h.shard.Open(p.options(h.t))
	if err != nil {
		h.t.Fatalf("open: %v", err)
	}
	p.store = s.(*Store)
}

func (p *player) options(t *testing.T) queue.StoreOptions {
	return queue.StoreOptions{
		Recover: func(r queue.Recovered) error {
			switch r.Kind {
			case queue.BatchEntry:
				p.refs[string(r.Meta)] = r.Ref
			case queue.SnapshotEntry:
				p.ledger = strings.Fields(string(r.Meta))
			case queue.ChangeEntry:
				p.ledger = append(p.ledger, string(r.Meta))
			}
			return nil
		},
		Snapshot: func() queue.Snapshot { return whole(strings.Join(p.ledger, " ")) },
		Damage:   func(d string) { t.Errorf("damage: %s", d) },
	}
}

func payloadOf(name string) []byte {
	b := make([]byte, 100+len(name)*100)
	rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%32s", name)))).Read(b)
	return b
}

// append has some owner write, which may be one no more.
func (h *hostile) append() {
	i := h.rng.IntN(len(h.owners))
	if h.rng.IntN(2) == 0 {
		i = len(h.owners) - 1
	}
	p := h.owners[i]
	h.named++
	name := fmt.Sprintf("c%d", h.named)
	refs, err := p.store.Append([]queue.Entry{{Kind: queue.ChangeEntry, Meta: []byte(name)}, {Kind: queue.BatchEntry, Meta: []byte(name), Payload: payloadOf(name)}})
	switch {
	case err == nil:
		p.ledger = append(p.ledger, name)
		h.settled[name], h.kept[name] = true, refs[1]
		p.refs[name] = refs[1]
	case errors.Is(err, ErrFenced):
		h.fenced++
		h.owners = slices.Delete(h.owners, i, i+1)
		if len(h.owners) == 0 {
			h.open()
		}
	default:
		h.t.Fatalf("append: %v", err)
	}
}

// release lets go of what an owner has, as the queue does of what a durable ack has settled: so no
// owner does that is none any more.
func (h *hostile) release() {
	p := h.owners[len(h.owners)-1]
	if p.store.Check() != nil {
		return
	}
	before := len(h.owners)
	h.append() // the ack
	if len(h.owners) != before || h.owners[len(h.owners)-1] != p {
		return
	}
	for name, ref := range h.kept {
		if h.rng.IntN(3) > 0 {
			p.store.Release([]queue.Ref{ref})
			delete(h.kept, name)
		}
	}
	if err := p.store.giveBack(); err != nil && !errors.Is(err, ErrFenced) {
		h.t.Fatalf("give space back: %v", err)
	}
}

func (h *hostile) read() {
	p := h.owners[len(h.owners)-1]
	if p != h.newest { // it was killed, or its own barrier came late: the others do not have what it wrote
		return
	}
	for name, ref := range h.kept {
		got, err := p.store.Read(ref)
		if p.store.Check() != nil {
			return
		}
		if err != nil || string(got) != string(payloadOf(name)) {
			h.t.Fatalf("read %s: %v, or wrong bytes", name, err)
		}
	}
}

func TestHostileLog(t *testing.T) {
	seeds, steps := 40, 120
	if testing.Short() {
		seeds = 5
	}
	var fenced, opened atomic.Int32
	t.Cleanup(func() { // after all seeds
		if int(fenced.Load()) < seeds || int(opened.Load()) < seeds {
			t.Errorf("%d owners were fenced, %d opened: that is no test", fenced.Load(), opened.Load())
		}
	})
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel() // they wait most of the time
			h := newHostile(t, seed)
			h.open()
			for range steps {
				switch n := h.rng.IntN(20); {
				case n == 0:
					h.open()
					opened.Add(1)
				case n == 1:
					h.release()
				case n == 2:
					h.read()
				case n == 3 && len(h.owners) > 1: // one is killed
					i := h.rng.IntN(len(h.owners))
					crash(h.owners[i].store)
					h.owners = slices.Delete(h.owners, i, i+1)
				default:
					h.append()
				}
			}
			h.open()
			h.read()
			h.serves()
			fenced.Add(int32(h.fenced))
		})
	}
}

// serves has nothing come late any more, and the owner open again when it is fenced, as the group
// of the buffers does. It must be answered soon.
func (h *hostile) serves() {
	h.t.Helper()
	h.shard.journal.mu.Lock()
	h.shard.journal.before = nil
	h.shard.journal.mu.Unlock()
	const most = 2 // what the one before has written came behind the barrier
	for range most {
		h.open()
		if _, err := h.newest.store.Append([]queue.Entry{{Kind: queue.ChangeEntry, Meta: []byte("served")}}); err == nil {
			return
		}
	}
	h.t.Fatalf("fenced %d times, though nobody else writes", most)
}

// owned opens until the newest owner is one, and has nothing more to write.
func (h *hostile) owned() {
	h.t.Helper()
	for {
		h.named++
		name := fmt.Sprintf("c%d", h.named)
		_, err := h.newest.store.Append([]queue.Entry{{Kind: queue.ChangeEntry, Meta: []byte(name)}})
		if err == nil {
			h.newest.ledger = append(h.newest.ledger, name)
			h.settled[name] = true
			err = h.newest.store.giveBack()
		}
		if err == nil && h.newest.store.Check() == nil {
			return
		}
		h.open()
	}
}

// TestHostileLogIsReplaced has another log take the place of the one that several owners write to,
// at any time, while copies of what was sent come late: an empty one, one that lost its end, one
// that lost its beginning. What was answered counts, or it is refused: by an owner that goes on,
// within a minute, or at the next opening. It is never less in silence, as an owner has it open
// and writes. Barriers that come late are left out: one in the very place of what an unclean
// election lost, with as many others as make the next offset right, cannot be told.
func TestHostileLogIsReplaced(t *testing.T) {
	replaced := map[string]func(h *hostile, l *fakeLog){
		"emptied": func(_ *hostile, l *fakeLog) { l.records, l.first = nil, 0 },
		"without some": func(h *hostile, l *fakeLog) {
			l.records = l.records[:len(l.records)-1-h.rng.IntN(min(4, len(l.records)-1))]
		},
		"half of it": func(_ *hostile, l *fakeLog) { l.records = l.records[:len(l.records)/2] },
		"begun later": func(_ *hostile, l *fakeLog) {
			n := len(l.records) / 2
			l.first, l.records = l.first+int64(n), l.records[n:]
		},
	}
	seeds := 20
	if testing.Short() {
		seeds = 4
	}
	var refused, whole atomic.Int32
	t.Cleanup(func() {
		t.Logf("refused %d times, all there %d times", refused.Load(), whole.Load())
		if refused.Load() < int32(seeds) {
			t.Errorf("refused %d times: that is no test", refused.Load())
		}
	})
	for name, replace := range replaced {
		for seed := range uint64(seeds) {
			t.Run(fmt.Sprint(name, "/", seed), func(t *testing.T) {
				t.Parallel()
				h := newHostile(t, seed)
				h.open()
				for range 10 + h.rng.IntN(60) {
					if h.append(); h.rng.IntN(12) == 0 {
						h.open()
					}
				}
				h.owned()
				h.shard.journal.mu.Lock()
				replace(h, h.shard.journal)
				h.shard.journal.mu.Unlock()
				h.lateMu.Lock()
				h.late = slices.DeleteFunc(h.late, func(r record) bool {
					f, err := parseFrame(r.key, r.value)
					return err == nil && f.kind == barrierFrame
				})
				h.lateMu.Unlock()
				loud := false
				for _, p := range h.owners { // each goes on, the one that has it last
					h.named++
					name := fmt.Sprintf("c%d", h.named)
					_, err := p.store.Append([]queue.Entry{{Kind: queue.ChangeEntry, Meta: []byte(name)}})
					if err == nil {
						h.settled[name] = true
						continue
					}
					loud = loud || !errors.Is(err, ErrFenced) // which is no reason for anybody to look
					if !errors.Is(err, ErrFenced) && !errors.Is(err, ErrReplaced) && !errors.Is(err, ErrGap) && !errors.Is(err, ErrShifted) {
						t.Errorf("append: %v", err)
					}
				}
				h.newest.store.checkEnd() // within a minute
				if err := h.newest.store.Check(); errors.Is(err, ErrReplaced) {
					loud = true
				}
				p := &player{refs: make(map[string]queue.Ref)}
				s, err := h.shard.Open(p.options(t))
				if err != nil {
					loud = true
				} else {
					crash(s)
				}
				if loud {
					refused.Add(1)
					return
				}
				whole.Add(1)
				for name := range h.settled {
					if !slices.Contains(p.ledger, name) {
						t.Fatalf("%s was answered, is not in %q, and nobody was refused", name, p.ledger)
					}
				}
			})
		}
	}
}

// TestLogIsReplaced has another log take the place of the one that owners write to: an owner that
// was answered an offset it has passed answers nothing more.
func TestLogIsReplaced(t *testing.T) {
	for name, replace := range map[string]func(l *fakeLog){
		"by an empty one":               func(l *fakeLog) { l.records, l.first = nil, 0 },
		"by itself some time ago":       func(l *fakeLog) { l.records = l.records[:len(l.records)/2] },
		"by one that is shorter by one": func(l *fakeLog) { l.records = l.records[:len(l.records)-1] },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeShard(t)
			s, err := f.Open(noOptions(t))
			if err != nil {
				t.Fatal(err)
			}
			change := []queue.Entry{{Kind: queue.ChangeEntry, Meta: []byte("c")}}
			for range 10 {
				if _, err := s.Append(change); err != nil {
					t.Fatal(err)
				}
			}
			settle(t, s)
			f.journal.mu.Lock()
			replace(f.journal)
			f.journal.mu.Unlock()
			for range 20 {
				if _, err := s.Append(change); !errors.Is(err, ErrReplaced) {
					t.Fatalf("append: %v, want %v", err, ErrReplaced)
				}
			}
		})
	}
}

// TestCopiesAreRefused opens copies of a journal in which offsets are others, or a record is
// missing. A copy is refused, or has all. Every request is stored once here: behind a barrier that
// is stored twice, an owner's own frames may have the offset of either, so that the rule cannot
// tell a shift from them. The topics' ids have to.
func TestCopiesAreRefused(t *testing.T) {
	h := newHostile(t, 7)
	h.shard.journal.before = nil
	h.shard.journal.keeps = true
	h.open()
	for range 60 {
		h.append()
		if h.rng.IntN(8) == 0 {
			h.open()
		}
	}
	h.open()
	h.append()
	for _, p := range h.owners {
		crash(p.store)
	}
	log := slices.Clone(h.shard.journal.records)
	end, last := newRule(0), 0 // a record is missed when one behind it counts
	for i, r := range log {
		f, err := parseFrame(r.key, r.value)
		if err != nil {
			t.Fatal(err)
		}
		if v, err := end.next(int64(i), &f); err != nil {
			t.Fatal(err)
		} else if v == counts {
			last = i
		}
	}
	refused := 0
	try := func(what string, records []record) {
		t.Helper()
		f := &fakeShard{t: t, journal: &fakeLog{records: records}, payload: &fakeLog{records: slices.Clone(h.shard.payload.records)}, cfg: h.shard.cfg}
		p := &player{refs: make(map[string]queue.Ref)}
		s, err := f.Open(p.options(t))
		if err == nil {
			crash(s)
			if len(p.ledger) < len(h.settled) {
				t.Errorf("%s: opened with %d of %d changes", what, len(p.ledger), len(h.settled))
			}
			return
		}
		refused++
		if !errors.Is(err, ErrShifted) && !errors.Is(err, ErrGap) && !errors.Is(err, ErrIdentity) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range last {
		try(fmt.Sprintf("without record %d", i), slices.Delete(slices.Clone(log), i, i+1))
		if i > 0 {
			try(fmt.Sprintf("with a foreign record at %d", i), slices.Insert(slices.Clone(log), i, record{[]byte("foreign"), nil}))
		}
	}
	try("begins later", log[len(log)/2:])
	if refused < last {
		t.Errorf("%d copies were refused: that is no test", refused)
	}
}

// TestCutBeginningIsRefused has a setting that deletes old segments at work.
func TestCutBeginningIsRefused(t *testing.T) {
	f := newFakeShard(t)
	s, err := f.Open(noOptions(t))
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		if _, err := s.Append([]queue.Entry{{Kind: queue.ChangeEntry, Meta: make([]byte, storetestEntry)}}); err != nil {
			t.Fatal(err)
		}
		settle(t, s)
	}
	crash(s)
	first, records := f.journal.first, f.journal.records
	if first == 0 {
		t.Fatal("the journal was not trimmed")
	}
	opened := 0
	for cut := range records {
		f.journal.first, f.journal.records = first+int64(cut), slices.Clone(records[cut:])
		s, err := f.Open(noOptions(t))
		if err == nil { // the newest snapshot is there as a whole
			opened++
			crash(s)
		} else if !errors.Is(err, ErrGap) {
			t.Errorf("the first %d records are gone: %v, want %v", cut, err, ErrGap)
		}
	}
	if opened != 2 {
		t.Errorf("opened at %d records, want the two snapshots", opened)
	}
}

const storetestEntry = 13 << 10

func FuzzReplay(f *testing.F) {
	g := frame{kind: groupFrame, flags: firstFlag | lastFlag, nonce: 1, value: appendEntry(nil, changeEntry, nil, []byte("c"))}
	b := frame{kind: barrierFrame, epoch: -1, nonce: 1, value: []byte(`{"reader":1}`)}
	snap := frame{kind: snapshotFrame, flags: firstFlag, nonce: 1, value: appendEntry(nil, batchEntry, (&place{queue.Ref{Group: 1}, 0, 7}).append(nil), []byte("m"))}
	var seed []byte
	for _, fr := range []frame{b, g, snap} {
		seed = append(seed, fr.key()...)
		seed = binary.AppendUvarint(seed, uint64(len(fr.value)))
		seed = append(seed, fr.value...)
	}
	f.Add(seed, uint8(0))
	f.Add(seed[frameKeyBytes+1:], uint8(3))
	f.Fuzz(func(t *testing.T, data []byte, start uint8) {
		got := recovered{begin: -1, segBegin: -1, batches: make(map[int64]*foundBatch)}
		p := newReplay(int64(start), slog.New(slog.DiscardHandler))
		p.entry = got.entry
		for offset := int64(start); len(data) >= frameKeyBytes; offset++ {
			key := data[:frameKeyBytes]
			size, n := binary.Uvarint(data[frameKeyBytes:])
			if n <= 0 {
				return
			}
			data = data[frameKeyBytes+n:]
			size = min(size, uint64(len(data)))
			if p.record(offset, record{key, data[:size]}) != nil {
				return
			}
			data = data[size:]
		}
	})
}
