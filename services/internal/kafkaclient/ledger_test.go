package kafkaclient

import (
	"reflect"
	"strings"
	"testing"
)

// TestLedgers: what is not known of both proves nothing.
func TestLedgers(t *testing.T) {
	of := func(lives ...string) Ledger { return Ledger{"q", lives} }
	for _, test := range []struct {
		a, b          Ledger
		differs, same bool
	}{
		{of(), of(), false, false},
		{of("x"), of(), false, false},
		{of("x"), of(""), false, false},
		{of("x"), of("x"), false, true},
		{of("x"), of("y"), true, false},
		{of("x", ""), of("", "y"), false, false},
		{of("x", "y"), of("", "y"), false, true},
		{of("x", "y"), of("x", "z"), true, false},
		{of("x", "y", "z"), of("x"), false, true},
	} {
		for range 2 {
			if d, s := test.a.Differs(test.b), test.a.Same(test.b); d != test.differs || s != test.same {
				t.Errorf("%v and %v: differs %t, same %t", test.a, test.b, d, s)
			}
			test.a, test.b = test.b, test.a
		}
	}
}

// TestUserData of members goes through the protocol's messages, and others' is not understood.
func TestUserData(t *testing.T) {
	ledger := Ledger{"q", []string{"x", ""}}
	for _, user := range []userData{{}, {Ledger: &ledger}} {
		topics, got, err := parseSubscription(encodeSubscription([]string{"a", "b"}, user))
		want := Ledger{}
		if user.Ledger != nil {
			want = ledger
		}
		if err != nil || !reflect.DeepEqual(topics, []string{"a", "b"}) || !reflect.DeepEqual(got, want) {
			t.Errorf("%v, %v, %v", topics, got, err)
		}
	}
	for _, other := range []string{"", "\xff\xff\xff\xff", "\x00\x00\x00\x02{}", "\x00\x00\x00\x04what", "\x00\x00\x00\x09{}", "\x00\x00\x00\x02[]"} {
		topics, got, err := parseSubscription([]byte("\x00\x01\x00\x00\x00\x01\x00\x01a" + other))
		if err != nil || len(topics) != 1 || got.known() {
			t.Errorf("%q: %v, %v, %v", other, topics, got, err)
		}
	}
	rival := &Peer{Name: "m", Ledger: ledger}
	partitions, got, err := parseAssignment(encodeAssignment(map[string][]int{"a": {1, 2}}, userData{Rival: rival}))
	if err != nil || !reflect.DeepEqual(partitions, map[string][]int{"a": {1, 2}}) || !reflect.DeepEqual(got, rival) {
		t.Errorf("%v, %v, %v", partitions, got, err)
	}
	if _, got, err := parseAssignment(encodeAssignment(nil, userData{})); got != nil || err != nil {
		t.Errorf("%v, %v", got, err)
	}
	e := &RivalError{"g", Ledger{"own", []string{"1", "2", "3", "4", "5"}}, Peer{Name: "m", Host: "/10.0.0.1", Ledger: ledger}}
	if s := e.Error(); !strings.Contains(s, "member m from 10.0.0.1") || !strings.Contains(s, "1, 2, 3, …") || strings.Contains(s, "4") {
		t.Error(s)
	}
}
