// Package queue is the heart of the buffer: a memory window over a durable store, a ledger of
// offsets per subscription and partition, and the leases of delivery sessions. It is pure: the
// standard library, an injected clock, and a Store behind an interface.
//
// What it guarantees:
//   - A batch is accepted only where its offsets are not known yet: held, or settled by every subscription.
//   - A partition's safe offset only rises, and everything before it is stored or settled by all that
//     are required.
//   - A payload leaves memory when it is stored or needed by nobody, whichever comes first; payloads in
//     memory never exceed the configured bounds (but for one batch larger than them).
//   - What a subscription still needs and the queue does not hold, because it was deferred, lost its bytes, or
//     lies before what was ever appended, is refetched from Kafka.
//   - An ack is answered after its change is on disk, and only then are its effects seen by anyone.
//   - A dead session's sink state changes hands on disk before its heir hears of it.
//
// Run owns two goroutines: one writes to the store, the other looks at deadlines, so that a slow
// disk delays none. Log lines are passed on by a goroutine that lives while there are any.
// Everything else happens on the callers' goroutines. One mutex guards all, and is never held
// during I/O, logging or encoding.
package queue

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"time"
)

// Config bounds a queue and names its subscriptions.
type Config struct {
	MemoryRecords, MemoryBytes int64 // bounds of the window
	// FreeBatches is how many batches may be held, in memory or stored, before what they cost
	// beside their payloads counts in MemoryBytes; 0 is DefaultFreeBatches.
	FreeBatches int64
	// MaxLeases bounds the batches that are leased at once, of all sessions together: see
	// leaseShareLocked; 0 is DefaultMaxLeases.
	MaxLeases int
	// Oversize is shared by queues that divide one window; nil: this one has it for itself.
	Oversize               *Oversize
	DiskRecords, DiskBytes int64 // bounds of the store; pending records, bytes of all files
	// SpillAfter is how old a batch gets in memory before it is written; 0 writes it through.
	SpillAfter time.Duration
	// Delivered keeps stored batches of required subscriptions out of the safe offset.
	Delivered bool
	// KeepsOld has the store take what Kafka may delete soon (Queue.Old) and a required
	// subscription still needs, whatever its policy, and though it is paused: else the loss of
	// this machine, or of what it has in memory, may find it nowhere.
	KeepsOld      bool
	LeaseDuration time.Duration
	Subscriptions []SubscriptionConfig
	// Numbered has Subscriptions and the bounds of the store count only when Revision is higher
	// than that of the configuration that counted last; others only add subscriptions that never
	// existed. Else they count whenever they say something else than last time.
	Numbered bool
	Revision int64
	// Shard is the number of this part of a queue that several buffers share, in the first 16 bits
	// of its session ids; 0 for a queue that is one buffer's.
	Shard uint16
	// Shards is how many parts the queue has; 0 is 1. Open refuses data of another shard, or of
	// another number of shards.
	Shards int
	// ShardOf returns the shard of a source partition. nil is for a look at data of any shard.
	ShardOf func(cluster, topic string, partition int32) int

	Log    *slog.Logger     // nil discards
	Now    func() time.Time // nil is time.Now
	Random func() float64   // in [0,1), for backoff; nil is math/rand
	// SessionID returns numbers whose last 48 bits never repeat, in no queue anywhere; nil is
	// crypto/rand.
	SessionID func() uint64
}

