package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/backoff"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
	"github.com/spillwayio/spillway/services/internal/rpc"
	"github.com/spillwayio/spillway/services/internal/tracing"
)

// retryDefault is the pause after a refusal that does not say how long, and the shortest one.
const retryDefault = 200 * time.Millisecond

type topicPartition struct {
	topic  string
	number int
}

func (tp topicPartition) String() string { return fmt.Sprintf("%s/%d", tp.topic, tp.number) }

// partition is a source partition for as long as one generation of the group has it here.
//
// Its goroutine takes what the fetcher brings, makes batches and sends them; the buffer answers
// in the order they were sent. After a refusal it waits for the answers that are out, keeps what
// was refused, and sends that again when the buffer says. After the stream broke, run is called
// again with the next one.
type partition struct {
	topicPartition
	source     *source
	log        *slog.Logger
	feed       *feed
	fetcher    *fetcher
	committed  atomic.Int64                          // in Kafka; negative: none
	foreign    bool                                  // somebody else committed that
	ours       atomic.Int64                          // what an ingest of Spillway has committed last; negative: nothing
	safe       atomic.Int64                          // negative: nothing is
	position   atomic.Int64                          // the offset after what was put into batches
	first, end atomic.Int64                          // of Kafka's, as of the last fetch; end is the high watermark
	stable     atomic.Int64                          // what comes after it waits for the decision of a transaction
	undecided  atomic.Int64                          // since when stable stands below end, in Unix ms; 0: it does not
	asked      atomic.Int64                          // when the last fetch was sent that brought nothing, in Unix ms
	told       atomic.Int64                          // the one of these times that the buffer was told last
	unsafeAge  atomic.Int64                          // of the record at safe, in ms, as of the last look; 0: there is none
	life       atomic.Uint32                         // the incarnation that is read
	retention  atomic.Pointer[kafkaclient.Retention] // of the topic; nil: unknown
	added      bool                                  // it is younger than the group's reading of its topic
	wait       backoff.Backoff                       // of its goroutine
	stream     atomic.Pointer[appender]              // that it is read over; nil: none
	thin       bool                                  // the margin until Kafka deletes what is not safe; of watchRetention
	seen       struct{ offset, timestampMs int64 }   // the record at a safe offset; of watchRetention
	old        struct {                              // what was told of retention; of tellRetention
		to     *appender
		offset int64
	}

	// Of a refetch only.
	refetching uint64 // Refetch.id; 0: it is read for the group
	until      int64  // where it ends
	turn       bool   // it has one of source.refetches
	quit       context.CancelFunc

	assigned chan *spillwayv1.PartitionAssigned // has room for one

	mu        sync.Mutex
	inFlight  []*sent // in the order of the answers to come
	flying    int64   // their bytes
	kept      []*sent // refused, in order, to be sent again
	confirmed int64   // of a refetch: everything before it is accepted
	refused   error   // since the last assignment, or since what was kept was accepted
	refusal   chan struct{}
	delay     time.Duration
	refusedAt int64         // where the refused range begins
	refusals  int           // in a row
	answered  chan struct{} // has room for one: there was an answer
}

// sent is a range without an answer.
type sent struct {
	first, next    int64
	records, bytes int64
	held           int64 // of memory.batches
	kept           bool  // counted in memory.kept
	message        *spillwayv1.AppendRequest
	span           *tracing.Span // nil: there is none
}

func newPartition(s *source, f *fetcher, tp topicPartition, committed int64) *partition {
	log := s.log.With("topic", tp.topic, "partition", tp.number)
	p := &partition{topicPartition: tp, source: s, log: log, fetcher: f, wait: backoff.Backoff{Initial: retryDefault, Max: 5 * time.Second},
		assigned: make(chan *spillwayv1.PartitionAssigned, 1), refusal: make(chan struct{}), answered: make(chan struct{}, 1)}
	p.feed = &feed{topicPartition: tp, ready: make(chan struct{}, 1), facts: p.learn}
	p.committed.Store(committed)
	p.ours.Store(-1)
	p.safe.Store(-1)
	p.position.Store(-1)
	return p
}

