package nutsstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// Ways in which nutsdb v1.1.0 by itself loses data, hangs or dies, each seen, and that this store
// does not fall into. Others have tests elsewhere or cannot happen; docs/storage-format.md lists
// them all.

// TestTrapTornDelete: the one transaction with several entries is the one that makes nutsdb
// forget keys. When it is torn, nutsdb drops the first entry of the transaction after it.
func TestTrapTornDelete(t *testing.T) {
	h := newHarness(t, 1<<20)
	s, _ := h.mustOpen()
	for range 20 {
		h.mustAppend(s, batch("before", noise(1, 100)))
	}
	begin := s.engine.used()
	if err := s.forget([]uint64{3, 4, 5, 6, 7, 8, 9, 10}); err != nil {
		t.Fatal(err)
	}
	end := s.engine.used()
	h.mustClose(s)
	for cut := begin + 1; cut < end; cut += 7 {
		copied := newHarness(t, 1<<20)
		if err := os.CopyFS(copied.dir, os.DirFS(h.dir)); err != nil {
			t.Fatal(err)
		}
		copied.edit("1.dat", func(b []byte) []byte { clear(b[cut:]); return b })
		s, r := copied.mustOpen()
		if got := r.metas(queue.BatchEntry); len(got) != 20 {
			t.Fatalf("cut at %d of %d: recovered %d batches, want 20: deletes mean nothing on recovery", cut-begin, end-begin, len(got))
		}
		refs := copied.mustAppend(s, batch("first after it", []byte("x")))
		copied.mustClose(s)
		s, r = copied.mustOpen()
		if got := r.metas(queue.BatchEntry); !slices.Contains(got, "first after it") {
			t.Fatalf("cut at %d: recovered %q", cut-begin, got)
		}
		if _, err := s.Read(refs[0]); err != nil {
			t.Errorf("read: %v", err)
		}
		copied.mustClose(s)
	}
}

// TestTrapPanicKeepsTheLock: a damaged header makes nutsdb panic in a read, inside its View with
// the lock held for ever.
func TestTrapPanicKeepsTheLock(t *testing.T) {
	h := newHarness(t, 1<<20)
	s, _ := h.mustOpen()
	refs := h.mustAppend(s, batch("damaged", noise(1, 1000)))
	refs = append(refs, h.mustAppend(s, batch("sound", noise(2, 1000)))...)
	h.edit("1.dat", func(b []byte) []byte { copy(b, bytes.Repeat([]byte{0xFF}, 20)); return b })
	for range 3 {
		_, _ = s.Read(refs[0]) // whatever is left of it
		if got, err := s.Read(refs[1]); err != nil || !bytes.Equal(got, noise(2, 1000)) {
			t.Fatalf("read after a damaged one: %v", err)
		}
		h.mustAppend(s, change("writes go on"))
	}
}

// TestTrapSizesThatLie: nutsdb allocates what a damaged header says, 4 GiB at worst.
func TestTrapSizesThatLie(t *testing.T) {
	h := newHarness(t, 1<<20)
	s, _ := h.mustOpen()
	h.mustAppend(s, batch("first", noise(1, 1000)))
	at := s.engine.used()
	h.mustAppend(s, batch("lies", noise(2, 1000)))
	h.mustAppend(s, batch("last", noise(3, 1000)))
	h.mustClose(s)
	var before, after runtime.MemStats
	for _, lie := range []func(entry []byte){
		func(entry []byte) { copy(entry[11:], binary.AppendUvarint(nil, 1<<32-1)) }, // nutsdb's size of the value, or what is there
		func(entry []byte) { // ours of the group
			binary.BigEndian.PutUint32(entry[bytes.Index(entry, []byte(groupMagic))+36:], 1<<31-1)
		},
		func(entry []byte) { // and of its table
			binary.BigEndian.PutUint32(entry[bytes.Index(entry, []byte(groupMagic))+32:], 1<<27)
		},
	} {
		copied := newHarness(t, 1<<20)
		if err := os.CopyFS(copied.dir, os.DirFS(h.dir)); err != nil {
			t.Fatal(err)
		}
		copied.edit("1.dat", func(b []byte) []byte { lie(b[at:]); return b })
		runtime.ReadMemStats(&before)
		s, r := copied.mustOpen()
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
			t.Errorf("opening it allocated %d MiB", n>>20)
		}
		if got := r.metas(queue.BatchEntry); !slices.Contains(got, "first") || !slices.Contains(got, "last") || len(r.damage) == 0 {
			t.Errorf("recovered %q, damage %q", got, r.damage)
		}
		copied.mustClose(s)
	}
}

