package kafkastore

import (
	"errors"
	"fmt"
	"hash/maphash"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/internal/race"
)

// The model explores all schedules of a few owners of one journal, within bounds: owners that take
// over at any time and die at any time, requests that arrive late, twice or never, and leaders
// that lose what was not replicated. Frames are judged by rule, as in the store.
//
// What it holds to: a group whose owner heard the answers counts, for ever and once; what counts
// of older owners does not change any more once a new one has opened; and no log that owners have
// written is refused.

const maxFrames, maxRequests, maxOwners = 14, 8, 3

// bounds are how far the model goes, and what is left out of the protocol.
type bounds struct {
	owners, groups, frames, elections, retries int // groups of each owner, frames of each group

	takesAll     bool // readers take all frames
	looksNot     bool // owners do not look for barriers before the offset they are answered
	forgivesSelf bool // an owner's own barrier that came late does not fence it
	byNonce      bool // frames count by the nonce of the last barrier, wherever that is
	unclean      bool // elections lose what was replicated
}

type modelFrame struct{ owner, number, epoch int8 } // number -1: a barrier

type modelOwner struct {
	phase     int8 // idle, opening, open, writing, gone
	epoch     int8
	next      int8
	done      int8 // frames answered
	retries   int8
	recovered uint32 // groups that counted when it opened
}

const (
	idle = iota
	opening
	serving
	writing
	gone
)

type modelState struct {
	log       [maxFrames]modelFrame
	n, hw     int8 // stored by the leader, by all
	owner     [maxOwners]modelOwner
	request   [maxRequests]modelFrame
	m         int8
	elections int8
	acked     uint32
}

func (b *bounds) bit(owner, group int8) uint32 { return 1 << (uint(owner)*8 + uint(group)) }

// visible returns the groups that a reader of the first n frames takes.
func (b *bounds) visible(s *modelState, n int8) (groups uint32, err error) {
	r := newRule(0)
	parts := make(map[modelFrame]int8)
	for i := range n {
		f := s.log[i]
		real := frame{kind: groupFrame, epoch: int64(f.epoch), nonce: uint64(f.owner) + 1, number: uint64(f.number)}
		if f.number < 0 {
			real = frame{kind: barrierFrame, epoch: -1, nonce: real.nonce}
		}
		v, err := r.next(int64(i), &real)
		if b.byNonce && f.number >= 0 {
			v, err = ignored, nil
			if real.nonce == r.nonce && real.number == r.number {
				v, r.number = counts, r.number+1
			}
		}
		if b.takesAll && f.number >= 0 {
			v, err = counts, nil
		}
		if err != nil {
			return 0, fmt.Errorf("a reader refuses the log: %w", err)
		}
		if v != counts {
			continue
		}
		group := modelFrame{f.owner, f.number / int8(b.frames), f.epoch}
		parts[group]++
		if int(parts[group]) == b.frames {
			if bit := b.bit(group.owner, group.number); groups&bit != 0 {
				return 0, errors.New("a group counts twice")
			} else {
				groups |= bit
			}
		}
		if int(parts[group]) > b.frames {
			return 0, errors.New("a frame counts twice")
		}
	}
	return groups, nil
}

func (b *bounds) check(s *modelState) error {
	v, err := b.visible(s, s.hw)
	if err != nil {
		return err
	}
	if s.acked&^v != 0 {
		return fmt.Errorf("answered were %b, and %b count", s.acked, v)
	}
	for i := range b.owners {
		o := &s.owner[i]
		if o.phase < serving || o.epoch < 0 {
			continue
		}
		older := uint32(0)
		for k := range b.owners {
			if at := s.owner[k].epoch; k != i && at >= 0 && at < o.epoch {
				older |= 0xff << (uint(k) * 8)
			}
		}
		if o.phase == serving && s.acked&older&^o.recovered != 0 {
			return fmt.Errorf("owner %d opened without %b, which were answered", i, s.acked&older&^o.recovered)
		}
		if v&older != o.recovered&older {
			return fmt.Errorf("owner %d recovered %b, and now %b count", i, o.recovered&older, v&older)
		}
	}
	return nil
}

func (s *modelState) send(f modelFrame) bool {
	if s.m == maxRequests {
		return false
	}
	at := s.m // sorted: their order does not matter
	for at > 0 && (s.request[at-1].owner > f.owner || s.request[at-1].owner == f.owner && s.request[at-1].number > f.number) {
		s.request[at] = s.request[at-1]
		at--
	}
	s.request[at] = f
	s.m++
	return true
}

// steps yields the states that may follow.
func (b *bounds) steps(s modelState, yield func(modelState, string)) {
	for i := range b.owners {
		b.ownerSteps(s, int8(i), yield)
	}
	for i := range s.m {
		if i > 0 && s.request[i] == s.request[i-1] {
			continue
		}
		f, t := s.request[i], s
		copy(t.request[i:], s.request[i+1:s.m])
		t.m--
		t.request[t.m] = modelFrame{}
		yield(t, fmt.Sprintf("request %v is lost", f))
		if s.n < maxFrames {
			t.log[t.n] = f
			t.n++
			yield(t, fmt.Sprintf("request %v is stored", f))
		}
	}
	if s.hw < s.n {
		t := s
		t.hw++
		yield(t, "replicated")
	}
	if int(s.elections) < b.elections && s.n > 0 {
		low := s.hw
		if b.unclean {
			low = 0
		}
		for k := low; k < s.n; k++ {
			t := s
			t.elections++
			clear(t.log[k:s.n])
			t.n, t.hw = k, min(t.hw, k)
			yield(t, fmt.Sprintf("an election leaves %d", k))
		}
	}
}

