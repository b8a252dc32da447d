package buffer

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
)

// TestTroublesOverStreams: a subscription shows why a delivery fails, of several the one that has
// failed for longest, until it fails no more or is gone.
func TestTroublesOverStreams(t *testing.T) {
	r := start(t, t.TempDir(), nil)
	admin := spillwayv1.NewBufferAdminServiceClient(r.conn)
	session := func() spillwayv1.BufferService_ConsumeClient {
		t.Helper()
		s, err := spillwayv1.NewBufferServiceClient(r.conn).Consume(t.Context())
		if err == nil {
			err = s.Send(&spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Open{Open: &spillwayv1.ConsumeOpen{
				Subscription: "c/all", Consumer: "test", Ordering: spillwayv1.Ordering_ORDERING_NONE}}})
		}
		if err != nil {
			t.Fatal(err)
		}
		if m, err := s.Recv(); err != nil || !m.GetOpened().GetHearsTroubles() {
			t.Fatalf("open: %v, %v", m, err)
		}
		return s
	}
	at := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	tell := func(s spillwayv1.BufferService_ConsumeClient, trouble string, ago time.Duration) {
		t.Helper()
		m := &spillwayv1.DeliveryTrouble{Reason: trouble, Since: timestamppb.New(at.Add(-ago))}
		if err := s.Send(&spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Trouble{Trouble: m}}); err != nil {
			t.Fatal(err)
		}
	}
	shows := func(trouble string, ago time.Duration) {
		t.Helper()
		eventually(t, "the subscription shows "+trouble, func() bool {
			page, err := admin.ListSubscriptions(t.Context(), &spillwayv1.ListSubscriptionsRequest{Queue: "c"})
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range page.Subscriptions {
				if s.Name == "c/all" {
					return s.Trouble == trouble && (trouble == "" && s.TroubleSince == nil || s.TroubleSince.AsTime().Equal(at.Add(-ago)))
				}
			}
			return false
		})
	}
	one, other := session(), session()
	shows("", 0)
	tell(one, "connection refused", time.Minute)
	shows("connection refused", time.Minute)
	tell(other, "permission denied", time.Hour)
	shows("permission denied", time.Hour)
	// What Java says has lines, and is long.
	long := "org.apache.hadoop.security.AccessControlException:\n\tat " + strings.Repeat("a", 300)
	tell(other, long, time.Hour)
	shows(long, time.Hour)
	tell(other, strings.Repeat("b", 64<<10), time.Hour)
	shows(queue.CutReason(strings.Repeat("b", 64<<10)), time.Hour)
	tell(other, "", 0)
	shows("connection refused", time.Minute)
	if err := one.CloseSend(); err != nil {
		t.Fatal(err)
	}
	shows("", 0)
}
