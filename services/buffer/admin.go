package buffer

import (
	"context"
	"fmt"
	"iter"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/rpc"
	"github.com/spillwayio/spillway/services/internal/shards"
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
	all, err := a.s.openShards(r.Name)
	if err != nil {
		return nil, toStatus(err)
	}
	from, err := parseToken(r.PageToken)
	if err != nil {
		return nil, toStatus(err)
	}
	views, err := across(all, from, func(o openShard, from position) (iter.Seq[queue.PartitionView], error) {
		return o.Partitions(from.Partition), nil
	})
	if err != nil {
		return nil, toStatus(err)
	}
	partitions, next, err := page(views, r.PageSize, func(p inShard[queue.PartitionView]) *spillwayv1.QueuePartition {
		return &spillwayv1.QueuePartition{Source: fromPartition(p.of.Partition), AppendedOffset: p.of.Appended, SafeOffset: p.of.Safe, ResumeOffset: p.of.Resume}
	}, func(p inShard[queue.PartitionView]) position {
		return position{Shard: p.shard, Partition: p.of.Partition}
	})
	if err != nil {
		return nil, toStatus(err)
	}
	return &spillwayv1.GetQueueResponse{Queue: a.queue(r.Name), Partitions: partitions, NextPageToken: next}, nil
}

