package queue

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// groupBytes is where a group ends: large enough for one fsync to carry much, small enough
	// for an ack not to wait long behind it.
	groupBytes = 2 << 20
	// groupEntries bounds a group whose batches or changes are small: it is applied under the
	// lock.
	groupEntries = 8192
	// tick is how often deadlines are looked at.
	tick = 100 * time.Millisecond
	// When memory passes the high watermark, batches are written until it is below the low one.
	highWatermarkPercent, lowWatermarkPercent = 70, 50
	// checkInterval is how often a Checker is asked.
	checkInterval = time.Second
	// spaceRetry is how often a full disk is tried again.
	spaceRetry = time.Second
	// drainWithin bounds how long Run writes out what is in memory once its context has ended, and
	// closeWithin how long it waits for a store that does not answer.
	drainWithin, closeWithin = 15 * time.Second, 20 * time.Second
	// slowWrite is how long a write may take before a line in the log says so.
	slowWrite = 10 * time.Second
	// logPatience is how long Run waits for a slow log before it returns.
	logPatience = time.Second
)

// errStuck means that the store did not answer within closeWithin.
var errStuck = errors.New("the store does not answer")

// group is what goes to the store in one durable write.
type group struct {
	changes []*change
	pieces  []*piece
	entries []Entry
}

// Run writes to the store until ctx ends; then it writes out what is in memory, closes the store
// and returns nil. It gives up writing out after drainWithin: nothing of what is left was
// reported safe. An error is the store's: the queue is closed, and what was not answered is
// unknown. After errStuck a write still goes on, and the store is not closed.
//
// The store has a goroutine of its own, so that a slow disk delays no deadline.
func (q *Queue) Run(ctx context.Context) error {
	defer q.logLines.flush(logPatience)
	written := make(chan error, 1)
	go func() { written <- q.write(ctx) }()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	ended := ctx.Done()
	var late <-chan time.Time
	for {
		select {
		case <-ended:
			ended = nil
			q.close(ErrClosed)
			timer := time.NewTimer(closeWithin)
			defer timer.Stop()
			late = timer.C
		case <-ticker.C:
			q.expire()
			q.wake() // a batch may have become old enough
		case err := <-written:
			return err
		case <-late:
			return errStuck
		}
	}
}

