package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// fakeAudit is a buffer that answers audits only.
type fakeAudit struct {
	spillwayv1.UnimplementedBufferAdminServiceServer
	answer *spillwayv1.AuditResponse
}

func (f *fakeAudit) Audit(_ context.Context, r *spillwayv1.AuditRequest) (*spillwayv1.AuditResponse, error) {
	if r.Name != "" && r.Name != "q" && r.Name != "q/s" {
		return nil, status.Errorf(codes.NotFound, "no such queue: %q", r.Name)
	}
	return f.answer, nil
}

func TestAudit(t *testing.T) {
	part := &spillwayv1.AuditPartition{Subscription: "q/s", Source: &spillwayv1.SourcePartition{Topic: "orders", Partition: 3}, StartOffset: 10,
		SettledOffset: 15, AppendedOffset: 30, SafeOffset: 20, Outcomes: map[string]int64{"delivered": 4, "dead_lettered": 1}, PendingOffsets: 15,
		Ranges: []*spillwayv1.AuditRange{{Range: &spillwayv1.OffsetRange{First: 15, Next: 30}, State: "leased"}}}
	answer := &spillwayv1.AuditResponse{Partitions: []*spillwayv1.AuditPartition{part}}
	address := serveAdmin(t, &fakeAudit{answer: answer})

	want := `SUBSCRIPTION  TOPIC   PARTITION  FROM  TO  SETTLED  SAFE  DELIVERED  FILTERED  DEAD  DROPPED  LOST  PENDING  HOLES
q/s           orders  3          10    30  15       20    4          0         1     0        0     15       0
`
	if got := spillway(t, "audit", "--buffer", address); got.status != 0 || got.stdout != want {
		t.Errorf("audit: %+v, want\n%s", got, want)
	}
	want += `
SUBSCRIPTION  TOPIC   PARTITION  FROM  TO  OFFSETS  STATE
q/s           orders  3          15    30  15       leased
`
	file := writeFile(t, "pipeline.yaml", fmt.Sprintf("buffers: [%q]\nbuffer: {data_dir: /x, queues: {q: {subscriptions: {s: {}}}}}", address))
	if got := spillway(t, "audit", "q/s", "--ranges", "-c", file); got.status != 0 || got.stdout != want {
		t.Errorf("audit --ranges: %+v, want\n%s", got, want)
	}
	if got := spillway(t, "audit", "nope", "-b", address); got.status != 1 || !strings.Contains(got.stderr, `no such queue: "nope"`) {
		t.Errorf("audit of what is not there: %+v", got)
	}

	part.HoleOffsets = 2
	for _, output := range []string{"table", "json"} {
		got := spillway(t, "audit", "-b", address, "-o", output)
		if got.status != 1 || !strings.Contains(got.stderr, "accounted for nowhere") || got.stdout == "" {
			t.Errorf("audit with a hole, as %s: %+v", output, got)
		}
		if output == "json" && !json.Valid([]byte(got.stdout)) {
			t.Errorf("not JSON: %s", got.stdout)
		}
	}
}

// TestAuditOfWhatRuns audits a pipeline under load.
func TestAuditOfWhatRuns(t *testing.T) {
	dir := t.TempDir()
	dev := start(t, "dev", "--rate", "500", "--dir", dir)
	dev.wait("backlog")
	got := spillway(t, "audit", "-c", dir+"/pipeline.yaml", "-o", "json")
	var audit struct {
		Partitions []struct {
			Subscription   string
			AppendedOffset string
			HoleOffsets    string
		}
	}
	if err := json.Unmarshal([]byte(got.stdout), &audit); err != nil || got.status != 0 {
		t.Fatalf("audit: %v, %+v", err, got)
	}
	if len(audit.Partitions) != 2*2*partitions {
		t.Errorf("%d partitions, want those of two topics for two subscriptions", len(audit.Partitions))
	}
	for _, p := range audit.Partitions {
		if p.HoleOffsets != "0" || p.AppendedOffset == "0" {
			t.Errorf("%+v", p)
		}
	}
}
