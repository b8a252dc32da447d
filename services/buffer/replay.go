package buffer

import (
	"context"
	"fmt"
	"math"
	"path"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/shards"
)

// mostReplayParts bounds the partitions that the answer about a replay names.
const mostReplayParts = 1000

// drainFor bounds the wait for deliveries to ack what they have before it is known that some of it
// is to be delivered again. What they still have then is taken back.
const drainFor = 3 * time.Second

// drained calls f while nothing of a subscription is with deliveries, if that can be had until
// then.
func (s *Service) drained(ctx context.Context, until time.Time, q *queue.Queue, name string, f func() error) error {
	wait, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	resume, err := q.Drain(wait, name)
	if err != nil {
		return err
	}
	defer resume()
	return f()
}

// ReplaySubscription tells what would be delivered once more, and unless it is only to tell, has
// it delivered.
func (a *admin) ReplaySubscription(ctx context.Context, r *spillwayv1.ReplaySubscriptionRequest) (*spillwayv1.ReplaySubscriptionResponse, error) {
	all, views, err := a.view(r.Name)
	if err != nil {
		return nil, err
	}
	out, err := a.replayAll(ctx, all, views, r)
	if err != nil {
		return nil, toStatus(err)
	}
	out.Subscription, err = a.subscription(r.Name)
	return out, err
}

// replayAll has each shard replay its part, with its part of the rate.
func (a *admin) replayAll(ctx context.Context, all []openShard, views []queue.SubscriptionView, r *spillwayv1.ReplaySubscriptionRequest) (*spillwayv1.ReplaySubscriptionResponse, error) {
	until := time.Now().Add(a.s.drainFor) // for all shards
	if len(all) == 1 {
		return a.replay(ctx, until, all[0].Queue, views[0], r)
	}
	ask := func(of func(shard int) *spillwayv1.ReplaySubscriptionRequest) (sum *spillwayv1.ReplaySubscriptionResponse, plans []*spillwayv1.ReplaySubscriptionResponse, err error) {
		plans = make([]*spillwayv1.ReplaySubscriptionResponse, len(all))
		i := -1
		err = each(all, func(o openShard) error {
			i++
			part := of(i)
			if part == nil {
				return nil
			}
			plan, err := a.replay(ctx, until, o.Queue, views[i], part)
			if err == nil {
				plans[i], sum = proto.CloneOf(plan), shards.AddReplayed(sum, plan)
			}
			return err
		})
		return sum, plans, err
	}
	plan := proto.CloneOf(r)
	plan.ValidateOnly = true
	sum, plans, err := ask(func(int) *spillwayv1.ReplaySubscriptionRequest { return plan })
	if err == nil {
		planned := sum
		sum, _, err = ask(func(i int) *spillwayv1.ReplaySubscriptionRequest {
			part := shards.ReplayPart(r, plans[i], planned)
			if part != nil {
				part.ValidateOnly = r.ValidateOnly
			}
			return part
		})
	}
	if sum != nil && len(sum.Partitions) > mostReplayParts {
		sum.Partitions = sum.Partitions[:mostReplayParts]
	}
	return sum, err
}

func (a *admin) replay(ctx context.Context, until time.Time, q *queue.Queue, v queue.SubscriptionView, r *spillwayv1.ReplaySubscriptionRequest) (*spillwayv1.ReplaySubscriptionResponse, error) {
	if err := checkReplay(r); err != nil {
		return nil, err
	}
	windows, err := a.windows(ctx, q, r, v.Topics)
	if err != nil {
		return nil, err
	}
	parts, err := q.PlanReplay(v.Name, windows)
	if err != nil {
		return nil, err
	}
	out := &spillwayv1.ReplaySubscriptionResponse{OffsetsPerSecond: r.OffsetsPerSecond}
	windows = windows[:0]
	for _, p := range parts {
		if p.Again == 0 {
			continue
		}
		windows = append(windows, p.Window)
		out.AgainOffsets += p.Again
		out.HeldOffsets += p.Held
		if len(out.Partitions) < mostReplayParts {
			out.Partitions = append(out.Partitions, &spillwayv1.ReplayPartition{Source: fromPartition(p.Partition), Range: fromRange(p.Range),
				AgainOffsets: p.Again, PendingOffsets: p.Pending, HeldOffsets: p.Held})
		}
	}
	replay := queue.Replay{FromMs: timeOf(r.From), ToMs: timeOf(r.To)}
	if replay.FromMs > 0 && replay.ToMs == 0 && len(r.To.GetOffsets()) == 0 {
		replay.ToMs = time.Now().UnixMilli()
	}
	if r.Speed > 0 {
		if replay.FromMs == 0 || replay.ToMs <= replay.FromMs {
			return nil, fmt.Errorf("%w replay of %s: a speed wants a time to begin at, and a later one to end at", queue.ErrInvalid, r.Name)
		}
		span := time.Duration(replay.ToMs-replay.FromMs) * time.Millisecond
		out.OffsetsPerSecond = float64(out.AgainOffsets) / span.Seconds() * r.Speed
	}
	if out.OffsetsPerSecond > 0 {
		out.Takes = durationpb.New(time.Duration(min(float64(out.AgainOffsets)/out.OffsetsPerSecond, math.MaxInt32) * float64(time.Second)))
	}
	out.HoldsUp = slices.ContainsFunc(q.Sessions(), func(s queue.SessionView) bool { return s.Subscription == v.Name && s.Live && s.Ordered })
	if r.ValidateOnly {
		return out, nil
	}
	replay.PerSecond = out.OffsetsPerSecond
	if err := a.s.drained(ctx, until, q, v.Name, func() error { return q.Replay(ctx, v.Name, windows, replay) }); err != nil {
		return nil, err
	}
	a.s.deps.Log.Info("a replay begins", "subscription", r.Name, "offsets", out.AgainOffsets, "partitions", len(windows), "offsets_per_second", out.OffsetsPerSecond,
		"from", r.From, "to", r.To)
	return out, nil
}

