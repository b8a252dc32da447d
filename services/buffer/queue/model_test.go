package queue

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestModel drives a queue with random appends (fresh, overlapping, of a second ingest that lags),
// leases, acks, nacks, expiries, deaths of sessions, pauses and crashes, and checks after every step
// that no offset is handed out after its ack was durable, that safe never falls and always
// covers only what survives a crash, and at the end that every subscription got every offset once.
func TestModel(t *testing.T) {
	for seed := uint64(1); seed <= 150; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { newModel(t, seed).run(400) })
	}
}

type model struct {
	*harness
	rand     *rand.Rand
	seed     uint64
	ordered  bool
	topics   []string
	position map[string]int64                    // where the ingest goes on
	end      map[string]int64                    // of the topic in Kafka
	safe     map[string]int64                    // highest seen
	settled  map[string]map[string]map[int64]int // subscription, topic, offset: durable acks
	sessions []*modelSession
	nextAck  uint64
	state    map[string]string // key: value that must be owned by someone
}

type modelSession struct {
	*Session
	sub    string
	held   []*Lease
	acks   map[uint64]modelAck
	owned  map[string]string // sink state as the session knows it
	serial int
}

type modelAck struct {
	leases []*Lease
	put    map[string]string
	del    []string
}

func newModel(t *testing.T, seed uint64) *model {
	m := &model{rand: rand.New(rand.NewPCG(seed, 1)), seed: seed, topics: []string{"a", "b"}, position: map[string]int64{}, end: map[string]int64{},
		safe: map[string]int64{}, settled: map[string]map[string]map[int64]int{}, state: map[string]string{}}
	m.harness = newHarness(t, all("one"), all("two"), SubscriptionConfig{Name: "only-a", Topics: []string{"a"}, Required: true})
	m.ordered = seed%2 == 0
	if seed%5 == 0 {
		m.cfg.SpillAfter = 0
		m.reopen()
	}
	for _, s := range m.cfg.Subscriptions {
		m.settled[s.Name] = map[string]map[int64]int{"a": {}, "b": {}}
	}
	for _, topic := range m.topics {
		first := int64(m.rand.IntN(50))
		m.position[topic], m.end[topic] = first, first
	}
	return m
}

func (m *model) run(steps int) {
	defer func() {
		if m.t.Failed() {
			m.t.Logf("seed %d", m.seed)
		}
	}()
	first := map[string]int64{"a": m.position["a"], "b": m.position["b"]}
	for range steps {
		m.step()
		m.check()
	}
	for _, s := range m.sessions {
		m.kill(s)
	}
	m.sessions = nil
	m.write()
	for _, sub := range m.cfg.Subscriptions {
		if err := pauseNow(m.harness, sub.Name, false); err != nil {
			m.t.Fatal(err)
		}
		m.sessions = append(m.sessions, m.open(sub.Name))
	}
	for range 200 {
		m.pass(time.Minute)
		m.write()
		for _, topic := range m.topics {
			if m.position[topic] < m.end[topic] {
				m.appendNext(topic)
			}
		}
		for _, s := range m.sessions {
			m.receive(s)
			m.ackSome(s, len(s.held))
		}
		m.write()
		m.check()
	}
	for sub, topics := range m.settled {
		for topic, offsets := range topics {
			want := m.end[topic] - first[topic]
			if topic == "b" && sub == "only-a" {
				want = 0
			}
			if int64(len(offsets)) != want {
				m.t.Fatalf("%s got %d offsets of %s, want %d", sub, len(offsets), topic, want)
			}
		}
	}
	for _, topic := range m.topics {
		if a := m.assigned(topic); a.Known && (a.Safe != m.end[topic] || a.Resume != m.end[topic]) {
			m.t.Fatalf("%s: safe %d, resume %d, want %d", topic, a.Safe, a.Resume, m.end[topic])
		}
	}
	if s := m.q.Stats(); s.PendingBatches != 0 || s.PendingRecords != 0 || s.MemoryBytes != 0 || s.MemoryRecords != 0 {
		m.t.Fatalf("settled by all, but %+v", s)
	}
	owned := map[string]string{}
	for _, s := range m.sessions {
		for k, v := range s.owned {
			if _, twice := owned[k]; twice {
				m.t.Fatalf("sink state %s has two owners", k)
			}
			owned[k] = v
		}
	}
	for k, v := range m.state {
		if owned[k] != v {
			m.t.Fatalf("sink state %s is %q, want %q", k, owned[k], v)
		}
	}
	if len(owned) != len(m.state) {
		m.t.Fatalf("%d entries of sink state are owned, want %d", len(owned), len(m.state))
	}
}

