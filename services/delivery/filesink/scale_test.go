package filesink_test

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// countedFS counts what is asked of the file system but commits.
type countedFS struct {
	filesink.FS
	asked atomic.Int64
}

func (c *countedFS) Create(ctx context.Context, path string, notify func()) (filesink.File, error) {
	c.asked.Add(1)
	return c.FS.Create(ctx, path, notify)
}

func (c *countedFS) Take(ctx context.Context, t filesink.Taking) error {
	c.asked.Add(1)
	return c.FS.Take(ctx, t)
}

func (c *countedFS) Rename(ctx context.Context, from, to string) error {
	c.asked.Add(1)
	return c.FS.Rename(ctx, from, to)
}

func (c *countedFS) Size(ctx context.Context, path string) (int64, error) {
	c.asked.Add(1)
	return c.FS.Size(ctx, path)
}

func (c *countedFS) Remove(ctx context.Context, path string) error {
	c.asked.Add(1)
	return c.FS.Remove(ctx, path)
}

// TestThousandDirectories: one delivery has 1,000 directories in use. It needs little memory and
// no goroutine for each, asks nothing of the file system while records flow but to commit them,
// and an heir makes all files final with a few requests for each.
func TestThousandDirectories(t *testing.T) {
	const directories, rounds = 1000, 5
	root := t.TempDir()
	fs := &countedFS{FS: newDisk(t, root)}
	cfg := testConfig()
	cfg.MaxOpenFiles = directories + 1
	cfg.Commit = config.Commit{Bytes: 16 << 20, Interval: 100 * time.Millisecond}
	cfg.Roll = config.Roll{Interval: time.Hour}
	b := newFakeBuffer()
	want := make(map[string]string)
	round := 0
	add := func() {
		records := make([]recordbatch.Record, 0, directories)
		for i := range directories {
			kind, value := fmt.Sprintf("d%03d", i), fmt.Sprintf("%d-%d", round, i)
			want[value] = "/out/t/" + kind + "/"
			records = append(records, kindOf(kind, value))
		}
		b.add(&spillwayv1.SourcePartition{Cluster: "c", Topic: "t"}, int64(round*directories), records...)
		round++
		for deadline := time.Now().Add(time.Minute); b.unsettled() > 0; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("a commit of a record for each directory has not ended after a minute")
			}
		}
	}
	used := func() (goroutines int, bytes int64) {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return runtime.NumGoroutine(), int64(m.HeapAlloc)
	}
	session := b.open()
	wait := serve(t, newSink(t, cfg, fs), session)
	goroutines, heap := used()
	add()
	asked, began := fs.asked.Load(), time.Now()
	for range rounds {
		add()
	}
	t.Logf("a commit of %d files takes %s", directories, (time.Since(began) / rounds).Round(time.Millisecond))
	if n := fs.asked.Load() - asked; n > 0 {
		t.Errorf("%d requests other than commits in %d rounds", n, rounds)
	}
	if asked > directories+10 {
		t.Errorf("%d requests to begin %d files", asked, directories)
	}
	moreGoroutines, moreHeap := used()
	t.Logf("%d goroutines more, %d KiB more", moreGoroutines-goroutines, (moreHeap-heap)>>10)
	if n := moreGoroutines - goroutines; n > 20 {
		t.Errorf("%d goroutines more for %d directories", n, directories)
	}
	if n := (moreHeap - heap) / directories; n > 32<<10 {
		t.Errorf("%d bytes more for each directory", n)
	}
	if n := b.stateSize(); n != directories {
		t.Errorf("%d entries for %d files", n, directories)
	}
	session.lose()
	if err := wait(); err == nil {
		t.Error("Serve returned without an error")
	}
	asked, began = fs.asked.Load(), time.Now()
	heir := b.open()
	wait = serve(t, newSink(t, cfg, fs), heir)
	for deadline := time.Now().Add(time.Minute); b.stateSize() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d files are not final after a minute", b.stateSize())
		}
	}
	t.Logf("%d files of a lost session are final after %s", directories, time.Since(began).Round(time.Millisecond))
	if n := fs.asked.Load() - asked; n > 4*directories {
		t.Errorf("%d requests to finish %d files", n, directories)
	}
	heir.drain()
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	check(t, root, want)
}
