package ingest

import (
	"fmt"
	"strconv"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
	"github.com/spillwayio/spillway/services/internal/tracing"
)

const (
	// recordOverhead and headerOverhead are more than what the encoding adds to a record, and to
	// each of its headers.
	recordOverhead = 48
	headerOverhead = 20
	// maxFlying bounds the bytes of one partition that the buffer has not answered; one batch may
	// always be out.
	maxFlying = 4 << 20
	// maxRanges bounds the ranges of one partition that the buffer has not answered.
	maxRanges = 1024
)

// begin begins a batch at an offset.
func (r *reader) begin(at int64) {
	r.first, r.payload, r.count, r.bytes, r.maxTimestamp, r.since = at, nil, 0, 0, 0, time.Now()
	r.links.Reset()
}

// drop gives up the batch in the making.
func (r *reader) drop() {
	r.p.source.memory.batches.change(-int64(cap(r.payload)))
	r.payload = nil
	r.begin(r.first)
	r.p.position.Store(r.first)
}

// empty says whether the batch in the making covers no offset.
func (r *reader) empty() bool { return r.first == r.p.position.Load() }

func (r *reader) add(offset int64, rec *recordbatch.Record) error {
	p, limits := r.p, &r.p.source.cfg.Batch
	size := rec.Size()
	if r.count > 0 && len(r.payload)+size > int(limits.Bytes) {
		if err := r.flushTo(offset); err != nil {
			return err
		}
	}
	if size > recordbatch.MaxRecordBytes {
		return r.deadLetter(offset, offset+1, fmt.Sprintf("record of %d bytes is larger than %d", size, recordbatch.MaxRecordBytes))
	}
	if err := r.room(offset, rec, size); err != nil {
		return err
	}
	r.lastOffset, r.lastAt = offset, len(r.payload)
	rec.OffsetDelta = offset - r.first
	r.payload = recordbatch.AppendRecord(r.payload, rec)
	r.count++
	r.bytes += int64(size)
	r.maxTimestamp = max(r.maxTimestamp, rec.TimestampMs)
	p.source.tracer.Note(&r.links, rec.Headers)
	p.position.Store(offset + 1)
	if int(r.count) >= limits.Records || len(r.payload) >= int(limits.Bytes) {
		return r.flush()
	}
	return nil
}

// room makes room in the payload for a record. A batch that has some waits for nothing: when
// there is no memory for it to grow it is sent as it is.
func (r *reader) room(offset int64, rec *recordbatch.Record, size int) error {
	need := size + recordOverhead + headerOverhead*len(rec.Headers)
	batches := r.p.source.memory.batches
	if r.payload != nil {
		if cap(r.payload)-len(r.payload) >= need {
			return nil
		}
		more := max(need, min(cap(r.payload), r.guess(size)-cap(r.payload)))
		if batches.try(int64(more)) {
			grown := make([]byte, len(r.payload), cap(r.payload)+more)
			copy(grown, r.payload)
			r.payload = grown
			return nil
		}
		if err := r.flushTo(offset); err != nil {
			return err
		}
	}
	n := max(need, min(r.guess(size), r.expect+r.expect/4+recordOverhead))
	if err := r.admit(int64(n)); err != nil {
		return err
	}
	r.payload = make([]byte, 0, n)
	return nil
}

// admit waits until the partition may hold n more bytes: the buffer has taken what came before,
// and there is memory. It returns errStalled when that takes long and others wait for what the
// reader has in memory.
func (r *reader) admit(n int64) error {
	p := r.p
	memory := p.source.memory
	refused := p.refusedC()
	most := min(maxFlying, memory.batches.limit/4)
	stall := time.NewTicker(stallTime)
	defer stall.Stop()
	for !p.mayFly(n, most) {
		select {
		case <-p.answered:
		case <-refused:
			return errInterrupted
		case <-stall.C:
			if memory.arrived.pressed() || memory.unpacked.pressed() {
				return errStalled
			}
		case <-r.ctx.Done():
			return r.ctx.Err()
		}
	}
	return memory.batches.acquire(r.ctx, refused, n)
}

// mayFly says whether n more bytes may be sent before the buffer answers.
func (p *partition) mayFly(n, most int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.inFlight) == 0 || p.flying+n <= most && len(p.inFlight) < maxRanges
}

func (p *partition) flyingBytes() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.flying
}

