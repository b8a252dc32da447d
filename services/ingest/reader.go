package ingest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
	"github.com/spillwayio/spillway/services/internal/tracing"
)

// stallTime is how long a reader whose partition the buffer holds back keeps what was fetched
// while others wait for the memory.
const stallTime = 100 * time.Millisecond

// errStalled ends the reading of a part that the reader gives up until the buffer has taken more.
var errStalled = errors.New("the buffer holds the partition back")

// reader reads a partition from one assignment on: what was fetched in order, and batches made of
// it.
type reader struct {
	p       *partition
	ctx     context.Context // a's, or that of a refetch
	a       *appender
	source  *spillwayv1.SourcePartition
	known   bool                      // that what is no longer there is lost
	records []*spillwayv1.Fingerprint // of the last record that was sent, or of those that the buffer knows
	doubt   bool                      // a fetch failed: it may be another topic by now

	// The batch in the making covers [first, p.position).
	first        int64
	payload      []byte
	expect       int // bytes that the part that is read is worth
	count        int32
	lastOffset   int64 // of its last record,
	lastAt       int   // which is here in payload
	bytes        int64 // of its records
	maxTimestamp int64
	since        time.Time // when its first offset was fetched
	links        tracing.Links
}

// readGroup reads what the fetcher brings. It returns the buffer's refusal when the partition is
// to be assigned anew, or an error when the stream is broken.
func (r *reader) readGroup() error {
	p := r.p
	p.fetcher.want(p.feed, p.position.Load())
	var linger *time.Timer
	defer func() {
		if linger != nil {
			linger.Stop()
		}
	}()
	for {
		var late <-chan time.Time
		if !r.empty() {
			left := time.Until(r.since.Add(p.source.cfg.Batch.Linger))
			if linger == nil {
				linger = time.NewTimer(left)
			} else {
				linger.Reset(left)
			}
			late = linger.C
		}
		err := error(nil)
		select {
		case <-r.ctx.Done():
			return r.ctx.Err()
		case <-p.refusedC():
			err = r.refused()
		case <-late:
			err = r.flush()
		case <-p.feed.ready:
			err = r.arrived()
		case <-p.source.gate.whenClosed():
			err = r.paused()
		}
		if err != nil && !errors.Is(err, errInterrupted) {
			return err
		}
	}
}

// arrived reads the oldest part that was fetched.
func (r *reader) arrived() error {
	p := r.p
	if p.refusalErr() != nil {
		return nil // what comes next begins after what was refused
	}
	part, err := p.fetcher.take(p.feed)
	if err != nil {
		return r.failed(err)
	}
	if part == nil {
		return r.caughtUp()
	}
	if at := p.position.Load(); part.From() != at {
		part.Release()
		p.fetcher.want(p.feed, at)
		return nil
	}
	part.Unpack = p.source.unpack(r.ctx, p.refusedC())
	err = r.take(part)
	switch {
	case errors.Is(err, errStalled):
		return r.stalled()
	case errors.Is(err, errInterrupted): // by a refusal, which comes next
		return nil
	case err == nil:
		p.source.fetching.over(p)
		p.wait.Reset()
		return r.caughtUp()
	}
	return r.failed(err)
}

// stalled waits, without what was fetched, until the buffer has taken more.
func (r *reader) stalled() error {
	p := r.p
	p.fetcher.rest(p.feed)
	if err := r.flush(); err != nil {
		return err
	}
	for p.flyingBytes() > 0 {
		select {
		case <-p.answered:
		case <-p.refusedC():
			return nil
		case <-r.ctx.Done():
			return r.ctx.Err()
		}
	}
	p.fetcher.want(p.feed, p.position.Load())
	return nil
}

// refused sends what was refused again, and goes on after it.
func (r *reader) refused() error {
	p := r.p
	p.fetcher.rest(p.feed)
	r.drop()
	next, err := p.resend(r.a)
	if err != nil {
		return err
	}
	p.position.Store(next)
	r.begin(next)
	p.fetcher.want(p.feed, next)
	return nil
}

