package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/backoff"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

const (
	// idleWait is how long a broker holds a fetch when there is nothing.
	idleWait = time.Second
	// retryDefault is the pause after a refusal that does not say how long.
	retryDefault = 200 * time.Millisecond
)

type topicPartition struct {
	topic  string
	number int
}

func (tp topicPartition) String() string { return fmt.Sprintf("%s/%d", tp.topic, tp.number) }

// partition is a source partition for as long as one generation of the group has it here.
//
// Its goroutine fetches, makes batches and sends them; the buffer answers in the order they were sent.
// After a refusal it sends no more, waits for the answers that are out, and goes on where the buffer
// says. After the stream broke, run is called again with the next one.
type partition struct {
	topicPartition
	source     *source
	log        *slog.Logger
	committed  atomic.Int64 // in Kafka; negative: none
	safe       atomic.Int64 // negative: nothing is
	position   atomic.Int64 // the next offset to fetch
	end        atomic.Int64 // as of the last fetch
	fetchBytes int
	fetching   *backoff.Trouble
	full       *backoff.Trouble

	// Of a refetch only.
	refetching uint64 // Refetch.id; 0: it is read for the group
	until      int64  // where it ends

	assigned chan *spillwayv1.PartitionAssigned // has room for one

	mu        sync.Mutex
	inFlight  []sent // in the order of the answers to come
	confirmed int64  // of a refetch: everything before it is accepted
	refused   error  // since the last assignment
	delay     time.Duration
	answered  chan struct{} // closed when inFlight is empty; nil when nobody waits
}

// sent is a range without an answer.
type sent struct {
	first, next    int64
	records, bytes int64
	held           int64 // of the budget
}

func newPartition(s *source, tp topicPartition, committed int64, fetchBytes int) *partition {
	log := s.log.With("topic", tp.topic, "partition", tp.number)
	p := &partition{topicPartition: tp, source: s, log: log, fetchBytes: fetchBytes,
		fetching: backoff.NewTrouble(log, "cannot fetch"), full: backoff.NewTrouble(log, "the buffer takes no more"),
		assigned: make(chan *spillwayv1.PartitionAssigned, 1)}
	p.committed.Store(committed)
	p.safe.Store(-1)
	p.position.Store(-1)
	return p
}

// run reads the partition into a until a breaks or its owner ends it.
func (p *partition) run(a *appender) {
	defer p.dropInFlight()
	for a.ctx.Err() == nil {
		at, known, err := p.assign(a)
		if err != nil {
			return
		}
		r := &reader{p: p, a: a, source: at, known: known}
		r.begin(p.position.Load())
		err = r.read()
		r.drop()
		if a.ctx.Err() != nil {
			return
		}
		delay := p.waitAnswers(a.ctx)
		p.full.Note(err)
		sleep(a.ctx, delay)
	}
}

// assign asks the buffer where to go on, and Kafka when the buffer does not know the partition.
func (p *partition) assign(a *appender) (at *spillwayv1.SourcePartition, known bool, err error) {
	p.mu.Lock()
	p.refused, p.delay = nil, 0
	p.mu.Unlock()
	select {
	case <-p.assigned: // of a stream that broke
	default:
	}
	if err := a.send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Assign{Assign: &spillwayv1.AssignPartition{
		Source: &spillwayv1.SourcePartition{Cluster: p.source.clusterID(), Topic: p.topic, Partition: int32(p.number)}}}}); err != nil {
		return nil, false, err
	}
	var m *spillwayv1.PartitionAssigned
	select {
	case m = <-p.assigned:
	case <-a.ctx.Done():
		return nil, false, a.ctx.Err()
	}
	if m.Known {
		p.safe.Store(m.SafeOffset)
		p.position.Store(m.ResumeOffset)
		p.log.Debug("going on where the buffer says", "offset", m.ResumeOffset, "safe", m.SafeOffset)
		return m.Source, true, nil
	}
	start, err := p.start(a.ctx)
	if err != nil {
		return nil, false, err
	}
	p.position.Store(start)
	return m.Source, false, nil
}

