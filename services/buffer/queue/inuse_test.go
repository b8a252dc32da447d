package queue

import (
	"context"
	"errors"
	"strings"
	"testing"
)

func (h *harness) unsubscribe(name string, force bool) error {
	return h.manage(func() error { return h.q.Unsubscribe(h.t.Context(), name, force) })
}

// TestDeleteIsRefusedWhileInUse: with sessions, with sink state of dead ones, and with that after
// a restart.
func TestDeleteIsRefusedWhileInUse(t *testing.T) {
	h := newHarness(t, all("s"))
	if err := h.manage(func() error { return h.q.Subscribe(t.Context(), wants("gone", "*"), Latest, nil) }); err != nil {
		t.Fatal(err)
	}
	refused := func(when string) {
		t.Helper()
		if err := h.unsubscribe("gone", false); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "force") {
			t.Fatalf("%s: %v, want it refused with what to do", when, err)
		}
	}
	s := h.session("gone", false, 100)
	refused("with a session")
	h.append("t", 0, 10)
	h.ack(s, 1, leasesOf(drain(s)), StateChange{Key: "file", Value: []byte("in use")})
	refused("while an ack with state is being written")
	h.write()
	s.Close()
	refused("with the state of a dead session")
	h.reopen()
	refused("after a restart")
	h.cfg.Subscriptions = []SubscriptionConfig{all("s"), wants("gone", "*")} // the delivery finishes the file
	h.reopen()
	s = h.session("gone", false, 100)
	h.write()
	h.ack(s, 1, nil, StateChange{Key: "file"})
	h.write()
	s.Close()
	h.cfg.Subscriptions = h.cfg.Subscriptions[:1]
	h.reopen()
	if err := h.unsubscribe("gone", false); err != nil {
		t.Fatalf("with nothing in use: %v", err)
	}
}

func TestForcedDeleteEndsSessions(t *testing.T) {
	h := newHarness(t, all("s"))
	if err := h.manage(func() error { return h.q.Subscribe(t.Context(), wants("gone", "*"), Latest, nil) }); err != nil {
		t.Fatal(err)
	}
	s := h.session("gone", false, 100)
	h.append("t", 0, 10)
	h.ack(s, 1, leasesOf(drain(s)), StateChange{Key: "file", Value: []byte("in use")})
	h.write()
	drain(s)
	if err := h.unsubscribe("gone", true); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Events(t.Context()); !errors.Is(err, ErrNoSubscription) {
		t.Errorf("the session ended with %v, want %v", err, ErrNoSubscription)
	}
	if err := s.AddCredit(1); !errors.Is(err, ErrNoSubscription) {
		t.Errorf("credit for the session: %v, want %v", err, ErrNoSubscription)
	}
	s.Close()
	if got := h.q.Sessions(); len(got) != 0 {
		t.Errorf("sessions: %+v", got)
	}
	h.reopen()
	if got := h.q.Sessions(); len(got) != 0 {
		t.Errorf("sessions after a restart: %+v", got)
	}
}

// TestNothingOpensWhileDeleted: a session between a deletion and its fsync would be ended with
// its first files.
func TestNothingOpensWhileDeleted(t *testing.T) {
	h := newHarness(t, all("s"))
	if err := h.manage(func() error { return h.q.Subscribe(t.Context(), wants("gone", "*"), Latest, nil) }); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.q.Unsubscribe(ctx, "gone", false); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if _, err := h.q.OpenSession("gone", "test", false); !errors.Is(err, ErrNoSubscription) {
		t.Errorf("a session of a subscription that is being deleted: %v", err)
	}
	h.write()
	if h.q.subscription("gone") != nil {
		t.Error("the subscription is still there")
	}
}

// TestSourceInUseIsNotForgotten: a source that an ingest reads holds up the time of records.
func TestSourceInUseIsNotForgotten(t *testing.T) {
	h := newHarness(t, all("s"))
	forget := func() error { return h.manage(func() error { return h.q.ForgetSource(t.Context(), "logs") }) }
	w := h.q.Watch("k", "ingest-1")
	w.ListTopics("logs", map[string]int32{"t": 1})
	h.write()
	if err := forget(); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "ingest-1") {
		t.Errorf("a source that is read: %v, want it refused with the ingest's name", err)
	}
	w.ListTopics("logs", nil) // the ingest has it no more
	w.ListTopics("other", map[string]int32{"t": 1})
	if err := forget(); !errors.Is(err, ErrNoSource) {
		t.Errorf("a source that its ingest took back: %v", err)
	}
	w.ListTopics("logs", map[string]int32{"t": 1})
	h.write()
	w.Close()
	if err := forget(); err != nil {
		t.Errorf("a source that nobody reads: %v", err)
	}
}
