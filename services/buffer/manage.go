package buffer

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// The part of the control plane that changes subscriptions, and that accounts for offsets.

func (a *admin) CreateSubscription(ctx context.Context, r *spillwayv1.CreateSubscriptionRequest) (*spillwayv1.CreateSubscriptionResponse, error) {
	all, name, err := a.s.subscription(r.Name)
	if err != nil {
		return nil, toStatus(err)
	}
	onFull, err := toOnFull(r.OnFull)
	if err != nil {
		return nil, toStatus(err)
	}
	c := queue.SubscriptionConfig{Name: name, Topics: r.Topics, Required: r.Required == nil || *r.Required, OnFull: onFull, Limit: r.LimitBytes}
	if len(c.Topics) == 0 {
		c.Topics = []string{"*"}
	}
	// A shard that has it already does not keep it from the others: an attempt before may have
	// failed there.
	if err := each(all, func(o openShard) error {
		place, starts, err := a.start(ctx, o.Queue, r.Start, c.Topics)
		if err != nil {
			return err
		}
		if place == queue.Nowhere && r.Start.GetTime() == nil {
			place = queue.Earliest
		}
		return o.Subscribe(ctx, c, place, starts)
	}, queue.ErrExists); err != nil {
		return nil, toStatus(err)
	}
	a.s.deps.Log.Info("subscription created", "subscription", r.Name, "topics", c.Topics, "required", c.Required)
	s, err := a.subscription(r.Name)
	return &spillwayv1.CreateSubscriptionResponse{Subscription: s}, err
}

// toOnFull refuses numbers that are none, which would be cut to others.
func toOnFull(o spillwayv1.OnFull) (queue.OnFull, error) {
	if _, known := spillwayv1.OnFull_name[int32(o)]; !known {
		return 0, fmt.Errorf("%w on_full %d", queue.ErrInvalid, o)
	}
	return queue.OnFull(o), nil
}

func (a *admin) UpdateSubscription(ctx context.Context, r *spillwayv1.UpdateSubscriptionRequest) (*spillwayv1.UpdateSubscriptionResponse, error) {
	all, name, err := a.s.subscription(r.Name)
	if err != nil {
		return nil, toStatus(err)
	}
	onFull, err := toOnFull(r.OnFull)
	if err != nil {
		return nil, toStatus(err)
	}
	err = each(all, func(o openShard) error {
		return o.Update(ctx, name, func(c *queue.SubscriptionConfig) {
			if len(r.Topics) > 0 {
				c.Topics = r.Topics
			}
			if r.Required != nil {
				c.Required = *r.Required
			}
			if r.OnFull != spillwayv1.OnFull_ON_FULL_UNSPECIFIED {
				c.OnFull = onFull
			}
			if r.LimitBytes != nil {
				c.Limit = *r.LimitBytes
			}
		})
	}, queue.ErrNoSubscription)
	if err != nil {
		return nil, toStatus(err)
	}
	a.s.deps.Log.Info("subscription changed", "subscription", r.Name)
	if r.DropUnwanted {
		if err := each(all, func(o openShard) error { return o.DropUnwanted(ctx, name) }, queue.ErrNoSubscription); err != nil {
			return nil, toStatus(err)
		}
		a.s.deps.Log.Warn("what was pending of topics that the subscription does not want is dropped", "subscription", r.Name)
	}
	s, err := a.subscription(r.Name)
	return &spillwayv1.UpdateSubscriptionResponse{Subscription: s}, err
}

func (a *admin) DeleteSubscription(ctx context.Context, r *spillwayv1.DeleteSubscriptionRequest) (*spillwayv1.DeleteSubscriptionResponse, error) {
	all, name, err := a.s.subscription(r.Name)
	if err != nil {
		return nil, toStatus(err)
	}
	if err := each(all, func(o openShard) error { return o.Unsubscribe(ctx, name, r.Force) }, queue.ErrNoSubscription); err != nil {
		return nil, toStatus(err)
	}
	a.s.deps.Log.Warn("subscription deleted", "subscription", r.Name, "force", r.Force)
	return &spillwayv1.DeleteSubscriptionResponse{}, nil
}

func (a *admin) SeekSubscription(ctx context.Context, r *spillwayv1.SeekSubscriptionRequest) (*spillwayv1.SeekSubscriptionResponse, error) {
	all, views, err := a.view(r.Name)
	if err != nil {
		return nil, err
	}
	if err := each(all, func(o openShard) error {
		place, starts, err := a.start(ctx, o.Queue, r.To, views[0].Topics)
		if err == nil && place == queue.Nowhere && len(starts) == 0 {
			err = fmt.Errorf("%w seek of %s: want earliest, latest, a time, or offsets", queue.ErrInvalid, r.Name)
		}
		if err != nil {
			return err
		}
		return o.Seek(ctx, views[0].Name, place, starts)
	}); err != nil {
		return nil, toStatus(err)
	}
	a.s.deps.Log.Info("subscription moved", "subscription", r.Name, "to", r.To)
	s, err := a.subscription(r.Name)
	return &spillwayv1.SeekSubscriptionResponse{Subscription: s}, err
}

// findTimeout bounds the wait for the ingests when a start is a time.
const findTimeout = 30 * time.Second

