package queue

import (
	"encoding/json"
	"fmt"
	"maps"
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
	Copy           int64     `json:"copy,omitempty"` // the subscription that has the batch as a copy of dead letters
}

// change is the Meta of a ChangeEntry: what one durable write does to the ledger and the sessions.
type change struct {
	Seen        *seenChange         `json:"seen,omitempty"`
	Subscribe   *subscriptionChange `json:"subscribe,omitempty"`
	Unsubscribe int64               `json:"unsubscribe,omitempty"` // a subscription
	// Subscription is whose ledger Settle, Seek and Pause change; 0 is every one that wants the
	// topic.
	Subscription int64          `json:"sub,omitempty"`
	Settle       []settleChange `json:"settle,omitempty"`
	Seek         []Start        `json:"seek,omitempty"`
	Epoch        int64          `json:"epoch,omitempty"` // of the ledgers that Subscribe and Seek begin, at least; ms since the Unix epoch
	Reads        *readsChange   `json:"reads,omitempty"`
	Pause        *bool          `json:"pause,omitempty"`
	Limits       *limitsChange  `json:"limits,omitempty"`
	Hold         *holdChange    `json:"hold,omitempty"`
	Replay       *Replay        `json:"replay,omitempty"` // the subscription's from now on
	// Repeat is what Subscription is to be delivered again, and Forgotten what is listed as
	// undelivered no more.
	Repeat    []repeatChange `json:"repeat,omitempty"`
	Forgotten []repeatChange `json:"forgotten,omitempty"`
	// Session is whose sink State changes, or who adopts.
	Session uint64        `json:"session,omitempty"`
	State   []StateChange `json:"state,omitempty"`
	Adopt   uint64        `json:"adopt,omitempty"` // the dead session whose state becomes Session's

	Forget string `json:"forget,omitempty"` // the key of an entry of sink state
	// Safe is the safe offsets that what else the change does might take back. Filled in before
	// it is written, with guards.
	Safe   []Start `json:"safe,omitempty"`
	Ledger string  `json:"ledger,omitempty"` // the random name of the queue's data, made with it
	Shard  *shard  `json:"shard,omitempty"`  // with Ledger, as in snapshotHead
	// Revision is of the configuration that counts from now on.
	Revision *int64 `json:"revision,omitempty"`

	done   func(*Queue)  // called with the lock held, once the change is durable and applied
	before func(*Queue)  // called before it is applied, like done
	guards bool          // fill in Safe
	moved  *subscription // leases nothing before
	copies []*piece      // of the dead letters in Settle, written in the same group
}

// seenChange makes a partition known, how far it was appended at least, and what a record of it
// looked like.
type seenChange struct {
	Partition Partition    `json:"part"`
	First     int64        `json:"first"`
	Reached   int64        `json:"reached,omitempty"`
	Print     *Fingerprint `json:"print,omitempty"`
}

// subscriptionChange adds a subscription, or changes the one with that id. What it newly wants
// begins at Starts, in other partitions at their first offset. What it wants no more is kept up
// to Ends, in other partitions not at all.
type subscriptionChange struct {
	ID     int64              `json:"id"`
	Config SubscriptionConfig `json:"config"`
	Starts []Start            `json:"starts,omitempty"`
	Ends   []Start            `json:"ends,omitempty"`
	Seed   bool               `json:"seed,omitempty"` // Config is what the configuration says
}

// settleChange settles Range as delivered, but for Except and DeadLetters. With Deferred, it
// settles only what is deferred, as the outcome of the first of Except.
type settleChange struct {
	Partition   Partition    `json:"part"`
	First       int64        `json:"first,omitempty"` // as in batchMeta
	Range       Range        `json:"range"`
	Except      []Interval   `json:"except,omitempty"`
	DeadLetters []DeadLetter `json:"dead,omitempty"`
	Reason      string       `json:"why,omitempty"`
	AtMs        int64        `json:"at,omitempty"` // since the Unix epoch; of what is not delivered
	Deferred    bool         `json:"deferred,omitempty"`
	Keep        bool         `json:"keep,omitempty"` // only what is to be delivered again, which stays as it ended before
}

