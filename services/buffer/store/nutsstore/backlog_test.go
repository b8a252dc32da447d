package nutsstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// backlogVariable asks for TestBacklog, and says of how many GiB. It takes that much disk under
// TMPDIR, and minutes:
//
//	SPILLWAY_BACKLOG_GIB=20 go test -v -count=1 -timeout 30m -run TestBacklog ./services/buffer/store/nutsstore
const backlogVariable = "SPILLWAY_BACKLOG_GIB"

const (
	backlogBatch   = 200 << 10 // 1,000 records of 200 bytes
	backlogRecords = 1000
)

func openBacklog(dir string) (*queue.Queue, error) {
	cfg := queue.Config{MemoryRecords: 100_000, MemoryBytes: 64 << 20, DiskRecords: 1 << 40, DiskBytes: 1 << 40, LeaseDuration: time.Minute,
		Subscriptions: []queue.SubscriptionConfig{{Name: "away", Topics: []string{"*"}, Required: true}}}
	return queue.Open(cfg, func(o queue.StoreOptions) (queue.Store, error) { return Open(dir, Config{}, o) })
}

// TestBacklog measures how a queue is opened that has not been consumed for a long time: below 5
// s and 100 MB of heap for 20 GiB.
func TestBacklog(t *testing.T) {
	gib, err := strconv.ParseInt(os.Getenv(backlogVariable), 10, 64)
	if err != nil {
		t.Skipf("NOT RUN: it takes minutes and much disk; set %s", backlogVariable)
	}
	dir := filepath.Join(t.TempDir(), "store")
	q, err := openBacklog(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx) }()
	begun, batches := time.Now(), gib<<30/backlogBatch
	for i := range batches {
		first := i / 8 * backlogRecords
		b := queue.Batch{Partition: queue.Partition{Cluster: "c", Topic: "t", Number: int32(i % 8)},
			Range: queue.Range{First: first, Next: first + backlogRecords}, Records: backlogRecords, Payload: noise(uint64(i), backlogBatch)}
		if _, err := q.Append(ctx, b, 0); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	took := time.Since(begun)
	t.Logf("%d batches of 1,000 records, %d GiB, written in %s: %d MB/s", batches, gib, took.Round(time.Second), int64(float64(gib<<30)/1e6/took.Seconds()))
	for _, kind := range []string{"after a clean end: the active segment is scanned", "again"} {
		cmd := child(t, "open backlog", dir)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("open in a child: %v", err)
		}
		t.Logf("%s: %s", kind, out)
		var took time.Duration
		var heap int64
		var text string
		if _, err := fmt.Sscanf(string(out), "%d %d %s", &took, &heap, &text); err != nil {
			t.Fatalf("the child printed %q: %v", out, err)
		}
		if took > 5*time.Second || heap > 100e6 {
			t.Errorf("opened in %s with %d MB of heap", took, heap/1e6)
		}
	}
}

// tellBacklog is the child: it opens the queue, and prints nanoseconds, bytes of heap, and words.
func tellBacklog(dir string) error {
	begun := time.Now()
	q, err := openBacklog(dir)
	if err != nil {
		return err
	}
	took := time.Since(begun)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	runtime.GC()
	runtime.ReadMemStats(&after)
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	rss := "?"
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			rss = strings.ReplaceAll(strings.TrimSpace(rest), " ", "_")
		}
	}
	stats := q.Stats()
	fmt.Printf("%d %d peak_rss=%s heap_in_use=%dMB heap_before_gc=%dMB opened_in=%s pending_records=%d disk=%dMB\n", took, after.HeapAlloc, rss,
		after.HeapInuse/1e6, before.HeapAlloc/1e6, took.Round(time.Millisecond), stats.PendingRecords, stats.Store.DiskBytes/1e6)
	ctx, stop := context.WithCancel(context.Background())
	stop()
	if err := q.Run(ctx); err != nil {
		return errors.Join(errors.New("close"), err)
	}
	return nil
}
