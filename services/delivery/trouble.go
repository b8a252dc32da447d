package delivery

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// The buffer is told why a delivery fails, so that whoever asks it for its subscriptions reads
// what the destination says, without a way to the delivery.

// lookEvery is how often a link looks for the trouble of its delivery. A failure that the first
// retry mends is mostly not seen.
const lookEvery = time.Second

// failure returns why the delivery of the link's shard fails now, as far as its destination is at
// fault; nil when it does not.
func (l *link) failure() error {
	if err := l.destination.Err(); err != nil {
		return err
	}
	if t, ok := l.s.sink.(Troubled); ok {
		return t.Trouble()
	}
	return nil
}

// tellTrouble looks for the trouble of the delivery, and tells the buffer of it. The time since
// which it fails is the link's, and outlives sessions.
func (l *link) tellTrouble(session *session) {
	err := l.failure()
	switch {
	case err == nil:
		l.failing = time.Time{}
	case l.failing.IsZero():
		l.failing = time.Now()
	}
	session.tellTrouble(err, l.failing)
}

// tellTrouble tells the buffer why the delivery fails, when that is another error than it was told
// last. A nil error says that it does not fail any more.
func (s *session) tellTrouble(err error, since time.Time) {
	m := &spillwayv1.DeliveryTrouble{}
	if err != nil {
		m.Reason, m.Since = cutReason(err.Error()), timestamppb.New(since)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.hears || s.closing || m.Reason == s.troubled {
		return
	}
	s.troubled = m.Reason
	s.outbox = append(s.outbox, &spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Trouble{Trouble: m}})
	s.wakeUp()
}
