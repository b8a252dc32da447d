package queue

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func (h *harness) forget(key string) (StateView, error) {
	var v StateView
	err := h.manage(func() (err error) {
		v, err = h.q.ForgetState(h.t.Context(), "s", key)
		return err
	})
	return v, err
}

func (h *harness) stateKeys() []string {
	h.t.Helper()
	views, err := h.q.State("s")
	if err != nil {
		h.t.Fatal(err)
	}
	var keys []string
	for _, v := range views {
		keys = append(keys, v.Key)
	}
	slices.Sort(keys)
	return keys
}

func TestStateIsListed(t *testing.T) {
	h := newHarness(t, all("s"))
	s := h.session("s", false, 100)
	put := h.now.UnixMilli()
	h.ack(s, 1, nil, StateChange{Key: "a", Value: []byte("1"), HoldsMs: 7}, StateChange{Key: "b", Value: []byte("2")})
	h.write()
	h.pass(time.Minute)
	h.ack(s, 2, nil, StateChange{Key: "a", Value: []byte("11"), HoldsMs: 8}) // its age is that of the first put
	h.write()
	check := func(when string, live bool) {
		t.Helper()
		views, err := h.q.State("s")
		if err != nil || len(views) != 2 {
			t.Fatalf("%s: %+v, %v", when, views, err)
		}
		for _, v := range views {
			if v.SinceMs != put || v.Live != live || v.Session == 0 || v.Key == "a" && (v.HoldsMs != 8 || string(v.Value) != "11") {
				t.Errorf("%s: %+v", when, v)
			}
		}
	}
	check("at first", true)
	s.Close()
	check("of a dead session", false)
	heir := h.session("s", false, 100)
	h.write()
	check("of the heir", true)
	heir.Close()
	h.reopen()
	check("after a restart", false)
	h.reopen() // now from a snapshot
	check("after another", false)
	if _, err := h.q.State("none"); !errors.Is(err, ErrNoSubscription) {
		t.Errorf("of no subscription: %v", err)
	}
}

// TestForgetState forgets entries of a dead session, of a live one, and of one that is being
// handed over.
func TestForgetState(t *testing.T) {
	owners := map[string]func(h *harness, s *Session){
		"live": func(*harness, *Session) {},
		"dead": func(h *harness, s *Session) { s.Close() },
		"dead, after a restart": func(h *harness, s *Session) {
			h.reopen()
		},
		"handed over": func(h *harness, s *Session) {
			s.Close()
			h.session("s", false, 100)
			h.write()
		},
		"being handed over": func(h *harness, s *Session) {
			s.Close()
			h.session("s", false, 100) // the adoption is not written
		},
		"live, with an ack under way": func(h *harness, s *Session) {
			h.ack(s, 2, nil, StateChange{Key: "stuck", Value: []byte("2"), HoldsMs: 8})
		},
	}
	for name, own := range owners {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t, all("s"))
			s := h.session("s", true, 100)
			h.append("t", 0, 10)
			h.pass(h.cfg.SpillAfter)
			h.ack(s, 1, nil, StateChange{Key: "stuck", Value: []byte("1"), HoldsMs: 7}, StateChange{Key: "other", Value: []byte("x")})
			h.write()
			own(h, s)
			v, err := h.forget("stuck")
			if err != nil || v.Key != "stuck" || v.HoldsMs == 0 {
				t.Fatalf("forget: %+v, %v", v, err)
			}
			h.write()
			if keys := h.stateKeys(); !slices.Equal(keys, []string{"other"}) {
				t.Errorf("entries that are left: %q", keys)
			}
			for _, x := range h.q.sessions {
				if x.live {
					t.Errorf("session %d is still there, and may know of the entry", x.ID)
				}
			}
			h.reopen()
			heir := h.session("s", true, 100)
			h.write()
			events := drain(heir)
			i := slices.IndexFunc(events, func(e Event) bool { return e.Adopt != nil })
			if i < 0 || len(events[i].Adopt.State) != 1 || string(events[i].Adopt.State["other"]) != "x" {
				t.Errorf("an heir is handed %+v, want the other entry", events)
			}
			if leases := leasesOf(events); len(leases) == 1 {
				h.ack(heir, 1, leases)
			} else {
				t.Errorf("%d leases", len(leases))
			}
			h.write()
			h.checkAudit()
			if _, err := h.forget("stuck"); !errors.Is(err, ErrNoState) || !strings.Contains(err.Error(), "stuck") {
				t.Errorf("forgotten twice: %v", err)
			}
		})
	}
}