// Queue is open from Open until Run returns.
type Queue struct {
	cfg      Config
	logLines *logLines // of cfg.Log
	store    Store
	opened   time.Time
	ledger   string // LedgerID
	shard    *shard // as the data says; nil: it is all of a queue
	epochs   int64  // EpochBase
	moved    *Moved // why it must not be opened; nil: it may

	mu               lock // guards everything below, and every object reached from it
	subs             []*subscription
	partitions       map[Partition]*partition
	sorted           []*partition         // all of them, by Partition.compare
	newest           map[Partition]uint32 // by topic(): the newest incarnation
	sessions         map[uint64]*Session  // live, or with sink state that waits for an heir
	nextSubscription int64
	nextLease        uint64
	joined           uint64 // sessions since Open
	liveSessions     int
	leased, leasing  int // batches that are leased; sessions that have some

	memoryRecords, memoryBytes int64
	passing                    bool // a batch that is larger than the window: see Oversize
	pendingBatches             int64
	pendingRecords             int64
	appendedRecords            int64
	spilledRecords             int64
	spilling                   bool      // memory passed its high watermark and not yet its low one
	unspilled                  []*piece  // in memory and not stored, oldest first; settled ones linger
	lingering                  int       // about how many do
	changes                    []*change // to be written
	settledRefs                []Ref     // stored payloads to be released
	storeStats                 StoreStats
	spillUntil                 int64            // what was appended until then is due, on clock; -1: nothing is
	noSpaceUntil               time.Time        // the store had no space for batches; zero: it has
	noSpaceForChanges          bool             // nor for changes alone
	writeBegan                 int64            // when the write began that goes on, on clock; 0: none
	writeTold                  bool             // that it is slow
	roomMade                   time.Time        // when subscriptions last gave way to a full disk
	roomNext                   int              // index of the subscription that gives way next
	lacking                    line[*partition] // where something is deferred or asked for
	parked                     parked           // what is to be leased later
	tails                      []*tail          // too long for one hold of the lock
	holdItems                  int              // holdItems, but in tests
	inParts                    bool             // see letOthersIn
	left                       int              // items until it lets others in
	refetches                  map[uint64]*refetch
	nextRefetch                uint64 // also of finds
	finds                      map[uint64]chan FoundOffset
	guarded                    bool                // a change with Safe is being written
	unraised                   map[*partition]bool // where safe may rise further
	closed                     error               // why the queue takes nothing more
	room                       chan struct{}       // closed and replaced when memory is freed, and for Pace
	paced                      bool                // somebody waits in Pace
	heldBytes                  int64               // of batches that are held back
	wantRoom                   int                 // how many wait in Append
	pacedAt                    int64               // when paces were measured last, on clock
	watchers                   map[*Watcher]struct{}
	watching                   map[Partition][]*Watcher // those that watch a partition
	listed                     map[reads]listedTopics   // what sources read
	configured                 Limits                   // what the configuration says of the bounds; cfg has those that hold
	limits                     *limitsChange            // set at run time, or of a Numbered queue; nil: what is configured counts
	control                    *control                 // of a Numbered queue; nil: its data is of a version that had none
	paused                     map[pausedOne]bool       // sources and deliveries that are
	snapshots                  uint32                   // that were begun
	partBytes                  int                      // partBytes, but in tests
	snapshotting               *snapshotting            // the one that is being made
	recovered                  []*settleChange          // of what is deferred, until Open has found out what that is
	empty                      map[Partition]int64      // of what was never appended: when it was at its end, in ms since the Unix epoch
	watermarkTold              int64                    // when, on clock
	unreadTold                 few                      // of partitions that nobody reads
	unwatched                  time.Time                // when an ingest ceased to read some, and not acted on yet; zero: none did

	kick chan struct{} // has room for one: there is something to write
	done chan struct{} // closed when the queue is closed
}

// LedgerID returns the random name of the queue's data, which was made with it and is on disk.
// Progress that is kept elsewhere speaks of this queue only when it carries the same one.
func (q *Queue) LedgerID() string { return q.ledger }

// partitionLocked finds a partition, or makes it known.
func (q *Queue) partitionLocked(id Partition, first int64) *partition {
	p := q.partitions[id]
	if p == nil {
		p = newPartition(id, first, first)
		q.addPartition(p)
		for _, sub := range q.subs {
			if sub.wants(id.Topic) {
				q.addProgress(sub, p, NewSettled(first, 0))
			}
		}
	}
	return p
}

func newPartition(id Partition, first, reached int64) *partition {
	p := &partition{id: id, first: first, appended: first, reached: reached, safe: first, progress: make(map[*subscription]*progress)}
	p.lacks.value = p
	return p
}

func (q *Queue) addPartition(p *partition) {
	q.partitions[p.id] = p
	p.snapshot = q.snapshots
	delete(q.empty, p.id)
	i, _ := slices.BinarySearchFunc(q.sorted, p.id, func(x *partition, id Partition) int { return x.id.compare(id) })
	q.sorted = slices.Insert(q.sorted, i, p)
	q.newest[p.id.topic()] = max(q.newest[p.id.topic()], p.id.Incarnation)
}

// seenLocked is partitionLocked for what comes from Kafka: it also journals the partition's first
// offset ahead of any ack, since an ack alone does not tell that what is before it is still
// pending.
func (q *Queue) seenLocked(id Partition, first int64) *partition {
	if q.partitions[id] == nil {
		q.enqueueLocked(&change{Seen: &seenChange{Partition: id, First: first, Reached: first}})
	}
	return q.partitionLocked(id, first)
}

