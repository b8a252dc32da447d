package buffer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
	"github.com/spillwayio/spillway/services/internal/rpc"
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

// appendStream is one Append stream. Sends come from three goroutines: the one that receives,
// that of the lane, and the handler's, which reports safe offsets and asks for refetches.
type appendStream struct {
	grpc  spillwayv1.BufferService_AppendServer
	q     *queue.Queue
	watch *queue.Watcher
	open  *spillwayv1.AppendOpen
	lane  *lane // of the partitions that are ahead

	arrivals *arrivals // of all streams
	behind   *behind   // of the queue
	taps     *taps
	flows    *flows

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
	if len(open.Cluster) > queue.MaxNameBytes || len(open.Client) > queue.MaxNameBytes {
		return toStatus(fmt.Errorf("%w client %.100q of cluster %.100q: names have at most %d bytes", queue.ErrInvalid, open.Client, open.Cluster, queue.MaxNameBytes))
	}
	o, err := v.s.shard(open.Queue, open.Shard)
	if err != nil {
		return toStatus(err)
	}
	q := o.Queue
	a := &appendStream{grpc: stream, q: q, watch: q.Watch(open.Cluster, open.Client), open: open, lane: newLane(q), arrivals: &v.s.arrivals, behind: &o.behind, taps: &v.s.taps, flows: v.s.flows}
	defer a.watch.Close()
	defer a.lane.close()
	a.flows.connected(a)
	defer a.flows.readNoMore(a)
	log := o.logTo(v.s.deps.Log.With("queue", open.Queue)).With("client", open.Client, "cluster", open.Cluster)
	log.Info("ingest connected")
	if err := a.send(&spillwayv1.AppendResponse{Message: &spillwayv1.AppendResponse_Opened{Opened: &spillwayv1.AppendOpened{Life: q.LedgerID(), Epoch: o.ownerEpoch(),
		WantsRetention: o.cfg.KeepsOld, KeepsPauses: true, PausedSources: a.watch.PausedSources()}}}); err != nil {
		return err
	}
	defer a.finish()
	ctx, cancel := context.WithCancelCause(stream.Context())
	go func() { cancel(a.receive(ctx)) }() // ends with the stream, which ends with this function
	go func() { cancel(a.lane.run(ctx, a.handle, a.refuse)) }()
	err = a.tell(ctx)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	err = streamError(err)
	logEnd(log, "ingest disconnected", err)
	return err
}

// streamError is what a stream ends with: nil at the other side's orderly end, gRPC's own errors
// as they are, and the queue's by the table.
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

// receive handles what comes, but for the partitions that are ahead: theirs goes to the lane, in
// order. Answers to refetches do not wait behind it.
func (a *appendStream) receive(ctx context.Context) error {
	for {
		m, err := a.grpc.Recv()
		if err != nil {
			return err
		}
		if id := partitionOf(m); id.Topic != "" && m.RefetchId == 0 && (a.lane.has(withoutLife(id)) || a.ahead(id, m)) {
			err = a.lane.put(ctx, withoutLife(id), m)
		} else {
			err = a.handle(m)
		}
		if err != nil {
			return err
		}
	}
}

// ahead says whether a message is a batch to be held back.
func (a *appendStream) ahead(id queue.Partition, m *spillwayv1.AppendRequest) bool {
	b := m.GetBatch()
	return b != nil && m.MayWait && a.q.Ahead(id, int64(len(b.Payload)), b.MaxTimestampMs)
}

// partitionOf is the partition that a message is about, if any.
func partitionOf(m *spillwayv1.AppendRequest) queue.Partition {
	var p *spillwayv1.SourcePartition
	switch m := m.Message.(type) {
	case *spillwayv1.AppendRequest_Batch:
		p = m.Batch.GetSource()
	case *spillwayv1.AppendRequest_Assign:
		p = m.Assign.GetSource()
	case *spillwayv1.AppendRequest_Revoke:
		p = m.Revoke.GetSource()
	case *spillwayv1.AppendRequest_Settle:
		p = m.Settle.GetSource()
	case *spillwayv1.AppendRequest_CaughtUp:
		p = m.CaughtUp.GetSource()
	}
	return queue.Partition{Cluster: p.GetCluster(), Topic: p.GetTopic(), Incarnation: p.GetIncarnation(), Number: p.GetPartition()}
}

func withoutLife(id queue.Partition) queue.Partition {
	id.Incarnation = 0
	return id
}