// TestTrapKeysAreKept: nutsdb's index keeps the slice of a key, so that one used again changes
// the index.
func TestTrapKeysAreKept(t *testing.T) {
	h := newHarness(t, 1<<20)
	s, _ := h.mustOpen()
	var refs []queue.Ref
	for i := range 300 {
		refs = append(refs, h.mustAppend(s, batch("b", noise(uint64(i), 50)))...)
	}
	for range 2 {
		for i, ref := range refs {
			if got, err := s.Read(ref); err != nil || !bytes.Equal(got, noise(uint64(i), 50)) {
				t.Fatalf("read %d: %v, or wrong bytes", i, err)
			}
		}
		h.mustClose(s)
		s, _ = h.mustOpen()
	}
}

// TestTrapDescriptors: nutsdb keeps at most 256 descriptors, and panics when its bookkeeping of
// them is wrong, as with small limits.
func TestTrapDescriptors(t *testing.T) {
	const segments = 300
	h := newHarness(t, 4<<10)
	s, _ := h.mustOpen()
	var refs []queue.Ref
	for i := range segments {
		refs = append(refs, h.mustAppend(s, batch("b", noise(uint64(i), 3000)))...)
	}
	if n := s.Stats().Segments; n < segments {
		t.Fatalf("%d segments, want %d", n, segments)
	}
	for range 2 {
		var wg sync.WaitGroup
		for reader := range 4 {
			wg.Go(func() {
				for k := range refs {
					i := (k*7 + reader*75) % segments
					if got, err := s.Read(refs[i]); err != nil || !bytes.Equal(got, noise(uint64(i), 3000)) {
						t.Errorf("read %d: %v, or wrong bytes", i, err)
					}
				}
			})
		}
		h.mustAppend(s, change("c"))
		wg.Wait()
		h.mustClose(s)
		s, _ = h.mustOpen()
	}
}

