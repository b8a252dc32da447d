package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// TestBufferIsReadyAgainAfterSIGKILL: it comes back by itself, with its lock, its ports and its
// memory in order, and ends with status 0 on SIGTERM.
func TestBufferIsReadyAgainAfterSIGKILL(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "pipeline.yaml")
	b := newService(t, dir, "buffer", "buffer", "--config", file)
	config := fmt.Sprintf("buffer:\n  listen: %s\n  http: %s\n  data_dir: %s\n  queues:\n    c: {subscriptions: {s: {topics: [\"*\"]}}}\n", b.grpc, b.http, filepath.Join(dir, "data"))
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		b.start()
		b.waitReady()
		if _, body, err := b.get("/metrics"); err != nil || !strings.Contains(body, "spillway_buffer_") {
			t.Errorf("metrics: %v, or none of the buffer's", err)
		}
		if _, err := healthv1.NewHealthClient(b.conn).Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil && status.Code(err) != codes.Unavailable {
			t.Errorf("health: %v", err) // the connection may still be waiting to try again
		}
		if now, peak := b.memoryBytes(); peak > 128<<20 {
			t.Errorf("an empty buffer has used %d MiB of memory, now %d", peak>>20, now>>20)
		}
		b.kill()
	}
	b.start()
	b.waitReady()
	b.stop()
}

// TestBrokerComesBack: what the tests of outages stand on.
func TestBrokerComesBack(t *testing.T) {
	b := secondBroker(t)
	answers := func() error {
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(context.Background(), "tcp", b.addr())
		if err != nil {
			return err
		}
		return conn.Close()
	}
	for range 2 {
		if err := b.start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, 30*time.Second, "the broker answers", answers)
		if err := b.crash(); err != nil {
			t.Fatal(err)
		}
		pause(t, 100*time.Millisecond) // its port closes with the process
		if err := answers(); err == nil {
			t.Fatal("the broker answers although it was killed")
		}
	}
}
