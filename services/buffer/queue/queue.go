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
// One goroutine, Run, writes to the store; everything else happens on the callers' goroutines under
// one mutex, which is never held during I/O.
package queue

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math"
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

// Queue is open from Open until Run returns.
type Queue struct {
	cfg    Config
	store  Store
	opened time.Time

	mu               sync.Mutex // guards everything below, and every object reached from it
	subs             []*subscription
	partitions       map[Partition]*partition
	newest           map[Partition]uint32 // by topic(): the newest incarnation
	sessions         map[uint64]*Session  // live, or with sink state that waits for an heir
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
	noSpaceUntil               time.Time // the store had no space for batches; zero: it has
	noSpaceForChanges          bool      // nor for changes alone
	roomMade                   time.Time // when subscriptions last gave way to a full disk
	refetches                  map[uint64]*refetch
	nextRefetch                uint64 // also of finds
	finds                      map[uint64]chan int64
	closed                     error         // why the queue takes nothing more
	room                       chan struct{} // closed and replaced when memory is freed, and for Pace
	paced                      bool          // somebody waits in Pace
	pacedAt                    int64         // when paces were measured last, on clock
	watchers                   map[*Watcher]struct{}
	listed                     map[reads]map[string]int32 // what sources read: topics with their partitions
	empty                      map[Partition]int64        // of what was never appended: when it was at its end, in ms since the Unix epoch
	watermarkTold              int64                      // when, on clock

	kick chan struct{} // has room for one: there is something to write
	done chan struct{} // closed when the queue is closed
}

// partitionLocked finds a partition, or makes it known.
func (q *Queue) partitionLocked(id Partition, first int64) *partition {
	p := q.partitions[id]
	if p == nil {
		p = &partition{id: id, first: first, appended: first, reached: first, safe: first, progress: make(map[*subscription]*progress)}
		q.addPartition(p)
		for _, sub := range q.subs {
			if sub.wants(id.Topic) {
				q.addProgress(sub, p, NewSettled(first, 0))
			}
		}
	}
	return p
}

func (q *Queue) addPartition(p *partition) {
	q.partitions[p.id] = p
	q.newest[p.id.topic()] = max(q.newest[p.id.topic()], p.id.Incarnation)
}

// seenLocked is partitionLocked for what comes from Kafka: it also journals the partition's first
// offset ahead of any ack, since an ack alone does not tell that what is before it is still pending.
func (q *Queue) seenLocked(id Partition, first int64) *partition {
	if q.partitions[id] == nil {
		q.enqueueLocked(&change{Seen: &seenChange{Partition: id, First: first, Reached: first}})
	}
	return q.partitionLocked(id, first)
}

