package nutsstore

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/race"
)

// told is what a store tells a queue, in words.
func told(t *testing.T, open func(queue.StoreOptions) (queue.Store, error)) (entries []string) {
	t.Helper()
	r := new(recovery)
	if _, err := open(r.options()); err != nil {
		t.Fatal(err)
	}
	for _, e := range r.recovered {
		entries = append(entries, string(e.Meta))
	}
	slices.Sort(entries)
	return entries
}

func inspect(t *testing.T, h *harness) *Inspection {
	t.Helper()
	in, err := Inspect(h.dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close() })
	return in
}

// contents is every file of a directory with its bytes.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		files[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestInspectSoundStore(t *testing.T) {
	p := newPristine(t)
	h := p.copyTo(t)
	before := contents(t, h.dir)
	in := inspect(t, h)
	if in.Damaged() || len(in.Damage) > 0 || len(in.Segments) < 3 {
		t.Errorf("inspection: %+v", in)
	}
	s := in.Segments[1]
	if s.Segment != 2 || s.Groups != 4 || s.FirstGroup != 5 || s.LastGroup != 8 || s.Batches != 6 || s.Changes != 2 || s.Snapshots != 1 || s.BatchBytes != 400+30+700+200+300 || !s.Sealed {
		t.Errorf("segment 2: %+v", s)
	}
	if _, err := h.open(new(recovery).options()); !errors.Is(err, ErrLocked) {
		t.Errorf("open during an inspection: got %v, want ErrLocked", err)
	}
	got := told(t, in.Open)
	in.Release([]queue.Ref{{Group: 5, Offset: headerSize + rowSize, Length: 400}})
	in.CountLive()
	if s := in.Segments[1]; s.LiveBatches != 5 || s.LiveBytes != s.BatchBytes-400 {
		t.Errorf("segment 2 after a release: %+v", s)
	}
	if quarantine, err := in.Repair(); quarantine != "" || err != nil {
		t.Errorf("repair of a sound store: %q, %v", quarantine, err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	after := contents(t, h.dir)
	for name, content := range before {
		if after[name] != content {
			t.Errorf("%s has changed", name)
		}
	}
	if len(after) != len(before) {
		t.Errorf("%d files, %d before", len(after), len(before))
	}
	if want := told(t, h.Open); !slices.Equal(got, want) {
		t.Errorf("an inspection tells %q, the store %q", got, want)
	}
}

func TestInspectRefusesAStoreInUse(t *testing.T) {
	h := newHarness(t, crashSegmentBytes)
	h.mustOpen()
	if _, err := Inspect(h.dir); !errors.Is(err, ErrLocked) {
		t.Errorf("inspect an open store: got %v, want ErrLocked", err)
	}
}

// TestInspectUnfinishedWrite: what a crash leaves is not damage, neither at once nor later.
func TestInspectUnfinishedWrite(t *testing.T) {
	h := newHarness(t, crashSegmentBytes)
	s, _ := h.mustOpen()
	h.mustAppend(s, change("acknowledged"))
	end := s.engine.used()
	h.mustAppend(s, batch("torn", noise(1, 5000)))
	h.mustClose(s)
	h.edit("1.dat", func(b []byte) []byte { clear(b[end+2000:]); return b })
	for range 2 {
		in := inspect(t, h)
		if in.Damaged() || len(in.Damage) != 1 || !in.Damage[0].Unfinished {
			t.Errorf("damaged %v: %v", in.Damaged(), in.Damage)
		}
		if err := in.Close(); err != nil {
			t.Fatal(err)
		}
		s, _ = h.mustOpen()
		h.mustAppend(s, change("goes on"))
		h.mustClose(s)
	}
}

// TestRepair: after any damage, the repaired store opens without a word, has what it had before,
// and the quarantine has the old bytes and names what was lost.
func TestRepair(t *testing.T) {
	race.Apart(t)
	p := newPristine(t)
	for name, test := range map[string]struct {
		damage func(h *harness)
		note   string
	}{
		"a payload": {func(h *harness) {
			h.edit("2.dat", func(b []byte) []byte { b[p.groups[4].entries[1].from+50] ^= 1; return b })
		}, "entry 1 of group 5"},
		"a header": {func(h *harness) { h.edit("2.dat", func(b []byte) []byte { b[p.groups[5].value+20] ^= 1; return b }) }, "groups 6 to 6 are missing"},
		"a page of zeros": {func(h *harness) {
			h.edit("1.dat", func(b []byte) []byte { clear(b[300:900]); return b })
		}, "segment 1, bytes"},
		"a torn tail": {func(h *harness) {
			h.edit("3.dat", func(b []byte) []byte { clear(b[p.end(3)-20:]); return b })
			h.removeSidecars(3)
		}, "an unfinished write"},
		"a missing segment": {func(h *harness) {
			if err := os.Remove(filepath.Join(h.dir, "2.dat")); err != nil {
				t.Fatal(err)
			}
		}, "groups 5 to 8 are missing"},
		"the file of retired groups": {func(h *harness) { h.edit(retiredName, func(b []byte) []byte { b[13] ^= 1; return b }) }, "file retired"},
	} {
		t.Run(name, func(t *testing.T) {
			h := p.copyTo(t)
			test.damage(h)
			in := inspect(t, h)
			want := told(t, in.Open)
			if len(in.Damage) == 0 || !in.Damaged() && name != "a torn tail" { // of which it depends on the keeper whether the group was known
				t.Errorf("damaged %v: %v", in.Damaged(), in.Damage)
			}
			quarantine, err := in.Repair()
			if err != nil {
				t.Fatal(err)
			}
			note, err := os.ReadFile(filepath.Join(quarantine, "NOTE.txt"))
			if err != nil || !strings.Contains(string(note), test.note) {
				t.Errorf("the note has no %q: %v\n%s", test.note, err, note)
			}
			if err := in.Close(); err != nil {
				t.Fatal(err)
			}
			again := inspect(t, h)
			if again.Damaged() || len(again.Damage) > 0 {
				t.Errorf("damage after the repair: %v, files %q", again.Damage, again.Files)
			}
			if err := again.Close(); err != nil {
				t.Fatal(err)
			}
			s, r := h.mustOpen()
			if len(r.damage) > 0 {
				t.Errorf("the repaired store tells of damage: %q", r.damage)
			}
			var got []string
			for _, e := range r.recovered {
				got = append(got, string(e.Meta))
				if e.Kind == queue.BatchEntry {
					if _, err := s.Read(e.Ref); err != nil {
						t.Errorf("read of %s: %v", e.Meta, err)
					}
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("recovered %q, want %q", got, want)
			}
			h.mustAppend(s, batch("goes on", nil))
		})
	}
}
