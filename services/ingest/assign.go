package ingest

import (
	"context"
	"fmt"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

// offsets returns the first offset of a partition and the one that its next record gets.
func (p *partition) offsets(ctx context.Context) (first, next int64, err error) {
	return p.source.lookups.offsets(ctx, p.topicPartition)
}

// peek fetches the first records from an offset on, within its budget.
func (p *partition) peek(ctx context.Context, offset int64) (*kafkaclient.Fetched, error) {
	f, err := p.source.lookups.peek(ctx, p.topicPartition, offset)
	if err == nil {
		f.Unpack = p.source.unpack(ctx, nil)
	}
	return f, err
}

func (s *source) reserveArrived(ctx context.Context, n int64) (func(), error) {
	return s.memory.arrived.reserve(ctx, nil, n)
}

// unpack reserves memory for what decompresses, until interrupt is closed.
func (s *source) unpack(ctx context.Context, interrupt <-chan struct{}) func(int64) (func(), error) {
	return func(n int64) (func(), error) { return s.memory.unpacked.reserve(ctx, interrupt, n) }
}

// assign makes a reader that begins where the buffer says, or Kafka when the buffer does not know
// the partition.
func (p *partition) assign(a *appender) (*reader, error) {
	recreated, from := false, int64(0) // what the buffer knows is gone, and goes on as another there
	for {
		m, err := p.ask(a, recreated)
		if err != nil {
			return nil, err
		}
		p.life.Store(m.Source.GetIncarnation())
		r := &reader{p: p, ctx: a.ctx, a: a, source: m.Source, records: m.KnownRecords}
		if m.Known {
			if recreated, from, err = p.verify(a.ctx, m.KnownRecords, m.ResumeOffset); err != nil {
				return nil, err
			} else if recreated {
				continue
			}
			p.compareCommitted(m)
			p.safe.Store(m.SafeOffset)
			p.position.Store(m.ResumeOffset)
			p.log.Debug("going on where the buffer says", "offset", m.ResumeOffset, "safe", m.SafeOffset)
			r.known = true
		} else {
			start, behind, err := p.start(a.ctx, recreated || m.Source.GetIncarnation() > 0, from)
			if err != nil {
				return nil, err
			}
			// Committed before anything is read, or the next start would find another end and
			// skip what came between.
			p.safe.Store(start)
			p.position.Store(start)
			r.known = behind
		}
		r.begin(p.position.Load())
		return r, nil
	}
}

// compareCommitted says when somebody else has committed the group's offset: an operator who
// reset it, or another consumer of the group. The buffer's word counts nevertheless, so that
// nothing is lost or doubled.
func (p *partition) compareCommitted(m *spillwayv1.PartitionAssigned) {
	committed := p.committed.Load()
	if !p.foreign || committed < 0 || committed == m.SafeOffset || m.Source.GetIncarnation() != 0 {
		return
	}
	p.foreign = false // said
	p.source.strangers.note(p, committed, m.SafeOffset, m.ResumeOffset)
}

// ask asks the buffer where to go on.
func (p *partition) ask(a *appender, recreated bool) (*spillwayv1.PartitionAssigned, error) {
	p.drop()
	p.mu.Lock()
	p.unrefuseLocked()
	p.mu.Unlock()
	select {
	case <-p.assigned: // of a stream that broke
	default:
	}
	assign := &spillwayv1.AssignPartition{Recreated: recreated,
		Source: &spillwayv1.SourcePartition{Cluster: p.source.clusterID(), Topic: p.topic, Partition: int32(p.number), Incarnation: p.life.Load()}}
	if committed := p.ours.Load(); committed >= 0 {
		assign.CommittedOffset = &committed
	}
	if err := a.send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Assign{Assign: assign}}); err != nil {
		return nil, err
	}
	select {
	case m := <-p.assigned:
		return m, nil
	case <-a.ctx.Done():
		return nil, a.ctx.Err()
	}
}

// start is where a partition begins that the buffer does not know. Behind says that records from
// there on were to be read, so that those that are gone are lost.
func (p *partition) start(ctx context.Context, recreated bool, from int64) (at int64, behind bool, err error) {
	for {
		at, why, err := p.startNow(ctx, recreated, from)
		if err == nil {
			p.source.fetching.over(p)
			p.log.Info("the buffer does not know the partition yet", "offset", at, "because", why)
			return at, why == committedInGroup, nil
		}
		if ctx.Err() != nil {
			return 0, false, ctx.Err()
		}
		p.source.fetching.note(p, err)
		if p.wait.Wait(ctx) != nil {
			return 0, false, ctx.Err()
		}
	}
}

const committedInGroup = "committed in the group"

func (p *partition) startNow(ctx context.Context, recreated bool, from int64) (at int64, why string, err error) {
	start := p.source.cfg.Start
	first, next, err := p.offsets(ctx)
	if err != nil {
		return 0, "", err
	}
	switch committed := p.committed.Load(); {
	case recreated: // what the group committed may be the former topic's
		return max(first, from), "the topic was created again, or lost its newest records", nil
	case committed >= 0 && committed <= next:
		return committed, committedInGroup, nil
	case committed >= 0:
		p.log.Warn("the group's committed offset is beyond the partition's end; beginning at its first", "committed", committed, "first", first, "next", next)
		return first, "the committed offset is beyond the end", nil
	case p.added:
		return first, "it was added to a topic that is being read", nil
	case start == "earliest":
		return first, "source.start is earliest", nil
	case start == "latest":
		return next, "source.start is latest", nil
	}
	since, err := time.Parse(time.RFC3339, start)
	if err != nil {
		return 0, "", fmt.Errorf("source.start: %w", err)
	}
	at, err = p.source.lookups.offsetAt(ctx, p.topicPartition, since)
	return at, "source.start is " + start, err
}