func TestForgetStateTellsTheSession(t *testing.T) {
	h := newHarness(t, all("s"))
	s := h.session("s", false, 100)
	h.ack(s, 1, nil, StateChange{Key: "stuck", Value: []byte("1")})
	h.write()
	drain(s)
	other := h.session("s", false, 100)
	if _, err := h.forget("stuck"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Events(t.Context()); !errors.Is(err, ErrStateForgotten) {
		t.Errorf("the session ended with %v", err)
	}
	if !other.live {
		t.Error("a session that did not own the entry ended")
	}
}

// TestDeletionsMakeRoom: an ack that deletes as many entries as it puts is taken when there is no
// room for more.
func TestDeletionsMakeRoom(t *testing.T) {
	h := newHarness(t, all("s"))
	s := h.session("s", false, 100)
	for i := range MaxStateEntries {
		s.state[string(rune(i))+"k"] = []byte("v")
	}
	n := len(s.state)
	for i := n; i < MaxStateEntries; i++ {
		s.state[strings.Repeat("x", i-n+1)] = []byte("v")
	}
	var some string
	for some = range s.state {
		break
	}
	if err := s.Ack(Ack{ID: 1, State: []StateChange{{Key: some}, {Key: "new", Value: []byte("v")}, {Key: "never there"}}}); err != nil {
		t.Errorf("one deleted, one put: %v", err)
	}
	if err := s.Ack(Ack{ID: 2, State: []StateChange{{Key: "newer", Value: []byte("v")}}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("one more than there may be: %v", err)
	}
}

// TestStateIsBoundedInBytes: the sessions of a subscription cannot keep more than MaxStateBytes
// together, and what makes it less is taken.
func TestStateIsBoundedInBytes(t *testing.T) {
	h := newHarness(t, all("s"))
	a, b := h.session("s", false, 100), h.session("s", false, 100)
	value := make([]byte, MaxStateValueBytes)
	for i := range 500 {
		h.ack(a, uint64(i), nil, StateChange{Key: fmt.Sprint("a", i), Value: value})
	}
	h.write()
	drain(a)
	if err := a.Ack(Ack{ID: 500, State: make([]StateChange, 2*MaxStateEntries+1)}); !errors.Is(err, ErrInvalid) {
		t.Errorf("more changes than entries can need: %v", err)
	}
	sub := a.sub
	if want := int64(500 * (MaxStateValueBytes + stateOverhead)); sub.stateBytes < want || sub.stateBytes > want+500*10 {
		t.Fatalf("%d bytes are counted, want about %d", sub.stateBytes, want)
	}
	before := sub.stateBytes
	sub.stateBytes = MaxStateBytes - 1000 // as if the others had the rest
	if err := b.Ack(Ack{ID: 1, State: []StateChange{{Key: "b", Value: make([]byte, 1000)}}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("more than there may be: %v", err)
	}
	if err := a.Ack(Ack{ID: 2, State: []StateChange{{Key: "a0"}, {Key: "new", Value: value}}}); err != nil {
		t.Errorf("one for one: %v", err)
	}
	sub.stateBytes = MaxStateBytes + 1000 // of a version without the bound
	if err := a.Ack(Ack{ID: 3, State: []StateChange{{Key: "a1", Value: []byte("less")}}}); err != nil {
		t.Errorf("less than before: %v", err)
	}
	sub.stateBytes = before
	h.write()

	// An heir is told in messages that fit, and what is counted stays.
	a.Close()
	h.write()
	state := make(map[string][]byte)
	for _, e := range drain(b) {
		if e.Adopt == nil {
			continue
		}
		bytes := 0
		for key, value := range e.Adopt.State {
			state[key] = value
			bytes += len(value)
		}
		if bytes > adoptBytes {
			t.Errorf("an adoption has %d bytes", bytes)
		}
	}
	if len(state) != 500 || len(b.state) != 500 {
		t.Errorf("the heir was told of %d entries and has %d, want 500", len(state), len(b.state))
	}
	var want int64
	for key, value := range b.state {
		want += int64(stateSize(key, value))
	}
	if sub.stateBytes != want {
		t.Errorf("%d bytes are counted, want %d", sub.stateBytes, want)
	}
	var none []StateChange
	for key := range b.state {
		none = append(none, StateChange{Key: key})
	}
	h.ack(b, 4, nil, none...)
	h.write()
	if sub.stateBytes != 0 {
		t.Errorf("%d bytes are counted when nothing is left", sub.stateBytes)
	}
}

// TestHeirOfManySettles: a session that has inherited more entries than it may put settles, and
// finishes what it has, but begins nothing more.
func TestHeirOfManySettles(t *testing.T) {
	h := newHarness(t, all("s"))
	s := h.session("s", false, 100)
	for i := range MaxStateEntries + 1000 {
		s.state[fmt.Sprint(i)] = []byte("v")
	}
	h.append("t", 0, 10)
	leases := leasesOf(drain(s))
	if len(leases) != 1 {
		t.Fatalf("%d leases", len(leases))
	}
	h.ack(s, 1, leases)
	h.ack(s, 2, nil, StateChange{Key: "7"}, StateChange{Key: "8"}, StateChange{Key: "9", Value: []byte("changed")}, StateChange{Key: "new", Value: []byte("v")})
	if err := s.Ack(Ack{ID: 3, State: []StateChange{{Key: "newer", Value: []byte("v")}}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("one more than there may be: %v", err)
	}
	h.write()
	for _, e := range drain(s) {
		if e.Ack != nil && e.Ack.Err != nil {
			t.Errorf("ack %d: %v", e.Ack.ID, e.Ack.Err)
		}
	}
	if v, err := h.q.Subscription("s"); err != nil || v.PendingRecords != 0 {
		t.Errorf("%+v, %v", v, err)
	}
}
