package queue

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// TestOldIsSpilled: what is in memory only is written when an ingest says that Kafka may delete it
// soon, long before it would be otherwise; but not while Kafka is far from that.
func TestOldIsSpilled(t *testing.T) {
	h := newHarness(t, SubscriptionConfig{Name: "s", Topics: []string{"*"}, Required: true})
	h.cfg.SpillAfter, h.cfg.Delivered, h.cfg.KeepsOld = time.Hour, true, true
	h.reopen()
	h.append("t", 0, 10)
	h.write()
	spilled := func(want int64) {
		t.Helper()
		h.write()
		if got := h.q.Stats().SpilledRecords; got != want {
			t.Errorf("%d records are spilled, want %d", got, want)
		}
	}
	old := func(before int64) {
		t.Helper()
		if err := h.q.Old(testPartition("t"), before); err != nil {
			t.Fatal(err)
		}
	}
	spilled(0)
	old(0)
	spilled(0)
	old(5)
	spilled(10)
	h.pass(time.Second)
	h.append("t", 10, 20) // not looked at before the ingest tells again
	spilled(10)
	old(5)
	spilled(20)
	if err := h.q.Old(testPartition("other"), 5); err != nil {
		t.Errorf("a partition that is not known: %v", err)
	}

	h.cfg.KeepsOld = false
	h.reopen()
	h.append("t", 20, 30)
	old(30)
	spilled(0)
}

// TestOldIsTakenBack: what a required subscription has deferred, or is paused for, is refetched
// when Kafka may delete it soon, and is stored. For one that is not required its policy holds.
func TestOldIsTakenBack(t *testing.T) {
	for _, required := range []bool{true, false} {
		h := newHarness(t, SubscriptionConfig{Name: "s", Topics: []string{"*"}, Required: required, OnFull: Defer, Limit: 100})
		h.cfg.SpillAfter, h.cfg.Delivered, h.cfg.KeepsOld = 0, true, true
		h.reopen()
		h.append("t", 0, 90)
		h.append("t", 90, 180) // above the limit
		h.write()
		if err := h.manage(func() error { return h.q.Pause(t.Context(), "s", true) }); err != nil {
			t.Fatal(err)
		}
		w := h.q.Watch(testPartition("t").Cluster, "ingest")
		asked := func() []Refetch {
			t.Helper()
			h.pass(time.Second)
			h.q.mu.Lock()
			defer h.q.mu.Unlock()
			return w.refetches
		}
		if got := asked(); len(got) != 0 {
			t.Fatalf("asked for %v, though it is deferred by its policy", got)
		}
		if err := h.q.Old(testPartition("t"), 90); err != nil { // what is deferred begins there
			t.Fatal(err)
		}
		if got := asked(); len(got) != 0 {
			t.Fatalf("asked for %v, which is young", got)
		}
		if err := h.q.Old(testPartition("t"), 100); err != nil {
			t.Fatal(err)
		}
		got := asked()
		if !required {
			if len(got) != 0 {
				t.Errorf("asked for %v, which is not required", got)
			}
			w.Close()
			continue
		}
		if len(got) != 1 || got[0].Range != (Range{90, 180}) {
			t.Fatalf("asked for %v, want [90,180)", got)
		}
		if _, err := h.q.Append(t.Context(), testBatch("t", 90, 180), got[0].ID); err != nil {
			t.Fatal(err)
		}
		h.write()
		h.reopen() // a crash: all of it is in the store
		if s, err := h.q.Subscription("s"); err != nil || s.Deferred != 0 || s.PendingRecords != 180 {
			t.Errorf("after a restart %d records are pending and %d deferred, %v; want 180", s.PendingRecords, s.Deferred, err)
		}
		w.Close()
		h.checkAudit()
	}
}

