package e2e

import (
	"bytes"
	"context"
	"errors"
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

// appendsReachAll appends to a file as fast as it can, on a cluster whose DataNodes report late, and has a look at the replicas
// themselves: each append must be on all of them, under a generation stamp of its own.
func appendsReachAll(t *testing.T, c *cluster, replication int) {
	t.Helper()
	f := c.replicatedFS(t, replication)
	before := make(map[string]bool)
	for _, r := range replicas(t, c) {
		before[r.block] = true
	}
	const name, data = "/append/file", "0123456789"
	var last string
	for n := range 8 {
		if err := f.Write(t.Context(), name, int64(n*len(data)), []byte(data)); err != nil {
			t.Fatal(err)
		}
		all := slices.DeleteFunc(replicas(t, c), func(r replica) bool { return before[r.block] })
		if len(all) != replication {
			t.Fatalf("after write %d there are %d replicas, want %d", n+1, len(all), replication)
		}
		for _, r := range all {
			if r.length != int64((n+1)*len(data)) || r.stamp != all[0].stamp || r.stamp == last {
				t.Fatalf("after write %d of 10 bytes under another stamp than %s: %+v", n+1, last, all)
			}
		}
		last = all[0].stamp
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

// appenders append to files, a piece at a time, whatever happens to the cluster. A file to which an append fails is taken, as
// the adopter does, and another one begun.
type appenders struct {
	fs   *hdfsfs.FS
	stop atomic.Bool
	wg   sync.WaitGroup

	mu    sync.Mutex
	files map[string]int64 // those that are finished, by path: the length
	// How many of them were taken since an append could not be made, and since one failed.
	ended, failed int
}

const appendersDir = "/appenders"

func startAppenders(t *testing.T, c *cluster, n, replication int) *appenders {
	t.Helper()
	a := &appenders{fs: c.replicatedFS(t, replication), files: make(map[string]int64)}
	for i := range n {
		a.wg.Go(func() {
			for round := 0; !a.stop.Load() && t.Context().Err() == nil; round++ {
				a.file(t, fmt.Sprintf("%s/%d-%d", appendersDir, i, round))
			}
		})
	}
	return a
}

// file appends until something fails. The next file need not wait until this one is finished.
func (a *appenders) file(t *testing.T, name string) {
	inUse, length := name+".tmp", int64(0)
	var err error
	for err == nil && !a.stop.Load() {
		if err = a.fs.Write(t.Context(), inUse, length, piece(name, length)); err == nil {
			length += pieceBytes
		}
	}
	if length > 0 {
		a.wg.Go(func() { a.finish(t, name, length, err) })
		return
	}
	_ = a.fs.Remove(t.Context(), inUse) // HDFS may be away
	select {                            // until HDFS takes files again
	case <-time.After(200 * time.Millisecond):
	case <-t.Context().Done():
	}
}

// finish takes a file after what failed, or nil.
func (a *appenders) finish(t *testing.T, name string, length int64, failed error) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	for {
		err := a.fs.Take(ctx, name+".tmp", name, length)
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			t.Errorf("finish a file with %d committed bytes after %v: %v", length, failed, err)
			return
		case <-time.After(time.Second):
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.files[name] = length
	switch {
	case errors.Is(failed, filesink.ErrEnded):
		a.ended++
	case failed != nil:
		a.failed++
	}
}

const pieceBytes = 200_000

// piece is what a file has at an offset.
func piece(name string, offset int64) []byte {
	line := fmt.Sprintf("%s %d\n", name, offset)
	return append(bytes.Repeat([]byte("."), pieceBytes-len(line)), line...)
}

// check ends the appenders, and reads their files with Hadoop's own tool.
func (a *appenders) check(t *testing.T, c *cluster) {
	t.Helper()
	a.stop.Store(true)
	a.wg.Wait()
	args, total := []string{"-cat"}, int64(0)
	var want bytes.Buffer
	for name, length := range a.files {
		args, total = append(args, name), total+length
		for offset := int64(0); offset < length; offset += pieceBytes {
			want.Write(piece(name, offset))
		}
	}
	if !bytes.Equal(c.tool(t, "hdfs-dfs", args...), want.Bytes()) {
		t.Error("files do not have what was committed")
	}
	t.Logf("%d files with %d appends, %d ended early, %d after a failure", len(a.files), total/pieceBytes, a.ended, a.failed)
}