// learn takes in what an answer says of the partition. It returns whether the reader is to tell
// the buffer that there is no more.
func (p *partition) learn(f *kafkaclient.Fetched, asked time.Time) bool {
	p.first.Store(f.First)
	before := p.stable.Swap(f.Stable)
	p.end.Store(f.HighWatermark)
	switch {
	case f.Stable == f.HighWatermark:
		p.undecided.Store(0)
	case p.undecided.Load() == 0 || before != f.Stable:
		p.undecided.Store(asked.UnixMilli())
	}
	if f.Next < f.HighWatermark || f.Bytes() > 0 {
		return false
	}
	p.asked.Store(asked.UnixMilli())
	since := asked.UnixMilli() - p.told.Load()
	return since >= p.source.tellEvery.Load() || since < 0 // the clock was set back
}

// run reads the partition into a until a breaks or its owner ends it.
func (p *partition) run(a *appender) {
	defer p.source.full.ended(p)
	defer p.source.fetching.ended(p)
	defer p.drop()
	p.stream.Store(a)
	defer p.stream.Store(nil)
	for a.ctx.Err() == nil {
		r, err := p.assign(a)
		if err != nil {
			return
		}
		err = r.readGroup()
		r.drop()
		p.fetcher.rest(p.feed)
		if a.ctx.Err() != nil {
			return
		}
		p.settleAnswers(a.ctx)
		if !errors.Is(err, errRecreated) {
			p.source.full.note(p, err)
			sleep(a.ctx, p.pause())
		}
	}
}

// onAssigned takes the answer to ask.
func (p *partition) onAssigned(m *spillwayv1.PartitionAssigned) {
	select {
	case p.assigned <- m:
	default: // nobody asked
	}
}

// onSafe takes the partition's safe offset, which only rises.
func (p *partition) onSafe(offset int64) {
	for {
		before := p.safe.Load()
		if offset <= before || p.safe.CompareAndSwap(before, offset) {
			return
		}
	}
}

// onAppended takes the answer to the oldest range in flight.
func (p *partition) onAppended(m *spillwayv1.Appended) error {
	again, err := p.answer(m)
	if again {
		p.source.full.over(p)
	}
	return err
}

// answer says whether something is accepted for the first time after a refusal.
func (p *partition) answer(m *spillwayv1.Appended) (again bool, _ error) {
	err := rpc.StatusError(m.Status)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.inFlight) == 0 || p.inFlight[0].first != m.Range.GetFirst() || p.inFlight[0].next != m.Range.GetNext() {
		return false, fmt.Errorf("the buffer answered range %v of %s, which is not the oldest without an answer", m.Range, p)
	}
	s := p.inFlight[0]
	p.inFlight[0] = nil
	p.inFlight = p.inFlight[1:]
	p.flying -= s.held
	switch {
	case err == nil:
		again = p.refusals > 0
		p.acceptedLocked(s, m.Duplicate)
	case p.refused == nil:
		p.refused, p.delay = fmt.Errorf("range [%d,%d): %w", s.first, s.next, err), retryDelay(err)
		p.refusals++
		s.span.Event("refused")
		p.refusedAt = s.first
		close(p.refusal)
		p.keepLocked(s, isFull(err))
	default: // it came after one that was refused
		p.keepLocked(s, len(p.kept) > 0)
	}
	poke(p.answered)
	return again, nil
}

func (p *partition) acceptedLocked(s *sent, duplicate bool) {
	s.span.End(nil)
	p.source.memory.batches.change(-s.held)
	if s.kept {
		p.source.memory.unkeep(s.held)
	}
	p.source.memory.room()
	if p.refusals = 0; p.refused == nil {
		p.confirmed = s.next
	}
	if !duplicate && p.refetching == 0 {
		p.source.records.Add(s.records)
		p.source.bytes.Add(s.bytes)
	}
}

// keepLocked keeps a refused range for later, if it may be sent again as it is and continues what
// is kept.
func (p *partition) keepLocked(s *sent, may bool) {
	n := len(p.kept)
	if may && p.refetching == 0 && (n == 0 || p.kept[n-1].next == s.first) && (s.kept || p.source.memory.keep(s.held)) {
		s.kept = true
		p.kept = append(p.kept, s)
		return
	}
	p.forget(s)
}