// UpdateQueue changes the bounds of a queue's disk, also while it is full.
func (a *admin) UpdateQueue(ctx context.Context, r *spillwayv1.UpdateQueueRequest) (*spillwayv1.UpdateQueueResponse, error) {
	all, err := a.s.openShards(r.Name)
	if err == nil && r.DiskBytes == nil && r.DiskRecords == nil {
		err = fmt.Errorf("%w update of queue %s: nothing to change; want disk_bytes or disk_records", queue.ErrInvalid, r.Name)
	}
	if err != nil {
		return nil, toStatus(err)
	}
	before, _ := all[0].Limits()
	err = each(all, func(o openShard) error {
		return o.SetLimits(ctx, func(l *queue.Limits) error {
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
	})
	if err != nil {
		return nil, toStatus(err)
	}
	now, _ := all[0].Limits()
	a.s.deps.Log.Info("the bounds of the queue's disk were changed", "queue", r.Name, "disk_bytes", now.DiskBytes, "was", before.DiskBytes,
		"disk_records", now.DiskRecords, "records_were", before.DiskRecords)
	return &spillwayv1.UpdateQueueResponse{Queue: a.queue(r.Name)}, nil
}

// queue is what the shards that are here say together.
func (a *admin) queue(name string) *spillwayv1.Queue {
	m := a.s.queues[name]
	var sum *spillwayv1.Queue
	var each []*spillwayv1.QueueShard
	for _, h := range m.here() {
		q := h.describe()
		each = append(each, &spillwayv1.QueueShard{Number: q.Shard, State: q.State, MemoryBytes: q.MemoryBytes, MemoryBytesLimit: q.MemoryBytesLimit,
			DiskBytes: q.DiskBytes, DiskBytesLimit: q.DiskBytesLimit})
		sum = shards.AddQueue(sum, q)
	}
	if len(each) == 0 {
		return &spillwayv1.Queue{Name: name, State: m.notOpen(), Shards: m.of()}
	}
	if len(each) > 1 {
		memory := m.memory() // the parts may be less: what the division leaves is in none
		sum.MemoryRecordsLimit, sum.MemoryBytesLimit = memory.Records, memory.Bytes
		sum.Shard, sum.ShardsHere = each[0].Number, each
		for _, one := range each {
			if one.State != "open" {
				sum.State = fmt.Sprintf("shard %d: %s", one.Number, one.State)
				break
			}
		}
	}
	return sum
}

// describe returns what one shard says of itself.
func (h *shard) describe() *spillwayv1.Queue {
	q, state := h.get()
	cfg := h.config()
	out := &spillwayv1.Queue{Name: h.name, State: state, MemoryRecordsLimit: cfg.MemoryRecords, MemoryBytesLimit: cfg.MemoryBytes,
		DiskBytesLimit: cfg.DiskBytes, DiskRecordsLimit: cfg.DiskRecords, ConfiguredDiskBytes: cfg.DiskBytes, ConfiguredDiskRecords: cfg.DiskRecords,
		Shard: int32(h.number), Shards: h.of()}
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
		if _, err := a.s.openShards(r.Queue); err != nil {
			return nil, toStatus(err)
		}
	}
	var all []*spillwayv1.Subscription
	a.s.eachOpen(func(o openShard) {
		if r.Queue != "" && r.Queue != o.name {
			return
		}
		for _, v := range o.Subscriptions() {
			all = shards.AddSubscriptions(all, []*spillwayv1.Subscription{a.fromSubscription(o, v)})
		}
	})
	page, next, err := rpc.Page(all, (*spillwayv1.Subscription).GetName, r.PageSize, 100, r.PageToken)
	for _, s := range page {
		if all, name, err := a.s.subscription(s.Name); err == nil {
			setAge(s, oldestPending(all, name))
		}
	}
	return &spillwayv1.ListSubscriptionsResponse{Subscriptions: page, NextPageToken: next}, err
}

func (a *admin) fromSubscription(o openShard, v queue.SubscriptionView) *spillwayv1.Subscription {
	name := o.name + "/" + v.Name
	headers := a.s.headers(o, v)
	s := &spillwayv1.Subscription{Name: name, Topics: v.Topics, Required: v.Required, Paused: v.Paused, Configured: v.Configured,
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

// oldestPending is when the oldest pending batch was appended, in any shard; zero without one.
func oldestPending(all []openShard, sub string) (oldest time.Time) {
	for _, o := range all {
		if at := o.OldestPending(sub); !at.IsZero() && (oldest.IsZero() || at.Before(oldest)) {
			oldest = at
		}
	}
	return oldest
}

// view finds the shards that have a subscription, and what it is there.
func (a *admin) view(name string) (all []openShard, views []queue.SubscriptionView, err error) {
	all, sub, err := a.s.subscription(name)
	if err == nil {
		all, views, err = with(all, sub)
	}
	return all, views, toStatus(err)
}

// subscription is one subscription as it is now.
func (a *admin) subscription(name string) (*spillwayv1.Subscription, error) {
	all, views, err := a.view(name)
	if err != nil {
		return nil, err
	}
	var sum *spillwayv1.Subscription
	for i, v := range views {
		sum = shards.AddSubscription(sum, a.fromSubscription(all[i], v))
	}
	setAge(sum, oldestPending(all, views[0].Name))
	return sum, nil
}

func (a *admin) GetSubscription(_ context.Context, r *spillwayv1.GetSubscriptionRequest) (*spillwayv1.GetSubscriptionResponse, error) {
	all, views, err := a.view(r.Name)
	if err != nil {
		return nil, err
	}
	from, err := parseToken(r.PageToken)
	if err != nil {
		return nil, toStatus(err)
	}
	progress, err := across(all, from, func(o openShard, from position) (iter.Seq[queue.ProgressView], error) {
		return o.Progress(views[0].Name, from.Partition), nil
	})
	if err != nil {
		return nil, toStatus(err)
	}
	partitions, next, err := page(progress, r.PageSize, func(p inShard[queue.ProgressView]) *spillwayv1.SubscriptionPartition { return fromProgress(p.of) },
		func(p inShard[queue.ProgressView]) position {
			return position{Shard: p.shard, Partition: p.of.Partition}
		})
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
	all, views, err := a.view(name)
	if err != nil {
		return nil, err
	}
	if err := each(all, func(o openShard) error { return o.Pause(ctx, views[0].Name, paused) }); err != nil {
		return nil, toStatus(err)
	}
	a.s.deps.Log.Info("subscription paused or resumed", "subscription", name, "paused", paused)
	return a.subscription(name)
}

func (a *admin) ForgetSource(ctx context.Context, r *spillwayv1.ForgetSourceRequest) (*spillwayv1.ForgetSourceResponse, error) {
	all, err := a.s.openShards(r.Queue)
	if err == nil {
		err = each(all, func(o openShard) error { return o.ForgetSource(ctx, r.Source) }, queue.ErrNoSource)
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
	a.s.eachOpen(func(o openShard) {
		for _, v := range o.Sessions() {
			sub := o.name + "/" + v.Subscription
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
