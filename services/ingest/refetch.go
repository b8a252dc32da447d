package ingest

import (
	"context"
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
	ctx, cancel := context.WithCancel(a.ctx)
	defer cancel()
	p.quit = cancel
	if !a.addRefetch(p) {
		return
	}
	defer a.endRefetch(p)
	if p.takeTurn(ctx) != nil {
		return
	}
	defer p.giveTurn()
	p.log.Info("refetching", "refetch", m.Id, "first_offset", m.Range.GetFirst(), "next_offset", p.until)
	defer s.full.ended(p)
	defer s.fetching.ended(p)
	defer p.drop()
	p.confirmed = m.Range.GetFirst()
	for ctx.Err() == nil {
		p.mu.Lock()
		at := p.confirmed
		p.unrefuseLocked()
		p.mu.Unlock()
		if at >= p.until {
			return
		}
		p.position.Store(at)
		r := &reader{p: p, ctx: ctx, a: a, source: m.Source, known: true, records: m.KnownRecords, doubt: true}
		r.begin(at)
		err := r.readRange()
		r.drop()
		if ctx.Err() != nil {
			return
		}
		p.settleAnswers(ctx)
		if refusal := p.refusalErr(); refusal != nil {
			err = refusal
		}
		if err != nil {
			s.full.note(p, fmt.Errorf("refetch: %w", err))
			sleep(ctx, p.pause())
		}
	}
}

// takeTurn waits until the refetch is one of those of its source that are under way.
func (p *partition) takeTurn(ctx context.Context) error {
	select {
	case p.source.refetches <- struct{}{}:
		p.turn = true
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *partition) giveTurn() {
	if p.turn {
		p.turn = false
		<-p.source.refetches
	}
}

// backOff waits before the next attempt at something that Kafka does not answer. Other refetches
// have their turns meanwhile: of a topic that is gone, it may be for ever.
func (p *partition) backOff(ctx context.Context) error {
	if !p.turn {
		return p.wait.Wait(ctx)
	}
	p.giveTurn()
	if err := p.wait.Wait(ctx); err != nil {
		return err
	}
	return p.takeTurn(ctx)
}

// readRange reads up to the end of a refetch. It returns errInterrupted after a refusal, or an
// error when the stream is broken.
func (r *reader) readRange() error {
	p := r.p
	for p.position.Load() < p.until {
		if p.refusalErr() != nil {
			return errInterrupted
		}
		if err := p.source.gate.pass(r.ctx); err != nil {
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
		gone, _, err := p.verify(r.ctx, r.records, r.first)
		if err != nil {
			return err
		}
		if gone {
			return r.gone()
		}
		r.doubt = false
	}
	fetched, err := p.source.client.Fetch(r.ctx, kafkaclient.Request{Topic: p.topic, Partition: p.number, Offset: p.position.Load(),
		MinBytes: 1, MaxBytes: refetchBytes, MaxWait: idleWait, Uncommitted: p.source.cfg.Isolation == "read_uncommitted", Reserve: p.source.reserveArrived})
	if err == nil {
		p.first.Store(fetched.First)
		p.end.Store(fetched.HighWatermark)
		fetched.Unpack = p.source.unpack(r.ctx, p.refusedC())
		err = r.take(fetched)
	}
	var broke *brokenError
	switch {
	case err == nil:
		p.source.fetching.over(p)
		p.wait.Reset()
		return nil
	case r.ctx.Err() != nil:
		return r.ctx.Err()
	case errors.Is(err, errStalled):
		if err := r.flush(); err != nil {
			return err
		}
		p.settleAnswers(r.ctx)
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
	return p.backOff(r.ctx)
}

// goneAfter is after how long a topic is looked for again that does not seem to be there: a broker
// that has just started knows of none.
const goneAfter = time.Second

// find looks up an offset by time for the buffer.
func (s *source) find(a *appender, m *spillwayv1.FindOffset) {
	tp := topicPartition{m.Source.GetTopic(), int(m.Source.GetPartition())}
	answer := &spillwayv1.FoundOffset{Id: m.Id}
	for again := false; ; again = true {
		offset, err := s.lookups.offsetAt(a.ctx, tp, time.UnixMilli(m.TimestampMs))
		missing := errors.Is(err, kafka.UnknownTopicOrPartition)
		if a.ctx.Err() != nil {
			return
		}
		if missing && !again {
			s.client.Stale(tp.topic)
			sleep(a.ctx, goneAfter)
			continue
		}
		if err != nil {
			s.log.Warn("cannot look up a time for the buffer", "topic", tp.topic, "partition", tp.number, "error", err)
			answer.Gone = missing
			answer.Error = err.Error()
		}
		answer.Offset = offset
		break
	}
	// When sending fails the stream is broken, and the buffer asks no more.
	_ = a.send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_FoundOffset{FoundOffset: answer}})
}

// addRefetch routes the answers of a refetch, unless the same one is being answered already. The
// buffer asks for one range of a partition at a time: who still tries another one gives up.
func (a *appender) addRefetch(p *partition) bool {
	a.refetchMu.Lock()
	defer a.refetchMu.Unlock()
	if a.refetches[p.refetching] != nil {
		return false
	}
	if other := a.newest[p.topicPartition]; other != nil {
		other.quit()
	}
	a.refetches[p.refetching], a.newest[p.topicPartition] = p, p
	return true
}

func (a *appender) endRefetch(p *partition) {
	a.refetchMu.Lock()
	defer a.refetchMu.Unlock()
	delete(a.refetches, p.refetching)
	if a.newest[p.topicPartition] == p {
		delete(a.newest, p.topicPartition)
	}
}

func (a *appender) refetchOf(id uint64) *partition {
	a.refetchMu.Lock()
	defer a.refetchMu.Unlock()
	return a.refetches[id]
}
