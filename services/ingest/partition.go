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
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/backoff"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
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
	committed  atomic.Int64                          // in Kafka; negative: none
	safe       atomic.Int64                          // negative: nothing is
	position   atomic.Int64                          // the next offset to fetch
	first, end atomic.Int64                          // of Kafka's, as of the last fetch
	unsafeAge  atomic.Int64                          // of the record at safe, in ms, as of the last look; 0: there is none
	life       atomic.Uint32                         // the incarnation that is read
	retention  atomic.Pointer[kafkaclient.Retention] // of the topic; nil: unknown
	fetchBytes int
	added      bool // it is younger than the group's reading of its topic
	fetching   *backoff.Trouble
	full       *backoff.Trouble
	thin       bool // the margin until Kafka deletes what is not safe; of watchRetention

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
		r, err := p.assign(a)
		if err != nil {
			return
		}
		err = r.read()
		r.drop()
		if a.ctx.Err() != nil {
			return
		}
		delay := p.waitAnswers(a.ctx)
		if !errors.Is(err, errRecreated) {
			p.full.Note(err)
		}
		sleep(a.ctx, delay)
	}
}

// assign makes a reader that begins where the buffer says, or Kafka when the buffer does not know the partition.
func (p *partition) assign(a *appender) (*reader, error) {
	recreated, from := false, int64(0) // what the buffer knows is gone, and goes on as another there
	for {
		m, err := p.ask(a, recreated)
		if err != nil {
			return nil, err
		}
		p.life.Store(m.Source.GetIncarnation())
		r := &reader{p: p, a: a, source: m.Source, records: m.KnownRecords}
		if m.Known {
			if recreated, from, err = p.verify(a.ctx, m.KnownRecords, m.ResumeOffset); err != nil {
				return nil, err
			} else if recreated {
				continue
			}
			p.safe.Store(m.SafeOffset)
			p.position.Store(m.ResumeOffset)
			p.log.Debug("going on where the buffer says", "offset", m.ResumeOffset, "safe", m.SafeOffset)
			r.known = true
		} else {
			start, behind, err := p.start(a.ctx, recreated || m.Source.GetIncarnation() > 0, from)
			if err != nil {
				return nil, err
			}
			// Committed before anything is read, or the next start would find another end and skip what came between.
			p.safe.Store(start)
			p.position.Store(start)
			r.known = behind
		}
		r.begin(p.position.Load())
		return r, nil
	}
}

// ask asks the buffer where to go on.
func (p *partition) ask(a *appender, recreated bool) (*spillwayv1.PartitionAssigned, error) {
	p.mu.Lock()
	p.refused, p.delay = nil, 0
	p.mu.Unlock()
	select {
	case <-p.assigned: // of a stream that broke
	default:
	}
	if err := a.send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Assign{Assign: &spillwayv1.AssignPartition{
		Source:    &spillwayv1.SourcePartition{Cluster: p.source.clusterID(), Topic: p.topic, Partition: int32(p.number), Incarnation: p.life.Load()},
		Recreated: recreated}}}); err != nil {
		return nil, err
	}
	select {
	case m := <-p.assigned:
		return m, nil
	case <-a.ctx.Done():
		return nil, a.ctx.Err()
	}
}

// start is where a partition begins that the buffer does not know. Behind says that records from there
// on were to be read, so that those that are gone are lost.
func (p *partition) start(ctx context.Context, recreated bool, from int64) (at int64, behind bool, err error) {
	for {
		at, why, err := p.startNow(ctx, recreated, from)
		if err == nil {
			p.fetching.Over()
			p.log.Info("the buffer does not know the partition yet", "offset", at, "because", why)
			return at, why == committedInGroup, nil
		}
		if ctx.Err() != nil || p.fetching.Failed(ctx, err) != nil {
			return 0, false, ctx.Err()
		}
	}
}

const committedInGroup = "committed in the group"

func (p *partition) startNow(ctx context.Context, recreated bool, from int64) (at int64, why string, err error) {
	client, start := p.source.client, p.source.cfg.Start
	first, next, err := client.Offsets(ctx, p.topic, p.number)
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
	at, err = client.OffsetAt(ctx, p.topic, p.number, since)
	return at, "source.start is " + start, err
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

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
