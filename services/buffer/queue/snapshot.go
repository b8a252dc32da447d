package queue

import (
	"encoding/json"
	"maps"
	"math"
	"slices"
	"strconv"
)

// partBytes is about how large a part of a snapshot is.
const partBytes = 512 << 10

// snapshotting is a snapshot of the ledger that is being made: the state that all groups appended
// before it was begun have left. There may be a million ledgers and as many entries of sink
// state, so that it is made in parts, between which groups go on. What these change is kept as it
// was, until it is written: a ledger encoded, an entry of sink state as it is.
//
// What durable changes alter is altered by the goroutine that writes only, which also makes the
// parts: they are encoded without the lock. How far a partition was safe, appended or
// fingerprinted may be newer than the rest. That is always true.
type snapshotting struct {
	q      *Queue
	number uint32 // of the snapshots that the queue made
	head   snapshotHead
	parts  int // that are complete
	part   snapshotPart
	early  []byte   // items for partitions that wait for the subscriptions
	ready  [][]byte // parts to be handed out

	subs     []frozenSubscription
	reads    []readsChange
	sessions []*Session
	keys     []string // of the first of sessions, to be written; nil: not begun
	// before has, of sessions that are not written, the entries that have changed since.
	before  map[*Session]map[string]stateEntry
	after   Partition // the last one that was looked at
	ledgers []*progress
	ended   bool
}

// snapshotPart is a part that is being put together: items of a snapshot, in JSON, with a comma
// before each.
type snapshotPart struct{ subs, partitions, sessions, reads []byte }

func (p *snapshotPart) size() int {
	return len(p.subs) + len(p.partitions) + len(p.sessions) + len(p.reads)
}

// frozenSubscription is a subscription as it was. Its undelivered ranges do not change, but for
// the last one, with which others may be joined.
type frozenSubscription struct {
	subscriptionState
	last Undelivered
}

// stateEntry is an entry of sink state.
type stateEntry struct {
	value        []byte
	holds, since int64 // 0: none
	there        bool
}

// snapshot begins a snapshot. One that goes on is given up.
func (q *Queue) snapshot() Snapshot {
	s := &snapshotting{q: q, before: make(map[*Session]map[string]stateEntry)}
	q.hold(func() bool {
		q.snapshots++
		s.number = q.snapshots
		q.snapshotting = s
		s.head = snapshotHead{Ledger: q.ledger, Shard: q.shard, Epochs: q.epochs, NextSubscription: q.nextSubscription, Limits: q.limits, Control: q.control, Held: q.pausedLocked()}
		for _, sub := range q.subs {
			st := frozenSubscription{subscriptionState: subscriptionState{ID: sub.id, Config: sub.SubscriptionConfig, Seed: sub.seed, Paused: sub.paused, Replay: sub.replay.state(), Undelivered: sub.undelivered}}
			if n := len(sub.undelivered); n > 0 {
				st.last = sub.undelivered[n-1]
			}
			s.subs = append(s.subs, st)
		}
		for r, topics := range q.listed {
			s.reads = append(s.reads, readsChange{Cluster: r.cluster, Source: r.source, Topics: topics.partitions})
		}
		for _, x := range q.sessions {
			if len(x.state) > 0 {
				s.sessions = append(s.sessions, x)
				s.before[x] = nil
			}
		}
		return false
	})
	return s
}

// Abandon implements Snapshot.
func (s *snapshotting) Abandon() { s.end() }

func (s *snapshotting) end() {
	s.ended = true
	s.q.hold(func() bool {
		if s.q.snapshotting == s {
			s.q.snapshotting = nil
		}
		return false
	})
}

// Next implements Snapshot.
func (s *snapshotting) Next() []byte {
	for len(s.ready) == 0 && !s.ended {
		if !s.goOn() {
			s.complete()
			s.end()
		}
	}
	if len(s.ready) == 0 {
		return nil
	}
	part := s.ready[0]
	s.ready = s.ready[1:]
	return part
}

