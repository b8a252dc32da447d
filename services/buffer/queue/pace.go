package queue

import (
	"context"
	"slices"
	"time"
)

const (
	// paceShare is the part of the window that every subscription is to have waiting before ingest is held back.
	paceShare = 8
	// paceWithin is how long what waits may take the fastest subscription to lease, at its pace, for ingest to be held back.
	paceWithin = 4 * time.Second
	// paceAge is how old a record may get, since it was produced, by being held back. (What Kafka deletes earlier, ingest says.)
	paceAge = 10 * time.Minute
	// paceMost is how long a batch is held back at most. What is appended without being held back, as of other sources or
	// refetched, may keep the fastest subscription supplied for ever; and the answers to refetches wait behind the batch.
	paceMost = 10 * time.Second
)

// Pace waits before a batch is appended, with its newest record produced at timestampMs, while no session could take more,
// every subscription has enough to lease, and the fastest will have leased it soon: what ingest reads faster than that
// would go to disk and come back, for nothing. Nobody is slowed down by it. Soon after the fastest stops, and for what is
// not fresh, Pace waits no more: then the backlog is the buffer's. It never waits longer than paceMost.
func (q *Queue) Pace(ctx context.Context, timestampMs int64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	began := q.clock()
	for q.closed == nil && q.clock()-began < int64(paceMost) && q.cfg.Now().Sub(time.UnixMilli(timestampMs)).Abs() < paceAge && q.aheadLocked() {
		q.paced = true
		if err := q.awaitRoomLocked(ctx); err != nil {
			return err
		}
	}
	return q.closed
}

// aheadLocked says whether ingest is ahead of all subscriptions, and of one only by what that will have leased soon.
func (q *Queue) aheadLocked() bool {
	ahead := false
	for _, sub := range q.subs {
		if len(sub.progress) == 0 {
			continue // nothing is for it
		}
		bytes, records := sub.pendingBytes-sub.leasedBytes, sub.pendingRecords-sub.leasedRecords
		if bytes < q.cfg.MemoryBytes/paceShare && records < q.cfg.MemoryRecords/paceShare {
			return false
		}
		if slices.ContainsFunc(sub.sessions, func(s *Session) bool { return s.credit > 0 }) {
			return false // with ordering: what waits is for another session
		}
		ahead = ahead || float64(bytes) <= sub.pace*paceWithin.Seconds()+float64(sub.taken)
	}
	return ahead
}

// paceLocked measures the pace of all subscriptions, with the last second counting most.
func (q *Queue) paceLocked() {
	now := q.clock()
	elapsed := time.Duration(now - q.pacedAt).Seconds()
	if elapsed <= 0 {
		return
	}
	q.pacedAt = now
	for _, sub := range q.subs {
		sub.pace += (float64(sub.taken)/elapsed - sub.pace) * min(elapsed, 1)
		sub.taken = 0
	}
	if q.paced {
		q.roomLocked()
	}
}

// awaitRoomLocked lets go of the lock until roomLocked is called or the queue is closed, or for ctx's error.
func (q *Queue) awaitRoomLocked(ctx context.Context) error {
	room := q.room
	q.mu.Unlock()
	defer q.mu.Lock()
	select {
	case <-room:
	case <-q.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// roomLocked wakes who waits for room in the window, or in Pace.
func (q *Queue) roomLocked() {
	q.paced = false
	close(q.room)
	q.room = make(chan struct{})
}
