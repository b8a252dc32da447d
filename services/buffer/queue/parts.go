package queue

// Long work is done in parts, between which others get the lock.

// hold calls f with the lock held.
func (q *Queue) hold(f func() (more bool)) (more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return f()
}

// applying calls f with the lock held, in which letOthersIn may be called.
func (q *Queue) applying(f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.inParts, q.left = true, q.holdItems
	f()
	q.inParts = false
}

// letOthersIn lets go of the lock for a moment once so many items were dealt with since it was
// taken. Only what applies a durable change calls it, on the goroutine that writes: nothing else
// changes ledgers meanwhile, and no snapshot is made. While a queue is recovered there are no
// others.
func (q *Queue) letOthersIn(items int) {
	if q.left -= items; q.left > 0 || !q.inParts {
		return
	}
	q.inParts = false
	q.mu.Unlock()
	q.mu.Lock()
	q.inParts, q.left = true, q.holdItems
}
