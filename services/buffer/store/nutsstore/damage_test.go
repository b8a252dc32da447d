package nutsstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/race"
)

const damageSegmentBytes = 32 << 10

// pristine is a store of three segments, closed, and what was appended to it.
type pristine struct {
	dir    string
	groups []pristineGroup
}

type pristineGroup struct {
	segment   int64
	number    uint64
	from, to  int64 // of nutsdb's entry in the data file
	value     int64 // where the group begins
	tableEnd  int64
	entries   []pristineEntry
	lastOfAll bool // of its segment: an unfinished write is told from damage by nothing
}

type pristineEntry struct {
	from, to int64
	kind     queue.EntryKind
	meta     string
	payload  []byte
}

// overlaps says whether a change of the bytes in [from, to) can touch those in [a, b).
func overlaps(from, to, a, b int64) bool { return from < b && a < to }

func newPristine(t *testing.T) *pristine {
	t.Helper()
	h := newHarness(t, damageSegmentBytes)
	seed := uint64(0)
	payload := func(n int) []byte { seed++; return noise(seed, n) }
	for segment := range 3 {
		opts := new(recovery).options()
		opts.Snapshot = func() queue.Snapshot { return whole(fmt.Appendf(nil, "snapshot of segment %d", segment+1)) }
		s, err := h.open(opts)
		if err != nil {
			t.Fatal(err)
		}
		name := func(n int) string { return fmt.Sprintf("%d.%d", segment+1, n) }
		h.mustAppend(s, batch(name(1), payload(400)), change(name(2)), batch(name(3), payload(30)))
		h.mustAppend(s, change(name(4)))
		h.mustAppend(s, batch(name(5), payload(700)))
		h.mustAppend(s, batch(name(6), payload(200)), batch(name(7), nil), batch(name(8), payload(300)))
		h.mustClose(s)
	}
	s, r := h.mustOpen() // seals the third segment
	h.mustClose(s)
	if len(r.damage) > 0 {
		t.Fatalf("damage: %q", r.damage)
	}
	p := &pristine{dir: h.dir}
	for id := int64(1); id <= 3; id++ {
		data, err := os.ReadFile(segmentPath(h.dir, id, dataSuffix))
		if err != nil {
			t.Fatal(err)
		}
		sc := scanner{segment: id, w: window{r: bytes.NewReader(data), size: int64(len(data))},
			damage: func(from, to int64, what string) { t.Errorf("segment %d, bytes %d to %d: %s", id, from, to, what) }}
		sc.found = func(f found) error {
			g := pristineGroup{segment: id, number: f.number, from: f.at, to: f.at + f.head.size(), value: f.at + f.head.headerSize + keySize}
			g.tableEnd = g.value + headerSize + rowSize*int64(len(f.entries))
			at := g.tableEnd
			for _, e := range f.entries {
				g.entries = append(g.entries, pristineEntry{at, at + e.size(), e.kind, string(e.meta), bytes.Clone(e.payload)})
				at += e.size()
			}
			p.groups = append(p.groups, g)
			return nil
		}
		if _, err := sc.scan(); err != nil {
			t.Fatal(err)
		}
		p.groups[len(p.groups)-1].lastOfAll = true
	}
	if len(p.groups) != 12 {
		t.Fatalf("%d groups, want 12", len(p.groups))
	}
	return p
}

// end is where a segment's data ends.
func (p *pristine) end(segment int64) (end int64) {
	for _, g := range p.groups {
		if g.segment == segment {
			end = g.to
		}
	}
	return end
}

// copyTo makes a copy that a test may damage, and returns its harness.
func (p *pristine) copyTo(t *testing.T) *harness {
	t.Helper()
	h := newHarness(t, damageSegmentBytes)
	if err := os.CopyFS(h.dir, os.DirFS(p.dir)); err != nil {
		t.Fatal(err)
	}
	return h
}

