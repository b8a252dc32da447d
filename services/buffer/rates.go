package buffer

import (
	"context"
	"math"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// The part of the control plane that tells how queues fill and drain.

// longest bounds what a forecast tells; anything later is never.
const longest = 10 * 365 * 24 * time.Hour

func (a *admin) ListFlows(_ context.Context, r *spillwayv1.ListFlowsRequest) (*spillwayv1.ListFlowsResponse, error) {
	var all []*spillwayv1.QueueFlow
	a.s.eachOpen(func(name string, q *queue.Queue) { all = append(all, a.flow(name, q)) })
	page, next, err := rpc.Page(all, (*spillwayv1.QueueFlow).GetQueue, r.PageSize, 100, r.PageToken)
	return &spillwayv1.ListFlowsResponse{Queues: page, NextPageToken: next}, err
}

func (a *admin) flow(name string, q *queue.Queue) *spillwayv1.QueueFlow {
	limit, views := a.queue(name).DiskBytesLimit, q.Subscriptions()
	ingests := a.s.flows.ingests(name)
	f := a.s.forecasts
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &spillwayv1.QueueFlow{Queue: name, Ingests: ingests, AppendedPerSecond: f.in[name].rate(), Full: f.disk[name].forecasts(float64(limit))}
	for _, v := range views {
		sub := name + "/" + v.Name
		out.Subscriptions = append(out.Subscriptions, &spillwayv1.SubscriptionFlow{Subscription: sub,
			DeliveredPerSecond: f.out[sub].rate(), Drained: f.subs[sub].forecasts(0)})
	}
	return out
}

// rate returns the change a second of a counter that is noted every second; nil when it is not
// known yet.
func (t *trend) rate() *float64 {
	if t == nil {
		return nil
	}
	slope := t.slope(windows[0].length)
	if math.IsNaN(slope) {
		return nil
	}
	slope = max(0, slope) // a queue that was opened again counts from 0
	return &slope
}

// forecasts tells, for each window that is known, when the value is at bound: up at it, or down at
// 0 when that is the bound.
func (t *trend) forecasts(bound float64) []*spillwayv1.Forecast {
	if t == nil {
		return nil
	}
	var all []*spillwayv1.Forecast
	for _, w := range windows {
		slope, left := t.rise(w.length), t.toRise(bound, w.length)
		if bound == 0 {
			slope, left = t.slope(w.length), t.toFall(w.length)
		}
		if math.IsNaN(slope) {
			continue
		}
		f := &spillwayv1.Forecast{Window: durationpb.New(w.length), PerSecond: slope}
		if left <= longest.Seconds() {
			f.Left = durationpb.New(time.Duration(left * float64(time.Second)))
		}
		all = append(all, f)
	}
	return all
}
