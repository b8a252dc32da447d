package buffer

import (
	"context"
	"fmt"
	"path"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// What ended otherwise than delivered: list, look at, deliver once more, forget.

// ListUndelivered lists undelivered ranges, the oldest first.
func (a *admin) ListUndelivered(_ context.Context, r *spillwayv1.ListUndeliveredRequest) (*spillwayv1.ListUndeliveredResponse, error) {
	open, name, err := a.s.subscription(r.Subscription)
	if err != nil {
		return nil, toStatus(err)
	}
	if _, known := spillwayv1.Outcome_name[int32(r.Outcome)]; !known {
		return nil, toStatus(fmt.Errorf("%w outcome %d", queue.ErrInvalid, r.Outcome))
	}
	pick, err := picker(r.Filter)
	if err != nil {
		return nil, toStatus(err)
	}
	var all []*spillwayv1.Undelivered
	if err := each(open, func(o openShard) error {
		list, err := o.Undelivered(name)
		for _, u := range list {
			is := spillwayv1.Outcome(u.Outcome)
			if (r.Outcome == spillwayv1.Outcome_OUTCOME_UNSPECIFIED || r.Outcome == is) && pick(&u.Undelivered).Len() > 0 {
				all = append(all, fromUndelivered(u))
			}
		}
		return err
	}, queue.ErrNoSubscription); err != nil {
		return nil, toStatus(err)
	}
	key := func(u *spillwayv1.Undelivered) string {
		return fmt.Sprintf("%020d %s %s %010d %020d", u.SettledAt.AsTime().UnixMilli(), u.Source.Cluster, u.Source.Topic, u.Source.Partition, u.Range.First)
	}
	page, next, err := rpc.Page(all, key, r.PageSize, 100, r.PageToken)
	return &spillwayv1.ListUndeliveredResponse{Ranges: page, NextPageToken: next}, err
}

func fromUndelivered(u queue.UndeliveredView) *spillwayv1.Undelivered {
	out := &spillwayv1.Undelivered{Source: fromPartition(u.Partition), Range: fromRange(u.Range), Outcome: spillwayv1.Outcome(u.Outcome), Reason: u.Reason, Kept: u.Kept}
	if u.AtMs > 0 { // an older version did not note it of dead letters
		out.SettledAt = timestamppb.New(time.UnixMilli(u.AtMs))
	}
	return out
}

// picker returns what chooses the part of an undelivered range; an empty one is not chosen.
func picker(f *spillwayv1.UndeliveredFilter) (func(*queue.Undelivered) queue.Range, error) {
	if _, known := spillwayv1.Outcome_name[int32(f.GetOutcome())]; !known {
		return nil, fmt.Errorf("%w outcome %d", queue.ErrInvalid, f.GetOutcome())
	}
	if _, err := path.Match(f.GetTopic(), ""); err != nil {
		return nil, fmt.Errorf("%w topic glob %.300q", queue.ErrInvalid, f.GetTopic())
	}
	return func(u *queue.Undelivered) queue.Range {
		r, at := u.Range, time.UnixMilli(u.AtMs)
		if f.GetRange() != nil {
			r.First, r.Next = max(r.First, f.Range.First), min(r.Next, f.Range.Next)
		}
		matches := f.GetTopic() == ""
		if !matches {
			matches, _ = path.Match(f.GetTopic(), u.Partition.Topic)
		}
		switch {
		case !matches,
			f.GetOutcome() != spillwayv1.Outcome_OUTCOME_UNSPECIFIED && queue.Outcome(f.GetOutcome()) != u.Outcome,
			f != nil && f.Partition != nil && *f.Partition != u.Partition.Number,
			!strings.Contains(u.Reason, f.GetReason()),
			f.GetSettledFrom() != nil && at.Before(f.SettledFrom.AsTime()),
			f.GetSettledBefore() != nil && !at.Before(f.SettledBefore.AsTime()):
			return queue.Range{}
		}
		return r
	}, nil
}

// chooser is picker for what changes something: to choose all has to be said.
func chooser(f *spillwayv1.UndeliveredFilter) (func(*queue.Undelivered) queue.Range, error) {
	if f == nil {
		return nil, fmt.Errorf("%w filter: it is not there; an empty one is all", queue.ErrInvalid)
	}
	return picker(f)
}

// ReadUndelivered shows the copy of a dead letter.
func (a *admin) ReadUndelivered(_ context.Context, r *spillwayv1.ReadUndeliveredRequest) (*spillwayv1.ReadUndeliveredResponse, error) {
	open, name, err := a.s.subscription(r.Subscription)
	if err != nil {
		return nil, toStatus(err)
	}
	id := queue.Partition{Cluster: r.Source.GetCluster(), Topic: r.Source.GetTopic(), Incarnation: r.Source.GetIncarnation(), Number: r.Source.GetPartition()}
	var out *spillwayv1.ReadUndeliveredResponse
	err = each(open, func(o openShard) error {
		found, err := readUndelivered(o.Queue, name, id, r.Offset)
		if err == nil {
			out = found
		}
		return err
	}, queue.ErrNoCopy, queue.ErrInvalid, queue.ErrNoSubscription) // invalid: it has never heard of the partition
	return out, toStatus(err)
}

func readUndelivered(q *queue.Queue, name string, id queue.Partition, offset int64) (*spillwayv1.ReadUndeliveredResponse, error) {
	batch, err := q.UndeliveredRecords(name, id, offset)
	if err == nil {
		err = q.Load(batch)
	}
	p := peek{limit: peekMost, from: offset}
	if err == nil {
		err = eachRecord(batch, func(offset int64, rec *recordbatch.Record) bool { return p.add(batch, offset, rec) })
	}
	if err != nil {
		return nil, err
	}
	out := &spillwayv1.ReadUndeliveredResponse{Records: p.records}
	list, err := q.Undelivered(name)
	for _, u := range list {
		if u.Partition == batch.Batch.Partition && u.Outcome == queue.DeadLettered && u.Range.First <= offset && offset < u.Range.Next {
			out.Undelivered = fromUndelivered(u)
		}
	}
	return out, err
}

// RedriveUndelivered has undelivered ranges be delivered once more.
func (a *admin) RedriveUndelivered(ctx context.Context, r *spillwayv1.RedriveUndeliveredRequest) (*spillwayv1.RedriveUndeliveredResponse, error) {
	open, name, err := a.s.subscription(r.Subscription)
	if err != nil {
		return nil, toStatus(err)
	}
	pick, err := chooser(r.Filter)
	if err != nil {
		return nil, toStatus(err)
	}
	var offsets int64
	until := time.Now().Add(a.s.drainFor) // for all shards
	if err := each(open, func(o openShard) error {
		return a.s.drained(ctx, until, o.Queue, name, func() error {
			n, err := o.Redrive(ctx, name, pick)
			offsets += n
			return err
		})
	}, queue.ErrNoUndelivered, queue.ErrNoSubscription); err != nil {
		return nil, toStatus(err)
	}
	a.s.deps.Log.Info("undelivered records are delivered once more", "subscription", r.Subscription, "offsets", offsets, "filter", r.Filter)
	return &spillwayv1.RedriveUndeliveredResponse{Offsets: offsets}, nil
}

// ForgetUndelivered takes undelivered ranges off the list.
func (a *admin) ForgetUndelivered(ctx context.Context, r *spillwayv1.ForgetUndeliveredRequest) (*spillwayv1.ForgetUndeliveredResponse, error) {
	open, name, err := a.s.subscription(r.Subscription)
	if err != nil {
		return nil, toStatus(err)
	}
	pick, err := chooser(r.Filter)
	if err != nil {
		return nil, toStatus(err)
	}
	var offsets int64
	if err := each(open, func(o openShard) error {
		n, err := o.ForgetUndelivered(ctx, name, pick)
		offsets += n
		return err
	}, queue.ErrNoUndelivered, queue.ErrNoSubscription); err != nil {
		return nil, toStatus(err)
	}
	a.s.deps.Log.Warn("undelivered records are forgotten", "subscription", r.Subscription, "offsets", offsets, "filter", r.Filter)
	return &spillwayv1.ForgetUndeliveredResponse{Offsets: offsets}, nil
}
