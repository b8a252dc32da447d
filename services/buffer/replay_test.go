package buffer

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

func atOffset(topic string, offset int64) *spillwayv1.StartPosition {
	return &spillwayv1.StartPosition{Offsets: []*spillwayv1.PartitionOffset{{Source: &spillwayv1.SourcePartition{Topic: topic}, Offset: offset}}}
}

func atTime(ms int64) *spillwayv1.StartPosition {
	return &spillwayv1.StartPosition{Place: &spillwayv1.StartPosition_Time{Time: timestamppb.New(time.UnixMilli(ms))}}
}

// TestReplaySubscription plans a replay of a time at half speed, begins it, and cancels it.
func TestReplaySubscription(t *testing.T) {
	r := start(t, t.TempDir(), nil)
	in := r.appendStream()
	r.appended(in, batch("t", 0, 10, "v"))
	out := r.consume("c/all")
	first := next(t, out, (*spillwayv1.ConsumeResponse).GetLease)
	sendAck(t, out, &spillwayv1.Ack{Id: 1, Leases: []*spillwayv1.AckedLease{{LeaseId: first.LeaseId}}})
	next(t, out, (*spillwayv1.ConsumeResponse).GetAckResult)

	// The ingest finds a time at its thousands, and is asked for records.
	refetches := make(chan *spillwayv1.Refetch, 10)
	go func() {
		for {
			m, err := in.Recv()
			if err != nil {
				return
			}
			if f := m.GetFindOffset(); f != nil {
				_ = in.Send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_FoundOffset{FoundOffset: &spillwayv1.FoundOffset{Id: f.Id, Offset: f.TimestampMs / 1000}}})
			}
			if f := m.GetRefetch(); f != nil {
				refetches <- f
			}
		}
	}()
	admin := spillwayv1.NewBufferAdminServiceClient(r.conn)
	request := &spillwayv1.ReplaySubscriptionRequest{Name: "c/all", From: atTime(2000), To: atTime(6000), Speed: 0.5, ValidateOnly: true}
	plan, err := admin.ReplaySubscription(t.Context(), request)
	if err != nil || plan.AgainOffsets != 4 || plan.OffsetsPerSecond != 0.5 || plan.Takes.AsDuration() != 8*time.Second || plan.HoldsUp || len(plan.Partitions) != 1 ||
		plan.Partitions[0].Range.First != 2 || plan.Partitions[0].Range.Next != 6 || plan.Subscription.Replay != nil {
		t.Fatalf("%v, %v", plan, err)
	}
	request.ValidateOnly, request.Speed = false, 0
	begun, err := admin.ReplaySubscription(t.Context(), request)
	if err != nil || begun.Subscription.Replay.GetLeftOffsets() != 4 || begun.Subscription.Replay.Offsets != 4 || begun.Subscription.Replay.From.AsTime().UnixMilli() != 2000 {
		t.Fatalf("%v, %v", begun, err)
	}
	f := <-refetches
	if f.Range.First != 2 || f.Range.Next != 6 {
		t.Fatalf("asked for %v", f)
	}
	r.send(in, &spillwayv1.AppendRequest{RefetchId: f.Id, Message: &spillwayv1.AppendRequest_Batch{Batch: batch("t", 2, 6, "again")}})
	lease := next(t, out, (*spillwayv1.ConsumeResponse).GetLease)
	if lease.Batch.FirstOffset != 2 || lease.Batch.NextOffset != 6 || lease.Epoch == first.Epoch || len(lease.Settled) > 0 {
		t.Fatalf("leased %v, after one of epoch %d", lease, first.Epoch)
	}
	sendAck(t, out, &spillwayv1.Ack{Id: 2, Leases: []*spillwayv1.AckedLease{{LeaseId: lease.LeaseId}}})
	next(t, out, (*spillwayv1.ConsumeResponse).GetAckResult)
	got, err := admin.GetSubscription(t.Context(), &spillwayv1.GetSubscriptionRequest{Name: "c/all"})
	if err != nil || got.Subscription.Replay.LeftOffsets != 0 || got.Partitions[0].Outcomes["delivered"] != 10 {
		t.Fatalf("%v, %v", got, err)
	}

	request.From, request.To, request.OffsetsPerSecond = atOffset("t", 0), atOffset("t", 3), 0.001
	if begun, err := admin.ReplaySubscription(t.Context(), request); err != nil || begun.AgainOffsets != 3 {
		t.Fatalf("%v, %v", begun, err)
	}
	if got, err := admin.CancelReplay(t.Context(), &spillwayv1.CancelReplayRequest{Name: "c/all"}); err != nil || got.Subscription.Replay.LeftOffsets != 0 || got.Subscription.Replay.CancelledAt == nil {
		t.Fatalf("%v, %v", got, err)
	}
	for name, bad := range map[string]*spillwayv1.ReplaySubscriptionRequest{
		"nowhere":   {Name: "c/all"},
		"latest":    {Name: "c/all", From: &spillwayv1.StartPosition{Place: &spillwayv1.StartPosition_Latest_{}}},
		"speed":     {Name: "c/all", From: atOffset("t", 0), Speed: 1},
		"both":      {Name: "c/all", From: atTime(0), Speed: 1, OffsetsPerSecond: 1},
		"backwards": {Name: "c/all", From: atTime(5000), To: atTime(5000)},
		"ahead":     {Name: "c/all", From: atOffset("t", 0), To: atOffset("t", 11)},
	} {
		if got, err := admin.ReplaySubscription(t.Context(), bad); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := admin.CancelReplay(t.Context(), &spillwayv1.CancelReplayRequest{Name: "c/all"}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("cancel nothing: %v", err)
	}
}