func (b *bounds) ownerSteps(s modelState, i int8, yield func(modelState, string)) {
	o := s.owner[i]
	waiting := modelFrame{i, -1, -1}
	if o.phase == writing {
		waiting.number, waiting.epoch = o.done, o.epoch
	}
	say := func(format string, args ...any) string {
		return fmt.Sprintf("owner %d ", i) + fmt.Sprintf(format, args...)
	}
	switch o.phase {
	case idle:
		t := s
		t.owner[i].phase = opening
		if t.send(waiting) {
			yield(t, say("sends its barrier"))
		}
	case serving:
		if int(o.done) < b.groups*b.frames {
			t := s
			t.owner[i].phase = writing
			if t.send(modelFrame{i, o.done, o.epoch}) {
				yield(t, say("sends frame %d", o.done))
			}
		}
	case opening, writing:
		if int(o.retries) < b.retries {
			t := s
			t.owner[i].retries++
			if t.send(waiting) {
				yield(t, say("sends again"))
			}
		}
		for at := range s.hw { // the answer may be for any copy
			if s.log[at] == waiting {
				t := s
				yield(t, say("%s", b.answer(&t, i, waiting, at)))
			}
		}
		t := s
		t.owner[i].phase = gone
		yield(t, say("dies"))
	}
}

// answer tells an owner where its frame is.
func (b *bounds) answer(s *modelState, i int8, waiting modelFrame, at int8) string {
	o := &s.owner[i]
	if o.phase == opening {
		o.phase, o.epoch, o.next = serving, at, at+1
		o.recovered, _ = b.visible(s, at)
		return fmt.Sprintf("opens at %d", at)
	}
	for k := o.next; k < at; k++ {
		if s.log[k].number < 0 && !b.looksNot && !(b.forgivesSelf && s.log[k].owner == i) {
			o.phase = gone
			return "is fenced"
		}
	}
	o.phase, o.next = serving, at+1
	o.done++
	if int(o.done)%b.frames == 0 {
		s.acked |= b.bit(i, waiting.number/int8(b.frames))
	}
	return fmt.Sprintf("is answered frame %d", waiting.number)
}

// explore returns the number of states up to the first violation, if any, and the steps to it.
func (b bounds) explore(t *testing.T, until time.Time) (states int, all bool, err error) {
	var start modelState
	for i := range start.owner {
		start.owner[i].epoch = -1
	}
	seed := maphash.MakeSeed()
	seen := map[uint64]struct{}{maphash.Comparable(seed, start): {}}
	type step struct {
		state modelState
		from  int
		what  string
	}
	queue := []step{{start, -1, ""}}
	for at := 0; at < len(queue); at++ {
		if at%1024 == 0 && time.Now().After(until) {
			return len(seen), false, nil
		}
		b.steps(queue[at].state, func(s modelState, what string) {
			h := maphash.Comparable(seed, s)
			if _, ok := seen[h]; ok || err != nil {
				return
			}
			seen[h] = struct{}{}
			queue = append(queue, step{s, at, what})
			err = b.check(&s)
		})
		if err != nil {
			for k := len(queue) - 1; k > 0; k = queue[k].from {
				t.Log(queue[k].what)
			}
			return len(seen), true, err
		}
	}
	return len(seen), true, nil
}

func TestModel(t *testing.T) {
	race.Apart(t)
	const within = 10 * time.Second // on a busy machine it may not come to the end, and says so
	for _, b := range []bounds{
		{owners: 2, groups: 2, frames: 1, elections: 1, retries: 1},
		{owners: 2, groups: 1, frames: 2, elections: 1, retries: 1},
		{owners: 3, groups: 1, frames: 1, elections: 1, retries: 1},
	} {
		if testing.Short() && b.owners > 2 {
			continue
		}
		states, all, err := b.explore(t, time.Now().Add(within))
		if err != nil {
			t.Errorf("%+v: after %d states: %v", b, states, err)
		}
		t.Logf("%+v: %d states; all of them: %v", b, states, all)
	}
}

// TestModelNeedsItsRules leaves out one rule after the other.
func TestModelNeedsItsRules(t *testing.T) {
	race.Apart(t)
	base := bounds{owners: 2, groups: 2, frames: 1, elections: 1, retries: 1}
	for name, leave := range map[string]func(*bounds){
		"readers take all":            func(b *bounds) { b.takesAll = true },
		"owners do not look":          func(b *bounds) { b.looksNot = true },
		"own barriers do not fence":   func(b *bounds) { b.forgivesSelf = true },
		"by nonce instead of offsets": func(b *bounds) { b.byNonce = true },
		"unclean elections":           func(b *bounds) { b.unclean = true },
	} {
		t.Run(name, func(t *testing.T) {
			b := base
			leave(&b)
			states, all, err := b.explore(t, time.Now().Add(time.Minute))
			if err == nil {
				t.Errorf("no violation within %d states (all of them: %v)", states, all)
			}
			t.Logf("after %d states: %v", states, err)
		})
	}
}
