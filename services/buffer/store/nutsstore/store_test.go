package nutsstore

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/buffer/store/storetest"
)

// TestMain is also the main function of the children that tests start. Each Open of nutsdb leaves
// a goroutine behind (docs/storage-format.md).
func TestMain(m *testing.M) {
	if child := os.Getenv(childVariable); child != "" {
		os.Exit(runChild(child))
	}
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/nutsdb/nutsdb.(*DB).doWrites"))
}

// harness opens stores in one directory. The segments are far smaller than Open allows.
type harness struct {
	t            testing.TB
	dir          string
	segmentBytes int64
	reserveBytes int64
}

func newHarness(t testing.TB, segmentBytes int64) *harness {
	return &harness{t: t, dir: filepath.Join(t.TempDir(), "store"), segmentBytes: segmentBytes, reserveBytes: segmentBytes / 4}
}

func (h *harness) Open(opts queue.StoreOptions) (queue.Store, error) {
	s, err := h.open(opts)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (h *harness) open(opts queue.StoreOptions) (*Store, error) {
	s, err := open(h.dir, Config{SegmentBytes: h.segmentBytes, ReserveBytes: h.reserveBytes, Log: slog.New(slog.NewTextHandler(h.t.Output(), nil))}, opts)
	if err != nil {
		return nil, err
	}
	h.t.Cleanup(func() {
		if err := s.Close(); err != nil {
			h.t.Errorf("close: %v", err)
		}
	})
	return s, nil
}

// Crash leaves all files as they are, whatever the keeper still had to do. nutsdb is closed only
// when the test ends; that neither writes nor syncs.
func (h *harness) Crash(store queue.Store) {
	s := store.(*Store)
	s.writing.Lock()
	s.failed = ErrClosed
	s.writing.Unlock()
	close(s.stop)
	<-s.done
	if err := s.lock.Close(); err != nil {
		h.t.Errorf("release lock: %v", err)
	}
	h.t.Cleanup(func() {
		if err := errors.Join(s.data.Close(), s.engine.close()); err != nil && !errors.Is(err, os.ErrNotExist) { // the next Open removed nutsdb's lock
			h.t.Errorf("close nutsdb: %v", err)
		}
	})
}

// Settle does the keeper's work to its end, in its place.
func (h *harness) Settle(store queue.Store) {
	s := store.(*Store)
	close(s.stop)
	<-s.done
	for s.tidy() {
	}
	s.stop, s.done = make(chan struct{}), make(chan struct{})
	go s.keep()
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T, segmentBytes int64) storetest.Harness { return newHarness(t, segmentBytes) })
}

// recovery is what a store told when it was opened.
type recovery struct {
	mu        sync.Mutex
	recovered []queue.Recovered
	damage    []string
}

// options collect into a recovery. Snapshots have the numbers 1, 2, 3 …
func (r *recovery) options() queue.StoreOptions {
	snapshots := 0
	return queue.StoreOptions{
		Recover:  func(e queue.Recovered) error { r.recovered = append(r.recovered, e); return nil },
		Snapshot: func() queue.Snapshot { snapshots++; return whole(fmt.Appendf(nil, "snapshot %d", snapshots)) },
		Damage: func(d string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.damage = append(r.damage, d)
		},
	}
}

// metas are those of one kind of entry, in order.
func (r *recovery) metas(kind queue.EntryKind) []string {
	var metas []string
	for _, e := range r.recovered {
		if e.Kind == kind {
			metas = append(metas, string(e.Meta))
		}
	}
	return metas
}

func (r *recovery) damaged(part string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.damage, func(d string) bool { return strings.Contains(d, part) })
}

func (h *harness) mustOpen() (*Store, *recovery) {
	h.t.Helper()
	r := new(recovery)
	s, err := h.open(r.options())
	if err != nil {
		h.t.Fatalf("open: %v", err)
	}
	return s, r
}

