package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/delivery/filesink/hdfsfs"
	"github.com/spillwayio/spillway/services/internal/config"
)

// replicatedFS is the file system of the deliveries, on a cluster of the test's own.
func (c *cluster) replicatedFS(t *testing.T, replication int) *hdfsfs.FS {
	t.Helper()
	return newFS(t, config.HDFS{URL: fmt.Sprintf("hdfs://127.0.0.1:%d", c.port), User: "hdfs", Replication: replication})
}

// commitsReachAll commits to a file, and has a look at the replicas themselves: all of them have
// each commit when it returns, and the file is one block from its first byte to its close.
func commitsReachAll(t *testing.T, c *cluster, replication int) {
	t.Helper()
	f := c.replicatedFS(t, replication)
	before := make(map[string]bool)
	for _, r := range replicas(t, c) {
		before[r.block] = true
	}
	const data = "0123456789"
	file, err := f.Create(t.Context(), "/commits/file", func() {})
	if err != nil {
		t.Fatal(err)
	}
	defer file.Abandon()
	for n := range 8 {
		if err := file.Commit(t.Context(), []byte(data)); err != nil {
			t.Fatal(err)
		}
		all := slices.DeleteFunc(replicas(t, c), func(r replica) bool { return before[r.block] })
		if len(all) != replication {
			t.Fatalf("after commit %d there are %d replicas, want %d", n+1, len(all), replication)
		}
		for _, r := range all {
			if r.length != int64((n+1)*len(data)) || r.stamp != all[0].stamp {
				t.Fatalf("after commit %d of 10 bytes: %+v", n+1, all)
			}
		}
	}
	if err := file.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// replica is a block on a DataNode.
type replica struct {
	block, stamp string
	length       int64
}

// replicas are those that the DataNodes have in their directories.
func replicas(t *testing.T, c *cluster) []replica {
	t.Helper()
	dirs, err := filepath.Glob(c.file("data*"))
	if err != nil {
		t.Fatal(err)
	}
	var all []replica
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !strings.HasPrefix(d.Name(), "blk_") {
				return err
			}
			if meta, ok := strings.CutSuffix(d.Name(), ".meta"); ok {
				all[len(all)-1].stamp = meta // comes right after its block, which has the shorter name
				return nil
			}
			info, err := d.Info()
			if err == nil {
				all = append(all, replica{block: d.Name(), length: info.Size()})
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// writers keep files open and commit to them, a piece at a time, whatever happens to the cluster.
// A file that ends is taken, as the adopter does, and another one begun.
type writers struct {
	fs   *hdfsfs.FS
	stop atomic.Bool
	wg   sync.WaitGroup

	mu     sync.Mutex
	files  map[string]int64 // those that are finished, by path: the length
	failed int              // how many of them were taken
}

const writersDir = "/writers"

func startWriters(t *testing.T, c *cluster, n, replication int) *writers {
	t.Helper()
	w := &writers{fs: c.replicatedFS(t, replication), files: make(map[string]int64)}
	for i := range n {
		w.wg.Go(func() {
			for round := 0; !w.stop.Load() && t.Context().Err() == nil; round++ {
				w.file(t, fmt.Sprintf("%s/%d-%d", writersDir, i, round))
			}
		})
	}
	return w
}

// file commits until something fails. The next file need not wait until this one is finished.
func (w *writers) file(t *testing.T, name string) {
	length, tail := int64(0), []byte(nil)
	file, err := w.fs.Create(t.Context(), name+".tmp", func() {})
	if err == nil {
		for err == nil && !w.stop.Load() {
			if err = file.Commit(t.Context(), piece(name, length)); err == nil {
				length += pieceBytes
				tail = slices.Clone(file.Tail())
				w.pause(t) // check holds all of it in memory
			}
		}
		if err == nil {
			err = file.Close(t.Context())
		}
		file.Abandon()
	}
	if length > 0 {
		w.wg.Go(func() { w.finish(t, name, length, tail, err) })
		return
	}
	_ = w.fs.Remove(t.Context(), name+".tmp") // HDFS may be away
	select {                                  // until HDFS takes files again
	case <-time.After(200 * time.Millisecond):
	case <-t.Context().Done():
	}
}

// pause bounds what a writer writes to 400 kB a second.
func (w *writers) pause(t *testing.T) {
	select {
	case <-time.After(500 * time.Millisecond):
	case <-t.Context().Done():
	}
}

// finish takes a file after what failed, or nil.
func (w *writers) finish(t *testing.T, name string, length int64, tail []byte, failed error) {
	taking := filesink.Taking{From: name + ".tmp", Alias: name, Spare: name + ".spare", Length: length, Tail: tail, Since: time.Now()}
	if err := takeWithin(t, w.fs, taking, 4*time.Minute); err != nil {
		t.Errorf("finish a file with %d committed bytes after %v: %v", length, failed, err)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.files[name] = length
	if failed != nil {
		w.failed++
	}
}

// takeWithin is Take until it is done.
func takeWithin(t *testing.T, fs *hdfsfs.FS, taking filesink.Taking, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for {
		err := fs.Take(ctx, taking)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// pieceBytes is odd, so that commits end within chunks.
const pieceBytes = 200_001

// piece is what a file has at an offset.
func piece(name string, offset int64) []byte {
	line := fmt.Sprintf("%s %d\n", name, offset)
	return append(bytes.Repeat([]byte("."), pieceBytes-len(line)), line...)
}

// check ends the writers, and reads their files with Hadoop's own tool.
func (w *writers) check(t *testing.T, c *cluster) {
	t.Helper()
	w.stop.Store(true)
	w.wg.Wait()
	args, total := []string{"-cat"}, int64(0)
	var want bytes.Buffer
	for name, length := range w.files {
		args, total = append(args, name), total+length
		for offset := int64(0); offset < length; offset += pieceBytes {
			want.Write(piece(name, offset))
		}
	}
	if !bytes.Equal(c.tool(t, "hdfs-dfs", args...), want.Bytes()) {
		t.Error("files do not have what was committed")
	}
	t.Logf("%d files with %d commits, %d ended early", len(w.files), total/pieceBytes, w.failed)
}
