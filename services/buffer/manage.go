package buffer

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// The part of the control plane that changes subscriptions, and that accounts for offsets.

func (a *admin) CreateSubscription(ctx context.Context, r *spillwayv1.CreateSubscriptionRequest) (*spillwayv1.CreateSubscriptionResponse, error) {
	q, name, err := a.s.subscription(r.Name)
	if err != nil {
		return nil, toStatus(err)
	}
	c := queue.SubscriptionConfig{Name: name, Topics: r.Topics, Required: r.Required == nil || *r.Required, OnFull: queue.OnFull(r.OnFull), Limit: r.LimitBytes}
	if len(c.Topics) == 0 {
		c.Topics = []string{"*"}
	}
	place, starts, err := a.start(ctx, q, r.Start, c.Topics)
	if err != nil {
		return nil, toStatus(err)
	}
	if place == queue.Nowhere && r.Start.GetTime() == nil {
		place = queue.Earliest
	}
	if err := q.Subscribe(ctx, c, place, starts); err != nil {
		return nil, toStatus(err)
	}
	a.s.deps.Log.Info("subscription created", "subscription", r.Name, "topics", c.Topics, "required", c.Required)
	s, err := a.subscription(r.Name)
	return &spillwayv1.CreateSubscriptionResponse{Subscription: s}, err
}

func (a *admin) UpdateSubscription(ctx context.Context, r *spillwayv1.UpdateSubscriptionRequest) (*spillwayv1.UpdateSubscriptionResponse, error) {
	q, name, err := a.s.subscription(r.Name)
	if err != nil {
		return nil, toStatus(err)
	}
	err = q.Update(ctx, name, func(c *queue.SubscriptionConfig) {
		if len(r.Topics) > 0 {
			c.Topics = r.Topics
		}
		if r.Required != nil {
			c.Required = *r.Required
		}
		if r.OnFull != spillwayv1.OnFull_ON_FULL_UNSPECIFIED {
			c.OnFull = queue.OnFull(r.OnFull)
		}
		if r.LimitBytes != nil {
			c.Limit = *r.LimitBytes
		}
	})
	if err != nil {
		return nil, toStatus(err)
	}
	a.s.deps.Log.Info("subscription changed", "subscription", r.Name)
	s, err := a.subscription(r.Name)
	return &spillwayv1.UpdateSubscriptionResponse{Subscription: s}, err
}

func (a *admin) DeleteSubscription(ctx context.Context, r *spillwayv1.DeleteSubscriptionRequest) (*spillwayv1.DeleteSubscriptionResponse, error) {
	q, name, err := a.s.subscription(r.Name)
	if err != nil {
		return nil, toStatus(err)
	}
	if err := q.Unsubscribe(ctx, name); err != nil {
		return nil, toStatus(err)
	}
	a.s.deps.Log.Info("subscription deleted", "subscription", r.Name)
	return &spillwayv1.DeleteSubscriptionResponse{}, nil
}

func (a *admin) SeekSubscription(ctx context.Context, r *spillwayv1.SeekSubscriptionRequest) (*spillwayv1.SeekSubscriptionResponse, error) {
	q, name, err := a.s.subscription(r.Name)
	if err != nil {
		return nil, toStatus(err)
	}
	_, v, err := a.view(r.Name)
	if err != nil {
		return nil, err
	}
	place, starts, err := a.start(ctx, q, r.To, v.Topics)
	if err == nil && place == queue.Nowhere && len(starts) == 0 {
		err = fmt.Errorf("%w seek of %s: want earliest, latest, a time, or offsets", queue.ErrInvalid, r.Name)
	}
	if err != nil {
		return nil, toStatus(err)
	}
	if err := q.Seek(ctx, name, place, starts); err != nil {
		return nil, toStatus(err)
	}
	a.s.deps.Log.Info("subscription moved", "subscription", r.Name, "to", r.To)
	s, err := a.subscription(r.Name)
	return &spillwayv1.SeekSubscriptionResponse{Subscription: s}, err
}

// findTimeout bounds the wait for the ingests when a start is a time.
const findTimeout = 10 * time.Second

