package queue

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

// restart opens the queue again with other subscriptions in the file. What is in memory is
// written before.
func (h *harness) restart(subs ...SubscriptionConfig) {
	h.t.Helper()
	h.pass(h.cfg.SpillAfter)
	h.write()
	h.cfg.Subscriptions = subs
	h.reopen()
}

// deliver leases and acks everything that a subscription can be leased, and returns the offsets
// of a topic.
func (h *harness) deliver(sub, topic string) Set {
	h.t.Helper()
	var got Set
	s := h.session(sub, false, 1<<40)
	for i := uint64(1); ; i++ {
		h.answerRefetches()
		leases := leasesOf(drain(s))
		if len(leases) == 0 {
			break
		}
		h.ack(s, i, leases)
		for _, l := range leases {
			if l.Batch.Partition.Topic == topic {
				for _, r := range wanted(l) {
					got.Add(r)
				}
			}
		}
		h.pass(h.cfg.SpillAfter)
		h.write()
	}
	s.Close()
	return got
}

// answerRefetches plays an ingest whose Kafka has everything.
func (h *harness) answerRefetches() {
	h.t.Helper()
	w := h.q.Watch("k", "ingest")
	defer w.Close()
	for more := true; more; {
		more = false
		h.pass(2 * time.Second)
		for _, r := range asked(w) {
			b := testBatch(r.Partition.Topic, r.Range.First, r.Range.Next)
			if _, err := h.q.Append(h.t.Context(), b, r.ID); err != nil {
				h.t.Fatalf("answer refetch %v: %v", r.Range, err)
			}
			more = true
		}
		h.pass(h.cfg.SpillAfter)
		h.write()
	}
}

func wants(name string, topics ...string) SubscriptionConfig {
	return SubscriptionConfig{Name: name, Topics: topics, Required: true}
}

// logged is what queues logged, which a goroutine of theirs may still do.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// logTo has the harness's queues log into a buffer from their next start on.
func (h *harness) logTo() *logged {
	var l logged
	h.cfg.Log = slog.New(slog.NewTextHandler(&l, nil))
	return &l
}

// TestWrongTopicsAndBack is a typing error in the file, which is mended after two restarts.
func TestWrongTopicsAndBack(t *testing.T) {
	for _, required := range []bool{true, false} {
		for _, delivered := range []bool{true, false} {
			t.Run(fmt.Sprintf("required=%t,delivered=%t", required, delivered), func(t *testing.T) {
				h := newHarness(t, all("other"))
				log := h.logTo()
				h.cfg.Delivered = delivered
				right := SubscriptionConfig{Name: "s", Topics: []string{"orders*"}, Required: required}
				wrong := right
				wrong.Topics = []string{"oders*"}
				h.restart(right)
				h.append("orders", 100, 200)
				before := h.assigned("orders")
				h.restart(wrong)
				h.wantKept("s", "orders", Range{100, 200})
				h.append("orders", 200, 250) // while nobody wants the topic
				h.restart(wrong)
				h.wantNoStepBack("orders", before, 250)
				if !delivered && h.assigned("orders").Safe != 250 {
					t.Errorf("safe is %d: what nobody wants holds it back", h.assigned("orders").Safe)
				}
				h.q.logLines.flush(time.Minute)
				if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "orders/0 [100,200)") {
					t.Errorf("no warning names what is kept:\n%s", log)
				}
				h.restart(right)
				h.append("orders", 250, 300)
				if got := h.deliver("s", "orders"); got.Len() != 200 || len(got.Without(Range{100, 300})) > 0 {
					t.Errorf("delivered %v, want [100,300)", got)
				}
				h.checkAudit()
				h.deliver("other", "orders")
				if a := h.assigned("orders"); a.Safe != 300 || a.Resume != 300 {
					t.Errorf("after everything was delivered: %+v", a)
				}
				if list, err := h.q.Undelivered("s"); err != nil || len(list) != 0 {
					t.Errorf("undelivered: %v, %v", list, err)
				}
			})
		}
	}
}

