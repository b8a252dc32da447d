package main

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"syscall"
	"testing"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/race"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

var (
	grpcAddr = regexp.MustCompile(`msg=starting .* grpc=(\S+)`)
	peakRSS  = regexp.MustCompile(`VmHWM:\s+(\d+) kB`)
)

// TestMemoryOfSlowSessions runs a buffer with eight sessions that have credit for all there is
// and read nothing: it never takes more than its window and what docs/operations.md promises on
// top.
func TestMemoryOfSlowSessions(t *testing.T) {
	race.Apart(t) // the race detector keeps memory of its own, and more when it is slow
	const window, batchBytes, batches = 32 << 20, 1 << 20, 450
	file := writeFile(t, "pipeline.yaml", fmt.Sprintf(
		"buffer: {listen: '127.0.0.1:0', http: '127.0.0.1:0', data_dir: %q, queues: {q: {memory: {bytes: %d}, spill_after: 0s, subscriptions: {s: {}}}}}", t.TempDir(), window))
	c := start(t, "buffer", "-c", file)
	c.wait("msg=ready")
	conn, err := rpc.Dial(grpcAddr.FindStringSubmatch(c.out.String())[1])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := spillwayv1.NewBufferServiceClient(conn)
	for i := range 8 {
		s, err := client.Consume(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range []*spillwayv1.ConsumeRequest{
			{Message: &spillwayv1.ConsumeRequest_Open{Open: &spillwayv1.ConsumeOpen{Subscription: "q/s", Consumer: fmt.Sprint(i), Ordering: spillwayv1.Ordering_ORDERING_NONE}}},
			{Message: &spillwayv1.ConsumeRequest_Credit{Credit: &spillwayv1.Credit{Bytes: 1 << 40}}}} {
			if err := s.Send(m); err != nil {
				t.Fatal(err)
			}
		}
	}
	in, err := client.Append(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Open{Open: &spillwayv1.AppendOpen{Queue: "q", Cluster: "k", Client: "test"}}}); err != nil {
		t.Fatal(err)
	}
	payload := recordbatch.AppendRecord(nil, &recordbatch.Record{Value: make([]byte, batchBytes)})
	for i := range int64(batches) {
		if err := in.Send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Batch{Batch: &spillwayv1.Batch{
			Source:      &spillwayv1.SourcePartition{Cluster: "k", Topic: "t"},
			FirstOffset: i, NextOffset: i + 1, RecordCount: 1, Codec: spillwayv1.Codec_CODEC_NONE, PayloadCrc32C: recordbatch.CRC(payload), Payload: payload}}}); err != nil {
			t.Fatal(err)
		}
		for answered := false; !answered; {
			m, err := in.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if a := m.GetAppended(); a != nil {
				if answered = true; a.Status != nil {
					t.Fatal(a)
				}
			}
		}
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	if err != nil {
		t.Skip("no /proc to read its memory from")
	}
	m := peakRSS.FindSubmatch(status)
	if m == nil {
		t.Fatalf("no peak in %s", status)
	}
	kib, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d MiB at most, with %d MiB of batches", kib>>10, batches*batchBytes>>20)
	bound := int64(window+overhead) >> 20
	if kib>>10 > bound {
		t.Errorf("the buffer took up to %d MiB, at most %d are promised", kib>>10, bound)
	}
	c.signal(syscall.SIGTERM)
	if status := c.status(); status != 0 {
		t.Errorf("it ended with %d", status)
	}
}
