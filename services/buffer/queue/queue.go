// Package queue is the heart of the buffer: a memory window over a durable store, a ledger of
// offsets per subscription and partition, and the leases of delivery sessions. It is pure: the
// standard library, an injected clock, and a Store behind an interface.
//
// What it guarantees:
//   - A batch is accepted only where its offsets are not known yet: held, or settled by every subscription.
//   - A partition's safe offset only rises, and everything before it is stored or settled by all.
//   - A payload leaves memory when it is stored or settled by all, whichever comes first; payloads in
//     memory never exceed the configured bounds (but for one batch larger than them).
//   - An ack is answered after its change is on disk, and only then are its effects seen by anyone.
//   - A dead session's sink state changes hands on disk before its heir hears of it.
//
// One goroutine, Run, writes to the store; everything else happens on the callers' goroutines under
// one mutex, which is never held during I/O.
package queue

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// Config bounds a queue and names its subscriptions.
type Config struct {
	MemoryRecords, MemoryBytes int64 // bounds of the window
	DiskRecords, DiskBytes     int64 // bounds of the store; pending records, bytes of all files
	// SpillAfter is how old a batch gets in memory before it is written; 0 writes it through.
	SpillAfter time.Duration
	// Delivered keeps stored batches of required subscriptions out of the safe offset.
	Delivered     bool
	LeaseDuration time.Duration
	Subscriptions []SubscriptionConfig

	Log    *slog.Logger     // nil discards
	Now    func() time.Time // nil is time.Now
	Random func() float64   // in [0,1), for backoff; nil is math/rand
}

// SubscriptionConfig is a subscription as configured.
type SubscriptionConfig struct {
	Name     string
	Topics   []string // globs of path.Match
	Required bool
}

// Queue is open from Open until Run returns.
type Queue struct {
	cfg   Config
	store Store

	mu               sync.Mutex // guards everything below, and every object reached from it
	subs             []*subscription
	partitions       map[Partition]*partition
	sessions         map[uint64]*Session // live, or with sink state that waits for an heir
	nextSubscription int64
	nextSession      uint64
	nextLease        uint64

	memoryRecords, memoryBytes int64
	pendingBatches             int64
	pendingRecords             int64
	appendedRecords            int64
	spilledRecords             int64
	spilling                   bool      // memory passed its high watermark and not yet its low one
	unspilled                  []*piece  // in memory and not stored, oldest first; settled ones linger
	changes                    []*change // to be written
	settledRefs                []Ref     // stored payloads to be released
	storeStats                 StoreStats
	closed                     error         // why the queue takes nothing more
	room                       chan struct{} // closed and replaced when memory is freed
	watchers                   map[*Watcher]struct{}

	kick chan struct{} // has room for one: there is something to write
	done chan struct{} // closed when the queue is closed
}

// Open recovers the queue from its store. Sessions of the past are dead; their sink state goes to
// the first new ones. Subscriptions that are stored but not configured keep their records.
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
	q := &Queue{cfg: cfg, partitions: make(map[Partition]*partition), sessions: make(map[uint64]*Session), watchers: make(map[*Watcher]struct{}),
		room: make(chan struct{}), kick: make(chan struct{}, 1), done: make(chan struct{})}
	r := &recovery{q: q}
	store, err := openStore(StoreOptions{
		Recover:  r.entry,
		Snapshot: q.snapshot,
		Damage:   func(d string) { cfg.Log.Error("store is damaged", "damage", d) },
	})
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	q.store = store
	q.storeStats = store.Stats()
	// File names carry the session id, so it must not repeat even when the data directory is lost.
	q.nextSession = max(q.nextSession, uint64(cfg.Now().Unix()))
	q.configure(r.pieces)
	q.hold(r.pieces)
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