// reachLocked journals how far a partition is appended where no required subscription's ledger
// will tell: else a crash would forget what has been reported safe.
func (q *Queue) reachLocked(p *partition) {
	if p.reaching || p.reached >= p.appended || q.store == nil { // Open takes care of what is recovered
		return
	}
	for _, g := range p.progress {
		if g.tells() {
			return
		}
	}
	p.reaching = true
	q.enqueueLocked(&change{Seen: &seenChange{Partition: p.id, First: p.first, Reached: p.appended}, done: func(q *Queue) {
		p.reaching = false
		q.reachLocked(p)
	}})
}

func (q *Queue) addProgress(sub *subscription, p *partition, settled Settled) *progress {
	g := &progress{sub: sub, part: p, slot: len(sub.progress), snapshot: q.snapshots}
	g.ready.value = g
	g.restart(settled)
	p.progress[sub] = g
	sub.progress = append(sub.progress, g)
	return g
}

// removeProgress ends what addProgress began. Nothing may be leased, needed or in back any more.
func (q *Queue) removeProgress(g *progress) {
	q.freezeLocked(g)
	g.forgetDeferred()
	g.sub.scattered -= g.settled.behind
	g.countAgain(func() { g.settled.Again = nil })
	g.ready.leave()
	delete(g.part.progress, g.sub)
	all := g.sub.progress
	last := all[len(all)-1]
	all[g.slot], last.slot = last, g.slot
	g.slot = -1
	all[len(all)-1] = nil
	g.sub.progress = all[:len(all)-1]
}

func (q *Queue) newSession(id uint64, sub *subscription, consumer string) *Session {
	return &Session{ID: id, Consumer: consumer, q: q, sub: sub, leases: make(map[uint64]*lease), state: make(map[string][]byte), holds: make(map[string]int64), since: make(map[string]int64),
		signal: make(chan struct{}, 1), taken: make(chan struct{}, 1)}
}

