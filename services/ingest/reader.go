package ingest

import (
	"errors"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// chargeBytes is how much a batch in the making may grow before that is taken of the budget.
const chargeBytes = 4 << 10

// reader reads a partition from one assignment on: fetches in order, and batches made of them.
type reader struct {
	p       *partition
	a       *appender
	source  *spillwayv1.SourcePartition
	known   bool                      // that what is no longer there is lost
	held    int64                     // of the budget, for the fetch under way
	records []*spillwayv1.Fingerprint // of the last record that was sent, or of those that the buffer knows
	doubt   bool                      // a fetch failed: it may be another topic by now
	told    time.Time                 // when the buffer was told last that there is no more

	// The batch in the making covers [first, p.position).
	first        int64
	payload      []byte
	charged      int // bytes of payload that are taken of the budget
	count        int32
	lastOffset   int64 // of its last record,
	lastAt       int   // which is here in payload
	bytes        int64 // of its records
	maxTimestamp int64
	since        time.Time // when its first offset was fetched
}

// begin begins a batch at an offset.
func (r *reader) begin(at int64) {
	r.first, r.payload, r.charged, r.count, r.bytes, r.maxTimestamp, r.since = at, nil, 0, 0, 0, 0, time.Now()
}

// drop gives up the batch in the making.
func (r *reader) drop() {
	r.p.source.memory.change(-int64(r.charged))
	r.payload, r.charged = nil, 0
}

// charge takes of the budget what payload has grown by.
func (r *reader) charge() {
	r.p.source.memory.change(int64(len(r.payload) - r.charged))
	r.charged = len(r.payload)
}

// empty says whether the batch in the making covers no offset.
func (r *reader) empty() bool { return r.first == r.p.position.Load() }

// read returns the buffer's refusal, or an error when the stream is broken; nil at the end of a refetch.
func (r *reader) read() error {
	p := r.p
	for {
		if err := p.refusal(); err != nil {
			return err
		}
		if p.refetching != 0 && p.position.Load() >= p.until {
			return r.flush()
		}
		if !r.empty() && time.Since(r.since) >= p.source.cfg.Batch.Linger {
			if err := r.flush(); err != nil {
				return err
			}
		}
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
		if err := r.reserve(); err != nil {
			return err
		}
		err := r.fetch()
		r.hold(0)
		if err != nil {
			return err
		}
	}
}

// reserve takes the budget for one fetch. A batch in the making does not wait for it.
func (r *reader) reserve() error {
	p := r.p
	if p.source.gate.closed() {
		if err := r.flush(); err != nil {
			return err
		}
		if err := p.source.gate.pass(r.a.ctx); err != nil {
			return err
		}
	}
	if !p.source.memory.try(int64(p.fetchBytes)) {
		if err := r.flush(); err != nil {
			return err
		}
		if err := p.source.memory.acquire(r.a.ctx, int64(p.fetchBytes)); err != nil {
			return err
		}
	}
	r.held = int64(p.fetchBytes)
	return nil
}

// hold changes what the fetch under way takes of the budget.
func (r *reader) hold(bytes int64) {
	r.p.source.memory.change(bytes - r.held)
	r.held = bytes
}

// fetch does one fetch. The broker does the lingering: it holds the answer until the batch can be
// filled or its time is over.
func (r *reader) fetch() error {
	p, batch := r.p, &r.p.source.cfg.Batch
	request := kafkaclient.Request{Topic: p.topic, Partition: p.number, Offset: p.position.Load(),
		MinBytes: 1, MaxBytes: p.fetchBytes, MaxWait: idleWait, Uncommitted: p.source.cfg.Isolation == "read_uncommitted"}
	if !r.empty() {
		request.MinBytes = max(1, min(p.fetchBytes, int(batch.Bytes)-len(r.payload)))
		request.MaxWait = max(time.Millisecond, batch.Linger-time.Since(r.since))
	}
	asked := time.Now()
	fetched, err := p.source.client.Fetch(r.a.ctx, request)
	if err == nil {
		r.hold(int64(fetched.Bytes()))
		p.first.Store(fetched.First)
		p.end.Store(fetched.End)
		if err = r.take(fetched); err == nil && r.empty() && p.position.Load() == fetched.HighWatermark {
			err = broken(r.caughtUp(asked))
		}
	}
	var broke *brokenError
	switch {
	case err == nil:
		p.fetching.Over()
		return nil
	case r.a.ctx.Err() != nil:
		return r.a.ctx.Err()
	case errors.As(err, &broke):
		return broke.err
	case errors.Is(err, kafka.OffsetOutOfRange):
		return r.outOfRange(err)
	}
	r.doubt = true
	if err := r.flush(); err != nil { // it may take long
		return err
	}
	return p.fetching.Failed(r.a.ctx, err)
}

// caughtUp tells the buffer, about once a second, that the partition had no more records at a time.
func (r *reader) caughtUp(at time.Time) error {
	if r.p.refetching != 0 || at.Sub(r.told) < idleWait {
		return nil
	}
	r.told = at
	return r.a.send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_CaughtUp{CaughtUp: &spillwayv1.CaughtUp{
		Source: r.source, Offset: r.p.position.Load(), TimeMs: at.UnixMilli()}}})
}