// start is where a partition begins that the buffer does not know.
func (p *partition) start(ctx context.Context) (int64, error) {
	for {
		first, next, err := p.source.client.Offsets(ctx, p.topic, p.number)
		if err != nil {
			if ctx.Err() != nil || p.fetching.Failed(ctx, err) != nil {
				return 0, ctx.Err()
			}
			continue
		}
		p.fetching.Over()
		at, why := first, "source.start is earliest"
		switch committed := p.committed.Load(); {
		case committed >= first && committed <= next:
			at, why = committed, "committed in the group"
		case committed >= 0:
			p.log.Warn("the group's committed offset is not in the partition; beginning at its first", "committed", committed, "first", first, "next", next)
		case p.source.cfg.Start == "latest":
			at, why = next, "source.start is latest"
		}
		p.log.Info("the buffer does not know the partition yet", "offset", at, "because", why)
		return at, nil
	}
}

func (p *partition) onAssigned(m *spillwayv1.PartitionAssigned) {
	select {
	case p.assigned <- m:
	default: // nobody asked
	}
}

// onAppended takes the answer to the oldest range in flight.
func (p *partition) onAppended(m *spillwayv1.Appended) error {
	err := rpc.StatusError(m.Status)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.inFlight) == 0 || p.inFlight[0].first != m.Range.GetFirst() || p.inFlight[0].next != m.Range.GetNext() {
		return fmt.Errorf("the buffer answered range %v of %s, which is not the oldest without an answer", m.Range, p)
	}
	s := p.inFlight[0]
	p.inFlight = p.inFlight[1:]
	p.source.memory.change(-s.held)
	if err == nil {
		p.full.Over()
		if p.refused == nil {
			p.confirmed = s.next
		}
		if !m.Duplicate && p.refetching == 0 {
			p.source.records.Add(s.records)
			p.source.bytes.Add(s.bytes)
		}
	} else if p.refused == nil {
		p.refused, p.delay = fmt.Errorf("range [%d,%d): %w", s.first, s.next, err), retryDelay(err)
	}
	if len(p.inFlight) == 0 && p.answered != nil {
		close(p.answered)
		p.answered = nil
	}
	return nil
}

// retryDelay is what the error's RetryInfo asks for.
func retryDelay(err error) time.Duration {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return info.RetryDelay.AsDuration()
		}
	}
	return retryDefault
}

// waitAnswers waits until nothing is in flight and returns the delay that the refusal asks for.
func (p *partition) waitAnswers(ctx context.Context) time.Duration {
	p.mu.Lock()
	answered := p.answered
	if len(p.inFlight) > 0 && answered == nil {
		answered = make(chan struct{})
		p.answered = answered
	}
	p.mu.Unlock()
	if answered != nil {
		select {
		case <-answered:
		case <-ctx.Done():
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(p.delay, retryDefault)
}

// dropInFlight forgets what will not be answered any more.
func (p *partition) dropInFlight() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.inFlight {
		p.source.memory.change(-s.held)
	}
	p.inFlight, p.answered = nil, nil
}

func (p *partition) refusal() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refused
}

// reader reads a partition from one assignment on: fetches in order, and batches made of them.
type reader struct {
	p      *partition
	a      *appender
	source *spillwayv1.SourcePartition
	known  bool // by the buffer

	// The batch in the making covers [first, p.position).
	first        int64
	payload      []byte
	count        int32
	bytes        int64 // of its records
	maxTimestamp int64
	since        time.Time // when its first offset was fetched
}

// begin begins a batch at an offset.
func (r *reader) begin(at int64) {
	r.first, r.payload, r.count, r.bytes, r.maxTimestamp, r.since = at, nil, 0, 0, 0, time.Now()
}