// configure brings the recovered subscriptions in line with the configuration. A new subscription
// begins at the oldest batch that is held.
func (q *Queue) configure(pieces []*piece) {
	oldest := make(map[Partition]int64)
	for _, pc := range pieces {
		p := q.partitionLocked(pc.batch.Partition, pc.own.First)
		p.appended = max(p.appended, pc.own.Next)
		if first, ok := oldest[p.id]; !ok || pc.own.First < first {
			oldest[p.id] = pc.own.First
		}
	}
	for _, c := range q.cfg.Subscriptions {
		i := slices.IndexFunc(q.subs, func(s *subscription) bool { return s.name == c.Name })
		if i < 0 {
			q.nextSubscription++
			q.subs = append(q.subs, &subscription{id: q.nextSubscription, name: c.Name})
			i = len(q.subs) - 1
		}
		sub := q.subs[i]
		sub.topics, sub.required, sub.configured = c.Topics, c.Required, true
	}
	for _, p := range q.partitionsLocked() {
		for _, sub := range q.subs {
			g := p.progress[sub]
			switch wants := sub.wants(p.id.Topic); {
			case wants && g == nil:
				start, held := oldest[p.id]
				if !held {
					start = p.appended
				}
				q.addProgress(sub, p, NewSettled(start))
			case !wants && g != nil:
				delete(p.progress, sub)
				sub.progress = slices.DeleteFunc(sub.progress, func(x *progress) bool { return x == g })
			}
		}
	}
}

// hold takes over recovered batches, and releases those that everyone has settled.
func (q *Queue) hold(pieces []*piece) {
	for _, pc := range pieces {
		p := q.partitions[pc.batch.Partition]
		parts := p.unknown(pc.own)
		if len(parts) == 0 {
			q.settledRefs = append(q.settledRefs, pc.ref)
			continue
		}
		// A part of it can be known only when it was stored twice, or is settled in parts: the rest
		// is what the ledger says, so the piece stays whole unless another piece has some of it.
		own := Range{parts[0].First, parts[len(parts)-1].Next}
		if i := p.pieceIndex(own.First); i < len(p.pieces) && p.pieces[i].own.First < own.Next {
			own = parts[0]
		}
		pc.own = own
		q.holdPiece(p, pc)
	}
	for _, p := range q.partitions {
		p.raiseResume()
		p.raiseSafe(q.cfg.Delivered)
	}
	for _, sub := range q.subs {
		if !sub.configured {
			q.cfg.Log.Warn("subscription is not in the configuration; its records are kept", "subscription", sub.name, "pending_records", sub.pendingRecords)
		}
	}
}

// holdPiece puts a piece into its partition and in front of the subscriptions that still need it.
func (q *Queue) holdPiece(p *partition, pc *piece) {
	p.insert(pc)
	for _, g := range p.progress {
		if g.settled.Covers(pc.own) {
			continue
		}
		pc.waiting++
		g.sub.pendingRecords += int64(pc.batch.Records)
		g.sub.pendingBytes += pc.size
		if pc.own.First < g.cursor {
			g.giveBack(returned{piece: pc})
		}
		q.readyLocked(g)
	}
	q.pendingBatches++
	q.pendingRecords += int64(pc.batch.Records)
}

// partitionLocked finds a partition, or makes it known.
func (q *Queue) partitionLocked(id Partition, first int64) *partition {
	p := q.partitions[id]
	if p == nil {
		p = &partition{id: id, first: first, appended: first, safe: first, resume: first, progress: make(map[*subscription]*progress)}
		q.partitions[id] = p
		for _, sub := range q.subs {
			if sub.wants(id.Topic) {
				q.addProgress(sub, p, NewSettled(first))
			}
		}
	}
	return p
}

// seenLocked is partitionLocked for what comes from Kafka: it also journals the partition's first
// offset ahead of any ack, since an ack alone does not tell that what is before it is still pending.
func (q *Queue) seenLocked(id Partition, first int64) *partition {
	if q.partitions[id] == nil {
		q.enqueueLocked(&change{Seen: &seenChange{Partition: id, First: first}})
	}
	return q.partitionLocked(id, first)
}

func (q *Queue) addProgress(sub *subscription, p *partition, settled Settled) {
	g := &progress{sub: sub, part: p, settled: settled, cursor: settled.Floor}
	p.progress[sub] = g
	sub.progress = append(sub.progress, g)
}

func (q *Queue) newSession(id uint64, sub *subscription, consumer string, state map[string][]byte) *Session {
	if state == nil {
		state = make(map[string][]byte)
	}
	return &Session{ID: id, Consumer: consumer, q: q, sub: sub, leases: make(map[uint64]*lease), state: state, signal: make(chan struct{}, 1)}
}

