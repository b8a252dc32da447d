package delivery

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// maxPayloadBytes bounds a batch after decompression.
const maxPayloadBytes = 4 * rpc.MaxMessageBytes

var (
	errDamaged  = errors.New("damaged batch")
	errProtocol = errors.New("the buffer broke the protocol")
)

// run sends, extends and hands out until the stream ends or the session is closed.
func (s *session) run() {
	leases := s.leases
	closeLeases := func() {
		if leases != nil {
			close(s.leases)
			leases = nil
		}
	}
	defer closeLeases()
	extend := time.NewTicker(s.duration / 3)
	defer extend.Stop()
	for {
		next := s.next()
		if next.packed != nil {
			s.unpackHeld(next.packed)
			continue
		}
		for _, m := range next.messages {
			if s.stream.Send(m) != nil {
				<-s.lost // the reason is receive's to find
				return
			}
		}
		if next.draining {
			closeLeases()
		}
		if next.closing {
			// A failure means that the stream has ended already.
			_ = s.stream.CloseSend()
			<-s.lost
			return
		}

		to := leases
		if next.lease == nil {
			to = nil
		}
		toAdopt := s.adoptions
		if next.adoption == nil {
			toAdopt = nil
		}
		select {
		case to <- next.lease:
			s.handedOut(next.lease)
		case toAdopt <- next.adoption:
			s.handedOver()
		case <-s.wake:
		case <-extend.C:
			s.extendHeld()
		case <-s.lost:
			return
		}
	}
}

// todo is what run does next.
type todo struct {
	messages          []*spillwayv1.ConsumeRequest
	lease             *Lease
	packed            *Lease // to be unpacked before anything else is done
	adoption          *Adoption
	draining, closing bool
}

func (s *session) next() todo {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		// Later ones first: giving back one takes the later ones of its partition with it.
		for len(s.waiting) > 0 {
			last := len(s.waiting) - 1
			l := s.waiting[last]
			s.waiting = s.waiting[:last]
			s.releaseLocked(l)
			s.nackLocked(l.ID, durationpb.New(0), errDraining)
		}
	}
	if l := s.firstLocked(); l != nil && l.codec != spillwayv1.Codec_CODEC_NONE && s.unpacksLocked(l) {
		return todo{packed: l}
	}
	t := todo{messages: s.outbox, draining: s.draining, closing: s.closing}
	s.outbox = nil
	if grant := s.grantLocked(); grant > 0 {
		s.credit += grant
		t.messages = append(t.messages, &spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Credit{Credit: &spillwayv1.Credit{Bytes: grant}}})
	}
	if l := s.firstLocked(); l != nil && l.codec == spillwayv1.Codec_CODEC_NONE {
		t.lease = l
	}
	if len(s.inherited) > 0 {
		t.adoption = s.inherited[0]
	}
	return t
}

// firstLocked is the lease that the sink is to have next, if any.
func (s *session) firstLocked() *Lease {
	if len(s.waiting) == 0 || s.paused || s.stopped {
		return nil
	}
	return s.waiting[0]
}

// unpacksLocked says whether there is memory for what a payload decompresses to, beside what the
// sink has: a few compressed bytes can be any number then. One always may be.
func (s *session) unpacksLocked(l *Lease) bool {
	size := int64(maxPayloadBytes)
	var h zstd.Header
	if h.Decode(l.Payload) == nil && h.HasFCS {
		size = int64(min(h.FrameContentSize, maxPayloadBytes))
	}
	return s.taken == 0 || s.taken+size <= s.memory
}

// unpackHeld decompresses the payload of a lease that waits for the sink, or gives it back.
func (s *session) unpackHeld(l *Lease) {
	payload, err := s.unpack(l)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[l.ID] != l { // revoked meanwhile
		return
	}
	s.heldBytes -= l.bytes
	l.Payload, l.codec, l.bytes = payload, spillwayv1.Codec_CODEC_NONE, int64(len(payload))
	l.recordBytes = l.bytes
	s.heldBytes += l.bytes
	if err != nil {
		s.waiting = slices.DeleteFunc(s.waiting, func(x *Lease) bool { return x == l })
		s.releaseLocked(l)
		s.damagedLocked(l, err)
	}
}

