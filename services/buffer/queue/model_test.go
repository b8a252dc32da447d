package queue

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	modelSeeds = flag.Int("model.seeds", 150, "how many seeds TestModel runs")
	modelSeed  = flag.Uint64("model.seed", 0, "run this seed only")
)

// TestModel drives a queue with random steps and compares it with an oracle that knows, for every
// subscription and offset, whether an ack of it became durable. After every step it checks that
//
//   - the audit has no hole and its parts add up,
//   - the window keeps its bounds, and safe never falls,
//   - no offset is leased again after its ack was durable,
//   - an ordered session is leased nothing while something before it is pending elsewhere,
//
// after a crash that nothing that was safe needs Kafka's committed offset, and at the end that every
// subscription got every offset once, but for those that its policy dropped or Kafka had lost.
//
// A failure prints the seed and the shortest script that was found to fail.
func TestModel(t *testing.T) {
	first, last := uint64(1), uint64(*modelSeeds)
	if *modelSeed > 0 {
		first, last = *modelSeed, *modelSeed
	}
	for seed := first; seed <= last; seed++ {
		script := newScript(seed, 400)
		if err := script.run(t); err != nil {
			script = script.shrink(t)
			t.Fatalf("seed %d: %v\nshrunk: %v\n%s", seed, err, script.run(t), script)
		}
	}
}

// script is a reproducible run: the random choices of a step come from the step alone, so that the others
// stay the same when one is left out.
type script struct {
	seed  uint64
	steps []step
}

type step struct {
	kind string
	dice uint64
}

// stepKinds are the steps with their weights.
var stepKinds = []struct {
	kind   string
	weight int
}{
	{"append", 22}, {"append what is known", 4}, {"gap", 1}, {"write", 14}, {"open session", 4}, {"receive", 14}, {"ack", 14}, {"nack", 4},
	{"time passes", 5}, {"session dies", 3}, {"pause or resume", 2}, {"crash", 2}, {"store fails", 1}, {"disk full", 2}, {"answer refetch", 14},
	{"ignore refetch", 2}, {"ingest reconnects", 2}, {"retention", 1}, {"damage", 2}, {"lose segment and crash", 1}, {"seek", 1},
	{"delete and create", 1}, {"update", 1},
}

func newScript(seed uint64, steps int) *script {
	r := rand.New(rand.NewPCG(seed, 1))
	total := 0
	for _, k := range stepKinds {
		total += k.weight
	}
	s := &script{seed: seed}
	for range steps {
		n := r.IntN(total)
		for _, k := range stepKinds {
			if n -= k.weight; n < 0 {
				s.steps = append(s.steps, step{k.kind, r.Uint64()})
				break
			}
		}
	}
	return s
}

func (s *script) String() string {
	var b strings.Builder
	for _, st := range s.steps {
		fmt.Fprintf(&b, "\t{%q, %#x},\n", st.kind, st.dice)
	}
	return b.String()
}

// run returns the first thing that is wrong.
func (s *script) run(t *testing.T) (err error) {
	at := -1
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("after step %d of %d: %v", at+1, len(s.steps), r)
			if _, ours := r.(modelFailure); !ours && len(s.steps) < 30 {
				panic(r)
			}
		}
	}()
	m := newModel(t, s.seed)
	for i, st := range s.steps {
		at = i
		m.rand = rand.New(rand.NewPCG(st.dice, 2))
		m.step(st.kind)
		m.check()
	}
	m.finish()
	return nil
}

// shrink leaves out steps as long as it fails.
func (s *script) shrink(t *testing.T) *script {
	for n := len(s.steps) / 2; n > 0; {
		shorter := false
		for i := 0; i+n <= len(s.steps); {
			without := &script{s.seed, slices.Delete(slices.Clone(s.steps), i, i+n)}
			if without.run(t) != nil {
				s, shorter = without, true
				continue
			}
			i += n
		}
		if !shorter || n > len(s.steps) {
			n /= 2
		}
	}
	return s
}

// modelFailure is what a failed check panics with, so that a script can be run again.
type modelFailure string

type modelTB struct{ testing.TB }

