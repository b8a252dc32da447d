package nutsstore

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// sparseStore is a closed store whose first segment has few live batches, and more segments. It
// was not rewritten yet. The live batches are those of names.
func sparseStore(t *testing.T) (h *harness, live map[string]queue.Ref, released []queue.Ref) {
	t.Helper()
	h = newHarness(t, 256<<10)
	s, _ := h.mustOpen()
	live = make(map[string]queue.Ref)
	for i := range 120 {
		name := fmt.Sprintf("b%d", i)
		refs := h.mustAppend(s, batch(name, noise(uint64(i), 10_000)), batch("released", noise(1, 100)), change("c"))
		released = append(released, refs[1])
		if i%8 == 0 {
			live[name] = refs[0]
		} else {
			released = append(released, refs[0])
		}
	}
	h.mustClose(s)
	s, _ = h.mustOpen() // seals the last segment
	h.mustClose(s)
	return h, live, released
}

func (h *harness) wantLive(live map[string]queue.Ref) {
	h.t.Helper()
	s, r := h.mustOpen()
	defer h.mustClose(s)
	if len(r.damage) > 0 {
		h.t.Errorf("damage: %q", r.damage)
	}
	got := make(map[string]queue.Ref)
	for _, e := range r.recovered {
		if e.Kind == queue.BatchEntry {
			got[string(e.Meta)] = e.Ref
		}
	}
	for name, ref := range live {
		if got[name] != ref {
			h.t.Errorf("%s was recovered at %+v, want %+v", name, got[name], ref)
		}
		var i uint64
		fmt.Sscanf(name, "b%d", &i)
		if p, err := s.Read(ref); err != nil || !bytes.Equal(p, noise(i, 10_000)) {
			h.t.Errorf("read of %s: %v, or wrong bytes", name, err)
		}
	}
}

// TestRewriteCutShort: a crash between any two steps of rewriting a segment leaves the old file
// or the new one, and nothing is missing.
func TestRewriteCutShort(t *testing.T) {
	h, live, released := sparseStore(t)
	before := t.TempDir()
	if err := os.CopyFS(before, os.DirFS(h.dir)); err != nil {
		t.Fatal(err)
	}
	s, _ := h.mustOpen()
	s.Release(released)
	h.Settle(s)
	if s.segments[0].id != 1 || s.segments[0].moved == nil {
		t.Fatal("the first segment was not rewritten")
	}
	h.mustClose(s)
	h.wantLive(live)

	file := func(dir, name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	old, rewritten := file(before, "1.dat"), file(h.dir, "1.dat")
	for name, files := range map[string]map[string][]byte{
		"half of the new file is written": {"1.dat.tmp": rewritten[:len(rewritten)/10]},
		"the new file is written":         {"1.dat.tmp": rewritten},
		"one sidecar is removed":          {"1.dat.tmp": rewritten, "1.index": nil},
		"the sidecars are removed":        {"1.dat.tmp": rewritten, "1.index": nil, "1.hint": nil},
		"the new file has its name":       {"1.dat": rewritten, "1.index": nil, "1.hint": nil},
		"one sidecar is written":          {"1.dat": rewritten, "1.index": nil, "1.hint": file(h.dir, "1.hint")},
		"a sidecar is half written":       {"1.dat": rewritten, "1.index.tmp": []byte(indexMagic), "1.index": nil, "1.hint": nil},
		"nothing yet":                     {"1.dat": old},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, 256<<10)
			if err := os.CopyFS(h.dir, os.DirFS(before)); err != nil {
				t.Fatal(err)
			}
			for file, content := range files {
				path, err := filepath.Join(h.dir, file), error(nil)
				if content == nil {
					err = os.Remove(path)
				} else {
					err = os.WriteFile(path, content, 0o644)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			h.wantLive(live)
			h.wantLive(live)
		})
	}
}