// guess is the capacity of a payload whose first record has size bytes: room for a batch of such.
func (r *reader) guess(size int) int {
	limits := &r.p.source.cfg.Batch
	return max(size+recordOverhead, min(int(limits.Bytes)+recordOverhead, limits.Records*(size+recordOverhead)))
}

// deadLetter gives up records that are too large for everything that follows, or cannot be opened.
func (r *reader) deadLetter(first, next int64, reason string) error {
	if err := r.flushTo(first); err != nil {
		return err
	}
	if r.p.refetching != 0 {
		next = min(next, r.p.until)
	}
	r.p.log.Error("dead-lettered", "first_offset", first, "next_offset", next, "reason", reason)
	r.p.position.Store(next)
	return r.settle(spillwayv1.Outcome_OUTCOME_DEAD_LETTERED, reason)
}

// flushTo ends the batch in the making before offset.
func (r *reader) flushTo(offset int64) error {
	r.p.position.Store(offset)
	return r.flush()
}

// flush sends the batch in the making, if there is one, and begins the next.
func (r *reader) flush() error {
	switch {
	case r.empty():
		return nil
	case r.count == 0:
		return r.settle(spillwayv1.Outcome_OUTCOME_FILTERED, "compacted, aborted, or a transaction's marker")
	}
	next := r.p.position.Load()
	batch := &spillwayv1.Batch{Source: r.source, FirstOffset: r.first, NextOffset: next, RecordCount: r.count,
		Codec: spillwayv1.Codec_CODEC_NONE, PayloadCrc32C: recordbatch.CRC(r.payload), MaxTimestampMs: r.maxTimestamp, Payload: r.payload}
	out := &sent{first: r.first, next: next, records: int64(r.count), bytes: r.bytes, held: int64(cap(r.payload)), span: r.span(next)}
	var last recordbatch.Reader
	var print *spillwayv1.Fingerprint
	if last.Reset(r.payload[r.lastAt:]); last.Next() {
		print = fingerprint(r.lastOffset, last.Record())
		r.records = []*spillwayv1.Fingerprint{print}
	}
	mayWait := r.p.mayWait(next, r.maxTimestamp)
	r.begin(next)
	return r.send(out, &spillwayv1.AppendRequest{LastRecord: print, MayWait: mayWait, Message: &spillwayv1.AppendRequest_Batch{Batch: batch}})
}

// span begins the span of the batch in the making, which ends when the buffer has accepted it.
func (r *reader) span(next int64) *tracing.Span {
	s := r.p.source
	if s.tracer == nil {
		return nil
	}
	return s.tracer.Start("spillway.append", r.since, &r.links,
		tracing.String("messaging.system", "kafka"), tracing.String("messaging.operation.type", "receive"),
		tracing.String("messaging.destination.name", r.p.topic), tracing.String("messaging.destination.partition.id", strconv.Itoa(r.p.number)),
		tracing.String("messaging.consumer.group.name", s.cfg.Group), tracing.Int("messaging.kafka.offset", r.first),
		tracing.Int("messaging.batch.message_count", r.count), tracing.Int("spillway.next_offset", next),
		tracing.Int("spillway.bytes", r.bytes), tracing.String("spillway.queue", s.cfg.Queue))
}

// settle reports that there is no record to deliver in the range in the making, and begins the
// next.
func (r *reader) settle(outcome spillwayv1.Outcome, reason string) error {
	next := r.p.position.Load()
	m := &spillwayv1.SettleRange{Source: r.source, Range: &spillwayv1.OffsetRange{First: r.first, Next: next}, Outcome: outcome, Reason: reason}
	out := &sent{first: r.first, next: next}
	r.begin(next)
	return r.send(out, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Settle{Settle: m}})
}

// send notes a range as in flight and sends it. From here on the answer, or the stream's end,
// gives its memory back. Nothing is sent after a refusal: then it returns errInterrupted.
func (r *reader) send(out *sent, m *spillwayv1.AppendRequest) error {
	p := r.p
	m.RefetchId = p.refetching
	out.message = m
	p.mu.Lock()
	if p.refused != nil {
		p.keepLocked(out, len(p.kept) > 0 && len(p.inFlight) == 0)
		p.mu.Unlock()
		return errInterrupted
	}
	p.inFlight = append(p.inFlight, out)
	p.flying += out.held
	p.mu.Unlock()
	r.known = true
	return r.a.send(m)
}
