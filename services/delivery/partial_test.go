package delivery

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// TestAPartOfALeaseIsSettled: the lease stays, with its memory, until it is given back; what
// comes again is counted when it is delivered.
func TestAPartOfALeaseIsSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stream, c := newSession(t, memory)
		stream.credit()
		stream.lease(none(1, "aa", "bb", "cc", "dd"))
		l := <-s.Leases()
		values(t, l)

		done := make(chan error, 1)
		only := []*spillwayv1.OffsetRange{{First: 100, Next: 101}, {First: 102, Next: 103}}
		go func() { done <- s.Ack(context.Background(), &Ack{Leases: []AckedLease{{Lease: l, Only: only}}}) }()
		ack := stream.next().GetAck()
		if len(ack.GetLeases()) != 1 || len(ack.Leases[0].Only) != 2 || ack.Leases[0].Only[1].First != 102 {
			t.Fatalf("got ack %v", ack)
		}
		stream.answer(&spillwayv1.AckResult{Id: ack.Id})
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if s.Held() != 1 || c.records.Load() != 2 || c.bytes.Load() != 4 {
			t.Errorf("%d leases held, %d records and %d bytes counted; want 1, 2 and 4", s.Held(), c.records.Load(), c.bytes.Load())
		}
		s.Nack(l, time.Second, errors.New("refused"))
		if m := stream.next().GetNack(); m.GetLeaseId() != 1 {
			t.Fatalf("got %v, want the nack", m)
		}
		if s.Held() != 0 {
			t.Errorf("%d leases held after the nack", s.Held())
		}

		again := none(2, "aa", "bb", "cc", "dd")
		again.Settled = []*spillwayv1.OffsetRange{{First: 200, Next: 201}, {First: 202, Next: 203}}
		stream.lease(again)
		l = <-s.Leases()
		if got := values(t, l); !slices.Equal(got, []string{"bb", "dd"}) {
			t.Errorf("leased again: %q", got)
		}
		answered := ackAsync(s, l)
		for m := stream.next(); ; m = stream.next() {
			if ack = m.GetAck(); ack != nil { // else it is credit
				break
			}
		}
		stream.answer(&spillwayv1.AckResult{Id: ack.Id})
		if err := <-answered; err != nil {
			t.Fatal(err)
		}
		if c.records.Load() != 4 {
			t.Errorf("%d records counted, want 4", c.records.Load())
		}
	})
}