func checkReplay(r *spillwayv1.ReplaySubscriptionRequest) error {
	_, earliest := r.To.GetPlace().(*spillwayv1.StartPosition_Earliest_)
	switch {
	case r.From.GetTime() == nil && (r.From.GetPlace() != nil || len(r.From.GetOffsets()) == 0):
		return fmt.Errorf("%w replay of %s: from where? want a time, or offsets", queue.ErrInvalid, r.Name)
	case earliest:
		return fmt.Errorf("%w replay of %s: to earliest is nothing; want latest, a time, or offsets", queue.ErrInvalid, r.Name)
	case !(r.OffsetsPerSecond >= 0 && r.Speed >= 0) || math.IsInf(r.OffsetsPerSecond+r.Speed, 0):
		return fmt.Errorf("%w replay of %s: a rate of %v offsets a second, at a speed of %v", queue.ErrInvalid, r.Name, r.OffsetsPerSecond, r.Speed)
	case r.OffsetsPerSecond > 0 && r.Speed > 0:
		return fmt.Errorf("%w replay of %s: offsets_per_second and speed both say how fast; want one", queue.ErrInvalid, r.Name)
	}
	return nil
}

// timeOf is the time that a position says, in ms since the Unix epoch, or 0.
func timeOf(p *spillwayv1.StartPosition) int64 {
	if p.GetTime() == nil {
		return 0
	}
	return p.GetTime().AsTime().UnixMilli()
}

// windows are the ranges that a replay is about.
func (a *admin) windows(ctx context.Context, q *queue.Queue, r *spillwayv1.ReplaySubscriptionRequest, topics []string) ([]queue.Window, error) {
	if len(r.Topics) > 0 {
		topics = r.Topics
	}
	_, froms, err := a.start(ctx, q, r.From, topics)
	if err != nil {
		return nil, err
	}
	_, tos, err := a.start(ctx, q, r.To, topics)
	if err != nil {
		return nil, err
	}
	var windows []queue.Window
	from, to := lookUp(froms), lookUp(tos)
	for v := range q.Partitions(queue.Partition{}) {
		if !slices.ContainsFunc(topics, func(glob string) bool { ok, _ := path.Match(glob, v.Partition.Topic); return ok }) {
			continue
		}
		first, named := from(v.Partition)
		next, ends := to(v.Partition)
		if !ends {
			next = v.Appended
		}
		if named && first < next {
			windows = append(windows, queue.Window{Partition: v.Partition, Range: queue.Range{First: first, Next: next}})
		}
	}
	return windows, nil
}

// lookUp finds the offset of a partition, which may be named without its cluster.
func lookUp(starts []queue.Start) func(queue.Partition) (int64, bool) {
	at := make(map[queue.Partition]int64, len(starts))
	for _, s := range starts {
		at[s.Partition] = s.Offset
	}
	return func(id queue.Partition) (int64, bool) {
		o, ok := at[id]
		if !ok {
			id.Cluster = ""
			o, ok = at[id]
		}
		return o, ok
	}
}

// CancelReplay ends a replay.
func (a *admin) CancelReplay(ctx context.Context, r *spillwayv1.CancelReplayRequest) (*spillwayv1.CancelReplayResponse, error) {
	all, views, err := a.view(r.Name)
	if err != nil {
		return nil, err
	}
	if err := each(all, func(o openShard) error { return o.CancelReplay(ctx, views[0].Name) }, queue.ErrNoReplay); err != nil {
		return nil, toStatus(err)
	}
	s, err := a.subscription(r.Name)
	return &spillwayv1.CancelReplayResponse{Subscription: s}, err
}

func fromReplay(v *queue.ReplayView) *spillwayv1.Replay {
	if v == nil {
		return nil
	}
	at := func(ms int64) *timestamppb.Timestamp {
		if ms == 0 {
			return nil
		}
		return timestamppb.New(time.UnixMilli(ms))
	}
	return &spillwayv1.Replay{BeganAt: at(v.AtMs), From: at(v.FromMs), To: at(v.ToMs), Offsets: v.Offsets, LeftOffsets: v.Left,
		OffsetsPerSecond: v.PerSecond, CancelledAt: at(v.EndedMs)}
}
