package queue

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"
)

// receive takes the session's events and checks what is leased.
func (m *model) receive(s *modelSession) {
	for _, e := range drain(s.Session) {
		switch {
		case e.Lease != nil:
			if err := m.q.Load(e.Lease); err != nil {
				if !errors.Is(err, ErrDamaged) && s.Holds(e.Lease.ID) {
					m.t.Fatalf("load: %v", err)
				}
				s.Damaged(e.Lease.ID, err)
				if err := s.AddCredit(e.Lease.Size()); err != nil {
					m.t.Fatalf("credit: %v", err)
				}
				continue
			}
			if s.Holds(e.Lease.ID) {
				m.checkLease(s, e.Lease)
				s.held = append(s.held, e.Lease)
			}
		case e.Ack != nil:
			a := s.acks[e.Ack.ID]
			delete(s.acks, e.Ack.ID)
			if e.Ack.Err == nil {
				m.apply(s, a)
			}
			for _, l := range a.leases { // those that are still there are held as before
				if s.Holds(l.ID) {
					s.held = append(s.held, l)
				}
			}
			slices.SortFunc(s.held, func(a, b *Lease) int { return cmp.Compare(a.ID, b.ID) })
		case e.Adopt != nil:
			for k, v := range e.Adopt.State {
				if m.state[s.sub][k] != string(v) {
					m.t.Fatalf("adopted %s as %q, want %q", k, v, m.state[s.sub][k])
				}
				s.owned[k] = string(v)
			}
		case e.Revoked != nil:
			if err := s.AddCredit(int64(100 * len(e.Revoked))); err != nil {
				m.t.Fatalf("credit: %v", err)
			}
			s.held = slices.DeleteFunc(s.held, func(l *Lease) bool { return slices.Contains(e.Revoked, l.ID) })
		}
	}
}

func (m *model) checkLease(s *modelSession, l *Lease) {
	if int64(len(l.Batch.Payload)) != l.Batch.Len() {
		m.t.Fatalf("payload of %d bytes for [%d,%d)", len(l.Batch.Payload), l.Batch.First, l.Batch.Next)
	}
	parts := wanted(l)
	if sub := m.q.subscription(s.sub); !sub.wants(l.Batch.Partition.Topic) {
		m.t.Fatalf("%s: leased %v of %s, which it does not want", s.sub, l.Batch.Range, l.Batch.Partition.Topic)
	}
	for _, r := range parts {
		if done := m.acked[s.sub].Within(r); len(done) > 0 {
			m.t.Fatalf("%s: %v is leased again after its ack was durable", s.sub, done)
		}
	}
	if !m.ordered || len(parts) == 0 {
		return
	}
	// Everything before it must be settled, or be with this session.
	g := m.q.partitions[l.Batch.Partition].progress[m.q.subscription(s.sub)]
	mine := Set{}
	for _, h := range s.held {
		if h.Batch.Partition == l.Batch.Partition {
			for _, r := range wanted(h) {
				mine.Add(r)
			}
		}
	}
	for _, a := range s.acks {
		for _, h := range a.leases {
			for _, r := range wanted(h) {
				mine.Add(r)
			}
		}
	}
	for _, r := range g.settled.Unsettled(Range{0, parts[0].First}) {
		for _, missing := range mine.Without(r) {
			if _, state := g.state(missing.First, missing.Next); state != "settling" {
				m.t.Fatalf("%s: leased %v while %v before it is %s", s.sub, parts[0], missing, state)
			}
		}
	}
}

// wanted is the ranges of a lease that are to be delivered.
func wanted(l *Lease) []Range {
	var settled Set
	for _, r := range l.Settled {
		settled.Add(r)
	}
	return settled.Without(l.Batch.Range)
}

func (m *model) ackSome(s *modelSession, n int) {
	m.nextAck++
	a := modelAck{leases: slices.Clone(s.held[:n]), only: make([][]Range, n), put: map[string]string{}}
	s.held = s.held[n:]
	for i, l := range a.leases {
		if a.only[i] = m.someOf(l); len(a.only[i]) > 0 {
			a.offsets = append(a.offsets, a.only[i]...)
			continue
		}
		a.offsets = append(a.offsets, wanted(l)...)
	}
	var changes []StateChange
	if m.rand.IntN(2) == 0 {
		s.serial++
		key := fmt.Sprintf("%d-%d", s.ID, s.serial)
		a.put[key] = fmt.Sprint(m.nextAck)
		changes = append(changes, StateChange{Key: key, Value: []byte(a.put[key])})
	}
	for _, key := range slices.Sorted(maps.Keys(s.owned)) {
		if m.rand.IntN(4) == 0 && len(s.acks) == 0 {
			a.del = append(a.del, key)
			changes = append(changes, StateChange{Key: key})
			break
		}
	}
	s.acks[m.nextAck] = a
	ack := Ack{ID: m.nextAck, State: changes}
	for i, l := range a.leases {
		ack.Leases = append(ack.Leases, AckedLease{ID: l.ID, Only: a.only[i]})
	}
	if err := s.Ack(ack); err != nil {
		m.t.Fatalf("ack: %v", err)
	}
	if err := s.AddCredit(1 + int64(m.rand.IntN(100))); err != nil {
		m.t.Fatalf("credit: %v", err)
	}
}

