// Package delivery takes batches of one subscription from the buffer and hands them to a Sink.
// What is shared by all kinds of destination is here: the session with the buffer (credit, leases
// and their extension, acks), reconnecting, draining, and the admin API. The kinds are in the
// packages below it.
//
// A batch goes from the stream (session, stream.go) to the Sink and comes back as an ack; the
// Service (worker.go) has a link (link.go) for each shard of the queue, which keeps one session
// open at a time. Goroutines: two per session, which end in its Close, one per link, and one for
// each Sink.Serve, which Run waits for. Locks: Service.mu before session.mu; Trouble.mu is taken
// under session.mu, when an ack is accepted, and takes no other; nor does times.mu.
package delivery

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/delivery/transform"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
	"github.com/spillwayio/spillway/services/internal/tracing"
)

var (
	// ErrRefused is the answer to an ack of which a lease was no longer held. Nothing of the ack
	// took effect: the sink goes back to its state before it.
	ErrRefused = errors.New("ack refused: a lease is no longer held")
	// ErrSessionLost means that the stream to the buffer broke. What became of an unanswered ack
	// is unknown: the sink must return without touching its destination again, and go on in its
	// next session from the state the buffer hands back.
	ErrSessionLost = errors.New("session lost")
	// ErrSubscriptionGone means, besides ErrSessionLost, that the subscription was deleted with
	// the sink state of all its sessions. Nobody else touches what this session had at its
	// destination, so the sink may finish it.
	ErrSubscriptionGone = errors.New("the subscription was deleted")
)

// Sink is a kind of destination. A Sink lives as long as the process. It serves as many sessions
// at a time as the queue has shards, one of each, and those of a shard one after the other.
type Sink interface {
	// Serve delivers the leases of s until s.Leases() is closed, then returns. When s.Err() is
	// nil by then the delivery is draining: Serve finishes and acks what it holds first.
	// Otherwise it stops at once and drops all it holds. No goroutine of a session outlives its
	// Serve. An error other than s.Err() is retried by the caller with a new session, after
	// backoff. When ctx ends, because the session is lost or the time to drain is over, Serve
	// returns at once.
	Serve(ctx context.Context, s Session) error
	// Ordering is what the sink needs of the buffer.
	Ordering() spillwayv1.Ordering
}

// Prober is a Sink that can tell whether its destination answers. The first session is opened, and
// the delivery becomes ready, only after it did.
type Prober interface {
	// Probe returns nil when the destination can be reached; otherwise it is asked again, after
	// backoff.
	Probe(ctx context.Context) error
}

// Timed is a Sink that may want to know how far the time of records has come.
type Timed interface {
	// WantsWatermarks says whether Session.Watermarks is to yield any.
	WantsWatermarks() bool
}

// Watermark is how far the time of the subscription's records has come, in ms since the Unix
// epoch.
type Watermark struct {
	// PassedMs is what all source partitions have passed. Records with an earlier timestamp are
	// settled, but for those that come late.
	PassedMs int64
	// CompleteMs is the same, but below StateChange.HoldsMs of each entry of sink state of any
	// session.
	CompleteMs int64
}

// Troubled is a Sink that retries on its own and can say what it is up against.
type Troubled interface {
	// Trouble is why deliveries fail now; nil when they do not. It may be called at any time.
	Trouble() error
}

// Targeted is a Sink that produces to Kafka.
type Targeted interface {
	// Target returns the id of the cluster and the template of the topic. The buffer then tells
	// the session, which has a method Flows, whether what is produced would come back.
	Target(ctx context.Context) (cluster, topic string, err error)
}

// Metered is a Sink with metrics of its own.
type Metered interface {
	// Metrics are registered once, with the delivery's name as a label.
	Metrics() []prometheus.Collector
}

// Session is a Sink's view of its stream to the buffer. All methods may be called concurrently.
type Session interface {
	// ID is random, so that no other session has it.
	ID() uint64
	// Sessions is how many sessions the delivery has at a time, one for each shard of its queue.
	// What bounds the delivery as a whole, such as open files, is divided by it.
	Sessions() int
	// LedgerID is the random name of the queue's data: progress that a sink keeps elsewhere
	// counts only with the same one. It is empty with a buffer that does not have it yet.
	LedgerID() string
	// Leases yields the batches to deliver. It is closed when the session drains or is lost.
	// Held leases are extended until they are acked, nacked or revoked; their bytes are the memory
	// bound, so a sink may hold all it is given.
	Leases() <-chan *Lease
	// Adoptions yields the sink state of dead sessions, which the sink now owns. Never closed.
	Adoptions() <-chan *Adoption
	// Watermarks yields the newest watermark, at most once a second, to a Timed sink. Never
	// closed.
	Watermarks() <-chan Watermark
	// Ack settles leases and changes sink state in one durable write, and returns after it: nil,
	// ErrRefused, ErrSessionLost or ctx's error. It may take any number of dead letters: those
	// that do not fit into one message are settled before the rest. So may changes of state
	// without leases.
	Ack(ctx context.Context, ack *Ack) error
	// Nack gives a lease back, to be leased again after delay (0: the buffer's own backoff).
	Nack(l *Lease, delay time.Duration, reason error)
	// Err is nil while the session lives or drains, and why it was lost afterwards.
	Err() error
}