// wantKept says whether a range of a topic that a subscription does not want is pending for it,
// in the audit and in the counters, and leased to nobody.
func (h *harness) wantKept(sub, topic string, r Range) {
	h.t.Helper()
	accounts, err := h.q.Audit(sub)
	if err != nil {
		h.t.Fatal(err)
	}
	pending := int64(0)
	for _, a := range accounts {
		if a.Partition.Topic == topic {
			pending += a.Pending
		}
	}
	if pending != r.Len() {
		h.t.Errorf("%d offsets of %s are pending for %s, want %v", pending, topic, sub, r)
	}
	s := h.session(sub, false, 1<<40)
	defer s.Close()
	for _, l := range leasesOf(drain(s)) {
		if l.Batch.Partition.Topic == topic {
			h.t.Errorf("%s is leased %v of %s, which it does not want", sub, l.Batch.Range, topic)
		}
	}
}

func (h *harness) wantNoStepBack(topic string, before Assigned, resume int64) {
	h.t.Helper()
	if a := h.assigned(topic); !a.Known || a.Safe < before.Safe || a.Resume != resume {
		h.t.Errorf("%s: %+v, before: %+v; want to go on at %d", topic, a, before, resume)
	}
}

// TestTopicWithoutBacklogGoesOn: what comes while the file is wrong belongs to the subscription,
// too.
func TestTopicWithoutBacklogGoesOn(t *testing.T) {
	h := newHarness(t, all("other"), wants("s", "a", "b"))
	h.append("a", 0, 10)
	h.deliver("s", "a")
	h.deliver("other", "a")
	h.restart(all("other"), wants("s", "b"))
	h.append("a", 10, 20)
	h.deliver("other", "a")
	if s := h.q.Subscriptions(); s[1].Name != "s" || s[1].PendingRecords != 0 || s[1].Deferred != 0 {
		t.Errorf("pending without being wanted: %+v", s[1])
	}
	if a := h.assigned("a"); a.Safe != 20 {
		t.Errorf("safe is %d, want 20", a.Safe)
	}
	h.restart(all("other"), wants("s", "a", "b"))
	if got := h.deliver("s", "a"); got.Len() != 10 || len(got.Without(Range{10, 20})) > 0 {
		t.Errorf("delivered %v, want [10,20)", got)
	}
	h.checkAudit()
}

// TestNarrowedAtRunTime does with the admin API what TestWrongTopicsAndBack does with the file,
// with a crash anywhere.
func TestNarrowedAtRunTime(t *testing.T) {
	update := func(h *harness, topics ...string) {
		h.t.Helper()
		if err := h.manage(func() error {
			return h.q.Update(h.t.Context(), "s", func(c *SubscriptionConfig) { c.Topics = topics })
		}); err != nil {
			h.t.Fatal(err)
		}
	}
	for crash := range 8 {
		t.Run(fmt.Sprintf("crashes=%03b", crash), func(t *testing.T) {
			h := newHarness(t, all("other"), wants("s", "a", "b"))
			s := h.session("s", true, 30)
			h.append("a", 0, 20)
			h.append("a", 20, 50)
			h.append("a", 50, 80)
			leases := leasesOf(drain(s))
			h.ack(s, 1, leases[:1])
			update(h, "b")
			if got := drain(s); crash == 0 && (len(got) == 0 || s.Holds(leases[1].ID)) {
				t.Errorf("a lease of a topic that is not wanted any more is still held")
			}
			h.wantKept("s", "a", Range{20, 80})
			step := func(bit int) {
				h.pass(h.cfg.SpillAfter)
				h.write()
				if crash&(1<<bit) != 0 {
					h.reopen()
				}
			}
			step(0)
			h.append("a", 80, 90)
			h.wantKept("s", "a", Range{20, 80})
			step(1)
			h.deliver("other", "a")
			h.wantKept("s", "a", Range{20, 80})
			before := h.assigned("a")
			update(h, "a*")
			step(2)
			h.wantNoStepBack("a", before, 90)
			if got := h.deliver("s", "a"); got.Len() != 70 || len(got.Without(Range{20, 90})) > 0 {
				t.Errorf("delivered %v, want [20,90)", got)
			}
			h.checkAudit()
			if st := h.q.Stats(); st.PendingRecords != 0 {
				t.Errorf("settled by all, but %+v", st)
			}
		})
	}
}