// someOf is mostly nothing, and else some of what is to be delivered of a lease, or all of it.
func (m *model) someOf(l *Lease) []Range {
	if m.rand.IntN(4) > 0 {
		return nil
	}
	var some []Range
	for _, r := range wanted(l) {
		for at := r.First; at < r.Next; {
			next := min(at+1+int64(m.rand.IntN(10)), r.Next)
			if m.rand.IntN(3) > 0 {
				some = append(some, Range{at, next})
			}
			at = next
		}
	}
	return some
}

// apply is what a durable ack means.
func (m *model) apply(s *modelSession, a modelAck) {
	acked := m.acked[s.sub]
	for _, r := range a.offsets {
		if twice := acked.Within(r); len(twice) > 0 {
			m.t.Fatalf("%s: %v is settled twice", s.sub, twice)
		}
		acked.Add(r)
	}
	m.acked[s.sub] = acked
	for i, l := range a.leases {
		l.Settled = append(l.Settled, a.only[i]...)
	}
	for k, v := range a.put {
		m.state[s.sub][k], s.owned[k] = v, v
	}
	for _, k := range a.del {
		delete(m.state[s.sub], k)
		delete(s.owned, k)
	}
}

func (m *model) check() {
	if s := m.q.Stats(); s.MemoryBytes > m.cfg.MemoryBytes || s.MemoryRecords > m.cfg.MemoryRecords || s.MemoryBytes < 0 || s.PendingRecords < 0 {
		m.t.Fatalf("memory out of bounds: %+v", s)
	}
	m.checkAudit()
	m.checkLeased()
	for _, topic := range m.topics {
		a := m.assigned(topic)
		if !a.Known {
			continue
		}
		if a.Safe < m.safe[topic] {
			m.t.Fatalf("%s: safe fell from %d to %d", topic, m.safe[topic], a.Safe)
		}
		m.safe[topic] = a.Safe
		m.checkWatermark(topic)
		if a.Resume < a.Safe {
			m.t.Fatalf("%s: resume %d below safe %d", topic, a.Resume, a.Safe)
		}
	}
}

// checkLeased: what Pace goes by is what is leased, and what waits besides.
func (m *model) checkLeased() {
	m.q.mu.Lock()
	defer m.q.mu.Unlock()
	for _, sub := range m.q.subs {
		var leased int
		var bytes, records, waits, waiting, kept int64
		for _, g := range sub.progress {
			for l := range g.leases.all() {
				leased++
				bytes += int64(l.piece.size)
				records += int64(l.piece.records)
			}
			for pc := g.oldestPending(); pc != nil; pc = g.needed(g.part.pieces.seek(pc.own.Next)) {
				if g.unwanted {
					kept += int64(pc.size)
				}
				if g.leaseOf(pc.own.First) == nil {
					waits += int64(pc.size)
					waiting += int64(pc.records)
				}
			}
		}
		if leased != sub.leased || bytes != sub.leasedBytes || records != sub.leasedRecords {
			m.t.Fatalf("%s: %d leases of %d bytes and %d records are counted as %d, %d and %d", sub.Name, leased, bytes, records, sub.leased, sub.leasedBytes, sub.leasedRecords)
		}
		if kept != sub.keptBytes {
			m.t.Fatalf("%s: %d bytes are kept, and count as %d", sub.Name, kept, sub.keptBytes)
		}
		if b, n := sub.pendingBytes-sub.leasedBytes, sub.pendingRecords-sub.leasedRecords; b > waits || n > waiting {
			m.t.Fatalf("%s: %d bytes and %d records wait, and count as %d and %d", sub.Name, waits, waiting, b, n)
		}
	}
}

// checkWatermark: no time is passed as long as a record of it is not settled.
func (m *model) checkWatermark(topic string) {
	m.q.mu.Lock()
	defer m.q.mu.Unlock()
	for _, sub := range m.q.subs {
		if !sub.wants(topic) {
			continue
		}
		w, at := m.q.watermarkLocked(sub, m.q.topicTimesLocked()), m.kafka[topic].First
		if p := m.q.partitions[m.partition(topic)]; p != nil {
			at = p.progress[sub].settled.until(at) // a replay takes no time back
		}
		for ; at < m.kafka[topic].Next; at++ {
			if ms, ok := m.times[at]; ok {
				if ms < w.Passed {
					m.t.Fatalf("%s: %d is passed, but offset %d of %s has %d", sub.Name, w.Passed, at, topic, ms)
				}
				break
			}
		}
	}
}

