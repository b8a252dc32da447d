package queue

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"
)

// The journal is what the queue keeps in its store besides payloads: the Meta of entries, as JSON
// objects.

// batchMeta is the Meta of a BatchEntry.
type batchMeta struct {
	Partition      Partition `json:"part"`
	First          int64     `json:"first,omitempty"` // of the partition, in case that what made it known is damaged
	Batch          Range     `json:"batch"`
	Own            Range     `json:"own"` // the offsets it answers for
	Records        int32     `json:"records"`
	Codec          int32     `json:"codec"`
	CRC            uint32    `json:"crc"`
	MaxTimestampMs int64     `json:"ts"`
	AppendedMs     int64     `json:"at"`
}

// change is the Meta of a ChangeEntry: what one durable write does to the ledger and the sessions.
type change struct {
	Seen        *seenChange         `json:"seen,omitempty"`
	Subscribe   *subscriptionChange `json:"subscribe,omitempty"`
	Unsubscribe int64               `json:"unsubscribe,omitempty"` // a subscription
	// Subscription is whose ledger Settle, Seek and Pause change; 0 is every one that wants the topic.
	Subscription int64          `json:"sub,omitempty"`
	Settle       []settleChange `json:"settle,omitempty"`
	Seek         []Start        `json:"seek,omitempty"`
	Epoch        int64          `json:"epoch,omitempty"` // of the ledgers that Subscribe and Seek begin, at least; ms since the Unix epoch
	Reads        *readsChange   `json:"reads,omitempty"`
	Pause        *bool          `json:"pause,omitempty"`
	// Session is whose sink State changes, or who adopts.
	Session uint64        `json:"session,omitempty"`
	State   []StateChange `json:"state,omitempty"`
	Adopt   uint64        `json:"adopt,omitempty"` // the dead session whose state becomes Session's

	done func(*Queue) // called with the lock held, once the change is durable and applied
}

// seenChange makes a partition known, how far it was appended at least, and what a record of it looked like.
type seenChange struct {
	Partition Partition    `json:"part"`
	First     int64        `json:"first"`
	Reached   int64        `json:"reached,omitempty"`
	Print     *Fingerprint `json:"print,omitempty"`
}

// subscriptionChange adds a subscription, or changes the one with that id. What it newly wants begins at
// Starts, in other partitions at their first offset.
type subscriptionChange struct {
	ID     int64              `json:"id"`
	Config SubscriptionConfig `json:"config"`
	Starts []Start            `json:"starts,omitempty"`
}

// settleChange settles Range as delivered, but for Except and DeadLetters. With Deferred, it settles only
// what is deferred, as the outcome of the first of Except.
type settleChange struct {
	Partition   Partition    `json:"part"`
	First       int64        `json:"first,omitempty"` // as in batchMeta
	Range       Range        `json:"range"`
	Except      []Interval   `json:"except,omitempty"`
	DeadLetters []DeadLetter `json:"dead,omitempty"`
	Reason      string       `json:"why,omitempty"`
	AtMs        int64        `json:"at,omitempty"` // since the Unix epoch; of what is not delivered
	Deferred    bool         `json:"deferred,omitempty"`
}

// snapshot is the Meta of a SnapshotEntry: the whole ledger.
type snapshot struct {
	NextSubscription int64               `json:"next_sub"`
	NextSession      uint64              `json:"next_session"`
	Subscriptions    []subscriptionState `json:"subs"`
	Partitions       []partitionState    `json:"parts"`
	Sessions         []sessionState      `json:"sessions"`
	Reads            []readsChange       `json:"reads,omitempty"`
}

type subscriptionState struct {
	ID          int64               `json:"id"`
	Config      SubscriptionConfig  `json:"config"`
	Seed        *SubscriptionConfig `json:"seed,omitempty"` // what the configuration file said last
	Paused      bool                `json:"paused,omitempty"`
	Undelivered []Undelivered       `json:"undelivered,omitempty"`
}

