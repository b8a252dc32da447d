package buffer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// unreadableRetry is when a batch is tried again that could not be read from the store.
const unreadableRetry = 30 * time.Second

// maxPartitions bounds what a topic may be said to have.
const maxPartitions = 1_000_000

// server is the data plane.
type server struct {
	spillwayv1.UnimplementedBufferServiceServer
	s *Service
}

// appendStream is one Append stream. Sends come from two goroutines: the one that appends, and the
// handler's, which reports safe offsets and asks for refetches.
type appendStream struct {
	grpc  spillwayv1.BufferService_AppendServer
	q     *queue.Queue
	watch *queue.Watcher
	open  *spillwayv1.AppendOpen

	sendMu   sync.Mutex
	finished bool // the handler returns: gRPC allows no more sends
}

func (a *appendStream) send(m *spillwayv1.AppendResponse) error {
	a.sendMu.Lock()
	defer a.sendMu.Unlock()
	if a.finished {
		return context.Canceled
	}
	return a.grpc.Send(m)
}

func (a *appendStream) finish() {
	a.sendMu.Lock()
	defer a.sendMu.Unlock()
	a.finished = true
}

// Append implements BufferService.
func (v *server) Append(stream spillwayv1.BufferService_AppendServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	if open == nil || open.Cluster == "" {
		return toStatus(fmt.Errorf("%w stream: the first message must be open, with a cluster", queue.ErrInvalid))
	}
	q, err := v.s.queue(open.Queue)
	if err != nil {
		return toStatus(err)
	}
	a := &appendStream{grpc: stream, q: q, watch: q.Watch(open.Cluster, open.Client), open: open}
	defer a.watch.Close()
	log := v.s.deps.Log.With("queue", open.Queue, "client", open.Client, "cluster", open.Cluster)
	log.Info("ingest connected")
	if err := a.send(&spillwayv1.AppendResponse{Message: &spillwayv1.AppendResponse_Opened{Opened: &spillwayv1.AppendOpened{}}}); err != nil {
		return err
	}
	defer a.finish()
	ctx, cancel := context.WithCancelCause(stream.Context())
	go func() { cancel(a.receive()) }() // ends with the stream, which ends with this function
	err = a.tell(ctx)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	err = streamError(err)
	logEnd(log, "ingest disconnected", err)
	return err
}

// streamError is what a stream ends with: nil at the other side's orderly end, gRPC's own errors as
// they are, and the queue's by the table.
func streamError(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return toStatus(err)
}

// logEnd tells that a stream has ended, and why when it was not the other side's wish.
func logEnd(log *slog.Logger, what string, err error) {
	if err == nil || status.Code(err) == codes.Canceled {
		log.Info(what)
		return
	}
	log.Info(what, "error", err)
}

func (a *appendStream) receive() error {
	for {
		m, err := a.grpc.Recv()
		if err != nil {
			return err
		}
		refetch, last, mayWait := m.RefetchId, m.LastRecord, m.MayWait
		switch m := m.Message.(type) {
		case *spillwayv1.AppendRequest_Batch:
			err = a.batch(m.Batch, refetch, last, mayWait)
		case *spillwayv1.AppendRequest_Assign:
			err = a.assign(m.Assign)
		case *spillwayv1.AppendRequest_Revoke:
			var id queue.Partition
			if id, err = a.partition(m.Revoke.Source); err == nil {
				a.watch.Remove(id)
			}
		case *spillwayv1.AppendRequest_FoundOffset:
			err = a.q.FoundOffset(m.FoundOffset.Id, m.FoundOffset.Offset)
		case *spillwayv1.AppendRequest_Settle:
			err = a.settle(m.Settle, refetch)
		case *spillwayv1.AppendRequest_CaughtUp:
			var id queue.Partition
			if id, err = a.partition(m.CaughtUp.Source); err == nil {
				a.q.CaughtUp(id, m.CaughtUp.Offset, m.CaughtUp.TimeMs)
			}
		case *spillwayv1.AppendRequest_Topics:
			err = a.list(m.Topics)
		default:
			err = fmt.Errorf("%w message %T", queue.ErrInvalid, m)
		}
		if err != nil {
			return err
		}
	}
}

func (a *appendStream) partition(p *spillwayv1.SourcePartition) (queue.Partition, error) {
	if p.GetTopic() == "" || p.GetPartition() < 0 || p.GetCluster() != a.open.Cluster {
		return queue.Partition{}, fmt.Errorf("%w source partition %v: want a topic, a partition from 0 and the stream's cluster %q", queue.ErrInvalid, p, a.open.Cluster)
	}
	return queue.Partition{Cluster: p.Cluster, Topic: p.Topic, Incarnation: p.Incarnation, Number: p.Partition}, nil
}

