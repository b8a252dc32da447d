package buffer

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// TestSubscriptionsAtRunTime goes through the admin API: create, replay, change, what is wrong,
// delete.
func TestSubscriptionsAtRunTime(t *testing.T) {
	r := start(t, t.TempDir(), nil)
	in := r.appendStream()
	r.appended(in, batch("t", 0, 10, "v"))
	admin := spillwayv1.NewBufferAdminServiceClient(r.conn)
	ctx := t.Context()
	created, err := admin.CreateSubscription(ctx, &spillwayv1.CreateSubscriptionRequest{Name: "c/new", OnFull: spillwayv1.OnFull_ON_FULL_DROP_OLDEST, LimitBytes: 1 << 20})
	if err != nil || created.Subscription.PendingRecords != 10 || !created.Subscription.Required || created.Subscription.OnFull != spillwayv1.OnFull_ON_FULL_DROP_OLDEST {
		t.Fatalf("%v, %v", created, err)
	}
	moved, err := admin.SeekSubscription(ctx, &spillwayv1.SeekSubscriptionRequest{Name: "c/new", To: &spillwayv1.StartPosition{Offsets: []*spillwayv1.PartitionOffset{{Source: source("t"), Offset: 10}}}})
	if err != nil || moved.Subscription.PendingRecords != 0 {
		t.Fatalf("%v, %v", moved, err)
	}
	// A time is looked up by the ingest.
	asked := make(chan *spillwayv1.FindOffset, 1)
	go func() {
		for {
			m, err := in.Recv()
			if err != nil {
				return
			}
			if f := m.GetFindOffset(); f != nil {
				asked <- f
				r.send(in, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_FoundOffset{FoundOffset: &spillwayv1.FoundOffset{Id: f.Id, Offset: 4}}})
				return
			}
		}
	}()
	at := timestamppb.New(time.UnixMilli(1_700_000_000_123))
	_, err = admin.SeekSubscription(ctx, &spillwayv1.SeekSubscriptionRequest{Name: "c/new", To: &spillwayv1.StartPosition{Place: &spillwayv1.StartPosition_Time{Time: at}}})
	if err != nil {
		t.Fatal(err)
	}
	if f := <-asked; f.TimestampMs != 1_700_000_000_123 || f.Source.Topic != "t" {
		t.Fatalf("asked %v", f)
	}
	if s, err := admin.GetSubscription(ctx, &spillwayv1.GetSubscriptionRequest{Name: "c/new"}); err != nil || s.Partitions[0].StartOffset != 4 {
		t.Fatalf("%v, %v, want a start at 4", s, err)
	}
	required := false
	updated, err := admin.UpdateSubscription(ctx, &spillwayv1.UpdateSubscriptionRequest{Name: "c/new", Topics: []string{"x*"}, Required: &required})
	if err != nil || updated.Subscription.Required || updated.Subscription.Topics[0] != "x*" {
		t.Fatalf("%v, %v", updated, err)
	}
	for name, c := range map[string]struct {
		call func() error
		code codes.Code
	}{
		"exists": {func() error {
			_, err := admin.CreateSubscription(ctx, &spillwayv1.CreateSubscriptionRequest{Name: "c/new"})
			return err
		}, codes.AlreadyExists},
		"bad name": {func() error {
			_, err := admin.CreateSubscription(ctx, &spillwayv1.CreateSubscriptionRequest{Name: "c/a b"})
			return err
		}, codes.InvalidArgument},
		"bad glob": {func() error {
			_, err := admin.UpdateSubscription(ctx, &spillwayv1.UpdateSubscriptionRequest{Name: "c/new", Topics: []string{"["}})
			return err
		}, codes.InvalidArgument},
		"no queue": {func() error {
			_, err := admin.CreateSubscription(ctx, &spillwayv1.CreateSubscriptionRequest{Name: "d/new"})
			return err
		}, codes.NotFound},
		"seek nowhere": {func() error {
			_, err := admin.SeekSubscription(ctx, &spillwayv1.SeekSubscriptionRequest{Name: "c/new"})
			return err
		}, codes.InvalidArgument},
		"seek beyond the end": {func() error {
			_, err := admin.SeekSubscription(ctx, &spillwayv1.SeekSubscriptionRequest{Name: "c/new", To: &spillwayv1.StartPosition{Offsets: []*spillwayv1.PartitionOffset{{Source: source("t"), Offset: 1 << 40}}}})
			return err
		}, codes.InvalidArgument},
		"seek of a partition twice": {func() error {
			_, err := admin.SeekSubscription(ctx, &spillwayv1.SeekSubscriptionRequest{Name: "c/new", To: &spillwayv1.StartPosition{Offsets: []*spillwayv1.PartitionOffset{{Source: source("t"), Offset: 1}, {Source: source("t"), Offset: 2}}}})
			return err
		}, codes.InvalidArgument},
		"seek of a partition nobody knows": {func() error {
			_, err := admin.SeekSubscription(ctx, &spillwayv1.SeekSubscriptionRequest{Name: "c/new", To: &spillwayv1.StartPosition{Offsets: []*spillwayv1.PartitionOffset{{Source: source("none")}}}})
			return err
		}, codes.InvalidArgument},
		"configured": {func() error {
			_, err := admin.DeleteSubscription(ctx, &spillwayv1.DeleteSubscriptionRequest{Name: "c/all"})
			return err
		}, codes.FailedPrecondition},
	} {
		if err := c.call(); status.Code(err) != c.code || len(status.Convert(err).Details()) == 0 {
			t.Errorf("%s: %v, want %s with details", name, err, c.code)
		}
	}
	audit, err := admin.Audit(ctx, &spillwayv1.AuditRequest{Name: "c/all"})
	if err != nil || len(audit.Partitions) != 1 || audit.Partitions[0].PendingOffsets != 10 || audit.Partitions[0].HoleOffsets != 0 {
		t.Fatalf("%v, %v", audit, err)
	}
	if _, err := admin.DeleteSubscription(ctx, &spillwayv1.DeleteSubscriptionRequest{Name: "c/new"}); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.GetSubscription(ctx, &spillwayv1.GetSubscriptionRequest{Name: "c/new"}); status.Code(err) != codes.NotFound {
		t.Fatalf("%v", err)
	}
}

