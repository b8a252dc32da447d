package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
)

// pausedEvents are those of a session that are about a pause.
func pausedEvents(s *Session) (all []bool) {
	for _, e := range drain(s) {
		if e.Paused != nil {
			all = append(all, *e.Paused)
		}
	}
	return all
}

// TestPausesAreKept pauses a source and a delivery: all that it is about hear of it, and it is
// there after a restart, from the journal and from a snapshot.
func TestPausesAreKept(t *testing.T) {
	h := newHarness(t, all("s"), all("other"))
	one, two, foreign := h.q.Watch("k", "one"), h.q.Watch("k", "two"), h.q.Watch("elsewhere", "x")
	if err := h.manage(func() error { return one.PauseSource(t.Context(), "logs", true) }); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, w := range []*Watcher{one, two} {
		if n, err := w.Next(ctx); err != nil || !slices.Equal(n.Paused, []string{"logs"}) {
			t.Errorf("%+v, %v", n, err)
		}
	}
	if n, err := foreign.Next(ctx); !errors.Is(err, context.Canceled) || len(foreign.PausedSources()) != 0 {
		t.Errorf("an ingest of another cluster heard %+v, %v", n, err)
	}

	a, b, c := h.session("s", false, 1), h.session("s", false, 1), h.session("other", false, 1)
	for _, s := range []*Session{a, b, c} {
		if paused, err := s.SetDelivery("hdfs"); paused || err != nil {
			t.Fatal(paused, err)
		}
	}
	if err := h.manage(func() error { return a.PauseDelivery(t.Context(), true) }); err != nil {
		t.Fatal(err)
	}
	if x, y, z := pausedEvents(a), pausedEvents(b), pausedEvents(c); !slices.Equal(x, []bool{true}) || !slices.Equal(y, []bool{true}) || z != nil {
		t.Errorf("heard %v, %v and, of another subscription, %v", x, y, z)
	}

	for _, how := range []string{"the journal", "a snapshot"} {
		h.reopen() // the second time, what the first one wrote is a snapshot
		one, a = h.q.Watch("k", "one"), h.session("s", false, 1)
		if got := one.PausedSources(); !slices.Equal(got, []string{"logs"}) {
			t.Errorf("from %s: sources %q are paused", how, got)
		}
		if paused, err := a.SetDelivery("hdfs"); !paused || err != nil {
			t.Errorf("from %s: %v, %v", how, paused, err)
		}
		if paused, err := h.session("other", false, 1).SetDelivery("hdfs"); paused || err != nil {
			t.Errorf("from %s, of another subscription: %v, %v", how, paused, err)
		}
	}
	if err := h.manage(func() error { return a.PauseDelivery(t.Context(), false) }); err != nil || !slices.Equal(pausedEvents(a), []bool{false}) {
		t.Errorf("resume: %v", err)
	}
	if err := h.manage(func() error { return one.PauseSource(t.Context(), "logs", false) }); err != nil {
		t.Fatal(err)
	}
	if n, err := one.Next(ctx); err != nil || n.Paused == nil || len(n.Paused) != 0 {
		t.Errorf("resume: %+v, %v", n, err)
	}
	h.reopen()
	if got := h.q.Watch("k", "one").PausedSources(); len(got) != 0 {
		t.Errorf("%q are paused", got)
	}
}

func TestPausesAreBounded(t *testing.T) {
	h := newHarness(t, all("s"))
	w := h.q.Watch("k", "one")
	pause := func(name string, paused bool) error {
		return h.manage(func() error { return w.PauseSource(t.Context(), name, paused) })
	}
	for i := range maxPaused {
		if err := pause(fmt.Sprint("source", i), true); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]error{"one more": ErrTooMany, "": ErrInvalid, string(make([]byte, MaxNameBytes+1)): ErrInvalid} {
		if err := pause(name, true); !errors.Is(err, want) {
			t.Errorf("%.20q: %v, want %v", name, err, want)
		}
	}
	if err := errors.Join(pause("source1", true), pause("source1", false), pause("another", true)); err != nil {
		t.Error(err)
	}
	s := h.session("s", false, 1)
	if err := h.manage(func() error { return s.PauseDelivery(t.Context(), true) }); !errors.Is(err, ErrInvalid) {
		t.Errorf("of a session that is of no delivery: %v", err)
	}
	s.Close()
	if err := h.manage(func() error { return s.PauseDelivery(t.Context(), true) }); !errors.Is(err, ErrNoSession) {
		t.Errorf("of a dead session: %v", err)
	}
}

// TestConfigureWhileRunning brings bounds and policies in line with another configuration. What
// was set at run time holds where the configuration says what it said, and is gone where it does
// not, over restarts too.
func TestConfigureWhileRunning(t *testing.T) {
	h := newHarness(t, all("s"), all("same"))
	h.cfg.DiskRecords, h.cfg.DiskBytes = 10, 1000
	h.reopen()
	set := func(records int64) {
		t.Helper()
		if err := h.manage(func() error {
			return h.q.SetLimits(t.Context(), func(l *Limits) error { l.DiskRecords = records; return nil })
		}); err != nil {
			t.Fatal(err)
		}
	}
	configure := func(l Limits, subs ...SubscriptionConfig) {
		t.Helper()
		if err := h.manage(func() error { return h.q.Configure(t.Context(), 0, l, subs) }); err != nil {
			t.Fatal(err)
		}
		h.cfg.DiskRecords, h.cfg.DiskBytes, h.cfg.Subscriptions = l.DiskRecords, l.DiskBytes, subs
	}
	check := func(what string, want Limits, limit int64) {
		t.Helper()
		for _, when := range []string{"now", "after a restart", "after another"} {
			s, err := h.q.Subscription("s")
			if now, _ := h.q.Limits(); now != want || err != nil || s.Limit != limit {
				t.Errorf("%s, %s: %+v with limit %d, %v", what, when, now, s.Limit, err)
			}
			h.reopen()
		}
	}
	set(20)
	if err := h.manage(func() error {
		return h.q.Update(t.Context(), "s", func(c *SubscriptionConfig) { c.Limit = 5 })
	}); err != nil {
		t.Fatal(err)
	}
	configure(Limits{10, 1000}, all("s"), all("same"))
	check("the same", Limits{20, 1000}, 5)
	other := all("s")
	other.Limit, other.OnFull = 7, DropOldest
	configure(Limits{30, 1000}, other, all("same"))
	check("another", Limits{30, 1000}, 7)
	configure(Limits{10, 1000}, all("s"), all("same"))
	check("as at first", Limits{10, 1000}, 0)
}
