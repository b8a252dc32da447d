package queue

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// startWith opens the queue again as another buffer does that was started with another file. What
// is in memory is written before.
func (h *harness) startWith(revision int64, subs ...SubscriptionConfig) {
	h.t.Helper()
	h.cfg.Numbered, h.cfg.Revision = true, revision
	h.restart(subs...)
}

func (h *harness) view(sub string) SubscriptionView {
	h.t.Helper()
	v, err := h.q.Subscription(sub)
	if err != nil {
		h.t.Fatal(err)
	}
	return v
}

// TestAnOlderFileDoesNotCount is a rolling change of the file: the shard moves to a buffer that
// has the new one, back to one that has the old one, and to the new one again. What the
// subscription began to want stays its own all the time, and holds safe.
func TestAnOlderFileDoesNotCount(t *testing.T) {
	t.Parallel()
	h := newHarness(t, all("other"))
	log := h.logTo()
	h.cfg.Delivered = true
	older, newer := wants("s", "orders"), wants("s", "orders", "billing*")
	other := all("other")
	other.Required = false
	newer.OnFull, newer.Limit, newer.Headers = DropOldest, 1<<30, []HeaderFilter{{Name: "h", Values: []string{"v"}}}
	h.startWith(1, other, older)
	h.append("orders", 0, 10)
	h.startWith(2, other, newer)
	h.append("billing", 0, 50)
	for range 2 {
		h.startWith(1, other, older)
		if v := h.view("s"); !v.SubscriptionConfig.equal(&newer) {
			t.Fatalf("with the older file it is %+v, want %+v", v.SubscriptionConfig, newer)
		}
		if revision, _ := h.q.Revision(); revision != 2 {
			t.Errorf("revision is %d, want 2", revision)
		}
	}
	h.append("billing", 50, 80)
	h.deliver("other", "billing")
	h.deliver("other", "orders")
	if a := h.assigned("billing"); a.Safe != 0 {
		t.Errorf("safe is %d, and s has had nothing of it", a.Safe)
	}
	h.q.logLines.flush(time.Minute)
	if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "subscriptions [s], with revision 1") {
		t.Errorf("no warning says that the file does not count:\n%s", log)
	}
	h.startWith(2, other, newer)
	if got := h.deliver("s", "billing"); got.Len() != 80 {
		t.Errorf("delivered %v, want [0,80)", got)
	}
	if a := h.assigned("billing"); a.Safe != 80 {
		t.Errorf("safe is %d, want 80", a.Safe)
	}
	h.checkAudit()
}

// TestOnlyNewNamesCount without a higher revision: those that a queue has, or has had, are left as
// they are, also over snapshots.
func TestOnlyNewNamesCount(t *testing.T) {
	t.Parallel()
	h := newHarness(t, all("kept"), all("deleted"))
	h.startWith(5, all("kept"))
	h.append("t", 0, 10)
	if err := h.manage(func() error { return h.q.Unsubscribe(t.Context(), "deleted", false) }); err != nil {
		t.Fatal(err)
	}
	changed := func(c *SubscriptionConfig) { c.Limit = 1 << 20 }
	if err := h.manage(func() error { return h.q.Update(t.Context(), "kept", changed) }); err != nil {
		t.Fatal(err)
	}
	names := func() (all []string) {
		for _, v := range h.q.Subscriptions() {
			all = append(all, v.Name)
		}
		return all
	}
	narrow := wants("kept", "x")
	for _, revision := range []int64{0, 4, 5} {
		h.startWith(revision, narrow, all("deleted"), all("added"))
		if got := names(); !reflect.DeepEqual(got, []string{"added", "kept"}) {
			t.Errorf("with revision %d there are %v", revision, got)
		}
		if v := h.view("kept"); v.Limit != 1<<20 || v.Topics[0] != "*" {
			t.Errorf("with revision %d kept is %+v", revision, v.SubscriptionConfig)
		}
	}
	h.startWith(6, narrow, all("deleted"))
	if got := names(); !reflect.DeepEqual(got, []string{"added", "deleted", "kept"}) {
		t.Errorf("with a higher revision there are %v", got)
	}
	if v := h.view("kept"); v.Limit != 0 || v.Topics[0] != "x" {
		t.Errorf("with a higher revision kept is %+v", v.SubscriptionConfig)
	}
	h.startWith(6, narrow)
	if err := h.manage(func() error { return h.q.Unsubscribe(t.Context(), "deleted", false) }); err != nil {
		t.Fatal(err)
	}
	h.reopen()
	h.startWith(6, all("deleted"))
	if got := names(); !reflect.DeepEqual(got, []string{"added", "kept"}) {
		t.Errorf("deleted once more, there are %v", got)
	}
}