func (modelTB) Helper()                           {}
func (modelTB) Fatal(args ...any)                 { panic(modelFailure(fmt.Sprint(args...))) }
func (modelTB) Fatalf(format string, args ...any) { panic(modelFailure(fmt.Sprintf(format, args...))) }

type model struct {
	*harness
	rand     *rand.Rand
	ordered  bool
	topics   []string
	kafka    map[string]*Range // what Kafka has, and may have later: Next is where new records come
	first    map[string]int64  // where the topic began
	position map[string]int64  // where the ingest goes on
	safe     map[string]int64  // highest seen
	lost     Set               // by Kafka, of any topic: the topics do not overlap
	watcher  *Watcher
	requests []Refetch
	acked    map[string]Set // by subscription: durable acks since its last seek; of any topic
	sessions []*modelSession
	nextAck  uint64
	state    map[string]map[string]string // by subscription: key, value that must be owned by someone
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
	leases  []*Lease
	offsets []Range
	put     map[string]string
	del     []string
}

const topicB = 1_000_000 // the first offset of topic b, so that offsets tell the topic

func newModel(t testing.TB, seed uint64) *model {
	r := rand.New(rand.NewPCG(seed, 7))
	m := &model{topics: []string{"a", "b"}, ordered: r.IntN(2) == 0, kafka: map[string]*Range{}, first: map[string]int64{}, position: map[string]int64{},
		safe: map[string]int64{}, acked: map[string]Set{}, state: map[string]map[string]string{}}
	m.harness = newHarness(modelTB{t},
		SubscriptionConfig{Name: "one", Topics: []string{"*"}, Required: true},
		SubscriptionConfig{Name: "two", Topics: []string{"*"}, Required: r.IntN(2) == 0, OnFull: OnFull(1 + r.IntN(3)), Limit: int64(r.IntN(2) * (100 + r.IntN(500)))},
		SubscriptionConfig{Name: "only-a", Topics: []string{"a"}, Required: r.IntN(2) == 0, OnFull: OnFull(1 + r.IntN(3)), Limit: int64(r.IntN(2) * (100 + r.IntN(500)))})
	m.cfg.Delivered = r.IntN(4) == 0
	if r.IntN(5) == 0 {
		m.cfg.SpillAfter = 0
	}
	m.store = newFakeStore()
	m.reopen()
	for i, topic := range m.topics {
		first := int64(r.IntN(50)) + int64(i)*topicB
		m.kafka[topic] = &Range{first, first}
		m.first[topic], m.position[topic] = first, first
	}
	for _, c := range m.cfg.Subscriptions {
		m.state[c.Name] = map[string]string{}
	}
	m.watcher = m.q.Watch("k", "ingest")
	return m
}

