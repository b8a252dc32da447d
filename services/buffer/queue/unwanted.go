package queue

import (
	"fmt"
	"math"
	"slices"
)

// What becomes of a ledger when its subscription ceases to want the topic, and when it wants it
// again: see progress.

// maxKeptListed bounds how many partitions one line of the log names.
const maxKeptListed = 20

// count counts a piece that is needed, or with -1 not any more.
func (g *progress) count(pc *piece, n int64) {
	g.keep(-1)
	g.pendingRecords += n * int64(pc.records)
	g.pendingBytes += n * int64(pc.size)
	g.sub.pendingRecords += n * int64(pc.records)
	g.sub.pendingBytes += n * int64(pc.size)
	g.keep(1)
}

// keep counts what is needed in a partition that is not wanted, or with -1 does so no longer.
func (g *progress) keep(n int64) {
	if g.unwanted {
		g.sub.keptRecords += n * g.pendingRecords
		g.sub.keptBytes += n * g.pendingBytes
	}
}

// end is where the offsets end that are the subscription's so far.
func (g *progress) end() int64 {
	if g.unwanted {
		return min(g.until, g.part.appended)
	}
	return g.part.appended
}

// settledUntil returns the first offset at or after o that is not settled. What is not the
// subscription's counts as settled, for ever.
func (g *progress) settledUntil(o int64) int64 { return g.oursUntil(g.settled.Until(o)) }

// settledOnceUntil is settledUntil but for what is to be delivered again, which is settled.
func (g *progress) settledOnceUntil(o int64) int64 { return g.oursUntil(g.settled.until(o)) }

func (g *progress) oursUntil(until int64) int64 {
	if g.unwanted && until >= g.until {
		return math.MaxInt64
	}
	return until
}

// settledFrom returns the first offset at or after o that is settled, at most limit.
func (g *progress) settledFrom(o, limit int64) int64 {
	if g.unwanted {
		limit = min(limit, max(o, g.until))
	}
	return g.settled.NextIn(o, limit)
}

// tells says whether it is known after a crash, from the subscription's ledger and what is stored
// for it, how far the partition was appended at least where that is safe.
func (g *progress) tells() bool { return g.sub.Required && !g.unwanted }

// unwantLocked keeps what is pending before an offset, and ends the subscription's interest in
// what comes later.
func (q *Queue) unwantLocked(g *progress, until int64) {
	q.revokeLocked(g)
	q.takeAllBackLocked(g)
	g.tail = nil
	for pc := g.needed(g.part.pieces.seek(until)); pc != nil; pc = g.needed(g.part.pieces.seek(pc.own.Next)) {
		q.deferLocked(g, pc)
		q.letOthersIn(1)
	}
	// Nobody is let in between this and what follows: what is appended from here on is not the
	// subscription's.
	across := g.part.pieceAt(until)
	if across != nil && (across.own.First >= until || !g.needs(across.own)) {
		across = nil
	}
	q.freezeLocked(g)
	g.ready.leave()
	g.unwanted, g.until = true, until
	g.keep(1)
	if across != nil && !g.needs(across.own) {
		q.letGoLocked(g, across)
	}
	g.undefer(Range{until, math.MaxInt64})
	q.takeAllBackLocked(g) // what was needed again meanwhile
}

// wantLocked has the subscription go on with a topic that it did not want for a while.
func (q *Queue) wantLocked(g *progress) {
	q.takeAllBackLocked(g)
	from := max(g.until, g.settled.Floor)
	if pc := g.part.pieceAt(from); pc != nil && g.needs(pc.own) { // it is held for what comes before
		from = pc.own.Next
	}
	q.freezeLocked(g)
	g.keep(-1)
	g.unwanted, g.until = false, 0
	g.moveCursor(g.settled.lowest())
	q.deferRangeLocked(g, Range{from, g.end()}, 0)
	q.attachLocked(g)
}

// warnKeptLocked says what is pending of topics that a subscription does not want any more.
func (q *Queue) warnKeptLocked(sub *subscription) {
	var listed []string
	partitions, offsets := 0, int64(0)
	for _, g := range sub.progress {
		r := Range{g.settled.Floor, g.end()}
		if !g.unwanted || r.Len() <= 0 {
			continue
		}
		partitions++
		for _, part := range g.settled.Unsettled(r) {
			offsets += part.Len()
		}
		if len(listed) < maxKeptListed {
			listed = append(listed, fmt.Sprintf("%s/%d [%d,%d)", g.part.id.Topic, g.part.id.Number, r.First, r.Next))
		}
	}
	if partitions == 0 || q.store == nil {
		return
	}
	q.cfg.Log.Warn("records are pending of topics that the subscription does not want any more; they are kept: have it want them again, or give them "+
		"up with drop_unwanted of UpdateSubscription", "subscription", sub.Name, "topics", sub.Topics, "partitions", partitions, "offsets", offsets, "kept", listed)
}

// guardedLocked is the safe offsets of the partitions whose ledgers a change alters.
func (q *Queue) guardedLocked(c *change) []Start {
	id := max(c.Subscription, c.Unsubscribe)
	if c.Subscribe != nil {
		id = c.Subscribe.ID
	}
	affected := make(map[*partition]bool)
	if sub := q.subscriptionByID(id); sub != nil {
		for _, g := range sub.progress {
			affected[g.part] = true
		}
	}
	if c.Subscribe != nil {
		for _, s := range c.Subscribe.Starts {
			affected[q.partitions[s.Partition]] = true
		}
	}
	var safe []Start
	for p := range affected {
		if p.safe > p.first {
			safe = append(safe, Start{p.id, p.safe})
		}
	}
	return safe
}

// unguardLocked ends the writing of a change with Safe: what rose meanwhile is told.
func (q *Queue) unguardLocked() {
	if !q.guarded {
		return
	}
	q.guarded = false
	for _, p := range slices.Clone(q.sorted) {
		q.raiseSafeLocked(p)
		q.letOthersIn(1 + len(p.progress)/8)
	}
}
