package localfs_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

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
		return fstest.FS{FS: fs, Read: func(p string) ([]byte, error) { return os.ReadFile(filepath.Join(root, p)) },
			Shorten: func(p string, length int64) error { return os.Truncate(filepath.Join(root, p), length) }}
	})
}

// TestProbeLeavesOthersAlone has a process of the same number, on another host, probe the same
// directory.
func TestProbeLeavesOthersAlone(t *testing.T) {
	fs, root := open(t)
	defer fs.Close()
	theirs := filepath.Join(root, fmt.Sprintf(".spillway-probe-%d-1", os.Getpid()))
	if err := os.WriteFile(theirs, []byte("theirs"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := fs.Probe(t.Context()); err != nil {
		t.Errorf("Probe: %v", err)
	}
	if content, err := os.ReadFile(theirs); err != nil || string(content) != "theirs" {
		t.Errorf("their file has %q, %v", content, err)
	}
}

func TestRenameGoesOnAfterACrash(t *testing.T) {
	fs, root := open(t)
	defer fs.Close()
	if err := fstest.WriteFile(t.Context(), fs, "/a.tmp", []byte("x")); err != nil {
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
	if err := fstest.WriteFile(t.Context(), fs, "/a.tmp", []byte("0123")); err != nil {
		t.Fatal(err)
	}
	writer, err := os.OpenFile(filepath.Join(root, "a.tmp"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(writer.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	taking := filesink.Taking{From: "/a.tmp", Alias: "/b.tmp", Length: 4}
	if err := fs.Take(t.Context(), taking); !errors.Is(err, filesink.ErrWait) {
		t.Errorf("Take while the file is written: %v, want ErrWait", err)
	}
	if _, err := writer.WriteAt([]byte("late"), 4); err != nil {
		t.Fatal(err)
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	if err := fs.Take(t.Context(), taking); err != nil {
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
		if err := fstest.WriteFile(t.Context(), fs, p, []byte("x")); err == nil {
			t.Errorf("wrote to %q", p)
		}
	}
	if err := os.Symlink(filepath.Dir(root), filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	if err := fstest.WriteFile(t.Context(), fs, "/link/out", []byte("x")); err == nil {
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
