package ingest

import (
	"fmt"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// refetchBytes is what a refetch fetches at once.
const refetchBytes = 1 << 20

// refetch reads a range again that the buffer asks for, outside of the group: the partition may be another
// instance's. It is read as any partition is, up to its end, and what Kafka no longer has is settled as
// lost. When it does not get on, the buffer asks somebody else after a while.
func (s *source) refetch(a *appender, m *spillwayv1.Refetch) {
	p := newPartition(s, topicPartition{m.Source.GetTopic(), int(m.Source.GetPartition())}, -1, refetchBytes)
	p.refetching, p.until = m.Id, m.Range.GetNext()
	p.log.Info("refetching", "refetch", m.Id, "first_offset", m.Range.GetFirst(), "next_offset", p.until)
	if !a.addRefetch(p) {
		return
	}
	defer a.endRefetch(p)
	defer p.dropInFlight()
	p.confirmed = m.Range.GetFirst()
	for a.ctx.Err() == nil {
		p.mu.Lock()
		at := p.confirmed
		p.refused, p.delay = nil, 0
		p.mu.Unlock()
		if at >= p.until {
			return
		}
		p.position.Store(at)
		r := &reader{p: p, a: a, source: m.Source, known: true, records: m.KnownRecords, doubt: true}
		r.begin(at)
		err := r.read()
		r.drop()
		if a.ctx.Err() != nil {
			return
		}
		delay := p.waitAnswers(a.ctx)
		if err != nil {
			p.full.Note(fmt.Errorf("refetch: %w", err))
			sleep(a.ctx, delay)
		}
	}
}

// find looks up an offset by time for the buffer. When Kafka does not answer, the buffer hears nothing.
func (s *source) find(a *appender, m *spillwayv1.FindOffset) {
	offset, err := s.client.OffsetAt(a.ctx, m.Source.GetTopic(), int(m.Source.GetPartition()), time.UnixMilli(m.TimestampMs))
	if err != nil {
		s.log.Warn("cannot look up a time for the buffer", "topic", m.Source.GetTopic(), "partition", m.Source.GetPartition(), "error", err)
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
