package queue

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/internal/race"
)

// TestClaimedPartitionsCostNothing: sources that say they read 20 topics of 1,000,000 partitions
// cost what their names do, also after a restart, and time has not passed while nothing is heard
// of most of them.
func TestClaimedPartitionsCostNothing(t *testing.T) {
	h := newHarness(t, all("s"))
	topics := make(map[string]int32)
	for i := range 20 {
		topics[fmt.Sprint("t", i)] = 1_000_000
	}
	if err := h.q.ListTopics("k", "source", topics); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"told", "recovered"} {
		s := h.session("s", false, 1000)
		s.WantWatermarks()
		h.append("t0", 0, 10)
		if err := h.q.CaughtUp(testPartition("t1"), 0, h.now.UnixMilli()); err != nil {
			t.Fatal(err)
		}
		allocs := testing.AllocsPerRun(5, func() { h.pass(2 * time.Second) })
		if allocs > 1000 {
			t.Errorf("%s: looking at the time allocates %.0f times", when, allocs)
		}
		if w := told(drain(s)); w.Passed != 0 {
			t.Errorf("%s: time has passed %d while nothing is known of most partitions", when, w.Passed)
		}
		h.write()
		h.reopen()
	}
}

// TestListedPartitionsAreCountedOnce: time passes once something is heard of each listed
// partition, from whichever source, and not before.
func TestListedPartitionsAreCountedOnce(t *testing.T) {
	h := newHarness(t, all("s"))
	ms := h.now.UnixMilli()
	for source, n := range map[string]int32{"one": 3, "two": 2} {
		if err := h.q.ListTopics("k", source, map[string]int32{"t": n}); err != nil {
			t.Fatal(err)
		}
	}
	passed := func() int64 {
		h.q.mu.Lock()
		defer h.q.mu.Unlock()
		return h.q.watermarkLocked(h.q.subs[0], h.q.topicTimesLocked()).Passed
	}
	id := testPartition("t")
	for _, n := range []int32{0, 2, 3, 7} { // 3 and 7 are not listed
		id.Number = n
		if err := h.q.CaughtUp(id, 0, ms-int64(n)); err != nil {
			t.Fatal(err)
		}
		if got := passed(); got != 0 {
			t.Fatalf("time has passed %d, with nothing heard of partition 1", got)
		}
	}
	id.Number = 1
	if err := h.q.CaughtUp(id, 0, ms-50); err != nil {
		t.Fatal(err)
	}
	if got := passed(); got != ms-50 {
		t.Errorf("time has passed %d, want %d", got, ms-50)
	}
}

// TestNamesAndNumbersHaveBounds: what a stream says is refused, and nothing of it is kept, when
// it is too long or too much.
func TestNamesAndNumbersHaveBounds(t *testing.T) {
	h := newHarness(t, all("s"))
	long := strings.Repeat("x", 1<<20)
	for _, id := range []Partition{{Cluster: "k", Topic: long}, {Cluster: long, Topic: "t"}, {Cluster: "k"}, {Cluster: "k", Topic: "t", Number: -1},
		{Cluster: "k", Topic: long[:MaxTopicBytes+1]}, {Cluster: long[:MaxNameBytes+1], Topic: "t"}} {
		b := testBatch("t", 0, 10)
		b.Partition = id
		_, appended := h.q.Append(t.Context(), b, 0)
		_, assigned := h.q.Assign(id, false)
		for what, err := range map[string]error{"append": appended, "assign": assigned, "settle": h.q.Settle(id, Range{0, 1}, Lost, "", 0), "caught up": h.q.CaughtUp(id, 0, 1)} {
			if !errors.Is(err, ErrInvalid) || len(err.Error()) > 1000 {
				t.Errorf("%s of %.20q/%.20q/%d: %.200v, want it refused in few words", what, id.Cluster, id.Topic, id.Number, err)
			}
		}
	}
	if _, err := h.q.OpenSession("s", long, false); !errors.Is(err, ErrInvalid) || len(err.Error()) > 1000 {
		t.Errorf("consumer with a long name: %.200v", err)
	}
	if _, err := h.q.OpenSession(long, "c", false); !errors.Is(err, ErrNoSubscription) || len(err.Error()) > 1000 {
		t.Errorf("subscription with a long name: %.200v", err)
	}
	for _, source := range []struct {
		name, topic string
	}{{long, "t"}, {"s", long}} {
		if err := h.q.ListTopics("k", source.name, map[string]int32{source.topic: 1}); !errors.Is(err, ErrInvalid) {
			t.Errorf("source %.20q with topic %.20q: %.200v, want it refused", source.name, source.topic, err)
		}
	}
	if n := len(h.q.partitions) + len(h.q.empty) + len(h.q.listed); n != 0 {
		t.Errorf("%d of them are kept", n)
	}
}

