package owners

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

const (
	// quiet is how long owners stay as they are before a shard is moved for balance alone: a
	// member that flaps moves nothing.
	quiet = 30 * time.Second
	// settle is how long a member must have been unable to serve a shard before the shard is
	// moved: when it is Kafka that is away, the others say so by then.
	settle = 5 * time.Second
	// balanceShare is the part of a member's shards that balance moves at once, at least one.
	balanceShare = 4
)

// member is a member of the group as the leader sees it.
type member struct {
	id string
	claim
	wrong string // why it is given nothing
}

// division is who has what in a generation.
type division struct {
	shards  int
	owners  []string          // members by shard; empty: nobody in this generation
	epochs  []uint64          // of the owners, where the shard is open
	refused map[string]string // members that are given nothing, and why
	room    map[string]int    // how many more each member may be given
	moves   []move
	// again is after what time another division would move more; 0: not as long as nothing
	// changes.
	again time.Duration
}

// move is a shard that is taken from its owner, for the next generation's heir.
type move struct {
	shard int
	from  string // a member
	why   string
}

// divide gives the shards to members. It depends on nothing but the members, in no order, so that
// any leader would say the same.
//
//   - A shard stays where it is. Of two that have it, the one with the higher epoch has.
//   - One that nobody has goes to the member it was given up for, or to who has least.
//   - One that its owner cannot serve, and another member may be able to, is moved; so are some of
//     a member that has more than others, when nothing has changed for a while.
//   - A shard that is moved is nobody's for one generation, in which its owner gives it up.
func divide(members []member) division {
	members = slices.Clone(members)
	slices.SortFunc(members, func(a, b member) int {
		return cmp.Or(strings.Compare(a.Advertise, b.Advertise), strings.Compare(a.id, b.id))
	})
	d := division{shards: numberOfShards(members), refused: make(map[string]string), room: make(map[string]int)}
	d.owners, d.epochs = make([]string, d.shards), make([]uint64, d.shards)
	refuse(members, &d)
	t := newTable(members, &d)
	var free, helpless []int
	calm := quiet // since the last change
	for shard := range d.shards {
		m, h := t.holder(shard)
		if m == nil {
			free = append(free, shard)
			continue
		}
		if h.State == Closing { // nobody's until it is closed
			t.busy[m]++
			calm = 0
			continue
		}
		t.give(shard, m)
		calm = min(calm, time.Duration(h.AgeMillis)*time.Millisecond)
		if h.State == Open {
			d.epochs[shard] = h.Epoch
		} else {
			calm = 0
		}
		if m.cannot(shard) {
			helpless = append(helpless, shard)
		}
	}
	for _, shard := range helpless {
		calm = 0
		owner := t.by(d.owners[shard])
		heir, why := t.heir(shard, owner), owner.unable(shard)
		if heir == nil {
			continue
		}
		if left := settle - time.Duration(why.AgeMillis)*time.Millisecond; left > 0 {
			d.later(left)
			continue
		}
		t.busy[heir]++ // with what it will be given
		t.take(move{shard, owner.id, "its owner cannot serve it: " + why.Reason})
	}
	for _, shard := range free {
		calm = 0
		if m := t.candidate(shard); m != nil {
			t.give(shard, m)
		}
	}
	for _, m := range t.members {
		calm = min(calm, time.Duration(m.AgeMillis)*time.Millisecond)
		d.room[m.id] = t.room(m)
	}
	if moves := t.balance(); len(moves) > 0 && calm < quiet {
		d.later(quiet - calm)
	} else {
		for _, v := range moves {
			t.take(v)
		}
	}
	return d
}

// numberOfShards is what most members believe, or the larger of two numbers.
func numberOfShards(members []member) int {
	votes := make(map[int]int)
	for _, m := range members {
		if m.wrong == "" {
			votes[m.Shards]++
		}
	}
	best := 0
	for _, n := range slices.Sorted(maps.Keys(votes)) {
		if best == 0 || votes[n] >= votes[best] {
			best = n
		}
	}
	return best
}

// refuse finds the members that are given nothing.
func refuse(members []member, d *division) {
	at := make(map[string]*member)
	for i := range members {
		m := &members[i]
		if m.wrong == "" && m.Shards != d.shards {
			m.wrong = fmt.Sprintf("the queue has %d shards here, and %d at most buffers: give it the same number in the files of all buffers", m.Shards, d.shards)
		}
		if m.wrong != "" {
			continue
		}
		other := at[m.Advertise]
		if other == nil {
			at[m.Advertise] = m
			continue
		}
		// The one that has been here longer keeps what it has.
		later := m
		if other.AgeMillis < m.AgeMillis {
			later, at[m.Advertise] = other, m
		}
		later.wrong = fmt.Sprintf("another buffer of the group advertises %s, too: give each buffer.advertise of its own", m.Advertise)
	}
	for i := range members {
		if m := &members[i]; m.wrong != "" {
			d.refused[m.id] = m.wrong
			m.Held, m.Unable, m.Wishes = nil, nil, nil
		}
	}
}

