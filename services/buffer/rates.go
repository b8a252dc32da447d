package buffer

import (
	"cmp"
	"context"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// The part of the control plane that tells how queues fill and drain.

// longest bounds what a forecast tells; anything later is never.
const longest = 10 * 365 * 24 * time.Hour

func (a *admin) ListFlows(_ context.Context, r *spillwayv1.ListFlowsRequest) (*spillwayv1.ListFlowsResponse, error) {
	var all []*spillwayv1.QueueFlow
	for _, name := range a.s.names() {
		if open := a.s.queues[name].open(); len(open) > 0 {
			all = append(all, a.flow(name, open))
		}
	}
	page, next, err := rpc.Page(all, (*spillwayv1.QueueFlow).GetQueue, r.PageSize, 100, r.PageToken)
	return &spillwayv1.ListFlowsResponse{Queues: page, NextPageToken: next}, err
}

// flow adds up the rates of the shards. The queue is full when the first of them is, and a backlog
// is gone when that of the last one is.
func (a *admin) flow(name string, open []openShard) *spillwayv1.QueueFlow {
	out := &spillwayv1.QueueFlow{Queue: name, Ingests: a.s.flows.ingests(name)}
	subs := make(map[string]*spillwayv1.SubscriptionFlow)
	f := a.s.forecasts
	for _, o := range open {
		limits, _ := o.Limits()
		views := o.Queue.Subscriptions()
		f.mu.Lock()
		out.AppendedPerSecond = both(out.AppendedPerSecond, f.in[o.trendOf("")].rate())
		out.Full = together(out.Full, f.disk[o.trendOf("")].forecasts(float64(limits.DiskBytes)), true)
		for _, v := range views {
			sub, of := subs[v.Name], o.trendOf(v.Name)
			if sub == nil {
				sub = &spillwayv1.SubscriptionFlow{Subscription: name + "/" + v.Name, DeliveredPerSecond: f.out[of].rate(), Drained: f.subs[of].forecasts(0)}
				subs[v.Name] = sub
				out.Subscriptions = append(out.Subscriptions, sub)
				continue
			}
			sub.DeliveredPerSecond = both(sub.DeliveredPerSecond, f.out[of].rate())
			sub.Drained = together(sub.Drained, f.subs[of].forecasts(0), false)
		}
		f.mu.Unlock()
	}
	return out
}

// both adds two rates, as far as they are known.
func both(a, b *float64) *float64 {
	if a == nil || b == nil {
		return cmp.Or(a, b)
	}
	sum := *a + *b
	return &sum
}

// together are the forecasts of two shards, of the windows that both know: the sooner ones, in
// which one that is never reached is late, or the later ones. What one shard does not know yet,
// since it has just been opened, is what the other knows.
func together(a, b []*spillwayv1.Forecast, sooner bool) []*spillwayv1.Forecast {
	for _, f := range b {
		i := slices.IndexFunc(a, func(x *spillwayv1.Forecast) bool { return proto.Equal(x.Window, f.Window) })
		if i < 0 {
			a = append(a, f)
			continue
		}
		first, last := a[i].Left, f.Left // nil is never
		if last != nil && (first == nil || last.AsDuration() < first.AsDuration()) {
			first, last = last, first
		}
		a[i].PerSecond += f.PerSecond
		if a[i].Left = last; sooner {
			a[i].Left = first
		}
	}
	return a
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