// gone ends the reading of a topic that was created again.
func (r *reader) gone() error {
	if err := r.flush(); err != nil {
		return err
	}
	if r.p.refetching == 0 {
		return errRecreated
	}
	r.p.position.Store(r.p.until)
	return r.settle(spillwayv1.Outcome_OUTCOME_LOST, "the topic was deleted and created again")
}

// brokenError carries an error of sending through Fetched.Each.
type brokenError struct{ err error }

func (e *brokenError) Error() string { return e.err.Error() }

func broken(err error) error {
	if err != nil {
		return &brokenError{err}
	}
	return nil
}

// take makes batches of what was fetched.
func (r *reader) take(fetched *kafkaclient.Fetched) error {
	if r.empty() {
		r.since = time.Now()
	}
	ended := func(offset int64) bool { return r.p.refetching != 0 && offset >= r.p.until }
	next, err := fetched.Each(
		func(offset int64, rec *recordbatch.Record) error {
			if ended(offset) {
				return errEnd
			}
			return broken(r.add(offset, rec))
		},
		func(offset, size int64) error {
			if ended(offset) {
				return errEnd
			}
			return broken(r.huge(offset, size))
		})
	if errors.Is(err, errEnd) {
		next, err = r.p.until, nil
	}
	if r.p.refetching != 0 {
		next = min(next, r.p.until)
	}
	if r.p.position.Load() < next {
		r.p.position.Store(next)
	}
	return err
}

// errEnd stops going through what was fetched at the end of a refetch.
var errEnd = errors.New("end of the refetch")

func (r *reader) add(offset int64, rec *recordbatch.Record) error {
	p, limits := r.p, &r.p.source.cfg.Batch
	size := rec.Size()
	if r.count > 0 && len(r.payload)+size > int(limits.Bytes) {
		if err := r.flushTo(offset); err != nil {
			return err
		}
	}
	if size > recordbatch.MaxRecordBytes {
		return r.huge(offset, int64(size))
	}
	if r.payload == nil {
		r.payload = make([]byte, 0, r.guess(size))
	}
	r.lastOffset, r.lastAt = offset, len(r.payload)
	rec.OffsetDelta = offset - r.first
	r.payload = recordbatch.AppendRecord(r.payload, rec)
	if len(r.payload)-r.charged >= chargeBytes {
		r.charge()
	}
	r.count++
	r.bytes += int64(size)
	r.maxTimestamp = max(r.maxTimestamp, rec.TimestampMs)
	p.position.Store(offset + 1)
	if int(r.count) >= limits.Records || len(r.payload) >= int(limits.Bytes) {
		return r.flush()
	}
	return nil
}

