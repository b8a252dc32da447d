package queue

import (
	"context"
	"slices"
	"time"
)

const (
	// paceShare is the part of the window that every subscription is to have waiting before
	// ingest is held back.
	paceShare = 8
	// paceWithin is how long what waits may take the fastest subscription to lease, at its pace,
	// for ingest to be held back.
	paceWithin = 4 * time.Second
	// paceAge is how old a record may get, since it was produced, by being held back. (What Kafka
	// deletes earlier, ingest says.)
	paceAge = 10 * time.Minute
	// paceMost is how long a batch is held back at most. What is appended without being held
	// back, as of other sources or refetched, may keep the fastest subscription supplied for
	// ever; and the answers to refetches wait behind the batch.
	paceMost = 10 * time.Second
	// holdShare is the part of the window that batches may take up which are held back.
	holdShare = 4
)

// Ahead says whether a batch is to be held back with Pace: of a partition that is ahead itself.
// Of one of which hardly anything waits for some subscription it is not, as long as there is
// room: a quiet topic does not wait behind a busy one.
func (q *Queue) Ahead(id Partition, bytes, timestampMs int64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.closed == nil && q.isFresh(timestampMs) && q.aheadLocked() &&
		!(below(q.memoryBytes, q.windowLocked(), lowWatermarkPercent) && q.quietLocked(id, bytes))
}

// quietLocked says whether with a batch of so many bytes some subscription has no more of the
// partition waiting than is leased in one turn, which is little of what is enough, or nothing
// else.
func (q *Queue) quietLocked(id Partition, bytes int64) bool {
	p := q.partitions[id]
	if p == nil {
		return true
	}
	const most = 64 // looked at
	little := min(turnBytes, q.cfg.MemoryBytes/paceShare/8)
	for _, g := range p.progress {
		waiting, n := int64(0), 0
		for pc := range p.pieces.from(p.pieces.over(g.cursor)) {
			if waiting += int64(pc.size); waiting+bytes > little || n == most {
				n = most
				break
			}
			n++
		}
		if n == 0 || n < most {
			return true
		}
	}
	return false
}

// TryHold holds back so many bytes of a batch, until LetGo, unless that would be more than may be.
// They count in the window.
func (q *Queue) TryHold(bytes int64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed != nil || q.heldBytes > 0 && q.heldBytes+bytes > q.cfg.MemoryBytes/holdShare {
		return false
	}
	q.heldBytes += bytes
	return true
}

// Hold is TryHold for messages without a payload: it waits until there is room, of which they
// have twice as much.
func (q *Queue) Hold(ctx context.Context, bytes int64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.closed == nil && q.heldBytes > 0 && q.heldBytes+bytes > 2*(q.cfg.MemoryBytes/holdShare) {
		if err := q.awaitRoomLocked(ctx, nil); err != nil {
			return err
		}
	}
	if q.closed != nil {
		return q.closed
	}
	q.heldBytes += bytes
	return nil
}

// LetGo ends Hold.
func (q *Queue) LetGo(bytes int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.heldBytes -= bytes
	q.roomLocked()
}

// isFresh says whether a record that was produced then may wait.
func (q *Queue) isFresh(timestampMs int64) bool {
	return q.cfg.Now().Sub(time.UnixMilli(timestampMs)).Abs() < paceAge
}

// Pace waits before a batch is appended, with its newest record produced at timestampMs, while no
// session could take more, every subscription has enough to lease, and the fastest will have
// leased it soon: what ingest reads faster than that would go to disk and come back, for nothing.
// Nobody is slowed down by it. Soon after the fastest stops, and for what is not fresh, Pace
// waits no more: then the backlog is the buffer's. It never waits longer than paceMost.
func (q *Queue) Pace(ctx context.Context, timestampMs int64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	began := q.clock()
	for q.closed == nil && q.clock()-began < int64(paceMost) && q.isFresh(timestampMs) && q.aheadLocked() {
		q.paced = true
		if err := q.awaitRoomLocked(ctx, nil); err != nil {
			return err
		}
	}
	return q.closed
}

// aheadLocked says whether ingest is ahead of all subscriptions, and of one only by what that
// will have leased soon.
func (q *Queue) aheadLocked() bool {
	ahead := false
	for _, sub := range q.subs {
		if len(sub.progress) == 0 {
			continue // nothing is for it
		}
		bytes, records := sub.pendingBytes-sub.leasedBytes-sub.keptBytes, sub.pendingRecords-sub.leasedRecords-sub.keptRecords
		if bytes < max(q.cfg.MemoryBytes/paceShare, 1) && records < max(q.cfg.MemoryRecords/paceShare, 1) {
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

// awaitRoomLocked lets go of the lock until roomLocked is called, others is closed or the queue
// is, or for ctx's error.
func (q *Queue) awaitRoomLocked(ctx context.Context, others <-chan struct{}) error {
	room := q.room
	q.mu.Unlock()
	defer q.mu.Lock()
	select {
	case <-room:
	case <-others:
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