// TestDropUnwanted gives up what is kept, by name.
func TestDropUnwanted(t *testing.T) {
	h := newHarness(t, wants("s", "a", "b"))
	h.append("a", 0, 20)
	h.append("b", 0, 20)
	h.restart(wants("s", "b"))
	h.append("a", 20, 30)
	if err := h.manage(func() error { return h.q.DropUnwanted(t.Context(), "s") }); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"at once", "after a restart"} {
		list, err := h.q.Undelivered("s")
		if err != nil || len(list) != 1 || list[0].Range != (Range{0, 20}) || list[0].Outcome != Dropped || list[0].AtMs == 0 || list[0].Partition.Topic != "a" {
			t.Errorf("%s: undelivered %+v, %v", when, list, err)
		}
		h.wantKept("s", "a", Range{})
		h.checkAudit()
		h.reopen()
	}
	if got := h.deliver("s", "b"); got.Len() != 20 {
		t.Errorf("delivered %v of the other topic", got)
	}
}

// TestSafeNeverFalls goes through what may take a ledger away, and restarts after each.
func TestSafeNeverFalls(t *testing.T) {
	type step struct {
		name string
		do   func(h *harness)
	}
	must := func(h *harness, err error) {
		h.t.Helper()
		if err != nil {
			h.t.Fatal(err)
		}
	}
	file := func(subs ...SubscriptionConfig) func(h *harness) {
		return func(h *harness) { h.restart(subs...) }
	}
	optional := all("s")
	optional.Required = false
	remove := func(h *harness) {
		must(h, h.manage(func() error { return h.q.Unsubscribe(h.t.Context(), "s", false) }))
	}
	seek := func(to int64) func(*harness) {
		return func(h *harness) {
			must(h, h.manage(func() error {
				return h.q.Seek(h.t.Context(), "s", Nowhere, []Start{{testPartition("t"), to}})
			}))
		}
	}
	update := func(alter func(*SubscriptionConfig)) func(*harness) {
		return func(h *harness) {
			must(h, h.manage(func() error { return h.q.Update(h.t.Context(), "s", alter) }))
		}
	}
	create := func(place Place) func(*harness) {
		return func(h *harness) {
			must(h, h.manage(func() error {
				return h.q.Subscribe(h.t.Context(), wants("new", "*"), place, []Start{{testPartition("t"), 3}})
			}))
		}
	}
	for name, steps := range map[string][]step{
		"deleted as documented":      {{"take it out of the file", file()}, {"delete", remove}},
		"renamed":                    {{"rename", file(all("renamed"))}, {"delete the old one", remove}},
		"topics wrong":               {{"restart", file(wants("s", "nothing"))}, {"again", file(wants("s", "nothing"))}, {"mend", file(all("s"))}},
		"topics wrong, then deleted": {{"restart", file(wants("s", "nothing"))}, {"take out", file()}, {"delete", remove}},
		"not required":               {{"restart", file(optional)}, {"back", file(all("s"))}},
		"not required, then deleted": {{"restart", file(optional)}, {"take out", file()}, {"delete", remove}},
		"sought back":                {{"seek", seek(2)}},
		"sought back and forth":      {{"seek", seek(2)}, {"ahead", seek(20)}},
		"updated topics":             {{"narrow", update(func(c *SubscriptionConfig) { c.Topics = []string{"x"} })}, {"widen", update(func(c *SubscriptionConfig) { c.Topics = []string{"t"} })}},
		"updated required":           {{"off", update(func(c *SubscriptionConfig) { c.Required = false })}, {"on", update(func(c *SubscriptionConfig) { c.Required = true })}},
		"another one from the past":  {{"create", create(Earliest)}, {"take out", file()}, {"delete", remove}},
	} {
		for _, delivered := range []bool{true, false} {
			for _, acked := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s,delivered=%t,acked=%t", name, delivered, acked), func(t *testing.T) {
					h := newHarness(t, all("s"))
					h.cfg.Delivered = delivered
					h.reopen()
					h.append("t", 0, 20)
					if acked {
						h.deliver("s", "t")
					} else {
						h.pass(h.cfg.SpillAfter)
						h.write()
					}
					before := h.assigned("t")
					if want := acked || !delivered; want != (before.Safe == 20) {
						t.Fatalf("safe is %d", before.Safe)
					}
					for _, s := range steps {
						s.do(h)
						h.wantNoStepBack("t", before, 20)
						h.reopen()
						h.wantNoStepBack("t", before, 20)
						h.checkAudit()
						before = h.assigned("t")
					}
				})
			}
		}
	}
}