// forget gives back what a range holds.
func (p *partition) forget(s *sent) {
	s.span.End(errForgotten)
	p.source.memory.batches.change(-s.held)
	if s.kept {
		p.source.memory.unkeep(s.held)
	}
}

// errForgotten is what the span of a batch ends with that was not accepted.
var errForgotten = errors.New("not accepted by the buffer; it is fetched again")

// isFull says whether a refusal is about room, so that the same batch may be sent again.
func isFull(err error) bool { return status.Code(err) == codes.ResourceExhausted }

// noteFull notes a refusal for want of room, but not one that only has a partition that is ahead
// of the deliveries wait for them.
func (p *partition) noteFull(err error) {
	if rpc.Reason(err) != "AHEAD" {
		p.source.full.note(p, err)
	}
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

// pause is the pause that the refusal asks for.
func (p *partition) pause() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(p.delay, retryDefault)
}

// longPause is the pause after a refusal of what could not be kept, and is fetched again: it
// grows with each in a row.
func (p *partition) longPause() time.Duration {
	const longest = 30 * time.Second
	p.mu.Lock()
	refusals := p.refusals
	p.mu.Unlock()
	return max(p.pause(), min(4*retryDefault<<min(refusals, 10), longest))
}

// settleAnswers waits until nothing is in flight.
func (p *partition) settleAnswers(ctx context.Context) {
	for {
		p.mu.Lock()
		n := len(p.inFlight)
		p.mu.Unlock()
		if n == 0 {
			return
		}
		select {
		case <-p.answered:
		case <-ctx.Done():
			return
		}
	}
}

// resend sends what was refused again, when its time has come, until the buffer takes it: the
// first range alone, and the others when that one is accepted. It returns the offset to go on at,
// and the refusal when the partition is to be assigned anew. What could not be kept is to be
// fetched again, when the queue takes something from others, or after a while.
func (p *partition) resend(a *appender) (next int64, err error) {
	p.settleAnswers(a.ctx)
	p.mu.Lock()
	err, next = p.refused, p.refusedAt
	nothing := len(p.kept) == 0
	if !nothing {
		next = p.kept[len(p.kept)-1].next
	}
	p.mu.Unlock()
	if !isFull(err) {
		return 0, err
	}
	if nothing {
		p.noteFull(err)
		p.source.memory.awaitRoom(a.ctx, p.pause(), p.longPause())
		p.mu.Lock()
		p.unrefuseLocked()
		p.mu.Unlock()
		return next, a.ctx.Err()
	}
	for batches := 1; a.ctx.Err() == nil; {
		if err != nil {
			p.noteFull(err)
			sleep(a.ctx, p.pause())
		}
		var left int
		if left, err = p.resendSome(a, batches); err != nil && !isFull(err) {
			return 0, err
		}
		if left == 0 {
			return next, nil
		}
		if batches = 1; err == nil {
			batches = left
		}
	}
	return 0, a.ctx.Err()
}

// resendSome sends the first of the kept ranges again, and waits for the answers. It returns how
// many are kept after that, and why.
func (p *partition) resendSome(a *appender, batches int) (left int, err error) {
	p.mu.Lock()
	p.unrefuseLocked()
	again, rest := p.kept[:min(batches, len(p.kept))], p.kept[min(batches, len(p.kept)):]
	p.kept = nil
	for _, s := range again {
		p.inFlight = append(p.inFlight, s)
		p.flying += s.held
	}
	p.mu.Unlock()
	for _, s := range again {
		if err = a.send(s.message); err != nil {
			break
		}
	}
	p.settleAnswers(a.ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kept = append(p.kept, rest...)
	if err == nil {
		err = p.refused
	}
	return len(p.kept), err
}

// unrefuseLocked begins again after a refusal.
func (p *partition) unrefuseLocked() {
	if p.refused != nil {
		p.refused, p.delay, p.refusal = nil, 0, make(chan struct{})
	}
}

// drop forgets what will not be answered any more, and what was to be sent again.
func (p *partition) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.inFlight {
		p.forget(s)
	}
	for _, s := range p.kept {
		p.forget(s)
	}
	p.inFlight, p.kept, p.flying = nil, nil, 0
}

// refusedC is closed when the buffer refuses something.
func (p *partition) refusedC() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refusal
}

func (p *partition) refusalErr() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refused
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