// TestTrapLockOfAFailedOpen: a failed Open of nutsdb keeps its lock until the garbage is
// collected, and the next one fails because of it.
func TestTrapLockOfAFailedOpen(t *testing.T) {
	h := newHarness(t, 1<<20)
	s, _ := h.mustOpen()
	h.mustAppend(s, change("c"))
	h.mustClose(s)
	f, err := os.OpenFile(filepath.Join(h.dir, engineLockName), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	if _, r := h.mustOpen(); !slices.Equal(r.metas(queue.ChangeEntry), []string{"c"}) {
		t.Errorf("recovered %q", r.metas(queue.ChangeEntry))
	}
}

// TestTrapValuesInMemory: after a plain restart nutsdb holds every value in memory.
func TestTrapValuesInMemory(t *testing.T) {
	h := newHarness(t, 8<<20)
	s, _ := h.mustOpen()
	var refs []queue.Ref
	for i := range 48 {
		refs = append(refs, h.mustAppend(s, batch("b", noise(uint64(i), 1<<20)))...)
	}
	h.mustClose(s)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s, _ = h.mustOpen()
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 16<<20 {
		t.Errorf("a store with 48 MiB of batches takes %d MiB of heap when it is opened", grown>>20)
	}
	if got, err := s.Read(refs[7]); err != nil || !bytes.Equal(got, noise(7, 1<<20)) {
		t.Errorf("read: %v", err)
	}
}

// TestTrapMergeFiles: what nutsdb's merging leaves is never opened: it deletes data.
func TestTrapMergeFiles(t *testing.T) {
	h := newHarness(t, 1<<20)
	s, _ := h.mustOpen()
	h.mustAppend(s, batch("b", noise(1, 100)))
	h.mustClose(s)
	for _, name := range []string{mergeManifest, "-9223372036854775808.dat"} {
		path := filepath.Join(h.dir, name)
		if err := os.WriteFile(path, []byte("{}"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := h.open(new(recovery).options()); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("open beside %s: got %v, want an error that names it", name, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if _, r := h.mustOpen(); len(r.metas(queue.BatchEntry)) != 1 {
		t.Errorf("recovered %q", r.metas(queue.BatchEntry))
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc/self/fd to count")
	}
	return len(files)
}

// TestTrapOpenLeaks: every Open and Close of nutsdb leaves a goroutine behind, but no more: the
// descriptor is closed here.
func TestTrapOpenLeaks(t *testing.T) {
	h := newHarness(t, 1<<20)
	const opens, other = 40, 10 // the runtime and the tests before have some of their own
	goroutines, before := runtime.NumGoroutine(), descriptors(t)
	for i := range opens {
		s, _ := h.mustOpen()
		h.mustAppend(s, batch(fmt.Sprint(i), noise(1, 100)))
		h.mustClose(s)
	}
	if n := runtime.NumGoroutine() - goroutines; n > opens+other {
		t.Errorf("%d goroutines are left of %d opens", n, opens)
	}
	if n := descriptors(t) - before; n > other {
		t.Errorf("%d descriptors are left of %d opens", n, opens)
	}
}

// TestFailedOpenLeaksNothing opens stores that cannot be opened, or not be written to, again and
// again.
func TestFailedOpenLeaksNothing(t *testing.T) {
	broken := errors.New("broken")
	options := func(recover error) queue.StoreOptions {
		return queue.StoreOptions{Recover: func(queue.Recovered) error { return recover }, Snapshot: func() queue.Snapshot { return whole([]byte{}) }, Damage: func(string) {}}
	}
	h := newHarness(t, 1<<20)
	s, _ := h.mustOpen()
	h.mustAppend(s, batch("a", noise(1, 100)))
	locked := func() (*Store, error) { return open(h.dir, Config{SegmentBytes: 1 << 20}, options(nil)) }
	attempts := map[string]func() (*Store, error){
		"what is in it cannot be decoded": func() (*Store, error) { return open(h.dir, Config{SegmentBytes: 1 << 20}, options(broken)) },
		"it is gone": func() (*Store, error) {
			return open(filepath.Join(t.TempDir(), "none"), Config{SegmentBytes: 1 << 20, Existing: true}, options(nil))
		},
		"nothing can be written": func() (*Store, error) {
			var old syscall.Rlimit
			if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
				t.Fatal(err)
			}
			small := old
			small.Cur = 32 << 20 // a file of a segment's size cannot be made; go test's own log of files can
			if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &small); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
					t.Fatal(err)
				}
			}()
			return open(filepath.Join(t.TempDir(), "new"), Config{SegmentBytes: 64 << 20}, options(nil))
		},
	}
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	for what, attempt := range map[string]func() (*Store, error){"it is locked": locked} {
		failsWithoutLeak(t, what, attempt)
	}
	h.mustClose(s)
	for what, attempt := range attempts {
		failsWithoutLeak(t, what, attempt)
	}
}

func failsWithoutLeak(t *testing.T, what string, attempt func() (*Store, error)) {
	t.Helper()
	const opens, other = 40, 5
	goroutines, before := runtime.NumGoroutine(), descriptors(t)
	for range opens {
		if s, err := attempt(); err == nil {
			t.Fatalf("%s: opened: %v", what, s.Close())
		}
	}
	if g, d := runtime.NumGoroutine()-goroutines, descriptors(t)-before; g > other || d > other {
		t.Errorf("%s: %d goroutines and %d descriptors are left of %d attempts", what, g, d, opens)
	}
}

// TestTrapMemoryMap: a store on a full disk ends with an error; nutsdb's memory maps would end
// the process with SIGBUS, and its Sync of them does nothing. The mode is not to be had by
// mistake.
func TestTrapMemoryMap(t *testing.T) {
	h := newHarness(t, 1<<20)
	s, _ := h.mustOpen()
	h.mustAppend(s, batch("b", noise(1, 100)))
	maps, err := os.ReadFile("/proc/self/maps")
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("no /proc/self/maps to look at")
	}
	if err != nil || strings.Contains(string(maps), h.dir) {
		t.Errorf("a file of the store is mapped into memory: %v", err)
	}
}