func fromPartition(p queue.Partition) *spillwayv1.SourcePartition {
	return &spillwayv1.SourcePartition{Cluster: p.Cluster, Topic: p.Topic, Incarnation: p.Incarnation, Partition: p.Number}
}

func fromRange(r queue.Range) *spillwayv1.OffsetRange {
	return &spillwayv1.OffsetRange{First: r.First, Next: r.Next}
}

func fromRanges(rs []queue.Range) []*spillwayv1.OffsetRange {
	var out []*spillwayv1.OffsetRange
	for _, r := range rs {
		out = append(out, fromRange(r))
	}
	return out
}

func toPrint(f *spillwayv1.Fingerprint) *queue.Fingerprint {
	if f == nil {
		return nil
	}
	return &queue.Fingerprint{Offset: f.Offset, TimestampMs: f.TimestampMs, CRC: f.Crc32C}
}

func fromPrints(prints []queue.Fingerprint) []*spillwayv1.Fingerprint {
	var out []*spillwayv1.Fingerprint
	for _, f := range prints {
		out = append(out, &spillwayv1.Fingerprint{Offset: f.Offset, TimestampMs: f.TimestampMs, Crc32C: f.CRC})
	}
	return out
}

func (a *appendStream) assign(m *spillwayv1.AssignPartition) error {
	id, err := a.partition(m.Source)
	if err != nil {
		return err
	}
	at, err := a.q.Assign(id, m.Recreated)
	if err != nil {
		return err
	}
	defer a.watch.Add(at.Partition) // after the answer: it tells the safe offset
	return a.send(&spillwayv1.AppendResponse{Message: &spillwayv1.AppendResponse_Assigned{Assigned: &spillwayv1.PartitionAssigned{
		Source: fromPartition(at.Partition), Known: at.Known, ResumeOffset: at.Resume, SafeOffset: at.Safe, KnownRecords: fromPrints(at.Prints)}}})
}

func (a *appendStream) batch(b *spillwayv1.Batch, refetch uint64, last *spillwayv1.Fingerprint, mayWait bool) error {
	id, err := a.partition(b.Source)
	if err != nil {
		return err
	}
	var known bool
	if recordbatch.CRC(b.Payload) != b.PayloadCrc32C {
		err = fmt.Errorf("batch [%d,%d): %w", b.FirstOffset, b.NextOffset, errChecksum)
	} else if b.Codec != spillwayv1.Codec_CODEC_NONE && b.Codec != spillwayv1.Codec_CODEC_ZSTD {
		err = fmt.Errorf("%w batch [%d,%d): codec %s", queue.ErrInvalid, b.FirstOffset, b.NextOffset, b.Codec)
	} else {
		if refetch == 0 && mayWait {
			if err := a.q.Pace(a.grpc.Context(), b.MaxTimestampMs); err != nil {
				return err
			}
		}
		known, err = a.q.Append(a.grpc.Context(), queue.Batch{Partition: id, Range: queue.Range{First: b.FirstOffset, Next: b.NextOffset},
			Records: b.RecordCount, Codec: int32(b.Codec), CRC: b.PayloadCrc32C, MaxTimestampMs: b.MaxTimestampMs, Payload: b.Payload, Last: toPrint(last)}, refetch)
	}
	return a.answer(b.Source, &spillwayv1.OffsetRange{First: b.FirstOffset, Next: b.NextOffset}, refetch, known, err)
}

func (a *appendStream) settle(m *spillwayv1.SettleRange, refetch uint64) error {
	id, err := a.partition(m.Source)
	if err != nil {
		return err
	}
	if m.Range == nil || m.Outcome == spillwayv1.Outcome_OUTCOME_DROPPED {
		err = fmt.Errorf("%w settle: want a range, and an outcome other than %s", queue.ErrInvalid, m.Outcome)
	} else {
		err = a.q.Settle(id, queue.Range{First: m.Range.First, Next: m.Range.Next}, queue.Outcome(m.Outcome), m.Reason, refetch)
	}
	return a.answer(m.Source, m.Range, refetch, false, err)
}

func (a *appendStream) list(m *spillwayv1.SourceTopics) error {
	topics := make(map[string]int32, len(m.Topics))
	for _, t := range m.Topics {
		if t.Topic == "" || t.Partitions < 0 || t.Partitions > maxPartitions {
			return fmt.Errorf("%w topic %q with %d partitions: want a name, and at most %d", queue.ErrInvalid, t.Topic, t.Partitions, maxPartitions)
		}
		topics[t.Topic] = t.Partitions
	}
	a.q.ListTopics(a.open.Cluster, m.Source, topics)
	return nil
}

