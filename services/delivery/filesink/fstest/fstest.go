// Package fstest is what every filesink.FS must keep to, and one that fails on purpose.
package fstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/delivery/filesink"
)

// FS is a file system under test, with a way to look into its files that is not its own.
type FS struct {
	filesink.FS
	// Dir is an absolute path below which no other test works; it need not exist. "" is the root.
	Dir string
	// Read returns the bytes of the file at path.
	Read func(path string) ([]byte, error)
	// Shorten takes the last bytes of a closed file away, as a crash may; nil where none can.
	Shorten func(path string, length int64) error
}

// Run checks the file system that open makes; it is called once a subtest, and closes it in the
// end.
func Run(t *testing.T, open func(t *testing.T) FS) {
	for _, c := range []struct {
		name  string
		check func(*suite)
	}{
		{"CommitAppends", (*suite).commitAppends},
		{"CreateOverwritesNothing", (*suite).createOverwritesNothing},
		{"CloseWithoutCommit", (*suite).closeWithoutCommit},
		{"EndedTakesNothing", (*suite).endedTakesNothing},
		{"TakeCuts", (*suite).takeCuts},
		{"TakeFromAnOpenFile", (*suite).takeFromAnOpenFile},
		{"TakeRepeats", (*suite).takeRepeats},
		{"TakeFromAlias", (*suite).takeFromAlias},
		{"TakeRefuses", (*suite).takeRefuses},
		{"TakeShutsOutTheWriter", (*suite).takeShutsOutTheWriter},
		{"TakeMends", (*suite).takeMends},
		{"RemoveShutsOutTheWriter", (*suite).removeShutsOutTheWriter},
		{"ManyOpen", (*suite).manyOpen},
		{"Rename", (*suite).rename},
		{"RenameOverwritesNothing", (*suite).renameOverwritesNothing},
		{"Remove", (*suite).remove},
		{"Names", (*suite).names},
		{"ContextEnded", (*suite).contextEnded},
		{"Probe", (*suite).probe},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := open(t)
			s := &suite{T: t, fs: fs, ctx: t.Context()}
			defer func() {
				if err := fs.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			}()
			c.check(s)
		})
	}
}

type suite struct {
	*testing.T
	fs  FS
	ctx context.Context
}

func (s *suite) path(name string) string { return s.fs.Dir + "/" + name }

// patience is how long Take may say that it is not done yet.
const patience = time.Minute

// create begins a file with what is committed to it, and abandons it with the test.
func (s *suite) create(path string, commits ...string) filesink.File {
	s.Helper()
	f, err := s.fs.Create(s.ctx, path, func() {})
	if err != nil {
		s.Fatalf("Create %s: %v", path, err)
	}
	s.Cleanup(f.Abandon)
	for _, data := range commits {
		s.commit(f, data)
	}
	return f
}

func (s *suite) commit(f filesink.File, data string) {
	s.Helper()
	if err := f.Commit(s.ctx, []byte(data)); err != nil {
		s.Fatalf("Commit %d bytes: %v", len(data), err)
	}
}

// write makes a closed file.
func (s *suite) write(path string, commits ...string) {
	s.Helper()
	if err := s.create(path, commits...).Close(s.ctx); err != nil {
		s.Fatalf("Close %s: %v", path, err)
	}
}