func pauseNow(h *harness, sub string, paused bool) error {
	done := make(chan error, 1)
	go func() { done <- h.q.Pause(h.t.Context(), sub, paused) }()
	for {
		select {
		case err := <-done:
			return err
		case <-h.q.kick:
			h.write()
		}
	}
}

func (m *model) step() {
	topic := m.topics[m.rand.IntN(2)]
	switch n := m.rand.IntN(100); {
	case n < 25:
		m.appendNext(topic)
	case n < 30: // an ingest that does not know yet that it lost the partition
		if a := m.assigned(topic); a.Known {
			first := max(0, a.Safe-int64(m.rand.IntN(20)))
			next := min(first+1+int64(m.rand.IntN(30)), m.end[topic])
			if next > first {
				m.tryAppend(topic, first, next)
			}
		}
	case n < 45:
		m.write()
	case n < 50:
		if len(m.sessions) < 5 {
			m.sessions = append(m.sessions, m.open(m.cfg.Subscriptions[m.rand.IntN(3)].Name))
		}
	case n < 65:
		if s := m.anySession(); s != nil {
			m.receive(s)
		}
	case n < 80:
		if s := m.anySession(); s != nil && len(s.held) > 0 {
			m.ackSome(s, 1+m.rand.IntN(len(s.held)))
		}
	case n < 84:
		if s := m.anySession(); s != nil && len(s.held) > 0 {
			s.Nack(s.held[0].ID, time.Duration(m.rand.IntN(3)-1)*time.Second)
			s.held = s.held[1:]
		}
	case n < 87:
		m.pass(time.Duration(m.rand.IntN(15)) * time.Second)
	case n < 90:
		if s := m.anySession(); s != nil {
			m.kill(s)
			m.sessions = slices.DeleteFunc(m.sessions, func(x *modelSession) bool { return x == s })
		}
	case n < 92:
		if err := pauseNow(m.harness, m.cfg.Subscriptions[m.rand.IntN(3)].Name, m.rand.IntN(2) == 0); err != nil {
			m.t.Fatal(err)
		}
	case n < 94: // crash: what was not written is gone, acks included
		for _, s := range m.sessions {
			m.receive(s)
		}
		m.sessions = nil
		m.reopen()
		for _, topic := range m.topics {
			a := m.assigned(topic)
			switch {
			case a.Known && a.Resume < m.safe[topic]:
				m.t.Fatalf("%s: resume %d after a crash, but %d was safe", topic, a.Resume, m.safe[topic])
			case a.Known:
				m.position[topic] = a.Resume
			case m.safe[topic] > m.firstOf(topic):
				m.t.Fatalf("%s is unknown after a crash, but %d was safe", topic, m.safe[topic])
			default:
				m.position[topic] = m.firstOf(topic)
			}
		}
	}
}

// kill ends a session. Its unanswered acks come into effect with the next write: the oracle knows.
func (m *model) kill(s *modelSession) {
	m.receive(s)
	s.Close()
	for _, id := range slices.Sorted(maps.Keys(s.acks)) {
		m.apply(s, s.acks[id])
	}
	m.write()
}

// firstOf is where the topic began: the least offset that was ever appended, kept by the first run of settled.
func (m *model) firstOf(topic string) int64 {
	r := rand.New(rand.NewPCG(m.seed, 1))
	firsts := map[string]int64{}
	for _, t := range m.topics {
		firsts[t] = int64(r.IntN(50))
	}
	return firsts[topic]
}

func (m *model) anySession() *modelSession {
	if len(m.sessions) == 0 {
		return nil
	}
	return m.sessions[m.rand.IntN(len(m.sessions))]
}

func (m *model) open(sub string) *modelSession {
	return &modelSession{Session: m.session(sub, m.ordered, 1+int64(m.rand.IntN(200))), sub: sub, acks: map[uint64]modelAck{}, owned: map[string]string{}}
}

func (m *model) appendNext(topic string) {
	next := m.position[topic] + 1 + int64(m.rand.IntN(40))
	m.tryAppend(topic, m.position[topic], next)
}

func (m *model) tryAppend(topic string, first, next int64) {
	if s := m.q.Stats(); s.MemoryBytes > 0 && (s.MemoryBytes+next-first > m.cfg.MemoryBytes || s.MemoryRecords+next-first > m.cfg.MemoryRecords) {
		m.write()
		return // Append would wait
	}
	m.append(topic, first, next)
	if first <= m.position[topic] {
		m.position[topic] = max(m.position[topic], next)
	}
	m.end[topic] = max(m.end[topic], next)
}

