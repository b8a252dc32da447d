package queue

import (
	"context"
	"fmt"
)

// FindOffset asks an ingest for the first offset of a partition whose record is not older than a
// time.
type FindOffset struct {
	ID          uint64
	Partition   Partition
	TimestampMs int64 // since the Unix epoch
}

// FoundOffset is the answer: the offset, or why there is none.
type FoundOffset struct {
	Offset int64
	Gone   bool   // Kafka has no such partition
	Failed string // the ingest cannot find out
}

// FindOffset asks one of the cluster's ingests, and waits for its answer until ctx ends.
// ErrNoIngest means that none is connected, ErrGone that Kafka does not have the partition.
func (q *Queue) FindOffset(ctx context.Context, id Partition, timestampMs int64) (int64, error) {
	q.mu.Lock()
	w := q.ingestLocked(id.Cluster)
	if w == nil {
		q.mu.Unlock()
		return 0, fmt.Errorf("%w: of cluster %s, to look up a time in %s/%d", ErrNoIngest, id.Cluster, id.Topic, id.Number)
	}
	q.nextRefetch++
	find := FindOffset{q.nextRefetch, id, timestampMs}
	w.asked = find.ID
	answer := make(chan FoundOffset, 1)
	q.finds[find.ID] = answer
	w.finds = append(w.finds, find)
	w.signalLocked()
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		delete(q.finds, find.ID)
	}()
	select {
	case found := <-answer:
		switch {
		case found.Gone:
			return 0, fmt.Errorf("look up a time in %s/%d: %w", id.Topic, id.Number, ErrGone)
		case found.Failed != "":
			return 0, fmt.Errorf("look up a time in %s/%d: %w: %s", id.Topic, id.Number, ErrNoAnswer, CutReason(found.Failed))
		}
		return found.Offset, nil
	case <-q.done:
		return 0, ErrClosed
	case <-ctx.Done():
		return 0, fmt.Errorf("look up a time in %s/%d: the ingest does not answer: %w", id.Topic, id.Number, ctx.Err())
	}
}

// FoundOffset takes the answer to a FindOffset. One that nobody waits for any more is ignored.
func (q *Queue) FoundOffset(id uint64, found FoundOffset) error {
	if found.Offset < 0 {
		return fmt.Errorf("%w offset %d", ErrInvalid, found.Offset)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case q.finds[id] <- found:
	default:
	}
	return nil
}

// ingestLocked is the ingest of a cluster that was asked for something least recently, or nil.
func (q *Queue) ingestLocked(cluster string) *Watcher {
	var least *Watcher
	for w := range q.watchers {
		if w.cluster == cluster && (least == nil || w.asked < least.asked) {
			least = w
		}
	}
	return least
}