// TestBoundsHaveARevision: those of the store, too, do not go with the file of whoever has the
// shard.
func TestBoundsHaveARevision(t *testing.T) {
	t.Parallel()
	h := newHarness(t, all("s"))
	bounds := func(want int64) {
		t.Helper()
		if now, _ := h.q.Limits(); now.DiskBytes != want {
			t.Errorf("disk bytes are %d, want %d", now.DiskBytes, want)
		}
	}
	h.cfg.DiskBytes = 1000
	h.startWith(1, all("s"))
	bounds(1000)
	h.cfg.DiskBytes = 2000
	h.startWith(1, all("s"))
	bounds(1000)
	if err := h.manage(func() error {
		return h.q.SetLimits(t.Context(), func(l *Limits) error { l.DiskBytes = 3000; return nil })
	}); err != nil {
		t.Fatal(err)
	}
	h.cfg.DiskBytes = 1000
	h.startWith(1, all("s"))
	bounds(3000)
	h.startWith(2, all("s"))
	bounds(1000)
}

// TestConfigureHasARevision: a file that is read while the queue runs counts with a higher
// revision, and is refused with another one when it says something else.
func TestConfigureHasARevision(t *testing.T) {
	t.Parallel()
	h := newHarness(t, all("s"))
	h.startWith(1, all("s"))
	configure := func(revision int64, bytes int64, s SubscriptionConfig) error {
		return h.manage(func() error {
			return h.q.Configure(t.Context(), revision, Limits{h.cfg.DiskRecords, bytes}, []SubscriptionConfig{s})
		})
	}
	same, narrow := h.cfg.DiskBytes, wants("s", "x")
	if err := configure(1, same, all("s")); err != nil {
		t.Error(err)
	}
	if err := configure(1, same, narrow); !errors.Is(err, ErrRevision) || !strings.Contains(err.Error(), "subscriptions [s]") {
		t.Errorf("another subscription: %v", err)
	}
	if err := configure(0, 7, all("s")); !errors.Is(err, ErrRevision) || !strings.Contains(err.Error(), "the bounds of disk") {
		t.Errorf("other bounds: %v", err)
	}
	if v := h.view("s"); v.Topics[0] != "*" {
		t.Errorf("after what was refused, it is %+v", v)
	}
	if err := configure(3, 7, narrow); err != nil {
		t.Fatal(err)
	}
	h.startWith(2, all("s"))
	revision, _ := h.q.Revision()
	if now, _ := h.q.Limits(); revision != 3 || now.DiskBytes != 7 || h.view("s").Topics[0] != "x" {
		t.Errorf("revision %d, %+v, %+v", revision, now, h.view("s"))
	}
}

// TestRevisionOfAnOldLedger: one that was written by a version without revisions is opened as that
// version did, once. Headers, which only files had, are those of the file.
func TestRevisionOfAnOldLedger(t *testing.T) {
	t.Parallel()
	h := newHarness(t, all("s"), all("changed"))
	h.append("t", 0, 10)
	if err := h.manage(func() error {
		return h.q.Update(t.Context(), "s", func(c *SubscriptionConfig) { c.Limit = 5 })
	}); err != nil {
		t.Fatal(err)
	}
	s := all("s")
	s.Headers = []HeaderFilter{{Name: "h", Values: []string{"v"}}}
	h.startWith(0, s, wants("changed", "t"))
	if v := h.view("s"); v.Limit != 5 || len(v.Headers) != 1 {
		t.Errorf("s is %+v", v.SubscriptionConfig)
	}
	if v := h.view("changed"); v.Topics[0] != "t" {
		t.Errorf("changed is %+v", v.SubscriptionConfig)
	}
	h.startWith(0, s, all("changed"))
	if v := h.view("changed"); v.Topics[0] != "t" {
		t.Errorf("opened once more, changed is %+v", v.SubscriptionConfig)
	}
}

// TestRollingFiles has a shard go back and forth between buffers that were started with three
// different files, while subscriptions are moved, made, changed and deleted, with a takeover after
// each. None refuses the shard, the file with the highest revision that was there counts as a
// whole until it is changed at run time, safe goes back nowhere and never passes what a required
// subscription lacks, and in the end each has had all that it wanted.
func TestRollingFiles(t *testing.T) {
	t.Parallel()
	seeds := 60
	if testing.Short() {
		seeds = 10
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rollFiles(t, rand.New(rand.NewPCG(uint64(seed), 3)))
		})
	}
}