// answer reports the result of a batch or settle. Errors about the queue as a whole end the stream.
func (a *appendStream) answer(source *spillwayv1.SourcePartition, r *spillwayv1.OffsetRange, refetch uint64, known bool, err error) error {
	if isGone(err) {
		return err
	}
	m := &spillwayv1.Appended{Source: source, Range: r, Duplicate: known, RefetchId: refetch}
	if err != nil {
		m.Status = status.Convert(toStatus(err)).Proto()
	}
	return a.send(&spillwayv1.AppendResponse{Message: &spillwayv1.AppendResponse_Appended{Appended: m}})
}

// tell reports safe offsets and asks for refetches until the queue is closed or ctx ends.
func (a *appendStream) tell(ctx context.Context) error {
	for {
		news, err := a.watch.Next(ctx)
		if err != nil {
			return err
		}
		for id, offset := range news.Risen {
			if err := a.send(&spillwayv1.AppendResponse{Message: &spillwayv1.AppendResponse_Safe{
				Safe: &spillwayv1.SafeOffset{Source: fromPartition(id), Offset: offset}}}); err != nil {
				return err
			}
		}
		for _, r := range news.Refetches {
			if err := a.send(&spillwayv1.AppendResponse{Message: &spillwayv1.AppendResponse_Refetch{
				Refetch: &spillwayv1.Refetch{Id: r.ID, Source: fromPartition(r.Partition), Range: fromRange(r.Range), KnownRecords: fromPrints(r.Prints)}}}); err != nil {
				return err
			}
		}
		for _, f := range news.Finds {
			if err := a.send(&spillwayv1.AppendResponse{Message: &spillwayv1.AppendResponse_FindOffset{
				FindOffset: &spillwayv1.FindOffset{Id: f.ID, Source: fromPartition(f.Partition), TimestampMs: f.TimestampMs}}}); err != nil {
				return err
			}
		}
	}
}