// TestDeferredCountsInLimit: after a takeover, what was in memory only is to be refetched. It
// counts in the limit of a subscription that blocks as what is held does.
func TestDeferredCountsInLimit(t *testing.T) {
	for _, keeps := range []bool{true, false} {
		h := newHarness(t, SubscriptionConfig{Name: "s", Topics: []string{"*"}, Required: true, OnFull: Block, Limit: 100})
		h.cfg.SpillAfter, h.cfg.Delivered, h.cfg.KeepsOld = time.Hour, true, keeps
		h.reopen()
		h.append("t", 0, 60)
		s := h.session("s", false, 1000)
		h.write()
		if len(leasesOf(drain(s))) != 1 { // which is not acked
			t.Fatal("nothing is leased")
		}
		h.append("t", 60, 90)
		h.ack(s, 1, leasesOf(drain(s))) // so that it is known how far it was appended
		h.write()
		h.reopen()
		if v, err := h.q.Subscription("s"); err != nil || v.Deferred != 60 {
			t.Fatalf("%d offsets are deferred, %v; want 60", v.Deferred, err)
		}
		h.append("t", 90, 130)
		_, err := h.q.Append(t.Context(), testBatch("t", 130, 140), 0)
		if full := errors.Is(err, ErrFull); full != keeps {
			t.Errorf("with 40 bytes held and 60 deferred, of at most 100: %v", err)
		}
	}
}

// TestUnreadIsStored: what a required subscription has deferred, or what is in memory, of a
// partition that no ingest reads any more goes to the store a while later, by way of another
// ingest of the cluster. Without one it is named, with the time.
func TestUnreadIsStored(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	log := h.logTo()
	h.cfg.SpillAfter, h.cfg.Delivered, h.cfg.KeepsOld = time.Hour, true, true
	h.cfg.Subscriptions = []SubscriptionConfig{{Name: "s", Topics: []string{"*"}, Required: true, OnFull: Defer, Limit: 100}}
	h.reopen()
	reads := h.q.Watch("k", "reads")
	if err := reads.Add(testPartition("t")); err != nil {
		t.Fatal(err)
	}
	h.append("t", 0, 90)
	h.append("t", 90, 180) // above the limit
	asked := func(w *Watcher) []Refetch {
		t.Helper()
		h.pass(time.Second)
		h.q.mu.Lock()
		defer h.q.mu.Unlock()
		return w.refetches
	}
	unread := func() (all []Unread) {
		for u := range h.q.Unread() {
			all = append(all, u)
		}
		return all
	}
	h.pass(3 * unreadGrace)
	if got := asked(reads); len(got) != 0 || len(unread()) != 0 {
		t.Fatalf("asked for %v, unread is %v, though an ingest reads it", got, unread())
	}
	reads.Remove(testPartition("t"))
	reads.Close()
	since := h.now
	h.pass(time.Second)
	h.pass(unreadGrace)
	h.write()
	if s := h.q.Stats(); s.SpilledRecords != 90 {
		t.Errorf("%d records are spilled, want what was in memory", s.SpilledRecords)
	}
	if got := unread(); len(got) != 1 || got[0].Offsets != 90 || got[0].Partition != testPartition("t") || !got[0].Since.Equal(since) {
		t.Errorf("unread is %v, want 90 offsets since %v", got, since)
	}
	h.pass(unreadGrace)
	h.pass(time.Second)
	h.q.logLines.flush(time.Minute)
	if want := "unread_since=" + since.UTC().Format(time.RFC3339); strings.Count(log.String(), want) != 1 || !strings.Contains(log.String(), "offsets=90 from_offset=90") {
		t.Errorf("the log lacks %s:\n%s", want, log)
	}

	other := h.q.Watch("k", "reads another topic")
	got := asked(other)
	if len(got) != 1 || got[0].Range != (Range{90, 180}) {
		t.Fatalf("asked for %v, want [90,180)", got)
	}
	if _, err := h.q.Append(t.Context(), testBatch("t", 90, 180), got[0].ID); err != nil {
		t.Fatal(err)
	}
	h.write()
	h.reopen() // a crash: all of it is in the store
	if s := h.view("s"); s.Deferred != 0 || s.PendingRecords != 180 {
		t.Errorf("after a restart %d records are pending and %d deferred; want 180", s.PendingRecords, s.Deferred)
	}
	if got := unread(); len(got) != 0 {
		t.Errorf("unread is %v", got)
	}
	h.checkAudit()
}
