package picture

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// maxSessions bounds those that a picture shows.
const maxSessions = 10_000

// Look asks a buffer for all that a picture shows. The answers are of different moments, which are
// close to each other. It fails when any of them does; a buffer of a version that does not know
// rates and forecasts is shown without them.
func Look(ctx context.Context, buffer spillwayv1.BufferAdminServiceClient) (*Picture, error) {
	l := looking{ctx: ctx, buffer: buffer, queues: make(map[string]*Queue), subs: make(map[string]*Subscription)}
	p := &Picture{At: time.Now(), Queues: []*Queue{}, Troubles: []Trouble{}}
	for _, ask := range []func(*Picture) error{l.askQueues, l.askSubscriptions, l.askSessions, l.askFlows, l.askParked} {
		if err := ask(p); err != nil {
			return nil, err
		}
	}
	p.Troubles = append(p.Troubles, troubles(p)...)
	return p, nil
}

// looking is one Look that is under way.
type looking struct {
	ctx    context.Context
	buffer spillwayv1.BufferAdminServiceClient
	queues map[string]*Queue
	subs   map[string]*Subscription
}

// pages calls page with token after token.
func pages(page func(token string) (next string, err error)) error {
	for token := ""; ; {
		next, err := page(token)
		if err != nil || next == "" {
			return err
		}
		if next == token {
			return fmt.Errorf("the buffer answers with the same page again")
		}
		token = next
	}
}

func (l *looking) askQueues(p *Picture) error {
	return pages(func(token string) (string, error) {
		r, err := l.buffer.ListQueues(l.ctx, &spillwayv1.ListQueuesRequest{PageToken: token})
		for _, q := range r.GetQueues() {
			shown := &Queue{Name: q.Name, State: q.State, PendingRecords: q.PendingRecords, Ingests: []Ingest{}, Subscriptions: []*Subscription{},
				PausedSources: q.PausedSources, Memory: Level{q.MemoryBytes, q.MemoryBytesLimit}, Disk: Level{q.DiskBytes, q.DiskBytesLimit}, number: q.Shard, of: q.Shards}
			for _, s := range q.ShardsHere {
				shown.here = append(shown.here, Shard{Number: s.Number, Of: q.Shards, State: s.State, Memory: Level{s.MemoryBytes, s.MemoryBytesLimit}, Disk: Level{s.DiskBytes, s.DiskBytesLimit}})
			}
			p.Queues, l.queues[q.Name] = append(p.Queues, shown), shown
		}
		return r.GetNextPageToken(), err
	})
}

func (l *looking) askSubscriptions(*Picture) error {
	return pages(func(token string) (string, error) {
		r, err := l.buffer.ListSubscriptions(l.ctx, &spillwayv1.ListSubscriptionsRequest{PageToken: token})
		for _, s := range r.GetSubscriptions() {
			queue, _, _ := strings.Cut(s.Name, "/")
			q := l.queues[queue]
			if q == nil {
				continue
			}
			shown := &Subscription{Name: s.Name, Paused: s.Paused, PausedDeliveries: s.PausedDeliveries, Required: s.Required, Configured: s.Configured,
				OnFull:  strings.ToLower(strings.TrimPrefix(s.OnFull.String(), "ON_FULL_")),
				Backlog: s.PendingRecords + s.DeferredOffsets, BacklogBytes: s.PendingBytes, Deferred: s.DeferredOffsets,
				AgeSeconds: s.OldestPendingAge.AsDuration().Seconds(), Leased: s.LeasedBatches, Parked: s.ParkedBatches, Delivered: s.DeliveredRecords,
				Dead: s.DeadLetteredRecords, Dropped: s.DroppedOffsets, Lost: s.LostOffsets, Deliveries: []Destination{}, Failure: s.Trouble}
			if s.DeadLetters != nil {
				shown.Dead = *s.DeadLetters
			}
			if s.TroubleSince != nil {
				shown.FailingSince = s.TroubleSince.AsTime()
			}
			q.Subscriptions, l.subs[s.Name] = append(q.Subscriptions, shown), shown
		}
		return r.GetNextPageToken(), err
	})
}

func (l *looking) askSessions(*Picture) error {
	n := 0
	return pages(func(token string) (string, error) {
		r, err := l.buffer.ListSessions(l.ctx, &spillwayv1.ListSessionsRequest{PageToken: token})
		for _, s := range r.GetSessions() {
			if sub := l.subs[s.Subscription]; sub != nil {
				d := Destination{Session: strconv.FormatUint(s.Id, 10), Consumer: s.Consumer, Live: s.Live, Leased: s.LeasedBatches, Entries: s.StateEntries}
				if s.OpenedAt != nil {
					d.Opened = s.OpenedAt.AsTime()
				}
				sub.Deliveries = append(sub.Deliveries, d)
			}
		}
		if n += len(r.GetSessions()); n >= maxSessions {
			return "", err
		}
		return r.GetNextPageToken(), err
	})
}

func (l *looking) askFlows(*Picture) error {
	err := pages(func(token string) (string, error) {
		r, err := l.buffer.ListFlows(l.ctx, &spillwayv1.ListFlowsRequest{PageToken: token})
		for _, f := range r.GetQueues() {
			q := l.queues[f.Queue]
			if q == nil {
				continue
			}
			q.InPerSecond = f.AppendedPerSecond
			q.Full, _ = forecastOf(f.Full)
			for _, i := range f.Ingests {
				q.Ingests = append(q.Ingests, Ingest{Name: i.Client, Cluster: i.Cluster, Sources: append([]string{}, i.Sources...)})
			}
			for _, s := range f.Subscriptions {
				if sub := l.subs[s.Subscription]; sub != nil {
					sub.OutPerSecond = s.DeliveredPerSecond
					sub.Drained, sub.Growth = forecastOf(s.Drained)
				}
			}
		}
		return r.GetNextPageToken(), err
	})
	if status.Code(err) == codes.Unimplemented {
		return nil
	}
	return err
}

// askParked finds out why deliveries gave batches back: it asks for one of each subscription.
func (l *looking) askParked(*Picture) error {
	for _, sub := range l.subs {
		if sub.Parked == 0 {
			continue
		}
		r, err := l.buffer.ListParkedBatches(l.ctx, &spillwayv1.ListParkedBatchesRequest{Subscription: sub.Name, PageSize: 1})
		if code := status.Code(err); code == codes.NotFound || code == codes.Unavailable && l.ctx.Err() == nil {
			continue // the subscription is gone, or its queue closes: the next look shows it
		}
		if err != nil {
			return err
		}
		for _, b := range r.Batches {
			sub.ParkedReason = b.Reason
		}
	}
	return nil
}