// Consume implements BufferService.
func (v *server) Consume(stream spillwayv1.BufferService_ConsumeServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	if open == nil || open.Ordering == spillwayv1.Ordering_ORDERING_UNSPECIFIED {
		return toStatus(fmt.Errorf("%w stream: the first message must be open, with an ordering", queue.ErrInvalid))
	}
	q, sub, err := v.s.subscription(open.Subscription)
	if err != nil {
		return toStatus(err)
	}
	session, err := q.OpenSession(sub, open.Consumer, open.Ordering == spillwayv1.Ordering_ORDERING_PARTITION)
	if err != nil {
		return toStatus(err)
	}
	defer session.Close()
	if open.Watermarks {
		session.WantWatermarks()
	}
	log := v.s.deps.Log.With("subscription", open.Subscription, "session", session.ID, "consumer", open.Consumer)
	log.Info("session opened", "ordering", open.Ordering)
	c := &consumeStream{grpc: stream, q: q, session: session, unreadable: func(err error) {
		log.Error("batch cannot be read from the store; it is tried again later", "error", err)
	}}
	if err := stream.Send(&spillwayv1.ConsumeResponse{Message: &spillwayv1.ConsumeResponse_Opened{Opened: &spillwayv1.ConsumeOpened{
		SessionId: session.ID, LeaseDuration: durationpb.New(v.s.leaseDuration(open.Subscription))}}}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	go func() { cancel(c.receive()) }() // ends with the stream, which ends with this function
	err = c.tell(ctx)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	err = streamError(err)
	logEnd(log, "session closed", err)
	return err
}

// consumeStream is one session's stream.
type consumeStream struct {
	grpc       spillwayv1.BufferService_ConsumeServer
	q          *queue.Queue
	session    *queue.Session
	unreadable func(error)
}

func (c *consumeStream) receive() error {
	for {
		m, err := c.grpc.Recv()
		if err != nil {
			return err
		}
		switch m := m.Message.(type) {
		case *spillwayv1.ConsumeRequest_Credit:
			err = c.session.AddCredit(m.Credit.Bytes)
		case *spillwayv1.ConsumeRequest_Ack:
			err = c.session.Ack(toAck(m.Ack))
		case *spillwayv1.ConsumeRequest_Nack:
			delay := time.Duration(0)
			if m.Nack.Delay != nil {
				if delay = m.Nack.Delay.AsDuration(); delay == 0 {
					delay = -1
				}
			}
			c.session.Nack(m.Nack.LeaseId, delay)
		case *spillwayv1.ConsumeRequest_Extend:
			c.session.Extend(m.Extend.LeaseIds)
		default:
			err = fmt.Errorf("%w message %T", queue.ErrInvalid, m)
		}
		if err != nil {
			return err
		}
	}
}

func toAck(m *spillwayv1.Ack) queue.Ack {
	a := queue.Ack{ID: m.Id}
	for _, l := range m.Leases {
		al := queue.AckedLease{ID: l.LeaseId}
		for _, r := range l.Filtered {
			al.Filtered = append(al.Filtered, queue.Range{First: r.First, Next: r.Next})
		}
		for _, d := range l.DeadLetters {
			al.DeadLetters = append(al.DeadLetters, queue.DeadLetter{Offset: d.Offset, Reason: d.Reason})
		}
		for _, r := range l.Only {
			al.Only = append(al.Only, queue.Range{First: r.First, Next: r.Next})
		}
		a.Leases = append(a.Leases, al)
	}
	for _, s := range m.StateChanges {
		c := queue.StateChange{Key: s.Key, Value: s.Value, HoldsMs: s.HoldsMs}
		if s.Value == nil && s.ProtoReflect().Has(stateValue) {
			c.Value = []byte{}
		}
		a.State = append(a.State, c)
	}
	return a
}

// stateValue tells an empty value, which is one, from an absent one, which deletes.
var stateValue = (&spillwayv1.StateChange{}).ProtoReflect().Descriptor().Fields().ByName("value")

// tell sends the session's events until it dies or ctx ends.
func (c *consumeStream) tell(ctx context.Context) error {
	for {
		events, err := c.session.Events(ctx)
		if err != nil {
			return err
		}
		for _, e := range events {
			m := c.message(e)
			if m == nil {
				continue
			}
			if err := c.grpc.Send(m); err != nil {
				return err
			}
		}
	}
}

// message is the wire form of an event; nil when there is nothing to send.
func (c *consumeStream) message(e queue.Event) *spillwayv1.ConsumeResponse {
	switch {
	case e.Lease != nil:
		l := e.Lease
		if err := c.q.Load(l); err != nil {
			switch {
			case !c.session.Holds(l.ID): // it was settled and let go of in the meantime
			case errors.Is(err, queue.ErrDamaged):
				c.session.Damaged(l.ID, err)
			default:
				c.unreadable(err)
				c.session.Nack(l.ID, unreadableRetry)
			}
			_ = c.session.AddCredit(max(l.Size(), 1)) // a dead session needs none
			return nil
		}
		return &spillwayv1.ConsumeResponse{Message: &spillwayv1.ConsumeResponse_Lease{Lease: &spillwayv1.Lease{
			LeaseId: l.ID, Attempt: int32(l.Attempt), Settled: fromRanges(l.Settled), Epoch: l.Epoch, Last: l.Last,
			Batch: &spillwayv1.Batch{Source: fromPartition(l.Batch.Partition), FirstOffset: l.Batch.First, NextOffset: l.Batch.Next,
				RecordCount: l.Batch.Records, Codec: spillwayv1.Codec(l.Batch.Codec), PayloadCrc32C: l.Batch.CRC,
				MaxTimestampMs: l.Batch.MaxTimestampMs, Payload: l.Batch.Payload}}}}
	case e.Ack != nil:
		r := &spillwayv1.AckResult{Id: e.Ack.ID}
		if e.Ack.Err != nil {
			r.Status = status.Convert(toStatus(e.Ack.Err)).Proto()
		}
		return &spillwayv1.ConsumeResponse{Message: &spillwayv1.ConsumeResponse_AckResult{AckResult: r}}
	case e.Adopt != nil:
		a := &spillwayv1.Adopt{SessionId: e.Adopt.SessionID}
		for key, value := range e.Adopt.State {
			a.Entries = append(a.Entries, &spillwayv1.StateEntry{Key: key, Value: value})
		}
		return &spillwayv1.ConsumeResponse{Message: &spillwayv1.ConsumeResponse_Adopt{Adopt: a}}
	case e.Watermark != nil:
		return &spillwayv1.ConsumeResponse{Message: &spillwayv1.ConsumeResponse_Watermark{
			Watermark: &spillwayv1.Watermark{PassedMs: e.Watermark.Passed, CompleteMs: e.Watermark.Complete}}}
	default:
		return &spillwayv1.ConsumeResponse{Message: &spillwayv1.ConsumeResponse_Revoked{Revoked: &spillwayv1.Revoked{LeaseIds: e.Revoked}}}
	}
}
