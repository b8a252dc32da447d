package picture

import (
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

var update = flag.Bool("update", false, "write testdata anew")

// fake is a buffer with a lot going on. Lists come in two pages.
type fake struct {
	spillwayv1.BufferAdminServiceClient
	queues   []*spillwayv1.Queue
	subs     []*spillwayv1.Subscription
	sessions []*spillwayv1.Session
	flows    []*spillwayv1.QueueFlow
	old      bool // it does not know ListFlows
}

// halves returns a page of all.
func halves[T any](all []T, token string) (page []T, next string) {
	if half := len(all) / 2; token != "" {
		return all[half:], ""
	} else if half > 0 {
		return all[:half], "more"
	}
	return all, ""
}

func (f *fake) ListQueues(_ context.Context, r *spillwayv1.ListQueuesRequest, _ ...grpc.CallOption) (*spillwayv1.ListQueuesResponse, error) {
	page, next := halves(f.queues, r.PageToken)
	return &spillwayv1.ListQueuesResponse{Queues: page, NextPageToken: next}, nil
}

func (f *fake) ListSubscriptions(_ context.Context, r *spillwayv1.ListSubscriptionsRequest, _ ...grpc.CallOption) (*spillwayv1.ListSubscriptionsResponse, error) {
	page, next := halves(f.subs, r.PageToken)
	return &spillwayv1.ListSubscriptionsResponse{Subscriptions: page, NextPageToken: next}, nil
}

func (f *fake) ListSessions(_ context.Context, r *spillwayv1.ListSessionsRequest, _ ...grpc.CallOption) (*spillwayv1.ListSessionsResponse, error) {
	page, next := halves(f.sessions, r.PageToken)
	return &spillwayv1.ListSessionsResponse{Sessions: page, NextPageToken: next}, nil
}

func (f *fake) ListFlows(_ context.Context, r *spillwayv1.ListFlowsRequest, _ ...grpc.CallOption) (*spillwayv1.ListFlowsResponse, error) {
	if f.old {
		return nil, status.Error(codes.Unimplemented, "unknown method")
	}
	page, next := halves(f.flows, r.PageToken)
	return &spillwayv1.ListFlowsResponse{Queues: page, NextPageToken: next}, nil
}

func (f *fake) ListParkedBatches(_ context.Context, r *spillwayv1.ListParkedBatchesRequest, _ ...grpc.CallOption) (*spillwayv1.ListParkedBatchesResponse, error) {
	if r.Subscription == "logs/gone" {
		return nil, status.Error(codes.NotFound, "gone")
	}
	return &spillwayv1.ListParkedBatchesResponse{Batches: []*spillwayv1.ParkedBatch{{Subscription: r.Subscription,
		Reason: "mkdir /logs: \x1b[2Jpermission denied: user spillway, access WRITE, inode /:hdfs:supergroup:drwxr-xr-x"}}}, nil
}

func busy() *fake {
	perSecond := func(n float64) *float64 { return &n }
	in := func(window time.Duration, change float64, left time.Duration) *spillwayv1.Forecast {
		f := &spillwayv1.Forecast{Window: durationpb.New(window), PerSecond: change}
		if left >= 0 {
			f.Left = durationpb.New(left)
		}
		return f
	}
	const never = -1
	opened := timestamppb.New(time.Date(2026, 11, 30, 8, 0, 0, 0, time.UTC))
	return &fake{
		queues: []*spillwayv1.Queue{
			{Name: "audit", State: "recovering: open /data/audit: no space left on device", MemoryBytesLimit: 64 << 20, DiskBytesLimit: 1 << 30},
			{Name: "logs", State: "open", MemoryBytes: 120 << 20, MemoryBytesLimit: 256 << 20, DiskBytes: 8 << 30, DiskBytesLimit: 10 << 30, PendingRecords: 1_234_567},
		},
		subs: []*spillwayv1.Subscription{
			{Name: "logs/a-name-that-is-much-longer", Configured: true, PendingRecords: 12, PendingBytes: 3400, OldestPendingAge: durationpb.New(2 * time.Second), OnFull: spillwayv1.OnFull_ON_FULL_BLOCK},
			{Name: "logs/caught-up", Configured: true, Required: true},
			{Name: "logs/gone", Configured: true, PendingRecords: 1, ParkedBatches: 1},
			{Name: "logs/hdfs", Configured: true, Required: true, PendingRecords: 1_234_000, PendingBytes: 1300 << 20, DeferredOffsets: 567, OldestPendingAge: durationpb.New(200 * time.Second), DeliveredRecords: 77},
			{Name: "logs/lossy", Configured: true, LostOffsets: 3, DroppedOffsets: 1500, DeadLetteredRecords: 40, DeadLetters: proto.Int64(20)},
			{Name: "logs/old", PendingRecords: 10, PendingBytes: 10, OldestPendingAge: durationpb.New(75 * time.Hour)},
			{Name: "logs/parked", Configured: true, PendingRecords: 999_999, PendingBytes: 77 << 20, ParkedBatches: 4, OldestPendingAge: durationpb.New(90 * time.Minute)},
			{Name: "logs/paused", Configured: true, Paused: true, PendingRecords: 500, PendingBytes: 5 << 10, OldestPendingAge: durationpb.New(59 * time.Second)},
			{Name: "logs/slow", Configured: true, PendingRecords: 800, PendingBytes: 8 << 10, OldestPendingAge: durationpb.New(4 * time.Minute)},
			{Name: "logs/unreachable", Configured: true, PendingRecords: 70, PendingBytes: 7 << 10, OldestPendingAge: durationpb.New(time.Minute),
				Trouble: "produce to out-7: \x1b[2Jconnection refused", TroubleSince: opened},
			{Name: "other/queue", Configured: true},
		},
		sessions: []*spillwayv1.Session{
			{Id: 1<<63 + 1, Subscription: "logs/a-name-that-is-much-longer", Consumer: "copy-1", Live: true, LeasedBatches: 1, OpenedAt: opened},
			{Id: 2, Subscription: "logs/caught-up", Consumer: "old", StateEntries: 2},
			{Id: 3, Subscription: "logs/gone", Consumer: "g", Live: true},
			{Id: 4, Subscription: "logs/hdfs", Consumer: "hdfs-1", Live: true, LeasedBatches: 8, OpenedAt: opened},
			{Id: 5, Subscription: "logs/hdfs", Consumer: "hdfs-2", StateEntries: 1},
			{Id: 6, Subscription: "logs/parked", Consumer: "p", Live: true},
			{Id: 7, Subscription: "logs/slow", Consumer: "s\x07", Live: true},
			{Id: 9, Subscription: "logs/unreachable", Consumer: "f", Live: true},
			{Id: 8, Subscription: "nowhere/sub", Consumer: "n", Live: true},
		},
		flows: []*spillwayv1.QueueFlow{
			{Queue: "logs", AppendedPerSecond: perSecond(12_345.4),
				Ingests: []*spillwayv1.ConnectedIngest{{Client: "ingest-1", Cluster: "kafka-a", Sources: []string{"api", "web"}}, {Client: "ingest-2", Cluster: "kafka-b"}},
				Full:    []*spillwayv1.Forecast{in(5*time.Minute, 1e6, 40*time.Minute), in(15*time.Second, 3e6, 12*time.Minute)},
				Subscriptions: []*spillwayv1.SubscriptionFlow{
					{Subscription: "logs/a-name-that-is-much-longer", DeliveredPerSecond: perSecond(12_345.4), Drained: []*spillwayv1.Forecast{in(15*time.Second, -4, 3*time.Second)}},
					{Subscription: "logs/caught-up", DeliveredPerSecond: perSecond(12_345.4), Drained: []*spillwayv1.Forecast{in(15*time.Second, 0, 0)}},
					{Subscription: "logs/hdfs", DeliveredPerSecond: perSecond(0), Drained: []*spillwayv1.Forecast{in(15*time.Second, 12_345.4, never)}},
					{Subscription: "logs/slow", DeliveredPerSecond: perSecond(0.5), Drained: []*spillwayv1.Forecast{in(15*time.Second, 2, never)}},
					{Subscription: "logs/vanished"},
				}},
			{Queue: "vanished"},
		},
	}
}

// TestLines compares the text of a bad day with testdata, in 80 columns, in 40 and in colour; and
// no line is wider than the terminal.
func TestLines(t *testing.T) {
	p, err := Look(t.Context(), busy())
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "busy.txt", strings.Join(p.Lines(Style{Width: 80}), "\n")+"\n")
	golden(t, "busy-narrow.txt", strings.Join(p.Lines(Style{Width: 40}), "\n")+"\n")
	golden(t, "busy-colour.txt", strings.Join(p.Lines(Style{Width: 120, Height: 30, Colour: true}), "\n")+"\n")
	for _, width := range []int{1, 40, 59, 60, 80, 200} {
		for _, line := range p.Lines(Style{Width: width}) {
			if n := len([]rune(line)); n > max(leastWidth, width) || strings.ContainsAny(line, "\x1b\x07\n") {
				t.Errorf("at %d columns, a line of %d: %q", width, n, line)
			}
			if width < narrowBelow && strings.Contains(line, "~") {
				t.Errorf("at %d columns, a line is cut: %q", width, line)
			}
		}
	}
}

