package buffer

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// admin is the control plane.
type admin struct {
	spillwayv1.UnimplementedBufferAdminServiceServer
	s *Service
}

func (a *admin) ListQueues(_ context.Context, r *spillwayv1.ListQueuesRequest) (*spillwayv1.ListQueuesResponse, error) {
	var all []*spillwayv1.Queue
	for _, name := range a.s.names() {
		all = append(all, a.queue(name))
	}
	page, next, err := rpc.Page(all, (*spillwayv1.Queue).GetName, r.PageSize, 100, r.PageToken)
	return &spillwayv1.ListQueuesResponse{Queues: page, NextPageToken: next}, err
}

func (a *admin) GetQueue(_ context.Context, r *spillwayv1.GetQueueRequest) (*spillwayv1.GetQueueResponse, error) {
	q, err := a.s.queue(r.Name)
	if err != nil {
		return nil, toStatus(err)
	}
	resp := &spillwayv1.GetQueueResponse{Queue: a.queue(r.Name)}
	for _, p := range q.Partitions() {
		resp.Partitions = append(resp.Partitions, &spillwayv1.QueuePartition{Source: fromPartition(p.Partition),
			AppendedOffset: p.Appended, SafeOffset: p.Safe, ResumeOffset: p.Resume})
	}
	return resp, nil
}

func (a *admin) queue(name string) *spillwayv1.Queue {
	m := a.s.queues[name]
	q, state := m.get()
	out := &spillwayv1.Queue{Name: name, State: state, MemoryRecordsLimit: m.cfg.MemoryRecords, MemoryBytesLimit: m.cfg.MemoryBytes, DiskBytesLimit: m.cfg.DiskBytes}
	if q == nil {
		return out
	}
	s := q.Stats()
	out.MemoryRecords, out.MemoryBytes = s.MemoryRecords, s.MemoryBytes
	out.PendingBatches, out.PendingRecords = s.PendingBatches, s.PendingRecords
	out.AppendedRecords, out.SpilledRecords = s.AppendedRecords, s.SpilledRecords
	out.DiskBytes, out.Subscriptions = s.Store.DiskBytes, s.Subscriptions
	return out
}

func (a *admin) ListSubscriptions(_ context.Context, r *spillwayv1.ListSubscriptionsRequest) (*spillwayv1.ListSubscriptionsResponse, error) {
	if r.Queue != "" {
		if _, err := a.s.queue(r.Queue); err != nil {
			return nil, toStatus(err)
		}
	}
	var all []*spillwayv1.Subscription
	a.s.eachOpen(func(name string, q *queue.Queue) {
		if r.Queue != "" && r.Queue != name {
			return
		}
		for _, v := range q.Subscriptions() {
			all = append(all, fromSubscription(name, v))
		}
	})
	page, next, err := rpc.Page(all, (*spillwayv1.Subscription).GetName, r.PageSize, 100, r.PageToken)
	return &spillwayv1.ListSubscriptionsResponse{Subscriptions: page, NextPageToken: next}, err
}

func fromSubscription(queueName string, v queue.SubscriptionView) *spillwayv1.Subscription {
	s := &spillwayv1.Subscription{Name: queueName + "/" + v.Name, Topics: v.Topics, Required: v.Required, Paused: v.Paused, Configured: v.Configured,
		PendingRecords: v.PendingRecords, PendingBytes: v.PendingBytes, LeasedBatches: int64(v.Leased), Sessions: int32(v.Sessions),
		DeliveredRecords: v.Delivered, DeadLetteredRecords: v.DeadLettered, RedeliveredBatches: v.Redelivered,
		DeferredOffsets: v.Deferred, DroppedOffsets: v.Dropped, LostOffsets: v.Lost, OnFull: spillwayv1.OnFull(v.OnFull), LimitBytes: v.Limit}
	if !v.OldestPending.IsZero() {
		s.OldestPendingAge = durationpb.New(time.Since(v.OldestPending))
	}
	return s
}

// view finds one subscription.
func (a *admin) view(name string) (*queue.Queue, queue.SubscriptionView, error) {
	q, sub, err := a.s.subscription(name)
	if err != nil {
		return nil, queue.SubscriptionView{}, toStatus(err)
	}
	var names []string
	for _, v := range q.Subscriptions() {
		if v.Name == sub {
			return q, v, nil
		}
		names = append(names, v.Name)
	}
	return nil, queue.SubscriptionView{}, toStatus(fmt.Errorf("%w: %q; the queue has: %s", queue.ErrNoSubscription, sub, strings.Join(names, ", ")))
}

