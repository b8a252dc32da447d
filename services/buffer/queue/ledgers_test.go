package queue

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

// TestLedgersAreParsed as encoding/json reads them, and what is written otherwise is left to that.
func TestLedgersAreParsed(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var l ledgers
	for id := range int64(200) {
		s := NewSettled(random.Int64N(1000), random.Int64N(3)*1_700_000_000_000)
		for range random.IntN(20) {
			first := s.Start + random.Int64N(100)
			s.Add(Range{first, first + 1 + random.Int64N(5)}, Outcome(1+random.IntN(outcomes-1)))
		}
		l.settled = append(l.settled, fmt.Sprintf(`,"%d":`, id)...)
		l.settled = s.appendJSON(l.settled)
	}
	text := "{" + string(l.settled[1:]) + "}"
	check := func(text string, fast bool) {
		t.Helper()
		got, ok := parseLedgers([]byte(text))
		if ok != fast {
			t.Fatalf("it is parsed: %t; %.100s", ok, text)
		}
		var want map[int64]Settled
		err := json.Unmarshal([]byte(text), &want)
		if ok && (err != nil || !reflect.DeepEqual(got, want)) {
			t.Fatalf("of %.100s: %v, want %v (%v)", text, got, want, err)
		}
		var through ledgers
		if e := through.UnmarshalJSON([]byte(text)); (e == nil) != (err == nil) || e == nil && !reflect.DeepEqual(through.restored, want) {
			t.Fatalf("of %.100s: %v, want %v", text, e, err)
		}
	}
	check(text, true)
	check("{}", true)
	one := `{"7":{"start":1,"floor":5,"counts":[0,4,0,0,0,0],"above":[{"f":7,"n":9,"o":1}],"epoch":3}}`
	check(one, true)
	check(strings.Replace(one, `"floor":5`, `"floor":-5`, 1), true)
	check(strings.Replace(one, `"floor":5`, `"floor": 5`, 1), false)
	check(strings.Replace(one, `"floor":5`, `"floor":99999999999999999999`, 1), false)
	check(strings.Replace(one, `,"epoch":3`, `,"epoch":3,"new":1`, 1), false)
	check(strings.Replace(one, `"o":1`, `"o":257`, 1), false)
	check(strings.Replace(one, `[0,4,0,0,0,0]`, `[0,4]`, 1), false)
	for i := range one {
		check(one[:i], false)
	}
	check(one+" ", false)
}
