package picture

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// away is a buffer that does not answer.
type away struct {
	spillwayv1.BufferAdminServiceClient
	code codes.Code
}

func (a *away) ListQueues(context.Context, *spillwayv1.ListQueuesRequest, ...grpc.CallOption) (*spillwayv1.ListQueuesResponse, error) {
	return nil, status.Error(a.code, "not now")
}

// shard is a buffer with one of two shards of a queue; left is when its disk is full.
func shard(number int32, disk, backlog int64, out float64, left time.Duration) *fake {
	f := &fake{
		queues: []*spillwayv1.Queue{{Name: "logs", State: "open", MemoryBytesLimit: 64 << 20, DiskBytes: disk << 30, DiskBytesLimit: 10 << 30, Shard: number, Shards: 2}},
		subs: []*spillwayv1.Subscription{{Name: "logs/hdfs", Configured: true, Required: true, PendingRecords: backlog, PendingBytes: backlog * 100,
			OldestPendingAge: durationpb.New(time.Duration(backlog) * time.Second)}},
		sessions: []*spillwayv1.Session{{Id: uint64(number) + 1, Subscription: "logs/hdfs", Consumer: "hdfs-1", Live: true}},
		flows: []*spillwayv1.QueueFlow{{Queue: "logs", AppendedPerSecond: &out, Ingests: []*spillwayv1.ConnectedIngest{{Client: "ingest-1", Sources: []string{"web"}}},
			Subscriptions: []*spillwayv1.SubscriptionFlow{{Subscription: "logs/hdfs", DeliveredPerSecond: &out, Drained: []*spillwayv1.Forecast{{Window: durationpb.New(15 * time.Second), Left: durationpb.New(left)}}}}}},
	}
	if left > 0 {
		f.flows[0].Full = []*spillwayv1.Forecast{{Window: durationpb.New(15 * time.Second), Left: durationpb.New(left)}}
	}
	return f
}

// TestSeveral brings together what two buffers tell of a queue that they divide: sums, the first
// disk to be full, the last backlog to be gone, and the troubles that a sum would hide.
func TestSeveral(t *testing.T) {
	one := Buffer{"buffer-0:7400", shard(0, 1, 2, 10, 0)}
	two := Buffer{"buffer-1:7400", shard(1, 9, 70, 0, 5*time.Minute)}
	p, err := LookAll(t.Context(), []Buffer{two, one})
	if err != nil || len(p.Queues) != 1 {
		t.Fatalf("%+v, %v", p, err)
	}
	q := p.Queues[0]
	if q.Disk != (Level{10 << 30, 20 << 30}) || *q.InPerSecond != 10 || len(q.Ingests) != 1 || len(q.Shards) != 2 || q.Shards[0].Buffer != one.Address {
		t.Errorf("the queue is %+v", q)
	}
	if left, ok := q.Full.Left(); !ok || left != 5*time.Minute {
		t.Errorf("full in %v (%v), want that of the first to be full", left, ok)
	}
	s := q.Subscriptions[0]
	if left, ok := s.Drained.Left(); len(q.Subscriptions) != 1 || s.Backlog != 72 || s.Age() != 70*time.Second || !ok || left != 5*time.Minute {
		t.Errorf("the subscription is %+v", s)
	}
	text := strings.Join(p.Lines(Style{Width: 80}), "\n") + "\n"
	golden(t, "several.txt", text)
	golden(t, "several-narrow.txt", strings.Join(p.Lines(Style{Width: leastWidth}), "\n")+"\n")
	if strings.Contains(text, "hdfs-1, hdfs-1") {
		t.Error("a delivery is named once for each buffer")
	}

	// The caller's own takes its address from the list, in which it is, too.
	p, err = LookAll(t.Context(), []Buffer{{"", shard(0, 1, 2, 10, 0)}, two, one})
	if err != nil || len(p.Queues) != 1 || len(p.Queues[0].Shards) != 2 || p.Queues[0].Disk != q.Disk || !slices.Equal(p.Buffers, []Asked{{one.Address, true}, {two.Address, true}}) {
		t.Errorf("with the caller's own: %+v, %v", p, err)
	}

	// One that does not answer is a trouble, whatever its place; without any there is no picture.
	gone := Buffer{"buffer-2:7400", &away{code: codes.PermissionDenied}}
	for _, all := range [][]Buffer{{gone, one}, {one, gone}} {
		p, err := LookAll(t.Context(), all)
		if err != nil || len(p.Queues) != 1 || len(p.Troubles) == 0 || p.Troubles[0].About != gone.Address || p.Troubles[0].Severity != Critical {
			t.Errorf("with one away: %+v, %v", p, err)
		}
	}
	if p, err := LookAll(t.Context(), []Buffer{gone, gone}); err == nil || status.Code(err) != codes.PermissionDenied {
		t.Errorf("with all away: %+v, %v", p, err)
	}

	// One that waits to take a shard over is no trouble, and adds no bounds.
	waiting := shard(0, 0, 0, 0, 0)
	waiting.queues[0].State, waiting.subs, waiting.sessions, waiting.flows = "another buffer has it", nil, nil, nil
	for _, all := range [][]Buffer{{{"buffer-2:7400", waiting}, one, two}, {two, one, {"buffer-2:7400", waiting}}} {
		p, err := LookAll(t.Context(), all)
		if err != nil || len(p.Queues) != 1 || len(p.Queues[0].Shards) != 2 || p.Queues[0].Disk != q.Disk || len(p.Buffers) != 3 || p.Queues[0].State != "open" ||
			strings.Contains(strings.Join(p.Lines(Style{Width: 80}), "\n"), "not open") {
			t.Errorf("with one that waits: %+v, %v", p, err)
		}
	}

	// A shard that is not open does not hide the others.
	broken := shard(1, 0, 0, 0, 0)
	broken.queues[0].State = "recovering: no space left on device"
	p, err = LookAll(t.Context(), []Buffer{{two.Address, broken}, one})
	if err != nil || p.Queues[0].State != "open" || p.Troubles[0].What != "at buffer-1:7400: the queue is not open: recovering: no space left on device" {
		t.Errorf("with a shard that is not open: %+v, %v", p.Troubles, err)
	}
}