// snapshotHead is what each part of a snapshot begins with.
type snapshotHead struct {
	Ledger           string        `json:"ledger,omitempty"` // change.Ledger
	Shard            *shard        `json:"shard,omitempty"`  // of a queue that has several
	Epochs           int64         `json:"epochs,omitempty"` // EpochBase
	NextSubscription int64         `json:"next_sub"`
	More             int           `json:"more,omitempty"` // how many parts come before this one
	Limits           *limitsChange `json:"limits,omitempty"`
	Control          *control      `json:"control,omitempty"`
	Held             []pausedOne   `json:"held,omitempty"` // what is paused; in the first part
}

// snapshot is the Meta of a SnapshotEntry: the whole ledger, or a part of it. What is in several
// parts is joined: the undelivered of a subscription, the ledgers of a partition, the state of a
// session and the topics of a source.
type snapshot struct {
	snapshotHead
	Subscriptions []subscriptionState `json:"subs"`
	Partitions    []partitionState    `json:"parts"`
	Sessions      []sessionState      `json:"sessions"`
	Reads         []readsChange       `json:"reads,omitempty"`
}

type subscriptionState struct {
	ID          int64               `json:"id"`
	Config      SubscriptionConfig  `json:"config"`
	Seed        *SubscriptionConfig `json:"seed,omitempty"` // what the configuration file said last
	Paused      bool                `json:"paused,omitempty"`
	Replay      *Replay             `json:"replay,omitempty"`
	Undelivered []Undelivered       `json:"undelivered,omitempty"`
}

type partitionState struct {
	partitionHead
	Settled ledgers `json:"settled"` // by subscription id
}

type partitionHead struct {
	ID      Partition `json:"part"`
	First   int64     `json:"first"`
	Reached int64     `json:"reached"`
	Safe    int64     `json:"safe,omitempty"`
	// Unwanted is progress.until of the subscriptions, by id, that do not want the topic any more.
	Unwanted map[int64]int64 `json:"unwanted,omitempty"`
	Prints   []Fingerprint   `json:"prints,omitempty"`
}

type sessionState struct {
	ID           uint64            `json:"id"`
	Subscription int64             `json:"sub"`
	Consumer     string            `json:"consumer"`
	State        map[string][]byte `json:"state"`
	Holds        map[string]int64  `json:"holds,omitempty"` // StateChange.HoldsMs
	Since        map[string]int64  `json:"since,omitempty"` // when they were first put, in ms since the Unix epoch
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encode journal entry: %v", err)) // only types above, none of which can fail
	}
	return b
}

func (q *Queue) metaOf(pc *piece) batchMeta {
	return batchMeta{Partition: pc.part.id, First: pc.part.first, Batch: pc.batch, Own: pc.own, Records: pc.records, Codec: int32(pc.codec),
		CRC: pc.crc, MaxTimestampMs: pc.maxTimestampMs, AppendedMs: q.opened.UnixMilli() + pc.appended/int64(time.Millisecond)}
}