// start is where a subscription that wants the topics is to begin; a time is looked up in Kafka.
func (a *admin) start(ctx context.Context, q *queue.Queue, p *spillwayv1.StartPosition, topics []string) (queue.Place, []queue.Start, error) {
	place := queue.Nowhere
	switch p.GetPlace().(type) {
	case *spillwayv1.StartPosition_Earliest_:
		place = queue.Earliest
	case *spillwayv1.StartPosition_Latest_:
		place = queue.Latest
	}
	var starts []queue.Start
	named := make(map[string]bool)
	seen := q.Partitions()
	for _, o := range p.GetOffsets() {
		id := queue.Partition{Cluster: o.Source.GetCluster(), Topic: o.Source.GetTopic(), Incarnation: o.Source.GetIncarnation(), Number: o.Source.GetPartition()}
		for _, v := range seen { // a digit too many would have the subscription skip all that is to come
			if id.Cluster == "" {
				v.Partition.Cluster = ""
			}
			if v.Partition == id && o.Offset > v.Appended {
				return 0, nil, fmt.Errorf("%w offset %d of %s/%d: the buffer has read it up to %d; latest is its end", queue.ErrInvalid, o.Offset, id.Topic, id.Number, v.Appended)
			}
		}
		starts = append(starts, queue.Start{Offset: o.Offset, Partition: id})
		named[fmt.Sprintf("%s/%d", id.Topic, id.Number)] = true
	}
	if p.GetTime() == nil {
		return place, starts, nil
	}
	var g errgroup.Group
	g.SetLimit(16)
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	found := make(chan queue.Start, len(seen))
	for _, v := range seen {
		id := v.Partition
		wanted := slices.ContainsFunc(topics, func(glob string) bool {
			ok, _ := path.Match(glob, id.Topic)
			return ok
		})
		if !wanted || named[fmt.Sprintf("%s/%d", id.Topic, id.Number)] {
			continue
		}
		if v.Superseded { // Kafka cannot be asked any more
			found <- queue.Start{Partition: id, Offset: v.Held}
			continue
		}
		g.Go(func() error {
			offset, err := q.FindOffset(ctx, id, p.GetTime().AsTime().UnixMilli())
			if err == nil {
				found <- queue.Start{Partition: id, Offset: offset}
			}
			return err
		})
	}
	err := g.Wait()
	close(found)
	for s := range found {
		starts = append(starts, s)
	}
	return place, starts, err
}

// subscription is one subscription as it is now.
func (a *admin) subscription(name string) (*spillwayv1.Subscription, error) {
	_, v, err := a.view(name)
	if err != nil {
		return nil, err
	}
	queueName, _, _ := strings.Cut(name, "/")
	return fromSubscription(queueName, v), nil
}

func (a *admin) ListUndelivered(_ context.Context, r *spillwayv1.ListUndeliveredRequest) (*spillwayv1.ListUndeliveredResponse, error) {
	q, name, err := a.s.subscription(r.Subscription)
	if err != nil {
		return nil, toStatus(err)
	}
	list, err := q.Undelivered(name)
	if err != nil {
		return nil, toStatus(err)
	}
	var all []*spillwayv1.Undelivered
	for _, u := range list {
		if o := spillwayv1.Outcome(u.Outcome); r.Outcome == spillwayv1.Outcome_OUTCOME_UNSPECIFIED || r.Outcome == o {
			all = append(all, &spillwayv1.Undelivered{Source: fromPartition(u.Partition), Range: fromRange(u.Range), Outcome: o, Reason: u.Reason,
				SettledAt: timestamppb.New(time.UnixMilli(u.AtMs))})
		}
	}
	key := func(u *spillwayv1.Undelivered) string {
		return fmt.Sprintf("%020d %s %s %010d %020d", u.SettledAt.AsTime().UnixMilli(), u.Source.Cluster, u.Source.Topic, u.Source.Partition, u.Range.First)
	}
	page, next, err := rpc.Page(all, key, r.PageSize, 100, r.PageToken)
	return &spillwayv1.ListUndeliveredResponse{Ranges: page, NextPageToken: next}, err
}

func (a *admin) Audit(_ context.Context, r *spillwayv1.AuditRequest) (*spillwayv1.AuditResponse, error) {
	queueName, sub, _ := strings.Cut(r.Name, "/")
	resp := &spillwayv1.AuditResponse{}
	if queueName != "" {
		if _, err := a.s.queue(queueName); err != nil {
			return nil, toStatus(err)
		}
	}
	for _, name := range a.s.names() {
		if queueName != "" && name != queueName {
			continue
		}
		q, err := a.s.queue(name)
		if err != nil {
			return nil, toStatus(err) // an audit that leaves out a queue would look complete
		}
		accounts, err := q.Audit(sub)
		if err != nil {
			return nil, toStatus(err)
		}
		for _, account := range accounts {
			resp.Partitions = append(resp.Partitions, fromAccount(name, account))
		}
	}
	return resp, nil
}

func fromAccount(queueName string, a queue.Account) *spillwayv1.AuditPartition {
	p := &spillwayv1.AuditPartition{Subscription: queueName + "/" + a.Subscription, Source: fromPartition(a.Partition), StartOffset: a.Start,
		SettledOffset: a.Settled, AppendedOffset: a.Appended, SafeOffset: a.Safe, Outcomes: make(map[string]int64), PendingOffsets: a.Pending, HoleOffsets: a.Holes}
	for o, n := range a.Outcomes {
		p.Outcomes[o.String()] = n
	}
	for _, r := range a.Ranges {
		p.Ranges = append(p.Ranges, &spillwayv1.AuditRange{Range: fromRange(r.Range), State: r.State})
	}
	return p
}