// TestUnknownEnumValues sends 257 and 258, which are 1 and 2 when they are cut to a byte.
func TestUnknownEnumValues(t *testing.T) {
	r := start(t, t.TempDir(), nil)
	in := r.appendStream()
	r.appended(in, batch("t", 0, 10, "v"))
	admin := spillwayv1.NewBufferAdminServiceClient(r.conn)
	ctx := t.Context()
	for _, n := range []int32{-1, 6, 257, 258} {
		_, created := admin.CreateSubscription(ctx, &spillwayv1.CreateSubscriptionRequest{Name: "c/new", OnFull: spillwayv1.OnFull(n)})
		_, updated := admin.UpdateSubscription(ctx, &spillwayv1.UpdateSubscriptionRequest{Name: "c/all", OnFull: spillwayv1.OnFull(n)})
		_, listed := admin.ListUndelivered(ctx, &spillwayv1.ListUndeliveredRequest{Subscription: "c/all", Outcome: spillwayv1.Outcome(n + 256)})
		for what, err := range map[string]error{"create": created, "update": updated, "list": listed} {
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("%s with the enum value %d: %v, want InvalidArgument", what, n, err)
			}
		}
		stream, err := spillwayv1.NewBufferServiceClient(r.conn).Consume(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Open{Open: &spillwayv1.ConsumeOpen{
			Subscription: "c/all", Ordering: spillwayv1.Ordering(n)}}}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("session with ordering %d: %v, want InvalidArgument", n, err)
		}
		r.send(in, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Settle{Settle: &spillwayv1.SettleRange{Source: source("t"),
			Range: &spillwayv1.OffsetRange{First: 10, Next: 20}, Outcome: spillwayv1.Outcome(n + 256)}}})
		if a := r.result(in); a.Status.GetCode() != int32(codes.InvalidArgument) {
			t.Errorf("settle as %d: %v, want InvalidArgument", n+256, a)
		}
	}
	if s, err := admin.GetSubscription(ctx, &spillwayv1.GetSubscriptionRequest{Name: "c/all"}); err != nil || s.Partitions[0].AppendedOffset != 10 {
		t.Errorf("%v, %v, want nothing settled", s, err)
	}
}
