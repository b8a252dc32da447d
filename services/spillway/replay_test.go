package main

import (
	"path/filepath"
	"regexp"
	"syscall"
	"testing"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// TestDevDrainsAfterReplay has records of the test Kafka delivered once more: they are fetched
// and appended again, and must not be taken for more records.
func TestDevDrainsAfterReplay(t *testing.T) {
	dir := t.TempDir()
	dev := start(t, "dev", "--rate", "500", "--dir", dir)
	dev.wait("backlog")
	cfg, err := config.Load(filepath.Join(dir, "pipeline.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := rpc.Dial(cfg.Buffers[0])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, err = spillwayv1.NewBufferAdminServiceClient(conn).SeekSubscription(t.Context(), &spillwayv1.SeekSubscriptionRequest{Name: devTest,
		To: &spillwayv1.StartPosition{Offsets: []*spillwayv1.PartitionOffset{{Source: &spillwayv1.SourcePartition{Topic: devTopics[0]}, Offset: 10}}}})
	if err != nil {
		t.Fatal(err)
	}
	dev.signal(syscall.SIGINT)
	if status := dev.status(); status != 0 {
		t.Errorf("status %d", status)
	}
	out := dev.wait("DESTINATION")
	if m := regexp.MustCompile(`(?m)^ *test Kafka +(\d+) +(\d+) +0 +(\d+) +0$`).FindStringSubmatch(out); m == nil || m[1] != m[2] || m[3] == "0" {
		t.Errorf("the account is %q", m)
	}
}
