package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/delivery/filesink/hdfsfs"
	"github.com/spillwayio/spillway/services/internal/config"
)

// heldNodes is how many DataNodes the cluster of these tests has, and replicas a file.
const heldNodes = 3

// held is a cluster whose files are held open while its parts die.
type held struct {
	*cluster
	t  *testing.T
	fs *hdfsfs.FS
}

func newHeld(t *testing.T, edit func(h *config.HDFS), env ...string) *held {
	t.Helper()
	h := &held{cluster: newCluster(t, heldNodes, append(env, "HDFS_REPLICATION=3")...), t: t}
	h.fs = h.view(edit)
	return h
}

// view is the cluster as somebody else sees it.
func (h *held) view(edit func(c *config.HDFS)) *hdfsfs.FS {
	h.t.Helper()
	c := config.HDFS{URL: fmt.Sprintf("hdfs://127.0.0.1:%d", h.port), User: "hdfs", Replication: heldNodes, BlockSize: config.MiB}
	if edit != nil {
		edit(&c)
	}
	return newFS(h.t, c)
}

// heldFile is a file in use, and what was committed to it.
type heldFile struct {
	filesink.File
	h         *held
	path      string
	committed []byte
}

func (h *held) open(fs *hdfsfs.FS, name string) *heldFile {
	h.t.Helper()
	path := "/held/" + name
	file, err := fs.Create(h.t.Context(), path+".tmp", func() {})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(file.Abandon)
	return &heldFile{File: file, h: h, path: path}
}

func (f *heldFile) commit(n int) error {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(len(f.committed)+i)*7 + byte((len(f.committed)+i)>>8)
	}
	err := f.Commit(f.h.t.Context(), data)
	if err == nil {
		f.committed = append(f.committed, data...)
	}
	return err
}

func (f *heldFile) mustCommit(n int) {
	f.h.t.Helper()
	if err := f.commit(n); err != nil {
		f.h.t.Fatal(err)
	}
}

// untilItFails commits n bytes again and again.
func (f *heldFile) untilItFails(n int) error {
	for {
		if err := f.commit(n); err != nil {
			return err
		}
		if len(f.committed) > 200<<20 {
			return errors.New("nothing fails")
		}
	}
}

func (f *heldFile) taking(since time.Time) filesink.Taking {
	return filesink.Taking{From: f.path + ".tmp", Alias: f.path + ".taken", Spare: f.path + ".spare", Length: int64(len(f.committed)), Tail: slices.Clone(f.Tail()), Since: since}
}

// take finishes the file, and checks that it has exactly what was committed.
func (f *heldFile) take(limit time.Duration) {
	f.h.t.Helper()
	f.Abandon()
	began := time.Now()
	if err := takeWithin(f.h.t, f.h.fs, f.taking(began), limit); err != nil {
		f.h.t.Fatalf("%d bytes were committed: %v", len(f.committed), err)
	}
	f.h.t.Logf("%d bytes were committed, and taken over within %.1f s", len(f.committed), time.Since(began).Seconds())
	f.check(f.path + ".taken")
}

func (f *heldFile) check(path string) {
	f.h.t.Helper()
	var got []byte
	eventually(f.h.t, time.Minute, "the file can be read", func() (err error) {
		got, err = f.h.command("hdfs-dfs", "-cat", path).Output()
		return err
	})
	if !bytes.Equal(got, f.committed) {
		f.h.t.Errorf("%s has %d bytes, or others than the %d committed", path, len(got), len(f.committed))
	}
}

func (h *held) do(script string, args ...string) {
	h.t.Helper()
	if err := h.script(script, args...); err != nil {
		h.t.Fatal(err)
	}
}

func allNodes() []int { return []int{1, 2, 3} }

// signalNodes sends a signal to DataNodes at once.
func (h *held) signalNodes(sig syscall.Signal, nodes ...int) {
	h.t.Helper()
	for _, i := range nodes {
		text, err := os.ReadFile(h.file(fmt.Sprintf("datanode%d.pid", i)))
		pid, _, _ := strings.Cut(string(text), " ")
		var n int
		if err == nil {
			n, err = strconv.Atoi(pid)
		}
		if err == nil {
			err = syscall.Kill(n, sig)
		}
		if err != nil {
			h.t.Fatal(err)
		}
	}
}

func (h *held) restartNodes(nodes ...int) {
	h.t.Helper()
	var wg sync.WaitGroup
	for _, i := range nodes {
		wg.Go(func() {
			if err := h.script("hdfs-restart-datanode", strconv.Itoa(i)); err != nil {
				h.t.Error(err)
			}
		})
	}
	wg.Wait()
	h.awaitDataNodes(h.t, heldNodes)
}

// openReplicas are the files of blocks that are being written, of some length.
func (h *held) openReplicas(length int64) []string {
	h.t.Helper()
	dirs, err := filepath.Glob(h.file("data*"))
	if err != nil {
		h.t.Fatal(err)
	}
	var found []string
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !strings.Contains(path, "/rbw/blk_") || strings.HasSuffix(path, ".meta") {
				return err
			}
			if info, err := d.Info(); err == nil && info.Size() == length {
				found = append(found, path)
			}
			return nil
		})
		if err != nil {
			h.t.Fatal(err)
		}
	}
	return found
}

// finalReplicas counts closed replicas of some length.
func (h *held) finalReplicas(length int64) int {
	n := 0
	for _, r := range replicas(h.t, h.cluster) {
		if r.length == length {
			n++
		}
	}
	return n
}