// finish lets everything come to rest, and checks that nothing is missing.
func (m *model) finish() {
	m.rand = rand.New(rand.NewPCG(9, 9))
	if m.store.fail != nil {
		m.crash(false)
	}
	for _, s := range m.sessions {
		m.kill(s)
	}
	m.mend()
	m.sessions = nil
	for _, sub := range m.subscriptions() {
		m.must(func() error { return m.q.Pause(m.t.Context(), sub, false) })
		m.sessions = append(m.sessions, m.open(sub))
	}
	for range 300 {
		m.pass(31 * time.Second)
		m.store.full = hasSpace
		m.write()
		if len(m.sessions) == 0 { // it crashed
			for _, sub := range m.subscriptions() {
				m.sessions = append(m.sessions, m.open(sub))
			}
		}
		for _, topic := range m.topics {
			if m.position[topic] < m.kafka[topic].Next {
				m.appendRest(topic)
			}
		}
		for range 20 {
			m.answer()
		}
		for _, s := range m.sessions {
			m.receive(s)
			m.ackSome(s, len(s.held))
		}
		m.write()
		m.check()
	}
	for _, s := range m.sessions {
		m.receive(s)
	}
	m.checkSettled()
	m.checkState()
	if s := m.q.Stats(); s.PendingBatches != 0 || s.PendingRecords != 0 || s.MemoryBytes != 0 || s.MemoryRecords != 0 {
		m.t.Fatalf("settled by all, but %+v", s)
	}
}

// appendRest goes on with what Kafka already has.
func (m *model) appendRest(topic string) {
	at, k := m.position[topic], m.kafka[topic]
	if at < k.First {
		m.appendNext(topic)
		return
	}
	if next := min(at+40, k.Next); m.tryAppend(topic, at, next, 0) {
		m.position[topic] = next
	}
}

// checkSettled: everything is settled, and what was not delivered has a reason.
func (m *model) checkSettled() {
	for _, v := range m.q.Subscriptions() {
		undelivered := Set{}
		list, err := m.q.Undelivered(v.Name)
		if err != nil {
			m.t.Fatalf("%v", err)
		}
		for _, u := range list {
			undelivered.Add(u.Range)
			switch u.Outcome {
			case Lost:
				if left := m.lost.Without(u.Range); len(left) > 0 {
					m.t.Fatalf("%s: %v is lost, but Kafka had %v", v.Name, u.Range, left)
				}
			case Dropped:
				if sub := m.q.subscription(v.Name); sub.Name == "one" && len(m.skipped["one"].Without(u.Range)) > 0 {
					m.t.Fatalf("%s: %v is dropped, but the subscription blocks", v.Name, u.Range)
				}
			default:
				m.t.Fatalf("%s: %v is %s", v.Name, u.Range, u.Outcome)
			}
		}
		for p := range m.q.Progress(v.Name, Partition{}) {
			all := Range{p.Start, p.Appended}
			if len(p.Above) > 0 || p.Settled < p.Appended || v.Deferred > 0 || v.Redriving > 0 || v.Replay != nil && v.Replay.Left > 0 {
				m.t.Fatalf("%s: not settled at the end: %+v", v.Name, p)
			}
			for _, r := range m.acked[v.Name].Without(all) {
				for _, missing := range undelivered.Without(r) {
					for _, still := range m.lost.Without(missing) {
						m.t.Fatalf("%s: %v of %s is settled, but was neither acked, dropped nor lost", v.Name, still, p.Partition.Topic)
					}
				}
			}
			if end := m.kafka[p.Partition.Topic].Next; p.Appended != end && p.Partition == m.partition(p.Partition.Topic) {
				m.t.Fatalf("%s: appended %d of %d", v.Name, p.Appended, end)
			}
		}
	}
	for _, topic := range m.topics {
		if a := m.assigned(topic); a.Known && a.Safe != m.kafka[topic].Next {
			m.t.Fatalf("%s: safe is %d at the end, want %d", topic, a.Safe, m.kafka[topic].Next)
		}
	}
}

// checkState: every entry of sink state has exactly one owner.
func (m *model) checkState() {
	for _, sub := range m.subscriptions() {
		owned := map[string]string{}
		for _, s := range m.sessions {
			if s.sub != sub {
				continue
			}
			for k, v := range s.owned {
				if _, twice := owned[k]; twice {
					m.t.Fatalf("sink state %s has two owners", k)
				}
				owned[k] = v
			}
		}
		if !maps.Equal(owned, m.state[sub]) {
			m.t.Fatalf("%s: sink state is owned as %v, want %v", sub, sorted(owned), sorted(m.state[sub]))
		}
	}
}

func sorted(m map[string]string) []string {
	var all []string
	for k, v := range m {
		all = append(all, k+"="+v)
	}
	slices.SortFunc(all, cmp.Compare[string])
	return all
}