// write is Run's part that writes to the store and closes it.
func (q *Queue) write(ctx context.Context) error {
	checks := time.NewTicker(checkInterval)
	defer checks.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-q.kick:
		case <-checks.C:
			if c, ok := q.store.(Checker); ok {
				if err := c.Check(); err != nil {
					return q.fail(fmt.Errorf("check store: %w", err))
				}
			}
		}
		for ctx.Err() == nil {
			more, err := q.writeGroup(false)
			if err != nil {
				return err
			}
			goesOn, err := q.store.Continue()
			if err != nil {
				return q.fail(fmt.Errorf("write snapshot to store: %w", err))
			}
			if !more && !goesOn {
				break
			}
		}
	}
	q.close(ErrClosed)
	for until := time.Now().Add(drainWithin); time.Now().Before(until); {
		if more, err := q.writeGroup(true); err != nil {
			return err
		} else if !more {
			break
		}
	}
	q.mu.Lock()
	batches, changes := len(q.unspilled), len(q.changes)
	q.mu.Unlock()
	if batches+changes > 0 {
		q.cfg.Log.Warn("the disk is full or too slow to write out what is in memory; it is read from Kafka again", "batches", batches, "changes", changes)
	}
	if err := q.store.Close(); err != nil {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

// writeGroup writes what is due, and says whether there was anything. After an error the queue is
// closed.
func (q *Queue) writeGroup(everything bool) (more bool, err error) {
	g := q.take(everything)
	if g == nil {
		return false, nil
	}
	refs, err := q.store.Append(g.entries)
	if errors.Is(err, ErrNoSpace) {
		q.putBack(g, err)
		return true, nil
	}
	if err != nil {
		return false, q.fail(fmt.Errorf("append group to store: %w", err))
	}
	q.commit(g, refs)
	q.release()
	return true, nil
}

// fail closes the queue and the store, whose state is unknown: opening it again tells.
func (q *Queue) fail(err error) error {
	q.close(fmt.Errorf("%w: %w", ErrClosed, err))
	_ = q.store.Close()
	return err
}

func (q *Queue) wake() {
	select {
	case q.kick <- struct{}{}:
	default:
	}
}

// enqueueLocked adds a change to the next group.
func (q *Queue) enqueueLocked(c *change) {
	q.changes = append(q.changes, c)
	q.wake()
}

// close refuses everything from now on and ends the sessions.
func (q *Queue) close(why error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed != nil {
		return
	}
	q.closed = why
	q.passedLocked()
	close(q.done)
	for _, s := range q.sessions {
		s.endLocked(ErrClosed)
	}
	for w := range q.watchers {
		w.signalLocked()
	}
}

// Done is closed when the queue takes nothing more.
func (q *Queue) Done() <-chan struct{} { return q.done }

// take collects what is to be written now; nil means nothing.
func (q *Queue) take(everything bool) *group {
	q.raiseRest()
	g := q.collect(everything)
	if g == nil {
		return nil
	}
	for i, pc := range g.pieces {
		g.entries[i].Meta = mustJSON(q.metaOf(pc))
	}
	for _, c := range g.changes {
		g.entries = append(g.entries, Entry{Kind: ChangeEntry, Meta: mustJSON(c)})
	}
	for _, c := range g.changes {
		g.entries = append(g.entries, q.copyEntries(c)...)
	}
	return g
}

// collect is take without what the lock is not held for.
func (q *Queue) collect(everything bool) *group {
	q.mu.Lock()
	defer q.mu.Unlock()
	noSpace := false
	if !q.noSpaceUntil.IsZero() {
		if noSpace = everything || q.cfg.Now().Before(q.noSpaceUntil); noSpace && q.noSpaceForChanges {
			return nil
		}
	}
	g := &group{}
	size, entries := int64(0), 0
	for len(q.changes) > 0 && size < groupBytes && entries < groupEntries {
		c := q.changes[0]
		if c.guards {
			if len(g.changes) > 0 {
				break // it is alone, so that what is in it is what holds when it is applied
			}
			c.Safe, q.guarded = q.guardedLocked(c), true
		}
		g.changes = append(g.changes, c)
		bytes, n := c.cost()
		size, entries = size+bytes, entries+n
		q.changes[0] = nil
		q.changes = q.changes[1:]
		if c.guards {
			break
		}
	}
	memoryBytes, memoryRecords := q.memoryBytes, q.memoryRecords
	// Behind all changes: what made a partition known is on disk before its batches.
	for len(q.changes) == 0 && !q.guarded && !noSpace && len(q.unspilled) > 0 && size < groupBytes && entries < groupEntries {
		pc := q.unspilled[0]
		if pc.waiting > 0 {
			if q.spilling && below(memoryBytes, q.windowLocked(), lowWatermarkPercent) && below(memoryRecords, q.cfg.MemoryRecords, lowWatermarkPercent) {
				q.spilling = false
			}
			if !everything && !q.spillDueLocked() {
				break
			}
			g.pieces = append(g.pieces, pc)
			size += int64(pc.size)
			entries++
			memoryBytes -= int64(pc.size)
			memoryRecords -= int64(pc.records)
		}
		q.unspilled[0] = nil
		q.unspilled = q.unspilled[1:]
	}
	if len(g.changes)+len(g.pieces) == 0 {
		return nil
	}
	g.entries = make([]Entry, 0, len(g.pieces)+len(g.changes))
	for _, pc := range g.pieces { // under the lock: settling takes the payload away
		g.entries = append(g.entries, Entry{Kind: BatchEntry, Payload: pc.payload})
	}
	q.writeBegan = q.clock()
	return g
}

// cost is about how many bytes a change takes in the journal, and how many steps to apply.
func (c *change) cost() (bytes int64, steps int) {
	bytes, steps = 128, 1
	for i := range c.Settle {
		s := &c.Settle[i]
		bytes += int64(128 + len(s.Partition.Topic) + len(s.Reason) + 32*len(s.Except) + 32*len(s.DeadLetters))
		for _, d := range s.DeadLetters {
			bytes += int64(len(d.Reason))
		}
		steps += 1 + len(s.Except) + len(s.DeadLetters)
	}
	for _, s := range c.State {
		bytes += int64(len(s.Key) + len(s.Value)*4/3 + 32)
	}
	for _, pc := range c.copies {
		bytes += 256 + int64(pc.size)
	}
	return bytes, steps + len(c.State) + len(c.copies)
}

// putBack keeps a group for which there was no space. Changes are tried again without batches at
// once, and everything after a while: what is in memory waits, ingest is held back when memory is
// full, and acks free space.
func (q *Queue) putBack(g *group, err error) {
	q.applying(func() {
		if q.noSpaceUntil.IsZero() {
			q.cfg.Log.Error("the disk is full; batches stay in memory until there is space", "error", err)
		}
		q.writtenLocked()
		q.noSpaceUntil = q.cfg.Now().Add(spaceRetry)
		q.noSpaceForChanges = len(g.pieces) == 0
		for _, c := range g.changes { // what is a change only has space sooner
			c.copies = nil
		}
		q.unspilled = append(g.pieces, q.unspilled...)
		q.changes = append(g.changes, q.changes...)
		q.unguardLocked()
		q.makeRoomLocked()
	})
}

// spaceIsBackLocked ends what putBack began.
func (q *Queue) spaceIsBackLocked() {
	if !q.noSpaceUntil.IsZero() {
		q.cfg.Log.Info("there is space on the disk again")
		q.noSpaceUntil, q.noSpaceForChanges = time.Time{}, false
	}
}

// spillDueLocked says whether the oldest batch in memory is to be written.
func (q *Queue) spillDueLocked() bool {
	if q.aboveHighWatermark() {
		q.spilling = true
	}
	if q.spilling || q.wantRoom > 0 {
		return true
	}
	return len(q.unspilled) > 0 && (q.clock()-q.unspilled[0].appended >= int64(q.cfg.SpillAfter) || q.unspilled[0].appended <= q.spillUntil)
}

func (q *Queue) aboveHighWatermark() bool {
	return !below(q.memoryBytes, q.windowLocked(), highWatermarkPercent) || !below(q.memoryRecords, q.cfg.MemoryRecords, highWatermarkPercent)
}

// below says whether less than percent of a limit is used. With a limit above 0 that is so of
// nothing.
func below(used, limit, percent int64) bool {
	return used < percentOf(limit, percent) || used == 0 && limit > 0
}

// percentOf is percent of n, from 0 to 100, without overflow.
func percentOf(n, percent int64) int64 { return n/100*percent + n%100*percent/100 }

// writtenLocked notes that the store has answered.
func (q *Queue) writtenLocked() {
	if q.writeTold {
		q.cfg.Log.Info("the store answers again", "after", time.Duration(q.clock()-q.writeBegan).Round(time.Millisecond))
	}
	q.writeBegan, q.writeTold = 0, false
}

// slowWriteLocked says so once when the store takes very long.
func (q *Queue) slowWriteLocked() {
	if q.writeBegan > 0 && !q.writeTold && q.clock()-q.writeBegan > int64(slowWrite) {
		q.writeTold = true
		q.cfg.Log.Warn("the store (a disk, or Kafka) has not answered a write for long; acks and safe offsets wait for it", "for", time.Duration(q.clock()-q.writeBegan).Round(time.Second))
	}
}

// commit applies a group that is durable.
func (q *Queue) commit(g *group, refs []Ref) {
	stats := q.store.Stats()
	q.applying(func() {
		q.storeStats = stats
		q.writtenLocked()
		q.commitLocked(g, refs)
	})
}

func (q *Queue) commitLocked(g *group, refs []Ref) {
	for i, pc := range g.pieces {
		q.letOthersIn(1)
		if pc.waiting == 0 { // settled while it was being written
			q.settledRefs = append(q.settledRefs, refs[i])
			continue
		}
		pc.ref, pc.stored = refs[i], true
		q.spilledRecords += int64(pc.records)
		q.freeLocked(pc)
		q.raiseSafeLocked(pc.part)
	}
	if len(g.pieces) > 0 || len(q.unspilled) == 0 {
		q.spaceIsBackLocked()
	}
	for _, c := range g.changes {
		q.letOthersIn(1)
		if c.before != nil {
			c.before(q)
		}
		q.applyLocked(c)
		if c.done != nil {
			c.done(q)
		}
	}
	copies := refs[len(g.pieces)+len(g.changes):]
	for _, c := range g.changes {
		sub := q.subscriptionByID(c.Subscription)
		for _, pc := range c.copies {
			pc.ref, copies = copies[0], copies[1:]
			if sub == nil {
				q.settledRefs = append(q.settledRefs, pc.ref)
				continue
			}
			q.keepCopyLocked(sub, pc)
			q.letOthersIn(1)
		}
	}
	q.unguardLocked()
}

// release lets go of the stored payloads that everyone has settled. Only once the acks that
// settled them are on disk are they in the list.
func (q *Queue) release() {
	q.mu.Lock()
	refs := q.settledRefs
	q.settledRefs = nil
	q.mu.Unlock()
	if len(refs) > 0 {
		q.store.Release(refs)
	}
}