// start is where a subscription that wants the topics is to begin; a time is looked up in Kafka.
// In what Kafka does not have any more, whatever the buffer still holds counts as younger.
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
	seen := slices.Collect(q.Partitions(queue.Partition{}))
	appended := make(map[queue.Partition]int64) // by partition, and without its cluster
	if len(p.GetOffsets()) > 0 {
		for _, v := range seen {
			appended[v.Partition] = v.Appended
			v.Partition.Cluster = ""
			appended[v.Partition] = max(appended[v.Partition], v.Appended)
		}
	}
	for _, o := range p.GetOffsets() {
		id := queue.Partition{Cluster: o.Source.GetCluster(), Topic: o.Source.GetTopic(), Incarnation: o.Source.GetIncarnation(), Number: o.Source.GetPartition()}
		// A digit too many would have the subscription skip all that is to come.
		if end, known := appended[id]; known && o.Offset > end {
			return 0, nil, fmt.Errorf("%w offset %d of %s/%d: the buffer has read it up to %d; latest is its end", queue.ErrInvalid, o.Offset, id.Topic, id.Number, end)
		}
		starts = append(starts, queue.Start{Offset: o.Offset, Partition: id})
		named[fmt.Sprintf("%s/%d", id.Topic, id.Number)] = true
	}
	if p.GetTime() == nil {
		return place, starts, nil
	}
	var g errgroup.Group
	g.SetLimit(4096) // ingests ask Kafka about many at once
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	found, gone := make(chan queue.Start, len(seen)), make(chan string, len(seen))
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
			if errors.Is(err, queue.ErrGone) {
				offset, err = v.Held, nil
				gone <- fmt.Sprintf("%s/%d", id.Topic, id.Number)
			}
			if err == nil {
				found <- queue.Start{Partition: id, Offset: offset}
			}
			return err
		})
	}
	err := g.Wait()
	close(found)
	if n := len(gone); n > 0 {
		const most = 20
		names := make([]string, min(n, most))
		for i := range names {
			names[i] = <-gone
		}
		slices.Sort(names)
		a.s.deps.Log.Warn("a time cannot be looked up in topics that Kafka does not have any more: what the buffer still holds of them counts as younger than it",
			"time", p.GetTime().AsTime().Format(time.RFC3339), "partitions", n, "among_them", names)
	}
	for s := range found {
		starts = append(starts, s)
	}
	return place, starts, err
}

func (a *admin) Audit(_ context.Context, r *spillwayv1.AuditRequest) (*spillwayv1.AuditResponse, error) {
	from, err := parseToken(r.PageToken)
	if err != nil {
		return nil, toStatus(err)
	}
	queueName, sub, _ := strings.Cut(r.Name, "/")
	var names []string
	for _, name := range a.s.names() {
		if (queueName == "" || name == queueName) && name >= from.Queue && !a.s.queues[name].isSpare() {
			names = append(names, name)
		}
	}
	if queueName != "" {
		names = []string{queueName} // or an error says that there is none
	}
	var failed error
	accounts := func(yield func(accountOf) bool) {
		for _, name := range names {
			at := position{}
			if name == from.Queue {
				at = from
			}
			all, err := a.s.openShards(name)
			var of iter.Seq[inShard[queue.Account]]
			if err == nil {
				of, err = across(all, at, func(o openShard, from position) (iter.Seq[queue.Account], error) {
					return o.Accounts(sub, queue.AuditPosition{Subscription: from.Subscription, Partition: from.Partition})
				})
			}
			if err != nil { // an audit that leaves out a queue, or a shard, would look complete
				failed = err
				return
			}
			for v := range of {
				if !yield(accountOf{name, v.shard, v.of}) {
					return
				}
			}
		}
	}
	partitions, next, err := page(accounts, r.PageSize, fromAccount, func(v accountOf) position {
		return position{Queue: v.queue, Shard: v.shard, Subscription: v.Subscription, Partition: v.Partition}
	})
	if err = errors.Join(failed, err); err != nil {
		return nil, toStatus(err)
	}
	if next != "" && r.PageSize == 0 && r.PageToken == "" {
		return nil, rpc.Error(codes.FailedPrecondition, "PAGES_NEEDED", 0,
			"there are more than %d partitions to audit, and page_size is 0, as of a client that does not ask for more pages: use a spillway of this version, ask for one queue/subscription, or set page_size and go on with next_page_token", len(partitions))
	}
	return &spillwayv1.AuditResponse{Partitions: partitions, NextPageToken: next}, nil
}

// accountOf is an account of a queue.
type accountOf struct {
	queue string
	shard int
	queue.Account
}

func fromAccount(a accountOf) *spillwayv1.AuditPartition {
	p := &spillwayv1.AuditPartition{Subscription: a.queue + "/" + a.Subscription, Source: fromPartition(a.Partition), StartOffset: a.Start,
		SettledOffset: a.Settled, AppendedOffset: a.Appended, SafeOffset: a.Safe, Outcomes: make(map[string]int64), PendingOffsets: a.Pending, HoleOffsets: a.Holes}
	for o, n := range a.Outcomes {
		p.Outcomes[o.String()] = n
	}
	for _, r := range a.Ranges {
		p.Ranges = append(p.Ranges, &spillwayv1.AuditRange{Range: fromRange(r.Range), State: r.State})
	}
	return p
}
