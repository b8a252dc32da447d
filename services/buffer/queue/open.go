package queue

import (
	"cmp"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// Open recovers the queue from its store. Sessions of the past are dead; their sink state goes to
// the first new ones. The configuration is the seed of subscriptions: what it says of one counts
// when it is new or says something else than last time, or by its number (Config.Numbered);
// otherwise what was changed since counts.
// Subscriptions that are stored but not configured stay.
func Open(cfg Config, openStore func(StoreOptions) (Store, error)) (*Queue, error) {
	q, err := load(cfg, openStore, func(q *Queue) error { return q.moved.refuse() })
	if err != nil {
		return nil, err
	}
	if err := q.writeFirst(); err != nil {
		return nil, errors.Join(err, q.store.Close())
	}
	return q, nil
}

// load is Open without writing anything. It fails with what check says of the recovered ledger.
func load(cfg Config, openStore func(StoreOptions) (Store, error), check func(*Queue) error) (*Queue, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Random == nil {
		cfg.Random = rand.Float64
	}
	if cfg.SessionID == nil {
		cfg.SessionID = randomID
	}
	cfg.FreeBatches, cfg.MaxLeases = cmp.Or(cfg.FreeBatches, DefaultFreeBatches), cmp.Or(cfg.MaxLeases, DefaultMaxLeases)
	log, lines := newLog(cfg.Log)
	cfg.Log = log
	q := &Queue{cfg: cfg, configured: Limits{cfg.DiskRecords, cfg.DiskBytes}, logLines: lines, opened: cfg.Now(), holdItems: holdItems, partBytes: partBytes, partitions: make(map[Partition]*partition), newest: make(map[Partition]uint32), sessions: make(map[uint64]*Session),
		watchers: make(map[*Watcher]struct{}), watching: make(map[Partition][]*Watcher), refetches: make(map[uint64]*refetch), finds: make(map[uint64]chan FoundOffset),
		listed: make(map[reads]listedTopics), paused: make(map[pausedOne]bool), empty: make(map[Partition]int64), unraised: make(map[*partition]bool),
		room: make(chan struct{}), kick: make(chan struct{}, 1), done: make(chan struct{})}
	q.mu.now = sinceStart
	q.spillUntil = -1
	r := &recovery{q: q, homes: make(map[Partition]*partition)}
	store, err := openStore(StoreOptions{
		DiskBytes: cfg.DiskBytes,
		Recover:   r.entry,
		Snapshot:  q.snapshot,
		Damage:    func(d string) { cfg.Log.Error("store is damaged", "damage", d) },
	})
	if err != nil {
		return nil, err // says that it is the store
	}
	if err = check(q); err == nil {
		err = q.checkShard(r.pieces)
	}
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	q.store = store
	q.seedLimits()
	q.storeStats = store.Stats()
	q.recoverCopies(r)
	oldest := q.oldestHeld(r.pieces)
	q.recoverSafe(r.pieces)
	q.seedSubscriptions(oldest)
	q.seedControl()
	for _, pc := range r.pieces {
		q.holdRecovered(pc)
	}
	for _, p := range q.partitions {
		for _, g := range p.progress {
			q.deriveLocked(g)
		}
		p.raiseSafe(cfg.Delivered, math.MaxInt)
	}
	q.logRecovered()
	for _, s := range q.sessions {
		if len(s.state) > 0 {
			s.sub.orphans = append(s.sub.orphans, s)
		}
	}
	return q, nil
}

// randomID returns a random number. Sessions have such ids since the queue's data may be lost,
// copied or restored, and the clock set back: nothing that is stored or read from a clock keeps
// them apart.
func randomID() uint64 {
	var b [8]byte
	_, _ = crand.Read(b[:]) // never fails
	return binary.BigEndian.Uint64(b[:])
}

// writeFirst writes a group, which begins with a snapshot. So the configuration is durable before
// anybody hears of what follows from it, and so is the random name of new data, and of data of a
// version that had none: else a crash would leave progress elsewhere that nobody believes.
func (q *Queue) writeFirst() error {
	first := &change{}
	if q.control != nil {
		first.Revision = &q.control.Revision
	}
	if q.ledger == "" {
		first.Ledger, first.Shard = crand.Text(), q.cfg.shard()
		q.ledger, q.shard = first.Ledger, first.Shard
	}
	_, err := q.store.Append([]Entry{{Kind: ChangeEntry, Meta: mustJSON(first)}})
	if errors.Is(err, ErrNoSpace) && first.Ledger == "" {
		q.changes = append(q.changes, first)
		q.wake()
		return nil
	}
	if err != nil {
		return fmt.Errorf("write the ledger to the store: %w", err)
	}
	q.storeStats = q.store.Stats()
	q.wake() // the snapshot may go on
	return nil
}

// oldestHeld gives the recovered pieces and the appended offsets to their partitions, and returns
// where the oldest piece of each begins.
func (q *Queue) oldestHeld(pieces []*piece) map[*partition]int64 {
	oldest := make(map[*partition]int64)
	for _, pc := range pieces {
		p := q.partitionLocked(pc.part.id, pc.part.first)
		pc.part = p
		p.appended = max(p.appended, pc.own.Next)
		if first, ok := oldest[p]; !ok || pc.own.First < first {
			oldest[p] = pc.own.First
		}
	}
	for _, p := range q.partitions {
		p.appended = max(p.appended, p.reached, p.safe)
		for _, g := range p.progress {
			p.appended = max(p.appended, g.settled.End())
		}
	}
	return oldest
}

// recoverSafe finds what was safe, and notes how far partitions were appended, before the
// configuration takes away the ledgers that tell.
func (q *Queue) recoverSafe(pieces []*piece) {
	for _, pc := range pieces {
		for _, own := range pc.part.notHeld(pc.own) {
			pc.part.insert(&piece{part: pc.part, batch: pc.batch, own: own, stored: true})
		}
	}
	for _, p := range q.partitions {
		p.reached = p.appended
		for _, g := range p.progress {
			q.deriveLocked(g)
		}
	}
	for _, s := range q.recovered {
		for _, g := range q.partitions[s.Partition].progress {
			q.settleLocked(g, s)
		}
	}
	q.recovered = nil
	for _, p := range q.partitions {
		p.raiseSafe(q.cfg.Delivered, math.MaxInt)
		p.pieces = list[*piece]{} // they are held once it is known by whom
	}
}

// seedSubscriptions brings the recovered subscriptions in line with the configuration. What a
// subscription newly wants begins at the oldest batch that is held; but when the ledger is lost,
// so that nobody knows who had what, at the first offset that was ever seen.
func (q *Queue) seedSubscriptions(oldest map[*partition]int64) {
	lost := len(q.subs) == 0 && len(q.partitions) > 0
	if lost {
		q.cfg.Log.Error("no snapshot of the ledger is left: all that Kafka still has of what was seen is read again, and delivered again")
	}
	for _, c := range q.cfg.Subscriptions {
		c.OnFull = max(c.OnFull, Block)
		sub := q.subscription(c.Name)
		if sub == nil && !q.countsLocked(q.cfg.Revision) && slices.Contains(q.control.Gone, c.Name) {
			continue
		}
		if sub == nil {
			q.nextSubscription++
			sub = &subscription{id: q.nextSubscription, seed: &c, SubscriptionConfig: c}
			q.subs = append(q.subs, sub)
		}
		sub.configured = true
		q.seedLocked(sub, &c)
	}
	for _, p := range q.partitions {
		for _, sub := range q.subs {
			g := p.progress[sub]
			switch wants := sub.wants(p.id.Topic); {
			case wants && g == nil:
				start, held := oldest[p]
				if !held {
					start = p.appended
				}
				if lost {
					start = p.first
				}
				q.addProgress(sub, p, NewSettled(start, q.opened.UnixMilli()))
			case wants && g.unwanted:
				g.unwanted, g.until = false, 0
			case !wants && g != nil && !g.unwanted:
				q.unwantLocked(g, p.appended)
			}
		}
	}
}

// holdRecovered takes over a stored batch, or releases it when everyone has settled it.
func (q *Queue) holdRecovered(pc *piece) {
	parts := pc.part.unknown(pc.own)
	if len(parts) == 0 {
		q.settledRefs = append(q.settledRefs, pc.ref)
		return
	}
	// A part of it can be known only when it was stored twice, or is settled in parts: the rest
	// is what the ledger says, so the piece stays whole unless another piece has some of it.
	own := Range{parts[0].First, parts[len(parts)-1].Next}
	if pc.part.heldFrom(own.First, own.Next) < own.Next {
		own = parts[0]
	}
	pc.own = own
	q.passLocked(pc.part, pc.batch.Next, pc.maxTimestampMs)
	q.holdLocked(pc, true)
}

func (q *Queue) logRecovered() {
	for _, sub := range q.subs {
		if !sub.configured {
			q.cfg.Log.Info("subscription is not in the configuration; it stays until it is deleted", "subscription", sub.Name, "pending_records", sub.pendingRecords)
		}
		q.warnKeptLocked(sub)
		if n := sub.deferred; n > 0 {
			q.cfg.Log.Info("offsets are pending that the store does not hold; they are refetched from Kafka", "subscription", sub.Name, "offsets", n)
		}
	}
}
