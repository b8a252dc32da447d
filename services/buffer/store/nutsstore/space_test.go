package nutsstore

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/race"
)

// notRun skips a test that needs root and mounts, or fails it where it must run: in CI, as root.
func notRun(t *testing.T, why string) {
	t.Helper()
	why = "NOT RUN: " + t.Name() + ": " + why
	fmt.Fprintln(os.Stderr, why)
	if os.Getenv("CI") == "true" && os.Getuid() == 0 {
		t.Fatal(why)
	}
	t.Skip(why)
}

// mount mounts a file system of its own for the test.
func mount(t *testing.T, args ...string) (dir string) {
	t.Helper()
	if os.Getuid() != 0 {
		notRun(t, "only root can mount a file system")
	}
	dir = filepath.Join(t.TempDir(), "mounted")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", append(args, dir)...).CombinedOutput(); err != nil {
		notRun(t, fmt.Sprintf("mount: %v: %s", err, out))
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "--lazy", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}

// ext4Image makes a file with an empty ext4 in it, without blocks that only root may use.
func ext4Image(t *testing.T, size int64) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "ext4.img")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, size); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-m", "0", image).CombinedOutput(); err != nil {
		notRun(t, fmt.Sprintf("mkfs.ext4: %v: %s", err, out))
	}
	return image
}

const fullBytes = 64 << 20

func onFullFileSystems(t *testing.T, test func(t *testing.T, dir string)) {
	t.Run("tmpfs", func(t *testing.T) {
		test(t, mount(t, "-t", "tmpfs", "-o", fmt.Sprintf("size=%d", fullBytes), "spillway"))
	})
	t.Run("ext4", func(t *testing.T) { test(t, mount(t, "-o", "loop", ext4Image(t, fullBytes))) })
}

// fillUp takes every byte that is left.
func fillUp(t *testing.T, dir string) (filler string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "filler"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 4 << 10, 1 << 10} {
		for err = nil; err == nil; {
			if _, err = f.Write(make([]byte, size)); err == nil {
				err = f.Sync()
			}
		}
		if !isNoSpace(err) {
			t.Fatalf("fill the file system: %v", err)
		}
	}
	return f.Name()
}

// fullStore is a store with default sizes on a small file system, full of batches of 1 MiB.
func fullStore(t *testing.T, dir string) (*harness, *Store, []queue.Ref) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 10<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	h := &harness{t: t, dir: filepath.Join(dir, "store"), segmentBytes: DefaultSegmentBytes, reserveBytes: DefaultReserveBytes / 2}
	s, _ := h.mustOpen()
	var refs []queue.Ref
	for {
		more, err := s.Append([]queue.Entry{batch(fmt.Sprintf("b%d", len(refs)), noise(uint64(len(refs)), 1<<20))})
		if errors.Is(err, queue.ErrNoSpace) {
			break
		}
		if err != nil || len(refs) > fullBytes>>20 {
			t.Fatalf("append of batch %d: %v, want ErrNoSpace at last", len(refs), err)
		}
		refs = append(refs, more...)
	}
	t.Logf("%d MiB of batches are in, then: full", len(refs))
	if len(refs) < fullBytes>>20/2 {
		t.Errorf("only %d MiB of batches fit into %d", len(refs), fullBytes>>20)
	}
	fillUp(t, dir)
	return h, s, refs
}

func wantBatches(t *testing.T, s *Store, refs []queue.Ref) {
	t.Helper()
	for i, ref := range refs {
		if got, err := s.Read(ref); err != nil || !bytes.Equal(got, noise(uint64(i), 1<<20)) {
			t.Errorf("read of batch %d: %v, or wrong bytes", i, err)
		}
	}
}

// TestFullDiskTakesAcksAndRestarts: with not one block free, changes are durable and the store
// can be opened, again and again; batches are refused, and nothing is lost. When space comes back
// from somewhere else, it goes on by itself.
func TestFullDiskTakesAcksAndRestarts(t *testing.T) {
	race.Apart(t)
	onFullFileSystems(t, func(t *testing.T, dir string) {
		h, s, refs := fullStore(t, dir)
		segments := s.Stats().Segments
		for round := range 4 {
			var acked []string
			for i := range 100 {
				ack := fmt.Sprintf("ack %d.%d %s", round, i, bytes.Repeat([]byte{'x'}, 300))
				h.mustAppend(s, change(ack))
				acked = append(acked, ack)
				if _, err := s.Append([]queue.Entry{batch("refused", make([]byte, 1<<20)), change("refused")}); !errors.Is(err, queue.ErrNoSpace) {
					t.Fatalf("append of a batch: got %v, want ErrNoSpace", err)
				}
			}
			wantBatches(t, s, refs)
			h.Crash(s)
			fillUp(t, dir)
			var r *recovery
			s, r = h.mustOpen()
			if len(r.damage) > 0 {
				t.Fatalf("damage: %q", r.damage)
			}
			if got := r.metas(queue.ChangeEntry); len(got) == 0 || !slices.Equal(got, acked[len(acked)-len(got):]) {
				t.Fatalf("recovered %d changes after a snapshot, want the last of %d", len(got), len(acked))
			}
			if got := r.metas(queue.BatchEntry); len(got) != len(refs) {
				t.Fatalf("recovered %d batches, want %d", len(got), len(refs))
			}
			if n := s.Stats().Segments; n > segments+4 {
				t.Errorf("%d segments in round %d, %d in the beginning", n, round, segments)
			}
			wantBatches(t, s, refs)
		}
		if err := os.Remove(filepath.Join(dir, "filler")); err != nil {
			t.Fatal(err)
		}
		s.Release(refs[:1])
		h.mustAppend(s, batch("there is space", nil), change("again"))
		if got := s.reserve.have.Load(); got != s.reserve.want {
			t.Errorf("the reserve is %d of %d bytes", got, s.reserve.want)
		}
		h.mustClose(s)
	})
}