// damagedLocked gives back what cannot be read.
func (s *session) damagedLocked(l *Lease, err error) {
	s.counters.damaged.Add(1)
	s.log.Error("cannot read batch; giving it back", "source", l.Source, "first_offset", l.First, "next_offset", l.Next, "attempt", l.Attempt, "error", err)
	s.nackLocked(l.ID, nil, err)
}

// grantLocked is the credit to grant now. Small amounts are saved up while the buffer has some
// left.
func (s *session) grantLocked() int64 {
	if s.paused || s.stopped || s.draining {
		return 0
	}
	grant := s.memory - s.credit - s.heldBytes
	if s.credit > 0 && grant < s.memory/8 {
		return 0
	}
	return grant
}

func (s *session) handedOut(l *Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) > 0 && s.waiting[0] == l { // else it was revoked meanwhile
		s.waiting = s.waiting[1:]
	}
	if s.held[l.ID] == l {
		l.taken = true
		s.taken += l.bytes
	}
}

func (s *session) handedOver() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inherited = s.inherited[1:]
}

func (s *session) extendHeld() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.held) == 0 {
		return
	}
	ids := make([]uint64, 0, len(s.held))
	for id := range s.held {
		ids = append(ids, id)
	}
	s.outbox = append(s.outbox, &spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Extend{Extend: &spillwayv1.Extend{LeaseIds: ids}}})
}

// receive takes messages off the stream until it ends.
func (s *session) receive() {
	for {
		m, err := s.stream.Recv()
		if err == nil {
			err = s.accept(m)
		} else {
			err = rpc.Explain(err, "buffer", s.buffer)
		}
		if err != nil {
			s.end(err)
			return
		}
		s.wakeUp()
	}
}