// handle does what a message says.
func (a *appendStream) handle(m *spillwayv1.AppendRequest) (err error) {
	refetch, last := m.RefetchId, m.LastRecord
	switch m := m.Message.(type) {
	case *spillwayv1.AppendRequest_Batch:
		err = a.batch(m.Batch, refetch, last)
	case *spillwayv1.AppendRequest_Assign:
		err = a.assign(m.Assign)
	case *spillwayv1.AppendRequest_Revoke:
		var id queue.Partition
		if id, err = a.partition(m.Revoke.Source); err == nil {
			a.watch.Remove(id)
		}
	case *spillwayv1.AppendRequest_FoundOffset:
		err = a.q.FoundOffset(m.FoundOffset.Id, queue.FoundOffset{Offset: m.FoundOffset.Offset, Gone: m.FoundOffset.Gone, Failed: m.FoundOffset.Error})
	case *spillwayv1.AppendRequest_Settle:
		err = a.settle(m.Settle, refetch)
	case *spillwayv1.AppendRequest_CaughtUp:
		var id queue.Partition
		if id, err = a.partition(m.CaughtUp.Source); err == nil {
			err = a.q.CaughtUp(id, m.CaughtUp.Offset, m.CaughtUp.TimeMs)
		}
	case *spillwayv1.AppendRequest_Topics:
		err = a.list(m.Topics)
	case *spillwayv1.AppendRequest_Retention:
		var id queue.Partition
		if id, err = a.partition(m.Retention.Source); err == nil {
			err = a.q.Old(id, m.Retention.OldOffset)
		}
	case *spillwayv1.AppendRequest_Pause:
		err = a.watch.PauseSource(a.grpc.Context(), m.Pause.Source, m.Pause.Paused)
	default:
		err = fmt.Errorf("%w message %T", queue.ErrInvalid, m)
	}
	return err
}

func (a *appendStream) partition(p *spillwayv1.SourcePartition) (queue.Partition, error) {
	if p.GetTopic() == "" || p.GetPartition() < 0 || p.GetCluster() != a.open.Cluster {
		return queue.Partition{}, fmt.Errorf("%w source partition %.300s: want a topic, a partition from 0 and the stream's cluster %q", queue.ErrInvalid, p, a.open.Cluster)
	}
	if !a.q.Owns(p.Cluster, p.Topic, p.Partition) {
		return queue.Partition{}, fmt.Errorf("%w of partition %d of topic %.300s", errNotOwner, p.Partition, p.Topic)
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
	a.behind.compare(at, m.CommittedOffset)
	if err := a.send(&spillwayv1.AppendResponse{Message: &spillwayv1.AppendResponse_Assigned{Assigned: &spillwayv1.PartitionAssigned{
		Source: fromPartition(at.Partition), Known: at.Known, ResumeOffset: at.Resume, SafeOffset: at.Safe, KnownRecords: fromPrints(at.Prints)}}}); err != nil {
		return err
	}
	return a.watch.Add(at.Partition) // after the answer: it tells the safe offset
}

func (a *appendStream) batch(b *spillwayv1.Batch, refetch uint64, last *spillwayv1.Fingerprint) error {
	id, err := a.partition(b.Source)
	if err != nil {
		return err
	}
	var known bool
	if recordbatch.CRC(b.Payload) != b.PayloadCrc32C {
		err = fmt.Errorf("batch [%d,%d): %w", b.FirstOffset, b.NextOffset, errChecksum)
	} else if b.Codec != spillwayv1.Codec_CODEC_NONE && b.Codec != spillwayv1.Codec_CODEC_ZSTD {
		err = fmt.Errorf("%w batch [%d,%d): codec %s", queue.ErrInvalid, b.FirstOffset, b.NextOffset, b.Codec)
	} else if leave, full := a.arrivals.wait(len(b.Payload)); full != nil {
		err = full
	} else {
		defer leave()
		appended := queue.Batch{Partition: id, Range: queue.Range{First: b.FirstOffset, Next: b.NextOffset},
			Records: b.RecordCount, Codec: int32(b.Codec), CRC: b.PayloadCrc32C, MaxTimestampMs: b.MaxTimestampMs, Payload: b.Payload, Last: toPrint(last)}
		if known, err = a.q.Append(a.grpc.Context(), appended, refetch); err == nil && !known && refetch == 0 {
			a.taps.offer(a.open.Queue, appended)
		}
	}
	return a.answer(b.Source, &spillwayv1.OffsetRange{First: b.FirstOffset, Next: b.NextOffset}, refetch, known, err)
}

func (a *appendStream) settle(m *spillwayv1.SettleRange, refetch uint64) error {
	id, err := a.partition(m.Source)
	if err != nil {
		return err
	}
	if _, known := spillwayv1.Outcome_name[int32(m.Outcome)]; !known || m.Range == nil || m.Outcome == spillwayv1.Outcome_OUTCOME_DROPPED {
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
			return fmt.Errorf("%w topic %.300q with %d partitions: want a name, and at most %d", queue.ErrInvalid, t.Topic, t.Partitions, maxPartitions)
		}
		topics[t.Topic] = t.Partitions
	}
	if err := a.watch.ListTopics(m.Source, topics); err != nil {
		return err
	}
	return a.flows.read(a, m)
}

