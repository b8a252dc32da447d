package queue

// Deferred is what a subscription needs and the queue does not hold. It follows from the ledger
// and what is held, so that it is written down nowhere.

// deferRangeLocked makes the unsettled parts of r deferred. bytes is about what r has.
func (q *Queue) deferRangeLocked(g *progress, r Range, bytes int64) {
	if g.unwanted {
		r.Next = min(r.Next, g.until)
	}
	n, before := int64(0), g.deferred.Len()
	for _, part := range g.settled.Unsettled(r) {
		g.deferred.Add(part)
		n += part.Len()
	}
	g.deferredBytes += bytes * n / max(r.Len(), 1)
	g.sub.deferred += g.deferred.Len() - before
	if !g.part.lacks.waits() && g.deferred.Len() > 0 {
		q.lacking.push(&g.part.lacks)
	}
}

// undefer takes r out of deferred.
func (g *progress) undefer(r Range) {
	if g.deferred.Empty() {
		return
	}
	before := g.deferred.Len()
	g.deferred.Remove(r)
	g.deferredBytes = g.deferredBytes * g.deferred.Len() / before
	g.sub.deferred += g.deferred.Len() - before
}

// forgetDeferred takes everything out of deferred.
func (g *progress) forgetDeferred() {
	g.sub.deferred -= g.deferred.Len()
	g.deferred, g.deferredBytes = Set{}, 0
}

// deriveLocked makes deferred what is pending below the appended offset and not held.
func (q *Queue) deriveLocked(g *progress) {
	g.forgetDeferred()
	o := g.settled.lowest()
	for pc := range g.part.pieces.from(g.part.pieces.over(o)) {
		if o >= g.end() {
			break
		}
		q.deferRangeLocked(g, Range{o, pc.own.First}, 0)
		o = max(o, pc.own.Next)
	}
	q.deferRangeLocked(g, Range{o, g.end()}, 0)
}

// deferLocked stops holding a piece for a subscription.
func (q *Queue) deferLocked(g *progress, pc *piece) {
	q.deferRangeLocked(g, pc.own, int64(pc.size))
	q.letGoLocked(g, pc)
}

// deferNewestLocked stops holding the newest batches for a subscription until a backlog of left
// remains, at most holdItems of them: it is called again as long as there are more.
func (q *Queue) deferNewestLocked(sub *subscription, left int64) {
	batches := 0
	for newest := sub.byAge(newestFirst); sub.pendingBytes > left && batches < q.holdItems; batches++ {
		g, pc := newest.next()
		if pc == nil {
			break
		}
		q.deferLocked(g, pc)
	}
	if batches > 0 {
		q.cfg.Log.Warn("newest batches are deferred, to be refetched from Kafka", "subscription", sub.Name, "reason", reasonDisk, "batches", batches)
	}
}

// deferredLocked is the lowest deferred range of a partition that is to be held now. Before, what
// is held for others is held again for those that deferred it, at most holdItems batches: the
// others follow. Each look costs one of left.
func (q *Queue) deferredLocked(p *partition, left *int) (wanted Range, ok bool) {
	most := q.holdItems
	for _, g := range p.progress {
		*left--
		took := false
		for !g.deferred.Empty() && q.takesBackLocked(g) {
			first := g.deferred.First()
			if pc := p.pieceAt(first.First); pc != nil {
				if most == 0 {
					break
				}
				most--
				*left--
				took = true
				q.chargeReplayLocked(g, pc.own)
				g.undefer(pc.own)
				q.needLocked(g, pc)
				continue
			}
			if !ok || first.First < wanted.First {
				wanted, ok = g.firstDeferred(), true
				wanted.Next = min(wanted.Next, wanted.First+q.replayRoomLocked(g))
			}
			break
		}
		if took {
			q.dispatchLocked(g.sub)
		}
	}
	wanted.Next = min(wanted.Next, wanted.First+refetchOffsets)
	return wanted, ok
}

// firstDeferred is the lowest deferred range, joined with those behind it where only settled
// offsets are between: of batches that were settled in parts there are many, and each Refetch
// takes its time.
func (g *progress) firstDeferred() Range {
	r := g.deferred.First()
	for more := range g.deferred.All() {
		held, ok := g.part.pieces.at(g.part.pieces.over(r.Next))
		if more.First >= r.First+refetchOffsets || ok && held.own.First < more.First {
			break
		}
		r.Next = more.Next
	}
	return r
}

// takesBackLocked says whether there is room for what a subscription has deferred. What lies
// before all that is held for it has to come back in any case: in order, nothing can be delivered
// before it.
func (q *Queue) takesBackLocked(g *progress) bool {
	if g.sub.moving > 0 {
		return false
	}
	if q.supersededLocked(g.part) {
		return true // or it is lost when the others have it
	}
	if q.isOldLocked(g) {
		return true // or it may be lost with Kafka's retention
	}
	if g.sub.paused || !q.replaysNowLocked(g) {
		return false
	}
	if g.sub.OnFull != Defer || g.sub.pendingBytes == 0 || g.sub.pendingBytes < q.limit(g.sub)/2 {
		return true
	}
	held := g.oldestPending()
	return held != nil && g.deferred.First().First < held.own.First
}