func (a *admin) GetSubscription(_ context.Context, r *spillwayv1.GetSubscriptionRequest) (*spillwayv1.GetSubscriptionResponse, error) {
	_, v, err := a.view(r.Name)
	if err != nil {
		return nil, err
	}
	queueName, _, _ := strings.Cut(r.Name, "/")
	resp := &spillwayv1.GetSubscriptionResponse{Subscription: fromSubscription(queueName, v)}
	for _, p := range v.Partitions {
		sp := &spillwayv1.SubscriptionPartition{Source: fromPartition(p.Partition), StartOffset: p.Settled.Start, SettledOffset: p.Settled.Floor,
			AppendedOffset: p.Appended, Outcomes: make(map[string]int64)}
		for _, i := range p.Settled.Above {
			sp.SettledRanges = append(sp.SettledRanges, fromRange(i.Range))
		}
		for o, n := range p.Settled.Totals() {
			sp.Outcomes[o.String()] = n
		}
		resp.Partitions = append(resp.Partitions, sp)
	}
	return resp, nil
}

func (a *admin) PauseSubscription(ctx context.Context, r *spillwayv1.PauseSubscriptionRequest) (*spillwayv1.PauseSubscriptionResponse, error) {
	s, err := a.pause(ctx, r.Name, true)
	return &spillwayv1.PauseSubscriptionResponse{Subscription: s}, err
}

func (a *admin) ResumeSubscription(ctx context.Context, r *spillwayv1.ResumeSubscriptionRequest) (*spillwayv1.ResumeSubscriptionResponse, error) {
	s, err := a.pause(ctx, r.Name, false)
	return &spillwayv1.ResumeSubscriptionResponse{Subscription: s}, err
}

func (a *admin) pause(ctx context.Context, name string, paused bool) (*spillwayv1.Subscription, error) {
	q, v, err := a.view(name)
	if err != nil {
		return nil, err
	}
	if err := q.Pause(ctx, v.Name, paused); err != nil {
		return nil, toStatus(err)
	}
	a.s.deps.Log.Info("subscription paused or resumed", "subscription", name, "paused", paused)
	_, v, err = a.view(name)
	queueName, _, _ := strings.Cut(name, "/")
	return fromSubscription(queueName, v), err
}

func (a *admin) ForgetSource(ctx context.Context, r *spillwayv1.ForgetSourceRequest) (*spillwayv1.ForgetSourceResponse, error) {
	q, err := a.s.queue(r.Queue)
	if err == nil {
		err = q.ForgetSource(ctx, r.Source)
	}
	if err != nil {
		return nil, toStatus(err)
	}
	return &spillwayv1.ForgetSourceResponse{}, nil
}

func (a *admin) ListSessions(_ context.Context, r *spillwayv1.ListSessionsRequest) (*spillwayv1.ListSessionsResponse, error) {
	if r.Subscription != "" {
		if _, _, err := a.view(r.Subscription); err != nil {
			return nil, err
		}
	}
	var all []*spillwayv1.Session
	a.s.eachOpen(func(name string, q *queue.Queue) {
		for _, v := range q.Sessions() {
			sub := name + "/" + v.Subscription
			if r.Subscription != "" && r.Subscription != sub {
				continue
			}
			s := &spillwayv1.Session{Id: v.ID, Subscription: sub, Consumer: v.Consumer, Live: v.Live, Ordering: spillwayv1.Ordering_ORDERING_NONE,
				LeasedBatches: int64(v.Leased), CreditBytes: v.Credit, StateEntries: int32(v.StateEntries)}
			if v.Ordered {
				s.Ordering = spillwayv1.Ordering_ORDERING_PARTITION
			}
			if !v.OpenedAt.IsZero() {
				s.OpenedAt = timestamppb.New(v.OpenedAt)
			}
			all = append(all, s)
		}
	})
	key := func(s *spillwayv1.Session) string { return fmt.Sprintf("%s %020d", s.Subscription, s.Id) }
	page, next, err := rpc.Page(all, key, r.PageSize, 100, r.PageToken)
	return &spillwayv1.ListSessionsResponse{Sessions: page, NextPageToken: next}, err
}