// paused waits until the source is resumed.
func (r *reader) paused() error {
	p := r.p
	p.fetcher.rest(p.feed)
	if err := r.flush(); err != nil {
		return err
	}
	if err := p.source.gate.pass(r.ctx); err != nil {
		return err
	}
	p.fetcher.want(p.feed, p.position.Load())
	return nil
}

// failed goes on after a fetch that failed.
func (r *reader) failed(err error) error {
	p := r.p
	var broke *brokenError
	switch {
	case r.ctx.Err() != nil:
		return r.ctx.Err()
	case errors.As(err, &broke):
		return broke.err
	}
	p.fetcher.rest(p.feed)
	if errors.Is(err, kafka.OffsetOutOfRange) {
		err = r.outOfRange(err)
	} else {
		err = r.doubtful(err)
	}
	if err == nil {
		p.fetcher.want(p.feed, p.position.Load())
	}
	return err
}

// doubtful waits after a failure and finds out whether it is still the same topic.
func (r *reader) doubtful(err error) error {
	p := r.p
	if err := r.flush(); err != nil { // it may take long
		return err
	}
	p.source.fetching.note(p, fmt.Errorf("%s: %w", p, err))
	if err := p.wait.Wait(r.ctx); err != nil {
		return err
	}
	gone, _, err := p.verify(r.ctx, r.records, r.first)
	if err != nil {
		return err
	}
	if gone {
		return r.gone()
	}
	return nil
}

// caughtUp tells the buffer now and then that the partition had no more records at a time.
func (r *reader) caughtUp() error {
	p := r.p
	at := p.asked.Load()
	if at == p.told.Load() || !r.empty() || p.position.Load() != p.end.Load() {
		return nil
	}
	p.told.Store(at)
	return r.a.send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_CaughtUp{CaughtUp: &spillwayv1.CaughtUp{
		Source: r.source, Offset: p.position.Load(), TimeMs: at}}})
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
	if err == nil || errors.Is(err, errStalled) || errors.Is(err, errInterrupted) {
		return err
	}
	return &brokenError{err}
}

// errEnd stops going through what was fetched at the end of a refetch.
var errEnd = errors.New("end of the refetch")

// take makes batches of what was fetched.
func (r *reader) take(fetched *kafkaclient.Fetched) error {
	if r.empty() {
		r.since = time.Now()
	}
	r.expect = fetched.Bytes()
	p := r.p
	ended := func(offset int64) bool { return p.refetching != 0 && offset >= p.until }
	next, err := fetched.Each(
		func(offset int64, rec *recordbatch.Record) error {
			if ended(offset) {
				return errEnd
			}
			return broken(r.add(offset, rec))
		},
		func(first, next int64, reason string) error {
			if ended(first) {
				return errEnd
			}
			return broken(r.deadLetter(first, next, reason))
		})
	if errors.Is(err, errEnd) {
		next, err = p.until, nil
	}
	if p.refetching != 0 {
		next = min(next, p.until)
	}
	if p.position.Load() < next {
		p.position.Store(next)
	}
	return err
}

// outOfRange goes on when Kafka no longer has the position.
func (r *reader) outOfRange(cause error) error {
	p := r.p
	if err := r.flush(); err != nil {
		return err
	}
	first, next, err := p.offsets(r.ctx)
	if err != nil {
		p.source.fetching.note(p, err)
		return p.backOff(r.ctx)
	}
	switch position := p.position.Load(); {
	case position > next && p.source.hasOtherLeader(r.ctx, p.topicPartition): // that one is asked
	case p.refetching != 0:
		gone := p.until // the partition is shorter: it was created again
		if position < first {
			gone = min(first, p.until)
		} else if position <= next {
			p.source.fetching.note(p, cause)
			return p.backOff(r.ctx)
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
