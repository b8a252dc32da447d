package queue

import "slices"

// expire does what is due: it gives back leases whose deadline has passed, leases again what may
// be by now, asks for what is to be refetched, and tells how far time has come. It lets go of the
// lock again and again.
func (q *Queue) expire() {
	q.hold(func() bool {
		if 2*q.lingering > len(q.unspilled) {
			q.unspilled = slices.DeleteFunc(q.unspilled, func(pc *piece) bool { return pc.waiting == 0 })
			q.lingering = 0
		}
		return false
	})
	for q.hold(q.expireLeasesLocked) {
	}
	for q.hold(q.returnTailsLocked) {
	}
	for q.hold(func() bool { return q.unparkLocked(q.holdItems) }) {
	}
	for i := 0; q.hold(func() bool {
		for left := q.holdItems; i < len(q.subs) && left > 0; i++ {
			before := q.nextLease
			q.dispatchLocked(q.subs[i])
			left -= int(q.nextLease - before)
		}
		return i < len(q.subs)
	}); {
	}
	q.hold(func() bool {
		q.slowWriteLocked()
		q.spillUnwatchedLocked()
		q.paceLocked()
		return false
	})
	const rounds = 10 // what has no room yet is looked at again and again: not all of it each time
	for range rounds {
		if !q.hold(q.refetchLocked) {
			break
		}
	}
	q.tellWatermarks()
}

// expireLeasesLocked gives back some of the leases whose deadline has passed, and says whether
// there are more.
func (q *Queue) expireLeasesLocked() (more bool) {
	now := q.clock()
	left := q.holdItems
	for _, sub := range q.subs {
		for _, s := range sub.sessions {
			var gone []uint64
			for l, ok := s.expiry.first(); ok && (l.acking || l.deadline < now); l, ok = s.expiry.first() {
				if left--; left < 0 {
					more = true
					break
				}
				if l.acking { // the ack decides
					l.expiry.leave()
					continue
				}
				gone = append(gone, l.id)
				q.returnLeaseLocked(l, now)
			}
			if len(gone) > 0 {
				q.cfg.Log.Warn("leases expired", "subscription", sub.Name, "session", s.ID, "consumer", s.Consumer, "leases", len(gone))
				s.tellLocked(Event{Revoked: gone})
			}
		}
	}
	return more
}
