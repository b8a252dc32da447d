package delivery

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
)

// nextTrouble returns the next trouble that the client tells, of what it says besides.
func (s *fakeStream) nextTrouble() *spillwayv1.DeliveryTrouble {
	s.t.Helper()
	for {
		if m := s.next().GetTrouble(); m != nil {
			return m
		}
	}
}

// TestTroublesAreTold: the buffer hears why the delivery fails, once for each error, and since
// when, also when the session is another one by now; and that it fails no more.
func TestTroublesAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		r := runServiceWith(t, &config.Delivery{}, &fakeSink{serve: func(ctx context.Context, s Session) error {
			if calls++; calls <= 2 {
				return errors.New("disk on fire")
			}
			return ackAll(ctx, s)
		}}, func(f *fakeBuffer) { f.hears = true })
		first, second, third := <-r.fake.streams, <-r.fake.streams, <-r.fake.streams
		second.t, third.t = t, t
		for m := range first.requests {
			if m.GetTrouble() != nil {
				t.Errorf("before anything failed, the buffer is told %v", m)
			}
		}
		a, b := second.nextTrouble(), third.nextTrouble()
		if a.Reason != "disk on fire" || b.Reason != a.Reason || !b.Since.AsTime().Equal(a.Since.AsTime()) {
			t.Errorf("told %v, and the next session %v", a, b)
		}
		third.lease(none(1, "a"))
		for answered := false; !answered; {
			if ack := third.next().GetAck(); ack != nil {
				third.answer(&spillwayv1.AckResult{Id: ack.Id})
				answered = true
			}
		}
		if m := third.nextTrouble(); m.Reason != "" {
			t.Errorf("when records are taken again, the buffer is told %v", m)
		}
		go third.answerAll()
	})
}

// TestTroublesAreKept: a buffer of a version before, which would end the stream, is told nothing.
func TestTroublesAreKept(t *testing.T) {
	s, stream, _ := newSession(t, 1000)
	stream.credit()
	s.tellTrouble(errors.New("disk on fire"), time.Now())
	s.Close(t.Context())
	for m := range stream.requests {
		t.Errorf("it was told %v", m)
	}
}