// edit changes a file of the store.
func (h *harness) edit(name string, change func([]byte) []byte) {
	h.t.Helper()
	path := filepath.Join(h.dir, name)
	b, err := os.ReadFile(path)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := os.WriteFile(path, change(b), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

func (h *harness) removeSidecars(segment int64) {
	h.t.Helper()
	for _, suffix := range []string{hintSuffix, indexSuffix} {
		if err := os.Remove(segmentPath(h.dir, segment, suffix)); err != nil {
			h.t.Fatal(err)
		}
	}
}

// check opens a store of which bytes [from, to) of one segment may be wrong, and compares what it
// recovers and reads with what was appended.
func (p *pristine) check(h *harness, segment, from, to int64) {
	t := h.t
	t.Helper()
	s, r := h.mustOpen()
	recovered := make(map[string]queue.Recovered)
	for _, e := range r.recovered {
		recovered[string(e.Meta)] = e
	}
	snapshot, mustBe := uint64(0), uint64(0) // groups of the one that was recovered, and of the newest one that was not touched
	for _, g := range p.groups {
		e := g.entries[0]
		if e.kind != queue.SnapshotEntry {
			continue
		}
		if _, ok := recovered[e.meta]; ok {
			snapshot = g.number
		}
		if g.segment != segment || !overlaps(from, to, g.value, e.to) {
			mustBe = g.number
		}
	}
	if snapshot < mustBe {
		t.Errorf("the snapshot of group %d was recovered, not the one of group %d", snapshot, mustBe)
	}
	lost := 0
	for _, g := range p.groups {
		mine := g.segment == segment
		groupHit := mine && overlaps(from, to, g.value, g.tableEnd)
		anyHit := mine && overlaps(from, to, g.value, g.to)
		for _, e := range g.entries {
			if e.kind != queue.BatchEntry && g.number < snapshot {
				continue // superseded by a snapshot
			}
			entryHit := mine && overlaps(from, to, e.from, e.to)
			mayBeLost := groupHit || entryHit || anyHit && g.lastOfAll
			found, ok := recovered[e.meta]
			if e.kind == queue.SnapshotEntry {
				continue
			}
			if !ok {
				lost++
				if !mayBeLost {
					t.Errorf("%s is lost, although bytes %d to %d of segment %d do not touch it", e.meta, from, to, segment)
				}
				continue
			}
			if found.Kind != e.kind {
				t.Errorf("%s came back as kind %d", e.meta, found.Kind)
			}
			if e.kind != queue.BatchEntry {
				continue
			}
			switch got, err := s.Read(found.Ref); {
			case err == nil:
				if !bytes.Equal(got, e.payload) {
					t.Errorf("read of %s served wrong bytes", e.meta)
				}
			case !errors.Is(err, queue.ErrDamaged):
				t.Errorf("read of %s: got %v, want ErrDamaged", e.meta, err)
			case !groupHit && !entryHit:
				t.Errorf("read of %s: %v, although it was not touched", e.meta, err)
			}
		}
	}
	if len(recovered) > 24 {
		t.Errorf("recovered %q", slices.Sorted(maps.Keys(recovered)))
	}
	if lost > 0 && len(r.damage) == 0 {
		t.Errorf("%d entries are lost, and nothing was said about it", lost)
	}

	// The store goes on.
	refs := h.mustAppend(s, batch("later", []byte("later")), change("later still"))
	h.mustClose(s)
	s, again := h.mustOpen()
	if got := again.metas(queue.BatchEntry); len(got) == 0 || got[len(got)-1] != "later" {
		t.Errorf("recovered %q after a later append", got)
	}
	if got, err := s.Read(refs[0]); err != nil || string(got) != "later" {
		t.Errorf("read of a later batch: %q, %v", got, err)
	}
	h.mustClose(s)
	if t.Failed() {
		t.Logf("damage told: %q", r.damage)
	}
}

var damages = []struct {
	name  string
	bytes int64
	edit  func(b []byte)
}{
	{"one bit", 1, func(b []byte) { b[0] ^= 1 << rand.IntN(8) }},
	{"20 bytes of 0xFF", 20, func(b []byte) { copy(b, bytes.Repeat([]byte{0xFF}, 20)) }},
	{"100 bytes of zero", 100, func(b []byte) { clear(b) }},
	{"500 bytes of noise", 500, func(b []byte) { copy(b, noise(rand.Uint64(), 500)) }},
	{"all up to a place of zero", 1 << 20, func(b []byte) { clear(b) }},
}

// TestDamagedData damages a segment at random places, before and after it was sealed.
func TestDamagedData(t *testing.T) {
	race.Apart(t)
	p := newPristine(t)
	for _, d := range damages {
		for _, sealed := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, sealed %v", d.name, sealed), func(t *testing.T) {
				for range 6 {
					segment := 1 + rand.Int64N(3)
					from := rand.Int64N(p.end(segment))
					to := min(from+d.bytes, p.end(segment))
					if d.bytes == 1<<20 {
						from, to = 0, from
					}
					p.damage(t, segment, from, to, sealed, d.edit)
				}
			})
		}
	}
}

func (p *pristine) damage(t *testing.T, segment, from, to int64, sealed bool, edit func([]byte)) {
	h := p.copyTo(t)
	h.edit(fmt.Sprintf("%d.dat", segment), func(b []byte) []byte { edit(b[from:to]); return b })
	if !sealed {
		h.removeSidecars(segment)
	}
	p.check(h, segment, from, to)
}

