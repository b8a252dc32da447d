package delivery

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// An ack is one message, and all or nothing. What may be large in it need not be: dead letters do
// not depend on the sink's state, so those that do not fit are settled before the rest, a part of
// their leases at a time. Changes of state without leases are settled one after the other. What
// remains is bounded by the sink: leases and the state that belongs to them.
const (
	// maxAckBytes bounds the message of an ack of which something can be settled before.
	maxAckBytes = 4 << 20
	// maxReasonBytes bounds the reason of a dead letter or a nack.
	maxReasonBytes = 1 << 10
	// maxUnreadable bounds the dead letters that an older buffer is told one by one for offsets
	// that cannot be read.
	maxUnreadable = 10_000
)

// pendingAck is an ack without an answer.
type pendingAck struct {
	leases []AckedLease
	part   ackPart
	result chan error // has room for one
}

// ackPart says which part of what a sink acked a message has.
type ackPart int

const (
	wholeAck           ackPart = iota
	deadLettersOnly            // a share of the dead letters, ahead of the rest
	withoutDeadLetters         // the rest
)

// ackMessage is one of the messages that an ack is sent as.
type ackMessage struct {
	part   ackPart
	leases []AckedLease
	ack    *spillwayv1.Ack // without an id
}

// Ack implements Session.
func (s *session) Ack(ctx context.Context, ack *Ack) (err error) {
	if span := s.tracing.commit(ack); span != nil {
		defer func() { span.End(err) }()
	}
	if err = s.writeLetters(ctx, ack); err != nil {
		return err
	}
	for _, m := range split(ack, s.ranges, maxAckBytes) {
		began := time.Now()
		p, err := s.enqueueAck(m)
		if err != nil {
			return err
		}
		s.wakeUp()
		select {
		case err := <-p.result:
			if err != nil {
				return err
			}
			s.counters.acks.Since(began)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (s *session) enqueueAck(m ackMessage) (*pendingAck, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	if s.closing {
		return nil, fmt.Errorf("%w: it is being closed", ErrSessionLost)
	}
	for _, l := range m.leases {
		if s.held[l.Lease.ID] != l.Lease {
			s.counters.refusedAcks.Add(1)
			return nil, fmt.Errorf("%w (lease %d)", ErrRefused, l.Lease.ID)
		}
	}
	s.lastAck++
	m.ack.Id = s.lastAck
	p := &pendingAck{leases: m.leases, part: m.part, result: make(chan error, 1)}
	s.acks[s.lastAck] = p
	s.outbox = append(s.outbox, &spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Ack{Ack: m.ack}})
	return p, nil
}

// split makes messages of at most limit bytes of an ack, as far as that can be done. The last one
// has the leases and the state, if there are leases. With ranges, the buffer takes dead letters
// as such.
func split(ack *Ack, ranges bool, limit int) []ackMessage {
	whole := ackMessage{leases: make([]AckedLease, len(ack.Leases)), ack: &spillwayv1.Ack{}}
	letters := make([][]*spillwayv1.DeadLetter, len(ack.Leases))
	for i, l := range ack.Leases {
		l.DeadLetters = slices.Concat(l.DeadLetters, l.Lease.refused)
		whole.leases[i] = l
		letters[i] = l.letters(ranges)
		whole.ack.Leases = append(whole.ack.Leases, &spillwayv1.AckedLease{LeaseId: l.Lease.ID, DeadLetters: letters[i], Filtered: l.Lease.filtered, Only: l.Only})
	}
	for _, c := range ack.State {
		whole.ack.StateChanges = append(whole.ack.StateChanges, &spillwayv1.StateChange{Key: c.Key, Value: c.Value, HoldsMs: c.HoldsMs})
	}
	switch {
	case proto.Size(whole.ack) <= limit:
		return []ackMessage{whole}
	case len(ack.Leases) == 0:
		return splitState(whole.ack.StateChanges, limit)
	}
	var messages []ackMessage
	size := limit
	for i, l := range whole.leases {
		var part *spillwayv1.AckedLease // what the newest message has of the lease
		for _, x := range ahead(letters[i], l.Lease.filtered) {
			bytes := proto.Size(x.offsets)*2 + 64 // its range once more, and its share of the lease
			if x.letter != nil {
				bytes += proto.Size(x.letter)
			}
			if size += bytes; size > limit {
				messages = append(messages, ackMessage{part: deadLettersOnly, ack: &spillwayv1.Ack{}})
				part, size = nil, bytes
			}
			m := &messages[len(messages)-1]
			if part == nil {
				part = &spillwayv1.AckedLease{LeaseId: l.Lease.ID}
				m.leases = append(m.leases, AckedLease{Lease: l.Lease})
				m.ack.Leases = append(m.ack.Leases, part)
			}
			part.Only = appendRange(part.Only, &spillwayv1.OffsetRange{First: x.offsets.First, Next: x.offsets.Next})
			acked := &m.leases[len(m.leases)-1]
			acked.Only = part.Only
			if d := x.letter; d != nil {
				part.DeadLetters = append(part.DeadLetters, d)
				acked.DeadLetters = append(acked.DeadLetters, DeadLetter{Offset: d.Offset, Next: d.Next, Reason: d.Reason})
			} else {
				part.Filtered = append(part.Filtered, x.offsets)
			}
		}
		whole.ack.Leases[i].DeadLetters, whole.ack.Leases[i].Filtered = nil, nil
	}
	if len(messages) > 0 {
		whole.part = withoutDeadLetters
	}
	return append(messages, whole)
}

// settledAhead is a part of a lease that does not depend on the sink's state.
type settledAhead struct {
	offsets *spillwayv1.OffsetRange
	letter  *spillwayv1.DeadLetter // nil: left out on purpose
}

// ahead returns dead letters and ranges that were left out, ascending together. A sink may
// dead-letter a range that reaches over what was left out: each offset is named once.
func ahead(letters []*spillwayv1.DeadLetter, filtered []*spillwayv1.OffsetRange) []settledAhead {
	all := make([]settledAhead, 0, len(letters)+len(filtered))
	for _, d := range letters {
		all = append(all, settledAhead{letterRange(d), d})
	}
	for _, r := range filtered {
		all = append(all, settledAhead{r, nil})
	}
	slices.SortFunc(all, func(a, b settledAhead) int { return cmp.Compare(a.offsets.First, b.offsets.First) })
	once, next := all[:0], int64(0)
	for _, x := range all {
		if r := x.offsets; r.First < next {
			x.offsets = &spillwayv1.OffsetRange{First: next, Next: r.Next}
			if x.letter != nil {
				x.letter = &spillwayv1.DeadLetter{Offset: next, Next: r.Next, Reason: x.letter.Reason}
			}
		}
		if x.offsets.First < x.offsets.Next {
			once, next = append(once, x), x.offsets.Next
		}
	}
	return once
}

func splitState(changes []*spillwayv1.StateChange, limit int) []ackMessage {
	var messages []ackMessage
	size := limit
	for _, c := range changes {
		bytes := proto.Size(c) + 8
		if size += bytes; size > limit {
			messages = append(messages, ackMessage{ack: &spillwayv1.Ack{}})
			size = bytes
		}
		last := messages[len(messages)-1].ack
		last.StateChanges = append(last.StateChanges, c)
	}
	return messages
}

// appendRange appends r to ascending ranges, joined with the last one when it follows on it.
func appendRange(ranges []*spillwayv1.OffsetRange, r *spillwayv1.OffsetRange) []*spillwayv1.OffsetRange {
	if n := len(ranges); n > 0 && ranges[n-1].Next == r.First {
		ranges[n-1].Next = r.Next
		return ranges
	}
	return append(ranges, r)
}

func letterRange(d *spillwayv1.DeadLetter) *spillwayv1.OffsetRange {
	return (&DeadLetter{Offset: d.Offset, Next: d.Next}).offsets()
}

// letters returns the dead letters of the lease as the buffer takes them, ascending.
func (al *AckedLease) letters(ranges bool) []*spillwayv1.DeadLetter {
	if len(al.DeadLetters) == 0 {
		return nil
	}
	letters := make([]*spillwayv1.DeadLetter, len(al.DeadLetters))
	single := true
	for i := range al.DeadLetters {
		d := &al.DeadLetters[i]
		letters[i] = &spillwayv1.DeadLetter{Offset: d.Offset, Next: d.Next, Reason: cutReason(d.Reason)}
		if d.Next == d.Offset+1 {
			letters[i].Next = 0
		}
		single = single && letters[i].Next == 0
	}
	slices.SortFunc(letters, func(a, b *spillwayv1.DeadLetter) int { return cmp.Compare(a.Offset, b.Offset) })
	if ranges || single {
		return letters
	}
	return al.Lease.oneByOne(letters)
}

// oneByOne names each record of ascending dead letters on its own. Of what cannot be read, the
// last that is named stands for the rest when there is very much, which there only is in a
// compacted topic.
func (l *Lease) oneByOne(letters []*spillwayv1.DeadLetter) []*spillwayv1.DeadLetter {
	var single []*spillwayv1.DeadLetter
	var reader recordbatch.Reader
	reader.Reset(l.Payload)
	read := l.First // all before it was read
	for reader.Next() {
		offset := l.First + reader.Record().OffsetDelta
		if offset < read {
			break // malformed
		}
		read = offset + 1
		for len(letters) > 0 && letterRange(letters[0]).Next <= offset {
			letters = letters[1:]
		}
		if len(letters) > 0 && letters[0].Offset <= offset {
			single = append(single, &spillwayv1.DeadLetter{Offset: offset, Reason: letters[0].Reason})
		}
	}
	if read >= l.Next || reader.Err() == nil {
		return single
	}
	unreadable := 0
	for _, d := range letters {
		r := letterRange(d)
		for o := max(r.First, read); o < r.Next; o++ {
			if unreadable++; unreadable == maxUnreadable && o+1 < r.Next {
				return append(single, &spillwayv1.DeadLetter{Offset: o, Reason: cutReason(fmt.Sprintf("for all offsets up to %d: %s", r.Next-1, d.Reason))})
			}
			single = append(single, &spillwayv1.DeadLetter{Offset: o, Reason: d.Reason})
		}
	}
	return single
}

// cutReason returns what fits of a reason, as valid UTF-8, which messages must be. The middle
// goes: what begins with a long path ends with what is wrong with it.
func cutReason(reason string) string {
	reason = strings.ToValidUTF8(reason, "�")
	if len(reason) <= maxReasonBytes {
		return reason
	}
	head, tail := maxReasonBytes/3, len(reason)-(maxReasonBytes-maxReasonBytes/3-len("…"))
	for !utf8.RuneStart(reason[head]) {
		head--
	}
	for !utf8.RuneStart(reason[tail]) {
		tail++
	}
	return reason[:head] + "…" + reason[tail:]
}
