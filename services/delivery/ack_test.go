package delivery

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/race"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// deniedReason is as long as a reason may be, and longer.
var deniedReason = "denied: Permission denied: user=spillway, access=WRITE, inode=\"/logs\xff\" " + strings.Repeat("ü", 2000) + " the end"

// small is a lease of n records of one byte.
func small(id uint64, n int64) *Lease {
	var p []byte
	for o := range n {
		p = recordbatch.AppendRecord(p, &recordbatch.Record{OffsetDelta: o, Value: []byte("x")})
	}
	first := 1_000_000_000 + int64(id)*n
	return NewLease(id, nil, first, first+n, int(n), p)
}

// judged checks the messages of an ack: all are small, each dead letter is in one of them, with
// its offsets as what is settled where the rest comes later, and the leases and the state are in
// the last. It returns the dead offsets.
func judged(t *testing.T, ack *Ack, messages []ackMessage, limit int) map[int64]bool {
	t.Helper()
	dead := make(map[int64]bool)
	for i, m := range messages {
		m.ack.Id = 1 << 62
		if size := proto.Size(&spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Ack{Ack: m.ack}}); size > limit+100 {
			t.Errorf("message %d has %d bytes", i, size)
		}
		last := i == len(messages)-1
		if last && (len(m.ack.Leases) != len(ack.Leases) || len(m.ack.StateChanges) != len(ack.State)) || !last && len(m.ack.StateChanges) > 0 {
			t.Errorf("message %d of %d has %d leases and %d changes of state", i, len(messages), len(m.ack.Leases), len(m.ack.StateChanges))
		}
		for _, l := range m.ack.Leases {
			if last != (len(l.Only) == 0) {
				t.Errorf("message %d of %d settles %v of lease %d", i, len(messages), l.Only, l.LeaseId)
			}
			only := ranges(l.Only)
			for _, d := range l.DeadLetters {
				if !utf8.ValidString(d.Reason) || len(d.Reason) > maxReasonBytes || !strings.HasPrefix(d.Reason, "denied") || !strings.HasSuffix(d.Reason, " the end") {
					t.Fatalf("reason of %d bytes: %q", len(d.Reason), d.Reason)
				}
				for o := d.Offset; o < letterRange(d).Next; o++ {
					if dead[o] || !last && !only.contain(o) {
						t.Fatalf("offset %d is in two dead letters, or is not settled with its own", o)
					}
					dead[o] = true
				}
			}
		}
	}
	return dead
}

// TestAcksHaveABound: every other record of 30 leases is dead-lettered, each with a long reason.
func TestAcksHaveABound(t *testing.T) {
	race.Apart(t)
	ack := &Ack{State: []StateChange{{Key: "k", Value: []byte("v")}}}
	for id := range uint64(30) {
		l := AckedLease{Lease: small(id, 1000)}
		for o := l.Lease.First; o < l.Lease.Next; o += 2 {
			l.DeadLetters = append(l.DeadLetters, DeadLetter{Offset: o, Next: o + 1, Reason: deniedReason})
		}
		ack.Leases = append(ack.Leases, l)
	}
	for _, ranges := range []bool{true, false} {
		messages := split(ack, ranges, maxAckBytes)
		if len(messages) < 4 {
			t.Errorf("%d messages", len(messages))
		}
		if dead := judged(t, ack, messages, maxAckBytes); len(dead) != 15_000 {
			t.Errorf("%d offsets are dead, want 15,000", len(dead))
		}
	}
}

// TestDeadLettersTravelAsRanges: the records of 600 leases are dead-lettered, but for half of
// every tenth lease.
func TestDeadLettersTravelAsRanges(t *testing.T) {
	ack := &Ack{}
	for id := range uint64(600) {
		l := AckedLease{Lease: small(id, 20)}
		l.DeadLetters = []DeadLetter{{Offset: l.Lease.First, Next: l.Lease.Next, Reason: deniedReason}}
		if id%10 == 0 {
			l.DeadLetters[0].Next -= 10
		}
		ack.Leases = append(ack.Leases, l)
	}
	messages := split(ack, true, maxAckBytes)
	if len(messages) != 1 {
		t.Errorf("%d messages", len(messages))
	}
	if dead := judged(t, ack, messages, maxAckBytes); len(dead) != 11_400 {
		t.Errorf("%d offsets are dead, want 11,400", len(dead))
	}
	// An older buffer takes them one by one, with their reasons.
	if dead := judged(t, ack, split(ack, false, maxAckBytes), maxAckBytes); len(dead) != 11_400 {
		t.Errorf("one by one, %d offsets are dead, want 11,400", len(dead))
	}
}

