package buffer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/owners"
	"github.com/spillwayio/spillway/services/buffer/store/kafkastore"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

// A group of the buffers may give the shards of a queue that is kept in Kafka to them. This buffer
// takes as many as it is given; who has none is a spare.

const (
	// handOver is how long a queue may write what is in memory, and end acks under way, when its
	// shard goes to another buffer. The source has the rest.
	handOver = time.Second
	// orderTimeout bounds the wait for another buffer to have what it was given.
	orderTimeout = 30 * time.Second
	probeTimeout = 5 * time.Second
)

// joinGroup has shards of a queue given to this buffer by the group of its buffers.
func (s *Service) joinGroup(m *managedQueue, q *config.Queue, access kafkaclient.Access) {
	k := q.Store.Kafka
	client := kafkaclient.New(k.Brokers, "spillway-buffer", access)
	s.clients = append(s.clients, client)
	m.state = "not in the group of the buffers yet"
	deps := owners.Deps{Group: owners.NewGroup(client, k.Topic, k.SessionTimeout), Self: s.instance, Changed: s.ready, Log: s.deps.Log.With("queue", m.name),
		Serve: func(ctx context.Context, shard *owners.Shard) error { return s.serveShard(ctx, m, shard) }}
	if s.deps.Dial != nil {
		deps.Probe = s.whoIsAt
	}
	m.group = owners.New(owners.Config{Shards: max(q.Shards, 1), Advertise: s.advertise, SessionTimeout: k.SessionTimeout}, deps)
}

// whoIsAt asks the buffer at an address for its instance.
func (s *Service) whoIsAt(ctx context.Context, address string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	conn, err := s.deps.Dial(address)
	if err != nil {
		return "", err
	}
	defer conn.Close() // nothing is under way any more
	r, err := spillwayv1.NewClusterServiceClient(conn).ListShards(ctx, &spillwayv1.ListShardsRequest{PageSize: 1})
	switch status.Code(err) {
	case codes.OK:
		return r.Instance, nil
	case codes.Unauthenticated, codes.PermissionDenied: // a buffer, and this one may not ask it
		s.deps.Log.Warn("cannot make sure that buffer.advertise leads to this buffer: it needs an identity with the role read to ask (security.client)", "advertise", address, "error", err)
		return s.instance, nil
	}
	return "", err
}

// serveShard keeps the queue of a shard open that the group has given, until ctx ends.
func (s *Service) serveShard(ctx context.Context, m *managedQueue, shard *owners.Shard) error {
	h := m.add(shard.Number(), shard)
	defer func() {
		m.remove(h)
		s.ready()
	}()
	s.ready()
	ended := make(chan struct{})
	aborted := make(chan struct{})
	go func() {
		defer close(aborted)
		h.abortLate(ctx, ended)
	}()
	err := s.keepOpen(ctx, h)
	close(ended)
	<-aborted
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, kafkastore.ErrFenced):
		return fmt.Errorf("%w: %w", owners.ErrFenced, err)
	case errors.Is(err, kafkastore.ErrReplaced):
		// No other buffer is to have it either, before somebody has looked.
		s.deps.Log.Error("the shard is lost: nothing of it is answered, and it is not opened again", "queue", m.name, "shard", shard.Number(), "error", err,
			"todo", "find out who has deleted, restored or emptied the topics; start the buffers again when they are right")
		shard.Watch(func() time.Duration { return 0 })
		<-ctx.Done()
	}
	return err
}

// abortLate closes the store when the shard goes to another buffer and the queue does not end soon
// enough by itself.
func (h *shard) abortLate(ctx context.Context, ended <-chan struct{}) {
	select {
	case <-ended:
		return
	case <-ctx.Done():
	}
	late := time.NewTimer(handOver)
	defer late.Stop()
	if !errors.Is(context.Cause(ctx), owners.ErrSilent) {
		select {
		case <-ended:
			return
		case <-late.C:
		}
	}
	h.mu.Lock()
	store := h.store
	h.mu.Unlock()
	if store != nil {
		_ = store.Close() // the queue says what is left
	}
}

// elsewhere lists the shards that other buffers have, as far as the group has told.
func (m *managedQueue) elsewhere(here []*shard) (all []*spillwayv1.Shard) {
	for _, o := range m.group.Owners() {
		if slices.ContainsFunc(here, func(h *shard) bool { return h.number == o.Shard }) {
			continue
		}
		shard := &spillwayv1.Shard{Queue: m.name, Number: int32(o.Shard), Of: m.of(), Owner: o.Address, Epoch: o.Epoch, State: "elsewhere"}
		if o.Address == "" {
			shard.State = "nobody's"
		}
		all = append(all, shard)
	}
	return all
}

// MoveShard implements ClusterService.
func (c *cluster) MoveShard(ctx context.Context, r *spillwayv1.MoveShardRequest) (*spillwayv1.MoveShardResponse, error) {
	m, err := c.s.managed(r.Queue)
	if err == nil && m.group == nil {
		err = fmt.Errorf("%w: queue %s", errFixedOwners, r.Queue)
	}
	if err != nil {
		return nil, toStatus(err)
	}
	ctx, cancel := context.WithTimeout(ctx, orderTimeout)
	defer cancel()
	if err := m.group.Move(ctx, int(r.Number), r.To); err != nil {
		return nil, toStatus(fmt.Errorf("queue %s: %w", r.Queue, err))
	}
	return &spillwayv1.MoveShardResponse{}, nil
}

// DrainBuffer implements ClusterService.
func (c *cluster) DrainBuffer(ctx context.Context, _ *spillwayv1.DrainBufferRequest) (*spillwayv1.DrainBufferResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, orderTimeout)
	defer cancel()
	r := &spillwayv1.DrainBufferResponse{}
	found := false
	for _, name := range slices.Sorted(maps.Keys(c.s.queues)) {
		m := c.s.queues[name]
		if m.group == nil {
			continue
		}
		found = true
		before := m.here()
		if err := m.group.Drain(ctx); err != nil {
			return nil, toStatus(fmt.Errorf("queue %s: %w", name, err))
		}
		now := m.group.Owners()
		for _, h := range before {
			r.Shards = append(r.Shards, &spillwayv1.Shard{Queue: name, Number: int32(h.number), Of: m.of(), Owner: now[h.number].Address, State: "elsewhere"})
		}
	}
	if !found {
		return nil, toStatus(fmt.Errorf("%w: this buffer has no other", errFixedOwners))
	}
	return r, nil
}
