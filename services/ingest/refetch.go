package ingest

import (
	"errors"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

const (
	// refetchBytes is what a refetch fetches at once.
	refetchBytes = 1 << 20
	// maxRefetches bounds the refetches of a source that are under way.
	maxRefetches = 8
)

// refetch reads a range again that the buffer asks for, outside of the group: the partition may
// be another instance's. It is read as any partition is, up to its end, and what Kafka no longer
// has is settled as lost. When it does not get on, the buffer asks somebody else after a while.
func (s *source) refetch(a *appender, m *spillwayv1.Refetch) {
	p := newPartition(s, nil, topicPartition{m.Source.GetTopic(), int(m.Source.GetPartition())}, -1)
	p.refetching, p.until = m.Id, m.Range.GetNext()
	if !a.addRefetch(p) {
		return
	}
	defer a.endRefetch(p)
	select {
	case s.refetches <- struct{}{}:
		defer func() { <-s.refetches }()
	case <-a.ctx.Done():
		return
	}
	p.log.Info("refetching", "refetch", m.Id, "first_offset", m.Range.GetFirst(), "next_offset", p.until)
	defer s.full.ended(p)
	defer s.fetching.ended(p)
	defer p.drop()
	p.confirmed = m.Range.GetFirst()
	for a.ctx.Err() == nil {
		p.mu.Lock()
		at := p.confirmed
		p.unrefuseLocked()
		p.mu.Unlock()
		if at >= p.until {
			return
		}
		p.position.Store(at)
		r := &reader{p: p, a: a, source: m.Source, known: true, records: m.KnownRecords, doubt: true}
		r.begin(at)
		err := r.readRange()
		r.drop()
		if a.ctx.Err() != nil {
			return
		}
		p.settleAnswers(a.ctx)
		if refusal := p.refusalErr(); refusal != nil {
			err = refusal
		}
		if err != nil {
			s.full.note(p, fmt.Errorf("refetch: %w", err))
			sleep(a.ctx, p.pause())
		}
	}
}

// readRange reads up to the end of a refetch. It returns errInterrupted after a refusal, or an
// error when the stream is broken.
func (r *reader) readRange() error {
	p := r.p
	for p.position.Load() < p.until {
		if p.refusalErr() != nil {
			return errInterrupted
		}
		if err := p.source.gate.pass(r.a.ctx); err != nil {
			return err
		}
		if err := r.fetchSome(); err != nil {
			return err
		}
	}
	return r.flush()
}

// fetchSome fetches and reads once.
func (r *reader) fetchSome() error {
	p := r.p
	if r.doubt {
		gone, _, err := p.verify(r.a.ctx, r.records, r.first)
		if err != nil {
			return err
		}
		if gone {
			return r.gone()
		}
		r.doubt = false
	}
	fetched, err := p.source.client.Fetch(r.a.ctx, kafkaclient.Request{Topic: p.topic, Partition: p.number, Offset: p.position.Load(),
		MinBytes: 1, MaxBytes: refetchBytes, MaxWait: idleWait, Uncommitted: p.source.cfg.Isolation == "read_uncommitted", Reserve: p.source.reserveArrived})
	if err == nil {
		p.first.Store(fetched.First)
		p.end.Store(fetched.HighWatermark)
		fetched.Unpack = p.source.unpack(r.a.ctx, p.refusedC())
		err = r.take(fetched)
	}
	var broke *brokenError
	switch {
	case err == nil:
		p.source.fetching.over(p)
		p.wait.Reset()
		return nil
	case r.a.ctx.Err() != nil:
		return r.a.ctx.Err()
	case errors.Is(err, errStalled):
		if err := r.flush(); err != nil {
			return err
		}
		p.settleAnswers(r.a.ctx)
		return nil
	case errors.Is(err, errInterrupted):
		return err
	case errors.As(err, &broke):
		return broke.err
	case errors.Is(err, kafka.OffsetOutOfRange):
		return r.outOfRange(err)
	}
	r.doubt = true
	if err := r.flush(); err != nil { // it may take long
		return err
	}
	p.source.fetching.note(p, fmt.Errorf("%s: %w", p, err))
	return p.wait.Wait(r.a.ctx)
}

// find looks up an offset by time for the buffer. When Kafka does not answer, the buffer hears
// nothing.
func (s *source) find(a *appender, m *spillwayv1.FindOffset) {
	tp := topicPartition{m.Source.GetTopic(), int(m.Source.GetPartition())}
	offset, err := s.lookups.offsetAt(a.ctx, tp, time.UnixMilli(m.TimestampMs))
	if err != nil {
		s.log.Warn("cannot look up a time for the buffer", "topic", tp.topic, "partition", tp.number, "error", err)
		return
	}
	// When sending fails the stream is broken, and the buffer asks no more.
	_ = a.send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_FoundOffset{FoundOffset: &spillwayv1.FoundOffset{Id: m.Id, Offset: offset}}})
}

// addRefetch routes the answers of a refetch, unless the same one is being answered already.
func (a *appender) addRefetch(p *partition) bool {
	a.refetchMu.Lock()
	defer a.refetchMu.Unlock()
	if a.refetches[p.refetching] != nil {
		return false
	}
	a.refetches[p.refetching] = p
	return true
}

func (a *appender) endRefetch(p *partition) {
	a.refetchMu.Lock()
	defer a.refetchMu.Unlock()
	delete(a.refetches, p.refetching)
}

func (a *appender) refetchOf(id uint64) *partition {
	a.refetchMu.Lock()
	defer a.refetchMu.Unlock()
	return a.refetches[id]
}
