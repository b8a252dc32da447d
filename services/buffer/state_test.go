package buffer

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
)

// TestSinkStateIsListedAndForgotten is an operator who finds what holds _SUCCESS back, and gives
// it up.
func TestSinkStateIsListedAndForgotten(t *testing.T) {
	var log lines
	r := start(t, t.TempDir(), func(_ *config.Queue, d *Deps) { d.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	admin := spillwayv1.NewBufferAdminServiceClient(r.conn)
	s := r.consume("c/all")
	sendAck(t, s, &spillwayv1.Ack{Id: 1, StateChanges: []*spillwayv1.StateChange{
		{Key: "plain", Value: []byte("p")}, {Key: "late", Value: []byte("l"), HoldsMs: 2000}, {Key: "early", Value: []byte("e"), HoldsMs: 1000}}})
	next(t, s, (*spillwayv1.ConsumeResponse).GetAckResult)
	var keys []string
	token := ""
	for {
		page, err := admin.ListSinkState(t.Context(), &spillwayv1.ListSinkStateRequest{Subscription: "c/all", PageSize: 2, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Entries {
			keys = append(keys, e.Key)
			if e.Age == nil || e.Age.AsDuration() < 0 || e.Age.AsDuration() > time.Hour || !e.Live || e.Consumer != "test" || e.Value != e.Key[:1] || e.ValueBytes != 1 {
				t.Errorf("%v", e)
			}
		}
		if token = page.NextPageToken; token == "" {
			break
		}
	}
	if len(keys) != 3 || keys[0] != "early" || keys[1] != "late" || keys[2] != "plain" {
		t.Errorf("listed %q, want those that hold back most first", keys)
	}
	holding, err := admin.ListSinkState(t.Context(), &spillwayv1.ListSinkStateRequest{Subscription: "c/all", Holding: true})
	if err != nil || len(holding.Entries) != 2 {
		t.Errorf("holding: %v, %v", holding, err)
	}
	gone, err := admin.ForgetSinkState(t.Context(), &spillwayv1.ForgetSinkStateRequest{Subscription: "c/all", Key: "early"})
	if err != nil || gone.Entry.Key != "early" || gone.Entry.HoldsMs != 1000 {
		t.Fatalf("%v, %v", gone, err)
	}
	log.await(t, "level=WARN", "key=early", "value=e", "holds_ms=1000")
	if m, err := s.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the session that owned it: %v, %v, want it ended", m, err)
	}
	if _, err := admin.ForgetSinkState(t.Context(), &spillwayv1.ForgetSinkStateRequest{Subscription: "c/all", Key: "early"}); status.Code(err) != codes.NotFound {
		t.Errorf("forgotten twice: %v", err)
	}
	heir := r.consume("c/all")
	if a := next(t, heir, (*spillwayv1.ConsumeResponse).GetAdopt); len(a.Entries) != 2 {
		t.Errorf("the heir is handed %v", a)
	}
}

func TestParkedBatchesAreShown(t *testing.T) {
	r := start(t, t.TempDir(), nil)
	r.appended(r.appendStream(), batch("t", 0, 10, "v"))
	admin := spillwayv1.NewBufferAdminServiceClient(r.conn)
	s := r.consume("c/all")
	l := next(t, s, (*spillwayv1.ConsumeResponse).GetLease)
	if err := s.Send(&spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Nack{
		Nack: &spillwayv1.Nack{LeaseId: l.LeaseId, Delay: durationpb.New(time.Hour), Reason: "the disk is full"}}}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		got, err := admin.ListParkedBatches(t.Context(), &spillwayv1.ListParkedBatchesRequest{Subscription: "c/all"})
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Batches) == 1 {
			if p := got.Batches[0]; p.Reason != "the disk is full" || p.Range.Next != 10 || p.Attempts != 1 || time.Until(p.Until.AsTime()) > 16*time.Minute {
				t.Errorf("%v", p)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("parked: %v", got)
		}
	}
	list, err := admin.ListSubscriptions(t.Context(), &spillwayv1.ListSubscriptionsRequest{Queue: "c"})
	if err != nil || list.Subscriptions[0].ParkedBatches != 1 {
		t.Errorf("%v, %v", list, err)
	}
}

// TestDeleteSubscriptionInUse: refused with what to do, and with force the session hears of it.
func TestDeleteSubscriptionInUse(t *testing.T) {
	r := start(t, t.TempDir(), nil)
	admin := spillwayv1.NewBufferAdminServiceClient(r.conn)
	if _, err := admin.CreateSubscription(t.Context(), &spillwayv1.CreateSubscriptionRequest{Name: "c/gone"}); err != nil {
		t.Fatal(err)
	}
	s := r.consume("c/gone")
	if _, err := admin.DeleteSubscription(t.Context(), &spillwayv1.DeleteSubscriptionRequest{Name: "c/gone"}); status.Code(err) != codes.FailedPrecondition {
		t.Fatalf("with a session: %v", err)
	}
	if _, err := admin.DeleteSubscription(t.Context(), &spillwayv1.DeleteSubscriptionRequest{Name: "c/gone", Force: true}); err != nil {
		t.Fatal(err)
	}
	_, err := s.Recv()
	checkStatus(t, "the session's end", err, codes.NotFound, "SUBSCRIPTION_NOT_FOUND")
}

// TestLargeAdoption has the sink state of a dead session handed over though it is larger than a
// message may be.
func TestLargeAdoption(t *testing.T) {
	r := start(t, t.TempDir(), nil)
	const each = 600
	s := r.consume("c/all")
	for ack := range uint64(2) {
		m := &spillwayv1.Ack{Id: ack}
		for i := range each {
			m.StateChanges = append(m.StateChanges, &spillwayv1.StateChange{Key: fmt.Sprint(ack, "/", i), Value: make([]byte, 32<<10)})
		}
		sendAck(t, s, m)
		if a := next(t, s, (*spillwayv1.ConsumeResponse).GetAckResult); a.Status != nil {
			t.Fatal(a)
		}
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	heir := r.consume("c/all")
	inherited := make(map[string]bool)
	for len(inherited) < 2*each {
		for _, e := range next(t, heir, (*spillwayv1.ConsumeResponse).GetAdopt).Entries {
			if inherited[e.Key] || len(e.Value) != 32<<10 {
				t.Errorf("%s: %d bytes, or twice", e.Key, len(e.Value))
			}
			inherited[e.Key] = true
		}
	}
}