// TestFullDiskIsEmptiedByReleases: nothing but what the store itself gives back makes room.
func TestFullDiskIsEmptiedByReleases(t *testing.T) {
	race.Apart(t)
	onFullFileSystems(t, func(t *testing.T, dir string) {
		h, s, refs := fullStore(t, dir)
		for round := range 3 {
			for i := range refs { // an ack for each, as a queue does
				h.mustAppend(s, change(fmt.Sprintf("ack %d", i)))
				s.Release(refs[i : i+1])
			}
			next := batch("next", noise(0, 1<<20))
			tries := 0
			for refs = nil; len(refs) < 20; tries++ {
				more, err := s.Append([]queue.Entry{next})
				if err != nil && !errors.Is(err, queue.ErrNoSpace) || tries > 30 {
					t.Fatalf("append after everything was released: %v, tried %d times", err, tries)
				}
				if refs = append(refs, more...); err != nil {
					h.Settle(s)
				}
			}
			t.Logf("round %d: %d of %d tries", round, len(refs), tries)
			for i := range refs {
				if got, err := s.Read(refs[i]); err != nil || !bytes.Equal(got, noise(0, 1<<20)) {
					t.Errorf("read of batch %d: %v, or wrong bytes", i, err)
				}
			}
		}
		h.mustClose(s)
		_, r := h.mustOpen()
		for _, ref := range refs {
			if !slices.ContainsFunc(r.recovered, func(e queue.Recovered) bool { return e.Ref == ref }) {
				t.Errorf("the batch at %+v was not recovered; damage %q", ref, r.damage)
			}
		}
	})
}

// TestFullDiskIsRewritten: batches that stay pending, one in each segment and more, do not hold
// the space of those that are released.
func TestFullDiskIsRewritten(t *testing.T) {
	race.Apart(t)
	onFullFileSystems(t, func(t *testing.T, dir string) {
		h, s, refs := fullStore(t, dir)
		kept := make(map[int]queue.Ref)
		for i := range refs {
			if i%4 == 0 {
				kept[i] = refs[i]
				continue
			}
			h.mustAppend(s, change(fmt.Sprintf("ack %d", i)))
			s.Release(refs[i : i+1])
		}
		accepted := 0
		for tries := 0; accepted < len(refs)/2; tries++ {
			more, err := s.Append([]queue.Entry{batch("next", noise(0, 1<<20))})
			if err != nil && !errors.Is(err, queue.ErrNoSpace) || tries > 2*len(refs) {
				t.Fatalf("append after three of four were released: %v; accepted %d in %d tries", err, accepted, tries)
			}
			if accepted += len(more); err != nil {
				h.Settle(s)
			}
		}
		for range 2 {
			for i, ref := range kept {
				if got, err := s.Read(ref); err != nil || !bytes.Equal(got, noise(uint64(i), 1<<20)) {
					t.Errorf("read of batch %d: %v, or wrong bytes", i, err)
				}
			}
			h.mustClose(s)
			var r *recovery
			if s, r = h.mustOpen(); len(r.damage) > 0 {
				t.Errorf("damage: %q", r.damage)
			}
		}
		h.mustClose(s)
	})
}

// TestReserveEnds: when the reserve is used up, changes are refused, too, and the store still
// goes on.
func TestReserveEnds(t *testing.T) {
	dir := mount(t, "-t", "tmpfs", "-o", fmt.Sprintf("size=%d", fullBytes), "spillway")
	h, s, refs := fullStore(t, dir)
	var acked []string
	for {
		ack := fmt.Sprintf("ack %d %s", len(acked), noise(uint64(len(acked)), 300<<10))
		if _, err := s.Append([]queue.Entry{change(ack)}); err != nil {
			if !errors.Is(err, queue.ErrNoSpace) {
				t.Fatal(err)
			}
			break
		}
		if acked = append(acked, ack); len(acked) > 1000 {
			break // what is superseded is given back, so that this may go on for ever
		}
		fillUp(t, dir)
	}
	t.Logf("%d changes of 300 KiB; the reserve is %d of %d bytes", len(acked), s.reserve.have.Load(), s.reserve.want)
	if err := os.Truncate(filepath.Join(dir, "filler"), 0); err != nil {
		t.Fatal(err)
	}
	wantBatches(t, s, refs)
	h.mustAppend(s, change("goes on"))
	h.mustClose(s)
}

// TestReleasesMakeRoomUnderALimit fills a store up to a small limit and releases all: hardly
// anything may be left, since the queue takes nothing more as long as the limit is reached.
func TestReleasesMakeRoomUnderALimit(t *testing.T) {
	const limit = 30 << 20
	h := newHarness(t, DefaultSegmentBytes)
	opts := new(recovery).options()
	opts.DiskBytes = limit
	s, err := open(h.dir, Config{SegmentBytes: DefaultSegmentBytes}, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	var refs []queue.Ref
	for s.Stats().DiskBytes < limit {
		refs = append(refs, h.mustAppend(s, batch("meta", noise(uint64(len(refs)), 200<<10)))...)
	}
	s.Release(refs)
	h.Settle(s)
	if left := s.Stats().DiskBytes; left > limit/3 {
		t.Errorf("%d bytes are left of %d", left, limit)
	}
}
