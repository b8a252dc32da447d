package localfs_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/delivery/filesink/fstest"
	"github.com/spillwayio/spillway/services/delivery/filesink/localfs"
)

func open(t *testing.T) (*localfs.FS, string) {
	t.Helper()
	root := t.TempDir()
	fs, err := localfs.New(filepath.Join(root, "made"))
	if err != nil {
		t.Fatal(err)
	}
	return fs, filepath.Join(root, "made")
}

func TestConformance(t *testing.T) {
	fstest.Run(t, func(t *testing.T) fstest.FS {
		fs, root := open(t)
		return fstest.FS{FS: fs, Read: func(p string) ([]byte, error) { return os.ReadFile(filepath.Join(root, p)) }}
	})
}

func TestRenameGoesOnAfterACrash(t *testing.T) {
	fs, root := open(t)
	defer fs.Close()
	if err := fs.Write(t.Context(), "/a.tmp", 0, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(root, "a.tmp"), filepath.Join(root, "a")); err != nil { // its first step
		t.Fatal(err)
	}
	if err := fs.Rename(t.Context(), "/a.tmp", "/a"); err != nil {
		t.Fatal(err)
	}
	if _, err := fs.Size(t.Context(), "/a.tmp"); !errors.Is(err, filesink.ErrNotExist) {
		t.Errorf("the old name: %v, want it gone", err)
	}
}

// A writer that is slow to finish has the lock; nothing may be cut before it is done.
func TestTakeWaitsForTheWriter(t *testing.T) {
	fs, root := open(t)
	defer fs.Close()
	if err := fs.Write(t.Context(), "/a.tmp", 0, []byte("0123")); err != nil {
		t.Fatal(err)
	}
	writer, err := os.OpenFile(filepath.Join(root, "a.tmp"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(writer.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := fs.Take(ctx, "/a.tmp", "/b.tmp", 4); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Take while the file is written: %v, want it to wait", err)
	}
	if _, err := writer.WriteAt([]byte("late"), 4); err != nil {
		t.Fatal(err)
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	if err := fs.Take(t.Context(), "/a.tmp", "/b.tmp", 4); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(root, "b.tmp")); err != nil || string(got) != "0123" {
		t.Errorf("the file holds %q, %v", got, err)
	}
}

func TestPathsStayInside(t *testing.T) {
	fs, root := open(t)
	defer fs.Close()
	for _, p := range []string{"relative", "/../out", "/a/../../out", "/", "//a", "/a/"} {
		if err := fs.Write(t.Context(), p, 0, []byte("x")); err == nil {
			t.Errorf("wrote to %q", p)
		}
	}
	if err := os.Symlink(filepath.Dir(root), filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	if err := fs.Write(t.Context(), "/link/out", 0, []byte("x")); err == nil {
		t.Error("wrote through a link that leads out")
	}
}

func TestNewRefusesAFile(t *testing.T) {
	p := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(p, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := localfs.New(p); err == nil || !strings.Contains(err.Error(), p) {
		t.Errorf("New on a file: %v", err)
	}
	if _, err := localfs.New("relative"); err == nil {
		t.Error("New on a relative path: no error")
	}
}