// take is Take until it is done.
func (s *suite) take(from, alias string, length int64, tail []byte) error {
	s.Helper()
	t := filesink.Taking{From: from, Alias: alias, Spare: alias + ".spare", Length: length, Tail: tail, Since: time.Now()}
	for began := time.Now(); ; {
		err := s.fs.Take(s.ctx, t)
		if !errors.Is(err, filesink.ErrWait) || time.Since(began) > patience {
			return err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
	}
}

// has checks content and Size of the file at path.
func (s *suite) has(path, want string) {
	s.Helper()
	got, err := s.fs.Read(path)
	if err != nil {
		s.Fatalf("read %s: %v", path, err)
	}
	if string(got) != want {
		s.Errorf("%s holds %.100q, want %.100q", path, got, want)
	}
	if size, err := s.fs.Size(s.ctx, path); err != nil || size != int64(len(want)) {
		s.Errorf("Size of %s is %d, %v; want %d", path, size, err, len(want))
	}
}

func (s *suite) gone(path string) {
	s.Helper()
	if size, err := s.fs.Size(s.ctx, path); !errors.Is(err, filesink.ErrNotExist) {
		s.Errorf("Size of %s is %d, %v; want ErrNotExist", path, size, err)
	}
}

func (s *suite) commitAppends() {
	p := s.path("a/b=c/file.1-1.log.tmp")
	s.gone(p)
	f := s.create(p)
	want := ""
	for _, n := range []int{1, 100, 411, 700, 5, 300_001, 3, 511, 513, 1, 262_144, 77, 0} {
		data := strings.Repeat(string(rune('a'+n%26)), n)
		s.commit(f, data)
		want += data
		if tail := string(f.Tail()); !strings.HasSuffix(want, tail) || len(tail) > 511 {
			s.Errorf("after %d bytes the tail is %q", len(want), tail)
		}
	}
	if err := f.Close(s.ctx); err != nil {
		s.Fatalf("Close: %v", err)
	}
	s.has(p, want)
}

func (s *suite) createOverwritesNothing() {
	p := s.path("file")
	s.write(p, "first")
	open := s.path("open")
	s.create(open)
	for _, taken := range []string{p, open} {
		if _, err := s.fs.Create(s.ctx, taken, func() {}); !errors.Is(err, filesink.ErrExist) {
			s.Errorf("creating a file that is there: %v, want ErrExist", err)
		}
	}
	s.has(p, "first")
}

func (s *suite) closeWithoutCommit() {
	p := s.path("d/_SUCCESS")
	s.write(p)
	s.has(p, "")
}

// endedTakesNothing: after Close or Abandon a file takes nothing, and says so.
func (s *suite) endedTakesNothing() {
	closed, abandoned := s.create(s.path("closed"), "0123"), s.create(s.path("abandoned"), "0123")
	if closed.Err() != nil || abandoned.Err() != nil {
		s.Errorf("open files have ended: %v, %v", closed.Err(), abandoned.Err())
	}
	if err := closed.Close(s.ctx); err != nil {
		s.Fatal(err)
	}
	abandoned.Abandon()
	abandoned.Abandon()
	for _, f := range []filesink.File{closed, abandoned} {
		if err := f.Commit(s.ctx, []byte("late")); err == nil || f.Err() == nil {
			s.Errorf("a file that is not open took something; its Err is %v", f.Err())
		}
		if err := f.Close(s.ctx); err == nil {
			s.Error("a file that is not open was closed")
		}
		f.Abandon()
	}
	s.has(s.path("closed"), "0123")
}

func (s *suite) takeCuts() {
	for _, length := range []int64{10, 4, 0} {
		from, alias := s.path(fmt.Sprintf("d%d/file.tmp", length)), s.path(fmt.Sprintf("d%d/file.taken.tmp", length))
		s.write(from, "0123456789")
		if err := s.take(from, alias, length, nil); err != nil {
			s.Fatalf("Take %d bytes: %v", length, err)
		}
		s.has(alias, "0123456789"[:length])
		s.gone(from)
	}
}

// takeFromAnOpenFile: a writer is gone, and left its file open with more than was settled.
func (s *suite) takeFromAnOpenFile() {
	from, alias := s.path("d/file.tmp"), s.path("d/file.taken.tmp")
	f := s.create(from, "0123456789", "abcdefghij")
	f.Abandon()
	if err := s.take(from, alias, 10, []byte("0123456789")); err != nil {
		s.Fatalf("Take: %v", err)
	}
	s.has(alias, "0123456789")
	s.gone(from)
	to := s.path("d/file")
	if err := s.fs.Rename(s.ctx, alias, to); err != nil {
		s.Errorf("Rename: %v", err)
	}
	s.has(to, "0123456789")
}

func (s *suite) takeRepeats() {
	from, alias := s.path("file.tmp"), s.path("file.taken.tmp")
	s.write(from, "0123456789")
	for range 3 {
		if err := s.take(from, alias, 6, nil); err != nil {
			s.Fatalf("Take: %v", err)
		}
		s.has(alias, "012345")
	}
}

func (s *suite) takeFromAlias() {
	from, first, second := s.path("file.tmp"), s.path("file.1.tmp"), s.path("file.2.tmp")
	s.write(from, "0123456789")
	if err := s.take(from, first, 6, nil); err != nil {
		s.Fatalf("Take: %v", err)
	}
	if err := s.take(first, second, 6, nil); err != nil {
		s.Fatalf("Take the alias: %v", err)
	}
	s.has(second, "012345")
	s.gone(first)
	if err := s.take(from, first, 6, nil); !errors.Is(err, filesink.ErrNotExist) {
		s.Errorf("Take of a file that another took: %v, want ErrNotExist", err)
	}
	s.has(second, "012345")
}

func (s *suite) takeRefuses() {
	from, alias := s.path("file.tmp"), s.path("file.taken.tmp")
	if err := s.take(from, alias, 0, nil); !errors.Is(err, filesink.ErrNotExist) {
		s.Errorf("Take of nothing: %v, want ErrNotExist", err)
	}
	s.write(from, "0123")
	for range 2 {
		if err := s.take(from, alias, 5, nil); err == nil || errors.Is(err, filesink.ErrNotExist) || errors.Is(err, filesink.ErrExist) || errors.Is(err, filesink.ErrWait) {
			s.Errorf("Take of 5 bytes of 4: %v, want an error that says so", err)
		}
	}
}

// takeShutsOutTheWriter: the writer does not know that it is no longer one.
func (s *suite) takeShutsOutTheWriter() {
	for _, commits := range [][]string{{"0123"}, {"0123", strings.Repeat("x", 1000)}} {
		from, alias := s.path(fmt.Sprintf("file%d.tmp", len(commits))), s.path(fmt.Sprintf("file%d.taken.tmp", len(commits)))
		f := s.create(from, commits...)
		if err := s.take(from, alias, 4, nil); err != nil {
			s.Fatalf("Take: %v", err)
		}
		if err := f.Commit(s.ctx, []byte("late")); err == nil {
			s.Error("a commit to a file that was taken succeeded")
		}
		if err := f.Close(s.ctx); err == nil {
			s.Error("a file that was taken was closed")
		}
		s.has(alias, "0123")
		s.gone(from)
	}
}

// takeMends: what the tail has of bytes that are gone is written again.
func (s *suite) takeMends() {
	if s.fs.Shorten == nil {
		s.Log("nothing shortens a file here")
		return
	}
	content := strings.Repeat("0123456789", 130)
	for _, test := range []struct{ length, left int64 }{{1300, 1024}, {1300, 1299}, {700, 512}, {300, 0}, {511, 0}, {511, 510}} {
		from, alias := s.path(fmt.Sprintf("%d-%d.tmp", test.length, test.left)), s.path(fmt.Sprintf("%d-%d.taken.tmp", test.length, test.left))
		f := s.create(from, content[:test.length])
		tail := []byte(content[test.length/chunkBytes*chunkBytes : test.length])
		if kept := f.Tail(); len(kept) > 0 && !bytes.Equal(kept, tail) {
			s.Errorf("after %d bytes the tail is %q", test.length, kept)
		}
		if err := f.Close(s.ctx); err != nil {
			s.Fatal(err)
		}
		if err := s.fs.Shorten(from, test.left); err != nil {
			s.Fatal(err)
		}
		for range 2 {
			if err := s.take(from, alias, test.length, tail); err != nil {
				s.Fatalf("Take %d bytes where %d are left: %v", test.length, test.left, err)
			}
		}
		s.has(alias, content[:test.length])
		s.gone(alias + ".spare")
	}
}

func (s *suite) removeShutsOutTheWriter() {
	p := s.path("file.tmp")
	f := s.create(p, "0123")
	if err := s.fs.Remove(s.ctx, p); err != nil {
		s.Fatalf("Remove: %v", err)
	}
	if err := f.Close(s.ctx); err == nil {
		s.Error("a file that was removed was closed")
	}
	s.gone(p)
}

// manyOpen has files open side by side.
func (s *suite) manyOpen() {
	var wg sync.WaitGroup
	for i := range 20 {
		p := s.path(fmt.Sprintf("d%d/file%d", i%3, i))
		f := s.create(p)
		wg.Go(func() {
			for n := range 5 {
				if err := f.Commit(s.ctx, fmt.Appendf(nil, "%d-%d\n", i, n)); err != nil {
					s.Errorf("commit to %s: %v", p, err)
				}
			}
			if err := f.Close(s.ctx); err != nil {
				s.Errorf("close %s: %v", p, err)
			}
		})
	}
	wg.Wait()
	s.has(s.path("d1/file7"), "7-0\n7-1\n7-2\n7-3\n7-4\n")
}

func (s *suite) rename() {
	from, to := s.path("a/file.tmp"), s.path("b/c/file")
	if err := s.fs.Rename(s.ctx, from, to); !errors.Is(err, filesink.ErrNotExist) {
		s.Errorf("Rename of nothing: %v, want ErrNotExist", err)
	}
	s.write(from, "0123")
	if err := s.fs.Rename(s.ctx, from, to); err != nil {
		s.Fatalf("Rename: %v", err)
	}
	s.has(to, "0123")
	s.gone(from)
}

func (s *suite) renameOverwritesNothing() {
	from, to := s.path("file.tmp"), s.path("file")
	s.write(from, "new")
	s.write(to, "old")
	if err := s.fs.Rename(s.ctx, from, to); !errors.Is(err, filesink.ErrExist) {
		s.Errorf("Rename to a name that is taken: %v, want ErrExist", err)
	}
	s.has(from, "new")
	s.has(to, "old")
}

func (s *suite) remove() {
	p := s.path("d/file")
	if err := s.fs.Remove(s.ctx, p); err != nil {
		s.Errorf("Remove of nothing: %v", err)
	}
	s.write(p, "x")
	if err := s.fs.Remove(s.ctx, p); err != nil {
		s.Errorf("Remove: %v", err)
	}
	s.gone(p)
}

func (s *suite) names() {
	for i, name := range []string{"with space", "100%25", "ünï=cödé", "a,b;c&d", "[x]{y}*?", `back\slash`} {
		p := s.path(name + "/" + name + ".tmp")
		s.write(p, name)
		to := s.path(fmt.Sprintf("%s/%s-%d", name, name, i))
		if err := s.fs.Rename(s.ctx, p, to); err != nil {
			s.Errorf("Rename to %s: %v", to, err)
			continue
		}
		s.has(to, name)
	}
}

func (s *suite) contextEnded() {
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	if _, err := s.fs.Create(ctx, s.path("file"), func() {}); err == nil {
		s.Error("a file was created after its context had ended")
	}
	f := s.create(s.path("other"))
	if err := f.Commit(ctx, []byte("x")); err == nil {
		s.Error("a commit succeeded after its context had ended")
	}
}

func (s *suite) probe() {
	for range 2 {
		if err := s.fs.Probe(s.ctx); err != nil {
			s.Errorf("Probe: %v", err)
		}
	}
}
