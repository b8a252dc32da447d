package ingest

import (
	"context"
	"sync"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/backoff"
	"github.com/spillwayio/spillway/services/internal/shards"
)

// owner is the buffer that has a shard of the queue, whichever that is now. There is one stream to
// each, also without partitions of the shard: the buffer may ask for others' records.
type owner struct {
	s       *source
	trouble *backoff.Trouble // to reach it
	seen    *shards.Seen
	paused  bool // guarded by source.mu: its buffer says that the source is
}

// reach finds out how many shards the queue has, and returns nil when the owner of one accepts a
// stream: those of the others may be away.
func (s *source) reach(ctx context.Context, buffers *shards.Buffers) error {
	n, err := buffers.Shards(ctx, s.cfg.Queue)
	if err != nil {
		return err
	}
	owners := s.ownersOf(n)
	for _, o := range owners {
		var a *appender
		if a, err = o.open(ctx, buffers, nil, nil); err == nil {
			a.close()
			return nil
		}
	}
	return err
}

// ownersOf returns the owners of so many shards.
func (s *source) ownersOf(n int) []*owner {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.owners) == n {
		return s.owners
	}
	s.owners = nil
	for shard := range n {
		o := &owner{s: s, trouble: s.buffer, seen: &shards.Seen{Queue: s.cfg.Queue, Number: shard, Of: n, Rival: func(err error) {
			s.log.Error("two buffers have a shard; the second one gets nothing", "error", err)
		}}}
		if n > 1 {
			o.trouble = backoff.NewTrouble(s.log.With("shard", shard), "cannot reach the buffer", "the buffer can be reached again")
		}
		s.owners = append(s.owners, o)
	}
	return s.owners
}

// bufferErr returns why a buffer cannot be reached, if that is so.
func (s *source) bufferErr() error {
	s.mu.Lock()
	owners := s.owners
	s.mu.Unlock()
	err := s.buffer.Err()
	for _, o := range owners {
		if err == nil {
			err = o.trouble.Err()
		}
	}
	return err
}

// open opens a stream for partitions of the shard. What the buffer asks for is answered by s; nil
// answers nothing.
func (o *owner) open(ctx context.Context, buffers *shards.Buffers, s *source, partitions []*partition) (*appender, error) {
	buffer, err := buffers.Owner(ctx, o.seen)
	if err != nil {
		return nil, err
	}
	return openAppender(ctx, buffer, &spillwayv1.AppendOpen{Queue: o.s.cfg.Queue, Cluster: o.s.clusterID(), Client: o.s.instance,
		Shard: o.seen.Claim(), HearsPauses: true}, o, s, partitions)
}

// readAll reads partitions until ctx ends, each over the stream of its shard.
func (s *source) readAll(ctx context.Context, buffers *shards.Buffers, partitions []*partition) {
	s.mu.Lock()
	owners, cluster := s.owners, s.cluster
	s.mu.Unlock()
	own := make([][]*partition, len(owners))
	for _, p := range partitions {
		shard := shards.Of(cluster, p.topic, int32(p.number), len(owners))
		own[shard] = append(own[shard], p)
	}
	var wg sync.WaitGroup
	for shard, o := range owners {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := o.read(ctx, buffers, own[shard]); ctx.Err() == nil {
					_ = o.trouble.Failed(ctx, err)
				}
			}
		})
	}
	wg.Wait()
}

// read reads partitions over one stream to the owner, and returns why that broke.
func (o *owner) read(ctx context.Context, buffers *shards.Buffers, partitions []*partition) error {
	a, err := o.open(ctx, buffers, o.s, partitions)
	if err != nil {
		return err
	}
	o.trouble.Over()
	_ = a.send(o.s.reads()) // a broken stream tells below
	var wg sync.WaitGroup
	for _, p := range partitions {
		wg.Go(func() { p.run(a) })
	}
	<-a.ctx.Done()
	err = context.Cause(a.ctx)
	a.close()
	wg.Wait()
	return err
}