// goOn adds something to the part, and says whether there was anything.
func (s *snapshotting) goOn() bool {
	switch {
	case len(s.subs) > 0:
		s.subscription()
	case len(s.reads) > 0:
		s.topics()
	case len(s.sessions) > 0:
		s.session()
	case len(s.ledgers) > 0:
		s.ledgersOf()
	default:
		return s.partitions()
	}
	return true
}

// added ends the part when it is large enough.
func (s *snapshotting) added() {
	if s.part.size() >= s.q.partBytes {
		s.complete()
	}
}

// complete hands the part out.
func (s *snapshotting) complete() {
	s.head.More = s.parts
	b := slices.Grow(mustJSON(s.head), s.part.size()+64)
	b = b[:len(b)-1]
	for _, list := range []struct {
		key   string
		items []byte
	}{{"subs", s.part.subs}, {"parts", s.part.partitions}, {"sessions", s.part.sessions}, {"reads", s.part.reads}} {
		if len(list.items) > 0 {
			b = append(append(append(append(b, `,"`...), list.key...), `":[`...), list.items[1:]...)
			b = append(b, ']')
		}
	}
	s.ready = append(s.ready, append(b, '}'))
	s.parts++
	s.part, s.head.Held = snapshotPart{}, nil
}

func addItem(list []byte, item any) []byte { return append(append(list, ','), mustJSON(item)...) }

// What is longer than this is cut, and goes on in another part: in none is anything twice, since
// versions that know of no parts read a snapshot of one.
const undeliveredAtOnce, topicsAtOnce = 4000, 10_000

// subscription adds the first subscription, or some of it. Ledgers are added only once all are
// there.
func (s *snapshotting) subscription() {
	first := &s.subs[0]
	some := first.subscriptionState
	n := min(len(first.Undelivered), undeliveredAtOnce)
	some.Undelivered, first.Undelivered = slices.Clone(first.Undelivered[:n]), first.Undelivered[n:]
	if len(first.Undelivered) == 0 {
		if n > 0 {
			some.Undelivered[n-1] = first.last
		}
		s.subs = s.subs[1:]
	}
	s.part.subs = addItem(s.part.subs, some)
	if len(s.subs) == 0 {
		s.part.partitions, s.early = s.early, nil
	} else if s.subs[0].ID == some.ID {
		s.complete()
	}
	s.added()
}

// topics adds what the first source reads.
func (s *snapshotting) topics() {
	first := s.reads[0]
	s.reads = s.reads[1:]
	cut := false
	for names := range slices.Chunk(slices.Sorted(maps.Keys(first.Topics)), topicsAtOnce) {
		if cut {
			s.complete()
		}
		cut = true
		some := readsChange{Cluster: first.Cluster, Source: first.Source, Topics: make(map[string]int32, len(names))}
		for _, name := range names {
			some.Topics[name] = first.Topics[name]
		}
		s.part.reads = addItem(s.part.reads, some)
	}
	s.added()
}

// session adds some entries of the first session.
func (s *snapshotting) session() {
	x := s.sessions[0]
	if s.keys == nil {
		s.keys = slices.Collect(maps.Keys(x.state))
		for key := range s.before[x] {
			if _, has := x.state[key]; !has {
				s.keys = append(s.keys, key)
			}
		}
		slices.Sort(s.keys)
	}
	n := len(s.keys)
	some := sessionState{ID: x.ID, Subscription: x.sub.id, Consumer: x.Consumer, State: make(map[string][]byte), Holds: make(map[string]int64), Since: make(map[string]int64)}
	bytes := 0
	for i, key := range s.keys[:n] {
		if bytes > s.q.partBytes {
			n = i
			break
		}
		e, changed := s.before[x][key]
		if !changed {
			e = x.entry(key)
		}
		if !e.there {
			continue
		}
		some.State[key] = e.value
		bytes += len(key) + len(e.value)*4/3
		if e.holds != 0 {
			some.Holds[key] = e.holds
		}
		if e.since != 0 {
			some.Since[key] = e.since
		}
	}
	if s.keys = s.keys[n:]; len(s.keys) == 0 {
		s.keys, s.sessions = nil, s.sessions[1:]
		delete(s.before, x)
	}
	if len(some.State) > 0 {
		s.part.sessions = addItem(s.part.sessions, some)
		if s.added(); len(s.keys) > 0 {
			s.complete()
		}
	}
}

