package nutsstore

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// TestDirectoryIsGone takes a store's directory away in several ways. The store notices, with and
// without a write, and opening it again does not begin anew.
func TestDirectoryIsGone(t *testing.T) {
	for _, test := range []struct {
		name    string
		away    func(t *testing.T, dir string)
		reopens bool // what is there is a store
	}{
		{"removed", func(t *testing.T, dir string) {
			for os.RemoveAll(dir) != nil { // the keeper may be making files at this moment
			}
		}, false},
		{"renamed", func(t *testing.T, dir string) { must(t, os.Rename(dir, dir+".old")) }, false},
		{"replaced by an empty one", func(t *testing.T, dir string) {
			must(t, os.Rename(dir, dir+".old"))
			must(t, os.Mkdir(dir, 0o755))
		}, false},
		{"replaced by its copy", func(t *testing.T, dir string) {
			// cp fails when the keeper removes a file that it has just listed.
			for try := 1; ; try++ {
				must(t, os.RemoveAll(dir+".copy"))
				out, err := exec.Command("cp", "-a", dir, dir+".copy").CombinedOutput()
				if err == nil {
					break
				}
				if try == 100 {
					t.Fatalf("%v: %s", err, out)
				}
			}
			must(t, os.Rename(dir, dir+".old"))
			must(t, os.Rename(dir+".copy", dir))
		}, true},
		{"its segment is removed", func(t *testing.T, dir string) {
			segments, err := filepath.Glob(filepath.Join(dir, "*"+dataSuffix))
			must(t, err)
			for _, s := range segments {
				must(t, os.Remove(s))
			}
		}, true},
	} {
		for _, by := range []string{"append", "check"} {
			t.Run(test.name+", noticed by "+by, func(t *testing.T) {
				h := newHarness(t, 1<<20)
				s, _ := h.mustOpen()
				h.mustAppend(s, batch("a", noise(1, 100)))
				if err := s.Check(); err != nil {
					t.Fatalf("a directory that is there: %v", err)
				}
				test.away(t, h.dir)
				var err error
				if by == "append" {
					_, err = s.Append([]queue.Entry{batch("b", noise(2, 100))})
				} else {
					err = s.Check()
				}
				if !errors.Is(err, ErrGone) {
					t.Errorf("%v, want ErrGone", err)
				}
				if _, err := s.Append([]queue.Entry{batch("c", noise(3, 100))}); err == nil {
					t.Error("it takes a batch after that")
				}
				h.mustClose(s)
				opts := queue.StoreOptions{Recover: func(queue.Recovered) error { return nil }, Snapshot: func() queue.Snapshot { return whole([]byte{}) }, Damage: func(string) {}}
				again, err := open(h.dir, Config{SegmentBytes: 1 << 20, ReserveBytes: 1 << 20, Existing: true}, opts)
				if err == nil {
					must(t, again.Close())
				}
				if test.reopens && err != nil || !test.reopens && !errors.Is(err, ErrGone) {
					t.Errorf("opened again: %v", err)
				}
			})
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
