package shards

import (
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// What is said of a queue, or of a subscription, is the sum of what its shards say: a buffer adds
// up its own, and whoever asks several buffers adds up theirs. The sums change the messages that
// they are given first.

// AddSubscriptions adds what one buffer tells of subscriptions to what others told.
func AddSubscriptions(sums, more []*spillwayv1.Subscription) []*spillwayv1.Subscription {
	for _, s := range more {
		if i := slices.IndexFunc(sums, func(sum *spillwayv1.Subscription) bool { return sum.Name == s.Name }); i >= 0 {
			sums[i] = AddSubscription(sums[i], s)
		} else {
			sums = append(sums, s)
		}
	}
	return sums
}

// AddSubscription adds what one buffer tells of a subscription to the sum of others: numbers are
// added up, the oldest counts, and one that is paused anywhere is.
func AddSubscription(sum, s *spillwayv1.Subscription) *spillwayv1.Subscription {
	if sum == nil {
		return s
	}
	replay := AddReplay(sum.Replay, s.Replay)
	Add(sum, s)
	sum.Replay, sum.Paused = replay, sum.Paused || s.Paused
	sum.PausedDeliveries = inEither(sum.PausedDeliveries, s.PausedDeliveries)
	if s.Trouble != "" && (sum.Trouble == "" || s.TroubleSince.AsTime().Before(sum.TroubleSince.AsTime())) {
		sum.Trouble, sum.TroubleSince = s.Trouble, s.TroubleSince
	}
	if s.OldestPendingAge.AsDuration() > sum.OldestPendingAge.AsDuration() {
		sum.OldestPendingAge = s.OldestPendingAge
	}
	return sum
}

// AddQueue adds what one buffer tells of a queue to the sum of others: numbers are added up, and
// the shards that it has are listed where it has several.
func AddQueue(sum, q *spillwayv1.Queue) *spillwayv1.Queue {
	if sum == nil {
		return q
	}
	shards, revision := sum.Shards, max(sum.Revision, q.Revision)
	Add(sum, q)
	sum.Shard, sum.Shards, sum.Revision = 0, shards, revision
	sum.PausedSources, sum.Subscriptions = inEither(sum.PausedSources, q.PausedSources), inEither(sum.Subscriptions, q.Subscriptions)
	sum.ShardsHere = append(sum.ShardsHere, q.ShardsHere...)
	return sum
}

// inEither is what is in one of two lists, sorted.
func inEither(a, b []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(slices.Concat(a, b))))
}

// Add adds the 64- and 32-bit numbers of m to those of sum.
func Add(sum, m proto.Message) {
	to := sum.ProtoReflect()
	m.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsList() || f.IsMap():
		case f.Kind() == protoreflect.Int64Kind:
			to.Set(f, protoreflect.ValueOfInt64(to.Get(f).Int()+v.Int()))
		case f.Kind() == protoreflect.Int32Kind:
			to.Set(f, protoreflect.ValueOfInt32(int32(to.Get(f).Int()+v.Int())))
		}
		return true
	})
}

// AddReplayed adds what one buffer tells of its part of a replay to the sum of others.
func AddReplayed(sum, r *spillwayv1.ReplaySubscriptionResponse) *spillwayv1.ReplaySubscriptionResponse {
	if sum == nil {
		return r
	}
	sum.Subscription = AddSubscription(sum.Subscription, r.Subscription)
	sum.Partitions = append(sum.Partitions, r.Partitions...)
	sum.AgainOffsets += r.AgainOffsets
	sum.HeldOffsets += r.HeldOffsets
	sum.OffsetsPerSecond += r.OffsetsPerSecond
	if r.Takes.AsDuration() > sum.Takes.AsDuration() {
		sum.Takes = r.Takes
	}
	sum.HoldsUp = sum.HoldsUp || r.HoldsUp
	return sum
}

// AddReplay adds the replay at one buffer to that at others. Those of another one, which are
// older, are left out: a buffer that has nothing to replay is not asked to.
func AddReplay(sum, r *spillwayv1.Replay) *spillwayv1.Replay {
	switch {
	case sum == nil:
		return r
	case r == nil:
		return sum
	case !proto.Equal(sum.From, r.From) || !proto.Equal(sum.To, r.To):
		if r.BeganAt.AsTime().After(sum.BeganAt.AsTime()) {
			return r
		}
		return sum
	}
	// It is cancelled when nothing goes on anywhere.
	goesOn := func(r *spillwayv1.Replay) bool { return r.CancelledAt == nil && r.LeftOffsets > 0 }
	cancelled := sum.CancelledAt
	if r.CancelledAt.AsTime().After(cancelled.AsTime()) {
		cancelled = r.CancelledAt
	}
	if goesOn(sum) || goesOn(r) {
		cancelled = nil
	}
	all := proto.CloneOf(sum)
	all.CancelledAt = cancelled
	all.Offsets += r.Offsets
	all.LeftOffsets += r.LeftOffsets
	all.OffsetsPerSecond += r.OffsetsPerSecond
	if r.BeganAt.AsTime().Before(all.BeganAt.AsTime()) {
		all.BeganAt = r.BeganAt
	}
	return all
}

// ReplayPart is what one buffer is asked of a replay: its share of the rate; nothing if it has
// nothing to replay, and others have.
func ReplayPart(request *spillwayv1.ReplaySubscriptionRequest, plan, sum *spillwayv1.ReplaySubscriptionResponse) *spillwayv1.ReplaySubscriptionRequest {
	part := proto.CloneOf(request)
	part.ValidateOnly = false
	switch {
	case sum.AgainOffsets == 0:
	case plan.GetAgainOffsets() == 0:
		return nil
	default:
		part.OffsetsPerSecond *= float64(plan.AgainOffsets) / float64(sum.AgainOffsets)
	}
	return part
}