// end makes err known to all who wait. Whether their acks took effect is unknown.
func (s *session) end(err error) {
	if errors.Is(err, io.EOF) {
		err = errors.New("the buffer ended the stream")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = fmt.Errorf("%w: %w", ErrSessionLost, err)
	if status.Code(err) == codes.NotFound {
		s.err = fmt.Errorf("%w: %w", ErrSubscriptionGone, s.err)
	}
	for _, p := range s.acks {
		p.result <- s.err
	}
	for _, l := range s.held {
		l.Revoke()
	}
	clear(s.acks)
	clear(s.held)
	s.heldBytes, s.taken, s.waiting, s.inherited, s.outbox = 0, 0, nil, nil, nil
	s.cancel()
	s.time.leave(s)
	close(s.lost)
}

func (s *session) accept(m *spillwayv1.ConsumeResponse) error {
	switch m := m.Message.(type) {
	case *spillwayv1.ConsumeResponse_Lease:
		return s.leased(m.Lease)
	case *spillwayv1.ConsumeResponse_AckResult:
		return s.answered(m.AckResult)
	case *spillwayv1.ConsumeResponse_Revoked:
		s.revoked(m.Revoked.LeaseIds)
	case *spillwayv1.ConsumeResponse_Adopt:
		s.mu.Lock()
		s.inherited = append(s.inherited, &Adoption{SessionID: m.Adopt.SessionId, Entries: m.Adopt.Entries})
		s.mu.Unlock()
	case *spillwayv1.ConsumeResponse_Watermark:
		s.time.tell(s, Watermark{PassedMs: m.Watermark.PassedMs, CompleteMs: m.Watermark.CompleteMs})
	case *spillwayv1.ConsumeResponse_Flows:
		s.flows.Store(m.Flows)
	case *spillwayv1.ConsumeResponse_Paused:
		s.hear(m.Paused.Paused)
	default:
		return fmt.Errorf("%w: unexpected message %T", errProtocol, m)
	}
	return nil
}

func (s *session) leased(m *spillwayv1.Lease) error {
	b := m.Batch
	if b == nil || b.Source == nil {
		return fmt.Errorf("%w: lease %d without batch or source", errProtocol, m.LeaseId)
	}
	l := &Lease{ID: m.LeaseId, Attempt: int(m.Attempt), Epoch: m.Epoch, Last: m.Last, Source: b.Source, First: b.FirstOffset, Next: b.NextOffset,
		RecordCount: int(b.RecordCount), Payload: b.Payload, codec: b.Codec, settled: m.Settled, bytes: int64(len(b.Payload)),
		records: int64(b.RecordCount), recordBytes: int64(len(b.Payload)), transforms: s.transforms.Clone()}
	s.tracing.lease(l)
	err := checkPayload(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.credit -= int64(len(b.Payload))
	if m.Attempt > 1 {
		s.counters.redeliveries.Add(1)
	}
	switch {
	case s.draining:
		// Given back with all the others when the stream ends. A nack now would only have it
		// leased to this session again while credit is left.
	case err != nil:
		s.damagedLocked(l, err)
	default:
		s.held[l.ID] = l
		s.heldBytes += l.bytes
		s.waiting = append(s.waiting, l)
	}
	return nil
}

// checkPayload says what is wrong with a payload before it is decompressed.
func checkPayload(b *spillwayv1.Batch) error {
	if crc := recordbatch.CRC(b.Payload); crc != b.PayloadCrc32C {
		return fmt.Errorf("%w: CRC32C is %08x, want %08x", errDamaged, crc, b.PayloadCrc32C)
	}
	if b.Codec != spillwayv1.Codec_CODEC_NONE && b.Codec != spillwayv1.Codec_CODEC_ZSTD {
		return fmt.Errorf("%w: unknown codec %s", errDamaged, b.Codec)
	}
	return nil
}

// unpack decompresses a payload. Only run calls it.
func (s *session) unpack(l *Lease) ([]byte, error) {
	payload, err := s.zstd.DecodeAll(l.Payload, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: decompress: %w", errDamaged, err)
	}
	return payload, nil
}

func (s *session) answered(m *spillwayv1.AckResult) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.acks[m.Id]
	if p == nil {
		return fmt.Errorf("%w: result of unknown ack %d", errProtocol, m.Id)
	}
	err := rpc.StatusError(m.Status)
	switch status.Code(err) {
	case codes.OK:
	case codes.FailedPrecondition:
		delete(s.acks, m.Id)
		s.counters.refusedAcks.Add(1)
		p.result <- fmt.Errorf("%w: %w", ErrRefused, err)
		return nil
	default: // says nothing about what became of the ack, so it stays unanswered
		return fmt.Errorf("ack %d: %w", m.Id, err)
	}
	delete(s.acks, m.Id)
	for _, l := range p.leases {
		if s.held[l.Lease.ID] == l.Lease && len(l.Only) == 0 {
			s.releaseLocked(l.Lease)
		}
		n := s.counters.settled(l, p.part)
		if len(l.DeadLetters) > 0 && n > 0 { // a line for each batch, since nothing else names the records
			// Reasons may quote records, which logs do not.
			s.log.Error("records are dead-lettered; spillway dead-letters says why", "source", l.Lease.Source, "records", n,
				"first_offset", l.DeadLetters[0].Offset)
		}
	}
	p.result <- nil
	s.accepted.Store(true)
	if s.acked != nil {
		s.acked()
	}
	return nil
}

func (s *session) revoked(ids []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if l := s.held[id]; l != nil {
			l.Revoke()
			s.releaseLocked(l)
		}
	}
	s.waiting = slices.DeleteFunc(s.waiting, (*Lease).Revoked)
}