// TestSeekAheadNamesWhatItSkips: promise 3 holds for what an operator gives up.
func TestSeekAheadNamesWhatItSkips(t *testing.T) {
	for name, to := range map[string]struct {
		place  Place
		starts []Start
		skips  Range
	}{
		"latest":    {Latest, nil, Range{10, 40}},
		"an offset": {Nowhere, []Start{{testPartition("t"), 25}}, Range{10, 25}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, all("s"))
			s := h.session("s", true, 10)
			h.append("t", 0, 10)
			h.append("t", 10, 40)
			h.ack(s, 1, leasesOf(drain(s)))
			h.write()
			s.Close()
			if err := h.manage(func() error { return h.q.Seek(t.Context(), "s", to.place, to.starts) }); err != nil {
				t.Fatal(err)
			}
			for _, when := range []string{"at once", "after a restart"} {
				list, err := h.q.Undelivered("s")
				if err != nil || len(list) != 1 || list[0].Range != to.skips || list[0].Outcome != Dropped || list[0].AtMs == 0 {
					t.Errorf("%s: undelivered %+v, %v; want %v dropped", when, list, err, to.skips)
				}
				accounts, err := h.q.Audit("s")
				if err != nil || accounts[0].Start != 0 || accounts[0].Outcomes[Delivered] != 10 || accounts[0].Outcomes[Dropped] != to.skips.Len() {
					t.Errorf("%s: audit %+v, %v", when, accounts, err)
				}
				h.checkAudit()
				h.pass(h.cfg.SpillAfter)
				h.write()
				h.reopen()
			}
		})
	}
}

// TestSeekToEarliestSkipsNothing: where the oldest batch that is held comes after what is still
// to be refetched.
func TestSeekToEarliestSkipsNothing(t *testing.T) {
	h := newHarness(t, SubscriptionConfig{Name: "s", Topics: []string{"*"}, Required: true})
	h.append("t", 0, 10)
	h.pass(h.cfg.SpillAfter)
	h.write()
	h.append("t", 10, 20)
	h.reopen() // [10,20) is gone
	h.append("t", 10, 20)
	h.pass(h.cfg.SpillAfter)
	h.write()
	for _, e := range h.store.entries {
		if e.Kind == BatchEntry {
			h.store.released[e.Ref] = true // a lost segment
			break
		}
	}
	h.reopen()
	if err := h.manage(func() error { return h.q.Seek(t.Context(), "s", Earliest, nil) }); err != nil {
		t.Fatal(err)
	}
	if got := h.deliver("s", "t"); got.Len() != 20 {
		t.Errorf("delivered %v, want [0,20)", got)
	}
}

// TestAckBesideSeekCountsBefore: a batch that is acked while a seek is being written is delivered
// again as the seek asks.
func TestAckBesideSeekCountsBefore(t *testing.T) {
	h := newHarness(t, all("s"))
	h.append("t", 0, 10)
	s := h.session("s", false, 100)
	leases := leasesOf(drain(s))
	select {
	case <-h.q.kick: // of what came before
	default:
	}
	sought := make(chan error, 1)
	go func() { sought <- h.q.Seek(t.Context(), "s", Nowhere, []Start{{testPartition("t"), 0}}) }()
	<-h.q.kick // enqueued
	h.ack(s, 1, leases)
	h.write()
	if err := <-sought; err != nil {
		t.Fatal(err)
	}
	s.Close()
	if got := h.deliver("s", "t"); got.Len() != 10 {
		t.Errorf("delivered %v again, want [0,10)", got)
	}
}

// TestNarrowedOfOldData opens what the version before wrote: without kept ledgers and safe
// offsets.
func TestReachedOfOldData(t *testing.T) {
	h := newHarness(t, all("s"))
	h.append("t", 5, 25)
	h.deliver("s", "t")
	h.reopen()
	for i := range h.store.entries {
		if e := &h.store.entries[i]; e.Kind == SnapshotEntry {
			e.Meta = bytes.ReplaceAll(e.Meta, []byte(`"safe":`), []byte(`"unknown":`))
		}
	}
	h.restart()
	h.wantNoStepBack("t", Assigned{Safe: 25}, 25)
}
