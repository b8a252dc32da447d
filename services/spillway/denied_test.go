package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/buffer/store/memstore"
	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/delivery/filesink/localfs"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// denier denies directories as HDFS does.
type denier struct{ filesink.FS }

func (d denier) Create(ctx context.Context, path string, notify func()) (filesink.File, error) {
	if !strings.Contains(path, "/closed") {
		return d.FS.Create(ctx, path, notify)
	}
	return nil, fmt.Errorf("%w: create %s: mkdir /logs/orders/2026-01-31: permission denied: Permission denied: user=spillway, access=WRITE, inode=\"/logs\":hdfs:supergroup:drwxr-xr-x", filesink.ErrDenied, path)
}

// TestManyDeadLetters has a delivery dead-letter 300,000 small records: all of a partition, and
// every other one of another, for which each is a dead letter of its own. No lease comes twice.
func TestManyDeadLetters(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	dir := t.TempDir()
	cfg, err := config.Parse("x.yaml", fmt.Appendf(nil, `
buffer:
  data_dir: %s
  queues: {q: {spill_after: 1h, memory: {bytes: 256MiB, records: 10000000}, subscriptions: {s: {}}}}
delivery:
  d: {subscription: q/s, hdfs: {url: "file://%s", path: "/out/%%{dir}", on_denied: dead_letter}}
`, t.TempDir(), dir), nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := buffer.New(cfg.Buffer, buffer.Deps{Log: log, OpenStore: func(_ string, o queue.StoreOptions) (queue.Store, error) { return memstore.New().Reopen(o) }})
	if err != nil {
		t.Fatal(err)
	}
	server := rpc.NewServer(log)
	b.Register(server.GRPC)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	disk, err := localfs.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	sink, err := filesink.New(cfg.Delivery["d"].HDFS, denier{disk}, log)
	if err != nil {
		t.Fatal(err)
	}
	d, err := delivery.New("d", cfg.Delivery["d"], []string{lis.Addr().String()}, sink, delivery.Deps{Log: log, Instance: "test"})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := rpc.Dial(lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	run := func(run func() error) {
		running.Go(func() {
			if err := run(); err != nil {
				t.Error(err)
			}
		})
	}
	defer running.Wait()
	defer stop()
	run(func() error { return b.Run(ctx) })
	run(func() error { return server.Serve(ctx, lis) })
	appendDenied(t, spillwayv1.NewBufferServiceClient(conn))
	run(func() error { return d.Run(ctx) })
	admin := spillwayv1.NewBufferAdminServiceClient(conn)
	deadline := time.Now().Add(3 * time.Minute)
	for {
		r, err := admin.GetSubscription(t.Context(), &spillwayv1.GetSubscriptionRequest{Name: "q/s"})
		if err != nil {
			t.Fatal(err)
		}
		s := r.Subscription
		if s.PendingRecords == 0 {
			if s.DeadLetteredRecords != 250_000 || s.RedeliveredBatches != 0 {
				t.Errorf("%d records are dead-lettered, and %d batches came again", s.DeadLetteredRecords, s.RedeliveredBatches)
			}
			if n := linesBelow(t, dir); n != 50_000 {
				t.Errorf("%d records are in files, want 50,000", n)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d records are pending, %d dead-lettered, %d batches came again", s.PendingRecords, s.DeadLetteredRecords, s.RedeliveredBatches)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// linesBelow counts the lines in all files below dir.
func linesBelow(t *testing.T, dir string) (n int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		n += bytes.Count(content, []byte("\n"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// appendDenied appends 200 batches of 1,000 records that are denied, and 100 of which every other
// record is.
func appendDenied(t *testing.T, client spillwayv1.BufferServiceClient) {
	t.Helper()
	open := &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Open{Open: &spillwayv1.AppendOpen{Queue: "q", Cluster: "c"}}}
	var stream grpc.BidiStreamingClient[spillwayv1.AppendRequest, spillwayv1.AppendResponse]
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		var err error
		if stream, err = client.Append(t.Context(), grpc.WaitForReady(true)); err == nil {
			if err = stream.Send(open); err == nil {
				_, err = stream.Recv()
			}
		}
		if err == nil {
			break
		}
		if status.Code(err) != codes.Unavailable || time.Now().After(deadline) { // the queue is opening
			t.Fatal(err)
		}
	}
	ask := func(m *spillwayv1.AppendRequest) {
		t.Helper()
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	for n, batches := range []int64{200, 100} {
		src := &spillwayv1.SourcePartition{Cluster: "c", Topic: "t", Partition: int32(n)}
		ask(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Assign{Assign: &spillwayv1.AssignPartition{Source: src}}})
		for i := range batches {
			var p []byte
			for o := range int64(1000) {
				to := "closed"
				if n == 1 && o%2 == 0 {
					to = "open"
				}
				p = recordbatch.AppendRecord(p, &recordbatch.Record{OffsetDelta: o, TimestampMs: 1, Value: bytes.Repeat([]byte("x"), 40),
					Headers: []recordbatch.Header{{Name: []byte("dir"), Value: []byte(to)}}})
			}
			if err := stream.Send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Batch{Batch: &spillwayv1.Batch{Source: src,
				FirstOffset: i * 1000, NextOffset: (i + 1) * 1000, RecordCount: 1000, Codec: spillwayv1.Codec_CODEC_NONE,
				PayloadCrc32C: recordbatch.CRC(p), Payload: p, MaxTimestampMs: 1}}}); err != nil {
				t.Fatal(err)
			}
			for { // safe offsets come in between
				m, err := stream.Recv()
				if err != nil {
					t.Fatal(err)
				}
				if a := m.GetAppended(); a != nil {
					if a.Status != nil {
						t.Fatal(a.Status)
					}
					break
				}
			}
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
}
