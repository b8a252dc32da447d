package buffer

import (
	"context"
	"fmt"
	"slices"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/rpc"
	"github.com/spillwayio/spillway/services/internal/shards"
)

// cluster says which shards the buffer has.
type cluster struct {
	spillwayv1.UnimplementedClusterServiceServer
	s *Service
}

// ListShards implements ClusterService.
func (c *cluster) ListShards(_ context.Context, r *spillwayv1.ListShardsRequest) (*spillwayv1.ListShardsResponse, error) {
	names := c.s.names()
	if r.Queue != "" {
		if _, err := c.s.managed(r.Queue); err != nil {
			return nil, toStatus(err)
		}
		names = []string{r.Queue}
	}
	var all []*spillwayv1.Shard
	for _, name := range names {
		m := c.s.queues[name]
		here := m.here()
		for _, h := range here {
			q, state := h.get()
			shard := &spillwayv1.Shard{Queue: name, Number: int32(h.number), Of: m.of(), State: state, Epoch: h.ownerEpoch()}
			if m.group != nil {
				shard.Owner = c.s.advertise
			}
			if q != nil {
				shard.Life = q.LedgerID()
			}
			all = append(all, shard)
		}
		if m.group != nil && r.Others {
			all = append(all, m.elsewhere(here)...)
		}
	}
	page, next, err := rpc.Page(all, func(s *spillwayv1.Shard) string { return fmt.Sprintf("%s/%03d", s.Queue, s.Number) }, r.PageSize, shards.Max, r.PageToken)
	return &spillwayv1.ListShardsResponse{Shards: page, NextPageToken: next, Instance: c.s.instance}, err
}

// shard finds the open shard that a stream is for. It refuses one whose client has seen a newer
// owner. A client of a version before shards claims none.
func (s *Service) shard(name string, claim *spillwayv1.ShardClaim) (openShard, error) {
	m, err := s.managed(name)
	if err != nil {
		return openShard{}, err
	}
	switch of := m.of(); {
	case claim == nil && of > 1:
		return openShard{}, fmt.Errorf("%w: queue %s has %d, and the client is of a version before shards: upgrade it", errShardsDiffer, name, of)
	case claim != nil && claim.Of != of:
		return openShard{}, fmt.Errorf("%w: queue %s has %d, and the client has heard of %d: restart it, and give the queue the same number in the files of all buffers", errShardsDiffer, name, of, claim.Of)
	}
	number := int(claim.GetNumber())
	all := m.here()
	i := slices.IndexFunc(all, func(h *shard) bool { return h.number == number })
	if i < 0 {
		return openShard{}, fmt.Errorf("%w: queue %s: it has %s of %d, and shard %d is asked for", errNotOwner, name, numbers(all), m.of(), number)
	}
	h := all[i]
	q, err := h.queue()
	switch epoch := h.ownerEpoch(); {
	case err != nil:
		return openShard{}, err
	case claim != nil && claim.Life == q.LedgerID() && claim.Epoch > epoch:
		return openShard{}, fmt.Errorf("%w: queue %s: another buffer has taken shard %d with epoch %d, and here it is %d", errNotOwner, name, number, claim.Epoch, epoch)
	}
	return openShard{q, h}, nil
}

// queue is that of the shard, if it is open.
func (h *shard) queue() (*queue.Queue, error) {
	q, state := h.get()
	switch {
	case q == nil && h.isLost():
		return nil, fmt.Errorf("%w: %s is %s", errNotOwner, h.name, h.named(state))
	case q == nil:
		return nil, fmt.Errorf("%w: %s is %s", errRecovering, h.name, h.named(state))
	}
	return q, nil
}