// TestReplayWaitsForAcks: what a delivery has when a replay is asked for is acked before the
// replay begins. What is not acked in time comes back, in another epoch.
func TestReplayWaitsForAcks(t *testing.T) {
	r := start(t, t.TempDir(), nil)
	r.service.drainFor = time.Hour
	in := r.appendStream()
	out := r.consume("c/all")
	r.appended(in, batch("t", 0, 10, "v"))
	first := next(t, out, (*spillwayv1.ConsumeResponse).GetLease)
	sendAck(t, out, &spillwayv1.Ack{Id: 1, Leases: []*spillwayv1.AckedLease{{LeaseId: first.LeaseId}}})
	next(t, out, (*spillwayv1.ConsumeResponse).GetAckResult)
	admin := spillwayv1.NewBufferAdminServiceClient(r.conn)
	begun := make(chan error, 1)
	replay := func(to int64) {
		_, err := admin.ReplaySubscription(t.Context(), &spillwayv1.ReplaySubscriptionRequest{Name: "c/all", From: atOffset("t", 0), To: atOffset("t", to)})
		begun <- err
	}

	r.appended(in, batch("t", 10, 20, "v"))
	lease := next(t, out, (*spillwayv1.ConsumeResponse).GetLease)
	go replay(3)
	sendAck(t, out, &spillwayv1.Ack{Id: 2, Leases: []*spillwayv1.AckedLease{{LeaseId: lease.LeaseId}}})
	if result := next(t, out, (*spillwayv1.ConsumeResponse).GetAckResult); result.Status != nil {
		t.Errorf("the ack is refused: %v", result)
	}
	if err := <-begun; err != nil {
		t.Fatal(err)
	}
	if _, err := admin.CancelReplay(t.Context(), &spillwayv1.CancelReplayRequest{Name: "c/all"}); err != nil {
		t.Fatal(err)
	}

	r.service.drainFor = time.Millisecond
	r.appended(in, batch("t", 20, 30, "v"))
	lease = next(t, out, (*spillwayv1.ConsumeResponse).GetLease)
	go replay(5)
	if got := next(t, out, (*spillwayv1.ConsumeResponse).GetRevoked); len(got.LeaseIds) != 1 || got.LeaseIds[0] != lease.LeaseId {
		t.Errorf("%v are taken back, want %d", got, lease.LeaseId)
	}
	if err := <-begun; err != nil {
		t.Fatal(err)
	}
}
