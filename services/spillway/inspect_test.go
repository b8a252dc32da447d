package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/buffer/store/nutsstore"
)

// payload is what the batches of dataDir have.
var payload = bytes.Repeat([]byte("payload of a batch. "), 50)

func openLogs(t *testing.T, dir string) (q *queue.Queue, stop func()) {
	t.Helper()
	cfg := queue.Config{MemoryRecords: 1000, MemoryBytes: 1 << 20, DiskRecords: 1e6, DiskBytes: 1 << 30, LeaseDuration: time.Minute,
		Subscriptions: []queue.SubscriptionConfig{{Name: "hdfs", Topics: []string{"*"}, Required: true}, {Name: "test", Topics: []string{"orders"}}}}
	q, err := queue.Open(cfg, func(o queue.StoreOptions) (queue.Store, error) {
		return nutsstore.Open(filepath.Join(dir, "logs"), nutsstore.Config{}, o)
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx) }()
	return q, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// dataDir is a stopped buffer's, with the queue logs: ten batches of ten records, of which test
// has settled the first five, and a session with sink state.
func dataDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	q, stop := openLogs(t, dir)
	orders := queue.Partition{Cluster: "c", Topic: "orders", Number: 3}
	for i := range int64(10) {
		b := queue.Batch{Partition: orders, Range: queue.Range{First: i * 10, Next: i*10 + 10}, Records: 10, Payload: payload}
		if _, err := q.Append(t.Context(), b, 0); err != nil {
			t.Fatal(err)
		}
	}
	s, err := q.OpenSession("test", "consumer-1", false)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.AddCredit(int64(5 * len(payload))); err != nil {
		t.Fatal(err)
	}
	ack := queue.Ack{ID: 1, State: []queue.StateChange{{Key: "file", Value: []byte("v")}}}
	for acked := false; !acked; {
		events, err := s.Events(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			acked = acked || e.Ack != nil
			if e.Lease == nil {
				continue
			}
			if ack.Leases = append(ack.Leases, queue.AckedLease{ID: e.Lease.ID}); len(ack.Leases) == 5 {
				if err := s.Ack(ack); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	stop()
	_, stop = openLogs(t, dir) // seals the segment
	stop()
	return dir
}

func TestInspect(t *testing.T) {
	dir := dataDir(t)
	got := spillway(t, "inspect", dir)
	if got.status != 0 || !strings.Contains(got.stdout, "no damage") {
		t.Fatalf("status %d: %s%s", got.status, got.stdout, got.stderr)
	}
	for _, line := range []string{"hdfs orders 3 0 100 0 100 100 0", "test orders 3 0 100 50 100 50 0"} {
		if !strings.Contains(strings.Join(strings.Fields(got.stdout), " "), line) {
			t.Errorf("no %q in:\n%s", line, got.stdout)
		}
	}
	got = spillway(t, "inspect", filepath.Join(dir, "logs"), "--output", "json")
	var answer struct{ Queues []queueReport }
	if err := json.Unmarshal([]byte(got.stdout), &answer); err != nil || got.status != 0 || len(answer.Queues) != 1 {
		t.Fatalf("status %d, %v: %s%s", got.status, err, got.stdout, got.stderr)
	}
	r := answer.Queues[0]
	batches := 0
	for _, s := range r.Segments {
		batches += s.LiveBatches
	}
	if r.Queue != "logs" || batches != 10 || len(r.Sessions) != 1 || r.Sessions[0].StateEntries != 1 || r.Sessions[0].Subscription != "test" {
		t.Errorf("%d live batches in %+v", batches, r)
	}
	if p := r.Partitions[1]; p.Subscription != "test" || p.Outcomes["delivered"] != 50 || p.Pending != 50 {
		t.Errorf("partition %+v", p)
	}
}

// TestInspectRepair: damage is named and makes the exit status 1; after the repair it is in
// quarantine, and the buffer opens its queue without it.
func TestInspectRepair(t *testing.T) {
	dir := dataDir(t)
	path := filepath.Join(dir, "logs", "1.dat")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[bytes.LastIndex(b, payload)+10] ^= 1
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	got := spillway(t, "inspect", dir)
	if got.status != 1 || !strings.Contains(got.stdout, "damage: segment 1, bytes") {
		t.Fatalf("status %d: %s%s", got.status, got.stdout, got.stderr)
	}
	got = spillway(t, "inspect", dir, "--repair")
	if got.status != 0 || !strings.Contains(got.stdout, "repaired") {
		t.Fatalf("status %d: %s%s", got.status, got.stdout, got.stderr)
	}
	old, err := filepath.Glob(filepath.Join(dir, "logs", "quarantine", "*", "1.dat"))
	if err != nil || len(old) != 1 {
		t.Fatalf("quarantine: %q, %v", old, err)
	}
	if kept, err := os.ReadFile(old[0]); err != nil || !bytes.Equal(kept, b) {
		t.Errorf("the file in quarantine: %v, or not as it was", err)
	}
	if got := spillway(t, "inspect", dir); got.status != 0 || !strings.Contains(got.stdout, "no damage") {
		t.Errorf("after the repair: status %d: %s%s", got.status, got.stdout, got.stderr)
	}
	q, stop := openLogs(t, dir)
	defer stop()
	if n := q.Stats().PendingBatches; n != 9 {
		t.Errorf("%d batches are left, want 9", n)
	}
}

func TestInspectRefuses(t *testing.T) {
	if got := spillway(t, "inspect"); got.status != 2 {
		t.Errorf("no directory: status %d", got.status)
	}
	if got := spillway(t, "inspect", t.TempDir()); got.status != 1 || !strings.Contains(got.stderr, "neither the data directory") {
		t.Errorf("an empty directory: status %d: %s", got.status, got.stderr)
	}
	dir := dataDir(t)
	_, stop := openLogs(t, dir)
	defer stop()
	if got := spillway(t, "inspect", dir, "--repair"); got.status != 1 || !strings.Contains(got.stderr, "in use") {
		t.Errorf("a directory in use: status %d: %s", got.status, got.stderr)
	}
}