// recovery rebuilds a queue from its store.
type recovery struct {
	q      *Queue
	pieces []*piece
	copies []recoveredCopy
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
		pc := &piece{part: home, batch: m.Batch, own: m.Own, ref: e.Ref, maxTimestampMs: m.MaxTimestampMs,
			appended: min(int64(time.UnixMilli(m.AppendedMs).Sub(r.q.opened)), 0), // the clock may have been set back
			size:     int32(e.Ref.Length), records: m.Records, crc: m.CRC, codec: int8(m.Codec), stored: true}
		if m.Copy != 0 {
			r.copies = append(r.copies, recoveredCopy{m.Copy, pc})
		} else {
			r.pieces = append(r.pieces, pc)
		}
	case SnapshotEntry:
		if moved, err := parseMoved(e.Meta); moved != nil || err != nil {
			r.q.moved = moved
			return err
		}
		var s snapshot
		if err := json.Unmarshal(e.Meta, &s); err != nil {
			return fmt.Errorf("decode snapshot entry: %w", err)
		}
		r.q.restore(&s)
	case ChangeEntry:
		if moved, err := parseMoved(e.Meta); moved != nil || err != nil {
			r.q.moved = moved
			return err
		}
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

// restore replaces the ledger by a snapshot, or adds another part of it.
func (q *Queue) restore(s *snapshot) {
	if s.More == 0 {
		q.ledger, q.shard, q.nextSubscription, q.limits, q.control = s.Ledger, s.Shard, s.NextSubscription, s.Limits, s.Control
		q.epochs, q.moved = s.Epochs, nil
		q.recovered = nil
		q.subs, q.sorted, q.partitions, q.newest, q.sessions = nil, nil, make(map[Partition]*partition), make(map[Partition]uint32), make(map[uint64]*Session)
		clear(q.listed)
		clear(q.paused)
		for _, one := range s.Held {
			q.paused[one] = true
		}
	}
	byID := make(map[int64]*subscription)
	for _, sub := range q.subs {
		byID[sub.id] = sub
	}
	for _, st := range s.Subscriptions {
		sub := byID[st.ID]
		if sub == nil {
			sub = &subscription{SubscriptionConfig: st.Config, id: st.ID, seed: st.Seed, paused: st.Paused, replay: replayOf(st.Replay)}
			q.subs = append(q.subs, sub)
			byID[sub.id] = sub
		}
		for _, u := range st.Undelivered {
			sub.note(u)
		}
	}
	for i := range s.Partitions {
		q.restorePartition(&s.Partitions[i], byID)
	}
	for i := range s.Reads {
		r := &s.Reads[i]
		if before := q.listed[reads{r.Cluster, r.Source}].partitions; before != nil {
			maps.Copy(r.Topics, before)
		}
		q.listLocked(r)
	}
	for _, st := range s.Sessions {
		sub, x := byID[st.Subscription], q.sessions[st.ID]
		if sub == nil {
			continue
		}
		if x == nil {
			x = q.newSession(st.ID, sub, st.Consumer)
			q.sessions[st.ID] = x
		}
		for key, value := range st.State {
			x.putLocked(&StateChange{Key: key, Value: value, HoldsMs: st.Holds[key], AtMs: st.Since[key]})
		}
	}
}

func (q *Queue) restorePartition(st *partitionState, subs map[int64]*subscription) {
	p := q.partitions[st.ID]
	if p == nil {
		p = newPartition(st.ID, st.First, st.Reached)
		q.addPartition(p)
	}
	p.reached, p.safe = max(p.reached, st.Reached), max(p.safe, st.Safe)
	for i := range st.Prints {
		p.addPrint(&st.Prints[i])
	}
	for id, settled := range st.Settled.restored {
		if sub := subs[id]; sub != nil && p.progress[sub] == nil {
			g := q.addProgress(sub, p, settled.restored())
			g.until, g.unwanted = st.Unwanted[id]
		}
	}
}

// applyLocked does to the ledger what a change says: when it became durable, and when it is
// recovered.
func (q *Queue) applyLocked(c *change) {
	if c.Ledger != "" {
		q.ledger, q.shard = c.Ledger, c.Shard
	}
	if c.Revision != nil {
		q.reviseLocked(*c.Revision)
	}
	if c.Seen != nil {
		p := q.partitionLocked(c.Seen.Partition, c.Seen.First)
		p.reached = max(p.reached, c.Seen.Reached)
		if c.Seen.Print != nil {
			p.addPrint(c.Seen.Print)
		}
		q.raiseSafeLocked(p)
	}
	for _, s := range c.Safe {
		if p := q.partitions[s.Partition]; p != nil {
			p.safe, p.reached, p.appended = max(p.safe, s.Offset), max(p.reached, s.Offset), max(p.appended, s.Offset)
		}
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
		if s.Deferred && q.store == nil { // what is deferred is known when all is recovered
			q.recovered = append(q.recovered, s)
			continue
		}
		for sub, g := range p.progress {
			if c.Subscription == 0 || c.Subscription == sub.id {
				q.settleLocked(g, s)
				q.letOthersIn(1 + len(s.Except) + len(s.DeadLetters))
			}
		}
		q.raiseSafeLocked(p)
	}
	q.steerLocked(c)
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
	if c.Limits != nil {
		q.setLimitsLocked(c.Limits)
	}
	if c.Hold != nil {
		q.holdChangeLocked(c.Hold)
	}
	if c.Forget != "" {
		q.forgetLocked(c.Subscription, c.Forget)
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
		s = q.newSession(c.Session, sub, "")
		q.sessions[c.Session] = s
	}
	for i := range c.State {
		if st := &c.State[i]; st.Value == nil {
			s.deleteLocked(st.Key)
		} else {
			s.putLocked(st)
		}
		q.letOthersIn(1)
	}
	if dead := q.sessions[c.Adopt]; dead != nil {
		s.inheritLocked(dead)
		delete(q.sessions, c.Adopt)
	}
}
