package queue

import (
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

type model struct {
	*harness
	rand     *rand.Rand
	ordered  bool
	topics   []string
	kafka    map[string]*Range // what Kafka has, and may have later: Next is where new records come
	life     map[string]uint32 // the incarnation that Kafka has
	lives    int64             // of all topics
	first    map[string]int64  // where the topic began
	position map[string]int64  // where the ingest goes on
	safe     map[string]int64  // highest seen
	lost     Set               // by Kafka, of any topic: the topics do not overlap
	watcher  *Watcher
	requests []Refetch
	acked    map[string]Set       // by subscription: durable acks since its last seek; of any topic
	skipped  map[string]Set       // by subscription: what a seek may have skipped; of any topic
	base     []SubscriptionConfig // what the file says when nothing is wrong with it
	times    map[int64]int64      // by offset, of any topic: when the record came, in ms
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
	only    [][]Range // of each lease; none: all of it
	offsets []Range
	put     map[string]string
	del     []string
}

// lifeOffsets is how many offsets an incarnation of a topic has to itself, so that offsets tell
// where they are from.
const lifeOffsets = 1_000_000

// begin puts the first record of a topic, or of its next incarnation, into Kafka's future.
func (m *model) begin(topic string) {
	first := int64(m.rand.IntN(50)) + m.lives*lifeOffsets
	m.lives++
	m.kafka[topic] = &Range{first, first}
	m.first[topic], m.position[topic], m.safe[topic] = first, first, 0
}

// lifeOf is the offsets that an incarnation has to itself, by one of them.
func lifeOf(o int64) Range {
	return Range{o / lifeOffsets * lifeOffsets, (o/lifeOffsets + 1) * lifeOffsets}
}

// partition is the topic's, as it is in Kafka.
func (m *model) partition(topic string) Partition {
	id := testPartition(topic)
	id.Incarnation = m.life[topic]
	return id
}

// assigned is what an ingest is told, after it has found that the topic is another one.
func (m *model) assigned(topic string) Assigned {
	a := m.harness.assigned(topic)
	for a.Partition.Incarnation < m.life[topic] {
		if !a.Known { // the crash took what was there of it
			m.life[topic] = a.Partition.Incarnation
			break
		}
		var err error
		if a, err = m.q.Assign(a.Partition, true); err != nil {
			m.t.Fatalf("assign: %v", err)
		}
	}
	return a
}

func newModel(t testing.TB, seed uint64) *model {
	r := rand.New(rand.NewPCG(seed, 7))
	m := &model{topics: []string{"a", "b"}, ordered: r.IntN(2) == 0, kafka: map[string]*Range{}, life: map[string]uint32{}, rand: r, first: map[string]int64{}, position: map[string]int64{},
		safe: map[string]int64{}, acked: map[string]Set{}, skipped: map[string]Set{}, times: map[int64]int64{}, state: map[string]map[string]string{}}
	m.harness = newHarness(modelTB{t},
		SubscriptionConfig{Name: "one", Topics: []string{"*"}, Required: true},
		SubscriptionConfig{Name: "two", Topics: []string{"*"}, Required: r.IntN(2) == 0, OnFull: OnFull(1 + r.IntN(3)), Limit: int64(r.IntN(2) * (100 + r.IntN(500)))},
		SubscriptionConfig{Name: "only-a", Topics: []string{"a"}, Required: r.IntN(2) == 0, OnFull: OnFull(1 + r.IntN(3)), Limit: int64(r.IntN(2) * (100 + r.IntN(500)))})
	m.cfg.Delivered = r.IntN(4) == 0
	if r.IntN(5) == 0 {
		m.cfg.SpillAfter = 0
	}
	if seed%2 == 0 { // long work is done in parts
		m.holdItems = 1 + int(seed/2%5)
	}
	m.store = newFakeStore()
	if m.store.inParts = seed%3 > 0; m.store.inParts {
		m.partBytes = 1 << (seed % 10)
	}
	m.reopen()
	for _, topic := range m.topics {
		m.begin(topic)
	}
	m.base = m.cfg.Subscriptions
	for _, c := range m.base {
		m.state[c.Name] = map[string]string{}
	}
	m.connect()
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
	case "caught up":
		if at := m.position[topic]; at == m.kafka[topic].Next {
			m.q.CaughtUp(m.partition(topic), at, m.now.UnixMilli())
		}
	case "gap": // compacted away
		if at := m.position[topic]; at == m.kafka[topic].Next {
			next := at + 1 + int64(m.rand.IntN(10))
			if m.settle(topic, Range{at, next}, Filtered, 0) {
				m.position[topic] = next
				m.grow(m.kafka[topic], next)
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
			s.Nack(s.held[0].ID, time.Duration(m.rand.IntN(3)-1)*time.Second, "")
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
		m.crash(false)
	case "reconfigure":
		m.settleDown()
		m.reconfigure()
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
		m.connect()
	case "retention":
		k := m.kafka[topic]
		was := k.First
		k.First += m.rand.Int64N(k.Len()/2 + 1)
		m.lost.Add(Range{was, k.First})
	case "topic is created again":
		if m.harness.assigned(topic).Known && m.position[topic] > m.first[topic] { // else nothing is known that could be taken for the new one's
			m.lost.Add(Range{m.first[topic], m.kafka[topic].Next})
			m.life[topic]++
			m.begin(topic)
			m.assigned(topic)
		}
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
		m.crash(true)
	case "seek":
		m.settleDown()
		m.seek(m.anySubscription())
	case "replay":
		m.settleDown()
		m.replay(m.anySubscription(), topic)
	case "cancel replay":
		m.settleDown()
		m.cancelReplay(m.anySubscription())
	case "redrive":
		m.settleDown()
		m.redrive(m.anySubscription())
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
	case "update topics":
		m.settleDown()
		m.retopic(m.anySubscription(), m.someTopics())
	default:
		m.t.Fatalf("unknown step %q", kind)
	}
}

// must runs a method that waits for a write; a store that fails meanwhile is a crash.
func (m *model) must(do func() error) {
	if m.store.fail != nil {
		m.crash(false)
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
		m.crash(false)
		return
	}
	m.harness.write()
}

// connect is what an ingest does first.
func (m *model) connect() {
	m.watcher, m.requests = m.q.Watch("k", "ingest"), nil
	m.q.ListTopics("k", "source", map[string]int32{"a": 1, "b": 1})
}

// crash loses what was not written, acks included, and with damage some of what was.
func (m *model) crash(damage bool) {
	m.loseSessions()
	before := map[string]int64{}
	for _, topic := range m.topics {
		before[topic] = m.assigned(topic).Safe
	}
	m.requests = nil
	m.store.fail, m.store.full = nil, hasSpace
	m.reopen()
	m.connect()
	for _, topic := range m.topics {
		a := m.assigned(topic)
		if !a.Known {
			if before[topic] > m.first[topic] {
				m.t.Fatalf("%s is unknown after a crash, but %d was safe", topic, before[topic])
			}
			a.Resume = m.first[topic]
		}
		if a.Known && a.Safe < before[topic] && !damage {
			m.t.Fatalf("%s: safe fell from %d to %d over a restart", topic, before[topic], a.Safe)
		}
		m.position[topic] = a.Resume
		// What was lost on disk may lie at the end; then the ingest reads it again.
		m.safe[topic] = a.Safe
	}
}

// loseSessions is the end of all sessions without anybody noticing: answers that are out still
// count.
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
	topic := "a"
	if !m.q.subscription(sub).wants(topic) {
		topic = "b"
	}
	a := m.assigned(topic)
	if !a.Known || !m.q.subscription(sub).wants(topic) {
		return
	}
	for _, s := range m.sessions {
		if s.sub == sub { // what it holds is revoked; nothing is under way
			s.held = slices.DeleteFunc(s.held, func(l *Lease) bool { return l.Batch.Partition == m.partition(topic) })
		}
	}
	to := m.first[topic] + m.rand.Int64N(a.Resume-m.first[topic]+1)
	m.must(func() error {
		return m.q.Seek(m.t.Context(), sub, Nowhere, []Start{{m.partition(topic), to}})
	})
	acked := m.acked[sub]
	acked.Remove(Range{m.first[topic], lifeOf(to).Next})
	acked.Add(Range{m.first[topic], to}) // counts as settled
	m.acked[sub] = acked
	skipped := m.skipped[sub]
	skipped.Add(Range{m.first[topic], to})
	m.skipped[sub] = skipped
	for _, s := range m.sessions {
		m.receive(s)
	}
}

// letGo is a session that does not hear yet that its leases are revoked.
func (m *model) letGo(sub string, of func(Partition) bool) {
	for _, s := range m.sessions {
		if s.sub == sub {
			s.held = slices.DeleteFunc(s.held, func(l *Lease) bool { return of(l.Batch.Partition) })
		}
	}
}

// replay has some of a topic be delivered again.
func (m *model) replay(sub, topic string) {
	a := m.assigned(topic)
	if !a.Known || !m.q.subscription(sub).wants(topic) || m.q.subscription(sub).replaying > 0 {
		return
	}
	first := m.first[topic] + m.rand.Int64N(a.Resume-m.first[topic]+1)
	w := Window{m.partition(topic), Range{first, first + 1 + m.rand.Int64N(60)}}
	rate := float64(m.rand.IntN(2) * (1 + m.rand.IntN(20)))
	plan, err := m.q.PlanReplay(sub, []Window{w})
	if err != nil {
		m.t.Fatalf("plan a replay: %v", err)
	}
	if len(plan) == 0 || plan[0].Again == 0 {
		return
	}
	m.letGo(sub, func(p Partition) bool { return p == w.Partition })
	m.must(func() error { return m.q.Replay(m.t.Context(), sub, []Window{w}, Replay{PerSecond: rate}) })
	if v, err := m.q.Subscription(sub); err != nil || v.Replay.Offsets != plan[0].Again || v.Replay.Left > v.Replay.Offsets {
		m.t.Fatalf("%s: planned %+v, and got %+v, %v", sub, plan, v.Replay, err)
	}
	acked := m.acked[sub]
	acked.Remove(plan[0].Range)
	m.acked[sub] = acked
	for _, s := range m.sessions {
		m.receive(s)
	}
}

// replayed returns what a subscription is to be delivered again for a replay.
func (m *model) replayed(sub string) (all Set) {
	for _, g := range m.q.subscription(sub).progress {
		if g.settled.Again != nil {
			for v := range g.settled.Again.list.all() {
				if v.Outcome == 0 {
					all.Add(v.Range)
				}
			}
		}
	}
	return all
}

func (m *model) cancelReplay(sub string) {
	if m.q.subscription(sub).replaying == 0 {
		return
	}
	before := m.replayed(sub)
	m.must(func() error { return m.q.CancelReplay(m.t.Context(), sub) })
	after, acked := m.replayed(sub), m.acked[sub]
	for r := range before.All() {
		for _, part := range after.Without(r) {
			acked.Add(part)
		}
	}
	m.acked[sub] = acked
}

// redrive has what was dropped or lost be delivered after all, where that is possible.
func (m *model) redrive(sub string) {
	list, err := m.q.Undelivered(sub)
	if err != nil {
		m.t.Fatalf("%v", err)
	}
	acked := m.acked[sub]
	for _, u := range list { // a seek ahead counts as one
		acked.Remove(u.Range)
	}
	m.acked[sub] = acked
	m.must(func() error {
		_, err := m.q.Redrive(m.t.Context(), sub, func(u *Undelivered) Range { return u.Range })
		if errors.Is(err, ErrNoUndelivered) {
			return nil
		}
		return err
	})
	for _, s := range m.sessions {
		m.receive(s)
	}
}

// someTopics is what a file may say, right or wrong.
func (m *model) someTopics() []string {
	return [][]string{{"*"}, {"a"}, {"b"}, {"nothing"}}[m.rand.IntN(4)]
}

// retopic changes what a subscription wants.
func (m *model) retopic(sub string, topics []string) {
	m.must(func() error {
		return m.q.Update(m.t.Context(), sub, func(c *SubscriptionConfig) { c.Topics = topics })
	})
	for _, s := range m.sessions {
		m.receive(s)
	}
}

// reconfigure restarts with another file, which may be wrong, and may delete what is not in it
// any more.
func (m *model) reconfigure() {
	m.cfg.Subscriptions = nil
	for _, c := range m.base {
		if m.rand.IntN(3) == 0 {
			c.Topics = m.someTopics()
		}
		if m.rand.IntN(4) == 0 {
			c.Required = !c.Required
		}
		if c.Name == "one" || m.rand.IntN(6) > 0 {
			m.cfg.Subscriptions = append(m.cfg.Subscriptions, c)
		}
	}
	m.crash(false)
	for _, v := range m.q.Subscriptions() {
		if !v.Configured && m.rand.IntN(3) == 0 {
			m.must(func() error { return m.q.Unsubscribe(m.t.Context(), v.Name, true) })
			delete(m.state, v.Name)
		}
	}
	m.begun()
}

// begun begins to look at subscriptions that are new.
func (m *model) begun() {
	for _, name := range m.subscriptions() {
		if m.state[name] == nil {
			m.state[name], m.acked[name], m.skipped[name] = map[string]string{}, Set{}, Set{}
		}
	}
}

// mend makes the file right, and has every subscription want what it wanted at first.
func (m *model) mend() {
	m.cfg.Subscriptions = m.base
	m.crash(false)
	m.begun()
	for _, name := range m.subscriptions() {
		topics := []string{"b"}
		for _, c := range m.base {
			if c.Name == name {
				topics = c.Topics
			}
		}
		for p := range m.q.Progress(name, Partition{}) { // and what it was made to want meanwhile
			if !slices.Contains(topics, "*") && !slices.Contains(topics, p.Partition.Topic) {
				topics = append(slices.Clone(topics), p.Partition.Topic)
			}
		}
		m.retopic(name, topics)
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
		m.must(func() error { return m.q.Unsubscribe(m.t.Context(), name, true) })
	}
	place := Place(1 + m.rand.IntN(2))
	required := m.rand.IntN(2) == 0
	m.must(func() error {
		return m.q.Subscribe(m.t.Context(), SubscriptionConfig{Name: name, Topics: []string{"b"}, Required: required, OnFull: Defer, Limit: 300}, place, nil)
	})
	m.state[name], m.skipped[name] = map[string]string{}, Set{}
	acked := Set{}
	for p := range m.q.Progress(name, Partition{}) {
		acked.Add(Range{lifeOf(p.Start).First, p.Start})
	}
	m.acked[name] = acked
}

// kill ends a session. Its unanswered acks come into effect with the next write: the oracle knows.
func (m *model) kill(s *modelSession) {
	m.receive(s)
	s.Close()
	if m.store.fail != nil {
		m.crash(false)
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
		m.grow(k, next)
	}
}

// grow adds what Kafka has up to next.
func (m *model) grow(k *Range, next int64) {
	for ; k.Next < next; k.Next++ {
		m.times[k.Next] = m.now.UnixMilli()
	}
}

// tryAppend says whether the queue took it.
func (m *model) tryAppend(topic string, first, next int64, refetch uint64) bool {
	if s := m.q.Stats(); s.MemoryBytes > 0 && (s.MemoryBytes+next-first > m.cfg.MemoryBytes || s.MemoryRecords+next-first > m.cfg.MemoryRecords) {
		m.write()
		return false // Append would wait
	}
	_, err := m.q.Append(m.t.Context(), m.batch(topic, first, next), refetch)
	if errors.Is(err, ErrFull) {
		return false
	}
	if err != nil {
		m.t.Fatalf("append %s [%d,%d): %v", topic, first, next, err)
	}
	return true
}

func (m *model) batch(topic string, first, next int64) Batch {
	b := testBatch(topic, first, next)
	b.Partition = m.partition(topic)
	b.MaxTimestampMs = m.now.UnixMilli()
	if ms, ok := m.times[next-1]; ok {
		b.MaxTimestampMs = ms
	}
	b.Last = &Fingerprint{Offset: next - 1, CRC: uint32(next)}
	return b
}

func (m *model) settle(topic string, r Range, o Outcome, refetch uint64) bool {
	if err := m.q.Settle(m.partition(topic), r, o, "by the model", refetch); err != nil {
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
	if r.Partition.Incarnation != m.life[topic] { // the fingerprint tells
		if err := m.q.Settle(r.Partition, r.Range, Lost, "by the model", r.ID); err != nil {
			m.t.Fatalf("settle: %v", err)
		}
		m.requests = m.requests[1:]
		return
	}
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
