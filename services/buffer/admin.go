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
	"github.com/spillwayio/spillway/services/internal/config"
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
		if !a.s.queues[name].isSpare() { // it has nothing of the queue
			all = append(all, a.queue(name))
		}
	}
	page, next, err := rpc.Page(all, (*spillwayv1.Queue).GetName, r.PageSize, 100, r.PageToken)
	return &spillwayv1.ListQueuesResponse{Queues: page, NextPageToken: next}, err
}

func (a *admin) GetQueue(_ context.Context, r *spillwayv1.GetQueueRequest) (*spillwayv1.GetQueueResponse, error) {
	q, err := a.s.queue(r.Name)
	if err != nil {
		return nil, toStatus(err)
	}
	from, err := parseToken(r.PageToken)
	if err != nil {
		return nil, toStatus(err)
	}
	partitions, next, err := page(q.Partitions(from.Partition), r.PageSize, func(p queue.PartitionView) *spillwayv1.QueuePartition {
		return &spillwayv1.QueuePartition{Source: fromPartition(p.Partition), AppendedOffset: p.Appended, SafeOffset: p.Safe, ResumeOffset: p.Resume}
	}, func(p queue.PartitionView) position { return position{Partition: p.Partition} })
	if err != nil {
		return nil, toStatus(err)
	}
	return &spillwayv1.GetQueueResponse{Queue: a.queue(r.Name), Partitions: partitions, NextPageToken: next}, nil
}

// UpdateQueue changes the bounds of a queue's disk, also while it is full.
func (a *admin) UpdateQueue(ctx context.Context, r *spillwayv1.UpdateQueueRequest) (*spillwayv1.UpdateQueueResponse, error) {
	q, err := a.s.queue(r.Name)
	if err == nil && r.DiskBytes == nil && r.DiskRecords == nil {
		err = fmt.Errorf("%w update of queue %s: nothing to change; want disk_bytes or disk_records", queue.ErrInvalid, r.Name)
	}
	if err != nil {
		return nil, toStatus(err)
	}
	before, _ := q.Limits()
	err = q.SetLimits(ctx, func(l *queue.Limits) error {
		if r.DiskBytes != nil {
			l.DiskBytes = *r.DiskBytes
		}
		if r.DiskRecords != nil {
			l.DiskRecords = *r.DiskRecords
		}
		if err := config.CheckDisk(config.ByteSize(l.DiskBytes), l.DiskRecords); err != nil {
			return fmt.Errorf("%w: %w", queue.ErrInvalid, err)
		}
		return nil
	})
	if err != nil {
		return nil, toStatus(err)
	}
	now, _ := q.Limits()
	a.s.deps.Log.Info("the bounds of the queue's disk were changed", "queue", r.Name, "disk_bytes", now.DiskBytes, "was", before.DiskBytes,
		"disk_records", now.DiskRecords, "records_were", before.DiskRecords)
	return &spillwayv1.UpdateQueueResponse{Queue: a.queue(r.Name)}, nil
}

func (a *admin) queue(name string) *spillwayv1.Queue {
	m := a.s.queues[name]
	q, state := m.get()
	cfg := m.config()
	out := &spillwayv1.Queue{Name: name, State: state, MemoryRecordsLimit: cfg.MemoryRecords, MemoryBytesLimit: cfg.MemoryBytes,
		DiskBytesLimit: cfg.DiskBytes, DiskRecordsLimit: cfg.DiskRecords, ConfiguredDiskBytes: cfg.DiskBytes, ConfiguredDiskRecords: cfg.DiskRecords,
		Shard: max(int32(m.number()), 0), Shards: m.shards()}
	if q == nil {
		return out
	}
	s := q.Stats()
	out.MemoryRecords, out.MemoryBytes = s.MemoryRecords, s.MemoryBytes
	out.PendingBatches, out.PendingRecords = s.PendingBatches, s.PendingRecords
	out.AppendedRecords, out.SpilledRecords = s.AppendedRecords, s.SpilledRecords
	out.DiskBytes, out.Subscriptions, out.PausedSources = s.Store.DiskBytes, s.Subscriptions, s.PausedSources
	out.DiskBytesLimit, out.DiskRecordsLimit = s.Limits.DiskBytes, s.Limits.DiskRecords
	out.Revision, _ = q.Revision()
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
			all = append(all, fromSubscription(name, v, a.s.headers(name+"/"+v.Name, q)))
		}
	})
	page, next, err := rpc.Page(all, (*spillwayv1.Subscription).GetName, r.PageSize, 100, r.PageToken)
	for _, s := range page {
		if q, name, err := a.s.subscription(s.Name); err == nil {
			setAge(s, q.OldestPending(name))
		}
	}
	return &spillwayv1.ListSubscriptionsResponse{Subscriptions: page, NextPageToken: next}, err
}