func (m *model) step(kind string) {
	topic := m.topics[m.rand.IntN(2)]
	switch kind {
	case "append":
		m.appendNext(topic)
	case "append what is known": // an ingest that does not know yet that it lost the partition
		if a := m.assigned(topic); a.Known && a.Resume > m.kafka[topic].First {
			first := max(m.kafka[topic].First, a.Resume-1-int64(m.rand.IntN(40)))
			if next := min(first+1+int64(m.rand.IntN(60)), m.kafka[topic].Next); next > first {
				m.tryAppend(topic, first, next, 0)
			}
		}
	case "gap": // compacted away
		if at := m.position[topic]; at == m.kafka[topic].Next {
			next := at + 1 + int64(m.rand.IntN(10))
			if m.settle(topic, Range{at, next}, Filtered, 0) {
				m.position[topic], m.kafka[topic].Next = next, next
			}
		}
	case "write":
		m.write()
	case "open session":
		if len(m.sessions) < 5 {
			m.sessions = append(m.sessions, m.open(m.anySubscription()))
		}
	case "receive":
		if s := m.anySession(); s != nil {
			m.receive(s)
		}
	case "ack":
		if s := m.anySession(); s != nil && len(s.held) > 0 {
			m.ackSome(s, 1+m.rand.IntN(len(s.held)))
		}
	case "nack":
		if s := m.anySession(); s != nil && len(s.held) > 0 {
			s.Nack(s.held[0].ID, time.Duration(m.rand.IntN(3)-1)*time.Second)
			s.held = s.held[1:]
		}
	case "time passes":
		m.pass(time.Duration(m.rand.IntN(15)) * time.Second)
	case "session dies":
		if s := m.anySession(); s != nil {
			m.kill(s)
			m.sessions = slices.DeleteFunc(m.sessions, func(x *modelSession) bool { return x == s })
		}
	case "pause or resume":
		sub, paused := m.anySubscription(), m.rand.IntN(2) == 0
		m.must(func() error { return m.q.Pause(m.t.Context(), sub, paused) })
	case "crash":
		m.crash()
	case "store fails":
		m.store.fail = errors.New("input/output error")
	case "disk full":
		m.store.full = fullness(m.rand.IntN(3))
	case "answer refetch":
		m.answer()
	case "ignore refetch":
		m.requests = append(m.requests, asked(m.watcher)...)
		m.requests = m.requests[min(1, len(m.requests)):]
	case "ingest reconnects":
		m.watcher.Close()
		m.watcher, m.requests = m.q.Watch("k", "ingest"), nil
	case "retention":
		k := m.kafka[topic]
		was := k.First
		k.First += m.rand.Int64N(k.Len()/2 + 1)
		m.lost.Add(Range{was, k.First})
	case "damage":
		if refs := m.stored(); len(refs) > 0 {
			m.store.damaged[refs[m.rand.IntN(len(refs))]] = true
		}
	case "lose segment and crash":
		m.loseSessions()
		for _, ref := range m.stored() {
			if m.rand.IntN(3) == 0 {
				m.store.released[ref] = true
			}
		}
		m.crash()
	case "seek":
		m.settleDown()
		m.seek(m.anySubscription())
	case "delete and create":
		m.settleDown()
		m.recreate()
	case "update":
		sub, limit := m.anySubscription(), int64(m.rand.IntN(2)*(100+m.rand.IntN(500)))
		onFull := OnFull(1 + m.rand.IntN(3))
		if sub != "one" {
			m.must(func() error {
				return m.q.Update(m.t.Context(), sub, func(c *SubscriptionConfig) { c.OnFull, c.Limit = onFull, limit })
			})
		}
	default:
		m.t.Fatalf("unknown step %q", kind)
	}
}

// must runs a method that waits for a write; a store that fails meanwhile is a crash.
func (m *model) must(do func() error) {
	if m.store.fail != nil {
		m.crash()
	}
	m.store.full = hasSpace
	m.pass(2 * time.Second)
	if err := m.manage(do); err != nil {
		m.t.Fatalf("%v", err)
	}
}

func (m *model) stored() []Ref {
	var refs []Ref
	for _, e := range m.store.entries {
		if e.Kind == BatchEntry && !m.store.released[e.Ref] && !m.store.damaged[e.Ref] {
			refs = append(refs, e.Ref)
		}
	}
	return refs
}

// write is the harness's, but a failing store is a crash.
func (m *model) write() {
	if m.store.fail != nil {
		m.crash()
		return
	}
	m.harness.write()
}

// crash loses what was not written, acks included.
func (m *model) crash() {
	m.loseSessions()
	before := map[string]int64{}
	for _, topic := range m.topics {
		before[topic] = m.assigned(topic).Safe
	}
	m.requests = nil
	m.store.fail, m.store.full = nil, hasSpace
	m.reopen()
	m.watcher = m.q.Watch("k", "ingest")
	for _, topic := range m.topics {
		a := m.assigned(topic)
		if !a.Known {
			if before[topic] > m.first[topic] {
				m.t.Fatalf("%s is unknown after a crash, but %d was safe", topic, before[topic])
			}
			a.Resume = m.first[topic]
		}
		m.position[topic] = a.Resume
		// What was damaged or lost on disk may lie at the end; then the ingest reads it again.
		m.safe[topic] = a.Safe
	}
}

// loseSessions is the end of all sessions without anybody noticing: answers that are out still count.
func (m *model) loseSessions() {
	for _, s := range m.sessions {
		m.receive(s)
	}
	m.sessions = nil
}