func TestReasonsAreCut(t *testing.T) {
	h := newHarness(t, all("s"))
	if err := h.q.Settle(testPartition("t"), Range{0, 1}, Lost, strings.Repeat("ü", 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	h.write()
	for _, when := range []string{"settled", "recovered"} {
		got, err := h.q.Undelivered("s")
		if err != nil || len(got) != 1 || len(got[0].Reason) > MaxReasonBytes || !strings.HasSuffix(got[0].Reason, "ü …") {
			t.Errorf("%s: %d ranges, %v, want one with its reason cut", when, len(got), err)
		}
		h.reopen()
	}
	if short := strings.Repeat("a", MaxReasonBytes); CutReason(short) != short {
		t.Error("a reason that fits is cut")
	}
}

// TestManyLongReasons: what is remembered of undelivered ranges has a bound in bytes.
func TestManyLongReasons(t *testing.T) {
	race.Apart(t)
	h := newHarness(t, all("s"))
	for i := range int64(2 * maxUndeliveredBytes / MaxReasonBytes) {
		if err := h.q.Settle(testPartition("t"), Range{i, i + 1}, Lost, fmt.Sprint(i, strings.Repeat("x", MaxReasonBytes)), 0); err != nil {
			t.Fatal(err)
		}
	}
	h.write()
	h.reopen()
	list, err := h.q.Undelivered("s")
	if err != nil {
		t.Fatal(err)
	}
	bytes := 0
	for _, u := range list {
		bytes += len(u.Reason)
	}
	if bytes > maxUndeliveredBytes || bytes < maxUndeliveredBytes/2 {
		t.Errorf("%d ranges with %d bytes of reasons, want about %d", len(list), bytes, maxUndeliveredBytes)
	}
}

// TestPartitionsHaveABound: a queue takes no more partitions than it may have, and goes on with
// those it has.
func TestPartitionsHaveABound(t *testing.T) {
	h := newHarness(t, all("s"))
	id := testPartition("t")
	for range MaxPartitions {
		if err := h.q.CaughtUp(id, 0, 1); err != nil {
			t.Fatal(err)
		}
		id.Number++
	}
	b := testBatch("t", 0, 1)
	b.Partition = id
	_, appended := h.q.Append(t.Context(), b, 0)
	for what, err := range map[string]error{"append": appended, "settle": h.q.Settle(id, Range{0, 1}, Lost, "", 0), "caught up": h.q.CaughtUp(id, 0, 1)} {
		if !errors.Is(err, ErrTooMany) {
			t.Errorf("%s of one more: %v", what, err)
		}
	}
	h.append("t", 0, 1) // partition 0, of which it knew

	w := h.q.Watch("k", "test")
	defer w.Close()
	id.Number = 0
	for range MaxPartitions {
		if err := w.Add(id); err != nil {
			t.Fatal(err)
		}
		id.Number++
	}
	if err := w.Add(id); !errors.Is(err, ErrTooMany) {
		t.Errorf("one partition more is watched: %v", err)
	}
	id.Number = 0
	if err := w.Add(id); err != nil {
		t.Errorf("one that is watched already: %v", err)
	}

	if err := h.q.ListTopics("k", "s", manyTopics(maxListedTopics)); err != nil {
		t.Error(err)
	}
	if err := h.q.ListTopics("k", "s2", map[string]int32{"x": 1}); !errors.Is(err, ErrTooMany) {
		t.Errorf("one topic more: %v", err)
	}
	if err := h.q.ListTopics("k", "s", map[string]int32{"x": 1}); err != nil {
		t.Errorf("fewer topics: %v", err)
	}
	for i := range maxSources - 1 {
		if err := h.q.ListTopics("k", fmt.Sprint("more", i), map[string]int32{"x": 1}); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.q.ListTopics("k", "last", map[string]int32{"x": 1}); !errors.Is(err, ErrTooMany) {
		t.Errorf("one source more: %v", err)
	}
}

// TestEmptyTopicsAreForgotten: topics that come and go without a record do not use up the bound of
// partitions, and those that are read still stay known.
func TestEmptyTopicsAreForgotten(t *testing.T) {
	h := newHarness(t, all("s"))
	list := func(source string, topics ...string) {
		t.Helper()
		of := make(map[string]int32)
		for _, topic := range topics {
			of[topic] = MaxPartitions / 2
		}
		if err := h.q.ListTopics("k", source, of); err != nil {
			t.Fatal(err)
		}
	}
	caughtUp := func(topic string) error {
		for n := range MaxPartitions / 2 {
			if err := h.q.CaughtUp(Partition{Cluster: "k", Topic: topic, Number: int32(n)}, 0, h.now.UnixMilli()); err != nil {
				return err
			}
		}
		return nil
	}
	list("other", "stays")
	for i := range 5 {
		topic := fmt.Sprint("t", i)
		list("s", "stays", topic)
		for _, topic := range []string{"stays", topic} {
			if err := caughtUp(topic); err != nil {
				t.Fatalf("of topic %s, the only new one: %v", topic, err)
			}
		}
	}
	list("s")
	if n := len(h.q.empty); n != MaxPartitions/2 {
		t.Errorf("%d partitions without records are known, want those of the topic that is read still", n)
	}
	if err := h.q.ListTopics("k", "other", nil); err != nil || len(h.q.empty) != 0 {
		t.Errorf("%d partitions without records are known of topics that nobody reads (%v)", len(h.q.empty), err)
	}
}

func manyTopics(n int) map[string]int32 {
	topics := make(map[string]int32, n)
	for i := range n {
		topics[fmt.Sprint("topic", i)] = 1
	}
	return topics
}

// TestExtendLetsGoOfTheLock extends 1,000,000 leases that nobody holds: others get the lock in
// between, and the answer is in parts.
func TestExtendLetsGoOfTheLock(t *testing.T) {
	h := newHarness(t, all("s"))
	s := h.session("s", false, 1)
	ids := make([]uint64, 1_000_000)
	for i := range ids {
		ids[i] = uint64(i)
	}
	s.Extend(ids)
	n := 0
	for _, e := range drain(s) {
		if len(e.Revoked) > idsAtOnce {
			t.Fatalf("%d leases are revoked at once", len(e.Revoked))
		}
		n += len(e.Revoked)
	}
	if n != len(ids) {
		t.Errorf("%d leases are revoked, want %d", n, len(ids))
	}
}

// TestAckOfManyParts settles every other of 100,000 offsets, each with a filtered one before it,
// in one ack: its cost follows its length, and not the product of its parts.
func TestAckOfManyParts(t *testing.T) {
	const n = 100_000
	h := newHarness(t, all("s"))
	h.cfg.MemoryRecords, h.cfg.MemoryBytes = 10*n, 10*n
	h.reopen()
	h.append("t", 0, 4*n)
	s := h.session("s", false, 10*n)
	l := leasesOf(drain(s))[0]
	a := Ack{ID: 1, Leases: []AckedLease{{ID: l.ID}}}
	al := &a.Leases[0]
	for i := n - 1; i >= 0; i-- { // filtered ones come in any order
		al.Filtered = append(al.Filtered, Range{int64(4 * i), int64(4*i + 1)})
	}
	for i := range int64(n) {
		al.Only = append(al.Only, Range{4 * i, 4*i + 2})
	}
	began := time.Now()
	if err := s.Ack(a); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(began); d > 10*time.Second { // it took minutes
		t.Errorf("the ack took %v", d)
	}
	settled := h.q.changes[len(h.q.changes)-1].Settle
	if len(settled) != n {
		t.Fatalf("%d parts are settled, want %d", len(settled), n)
	}
	for i, part := range settled {
		if len(part.Except) != 1 || part.Except[0].Range != (Range{int64(4 * i), int64(4*i + 1)}) {
			t.Fatalf("part %d: %+v", i, part)
		}
	}
}

func TestFilteredRangesMayOverlap(t *testing.T) {
	h := newHarness(t, all("s"))
	h.append("t", 0, 20)
	s := h.session("s", false, 100)
	l := leasesOf(drain(s))[0]
	if err := s.Ack(Ack{ID: 1, Leases: []AckedLease{{ID: l.ID, Filtered: []Range{{5, 6}, {0, 9}, {2, 3}, {12, 15}, {14, 18}}, Only: []Range{{8, 10}, {11, 20}}}}}); err != nil {
		t.Fatal(err)
	}
	h.write()
	h.q.mu.Lock()
	defer h.q.mu.Unlock()
	totals := h.q.partitions[testPartition("t")].progress[h.q.subs[0]].settled.Totals()
	if totals[Filtered] != 7 || totals[Delivered] != 4 {
		t.Errorf("settled %v, want 7 filtered and 4 delivered", totals)
	}
}

func TestAckHasABound(t *testing.T) {
	h := newHarness(t, all("s"))
	h.append("t", 0, 1)
	s := h.session("s", false, 100)
	l := leasesOf(drain(s))[0]
	if err := s.Ack(Ack{ID: 1, Leases: []AckedLease{{ID: l.ID, DeadLetters: make([]DeadLetter, maxAckItems)}}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("an ack of %d dead letters: %v", maxAckItems, err)
	}
}