func (q *Queue) subscription(name string) *subscription {
	i := slices.IndexFunc(q.subs, func(s *subscription) bool { return s.Name == name })
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

// Append takes a batch over; the queue keeps its payload. It waits while the window is full,
// until ctx ends. Known is true when nothing of it was new. Nothing is durable on return: the
// partition's safe offset tells what is. refetch is the id of the Refetch that the batch answers,
// or 0.
func (q *Queue) Append(ctx context.Context, b Batch, refetch uint64) (known bool, err error) {
	size := int64(len(b.Payload))
	if b.First < 0 || b.Next <= b.First || b.Next > maxOffset || b.Records <= 0 || int64(b.Records) > b.Len() || size > math.MaxInt32 || b.Codec < 0 || b.Codec > math.MaxInt8 {
		return false, fmt.Errorf("%w batch: %d records in [%d,%d), %d bytes, codec %d", ErrInvalid, b.Records, b.First, b.Next, size, b.Codec)
	}
	if err := b.Partition.validate(); err != nil {
		return false, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		if q.closed != nil {
			return false, q.closed
		}
		if err := q.takesPartitionLocked(b.Partition); err != nil {
			return false, err
		}
		p := q.partitions[b.Partition]
		if p != nil {
			if b.First > p.appended {
				return false, fmt.Errorf("%w: batch begins at %d, appended up to %d", ErrGap, b.First, p.appended)
			}
			if len(p.unknown(b.Range)) == 0 {
				q.refetchedLocked(p, refetch, b.Next)
				return true, nil
			}
		}
		if err := q.fullLocked(p, refetch != 0); err != nil {
			return false, err
		}
		if q.memoryBytes+q.heldBytes+size <= q.windowLocked() && q.memoryRecords+int64(b.Records) <= q.cfg.MemoryRecords {
			break
		}
		alone, others := q.passesAloneLocked()
		if alone {
			defer q.passedLocked() // when nobody needs the batch
			break
		}
		q.wantRoom++ // else nothing would be written that is young, though it is all there is
		q.wake()
		err := q.awaitRoomLocked(ctx, others)
		if q.wantRoom--; err != nil {
			return false, err
		}
	}

	p := q.seenLocked(b.Partition, b.First)
	known = true
	for _, own := range p.toHold(b.Range) {
		pc := &piece{part: p, payload: b.Payload, batch: b.Range, own: own, maxTimestampMs: b.MaxTimestampMs, appended: q.clock(),
			size: int32(size), records: b.Records, crc: b.CRC, codec: int8(b.Codec)}
		if q.holdLocked(pc, refetch != 0) {
			known = false
		}
	}
	if b.Next > p.appended {
		p.appended, known = b.Next, false
		q.reachLocked(p)
	}
	if !known {
		q.appendedRecords += int64(b.Records)
	}
	if refetch == 0 {
		q.notePrintLocked(p, b.Last)
		q.passLocked(p, b.Next, b.MaxTimestampMs)
	}
	q.refetchedLocked(p, refetch, b.Next)
	q.raiseSafeLocked(p)
	dropped := false // one looks at all of its partitions; of the others, the next batch drops
	for _, g := range p.progress {
		dropped = dropped || q.keepWithinLocked(g.sub)
		q.dispatchLocked(g.sub)
	}
	if q.spillDueLocked() {
		q.wake()
	}
	return known, nil
}

// holdLocked puts a new piece into its partition and in front of the subscriptions that need it,
// and says whether anybody does.
func (q *Queue) holdLocked(pc *piece, refetched bool) bool {
	pc.part.insert(pc)
	q.pendingBatches++
	q.pendingRecords += int64(pc.records)
	if !pc.stored {
		q.memoryBytes += int64(pc.size)
		q.memoryRecords += int64(pc.records)
	}
	for _, g := range pc.part.progress {
		switch {
		case g.sub.deleted: // its end is being applied
		case g.settledUntil(pc.own.First) >= pc.own.Next:
		case !refetched && !pc.stored && q.defersLocked(g, int64(pc.size)):
			q.deferRangeLocked(g, pc.own, int64(pc.size))
		default:
			g.undefer(pc.own)
			q.needLocked(g, pc)
		}
	}
	if pc.waiting == 0 {
		q.dropLocked(pc)
		return false
	}
	if !pc.stored {
		q.unspilled = append(q.unspilled, pc)
	}
	return true
}

// needLocked makes a subscription need a piece.
func (q *Queue) needLocked(g *progress, pc *piece) {
	pc.waiting++
	g.count(pc, 1)
	if pc.own.First < g.cursor {
		q.giveBackLocked(g, pc, 0, 0)
	}
	q.readyLocked(g)
}

// letGoLocked ends a subscription's need of a piece.
func (q *Queue) letGoLocked(g *progress, pc *piece) {
	g.count(pc, -1)
	if pc.waiting--; pc.waiting == 0 {
		q.dropLocked(pc)
	}
}

// Settle settles a range without records for every subscription that wants the topic. It must
// begin where the appended offsets end, or before. As the answer to a Refetch it settles only
// what is deferred.
func (q *Queue) Settle(id Partition, r Range, o Outcome, reason string, refetch uint64) error {
	if r.First < 0 || r.Next <= r.First || r.Next > maxOffset || o == Delivered || o == 0 || o >= outcomes {
		return fmt.Errorf("%w range [%d,%d) as %s", ErrInvalid, r.First, r.Next, o)
	}
	if err := id.validate(); err != nil {
		return err
	}
	reason = CutReason(reason)
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed != nil {
		return q.closed
	}
	if err := q.takesPartitionLocked(id); err != nil {
		return err
	}
	if refetch == 0 {
		if p := q.partitions[id]; p != nil && r.First > p.appended {
			return fmt.Errorf("%w: range begins at %d, appended up to %d", ErrGap, r.First, p.appended)
		}
		p := q.seenLocked(id, r.First)
		p.appended = max(p.appended, r.Next) // what comes next may follow before this is durable
		p.settling.Add(r)
	} else if p := q.partitions[id]; p == nil || r.Next > p.appended {
		return fmt.Errorf("%w range [%d,%d): nothing of it can have been asked for", ErrInvalid, r.First, r.Next)
	}
	if o != Filtered {
		q.cfg.Log.Warn("offsets are settled without a record", "topic", id.Topic, "partition", id.Number,
			"first_offset", r.First, "next_offset", r.Next, "outcome", o.String(), "reason", reason)
	}
	s := settleChange{Partition: id, First: q.partitions[id].first, Range: r, Except: []Interval{{r, o}}, Reason: reason, AtMs: q.cfg.Now().UnixMilli(), Deferred: refetch != 0}
	q.enqueueLocked(&change{Settle: []settleChange{s}, done: func(q *Queue) {
		p := q.partitions[id]
		p.settling.Remove(r)
		q.refetchedLocked(p, refetch, r.Next)
		for _, g := range p.progress {
			q.readyLocked(g)
			q.dispatchLocked(g.sub)
		}
	}})
	return nil
}

// OpenSession begins a session on a subscription.
func (q *Queue) OpenSession(subscription, consumer string, ordered bool) (*Session, error) {
	if len(consumer) > MaxNameBytes {
		return nil, fmt.Errorf("%w consumer %.100q: its name has %d bytes, at most %d", ErrInvalid, consumer, len(consumer), MaxNameBytes)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed != nil {
		return nil, q.closed
	}
	sub := q.subscription(subscription)
	if sub == nil || sub.deleted {
		return nil, fmt.Errorf("%w: %.200q", ErrNoSubscription, subscription)
	}
	s := q.newSession(q.sessionIDLocked(), sub, consumer)
	s.ordered, s.openedAt = ordered, q.cfg.Now()
	q.sessions[s.ID] = s
	q.liveSessions++
	q.joinLocked(s)
	q.adoptLocked(sub)
	return s, nil
}

// sessionIDLocked returns an id for a new session: Config.Shard, then 48 bits of Config.SessionID.
// Sessions of older versions, whose sink state may be there still, have ids without a shard: so
// the first 16 bits say where to look first, and prove nothing.
func (q *Queue) sessionIDLocked() uint64 {
	const shardBits = 16
	for {
		id := q.cfg.SessionID()<<shardBits>>shardBits | uint64(q.cfg.Shard)<<(64-shardBits)
		if id != 0 && q.sessions[id] == nil { // 0 is nobody in the journal
			return id
		}
	}
}

// Load puts the payload into a lease or a batch of Peek, which comes without: what is leased pins
// no memory. It reads the store when the payload has left the window. A lease that is not held
// any more is ErrLeaseGone.
func (q *Queue) Load(l *Lease) error {
	q.mu.Lock()
	if l.lease != nil && l.lease.session.leases[l.ID] != l.lease {
		q.mu.Unlock()
		return fmt.Errorf("load lease %d: %w", l.ID, ErrLeaseGone)
	}
	payload, ref, stored := l.piece.payload, l.piece.ref, l.piece.stored
	q.mu.Unlock()
	var err error
	switch {
	case payload != nil:
	case l.piece.size == 0:
		payload = []byte{}
	case !stored: // nobody needs it any more
		err = ErrLeaseGone
	default:
		payload, err = q.store.Read(ref)
	}
	if err != nil {
		return fmt.Errorf("read batch [%d,%d) of %s/%d: %w", l.Batch.First, l.Batch.Next, l.Batch.Partition.Topic, l.Batch.Partition.Number, err)
	}
	l.Batch.Payload = payload
	return nil
}

// dropLocked forgets a piece that nobody needs.
func (q *Queue) dropLocked(pc *piece) {
	pc.part.remove(pc)
	q.pendingBatches--
	q.pendingRecords -= int64(pc.records)
	if pc.stored {
		q.settledRefs = append(q.settledRefs, pc.ref)
		return
	}
	q.lingering++
	q.freeLocked(pc)
}

// freeLocked takes a payload out of memory.
func (q *Queue) freeLocked(pc *piece) {
	if pc.payload == nil {
		return
	}
	pc.payload = nil
	q.memoryBytes -= int64(pc.size)
	q.memoryRecords -= int64(pc.records)
	q.passedLocked()
	q.roomLocked()
}

// raiseSafeLocked moves a partition's safe offset and tells of it, unless a change with Safe is
// being written: what is told meanwhile would not be in it. Over many batches it moves in parts;
// where others cannot be let in, the writer goes on.
func (q *Queue) raiseSafeLocked(p *partition) {
	steps := math.MaxInt // a queue that is recovered has nobody who waits
	if q.store != nil {
		steps = max(q.holdItems/(1+len(p.progress)/8), 1)
	}
	for !q.guarded {
		moved, more := p.raiseSafe(q.cfg.Delivered, steps)
		if moved {
			for _, w := range q.watching[p.id] {
				w.tellLocked(p)
			}
		}
		switch {
		case !more:
			return
		case !q.inParts:
			q.unraised[p] = true
			q.wake()
			return
		}
		q.letOthersIn(q.holdItems)
	}
}

// raiseRest goes on where raiseSafeLocked could not.
func (q *Queue) raiseRest() {
	q.applying(func() {
		for p := range q.unraised {
			delete(q.unraised, p)
			q.raiseSafeLocked(p)
		}
	})
}

// clock is the time since the queue was opened. It never jumps.
func (q *Queue) clock() int64 { return int64(q.cfg.Now().Sub(q.opened)) }