// TestBitsOfAGroup flips one bit in every second byte of a group's headers and of nutsdb's before
// it.
func TestBitsOfAGroup(t *testing.T) {
	race.Apart(t)
	p := newPristine(t)
	g := p.groups[8] // the third segment's first: snapshot, batch, change, batch
	for at := g.from; at < g.to; at += 2 {
		if at > g.tableEnd+20 && at < g.to-40 && at%100 > 0 {
			continue // inside the payload
		}
		p.damage(t, g.segment, at, at+1, false, func(b []byte) { b[0] ^= 1 << rand.IntN(8) })
	}
}

// TestTornTail cuts the newest segment off at random places, by its length or with zeros: its last
// group is there whole or not at all, those before it are there.
func TestTornTail(t *testing.T) {
	p := newPristine(t)
	last := p.groups[len(p.groups)-1]
	for i := range 20 {
		cut := last.from + rand.Int64N(last.to-last.from)
		h := p.copyTo(t)
		h.edit("3.dat", func(b []byte) []byte {
			if i%2 == 0 {
				return b[:cut]
			}
			clear(b[cut:])
			return b
		})
		h.removeSidecars(3)
		s, r := h.mustOpen()
		for _, e := range last.entries {
			if slices.Contains(r.metas(e.kind), e.meta) {
				t.Errorf("cut at byte %d of %d: %s of the group is there", cut-last.from, last.to-last.from, e.meta)
			}
		}
		if cut > last.from && !r.damaged("unfinished write") {
			t.Errorf("cut at byte %d of %d: damage %q", cut-last.from, last.to-last.from, r.damage)
		}
		h.mustClose(s)
		p.check(h, 3, last.from, last.to)
	}
}

// TestLostFiles: what is not data is made anew; lost data is named.
func TestLostFiles(t *testing.T) {
	p := newPristine(t)
	for _, name := range []string{"1.hint", "1.index", "2.index", "3.hint", bucketMetaName, engineLockName, lockName} {
		t.Run(name, func(t *testing.T) {
			h := p.copyTo(t)
			if err := os.Remove(filepath.Join(h.dir, name)); err != nil && name != engineLockName {
				t.Fatal(err)
			}
			p.check(h, 0, 0, 0)
		})
	}
	t.Run("2.dat", func(t *testing.T) {
		h := p.copyTo(t)
		if err := os.Remove(filepath.Join(h.dir, "2.dat")); err != nil {
			t.Fatal(err)
		}
		p.check(h, 2, 0, damageSegmentBytes)
	})
	t.Run("damage is named", func(t *testing.T) {
		h := p.copyTo(t)
		if err := os.Remove(filepath.Join(h.dir, "2.dat")); err != nil {
			t.Fatal(err)
		}
		if _, r := h.mustOpen(); !r.damaged("segment 2: its data file is missing") || !r.damaged("groups 5 to 8 are missing") {
			t.Errorf("damage %q", r.damage)
		}
	})
}

// TestDamagedSidecars damages everything but the data, which is all recovered.
func TestDamagedSidecars(t *testing.T) {
	p := newPristine(t)
	for _, name := range []string{"1.hint", "2.index", "3.index", bucketMetaName, retiredName} {
		t.Run(name, func(t *testing.T) {
			for i := range 8 {
				h := p.copyTo(t)
				h.edit(name, func(b []byte) []byte {
					switch i {
					case 0:
						return nil
					case 1:
						return b[:len(b)/2]
					case 2:
						return append(b, "more"...)
					}
					b[rand.IntN(len(b))] ^= 1 << rand.IntN(8)
					return b
				})
				p.check(h, 0, 0, 0)
			}
		})
	}
}

// TestUnknownVersions: a store of a newer program is refused, not taken for damage.
func TestUnknownVersions(t *testing.T) {
	p := newPristine(t)
	h := p.copyTo(t)
	h.edit("2.dat", func(b []byte) []byte {
		g := p.groups[4]
		b[g.value+11] = groupVersion + 1
		rewriteEntryChecksum(b[g.from:g.to])
		return b
	})
	h.removeSidecars(2)
	if _, err := h.open(new(recovery).options()); !errors.Is(err, errVersion) || !strings.Contains(err.Error(), "group has 2") {
		t.Errorf("open with a group of version 2: got %v", err)
	}
}

// rewriteEntryChecksum makes nutsdb's checksum of an entry right again.
func rewriteEntryChecksum(b []byte) {
	binary.LittleEndian.PutUint32(b, crc32.ChecksumIEEE(b[4:]))
}