type partitionState struct {
	ID      Partition         `json:"part"`
	First   int64             `json:"first"`
	Reached int64             `json:"reached"`
	Settled map[int64]Settled `json:"settled"` // by subscription id
	Prints  []Fingerprint     `json:"prints,omitempty"`
}

type sessionState struct {
	ID           uint64            `json:"id"`
	Subscription int64             `json:"sub"`
	Consumer     string            `json:"consumer"`
	State        map[string][]byte `json:"state"`
	Holds        map[string]int64  `json:"holds,omitempty"` // StateChange.HoldsMs
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encode journal entry: %v", err)) // only types above, none of which can fail
	}
	return b
}

func (q *Queue) meta(pc *piece) []byte {
	return mustJSON(batchMeta{Partition: pc.part.id, First: pc.part.first, Batch: pc.batch, Own: pc.own, Records: pc.records, Codec: int32(pc.codec),
		CRC: pc.crc, MaxTimestampMs: pc.maxTimestampMs, AppendedMs: q.opened.UnixMilli() + pc.appended/int64(time.Millisecond)})
}

// snapshot returns the state that all groups appended so far have left. Only applied changes are in
// it, and a change is applied after its group is durable, by the goroutine that calls this.
func (q *Queue) snapshot() []byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := snapshot{NextSubscription: q.nextSubscription, NextSession: q.nextSession}
	for _, sub := range q.subs {
		s.Subscriptions = append(s.Subscriptions, subscriptionState{ID: sub.id, Config: sub.SubscriptionConfig, Seed: sub.seed, Paused: sub.paused, Undelivered: sub.undelivered})
	}
	for _, p := range q.partitionsLocked() {
		state := partitionState{ID: p.id, First: p.first, Reached: p.reached, Settled: make(map[int64]Settled, len(p.progress)), Prints: p.prints}
		for sub, g := range p.progress {
			state.Settled[sub.id] = g.settled
		}
		s.Partitions = append(s.Partitions, state)
	}
	for _, id := range slices.Sorted(maps.Keys(q.sessions)) {
		if x := q.sessions[id]; len(x.state) > 0 {
			s.Sessions = append(s.Sessions, sessionState{ID: id, Subscription: x.sub.id, Consumer: x.Consumer, State: x.state, Holds: x.holds})
		}
	}
	for r, topics := range q.listed {
		s.Reads = append(s.Reads, readsChange{r.cluster, r.source, topics})
	}
	return mustJSON(s)
}

// recovery rebuilds a queue from its store.
type recovery struct {
	q      *Queue
	pieces []*piece
	homes  map[Partition]*partition // what pieces point to until a snapshot can no longer replace the partitions
}

func (r *recovery) home(id Partition) *partition {
	if r.homes[id] == nil {
		r.homes[id] = &partition{id: id}
	}
	return r.homes[id]
}

func (r *recovery) entry(e Recovered) error {
	switch e.Kind {
	case BatchEntry:
		var m batchMeta
		if err := json.Unmarshal(e.Meta, &m); err != nil {
			return fmt.Errorf("decode batch entry of group %d: %w", e.Ref.Group, err)
		}
		home := r.home(m.Partition)
		home.first = m.First
		r.pieces = append(r.pieces, &piece{part: home, batch: m.Batch, own: m.Own, ref: e.Ref, maxTimestampMs: m.MaxTimestampMs,
			appended: int64(time.UnixMilli(m.AppendedMs).Sub(r.q.opened)), size: int32(e.Ref.Length), records: m.Records, crc: m.CRC, codec: int8(m.Codec), stored: true})
	case SnapshotEntry:
		var s snapshot
		if err := json.Unmarshal(e.Meta, &s); err != nil {
			return fmt.Errorf("decode snapshot entry: %w", err)
		}
		r.q.restore(&s)
	case ChangeEntry:
		var c change
		if err := json.Unmarshal(e.Meta, &c); err != nil {
			return fmt.Errorf("decode change entry: %w", err)
		}
		r.q.applyLocked(&c)
	default:
		return fmt.Errorf("decode entry: unknown kind %d", e.Kind)
	}
	return nil
}

