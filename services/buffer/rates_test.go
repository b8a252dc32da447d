package buffer

import (
	"fmt"
	"testing"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// TestListFlows tells who feeds a queue while it does, and what samples say of the future.
func TestListFlows(t *testing.T) {
	r := start(t, t.TempDir(), nil)
	defer r.stop()
	admin := spillwayv1.NewBufferAdminServiceClient(r.conn)
	flow := func() *spillwayv1.QueueFlow {
		t.Helper()
		got, err := admin.ListFlows(t.Context(), &spillwayv1.ListFlowsRequest{})
		if err != nil || len(got.Queues) != 1 {
			t.Fatal(got, err)
		}
		return got.Queues[0]
	}
	if f := flow(); f.Queue != "c" || len(f.Ingests) != 0 || f.AppendedPerSecond != nil || len(f.Subscriptions) != 2 || f.Subscriptions[1].Subscription != "c/odd" {
		t.Errorf("in the beginning: %v", f)
	}
	a := r.appendStream()
	if f := flow(); fmt.Sprint(f.Ingests) != `[client:"test"  cluster:"k"]` && len(f.Ingests) != 1 {
		t.Errorf("with a stream: %v", f.Ingests)
	}
	for _, source := range []string{"web", "logs"} {
		r.send(a, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Topics{Topics: &spillwayv1.SourceTopics{Source: source}}})
	}
	r.assign(a, "odd") // answered behind them
	if f := flow(); len(f.Ingests) != 1 || f.Ingests[0].Client != "test" || f.Ingests[0].Cluster != "k" || fmt.Sprint(f.Ingests[0].Sources) != "[logs web]" {
		t.Errorf("with sources: %v", f.Ingests)
	}
	if err := a.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Recv(); err == nil {
		t.Error("the stream goes on")
	}
	for deadline := time.Now().Add(time.Minute); len(flow().Ingests) > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("the ingest is gone: %v", flow().Ingests)
		}
	}

	// Twenty seconds in which 1 MB/s and 100 records/s come in, 60/s of them go out.
	f := r.service.forecasts
	ofQueue, ofOdd := trendOf{"c", 0, ""}, trendOf{"c", 0, "odd"}
	f.mu.Lock()
	for name, perSecond := range map[string]float64{"disk": 1e6, "in": 100, "out": 60, "subs": 40} {
		tr := &trend{keep: rateSamples}
		for i := range 20 {
			tr.add(time.Unix(int64(i), 0), perSecond*float64(i))
		}
		switch name {
		case "disk":
			f.disk[ofQueue] = tr
		case "in":
			f.in[ofQueue] = tr
		case "out":
			f.out[ofOdd] = tr
		case "subs":
			f.subs[ofOdd] = tr
		}
		if len(tr.samples) != rateSamples {
			t.Errorf("%d samples are kept, want %d", len(tr.samples), rateSamples)
		}
	}
	got := &spillwayv1.QueueFlow{AppendedPerSecond: f.in[ofQueue].rate(), Full: f.disk[ofQueue].forecasts(1e9),
		Subscriptions: []*spillwayv1.SubscriptionFlow{{DeliveredPerSecond: f.out[ofOdd].rate(), Drained: f.subs[ofOdd].forecasts(0)}}}
	f.mu.Unlock()
	if got.GetAppendedPerSecond() != 100 || got.Subscriptions[0].GetDeliveredPerSecond() != 60 {
		t.Errorf("rates: %v", got)
	}
	if len(got.Full) != 1 || got.Full[0].Window.AsDuration() != 15*time.Second || got.Full[0].PerSecond != 1e6 || got.Full[0].Left.AsDuration().Round(time.Second) != 981*time.Second {
		t.Errorf("full: %v", got.Full)
	}
	if d := got.Subscriptions[0].Drained; len(d) != 1 || d[0].Left != nil || d[0].PerSecond != 40 {
		t.Errorf("a backlog that grows is gone: %v", d)
	}
	var none *trend
	if none.rate() != nil || none.forecasts(1) != nil || new(trend).rate() != nil {
		t.Error("something is known of nothing")
	}
}