// receive takes the session's events and checks what is leased.
func (m *model) receive(s *modelSession) {
	for _, e := range drain(s.Session) {
		switch {
		case e.Lease != nil:
			m.checkLease(s, e.Lease)
			s.held = append(s.held, e.Lease)
		case e.Ack != nil:
			a := s.acks[e.Ack.ID]
			delete(s.acks, e.Ack.ID)
			if e.Ack.Err == nil {
				m.apply(s, a)
			}
		case e.Adopt != nil:
			for k, v := range e.Adopt.State {
				if m.state[k] != string(v) {
					m.t.Fatalf("adopted %s as %q, want %q", k, v, m.state[k])
				}
				s.owned[k] = string(v)
			}
		case e.Revoked != nil:
			if err := s.AddCredit(int64(100 * len(e.Revoked))); err != nil {
				m.t.Fatal(err)
			}
			s.held = slices.DeleteFunc(s.held, func(l *Lease) bool { return slices.Contains(e.Revoked, l.ID) })
		}
	}
}

func (m *model) checkLease(s *modelSession, l *Lease) {
	if err := m.q.Load(l); err != nil {
		m.t.Fatalf("load: %v", err)
	}
	if int64(len(l.Batch.Payload)) != l.Batch.Len() {
		m.t.Fatalf("payload of %d bytes for [%d,%d)", len(l.Batch.Payload), l.Batch.First, l.Batch.Next)
	}
	if m.ordered {
		for _, h := range s.held {
			if h.Batch.Partition == l.Batch.Partition && wanted(h)[0] > wanted(l)[0] {
				m.t.Fatalf("%s: leased %d after %d", s.sub, wanted(l)[0], wanted(h)[0])
			}
		}
	}
	for _, o := range wanted(l) {
		if m.settled[s.sub][l.Batch.Partition.Topic][o] > 0 {
			m.t.Fatalf("%s: %s/%d is leased again after its ack was durable", s.sub, l.Batch.Partition.Topic, o)
		}
	}
}

// wanted is the offsets of a lease that are to be delivered.
func wanted(l *Lease) []int64 {
	var offsets []int64
	for o := l.Batch.First; o < l.Batch.Next; o++ {
		if !slices.ContainsFunc(l.Settled, func(r Range) bool { return r.First <= o && o < r.Next }) {
			offsets = append(offsets, o)
		}
	}
	return offsets
}

func (m *model) ackSome(s *modelSession, n int) {
	m.nextAck++
	a := modelAck{leases: slices.Clone(s.held[:n]), put: map[string]string{}}
	s.held = s.held[n:]
	var changes []StateChange
	if m.rand.IntN(2) == 0 {
		s.serial++
		key := fmt.Sprintf("%d-%d", s.ID, s.serial)
		a.put[key] = fmt.Sprint(m.nextAck)
		changes = append(changes, StateChange{key, []byte(a.put[key])})
	}
	for key := range s.owned {
		if m.rand.IntN(4) == 0 && len(s.acks) == 0 {
			a.del = append(a.del, key)
			changes = append(changes, StateChange{Key: key})
			break
		}
	}
	s.acks[m.nextAck] = a
	m.ack(s.Session, m.nextAck, a.leases, changes...)
	if err := s.AddCredit(1 + int64(m.rand.IntN(100))); err != nil {
		m.t.Fatal(err)
	}
}

// apply is what a durable ack means.
func (m *model) apply(s *modelSession, a modelAck) {
	for _, l := range a.leases {
		for _, o := range wanted(l) {
			m.settled[s.sub][l.Batch.Partition.Topic][o]++
			if m.settled[s.sub][l.Batch.Partition.Topic][o] > 1 {
				m.t.Fatalf("%s: %s/%d is settled twice", s.sub, l.Batch.Partition.Topic, o)
			}
		}
	}
	for k, v := range a.put {
		m.state[k], s.owned[k] = v, v
	}
	for _, k := range a.del {
		delete(m.state, k)
		delete(s.owned, k)
	}
}

func (m *model) check() {
	m.t.Helper()
	if s := m.q.Stats(); s.MemoryBytes > m.cfg.MemoryBytes || s.MemoryRecords > m.cfg.MemoryRecords || s.MemoryBytes < 0 || s.PendingRecords < 0 {
		m.t.Fatalf("memory out of bounds: %+v", s)
	}
	for _, topic := range m.topics {
		a := m.assigned(topic)
		if !a.Known {
			continue
		}
		if a.Safe < m.safe[topic] {
			m.t.Fatalf("%s: safe fell from %d to %d", topic, m.safe[topic], a.Safe)
		}
		m.safe[topic] = a.Safe
		if a.Resume < a.Safe {
			m.t.Fatalf("%s: resume %d below safe %d", topic, a.Resume, a.Safe)
		}
	}
}