// table is a division under way.
type table struct {
	members []*member // that may have shards, by address
	all     []*member // with those that are draining, but none that is refused
	has     map[*member][]int
	busy    map[*member]int // how many others they have no room for: those that they are closing
	d       *division
}

func newTable(members []member, d *division) *table {
	t := &table{has: make(map[*member][]int), busy: make(map[*member]int), d: d}
	for i := range members {
		m := &members[i]
		if m.wrong != "" {
			continue
		}
		t.all = append(t.all, m)
		if !m.Draining {
			t.members = append(t.members, m)
		}
	}
	return t
}

// holder is the member that has a shard, and what it does with it.
func (t *table) holder(shard int) (*member, held) {
	var holder *member
	var best held
	for _, m := range t.all {
		for _, h := range m.Held {
			if h.Shard == shard && (holder == nil || h.Epoch > best.Epoch) {
				holder, best = m, h
			}
		}
	}
	return holder, best
}

func (t *table) give(shard int, m *member) {
	t.d.owners[shard] = m.id
	t.has[m] = append(t.has[m], shard)
}

// take takes a shard from its owner, for the next generation. It stays in has, which says how full
// members are in this one.
func (t *table) take(v move) {
	t.d.owners[v.shard], t.d.epochs[v.shard] = "", 0
	t.d.moves = append(t.d.moves, v)
}

// by finds a member.
func (t *table) by(id string) *member {
	for _, m := range t.all {
		if m.id == id {
			return m
		}
	}
	return nil
}

// room is how many more shards a member may have.
func (t *table) room(m *member) int {
	most := t.d.shards
	if m.Most > 0 {
		most = min(most, m.Most)
	}
	return max(0, most-len(t.has[m])-t.busy[m])
}

// candidate is who gets a shard that nobody has.
func (t *table) candidate(shard int) *member {
	for _, m := range t.all {
		if to := m.Wishes[shard]; to != "" {
			for _, heir := range t.members {
				if heir.Advertise == to && !heir.cannot(shard) && t.room(heir) > 0 {
					return heir
				}
			}
		}
	}
	for _, may := range []func(m *member) bool{
		func(m *member) bool { return !m.cannot(shard) && !m.troubled() },
		func(m *member) bool { return !m.cannot(shard) },
	} {
		if m := t.least(may); m != nil {
			return m
		}
	}
	return t.least(func(*member) bool { return true })
}

// heir is who may serve a shard that its owner cannot: a member that has no such trouble itself.
// When all have it, the trouble is Kafka's, and moving a shard would only end its sessions.
func (t *table) heir(shard int, owner *member) *member {
	return t.least(func(m *member) bool {
		return m != owner && !m.cannot(shard) && !m.troubled()
	})
}

// least is the member with the fewest shards of those that may have one more.
func (t *table) least(may func(*member) bool) *member {
	var best *member
	for _, m := range t.members {
		if t.room(m) > 0 && may(m) && (best == nil || len(t.has[m]) < len(t.has[best])) {
			best = m
		}
	}
	return best
}

// balance finds the shards to move from members with more to others with fewer.
func (t *table) balance() (moves []move) {
	before, given := make(map[*member]int), make(map[*member]int)
	for _, m := range t.members {
		before[m] = len(t.has[m])
	}
	moved := make([]bool, t.d.shards)
	for {
		var from, to *member
		shard, most := -1, 1
		for _, m := range t.members {
			if given[m] >= max(1, before[m]/balanceShare) {
				continue
			}
			for _, s := range slices.Backward(t.has[m]) {
				heir := t.least(func(other *member) bool { return other != m && !other.cannot(s) && !other.troubled() })
				if heir == nil || moved[s] {
					continue
				}
				if more := len(t.has[m]) - len(t.has[heir]); more > most {
					from, to, shard, most = m, heir, s, more
				}
			}
		}
		if from == nil {
			return moves
		}
		moves = append(moves, move{shard, from.id, fmt.Sprintf("for balance: its owner has %d more than another", most)})
		given[from]++
		moved[shard] = true
		t.has[from] = slices.DeleteFunc(t.has[from], func(s int) bool { return s == shard })
		t.has[to] = append(t.has[to], shard)
	}
}

// troubled says whether a member has a shard that it cannot serve.
func (m *member) troubled() bool {
	return slices.ContainsFunc(m.Held, func(h held) bool { return m.cannot(h.Shard) })
}

// cannot says whether a member has named a shard as one that it cannot serve.
func (m *member) cannot(shard int) bool { return m.unable(shard) != nil }

func (m *member) unable(shard int) *inability {
	for i := range m.Unable {
		if m.Unable[i].Shard == shard {
			return &m.Unable[i]
		}
	}
	return nil
}

// later has the group divide again after a time.
func (d *division) later(after time.Duration) {
	if d.again == 0 || after < d.again {
		d.again = after
	}
}
