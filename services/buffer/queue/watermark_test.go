package queue

import (
	"errors"
	"math"
	"testing"
	"time"
)

// passesAll: when all is settled and everybody is at the end, time goes on.
func (m *model) passesAll() {
	m.now = m.now.Add(time.Hour)
	for _, topic := range m.topics {
		m.q.CaughtUp(m.partition(topic), m.kafka[topic].Next, m.now.UnixMilli())
	}
	m.q.mu.Lock()
	defer m.q.mu.Unlock()
	for _, sub := range m.q.subs {
		if w := m.q.watermarkLocked(sub, m.q.topicTimesLocked()); w.Passed != m.now.UnixMilli() {
			m.t.Fatalf("%s: at the end %d is passed, want %d", sub.Name, w.Passed, m.now.UnixMilli())
		}
	}
}

// told is the last watermark a session was told.
func told(events []Event) (w Watermark) {
	for _, e := range events {
		if e.Watermark != nil {
			w = *e.Watermark
		}
	}
	return w
}

func (h *harness) appendAt(topic string, first, next, ms int64) {
	h.t.Helper()
	b := testBatch(topic, first, next)
	b.MaxTimestampMs = ms
	if _, err := h.q.Append(h.t.Context(), b, 0); err != nil {
		h.t.Fatal(err)
	}
}

func TestWatermarkFollowsTheSlowestPartition(t *testing.T) {
	h := newHarness(t, all("hdfs"))
	h.q.ListTopics("k", "logs", map[string]int32{"a": 1, "b": 1, "empty": 1})
	s := h.session("hdfs", false, 1000)
	s.WantWatermarks()
	start := h.now.UnixMilli()
	expect := func(what string, want int64) {
		t.Helper()
		h.write()
		h.pass(2 * time.Second)
		if w := told(drain(s)); w.Passed != want {
			t.Fatalf("%s: %d ms are passed since the start, want %d", what, w.Passed-start, want-start)
		}
	}
	h.appendAt("a", 0, 10, start-50_000)
	h.appendAt("a", 10, 20, start-30_000)
	h.appendAt("b", 5, 15, start+3_600_000) // a wrong time, or one to come, counts as now
	leases := leasesOf(drain(s))
	if len(leases) != 3 {
		t.Fatalf("%d leases, want 3", len(leases))
	}
	h.ack(s, 1, leases[1:])
	expect("a's first batch and the empty topic are pending", 0)
	h.ack(s, 2, leases[:1])
	expect("nothing is known of the empty topic", 0)
	h.q.CaughtUp(testPartition("empty"), 0, start-40_000)
	expect("the empty topic is at its end", start-40_000)
	h.q.CaughtUp(testPartition("empty"), 0, start-10_000)
	expect("then later", start-30_000)
	h.q.CaughtUp(testPartition("a"), 20, start-5_000)
	expect("a is at its end", start-10_000)
	h.appendAt("empty", 0, 1, start-2_000)
	expect("a record is pending where none was", 0) // told already, and never falls
	h.write()

	// After a restart nothing is known, and nothing is passed until all have told.
	h.cfg.LeaseDuration = time.Hour
	h.reopen()
	s = h.session("hdfs", false, 1000)
	s.WantWatermarks()
	leases = leasesOf(drain(s))
	expect("nobody told anything", 0)
	h.q.ListTopics("k", "logs", map[string]int32{"a": 1, "b": 1})
	h.q.CaughtUp(testPartition("a"), 20, start+1000)
	expect("b has not told", 0)
	h.q.CaughtUp(testPartition("b"), 15, start+1500)
	h.pass(listPatience)
	h.q.CaughtUp(testPartition("empty"), 1, start+9000)
	expect("a record of a topic that is not read any more is pending", 0)
	h.ack(s, 3, leases)
	expect("but a topic that is not read any more is", start+1000)
}

func TestWatermarkWaitsForTopicsThatNobodyNamesYet(t *testing.T) {
	h := newHarness(t, all("hdfs"))
	h.appendAt("a", 0, 10, 1000)
	s := h.session("hdfs", false, 1000)
	h.ack(s, 1, leasesOf(drain(s)))
	h.write()
	h.reopen()
	s = h.session("hdfs", false, 1000)
	s.WantWatermarks()
	ms := h.now.UnixMilli()
	h.q.ListTopics("k", "one", map[string]int32{"b": 1})
	h.q.CaughtUp(testPartition("b"), 0, ms)
	h.pass(time.Second)
	if w := told(drain(s)); w != (Watermark{}) {
		t.Fatalf("%+v is passed though the source of a may be about to connect", w)
	}
	h.pass(listPatience)
	if w := told(drain(s)); w.Passed != ms {
		t.Fatalf("%d is passed, want %d: a is not read any more", w.Passed, ms)
	}
}

func TestWatermarkWaitsForASourceThatIsAway(t *testing.T) {
	h := newHarness(t, all("hdfs"))
	h.q.ListTopics("k", "one", map[string]int32{"a": 1})
	h.q.ListTopics("k", "two", map[string]int32{"b": 1})
	h.appendAt("a", 0, 10, 1000)
	h.appendAt("b", 0, 10, 1000)
	s := h.session("hdfs", false, 1000)
	h.ack(s, 1, leasesOf(drain(s)))
	h.write()
	for range 2 { // from the journal, then from a snapshot
		h.reopen()
	}
	s = h.session("hdfs", false, 1000)
	s.WantWatermarks()
	h.q.ListTopics("k", "one", map[string]int32{"a": 1})
	ms := h.now.UnixMilli()
	h.q.CaughtUp(testPartition("a"), 10, ms)
	h.pass(2 * listPatience)
	if w := told(drain(s)); w != (Watermark{}) {
		t.Fatalf("%+v is passed without the second source", w)
	}
	if err := h.q.ForgetSource(t.Context(), "three"); !errors.Is(err, ErrNoSource) {
		t.Errorf("forget an unknown source: %v", err)
	}
	if err := h.manage(func() error { return h.q.ForgetSource(t.Context(), "two") }); err != nil {
		t.Fatal(err)
	}
	h.pass(time.Second)
	if w := told(drain(s)); w.Passed != ms {
		t.Fatalf("%d is passed without a source that is forgotten, want %d", w.Passed, ms)
	}
}

