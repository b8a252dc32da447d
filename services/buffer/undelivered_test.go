package buffer

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// TestDeadLettersAreKept looks at dead letters over a restart, delivers one of them once more and
// forgets another.
func TestDeadLettersAreKept(t *testing.T) {
	dir := t.TempDir()
	r := start(t, dir, nil)
	in := r.appendStream()
	r.appended(in, batch("t", 0, 10, "v"))
	out := r.consume("c/all")
	l := next(t, out, (*spillwayv1.ConsumeResponse).GetLease)
	sendAck(t, out, &spillwayv1.Ack{Id: 1, Leases: []*spillwayv1.AckedLease{{LeaseId: l.LeaseId, DeadLetters: []*spillwayv1.DeadLetter{
		{Offset: 7, Reason: "too large"}, {Offset: 3, Next: 5, Reason: "no JSON"}}}}})
	if res := next(t, out, (*spillwayv1.ConsumeResponse).GetAckResult); res.Status != nil {
		t.Fatal(res)
	}
	r.stop()

	r = start(t, dir, nil)
	r.appendStream() // no Kafka is asked
	admin := spillwayv1.NewBufferAdminServiceClient(r.conn)
	list := func(f *spillwayv1.UndeliveredFilter) (ranges [][2]int64) {
		t.Helper()
		got, err := admin.ListUndelivered(t.Context(), &spillwayv1.ListUndeliveredRequest{Subscription: "c/all", Filter: f})
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range got.Ranges {
			if !u.Kept {
				t.Errorf("%v is not kept", u)
			}
			ranges = append(ranges, [2]int64{u.Range.First, u.Range.Next})
		}
		return ranges
	}
	hour := timestamppb.New(time.Now().Add(-time.Hour))
	for name, c := range map[string]struct {
		filter *spillwayv1.UndeliveredFilter
		want   int
	}{
		"all": {nil, 2}, "empty": {&spillwayv1.UndeliveredFilter{}, 2}, "reason": {&spillwayv1.UndeliveredFilter{Reason: "JSON"}, 1},
		"topic": {&spillwayv1.UndeliveredFilter{Topic: "t*"}, 2}, "another topic": {&spillwayv1.UndeliveredFilter{Topic: "x"}, 0},
		"partition": {&spillwayv1.UndeliveredFilter{Partition: proto.Int32(1)}, 0}, "since": {&spillwayv1.UndeliveredFilter{SettledFrom: hour}, 2},
		"before": {&spillwayv1.UndeliveredFilter{SettledBefore: hour}, 0}, "dropped": {&spillwayv1.UndeliveredFilter{Outcome: spillwayv1.Outcome_OUTCOME_DROPPED}, 0},
		"offsets": {&spillwayv1.UndeliveredFilter{Range: &spillwayv1.OffsetRange{First: 4, Next: 6}}, 1},
	} {
		if got := list(c.filter); len(got) != c.want {
			t.Errorf("%s: %v, want %d", name, got, c.want)
		}
	}
	got, err := admin.ReadUndelivered(t.Context(), &spillwayv1.ReadUndeliveredRequest{Subscription: "c/all", Source: &spillwayv1.SourcePartition{Topic: "t"}, Offset: 4})
	if err != nil || len(got.Records) != 1 || got.Records[0].Offset != 4 || string(got.Records[0].Record.Value) != "v" || got.Undelivered.GetReason() != "no JSON" {
		t.Fatalf("%v, %v", got, err)
	}
	if _, err := admin.ReadUndelivered(t.Context(), &spillwayv1.ReadUndeliveredRequest{Subscription: "c/all", Source: source("t"), Offset: 5}); status.Code(err) != codes.NotFound {
		t.Errorf("of what was delivered: %v", err)
	}
	if _, err := admin.RedriveUndelivered(t.Context(), &spillwayv1.RedriveUndeliveredRequest{Subscription: "c/all"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("without a filter: %v", err)
	}

	out = r.consume("c/all")
	four := &spillwayv1.UndeliveredFilter{Topic: "t", Partition: proto.Int32(0), Range: &spillwayv1.OffsetRange{First: 4, Next: 5}}
	if got, err := admin.RedriveUndelivered(t.Context(), &spillwayv1.RedriveUndeliveredRequest{Subscription: "c/all", Filter: four}); err != nil || got.Offsets != 1 {
		t.Fatalf("%v, %v", got, err)
	}
	l = next(t, out, (*spillwayv1.ConsumeResponse).GetLease)
	if want := batch("t", 4, 5, "v"); l.Batch.FirstOffset != 4 || l.Batch.NextOffset != 5 || string(l.Batch.Payload) != string(want.Payload) {
		t.Fatalf("leased %v", l)
	}
	sendAck(t, out, &spillwayv1.Ack{Id: 2, Leases: []*spillwayv1.AckedLease{{LeaseId: l.LeaseId}}})
	if res := next(t, out, (*spillwayv1.ConsumeResponse).GetAckResult); res.Status != nil {
		t.Fatal(res)
	}
	if got := list(nil); len(got) != 2 || got[0] != [2]int64{3, 4} {
		t.Fatalf("listed %v", got)
	}
	if got, err := admin.ForgetUndelivered(t.Context(), &spillwayv1.ForgetUndeliveredRequest{Subscription: "c/all", Filter: &spillwayv1.UndeliveredFilter{Reason: "large"}}); err != nil || got.Offsets != 1 {
		t.Fatalf("%v, %v", got, err)
	}
	sub, err := admin.GetSubscription(t.Context(), &spillwayv1.GetSubscriptionRequest{Name: "c/all"})
	if got := list(nil); err != nil || len(got) != 1 || sub.Partitions[0].Outcomes["dead_lettered"] != 2 || sub.Partitions[0].Outcomes["delivered"] != 8 {
		t.Fatalf("listed %v, %v, %v", got, sub, err)
	}
}