func fromSubscription(queueName string, v queue.SubscriptionView, headers []*spillwayv1.HeaderFilter) *spillwayv1.Subscription {
	s := &spillwayv1.Subscription{Name: queueName + "/" + v.Name, Topics: v.Topics, Required: v.Required, Paused: v.Paused, Configured: v.Configured,
		PendingRecords: v.PendingRecords, PendingBytes: v.PendingBytes, LeasedBatches: int64(v.Leased), Sessions: int32(v.Sessions),
		DeliveredRecords: v.Delivered, DeadLetteredRecords: v.DeadLettered, RedeliveredBatches: v.Redelivered,
		DeferredOffsets: v.Deferred, DroppedOffsets: v.Dropped, ParkedBatches: int64(v.Parked), LostOffsets: v.Lost, OnFull: spillwayv1.OnFull(v.OnFull), LimitBytes: v.Limit, Headers: headers,
		Replay: fromReplay(v.Replay), RedrivingOffsets: v.Redriving, PausedDeliveries: v.PausedDeliveries, DeadLetters: &v.DeadListed}
	if v.Trouble.Error != "" {
		s.Trouble, s.TroubleSince = v.Trouble.Error, timestamppb.New(v.Trouble.Since)
	}
	return s
}

// setAge tells when the oldest pending batch was appended.
func setAge(s *spillwayv1.Subscription, oldest time.Time) {
	if !oldest.IsZero() {
		s.OldestPendingAge = durationpb.New(time.Since(oldest))
	}
}

// view finds one subscription.
func (a *admin) view(name string) (*queue.Queue, queue.SubscriptionView, error) {
	q, sub, err := a.s.subscription(name)
	if err != nil {
		return nil, queue.SubscriptionView{}, toStatus(err)
	}
	v, err := q.Subscription(sub)
	if err != nil {
		return nil, queue.SubscriptionView{}, toStatus(err)
	}
	return q, v, nil
}

// subscription is one subscription as it is now.
func (a *admin) subscription(name string) (*spillwayv1.Subscription, error) {
	q, v, err := a.view(name)
	if err != nil {
		return nil, err
	}
	queueName, _, _ := strings.Cut(name, "/")
	s := fromSubscription(queueName, v, a.s.headers(queueName+"/"+v.Name, q))
	setAge(s, q.OldestPending(v.Name))
	return s, nil
}

func (a *admin) GetSubscription(_ context.Context, r *spillwayv1.GetSubscriptionRequest) (*spillwayv1.GetSubscriptionResponse, error) {
	q, v, err := a.view(r.Name)
	if err != nil {
		return nil, err
	}
	from, err := parseToken(r.PageToken)
	if err != nil {
		return nil, toStatus(err)
	}
	partitions, next, err := page(q.Progress(v.Name, from.Partition), r.PageSize, fromProgress,
		func(p queue.ProgressView) position { return position{Partition: p.Partition} })
	if err != nil {
		return nil, toStatus(err)
	}
	s, err := a.subscription(r.Name)
	return &spillwayv1.GetSubscriptionResponse{Subscription: s, Partitions: partitions, NextPageToken: next}, err
}

func fromProgress(p queue.ProgressView) *spillwayv1.SubscriptionPartition {
	sp := &spillwayv1.SubscriptionPartition{Source: fromPartition(p.Partition), StartOffset: p.Start, SettledOffset: p.Settled,
		AppendedOffset: p.Appended, Unwanted: p.Unwanted, SettledRanges: fromRanges(p.Above), Outcomes: make(map[string]int64)}
	for o, n := range p.Outcomes {
		sp.Outcomes[o.String()] = n
	}
	return sp
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
	return a.subscription(name)
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
