package buffer

import (
	"context"
	"fmt"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/rpc"
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
		here := int32(m.number())
		if here >= 0 {
			q, state := m.get()
			shard := &spillwayv1.Shard{Queue: name, Number: here, Of: m.shards(), State: state, Epoch: m.ownerEpoch()}
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
	page, next, err := rpc.Page(all, func(s *spillwayv1.Shard) string { return fmt.Sprintf("%s/%03d", s.Queue, s.Number) }, r.PageSize, 100, r.PageToken)
	return &spillwayv1.ListShardsResponse{Shards: page, NextPageToken: next, Instance: c.s.instance}, err
}

// shards is how many the queue has.
func (m *managedQueue) shards() int32 { return int32(max(m.cfg.Shards, 1)) }

// admit refuses a stream that is for another shard than the one that is here, or whose client has
// seen a newer owner of it. A client of a version before shards claims none.
func (m *managedQueue) admit(claim *spillwayv1.ShardClaim, q *queue.Queue) error {
	switch of, epoch, number := m.shards(), m.ownerEpoch(), m.number(); {
	case claim == nil && of > 1:
		return fmt.Errorf("%w: queue %s has %d, and the client is of a version before shards: upgrade it", errShardsDiffer, m.name, of)
	case claim == nil:
		return nil
	case claim.Of != of:
		return fmt.Errorf("%w: queue %s has %d, and the client has heard of %d: restart it, and give the queue the same number in the files of all buffers", errShardsDiffer, m.name, of, claim.Of)
	case claim.Number != int32(number):
		return fmt.Errorf("%w: queue %s: it has shard %d of %d, and shard %d is asked for", errNotOwner, m.name, number, of, claim.Number)
	case claim.Life == q.LedgerID() && claim.Epoch > epoch:
		return fmt.Errorf("%w: queue %s: another buffer has taken shard %d with epoch %d, and here it is %d", errNotOwner, m.name, claim.Number, claim.Epoch, epoch)
	}
	return nil
}