// partitionsLocked is all partitions in a stable order.
func (q *Queue) partitionsLocked() []*partition {
	return slices.SortedFunc(maps.Values(q.partitions), func(a, b *partition) int {
		if c := strings.Compare(a.id.Topic, b.id.Topic); c != 0 {
			return c
		}
		if c := strings.Compare(a.id.Cluster, b.id.Cluster); c != 0 {
			return c
		}
		return int(a.id.Number - b.id.Number)
	})
}

func (q *Queue) subscription(name string) *subscription {
	i := slices.IndexFunc(q.subs, func(s *subscription) bool { return s.name == name })
	if i < 0 {
		return nil
	}
	return q.subs[i]
}

func (q *Queue) subscriptionByID(id int64) *subscription {
	i := slices.IndexFunc(q.subs, func(s *subscription) bool { return s.id == id })
	if i < 0 {
		return nil
	}
	return q.subs[i]
}

// Assigned is where an ingest goes on with a partition.
type Assigned struct {
	Partition Partition
	Known     bool // whether anything of the partition was ever appended; the offsets are only set then
	Resume    int64
	Safe      int64
}

// Assign tells where to go on with a partition.
func (q *Queue) Assign(id Partition) (Assigned, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed != nil {
		return Assigned{}, q.closed
	}
	id.Incarnation = 0
	p := q.partitions[id]
	if p == nil {
		return Assigned{Partition: id}, nil
	}
	return Assigned{Partition: id, Known: true, Resume: p.resume, Safe: p.safe}, nil
}

// Append takes a batch over; the queue keeps its payload. It waits while the window is full, until
// ctx ends. Known is true when nothing of it was new. Nothing is durable on return: the partition's
// safe offset tells what is.
func (q *Queue) Append(ctx context.Context, b Batch) (known bool, err error) {
	if b.First < 0 || b.Next <= b.First || b.Records <= 0 || int64(b.Records) > b.Len() {
		return false, fmt.Errorf("%w batch: %d records in [%d,%d)", ErrInvalid, b.Records, b.First, b.Next)
	}
	size := int64(len(b.Payload))
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		if q.closed != nil {
			return false, q.closed
		}
		if p := q.partitions[b.Partition]; p != nil {
			if b.First > p.resume {
				return false, fmt.Errorf("%w: batch begins at %d, appended up to %d", ErrGap, b.First, p.resume)
			}
			if len(p.unknown(b.Range)) == 0 {
				return true, nil
			}
		}
		if q.storeStats.DiskBytes >= q.cfg.DiskBytes || q.pendingRecords >= q.cfg.DiskRecords {
			return false, ErrFull
		}
		if q.memoryBytes == 0 || (q.memoryBytes+size <= q.cfg.MemoryBytes && q.memoryRecords+int64(b.Records) <= q.cfg.MemoryRecords) {
			break
		}
		room := q.room
		q.mu.Unlock()
		select {
		case <-room:
		case <-q.done:
		case <-ctx.Done():
			err = ctx.Err()
		}
		q.mu.Lock()
		if err != nil {
			return false, err
		}
	}

	p := q.seenLocked(b.Partition, b.First)
	parts := p.unknown(b.Range)
	p.appended = max(p.appended, b.Next)
	now := q.cfg.Now()
	for _, own := range parts {
		pc := &piece{batch: b, own: own, size: size, appended: now}
		q.memoryBytes += size
		q.memoryRecords += int64(b.Records)
		q.holdPiece(p, pc)
		if pc.waiting == 0 { // nobody wants it
			q.dropLocked(p, pc)
			continue
		}
		q.unspilled = append(q.unspilled, pc)
	}
	q.appendedRecords += int64(b.Records)
	p.raiseResume()
	q.raiseSafeLocked(p)
	for _, g := range p.progress {
		q.dispatchLocked(g.sub)
	}
	if q.spillDueLocked(now) {
		q.wake()
	}
	return false, nil
}

