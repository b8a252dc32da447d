package queue

// What Kafka has is as good as what the store has, until Kafka deletes it. An ingest tells how far
// that is near.

// Old notes that Kafka may delete soon what a partition has before an offset: half of the time, or
// of the bytes, for which it keeps records is over. With Config.KeepsOld, what is needed of it
// goes to the store: what is in memory at once, and what is deferred as soon as it is refetched.
func (q *Queue) Old(id Partition, before int64) error {
	if err := id.validate(); err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed != nil {
		return q.closed
	}
	p := q.partitions[id]
	if p == nil {
		return nil
	}
	p.old = max(before, 0)
	if p.old > p.safe {
		q.spillOldLocked()
	}
	return nil
}

// spillOldLocked has the writer take all that is in memory by now. It is not looked at which of it
// is old: the oldest of a queue goes first.
func (q *Queue) spillOldLocked() {
	if q.cfg.KeepsOld {
		q.spillUntil = q.clock()
		q.wake()
	}
}

// backlogLocked is what a subscription has pending, in bytes. Where another machine may take over,
// which has nothing in memory, what is deferred counts as well, as if it were like what is held.
func (q *Queue) backlogLocked(sub *subscription) int64 {
	if !q.cfg.KeepsOld || sub.deferred == 0 || sub.pendingRecords == 0 {
		return sub.pendingBytes
	}
	return sub.pendingBytes + int64(float64(sub.deferred)*float64(sub.pendingBytes)/float64(sub.pendingRecords))
}

// isOldLocked says whether what a subscription lacks first is to be in the store soon. What it
// lacks for a replay was delivered.
func (q *Queue) isOldLocked(g *progress) bool {
	return q.cfg.KeepsOld && g.sub.Required && (g.deferred.First().First < g.part.old || q.leftLocked(g.part)) && !g.replaysNext()
}