// huge dead-letters a record that is too large for everything that follows.
func (r *reader) huge(offset, size int64) error {
	if err := r.flushTo(offset); err != nil {
		return err
	}
	reason := fmt.Sprintf("record of %d bytes is larger than %d", size, recordbatch.MaxRecordBytes)
	r.p.log.Error("dead-lettered", "offset", offset, "reason", reason)
	r.p.position.Store(offset + 1)
	return r.settle(spillwayv1.Outcome_OUTCOME_DEAD_LETTERED, reason)
}

// guess is the capacity of a payload whose first record has size bytes: room for a batch of such.
func (r *reader) guess(size int) int {
	limits := &r.p.source.cfg.Batch
	const overhead = 32 // of the encoding, for records with no or few headers
	return max(size+overhead, min(int(limits.Bytes)+overhead, limits.Records*(size+overhead)))
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
	r.charge()
	next := r.p.position.Load()
	batch := &spillwayv1.Batch{Source: r.source, FirstOffset: r.first, NextOffset: next, RecordCount: r.count,
		Codec: spillwayv1.Codec_CODEC_NONE, PayloadCrc32C: recordbatch.CRC(r.payload), MaxTimestampMs: r.maxTimestamp, Payload: r.payload}
	out := sent{first: r.first, next: next, records: int64(r.count), bytes: r.bytes, held: int64(len(r.payload))}
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

// settle reports that there is no record to deliver in the range in the making, and begins the next.
func (r *reader) settle(outcome spillwayv1.Outcome, reason string) error {
	next := r.p.position.Load()
	m := &spillwayv1.SettleRange{Source: r.source, Range: &spillwayv1.OffsetRange{First: r.first, Next: next}, Outcome: outcome, Reason: reason}
	out := sent{first: r.first, next: next}
	r.begin(next)
	return r.send(out, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Settle{Settle: m}})
}

// send notes a range as in flight and sends it. From here on the answer, or the stream's end, gives
// its budget back. Nothing is sent after a refusal.
func (r *reader) send(out sent, m *spillwayv1.AppendRequest) error {
	p := r.p
	p.mu.Lock()
	if err := p.refused; err != nil {
		p.mu.Unlock()
		p.source.memory.change(-out.held)
		return err
	}
	p.inFlight = append(p.inFlight, out)
	p.mu.Unlock()
	r.known = true
	m.RefetchId = p.refetching
	return r.a.send(m)
}

// outOfRange goes on when Kafka no longer has the position.
func (r *reader) outOfRange(cause error) error {
	p := r.p
	if err := r.flush(); err != nil {
		return err
	}
	first, next, err := p.source.client.Offsets(r.a.ctx, p.topic, p.number)
	if err != nil {
		return p.fetching.Failed(r.a.ctx, err)
	}
	switch position := p.position.Load(); {
	case p.refetching != 0:
		gone := p.until // the partition is shorter: it was created again
		if position < first {
			gone = min(first, p.until)
		} else if position <= next {
			return p.fetching.Failed(r.a.ctx, cause)
		}
		reason := fmt.Sprintf("Kafka has offsets %d to %d and was asked for %d to %d again", first, next-1, position, p.until-1)
		p.log.Error("lost", "offsets", gone-position, "reason", reason)
		p.position.Store(gone)
		return r.settle(spillwayv1.Outcome_OUTCOME_LOST, reason)
	case position > next:
		p.log.Error("the topic was deleted and created again, or lost its newest records", "position", position, "end", next)
		return r.gone()
	case position < first && r.known:
		reason := fmt.Sprintf("Kafka deleted offsets %d to %d before they were read", position, first-1)
		p.log.Error("lost", "records_at_most", first-position, "reason", reason)
		p.position.Store(first)
		return r.settle(spillwayv1.Outcome_OUTCOME_LOST, reason)
	case position < first:
		p.position.Store(first)
		r.begin(first)
	}
	return nil
}
