package delivery

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/delivery/transform"
	"github.com/spillwayio/spillway/services/internal/config"
)

// TestTransforms leaves out records and refuses others: the sink does not see them, and the ack
// names them.
func TestTransforms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, stream, c := newSession(t, memory)
		chain, err := transform.New([]config.Transform{
			{Drop: &config.Match{From: "value", Regex: "^drop"}, OnError: "dead_letter"},
			{SetTime: &config.SetTime{From: "value", Unit: "seconds"}, OnError: "dead_letter"},
		})
		if err != nil {
			t.Fatal(err)
		}
		s.transforms = chain
		stream.credit()
		stream.lease(none(1, "1", "drop a", "drop b", "no number", "2", "drop c"))
		l := <-s.Leases()
		for range 2 { // a sink may read a lease again
			if got := values(t, l); !slices.Equal(got, []string{"1", "2"}) {
				t.Errorf("the sink sees %q", got)
			}
		}
		done := make(chan error, 1)
		go func() { done <- s.Ack(context.Background(), &Ack{Leases: []AckedLease{{Lease: l}}}) }()
		ack := stream.next().GetAck()
		acked := ack.Leases[0]
		if f := acked.Filtered; len(f) != 2 || f[0].First != 101 || f[0].Next != 103 || f[1].First != 105 || f[1].Next != 106 {
			t.Errorf("filtered: %v", f)
		}
		if d := acked.DeadLetters; len(d) != 1 || d[0].Offset != 103 || d[0].Reason != `transform 2, set_time: value: "no number" is no number of seconds` {
			t.Errorf("dead letters: %v", d)
		}
		stream.answer(&spillwayv1.AckResult{Id: ack.Id})
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if c.records.Load() != 2 || c.deadLetters.Load() != 1 {
			t.Errorf("counted %d records, %d dead letters", c.records.Load(), c.deadLetters.Load())
		}
	})
}

// TestWhatIsLeftOutIsSplit acks more ranges that were left out than fit into a message, and dead
// letters that reach over some of them. Each offset is settled once, in order.
func TestWhatIsLeftOutIsSplit(t *testing.T) {
	l := &Lease{ID: 1, First: 0, Next: 40_000}
	for o := int64(0); o < l.Next; o += 2 {
		l.filtered = append(l.filtered, &spillwayv1.OffsetRange{First: o, Next: o + 1})
	}
	const limit = 100_000
	messages := split(&Ack{Leases: []AckedLease{{Lease: l, DeadLetters: []DeadLetter{{Offset: 11, Next: 101, Reason: "bad"}}}}}, true, limit)
	if len(messages) < 3 {
		t.Fatalf("%d messages", len(messages))
	}
	last, filtered, dead := int64(-1), int64(0), int64(0)
	for _, m := range messages[:len(messages)-1] {
		part := m.ack.Leases[0]
		for _, r := range part.Only {
			if r.First <= last || r.Next <= r.First {
				t.Fatalf("range %v comes after %d", r, last)
			}
			last = r.Next - 1
		}
		for _, r := range part.Filtered {
			filtered += r.Next - r.First
		}
		for _, d := range part.DeadLetters {
			dead += letterRange(d).Next - letterRange(d).First
		}
	}
	if dead != 90 || filtered != 20_000-45 {
		t.Errorf("%d dead letters, %d left out", dead, filtered)
	}
	if rest := messages[len(messages)-1].ack.Leases[0]; len(rest.Filtered)+len(rest.DeadLetters)+len(rest.Only) > 0 {
		t.Errorf("the rest names %v", rest)
	}
}
