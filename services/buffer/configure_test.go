package buffer

import (
	"testing"

	"google.golang.org/grpc/codes"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
)

// TestConfigure raises disk.records by another configuration while the queue is full, and changes
// a subscription; one that is new in it is left for a restart.
func TestConfigure(t *testing.T) {
	dir := t.TempDir()
	r := start(t, dir, func(q *config.Queue, _ *Deps) { q.Disk.Records = 10 })
	in := r.appendStream()
	r.appended(in, batch("t", 0, 10, "v"))
	if got := r.appended(in, batch("t", 10, 11, "v")); codes.Code(got.Status.GetCode()) != codes.ResourceExhausted {
		t.Fatalf("%v, want a full queue", got)
	}
	next := *r.service.cfg.Queues["c"]
	next.Disk.Records = 11
	next.Subscriptions = map[string]*config.Subscription{"all": {Topics: []string{"*"}, Required: false, OnFull: "drop_oldest", Limit: 1 << 20},
		"odd": next.Subscriptions["odd"], "new": {Topics: []string{"*"}}}
	if err := r.service.Configure(t.Context(), config.Buffer{Queues: map[string]*config.Queue{"c": &next, "unknown": {}}}); err != nil {
		t.Fatal(err)
	}
	if got := r.appended(in, batch("t", 10, 11, "v")); got.Status != nil {
		t.Fatalf("%v, after the bound was raised", got)
	}
	admin := spillwayv1.NewBufferAdminServiceClient(r.conn)
	queues, err := admin.ListQueues(t.Context(), &spillwayv1.ListQueuesRequest{})
	if err != nil || len(queues.Queues) != 1 || queues.Queues[0].DiskRecordsLimit != 11 || queues.Queues[0].ConfiguredDiskRecords != 11 {
		t.Errorf("%v, %v", queues, err)
	}
	subs, err := admin.ListSubscriptions(t.Context(), &spillwayv1.ListSubscriptionsRequest{})
	if err != nil || len(subs.Subscriptions) != 2 {
		t.Fatalf("%v, %v", subs, err)
	}
	if s := subs.Subscriptions[0]; s.Required || s.OnFull != spillwayv1.OnFull_ON_FULL_DROP_OLDEST || s.LimitBytes != 1<<20 {
		t.Errorf("%v", s)
	}
}