// reachLocked journals how far a partition is appended where no required subscription's ledger will
// tell: else a crash would forget what has been reported safe.
func (q *Queue) reachLocked(p *partition) {
	if p.reaching || p.reached >= p.appended {
		return
	}
	for _, g := range p.progress {
		if g.sub.Required {
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
	g := &progress{sub: sub, part: p, settled: settled, cursor: settled.Floor}
	p.progress[sub] = g
	sub.progress = append(sub.progress, g)
	return g
}

func (q *Queue) newSession(id uint64, sub *subscription, consumer string, state map[string][]byte) *Session {
	if state == nil {
		state = make(map[string][]byte)
	}
	return &Session{ID: id, Consumer: consumer, q: q, sub: sub, leases: make(map[uint64]*lease), state: state, holds: make(map[string]int64), signal: make(chan struct{}, 1)}
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
		return cmp.Or(cmp.Compare(a.id.Number, b.id.Number), cmp.Compare(a.id.Incarnation, b.id.Incarnation))
	})
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

// Append takes a batch over; the queue keeps its payload. It waits while the window is full, until
// ctx ends. Known is true when nothing of it was new. Nothing is durable on return: the partition's
// safe offset tells what is. refetch is the id of the Refetch that the batch answers, or 0.
func (q *Queue) Append(ctx context.Context, b Batch, refetch uint64) (known bool, err error) {
	size := int64(len(b.Payload))
	if b.First < 0 || b.Next <= b.First || b.Records <= 0 || int64(b.Records) > b.Len() || size > math.MaxInt32 || b.Codec < 0 || b.Codec > math.MaxInt8 {
		return false, fmt.Errorf("%w batch: %d records in [%d,%d), %d bytes, codec %d", ErrInvalid, b.Records, b.First, b.Next, size, b.Codec)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		if q.closed != nil {
			return false, q.closed
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
		if q.memoryBytes == 0 || (q.memoryBytes+size <= q.cfg.MemoryBytes && q.memoryRecords+int64(b.Records) <= q.cfg.MemoryRecords) {
			break
		}
		if err := q.awaitRoomLocked(ctx); err != nil {
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
	for _, g := range p.progress {
		q.keepWithinLocked(g.sub)
		q.dispatchLocked(g.sub)
	}
	if q.spillDueLocked() {
		q.wake()
	}
	return known, nil
}

// holdLocked puts a new piece into its partition and in front of the subscriptions that need it, and
// says whether anybody does.
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
		case g.settled.Covers(pc.own):
		case !refetched && !pc.stored && q.defersLocked(g, int64(pc.size)):
			g.deferRange(pc.own, int64(pc.size))
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
	g.sub.pendingRecords += int64(pc.records)
	g.sub.pendingBytes += int64(pc.size)
	if pc.own.First < g.cursor {
		g.giveBack(returned{piece: pc})
	}
	q.readyLocked(g)
}

// letGoLocked ends a subscription's need of a piece.
func (q *Queue) letGoLocked(g *progress, pc *piece) {
	g.sub.pendingRecords -= int64(pc.records)
	g.sub.pendingBytes -= int64(pc.size)
	if pc.waiting--; pc.waiting == 0 {
		q.dropLocked(pc)
	}
}

// Settle settles a range without records for every subscription that wants the topic. It must begin
// where the appended offsets end, or before. As the answer to a Refetch it settles only what is deferred.
func (q *Queue) Settle(id Partition, r Range, o Outcome, reason string, refetch uint64) error {
	if r.First < 0 || r.Next <= r.First || o == Delivered || o == 0 || o >= outcomes {
		return fmt.Errorf("%w range [%d,%d) as %s", ErrInvalid, r.First, r.Next, o)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed != nil {
		return q.closed
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
	s := settleChange{Partition: id, Range: r, Except: []Interval{{r, o}}, Reason: reason, AtMs: q.cfg.Now().UnixMilli(), Deferred: refetch != 0}
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

// settleLocked settles a range of one ledger, and lets go of the batches that nobody needs any more.
func (q *Queue) settleLocked(g *progress, s *settleChange) {
	if s.Deferred {
		for _, part := range g.deferred.Within(s.Range) {
			one := *s
			one.Deferred, one.Range, one.Except = false, part, []Interval{{part, s.Except[0].Outcome}}
			q.settleLocked(g, &one)
		}
		return
	}
	var needed []*piece
	p := g.part
	for i := p.pieceIndex(s.Range.First); i < len(p.pieces) && p.pieces[i].own.First < s.Range.Next; i++ {
		if g.needs(p.pieces[i].own) {
			needed = append(needed, p.pieces[i])
		}
	}
	undelivered := int64(0)
	except := func(r Range, o Outcome, reason string) {
		for _, part := range g.settled.Unsettled(r) {
			undelivered += part.Len()
			g.sub.count(o, part.Len())
			if o != Filtered {
				g.sub.note(Undelivered{Partition: p.id, Range: part, Outcome: o, Reason: reason, AtMs: s.AtMs})
			}
		}
		g.settled.Add(r, o)
	}
	for _, d := range s.DeadLetters {
		except(Range{d.Offset, d.Offset + 1}, DeadLettered, d.Reason)
	}
	for _, e := range s.Except {
		except(e.Range, e.Outcome, s.Reason)
	}
	g.settled.Add(s.Range, Delivered)
	g.undefer(s.Range)
	records := int64(0)
	for _, pc := range needed {
		if !g.needs(pc.own) {
			records += int64(pc.records)
			q.letGoLocked(g, pc)
		}
	}
	g.sub.delivered += max(records-undelivered, 0)
}

// count adds to the counters since Open. Delivered is counted in records, not here.
func (s *subscription) count(o Outcome, offsets int64) {
	switch o {
	case DeadLettered:
		s.deadLettered += offsets
	case Dropped:
		s.dropped += offsets
	case Lost:
		s.lost += offsets
	}
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
	q.roomLocked()
}

func (q *Queue) raiseSafeLocked(p *partition) {
	if p.raiseSafe(q.cfg.Delivered) {
		for w := range q.watchers {
			w.tellLocked(p)
		}
	}
}

// clock is the time since the queue was opened. It never jumps.
func (q *Queue) clock() int64 { return int64(q.cfg.Now().Sub(q.opened)) }
