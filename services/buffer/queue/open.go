package queue

import (
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"
)

// Open recovers the queue from its store. Sessions of the past are dead; their sink state goes to
// the first new ones. The configuration is the seed of subscriptions: what it says of one counts when it is
// new or says something else than last time; otherwise what was changed since counts. Subscriptions that are
// stored but not configured stay.
func Open(cfg Config, openStore func(StoreOptions) (Store, error)) (*Queue, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Random == nil {
		cfg.Random = rand.Float64
	}
	q := &Queue{cfg: cfg, opened: cfg.Now(), partitions: make(map[Partition]*partition), newest: make(map[Partition]uint32), sessions: make(map[uint64]*Session),
		watchers: make(map[*Watcher]struct{}), refetches: make(map[uint64]*refetch), finds: make(map[uint64]chan int64),
		listed: make(map[reads]map[string]int32), empty: make(map[Partition]int64),
		room: make(chan struct{}), kick: make(chan struct{}, 1), done: make(chan struct{})}
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
	q.store = store
	q.storeStats = store.Stats()
	// File names carry the session id, so it must not repeat even when the data directory is lost.
	q.nextSession = max(q.nextSession, uint64(cfg.Now().Unix()))
	q.seedSubscriptions(q.oldestHeld(r.pieces))
	for _, pc := range r.pieces {
		q.holdRecovered(pc)
	}
	for _, p := range q.partitions {
		for _, g := range p.progress {
			g.derive()
		}
		p.raiseSafe(cfg.Delivered)
	}
	q.logRecovered()
	for _, s := range q.sessions {
		if len(s.state) > 0 {
			s.sub.orphans = append(s.sub.orphans, s)
		}
	}
	// The first group after Open begins with a snapshot, which makes the configuration durable.
	q.changes = append(q.changes, &change{})
	q.wake()
	return q, nil
}

// oldestHeld gives the recovered pieces and the appended offsets to their partitions, and returns where
// the oldest piece of each begins.
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
		p.appended = max(p.appended, p.reached)
		for _, g := range p.progress {
			p.appended = max(p.appended, g.settled.End())
		}
	}
	return oldest
}

// seedSubscriptions brings the recovered subscriptions in line with the configuration. What a
// subscription newly wants begins at the oldest batch that is held; but when the ledger is lost, so that nobody
// knows who had what, at the first offset that was ever seen.
func (q *Queue) seedSubscriptions(oldest map[*partition]int64) {
	lost := len(q.subs) == 0 && len(q.partitions) > 0
	if lost {
		q.cfg.Log.Error("no snapshot of the ledger is left: all that Kafka still has of what was seen is read again, and delivered again")
	}
	for _, c := range q.cfg.Subscriptions {
		c.OnFull = max(c.OnFull, Block)
		sub := q.subscription(c.Name)
		if sub == nil {
			q.nextSubscription++
			sub = &subscription{id: q.nextSubscription}
			q.subs = append(q.subs, sub)
		}
		sub.configured = true
		if sub.seed == nil || !sub.seed.equal(&c) {
			sub.seed, sub.SubscriptionConfig = &c, c
		}
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
			case !wants && g != nil:
				delete(p.progress, sub)
				sub.progress = slices.DeleteFunc(sub.progress, func(x *progress) bool { return x == g })
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
	if i := pc.part.pieceIndex(own.First); i < len(pc.part.pieces) && pc.part.pieces[i].own.First < own.Next {
		own = parts[0]
	}
	pc.own = own
	q.passLocked(pc.part, pc.batch.Next, pc.maxTimestampMs)
	q.holdLocked(pc, true)
}

// derive makes deferred what is pending below the appended offset and not held.
func (g *progress) derive() {
	g.deferred, g.deferredBytes = nil, 0
	o := g.settled.Floor
	for i := g.part.pieceIndex(o); i < len(g.part.pieces); i++ {
		own := g.part.pieces[i].own
		g.deferRange(Range{o, own.First}, 0)
		o = max(o, own.Next)
	}
	g.deferRange(Range{o, g.part.appended}, 0)
}

func (q *Queue) logRecovered() {
	for _, sub := range q.subs {
		if !sub.configured {
			q.cfg.Log.Info("subscription is not in the configuration; it stays until it is deleted", "subscription", sub.Name, "pending_records", sub.pendingRecords)
		}
		if n := sub.deferredOffsets(); n > 0 {
			q.cfg.Log.Info("offsets are pending that the store does not hold; they are refetched from Kafka", "subscription", sub.Name, "offsets", n)
		}
	}
}

func (s *subscription) deferredOffsets() int64 {
	n := int64(0)
	for _, g := range s.progress {
		n += g.deferred.Len()
	}
	return n
}