// TestReadsWhileRewriting: readers do not notice, nor does the writer.
func TestReadsWhileRewriting(t *testing.T) {
	h := newHarness(t, 64<<10)
	s, _ := h.mustOpen()
	const groups = 400
	var kept []queue.Ref
	var seeds []uint64
	var mu sync.Mutex
	done := make(chan struct{})
	var readers sync.WaitGroup
	for reader := range 3 {
		readers.Go(func() {
			for i := reader; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				mu.Lock()
				n := len(kept)
				if n == 0 {
					mu.Unlock()
					continue
				}
				ref, seed := kept[i*7%n], seeds[i*7%n]
				mu.Unlock()
				if got, err := s.Read(ref); err != nil || !bytes.Equal(got, noise(seed, 2000)) {
					t.Errorf("read of %+v: %v, or wrong bytes", ref, err)
					return
				}
			}
		})
	}
	for i := range uint64(groups) {
		refs := h.mustAppend(s, batch("b", noise(i, 2000)), batch("other", noise(i, 4000)))
		if i%10 != 0 {
			s.Release(refs)
			continue
		}
		s.Release(refs[1:])
		mu.Lock()
		kept, seeds = append(kept, refs[0]), append(seeds, i)
		mu.Unlock()
	}
	h.Settle(s)
	close(done)
	readers.Wait()
	rewritten := 0
	for _, seg := range s.segments {
		if seg.moved != nil {
			rewritten++
		}
	}
	t.Logf("%d of %d segments were rewritten", rewritten, len(s.segments))
	if rewritten < 10 {
		t.Errorf("only %d segments were rewritten", rewritten)
	}
}

// TestDamagedSegmentIsNotRewritten: rewriting it would make damage look like what was released.
func TestDamagedSegmentIsNotRewritten(t *testing.T) {
	h, live, released := sparseStore(t)
	s, _ := h.mustOpen()
	at := int64(0)
	for at == 0 { // somewhere in a live payload
		b, err := os.ReadFile(segmentPath(h.dir, 1, dataSuffix))
		if err != nil {
			t.Fatal(err)
		}
		at = int64(bytes.Index(b, noise(8, 10_000))) + 5_000
	}
	h.edit("1.dat", func(b []byte) []byte { b[at] ^= 1; return b })
	s.Release(released)
	h.Settle(s)
	if s.segments[0].id != 1 || s.segments[0].moved != nil {
		t.Error("the damaged segment was rewritten")
	}
	if s.segments[1].moved == nil {
		t.Error("the next one was not")
	}
	if _, err := s.Read(live["b8"]); !errors.Is(err, queue.ErrDamaged) {
		t.Errorf("read of the damaged batch: got %v, want ErrDamaged", err)
	}
	delete(live, "b8")
	h.mustClose(s)
	h.wantLive(live)
}

// TestDamageInARewrittenSegment is told when it is read.
func TestDamageInARewrittenSegment(t *testing.T) {
	h, live, released := sparseStore(t)
	s, _ := h.mustOpen()
	s.Release(released)
	h.Settle(s)
	h.edit("1.dat", func(b []byte) []byte {
		b[bytes.Index(b, noise(8, 10_000))+5_000] ^= 1
		return b
	})
	for _, name := range []string{"b0", "b8", "b16"} {
		_, err := s.Read(live[name])
		if want := name == "b8"; errors.Is(err, queue.ErrDamaged) != want || (err != nil) != want {
			t.Errorf("read of %s: %v", name, err)
		}
	}
}

// TestForgetNothing: a transaction without a write does not move nutsdb on to the next file.
func TestForgetNothing(t *testing.T) {
	h := newHarness(t, 256<<10)
	s, _ := h.mustOpen()
	for !s.full(entryOverhead) {
		h.mustAppend(s, batch("b", noise(1, 1000)))
	}
	if err := s.forget([]uint64{1 << 40}); err != nil {
		t.Errorf("forget what is not there: %v", err)
	}
	h.mustAppend(s, change("goes on"))
}