// settleDown leaves no ack unanswered.
func (m *model) settleDown() {
	m.store.full = hasSpace
	m.pass(2 * time.Second)
	m.write()
	for _, s := range m.sessions {
		m.receive(s)
		if len(s.acks) > 0 {
			m.t.Fatalf("acks without an answer after a write: %v", s.acks)
		}
	}
}

func (m *model) seek(sub string) {
	topic, end := "a", int64(topicB)
	if !m.q.subscription(sub).wants(topic) {
		topic, end = "b", 2*topicB
	}
	a := m.assigned(topic)
	if !a.Known {
		return
	}
	for _, s := range m.sessions {
		if s.sub == sub { // what it holds is revoked; nothing is under way
			s.held = slices.DeleteFunc(s.held, func(l *Lease) bool { return l.Batch.Partition.Topic == topic })
		}
	}
	to := m.first[topic] + m.rand.Int64N(a.Resume-m.first[topic]+1)
	m.must(func() error {
		return m.q.Seek(m.t.Context(), sub, Nowhere, []Start{{testPartition(topic), to}})
	})
	acked := m.acked[sub]
	acked.Remove(Range{m.first[topic], end})
	acked.Add(Range{m.first[topic], to}) // counts as settled
	m.acked[sub] = acked
	for _, s := range m.sessions {
		m.receive(s)
	}
}

// recreate deletes a subscription that is not configured, and creates it anew.
func (m *model) recreate() {
	const name = "extra"
	for _, s := range slices.Clone(m.sessions) {
		if s.sub == name {
			m.sessions = slices.DeleteFunc(m.sessions, func(x *modelSession) bool { return x == s })
		}
	}
	if m.q.subscription(name) != nil {
		m.must(func() error { return m.q.Unsubscribe(m.t.Context(), name) })
	}
	place := Place(1 + m.rand.IntN(2))
	required := m.rand.IntN(2) == 0
	m.must(func() error {
		return m.q.Subscribe(m.t.Context(), SubscriptionConfig{Name: name, Topics: []string{"b"}, Required: required, OnFull: Defer, Limit: 300}, place, nil)
	})
	m.state[name] = map[string]string{}
	acked := Set{}
	for _, v := range m.q.Subscriptions() {
		if v.Name == name {
			for _, p := range v.Partitions {
				acked.Add(Range{m.first["b"], p.Settled.Start})
			}
		}
	}
	m.acked[name] = acked
}

// kill ends a session. Its unanswered acks come into effect with the next write: the oracle knows.
func (m *model) kill(s *modelSession) {
	m.receive(s)
	s.Close()
	if m.store.fail != nil {
		m.crash()
		return
	}
	m.store.full = hasSpace
	m.pass(2 * time.Second)
	m.write()
	for _, id := range slices.Sorted(maps.Keys(s.acks)) {
		m.apply(s, s.acks[id])
	}
}

func (m *model) subscriptions() []string {
	var names []string
	for _, s := range m.q.subs {
		names = append(names, s.Name)
	}
	return names
}