func (h *harness) mustClose(s *Store) {
	h.t.Helper()
	if err := s.Close(); err != nil {
		h.t.Fatalf("close: %v", err)
	}
}

func (h *harness) mustAppend(s *Store, entries ...queue.Entry) []queue.Ref {
	h.t.Helper()
	refs, err := s.Append(entries)
	if err != nil {
		h.t.Fatalf("append: %v", err)
	}
	return refs
}

func batch(meta string, payload []byte) queue.Entry {
	return queue.Entry{Kind: queue.BatchEntry, Meta: []byte(meta), Payload: payload}
}

func change(meta string) queue.Entry { return queue.Entry{Kind: queue.ChangeEntry, Meta: []byte(meta)} }

// noise is n bytes that depend on the seed.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%032d", seed)))).Read(b)
	return b
}

func TestOpenRefusesSegmentSizes(t *testing.T) {
	for _, size := range []int64{-1, MinSegmentBytes - 1, 1 << 31} {
		if s, err := Open(t.TempDir(), Config{SegmentBytes: size}, new(recovery).options()); err == nil || !strings.Contains(err.Error(), strconv.FormatInt(size, 10)) {
			t.Errorf("open with segments of %d bytes: got %v, want an error that names the size", size, err)
			if err == nil {
				s.Close()
			}
		}
	}
}

func TestSecondStoreIsLockedOut(t *testing.T) {
	h := newHarness(t, 1<<20)
	s, _ := h.mustOpen()
	_, err := h.open(new(recovery).options())
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("second open: got %v, want ErrLocked with the process that has it", err)
	}
	h.mustAppend(s, change("still works"))
}

func TestGroupLargerThanASegment(t *testing.T) {
	h := newHarness(t, 1<<20)
	s, _ := h.mustOpen()
	if _, err := s.Append([]queue.Entry{batch("b", make([]byte, 1<<20))}); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("append: got %v, want ErrTooLarge", err)
	}
	h.mustAppend(s, batch("fits", make([]byte, 1<<19)))
	h.mustClose(s)
	if _, r := h.mustOpen(); !slices.Equal(r.metas(queue.BatchEntry), []string{"fits"}) || len(r.damage) > 0 {
		t.Errorf("recovered %q, damage %q", r.metas(queue.BatchEntry), r.damage)
	}
}

func TestForeignFilesAreRefused(t *testing.T) {
	for _, name := range []string{"x.dat", "007.dat", "-1.dat", mergeManifest} {
		h := newHarness(t, 1<<20)
		s, _ := h.mustOpen()
		h.mustClose(s)
		path := filepath.Join(h.dir, name)
		if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := h.open(new(recovery).options()); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("open with %s: got %v, want an error that names it", name, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		h.mustOpen() // the failed open gave its lock back
	}
}

// TestSegmentSizeMayChange: nutsdb by itself hangs or loses data when its segment size changes.
func TestSegmentSizeMayChange(t *testing.T) {
	h := newHarness(t, 1<<20)
	var want []string
	var refs []queue.Ref
	for i, size := range []int64{1 << 20, 1 << 18, 1 << 21, 1 << 18} {
		h.segmentBytes = size
		s, r := h.mustOpen()
		if got := r.metas(queue.BatchEntry); !slices.Equal(got, want) || len(r.damage) > 0 {
			t.Fatalf("recovered %q, want %q; damage %q", got, want, r.damage)
		}
		for j := range 12 {
			name := fmt.Sprintf("b%d.%d", i, j)
			refs = append(refs, h.mustAppend(s, batch(name, noise(uint64(len(want)), 100_000)))...)
			want = append(want, name)
		}
		for k, ref := range refs {
			if p, err := s.Read(ref); err != nil || string(p) != string(noise(uint64(k), 100_000)) {
				t.Fatalf("read %s: %v, or wrong bytes", want[k], err)
			}
		}
		h.mustClose(s)
	}
}

func whole(b []byte) queue.Snapshot {
	s := queue.WholeSnapshot(b)
	return &s
}
