package buffer

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// TestTheShardKeepsItsConfiguration when it moves to a buffer that was started with an older file:
// topics, policies and conditions of headers stay, and so do they when that file is read again.
func TestTheShardKeepsItsConfiguration(t *testing.T) {
	t.Parallel()
	change := inKafka(t)
	registry := prometheus.NewRegistry()
	file := func(revision int64, topic, header string) func(*config.Queue, *Deps) {
		return func(q *config.Queue, d *Deps) {
			change(q, d)
			q.Revision = revision
			q.Subscriptions["odd"] = &config.Subscription{Topics: []string{topic}, Required: true, Headers: []config.HeaderFilter{{Name: header, In: []string{"v"}}}}
			if d != nil && revision == 1 {
				d.Registerer = registry
			}
		}
	}
	newer := start(t, t.TempDir(), file(2, "new", "new"))
	newer.stop()
	r := start(t, t.TempDir(), file(1, "old", "old"))
	admin := spillwayv1.NewBufferAdminServiceClient(r.conn)
	is := func(revision int64, topic, header string) {
		t.Helper()
		s, err := admin.GetSubscription(t.Context(), &spillwayv1.GetSubscriptionRequest{Name: "c/odd"})
		if err != nil || len(s.Subscription.Topics) != 1 || s.Subscription.Topics[0] != topic || s.Subscription.Headers[0].Name != header {
			t.Errorf("%v, %v", s, err)
		}
		q, err := admin.GetQueue(t.Context(), &spillwayv1.GetQueueRequest{Name: "c"})
		if err != nil || q.Queue.Revision != revision {
			t.Errorf("%v, %v, want revision %d", q, err, revision)
		}
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "spillway_buffer_queue_revision" && f.Metric[0].Gauge.GetValue() == float64(revision) {
				return
			}
		}
		t.Errorf("the metric is not %d", revision)
	}
	is(2, "new", "new")
	configure := func(change func(*config.Queue, *Deps)) error {
		q := *r.service.cfg.Queues["c"]
		q.Subscriptions = map[string]*config.Subscription{"all": q.Subscriptions["all"]}
		change(&q, nil)
		return r.service.Configure(t.Context(), config.Buffer{Queues: map[string]*config.Queue{"c": &q}})
	}
	if err := configure(file(2, "newest", "newest")); rpc.Reason(toStatus(err)) != "REVISION" {
		t.Errorf("another file with the same revision: %v", err)
	}
	is(2, "new", "new")
	if err := configure(file(3, "newest", "newest")); err != nil {
		t.Fatal(err)
	}
	is(3, "newest", "newest")
}