func TestStateHoldsTheWatermark(t *testing.T) {
	h := newHarness(t, all("hdfs"))
	h.q.ListTopics("k", "logs", map[string]int32{"a": 1})
	late := h.now.UnixMilli() + 5000
	writer := h.session("hdfs", false, 1000)
	h.ack(writer, 1, nil, StateChange{Key: "file", Value: []byte("1"), HoldsMs: late}, StateChange{Key: "other", Value: []byte("1")})
	h.write()
	other := h.session("hdfs", false, 1000)
	other.WantWatermarks()
	expect := func(what string, want Watermark) {
		t.Helper()
		h.write()
		h.pass(time.Second)
		h.q.CaughtUp(testPartition("a"), 0, h.now.UnixMilli())
		h.pass(time.Second)
		if w := told(drain(other)); w != want {
			t.Fatalf("%s: %+v is told, want %+v", what, w, want)
		}
	}
	at := func(seconds int64) int64 { return late - 5000 + seconds*1000 }
	expect("before it", Watermark{at(1), at(1)})
	expect("before it", Watermark{at(3), at(3)})
	expect("held", Watermark{at(5), late - 1})
	writer.Close()
	expect("held by a dead session, and its heir", Watermark{at(7), late - 1})
	h.reopen()
	h.q.ListTopics("k", "logs", map[string]int32{"a": 1})
	other = h.session("hdfs", false, 1000)
	other.WantWatermarks()
	expect("after a restart", Watermark{at(9), late - 1})
	h.ack(other, 2, nil, StateChange{Key: "file", Value: []byte("2"), HoldsMs: at(12)})
	expect("held by its new value", Watermark{at(11), at(11)})
	h.ack(other, 3, nil, StateChange{Key: "file"})
	expect("deleted", Watermark{at(13), at(13)})
}

func TestPassesAreFewAndLate(t *testing.T) {
	var ps passes
	for i := range int64(100_000) {
		ps.add(i+1, i*100)
		if len(ps) > maxPasses {
			t.Fatalf("%d passes", len(ps))
		}
	}
	for _, o := range []int64{0, 1, 5000, 50_000, 99_999, 100_000} {
		if ms := ps.until(o, math.MaxInt64); ms > max(o-1, 0)*100 {
			t.Fatalf("before offset %d, %d is passed", o, ms)
		}
	}
	if ms := ps.until(100_000, math.MaxInt64); ms != 9_999_900 {
		t.Fatalf("at the end, %d is passed", ms)
	}
}

// TestWatermarkAfterTheClockWasSetBack: a clock that was ten years ahead for a while does not have
// all be over that comes in these years.
func TestWatermarkAfterTheClockWasSetBack(t *testing.T) {
	h := newHarness(t, all("hdfs"))
	h.q.ListTopics("k", "logs", map[string]int32{"a": 1, "empty": 1})
	s := h.session("hdfs", false, 1000)
	s.WantWatermarks()
	right := h.now
	tell := func(at time.Time) int64 {
		t.Helper()
		h.now = at
		h.q.CaughtUp(testPartition("a"), 10, at.UnixMilli())
		h.q.CaughtUp(testPartition("empty"), 0, at.UnixMilli())
		h.q.watermarkTold = h.q.clock() - int64(watermarkInterval)
		h.q.tellWatermarks()
		return told(drain(s)).Passed
	}
	h.appendAt("a", 0, 10, right.UnixMilli())
	h.ack(s, 1, leasesOf(drain(s)))
	h.write()
	drain(s)
	for _, at := range []time.Time{right.Add(time.Minute), right.AddDate(10, 0, 0), right.Add(2 * time.Minute), right.Add(3 * time.Minute)} {
		if got := tell(at); got != at.UnixMilli() {
			t.Errorf("at %s it is told that %s is passed", at, time.UnixMilli(got).In(at.Location()))
		}
	}
	h.now = right.AddDate(10, 0, 0)
	h.appendAt("a", 10, 20, h.now.UnixMilli())
	h.now = right.Add(4 * time.Minute)
	h.ack(s, 2, leasesOf(drain(s)))
	h.write()
	if got := h.q.watermarkLocked(h.q.subs[0], h.q.topicTimesLocked()).Passed; got > h.now.UnixMilli() {
		t.Errorf("what was appended while the clock was ahead has time be %s", time.UnixMilli(got))
	}
}

// TestBatchesOfATimeToCome: what was stored before the clock was set back is older than what comes
// after a restart.
func TestBatchesOfATimeToCome(t *testing.T) {
	h := newHarness(t, all("hdfs"))
	h.append("a", 0, 10)
	h.pass(time.Hour)
	h.write()
	h.now = h.now.AddDate(-10, 0, 0)
	h.reopen()
	if oldest := h.q.OldestPending("hdfs"); oldest.IsZero() || oldest.After(h.now) {
		t.Errorf("the oldest batch is of %s, and it is %s", oldest, h.now)
	}
}
