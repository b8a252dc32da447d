package buffer

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"math"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// The part of the control plane that shows what deliveries have not finished, and what they gave
// back.

// maxListedValue bounds the value of an entry of sink state in a list.
const maxListedValue = 1 << 10

func (a *admin) ListSinkState(_ context.Context, r *spillwayv1.ListSinkStateRequest) (*spillwayv1.ListSinkStateResponse, error) {
	open, name, err := a.s.subscription(r.Subscription)
	if err != nil {
		return nil, toStatus(err)
	}
	var all []*spillwayv1.SinkStateEntry
	if err := each(open, func(o openShard) error {
		views, err := o.State(name)
		for _, v := range views {
			if v.HoldsMs != 0 || !r.Holding {
				all = append(all, fromState(v))
			}
		}
		return err
	}, queue.ErrNoSubscription); err != nil {
		return nil, toStatus(err)
	}
	key := func(e *spillwayv1.SinkStateEntry) string {
		holds := e.HoldsMs
		if holds == 0 {
			holds = math.MaxInt64
		}
		if len(open) > 1 { // which may have the same key: a session is of one of them
			return fmt.Sprintf("%020d %s %020d", holds, e.Key, e.SessionId)
		}
		return fmt.Sprintf("%020d %s", holds, e.Key)
	}
	page, next, err := rpc.Page(all, key, r.PageSize, 100, r.PageToken)
	return &spillwayv1.ListSinkStateResponse{Entries: page, NextPageToken: next}, err
}

func fromState(v queue.StateView) *spillwayv1.SinkStateEntry {
	value := v.Value[:min(len(v.Value), maxListedValue)]
	e := &spillwayv1.SinkStateEntry{Key: v.Key, Value: strings.ToValidUTF8(string(value), "\uFFFD"), ValueBytes: int32(len(v.Value)),
		HoldsMs: v.HoldsMs, SessionId: v.Session, Consumer: v.Consumer, Live: v.Live}
	if v.SinceMs > 0 {
		e.Age = durationpb.New(time.Since(time.UnixMilli(v.SinceMs)))
	}
	return e
}

func (a *admin) ForgetSinkState(ctx context.Context, r *spillwayv1.ForgetSinkStateRequest) (*spillwayv1.ForgetSinkStateResponse, error) {
	all, name, err := a.s.subscription(r.Subscription)
	if err != nil {
		return nil, toStatus(err)
	}
	var e *spillwayv1.SinkStateEntry
	if err := each(all, func(o openShard) error {
		v, err := o.ForgetState(ctx, name, r.Key)
		if err != nil {
			return err
		}
		e = fromState(v)
		o.logTo(a.s.deps.Log).Warn("an entry of sink state was forgotten; what it stands for stays as it is", "subscription", r.Subscription, "key", e.Key,
			"value", e.Value, "holds_ms", e.HoldsMs, "age", e.Age.AsDuration(), "session", e.SessionId, "consumer", e.Consumer)
		return nil
	}, queue.ErrNoState, queue.ErrNoSubscription); err != nil {
		return nil, toStatus(err)
	}
	return &spillwayv1.ForgetSinkStateResponse{Entry: e}, nil
}

func (a *admin) ListParkedBatches(_ context.Context, r *spillwayv1.ListParkedBatchesRequest) (*spillwayv1.ListParkedBatchesResponse, error) {
	all, open, err := a.view(r.Subscription)
	if err != nil {
		return nil, err
	}
	from, err := parseToken(r.PageToken)
	if err != nil {
		return nil, toStatus(err)
	}
	views, err := across(all, from, func(o openShard, from position) (iter.Seq[queue.ParkedView], error) {
		return o.Parked(open[0].Name, queue.Start{Partition: from.Partition, Offset: from.Offset})
	})
	if err != nil {
		return nil, toStatus(err)
	}
	batches, next, err := page(views, cmp.Or(r.PageSize, 100), func(in inShard[queue.ParkedView]) *spillwayv1.ParkedBatch {
		v := in.of
		return &spillwayv1.ParkedBatch{Subscription: r.Subscription, Source: fromPartition(v.Partition), Range: fromRange(v.Range), Records: v.Records,
			Attempts: int32(v.Attempts), Until: timestamppb.New(v.Until), Reason: v.Reason, HoldsPartition: v.HoldsPartition}
	}, func(in inShard[queue.ParkedView]) position {
		return position{Shard: in.shard, Partition: in.of.Partition, Offset: in.of.Range.First}
	})
	if err != nil {
		return nil, toStatus(err)
	}
	return &spillwayv1.ListParkedBatchesResponse{Batches: batches, NextPageToken: next}, nil
}