// partitions finds the ledgers of some more partitions, and says whether there were any.
func (s *snapshotting) partitions() (found bool) {
	const most = 1000 // ledgers
	s.q.hold(func() bool {
		i, known := slices.BinarySearchFunc(s.q.sorted, s.after, func(p *partition, id Partition) int { return p.id.compare(id) })
		if known {
			i++
		}
		for left := s.q.holdItems; i < len(s.q.sorted) && len(s.ledgers) < most && left > 0; i, left = i+1, left-1 {
			p := s.q.sorted[i]
			s.after, found = p.id, true
			if p.snapshot == s.number { // it became known since
				continue
			}
			n := len(s.ledgers)
			for _, g := range p.progress {
				if g.snapshot != s.number {
					s.ledgers = append(s.ledgers, g)
				}
			}
			if len(s.ledgers) == n { // nobody wanted it, or all have changed
				s.addLocked(p, ledgers{})
			}
		}
		return false
	})
	s.added()
	return found
}

// ledgersOf adds ledgers that partitions found: those of one partition, or as many as a part
// takes.
func (s *snapshotting) ledgersOf() {
	p := s.ledgers[0].part
	var some ledgers
	i := 0
	for ; i < len(s.ledgers) && s.ledgers[i].part == p && len(some.settled) < s.q.partBytes; i++ {
		if g := s.ledgers[i]; g.snapshot != s.number { // else it has changed, and was written before
			some.add(g)
			g.snapshot = s.number
		}
	}
	if s.ledgers = s.ledgers[i:]; len(some.settled) > 0 {
		s.q.hold(func() bool { s.addLocked(p, some); return false })
		s.added()
	}
}

func (s *snapshotting) addLocked(p *partition, some ledgers) {
	to := &s.part.partitions
	if len(s.subs) > 0 {
		to = &s.early
	}
	b := addItem(*to, partitionHead{ID: p.id, First: p.first, Reached: p.reached, Safe: p.safe, Unwanted: some.unwanted, Prints: p.prints})
	b = append(b[:len(b)-1], `,"settled":{`...)
	if len(some.settled) > 0 {
		b = append(b, some.settled[1:]...)
	}
	*to = append(b, "}}"...)
}

// freezeLocked has a ledger written to the snapshot that is being made as it is before it changes.
func (q *Queue) freezeLocked(g *progress) {
	s := q.snapshotting
	if s == nil || g.snapshot == s.number {
		return
	}
	g.snapshot = s.number
	var one ledgers
	one.add(g)
	s.addLocked(g.part, one)
	s.added()
}

// freezeEntry has an entry of sink state written to the snapshot that is being made as it is
// before it changes.
func (s *Session) freezeEntry(key string) {
	making := s.q.snapshotting
	if making == nil {
		return
	}
	before, waits := making.before[s]
	if _, kept := before[key]; !waits || kept {
		return
	}
	if before == nil {
		before = make(map[string]stateEntry)
		making.before[s] = before
	}
	before[key] = s.entry(key)
}

func (s *Session) entry(key string) stateEntry {
	value, there := s.state[key]
	return stateEntry{value, s.holds[key], s.since[key], there}
}

// ledgers is what subscriptions have settled in a partition, in JSON an object of Settled by the
// ids of subscriptions. There may be a million: they are encoded and decoded without reflection.
type ledgers struct {
	settled  []byte          // encoded, each with a comma before it
	unwanted map[int64]int64 // progress.until by the ids of those that do not want the topic any more
	restored map[int64]Settled
}

// add encodes a ledger.
func (l *ledgers) add(g *progress) {
	b := append(l.settled, `,"`...)
	b = strconv.AppendInt(b, g.sub.id, 10)
	b = append(b, `":`...)
	l.settled = g.settled.appendJSON(b)
	if g.unwanted {
		if l.unwanted == nil {
			l.unwanted = make(map[int64]int64)
		}
		l.unwanted[g.sub.id] = g.until
	}
}