// TestCalm has nothing to say when all is well, and of a buffer that knows no rates.
func TestCalm(t *testing.T) {
	f := busy()
	f.queues, f.subs = f.queues[1:], f.subs[1:2]
	f.queues[0].DiskBytes = 0
	f.sessions = []*spillwayv1.Session{{Id: 2, Subscription: "logs/caught-up", Consumer: "old", Live: true}}
	f.flows[0].Full = nil
	p, err := Look(t.Context(), f)
	if err != nil || len(p.Troubles) != 0 {
		t.Fatalf("%v, %v", p.Troubles, err)
	}
	golden(t, "calm.txt", strings.Join(p.Lines(Style{Width: 80}), "\n")+"\n")
	f.old = true
	if p, err = Look(t.Context(), f); err != nil || p.Queues[0].InPerSecond != nil || p.Queues[0].Full.Known {
		t.Errorf("an old buffer: %+v, %v", p.Queues[0], err)
	}
}

// TestJSON keeps the names that the console and others rely on, and lists without null.
func TestJSON(t *testing.T) {
	f := busy()
	f.queues, f.subs, f.sessions = f.queues[1:], f.subs[3:4], f.sessions[3:4]
	p, err := Look(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	p.At = time.Date(2026, 11, 30, 9, 0, 0, 0, time.UTC)
	b, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "busy.json", string(b)+"\n")
	if b, err = json.Marshal(&Picture{Queues: []*Queue{}, Troubles: []Trouble{}}); err != nil || strings.Contains(string(b), "null") {
		t.Errorf("%s %v", b, err)
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s (go test -update writes it anew) is\n%s\nwant\n%s", name, got, want)
	}
}

func TestFormat(t *testing.T) {
	for n, want := range map[float64]string{0: "0", 0.01: "<0.1", 0.5: "0.5", 9.9: "9.9", 10.4: "10", 999: "999", 1000: "1,000", 999_999: "999,999",
		999_999.7: "1.00M", 1_234_567: "1.23M", 12_345_678: "12.3M", 123_456_789: "123M", 1.5e9: "1.50G", 2e12: "2.00T", 3e15: "3.00P", 1e30: "lots"} {
		if got := Count(n); got != want {
			t.Errorf("Count(%v) is %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{0: "<1s", 59 * time.Second: "59s", 200 * time.Second: "3m20s", time.Hour: "1h00m",
		47*time.Hour + 59*time.Minute: "47h59m", 127 * time.Hour: "5d7h"} {
		if got := Duration(d); got != want {
			t.Errorf("Duration(%v) is %s, want %s", d, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0B", 1023: "1023B", 1536: "1.5KiB", 3 << 40: "3.0TiB"} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) is %s, want %s", n, got, want)
		}
	}
}