// answer reports the result of a batch or settle. Errors about the queue as a whole end the
// stream.
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

// refuse answers a batch that is to come again when the deliveries have taken more.
func (a *appendStream) refuse(b *spillwayv1.Batch) error {
	r := &spillwayv1.OffsetRange{First: b.FirstOffset, Next: b.NextOffset}
	return a.answer(b.Source, r, 0, false, fmt.Errorf("batch [%d,%d): %w", b.FirstOffset, b.NextOffset, queue.ErrAhead))
}

// tell reports safe offsets and what is paused, and asks for refetches, until the queue is closed
// or ctx ends.
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
		if news.Paused != nil && a.open.HearsPauses {
			if err := a.send(&spillwayv1.AppendResponse{Message: &spillwayv1.AppendResponse_PausedSources{
				PausedSources: &spillwayv1.PausedSources{Sources: news.Paused}}}); err != nil {
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
	if _, known := spillwayv1.Ordering_name[int32(open.GetOrdering())]; !known || open == nil || open.Ordering == spillwayv1.Ordering_ORDERING_UNSPECIFIED {
		return toStatus(fmt.Errorf("%w stream: the first message must be open, with an ordering", queue.ErrInvalid))
	}
	queueName, sub, err := splitName(open.Subscription)
	var o openShard
	if err == nil {
		o, err = v.s.shard(queueName, open.Shard)
	}
	if err != nil {
		return toStatus(err)
	}
	q := o.Queue
	view, _ := q.Subscription(sub) // when it is not there, OpenSession says so
	headers := v.s.headers(o, view)
	if len(headers) > 0 && !open.FiltersHeaders {
		return toStatus(fmt.Errorf("%w: %s has headers, which this version of the delivery does not know: upgrade the delivery", errOutdated, open.Subscription))
	}
	session, err := q.OpenSession(sub, open.Consumer, open.Ordering == spillwayv1.Ordering_ORDERING_PARTITION)
	if err != nil {
		return toStatus(err)
	}
	defer session.Close()
	if open.Watermarks {
		session.WantWatermarks()
	}
	paused := false
	if open.Delivery != "" {
		if paused, err = session.SetDelivery(open.Delivery); err != nil {
			return toStatus(err)
		}
	}
	log := o.logTo(v.s.deps.Log).With("subscription", open.Subscription, "session", session.ID, "consumer", open.Consumer)
	log.Info("session opened", "ordering", open.Ordering)
	var stalled atomic.Bool
	flight := v.s.flight.join(func() {
		stalled.Store(true)
		rpc.CloseConnection(stream.Context())
	})
	defer flight.leave()
	c := &consumeStream{grpc: stream, q: q, session: session, flight: flight, copying: &v.s.copying, unreadable: func(err error) {
		log.Error("batch cannot be read from the store; it is tried again later", "error", err)
	}}
	if err := stream.Send(&spillwayv1.ConsumeResponse{Message: &spillwayv1.ConsumeResponse_Opened{Opened: &spillwayv1.ConsumeOpened{
		SessionId: session.ID, LeaseDuration: durationpb.New(o.cfg.LeaseDuration), LedgerId: q.LedgerID(), DeadLetterRanges: true, Headers: headers,
		Epoch: o.ownerEpoch(), KeepsPauses: true, Paused: paused, HearsTroubles: true}}}); err != nil {
		return err
	}
	if open.Target != nil {
		view, err := q.Subscription(sub)
		if err == nil {
			err = v.s.flows.produce(c, open.Subscription, view.Topics, open.Target)
		}
		if err != nil {
			return toStatus(err)
		}
		c.flows = v.s.flows
		defer c.flows.produceNoMore(c)
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	go func() { cancel(c.receive()) }() // ends with the stream, which ends with this function
	err = c.tell(ctx)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if stalled.Load() {
		err = errStalled
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
	flight     *flightStream
	unreadable func(error)
	copying    *sync.Mutex // Service.copying

	flows *flows            // nil: it does not want to know
	told  *spillwayv1.Flows // what it was told last
}

func (c *consumeStream) receive() error {
	for {
		m, err := c.grpc.Recv()
		if err == nil {
			err = c.session.AwaitTaken(c.grpc.Context())
		}
		if err != nil {
			return err
		}
		switch m := m.Message.(type) {
		case *spillwayv1.ConsumeRequest_Credit:
			err = c.session.AddCredit(m.Credit.Bytes)
		case *spillwayv1.ConsumeRequest_Ack:
			ack := toAck(m.Ack)
			c.copies(&ack)
			err = c.session.Ack(ack)
		case *spillwayv1.ConsumeRequest_Nack:
			delay := time.Duration(0)
			if m.Nack.Delay != nil {
				if delay = m.Nack.Delay.AsDuration(); delay == 0 {
					delay = -1
				}
			}
			c.session.Nack(m.Nack.LeaseId, delay, m.Nack.Reason)
		case *spillwayv1.ConsumeRequest_Extend:
			c.session.Extend(m.Extend.LeaseIds)
		case *spillwayv1.ConsumeRequest_Pause:
			err = c.session.PauseDelivery(c.grpc.Context(), m.Pause.Paused)
		case *spillwayv1.ConsumeRequest_Trouble:
			c.session.SetTrouble(queue.Trouble{Error: queue.CutReason(m.Trouble.Reason), Since: m.Trouble.Since.AsTime()})
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
			al.DeadLetters = append(al.DeadLetters, queue.DeadLetter{Offset: d.Offset, Next: d.Next, Reason: queue.CutReason(d.Reason)})
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
	wait, err := c.tellFlows(ctx)
	if err != nil {
		return err
	}
	for {
		events, err := c.session.Events(wait)
		if err != nil && wait.Err() != nil && ctx.Err() == nil {
			if wait, err = c.tellFlows(ctx); err == nil {
				continue
			}
		}
		if err != nil {
			return err
		}
		for i, e := range events {
			events[i] = queue.Event{} // its payload goes when it is sent
			if e.Lease == nil {
				err = c.grpc.Send(message(e))
			} else {
				err = c.lease(ctx, e.Lease)
			}
			if err != nil {
				return err
			}
		}
	}
}

// lease loads a lease's payload, once there is memory for it, and sends it. What the session does
// not hold any more it leaves out.
func (c *consumeStream) lease(ctx context.Context, l *queue.Lease) error {
	sent, err := c.flight.acquire(ctx, l.Size())
	if err != nil {
		return err
	}
	if err := c.q.Load(l); err != nil {
		sent()
		switch {
		case !c.session.Holds(l.ID): // it expired, or was settled and let go of in the meantime
		case errors.Is(err, queue.ErrDamaged):
			c.session.Damaged(l.ID, err)
		default:
			c.unreadable(err)
			c.session.Nack(l.ID, unreadableRetry, "the store cannot be read")
		}
		_ = c.session.AddCredit(max(l.Size(), 1)) // a dead session needs none
		return nil
	}
	return c.grpc.SendMsg(&rpc.Tracked{Sent: sent, Message: &spillwayv1.ConsumeResponse{Message: &spillwayv1.ConsumeResponse_Lease{Lease: &spillwayv1.Lease{
		LeaseId: l.ID, Attempt: int32(l.Attempt), Settled: fromRanges(l.Settled), Epoch: l.Epoch, Last: l.Last,
		Batch: &spillwayv1.Batch{Source: fromPartition(l.Batch.Partition), FirstOffset: l.Batch.First, NextOffset: l.Batch.Next,
			RecordCount: l.Batch.Records, Codec: spillwayv1.Codec(l.Batch.Codec), PayloadCrc32C: l.Batch.CRC,
			MaxTimestampMs: l.Batch.MaxTimestampMs, Payload: l.Batch.Payload}}}}})
}

// message is the wire form of an event that is not a lease.
func message(e queue.Event) *spillwayv1.ConsumeResponse {
	switch {
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
	case e.Paused != nil:
		return &spillwayv1.ConsumeResponse{Message: &spillwayv1.ConsumeResponse_Paused{Paused: &spillwayv1.DeliveryPaused{Paused: *e.Paused}}}
	default:
		return &spillwayv1.ConsumeResponse{Message: &spillwayv1.ConsumeResponse_Revoked{Revoked: &spillwayv1.Revoked{LeaseIds: e.Revoked}}}
	}
}