// restore replaces the ledger by a snapshot.
func (q *Queue) restore(s *snapshot) {
	q.nextSubscription, q.nextSession = s.NextSubscription, s.NextSession
	q.subs, q.partitions, q.newest, q.sessions = nil, make(map[Partition]*partition), make(map[Partition]uint32), make(map[uint64]*Session)
	byID := make(map[int64]*subscription)
	for _, st := range s.Subscriptions {
		sub := &subscription{SubscriptionConfig: st.Config, id: st.ID, seed: st.Seed, paused: st.Paused, undelivered: st.Undelivered}
		q.subs = append(q.subs, sub)
		byID[sub.id] = sub
	}
	for _, st := range s.Partitions {
		p := &partition{id: st.ID, first: st.First, appended: st.First, reached: st.Reached, safe: st.First, progress: make(map[*subscription]*progress)}
		for i := range st.Prints {
			p.addPrint(&st.Prints[i])
		}
		q.addPartition(p)
		for id, settled := range st.Settled {
			if sub := byID[id]; sub != nil {
				q.addProgress(sub, p, settled)
			}
		}
	}
	clear(q.listed)
	for i := range s.Reads {
		q.listLocked(&s.Reads[i])
	}
	for _, st := range s.Sessions {
		if sub := byID[st.Subscription]; sub != nil {
			q.sessions[st.ID] = q.newSession(st.ID, sub, st.Consumer, st.State)
			maps.Copy(q.sessions[st.ID].holds, st.Holds)
		}
	}
}

// applyLocked does to the ledger what a change says: when it became durable, and when it is recovered.
func (q *Queue) applyLocked(c *change) {
	if c.Seen != nil {
		p := q.partitionLocked(c.Seen.Partition, c.Seen.First)
		p.reached = max(p.reached, c.Seen.Reached)
		if c.Seen.Print != nil {
			p.addPrint(c.Seen.Print)
		}
		q.raiseSafeLocked(p)
	}
	if c.Subscribe != nil {
		q.subscribeLocked(c.Subscribe, c.Epoch)
	}
	if c.Unsubscribe != 0 {
		q.unsubscribeLocked(c.Unsubscribe)
	}
	q.seekLocked(c.Subscription, c.Seek, c.Epoch)
	for i := range c.Settle {
		s := &c.Settle[i]
		p := q.partitionLocked(s.Partition, s.First)
		p.appended = max(p.appended, s.Range.Next)
		for sub, g := range p.progress {
			if c.Subscription == 0 || c.Subscription == sub.id {
				q.settleLocked(g, s)
			}
		}
		q.raiseSafeLocked(p)
	}
	if c.Reads != nil {
		q.listLocked(c.Reads)
	}
	if c.Pause != nil {
		for _, sub := range q.subs {
			if sub.id == c.Subscription {
				sub.paused = *c.Pause
			}
		}
	}
	if c.Session == 0 {
		return
	}
	s := q.sessions[c.Session]
	if s == nil { // recovered: a session is in no snapshot before it has state
		sub := q.subscriptionByID(c.Subscription)
		if sub == nil || (len(c.State) == 0 && c.Adopt == 0) {
			return
		}
		s = q.newSession(c.Session, sub, "", nil)
		q.sessions[c.Session] = s
		q.nextSession = max(q.nextSession, c.Session+1)
	}
	for _, st := range c.State {
		delete(s.holds, st.Key)
		if st.Value == nil {
			delete(s.state, st.Key)
			continue
		}
		s.state[st.Key] = st.Value
		if st.HoldsMs != 0 {
			s.holds[st.Key] = st.HoldsMs
		}
	}
	if dead := q.sessions[c.Adopt]; dead != nil {
		maps.Copy(s.state, dead.state)
		maps.Copy(s.holds, dead.holds)
		delete(q.sessions, c.Adopt)
	}
}
