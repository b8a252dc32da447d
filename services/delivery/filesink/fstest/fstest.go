// Package fstest is what every filesink.FS must keep to, and one that fails on purpose.
package fstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/spillwayio/spillway/services/delivery/filesink"
)

// FS is a file system under test, with a way to look into its files that is not its own.
type FS struct {
	filesink.FS
	// Dir is an absolute path below which no other test works; it need not exist. "" is the root.
	Dir string
	// Read returns the bytes of the file at path.
	Read func(path string) ([]byte, error)
}

// Run checks the file system that open makes; it is called once a subtest, and closes it in the end.
func Run(t *testing.T, open func(t *testing.T) FS) {
	for _, c := range []struct {
		name  string
		check func(*suite)
	}{
		{"WriteAppends", (*suite).writeAppends},
		{"WriteNeedsTheLength", (*suite).writeNeedsTheLength},
		{"WriteOverwritesNothing", (*suite).writeOverwritesNothing},
		{"TakeCuts", (*suite).takeCuts},
		{"TakeRepeats", (*suite).takeRepeats},
		{"TakeFromAlias", (*suite).takeFromAlias},
		{"TakeRefuses", (*suite).takeRefuses},
		{"TakeShutsOutTheWriter", (*suite).takeShutsOutTheWriter},
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

func (s *suite) write(path string, length int64, data string) {
	s.Helper()
	if err := s.fs.Write(s.ctx, path, length, []byte(data)); err != nil {
		s.Fatalf("Write %s at %d: %v", path, length, err)
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

func (s *suite) writeAppends() {
	p := s.path("a/b=c/file.1-1.log.tmp")
	s.gone(p)
	s.write(p, 0, "one\n")
	s.has(p, "one\n")
	s.write(p, 4, "two\n")
	big := bytes.Repeat([]byte("0123456789abcdef"), 3<<16)
	s.write(p, 8, string(big))
	s.write(p, 8+int64(len(big)), "end")
	s.has(p, "one\ntwo\n"+string(big)+"end")
}

func (s *suite) writeNeedsTheLength() {
	p := s.path("file")
	s.write(p, 0, "0123456789")
	for _, length := range []int64{9, 11} {
		if err := s.fs.Write(s.ctx, p, length, []byte("x")); err == nil {
			s.Errorf("a write at %d of a file of 10 bytes succeeded", length)
		}
	}
	s.has(p, "0123456789")
	if err := s.fs.Write(s.ctx, s.path("none"), 5, []byte("x")); err == nil {
		s.Error("a write at 5 of no file succeeded")
	}
	s.gone(s.path("none"))
}

func (s *suite) writeOverwritesNothing() {
	p := s.path("file")
	s.write(p, 0, "first")
	if err := s.fs.Write(s.ctx, p, 0, []byte("second")); !errors.Is(err, filesink.ErrExist) {
		s.Errorf("creating a file that is there: %v, want ErrExist", err)
	}
	s.has(p, "first")
}

func (s *suite) takeCuts() {
	for _, length := range []int64{10, 4, 0} {
		from, alias := s.path(fmt.Sprintf("d%d/file.tmp", length)), s.path(fmt.Sprintf("d%d/file.taken.tmp", length))
		s.write(from, 0, "0123456789")
		if err := s.fs.Take(s.ctx, from, alias, length); err != nil {
			s.Fatalf("Take %d bytes: %v", length, err)
		}
		s.has(alias, "0123456789"[:length])
		s.gone(from)
	}
}

func (s *suite) takeRepeats() {
	from, alias := s.path("file.tmp"), s.path("file.taken.tmp")
	s.write(from, 0, "0123456789")
	for range 3 {
		if err := s.fs.Take(s.ctx, from, alias, 6); err != nil {
			s.Fatalf("Take: %v", err)
		}
		s.has(alias, "012345")
	}
}

func (s *suite) takeFromAlias() {
	from, first, second := s.path("file.tmp"), s.path("file.1.tmp"), s.path("file.2.tmp")
	s.write(from, 0, "0123456789")
	if err := s.fs.Take(s.ctx, from, first, 6); err != nil {
		s.Fatalf("Take: %v", err)
	}
	if err := s.fs.Take(s.ctx, first, second, 6); err != nil {
		s.Fatalf("Take the alias: %v", err)
	}
	s.has(second, "012345")
	s.gone(first)
	if err := s.fs.Take(s.ctx, from, first, 6); !errors.Is(err, filesink.ErrNotExist) {
		s.Errorf("Take of a file that another took: %v, want ErrNotExist", err)
	}
	s.has(second, "012345")
}

func (s *suite) takeRefuses() {
	from, alias := s.path("file.tmp"), s.path("file.taken.tmp")
	if err := s.fs.Take(s.ctx, from, alias, 0); !errors.Is(err, filesink.ErrNotExist) {
		s.Errorf("Take of nothing: %v, want ErrNotExist", err)
	}
	s.write(from, 0, "0123")
	for range 2 {
		if err := s.fs.Take(s.ctx, from, alias, 5); err == nil || errors.Is(err, filesink.ErrNotExist) || errors.Is(err, filesink.ErrExist) {
			s.Errorf("Take of 5 bytes of 4: %v, want an error that says so", err)
		}
	}
}

func (s *suite) takeShutsOutTheWriter() {
	from, alias := s.path("file.tmp"), s.path("file.taken.tmp")
	s.write(from, 0, "0123")
	if err := s.fs.Take(s.ctx, from, alias, 4); err != nil {
		s.Fatalf("Take: %v", err)
	}
	if err := s.fs.Write(s.ctx, from, 4, []byte("late")); err == nil {
		s.Error("a write to a file that was taken succeeded")
	}
	s.has(alias, "0123")
	s.gone(from)
}

func (s *suite) rename() {
	from, to := s.path("a/file.tmp"), s.path("b/c/file")
	if err := s.fs.Rename(s.ctx, from, to); !errors.Is(err, filesink.ErrNotExist) {
		s.Errorf("Rename of nothing: %v, want ErrNotExist", err)
	}
	s.write(from, 0, "0123")
	if err := s.fs.Rename(s.ctx, from, to); err != nil {
		s.Fatalf("Rename: %v", err)
	}
	s.has(to, "0123")
	s.gone(from)
}

func (s *suite) renameOverwritesNothing() {
	from, to := s.path("file.tmp"), s.path("file")
	s.write(from, 0, "new")
	s.write(to, 0, "old")
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
	s.write(p, 0, "x")
	if err := s.fs.Remove(s.ctx, p); err != nil {
		s.Errorf("Remove: %v", err)
	}
	s.gone(p)
}

func (s *suite) names() {
	for i, name := range []string{"with space", "100%25", "ünï=cödé", "a,b;c&d", "[x]{y}*?", `back\slash`} {
		p := s.path(name + "/" + name + ".tmp")
		s.write(p, 0, name)
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
	p := s.path("file")
	if err := s.fs.Write(ctx, p, 0, []byte("x")); err == nil {
		s.Error("a write succeeded after its context had ended")
	}
}

func (s *suite) probe() {
	for range 2 {
		if err := s.fs.Probe(s.ctx); err != nil {
			s.Errorf("Probe: %v", err)
		}
	}
}