// Lease is a batch on loan. Its methods may be called by one goroutine at a time, but for Revoked.
type Lease struct {
	ID      uint64
	Attempt int // 1 for the first
	Source  *spillwayv1.SourcePartition
	// Epoch is another one after the subscription was created anew or sought, so that the same
	// records are to be delivered again.
	Epoch int64
	// Last says that nothing was waiting behind it in the buffer.
	Last bool
	// First and Next are the offsets covered.
	First, Next int64
	// RecordCount is an upper bound of the records that Records yields.
	RecordCount int
	// Payload is the uncompressed RecordBatch, checked against its CRC.
	Payload []byte

	settled []*spillwayv1.OffsetRange
	bytes   int64            // counted against the memory bound
	codec   spillwayv1.Codec // of Payload, until the session has unpacked it
	taken   bool             // the sink has it; of the session
	revoked atomic.Bool

	// Of the last pass of Records that reached the end, for the counters: what was to be
	// delivered.
	records, recordBytes int64
	oldestMs             int64 // the earliest timestamp of these, before any transform; 0: none is known

	transforms *transform.Chain // of the delivery; nil: none
	// Of the same pass: what the transforms left out, and what they could not work on. Ascending.
	filtered ranges
	refused  []DeadLetter

	tracer *tracing.Tracer // nil: nobody wants traces
	came   time.Time       // if somebody does
	links  tracing.Links   // of the last pass of Records
}

// Revoked says whether the buffer took the lease back. An ack of it would be refused, and another
// session may be delivering it by now.
func (l *Lease) Revoked() bool { return l.revoked.Load() }

// Revoke is what the session does when the buffer takes the lease back; for tests of sinks.
func (l *Lease) Revoke() { l.revoked.Store(true) }

// NewLease is for tests of sinks.
func NewLease(id uint64, source *spillwayv1.SourcePartition, first, next int64, count int, payload []byte, settled ...*spillwayv1.OffsetRange) *Lease {
	return &Lease{ID: id, Attempt: 1, Source: source, First: first, Next: next, RecordCount: count, Payload: payload, settled: settled, bytes: int64(len(payload)), records: int64(count), recordBytes: int64(len(payload))}
}

// Records calls yield with every record that is to be delivered and its offset, in order, as the
// transforms of the delivery made it, and stops at the first error, yield's own or a malformed
// payload's (recordbatch.ErrMalformed). The record is only valid within yield, the bytes it
// points to as long as the lease. What the transforms leave out or refuse is not yielded; the
// session adds it to the ack.
func (l *Lease) Records(yield func(offset int64, r *recordbatch.Record) error) error {
	var reader recordbatch.Reader
	reader.Reset(l.Payload)
	settled := ranges(l.settled)
	var records, bytes, oldest int64
	l.filtered, l.refused = nil, nil
	l.links.Reset()
	for reader.Next() {
		r := reader.Record()
		offset := l.First + r.OffsetDelta
		if settled.contain(offset) {
			continue
		}
		l.tracer.Note(&l.links, r.Headers)
		size, timestamp := int64(r.Size()), r.TimestampMs
		if l.transforms != nil {
			switch err := l.transforms.Apply(r); {
			case err == transform.ErrDropped:
				l.filtered = appendRange(l.filtered, &spillwayv1.OffsetRange{First: offset, Next: offset + 1})
				continue
			case err != nil:
				l.refused = append(l.refused, DeadLetter{Offset: offset, Reason: err.Error()})
				records++
				bytes += size
				continue
			}
		}
		if err := yield(offset, r); err != nil {
			return err
		}
		records++
		bytes += size
		if timestamp > 0 && (oldest == 0 || timestamp < oldest) {
			oldest = timestamp
		}
	}
	if err := reader.Err(); err != nil {
		return err
	}
	l.records, l.recordBytes, l.oldestMs = records, bytes, oldest
	return nil
}

// ranges are ascending. They are asked for ascending offsets, and forget those that are passed.
type ranges []*spillwayv1.OffsetRange

func (r *ranges) contain(offset int64) bool {
	for len(*r) > 0 && (*r)[0].Next <= offset {
		*r = (*r)[1:]
	}
	return len(*r) > 0 && (*r)[0].First <= offset
}

// Ack is what a sink wants settled at once.
type Ack struct {
	Leases []AckedLease
	State  []StateChange
}

// AckedLease is one lease that is done, or done in part. Its offsets that are no dead letters are
// delivered.
type AckedLease struct {
	Lease       *Lease
	DeadLetters []DeadLetter
	// Only, when not empty, is all that is settled, ascending. The lease is then still held: the
	// sink gives it back with Nack, or acks it once more. When it is given back, what was settled
	// does not come again.
	Only []*spillwayv1.OffsetRange
}

// DeadLetter is a record that can never be delivered, with the reason, or all those from Offset
// up to Next. Those of a lease do not overlap.
type DeadLetter struct {
	Offset int64
	Next   int64 // 0: Offset+1
	Reason string
}

// offsets returns the range that is dead.
func (d *DeadLetter) offsets() *spillwayv1.OffsetRange {
	if d.Next == 0 {
		return &spillwayv1.OffsetRange{First: d.Offset, Next: d.Offset + 1}
	}
	return &spillwayv1.OffsetRange{First: d.Offset, Next: d.Next}
}

// StateChange puts an entry of sink state, or deletes it when Value is nil. Keys are unique over
// all sessions of the subscription.
type StateChange struct {
	Key   string
	Value []byte
	// HoldsMs keeps Watermark.CompleteMs below it while the entry is there; 0 does not.
	HoldsMs int64
}

// Adoption is the sink state of a dead session.
type Adoption struct {
	SessionID uint64
	Entries   []*spillwayv1.StateEntry
}