func rollFiles(t *testing.T, rng *rand.Rand) {
	h := newHarness(t, all("all"))
	h.cfg.Delivered, h.cfg.KeepsOld, h.cfg.MemoryRecords, h.cfg.MemoryBytes = true, true, 1<<30, 1<<30
	file := func(revision int64) (subs []SubscriptionConfig) {
		a, b := wants("a", "orders"), wants("b", "bill*")
		switch revision {
		case 2:
			a.Topics, b.Required = []string{"orders", "bill*"}, false
		case 3:
			a.Topics, a.Limit, b.OnFull = []string{"orders", "bill*", "new"}, 1<<30, Defer
		}
		return append(subs, all("all"), a, b)
	}
	topics := []string{"orders", "billing", "new"}
	next := make(map[string]int64)
	safe := make(map[string]int64)
	highest, count := int64(0), make(map[string]SubscriptionConfig) // as they are to be, by name
	opens := func(revision int64) {
		h.startWith(revision, file(revision)...)
		if revision > highest {
			highest = revision
			for _, c := range file(revision) {
				c.OnFull = max(c.OnFull, Block)
				count[c.Name] = c
			}
		}
		for name, want := range count {
			if got := h.view(name).SubscriptionConfig; !got.equal(&want) {
				t.Fatalf("opened with revision %d, and %d counts: %s is %+v, want %+v", revision, highest, name, got, want)
			}
		}
		if got := len(h.q.Subscriptions()); got != len(count) {
			t.Fatalf("there are %d subscriptions, want %d", got, len(count))
		}
		for _, topic := range topics {
			if next[topic] == 0 {
				continue
			}
			at := h.assigned(topic)
			if at.Safe < safe[topic] || at.Resume < at.Safe {
				t.Fatalf("%s: safe is %d, and it was %d; resume %d", topic, at.Safe, safe[topic], at.Resume)
			}
			next[topic] = at.Resume // what was in memory only is read again
			safe[topic] = at.Safe
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	opens(1)
	made := 0
	for range 40 {
		topic := topics[rng.IntN(len(topics))]
		switch rng.IntN(8) {
		case 0, 1, 2:
			n := next[topic] + 1 + rng.Int64N(20)
			h.append(topic, next[topic], n)
			next[topic] = n
		case 3:
			names := slices.Sorted(maps.Keys(count))
			h.deliver(names[rng.IntN(len(names))], topic)
		case 4:
			if name := []string{"a", "b"}[rng.IntN(2)]; next[topic] > 0 && h.view(name).SubscriptionConfig.Topics != nil {
				place := []Place{Earliest, Latest}[rng.IntN(2)]
				must(h.manage(func() error { return h.q.Seek(t.Context(), name, place, nil) }))
			}
		case 5:
			made++
			c := wants(fmt.Sprint("made", made), "*")
			c.OnFull, c.Required = Block, rng.IntN(2) == 0
			must(h.manage(func() error { return h.q.Subscribe(t.Context(), c, Earliest, nil) }))
			count[c.Name] = c
		case 6:
			c := count["a"]
			c.Limit, c.Required = 1<<20+rng.Int64N(1<<20), !c.Required
			must(h.manage(func() error { return h.q.Update(t.Context(), "a", func(x *SubscriptionConfig) { *x = c }) }))
			count["a"] = c
		case 7:
			name := fmt.Sprint("made", made)
			if _, there := count[name]; there {
				must(h.manage(func() error { return h.q.Unsubscribe(t.Context(), name, true) }))
				delete(count, name)
			}
		}
		h.checkAudit()
		opens(1 + rng.Int64N(3))
	}
	opens(3)
	for _, name := range slices.Sorted(maps.Keys(count)) {
		h.deliver(name, "")
		if v := h.view(name); v.PendingRecords != 0 || v.Deferred != 0 {
			t.Errorf("%s has %d records pending and %d deferred", name, v.PendingRecords, v.Deferred)
		}
	}
	h.checkAudit()
	for _, topic := range topics {
		if next[topic] > 0 {
			if at := h.assigned(topic); at.Safe != next[topic] {
				t.Errorf("%s: safe is %d, want %d", topic, at.Safe, next[topic])
			}
		}
	}
}