// Settle settles a range without records for every subscription that wants the topic. It must begin
// where the appended offsets end, or before.
func (q *Queue) Settle(id Partition, r Range, o Outcome, reason string) error {
	if r.First < 0 || r.Next <= r.First || o == Delivered || o == 0 || o >= outcomes {
		return fmt.Errorf("%w range [%d,%d) as %s", ErrInvalid, r.First, r.Next, o)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed != nil {
		return q.closed
	}
	p := q.seenLocked(id, r.First)
	if r.First > p.resume {
		return fmt.Errorf("%w: range begins at %d, appended up to %d", ErrGap, r.First, p.resume)
	}
	p.appended = max(p.appended, r.Next)
	p.resume = max(p.resume, r.Next) // what comes next may follow before this is durable
	q.enqueueLocked(&change{Settle: []settleChange{{Partition: id, Range: r, Except: []Interval{{r, o}}, Reason: reason}}})
	return nil
}

// OpenSession begins a session on a subscription.
func (q *Queue) OpenSession(subscription, consumer string, ordered bool) (*Session, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed != nil {
		return nil, q.closed
	}
	sub := q.subscription(subscription)
	if sub == nil {
		return nil, fmt.Errorf("%w: %q", ErrNoSubscription, subscription)
	}
	s := q.newSession(q.nextSession, sub, consumer, nil)
	q.nextSession++
	s.ordered, s.live, s.openedAt = ordered, true, q.cfg.Now()
	q.sessions[s.ID] = s
	sub.sessions = append(sub.sessions, s)
	q.adoptLocked(sub)
	return s, nil
}

// Load puts the payload into a lease that came without, reading the store.
func (q *Queue) Load(l *Lease) error {
	if l.Batch.Payload != nil || l.ref == (Ref{}) {
		return nil
	}
	payload, err := q.store.Read(l.ref)
	if err != nil {
		return fmt.Errorf("read batch [%d,%d) of %s/%d: %w", l.Batch.First, l.Batch.Next, l.Batch.Partition.Topic, l.Batch.Partition.Number, err)
	}
	l.Batch.Payload = payload
	return nil
}

// settleLocked settles a range of one ledger, and lets go of the batches that nobody waits for any more.
func (q *Queue) settleLocked(g *progress, s *settleChange) {
	p := g.part
	first := p.pieceIndex(s.Range.First)
	var pending []*piece // those in the range that the subscription had not settled
	for i := first; i < len(p.pieces) && p.pieces[i].own.First < s.Range.Next; i++ {
		if !g.settled.Covers(p.pieces[i].own) {
			pending = append(pending, p.pieces[i])
		}
	}
	undelivered := int64(len(s.DeadLetters))
	for _, e := range s.Except {
		undelivered += e.Len()
	}
	for _, d := range s.DeadLetters {
		g.settled.Add(Range{d.Offset, d.Offset + 1}, DeadLettered)
		g.sub.deadLettered++
	}
	for _, e := range s.Except {
		g.settled.Add(e.Range, e.Outcome)
		if e.Outcome == DeadLettered {
			g.sub.deadLettered += e.Len()
		}
	}
	g.settled.Add(s.Range, Delivered)
	records := int64(0)
	for _, pc := range pending {
		if !g.settled.Covers(pc.own) {
			continue
		}
		g.sub.pendingRecords -= int64(pc.batch.Records)
		g.sub.pendingBytes -= pc.size
		records += int64(pc.batch.Records)
		if pc.waiting--; pc.waiting == 0 {
			q.dropLocked(p, pc)
		}
	}
	g.sub.delivered += max(records-undelivered, 0)
}

// dropLocked forgets a piece that everyone has settled.
func (q *Queue) dropLocked(p *partition, pc *piece) {
	p.remove(pc)
	q.pendingBatches--
	q.pendingRecords -= int64(pc.batch.Records)
	if pc.stored {
		q.settledRefs = append(q.settledRefs, pc.ref)
		return
	}
	q.freeLocked(pc)
}

// freeLocked takes a payload out of memory.
func (q *Queue) freeLocked(pc *piece) {
	if pc.batch.Payload == nil {
		return
	}
	pc.batch.Payload = nil
	q.memoryBytes -= pc.size
	q.memoryRecords -= int64(pc.batch.Records)
	close(q.room)
	q.room = make(chan struct{})
}

func (q *Queue) raiseSafeLocked(p *partition) {
	if p.raiseSafe(q.cfg.Delivered) {
		for w := range q.watchers {
			w.tellLocked(p)
		}
	}
}