// UnmarshalJSON implements json.Unmarshaler.
func (l *ledgers) UnmarshalJSON(b []byte) error {
	if all, ok := parseLedgers(b); ok {
		l.restored = all
		return nil
	}
	return json.Unmarshal(b, &l.restored)
}

// parseLedgers reads what appendJSON has written, and gives up at anything else: what a version
// before or after has written, and what is to be delivered again.
func parseLedgers(b []byte) (all map[int64]Settled, ok bool) {
	in := scanner{rest: b}
	all = make(map[int64]Settled)
	in.want("{")
	for first := true; !in.bad && !in.has("}"); first = false {
		if !first {
			in.want(",")
		}
		in.want(`"`)
		id := in.number()
		in.want(`":{"start":`)
		var s Settled
		s.Start = in.number()
		in.want(`,"floor":`)
		s.Floor = in.number()
		in.want(`,"counts":[`)
		for i := range s.Counts {
			if i > 0 {
				in.want(",")
			}
			s.Counts[i] = in.number()
		}
		in.want("]")
		if in.has(`,"above":[`) {
			for more := true; more && !in.bad; more = in.has(",") {
				var v Interval
				in.want(`{"f":`)
				v.First = in.number()
				in.want(`,"n":`)
				v.Next = in.number()
				in.want(`,"o":`)
				o := in.number()
				in.want("}")
				in.bad = in.bad || o < 0 || o >= outcomes
				v.Outcome = Outcome(o)
				s.Above.add(v)
			}
			in.want("]")
		}
		if in.has(`,"epoch":`) {
			s.Epoch = in.number()
		}
		in.want("}")
		all[id] = s
	}
	return all, !in.bad && len(in.rest) == 0
}

// scanner goes through text of which every byte is known.
type scanner struct {
	rest []byte
	bad  bool // something else was there
}

func (in *scanner) has(text string) bool {
	if len(in.rest) < len(text) || string(in.rest[:len(text)]) != text {
		return false
	}
	in.rest = in.rest[len(text):]
	return true
}

func (in *scanner) want(text string) { in.bad = in.bad || !in.has(text) }

// number reads an int64 in decimal.
func (in *scanner) number() (n int64) {
	i, negative := 0, false
	if negative = in.has("-"); len(in.rest) == 0 {
		in.bad = true
		return 0
	}
	for ; i < len(in.rest) && in.rest[i] >= '0' && in.rest[i] <= '9'; i++ {
		const most = (math.MaxInt64 - 9) / 10
		if n > most {
			in.bad = true
			return 0
		}
		n = n*10 + int64(in.rest[i]-'0')
	}
	in.bad = in.bad || i == 0
	in.rest = in.rest[i:]
	if negative {
		n = -n
	}
	return n
}

// appendJSON appends what json.Marshal makes of it.
func (s *Settled) appendJSON(b []byte) []byte {
	b = append(b, `{"start":`...)
	b = strconv.AppendInt(b, s.Start, 10)
	b = append(b, `,"floor":`...)
	b = strconv.AppendInt(b, s.Floor, 10)
	b = append(b, `,"counts":[`...)
	for i, n := range s.Counts {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, n, 10)
	}
	b = append(b, ']')
	if s.Above.size() > 0 {
		sep := byte('[')
		b = append(b, `,"above":`...)
		for v := range s.Above.all() {
			b = append(b, sep)
			b = append(b, `{"f":`...)
			b = strconv.AppendInt(b, v.First, 10)
			b = append(b, `,"n":`...)
			b = strconv.AppendInt(b, v.Next, 10)
			b = append(b, `,"o":`...)
			b = strconv.AppendInt(b, int64(v.Outcome), 10)
			b = append(b, '}')
			sep = ','
		}
		b = append(b, ']')
	}
	if s.Epoch != 0 {
		b = append(b, `,"epoch":`...)
		b = strconv.AppendInt(b, s.Epoch, 10)
	}
	if s.Again != nil {
		b = append(append(b, `,"again":`...), mustJSON(s.Again)...)
	}
	return append(b, '}')
}