// TestDeadLettersOneByOne: for an older buffer, a range becomes the records in it, and where they
// cannot be read its first offsets.
func TestDeadLettersOneByOne(t *testing.T) {
	var p []byte
	for _, delta := range []int64{0, 3, 4, 1 << 40} { // compacted
		p = recordbatch.AppendRecord(p, &recordbatch.Record{OffsetDelta: delta, Value: []byte("x")})
	}
	whole := NewLease(1, nil, 100, 101+1<<40, 4, p)
	damaged := NewLease(1, nil, 100, 101+1<<40, 4, p[:len(p)-1])
	for _, c := range []struct {
		lease       *Lease
		first, next int64
		want        []int64 // the first offsets
		n           int
	}{
		{whole, 100, 101 + 1<<40, []int64{100, 103, 104, 100 + 1<<40}, 4},
		{whole, 101, 104, []int64{103}, 1},
		{whole, 110, 1 << 40, nil, 0},
		{damaged, 103, 101 + 1<<40, []int64{103, 104, 105, 106}, 2 + maxUnreadable},
		{damaged, 200, 203, []int64{200, 201, 202}, 3},
	} {
		al := AckedLease{Lease: c.lease, DeadLetters: []DeadLetter{{Offset: c.first, Next: c.next, Reason: "odd"}}}
		got := al.letters(false)
		if len(got) != c.n {
			t.Errorf("[%d,%d): %d dead letters, want %d", c.first, c.next, len(got), c.n)
			continue
		}
		for i, want := range c.want {
			if got[i].Offset != want || got[i].Next != 0 || got[i].Reason != "odd" {
				t.Errorf("[%d,%d): dead letter %d is %v, want offset %d", c.first, c.next, i, got[i], want)
			}
		}
		if last := got[max(len(got)-1, 0):]; c.n > maxUnreadable && !strings.Contains(last[0].Reason, fmt.Sprint(c.next-1)) {
			t.Errorf("the last of many is %v", last[0])
		}
		if one := al.letters(true); len(one) != 1 || one[0].Offset != c.first || one[0].Next != c.next {
			t.Errorf("[%d,%d) as a range: %v", c.first, c.next, one)
		}
	}
}

// TestStateIsSplit: changes of state that belong to no lease.
func TestStateIsSplit(t *testing.T) {
	ack := &Ack{}
	for i := range 1000 {
		ack.State = append(ack.State, StateChange{Key: fmt.Sprint(i), Value: make([]byte, 60<<10), HoldsMs: 5})
	}
	next := 0
	for i, m := range split(ack, true, maxAckBytes) {
		if size := proto.Size(m.ack); size > maxAckBytes {
			t.Errorf("message %d has %d bytes", i, size)
		}
		for _, c := range m.ack.StateChanges {
			if c.Key != fmt.Sprint(next) || len(c.Value) != 60<<10 || c.HoldsMs != 5 {
				t.Fatalf("change %q where %d is next", c.Key, next)
			}
			next++
		}
	}
	if next != 1000 {
		t.Errorf("%d changes", next)
	}
}

// TestDeadLettersAreSettledBeforeTheRest follows a large ack through the session: each message
// waits for the answer to the one before, and everything is counted once.
func TestDeadLettersAreSettledBeforeTheRest(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		t.Run(fmt.Sprintf("refused=%v", refuse), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, stream, c := newSession(t, 1<<20)
				stream.credit()
				values := make([]string, 10_000)
				stream.lease(none(1, values...))
				l := <-s.Leases()
				acked := AckedLease{Lease: l}
				for o := l.First; o < l.Next; o += 2 {
					acked.DeadLetters = append(acked.DeadLetters, DeadLetter{Offset: o, Reason: deniedReason})
				}
				done := make(chan error, 1)
				go func() {
					done <- s.Ack(t.Context(), &Ack{Leases: []AckedLease{acked}, State: []StateChange{{Key: "k", Value: []byte("v")}}})
				}()
				messages, dead := 0, 0
				for {
					a := stream.next().GetAck()
					if a == nil {
						continue // credit
					}
					messages++
					synctest.Wait()
					if len(stream.requests) > 0 {
						t.Fatal("the next message did not wait for the answer")
					}
					dead += len(a.Leases[0].DeadLetters)
					if len(a.StateChanges) == 0 {
						stream.answer(&spillwayv1.AckResult{Id: a.Id})
						continue
					}
					r := &spillwayv1.AckResult{Id: a.Id}
					if refuse {
						r.Status = refusal()
					}
					stream.answer(r)
					break
				}
				err := <-done
				if refuse != (err != nil) || dead != 5000 || messages != 3 {
					t.Errorf("%v after %d messages with %d dead letters", err, messages, dead)
				}
				want := int64(5000)
				if refuse {
					want = 0
				}
				if c.deadLetters.Load() != 5000 || c.records.Load() != want {
					t.Errorf("counted %d dead letters and %d records", c.deadLetters.Load(), c.records.Load())
				}
			})
		})
	}
}