// drop gives up the batch in the making.
func (r *reader) drop() {
	r.p.source.memory.change(-int64(len(r.payload)))
	r.payload = nil
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
		if err := r.reserve(); err != nil {
			return err
		}
		err := r.fetch()
		p.source.memory.change(-int64(p.fetchBytes))
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
	if _, ok := p.source.memory.try(int64(p.fetchBytes)); ok {
		return nil
	}
	if err := r.flush(); err != nil {
		return err
	}
	return p.source.memory.acquire(r.a.ctx, int64(p.fetchBytes))
}

// fetch does one fetch. The broker does the lingering: it holds the answer until the batch can be
// filled or its time is over.
func (r *reader) fetch() error {
	p, batch := r.p, &r.p.source.cfg.Batch
	request := kafkaclient.Request{Topic: p.topic, Partition: p.number, Offset: p.position.Load(),
		MinBytes: 1, MaxBytes: p.fetchBytes, MaxWait: idleWait}
	if !r.empty() {
		request.MinBytes = max(1, min(p.fetchBytes, int(batch.Bytes)-len(r.payload)))
		request.MaxWait = max(time.Millisecond, batch.Linger-time.Since(r.since))
	}
	fetched, err := p.source.client.Fetch(r.a.ctx, request)
	if err == nil {
		p.end.Store(fetched.End)
		err = r.take(fetched)
	}
	var broken *brokenError
	switch {
	case err == nil:
		p.fetching.Over()
		return nil
	case r.a.ctx.Err() != nil:
		return r.a.ctx.Err()
	case errors.As(err, &broken):
		return broken.err
	case errors.Is(err, kafka.OffsetOutOfRange):
		return r.outOfRange(err)
	}
	if err := r.flush(); err != nil { // it may take long
		return err
	}
	return p.fetching.Failed(r.a.ctx, err)
}

// brokenError carries an error of sending through Fetched.Each.
type brokenError struct{ err error }

func (e *brokenError) Error() string { return e.err.Error() }

// take makes batches of what was fetched.
func (r *reader) take(fetched *kafkaclient.Fetched) error {
	if r.empty() {
		r.since = time.Now()
	}
	next, err := fetched.Each(func(offset int64, rec *recordbatch.Record) error {
		if r.p.refetching != 0 && offset >= r.p.until {
			return errEnd
		}
		if err := r.add(offset, rec); err != nil {
			return &brokenError{err}
		}
		return nil
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
		if err := r.flushTo(offset); err != nil {
			return err
		}
		reason := fmt.Sprintf("record of %d bytes is larger than %d", size, recordbatch.MaxRecordBytes)
		p.log.Error("dead-lettered", "offset", offset, "reason", reason)
		p.position.Store(offset + 1)
		return r.settle(spillwayv1.Outcome_OUTCOME_DEAD_LETTERED, reason)
	}
	if r.payload == nil {
		r.payload = make([]byte, 0, r.guess(size))
	}
	before := len(r.payload)
	rec.OffsetDelta = offset - r.first
	r.payload = recordbatch.AppendRecord(r.payload, rec)
	p.source.memory.change(int64(len(r.payload) - before))
	r.count++
	r.bytes += int64(size)
	r.maxTimestamp = max(r.maxTimestamp, rec.TimestampMs)
	p.position.Store(offset + 1)
	if int(r.count) >= limits.Records || len(r.payload) >= int(limits.Bytes) {
		return r.flush()
	}
	return nil
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
	next := r.p.position.Load()
	batch := &spillwayv1.Batch{Source: r.source, FirstOffset: r.first, NextOffset: next, RecordCount: r.count,
		Codec: spillwayv1.Codec_CODEC_NONE, PayloadCrc32C: recordbatch.CRC(r.payload), MaxTimestampMs: r.maxTimestamp, Payload: r.payload}
	out := sent{first: r.first, next: next, records: int64(r.count), bytes: r.bytes, held: int64(len(r.payload))}
	r.begin(next)
	return r.send(out, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Batch{Batch: batch}})
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
		return p.fetching.Failed(r.a.ctx, fmt.Errorf("%w: the partition ends at %d; was topic %s deleted and created again? Give the source a new queue, or wait until the topic has grown", cause, next, p.topic))
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

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
