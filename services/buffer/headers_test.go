package buffer

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
)

// TestHeaderFiltersAreTold tells a session the filters of its subscription, and refuses a delivery
// that would pass over them.
func TestHeaderFiltersAreTold(t *testing.T) {
	r := start(t, t.TempDir(), func(q *config.Queue, _ *Deps) {
		q.Subscriptions["odd"].Headers = []config.HeaderFilter{{Name: "type", In: []string{"a", "b"}}, {Name: "dc", NotIn: []string{"c"}}}
	})
	open := func(subscription string, filters bool) (*spillwayv1.ConsumeResponse, error) {
		s, err := spillwayv1.NewBufferServiceClient(r.conn).Consume(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(&spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Open{Open: &spillwayv1.ConsumeOpen{
			Subscription: subscription, Consumer: "test", Ordering: spillwayv1.Ordering_ORDERING_NONE, FiltersHeaders: filters}}}); err != nil {
			t.Fatal(err)
		}
		return s.Recv()
	}
	m, err := open("c/odd", true)
	if err != nil {
		t.Fatal(err)
	}
	if h := m.GetOpened().Headers; len(h) != 2 || h[0].Name != "type" || len(h[0].Values) != 2 || h[0].Except || h[1].Name != "dc" || !h[1].Except {
		t.Errorf("told %v", h)
	}
	if _, err := open("c/odd", false); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a delivery without filters: %v", err)
	}
	if m, err := open("c/all", false); err != nil || len(m.GetOpened().Headers) > 0 {
		t.Errorf("a subscription without filters: %v, %v", m, err)
	}
	list, err := spillwayv1.NewBufferAdminServiceClient(r.conn).ListSubscriptions(t.Context(), &spillwayv1.ListSubscriptionsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list.Subscriptions {
		if want := map[string]int{"c/all": 0, "c/odd": 2}[s.Name]; len(s.Headers) != want {
			t.Errorf("%s is listed with %v", s.Name, s.Headers)
		}
	}
}