func (m *model) anySubscription() string {
	names := m.subscriptions()
	return names[m.rand.IntN(len(names))]
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

// appendNext goes on with a topic: with what Kafka has, or with new records.
func (m *model) appendNext(topic string) {
	at, k := m.position[topic], m.kafka[topic]
	if at < k.First {
		if m.settle(topic, Range{at, k.First}, Lost, 0) {
			m.position[topic] = k.First
		}
		return
	}
	next := at + 1 + int64(m.rand.IntN(40))
	if m.tryAppend(topic, at, next, 0) {
		m.position[topic] = next
		k.Next = max(k.Next, next)
	}
}

// tryAppend says whether the queue took it.
func (m *model) tryAppend(topic string, first, next int64, refetch uint64) bool {
	if s := m.q.Stats(); s.MemoryBytes > 0 && (s.MemoryBytes+next-first > m.cfg.MemoryBytes || s.MemoryRecords+next-first > m.cfg.MemoryRecords) {
		m.write()
		return false // Append would wait
	}
	_, err := m.q.Append(m.t.Context(), testBatch(topic, first, next), refetch)
	if errors.Is(err, ErrFull) {
		return false
	}
	if err != nil {
		m.t.Fatalf("append %s [%d,%d): %v", topic, first, next, err)
	}
	return true
}

func (m *model) settle(topic string, r Range, o Outcome, refetch uint64) bool {
	if err := m.q.Settle(testPartition(topic), r, o, "by the model", refetch); err != nil {
		m.t.Fatalf("settle %s %v: %v", topic, r, err)
	}
	if o == Filtered {
		m.lost.Add(r)
	}
	return true
}

// answer answers a part of a refetch as an ingest does.
func (m *model) answer() {
	m.requests = append(m.requests, asked(m.watcher)...)
	if len(m.requests) == 0 {
		return
	}
	r := &m.requests[0]
	topic := r.Partition.Topic
	k := m.kafka[topic]
	if r.Range.Next > k.Next {
		m.t.Fatalf("asked to refetch %v of %s, which has %v", r.Range, topic, *k)
	}
	next := min(r.Range.First+1+int64(m.rand.IntN(40)), r.Range.Next)
	switch {
	case r.Range.First < k.First:
		next = min(r.Range.Next, k.First)
		m.settle(topic, Range{r.Range.First, next}, Lost, r.ID)
	case !m.tryAppend(topic, r.Range.First, next, r.ID):
		return
	}
	if r.Range.First = next; next == r.Range.Next {
		m.requests = m.requests[1:]
	}
}

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
				continue
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
		for _, r := range a.offsets {
			mine.Add(r)
		}
	}
	for _, r := range g.settled.Unsettled(Range{g.settled.Start, parts[0].First}) {
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
	a := modelAck{leases: slices.Clone(s.held[:n]), put: map[string]string{}}
	s.held = s.held[n:]
	for _, l := range a.leases {
		a.offsets = append(a.offsets, wanted(l)...)
	}
	var changes []StateChange
	if m.rand.IntN(2) == 0 {
		s.serial++
		key := fmt.Sprintf("%d-%d", s.ID, s.serial)
		a.put[key] = fmt.Sprint(m.nextAck)
		changes = append(changes, StateChange{key, []byte(a.put[key])})
	}
	for _, key := range slices.Sorted(maps.Keys(s.owned)) {
		if m.rand.IntN(4) == 0 && len(s.acks) == 0 {
			a.del = append(a.del, key)
			changes = append(changes, StateChange{Key: key})
			break
		}
	}
	s.acks[m.nextAck] = a
	m.ack(s.Session, m.nextAck, a.leases, changes...)
	if err := s.AddCredit(1 + int64(m.rand.IntN(100))); err != nil {
		m.t.Fatalf("credit: %v", err)
	}
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

// finish lets everything come to rest, and checks that nothing is missing.
func (m *model) finish() {
	m.rand = rand.New(rand.NewPCG(9, 9))
	if m.store.fail != nil {
		m.crash()
	}
	for _, s := range m.sessions {
		m.kill(s)
	}
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
				if sub := m.q.subscription(v.Name); sub.seed != nil && sub.seed.Name == "one" {
					m.t.Fatalf("%s: %v is dropped, but the subscription blocks", v.Name, u.Range)
				}
			default:
				m.t.Fatalf("%s: %v is %s", v.Name, u.Range, u.Outcome)
			}
		}
		for _, p := range v.Partitions {
			all := Range{p.Settled.Start, p.Appended}
			if len(p.Settled.Above) > 0 || p.Settled.Floor < p.Appended || v.Deferred > 0 {
				m.t.Fatalf("%s: not settled at the end: %+v", v.Name, p)
			}
			for _, r := range m.acked[v.Name].Without(all) {
				for _, missing := range undelivered.Without(r) {
					for _, still := range m.lost.Without(missing) {
						m.t.Fatalf("%s: %v of %s is settled, but was neither acked, dropped nor lost", v.Name, still, p.Partition.Topic)
					}
				}
			}
			if end := m.kafka[p.Partition.Topic].Next; p.Appended != end {
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
