package queue

import (
	"context"
	"fmt"
	"slices"
)

// Watcher hears of safe offsets that rise, of offsets to be refetched, and of times to be looked
// up. It stands for an ingest.
type Watcher struct {
	q          *Queue
	cluster    string
	client     string
	partitions map[Partition]bool
	risen      map[Partition]int64
	refetches  []Refetch
	finds      []FindOffset
	sources    map[string]bool // that it reads
	paused     []string        // to be told; nil: nothing has changed
	asked      uint64          // the last Refetch it was sent
	signal     chan struct{}   // has room for one: there is something to hear, or the queue is closed
}

// Watch returns a Watcher of no partitions, for the ingest client of a Kafka cluster. Close it.
func (q *Queue) Watch(cluster, client string) *Watcher {
	w := &Watcher{q: q, cluster: cluster, client: client, partitions: make(map[Partition]bool), risen: make(map[Partition]int64), sources: make(map[string]bool), signal: make(chan struct{}, 1)}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.watchers[w] = struct{}{}
	q.refetchLocked()
	return w
}

// Add begins to watch a partition, and tells its safe offset once; Remove ends it.
func (w *Watcher) Add(id Partition) error {
	w.q.mu.Lock()
	defer w.q.mu.Unlock()
	if !w.partitions[id] {
		if len(w.partitions) >= MaxPartitions {
			return fmt.Errorf("%w: one stream has %d partitions, and takes no more", ErrTooMany, len(w.partitions))
		}
		w.partitions[id] = true
		w.q.watching[id] = append(w.q.watching[id], w)
	}
	if p := w.q.partitions[id]; p != nil {
		w.tellLocked(p)
	}
	return nil
}

// ListTopics notes all topics that a source of the ingest reads, with their numbers of
// partitions. It counts at once, and is journaled. As long as the ingest is connected and reads
// any, the source cannot be forgotten.
func (w *Watcher) ListTopics(source string, topics map[string]int32) error {
	if err := w.q.ListTopics(w.cluster, source, topics); err != nil {
		return err
	}
	w.q.mu.Lock()
	defer w.q.mu.Unlock()
	if len(topics) > 0 {
		w.sources[source] = true
	} else {
		delete(w.sources, source)
	}
	return nil
}

// Remove ends watching a partition.
func (w *Watcher) Remove(id Partition) {
	w.q.mu.Lock()
	defer w.q.mu.Unlock()
	w.removeLocked(id)
}

func (w *Watcher) removeLocked(id Partition) {
	if !w.partitions[id] {
		return
	}
	delete(w.partitions, id)
	delete(w.risen, id)
	left := slices.DeleteFunc(w.q.watching[id], func(x *Watcher) bool { return x == w })
	if w.q.watching[id] = left; len(left) == 0 {
		delete(w.q.watching, id)
		if w.q.unwatched.IsZero() {
			w.q.unwatched = w.q.cfg.Now()
		}
	}
}

// Close ends watching. What it was asked to refetch others are asked for.
func (w *Watcher) Close() {
	q := w.q
	q.hold(func() bool {
		delete(q.watchers, w)
		for _, r := range q.refetches {
			if r.watcher == w {
				q.endRefetchLocked(q.partitions[r.Partition])
			}
		}
		q.refetchLocked()
		return false
	})
	for q.hold(func() bool {
		left := q.holdItems
		for id := range w.partitions {
			if w.removeLocked(id); left == 0 {
				break
			}
			left--
		}
		return len(w.partitions) > 0
	}) {
	}
}

// News is what a Watcher hears: the newest safe offset of each partition where it rose, ranges to
// refetch, times to look up, and all sources that are paused when one is paused or resumed.
type News struct {
	Risen     map[Partition]int64
	Refetches []Refetch
	Finds     []FindOffset
	Paused    []string // nil: as before
}

// Next waits for something to hear.
func (w *Watcher) Next(ctx context.Context) (News, error) {
	for {
		w.q.mu.Lock()
		closed := w.q.closed
		if len(w.risen)+len(w.refetches)+len(w.finds) > 0 || w.paused != nil {
			n := News{w.risen, w.refetches, w.finds, w.paused}
			w.risen, w.refetches, w.finds, w.paused = make(map[Partition]int64), nil, nil, nil
			w.q.mu.Unlock()
			return n, nil
		}
		w.q.mu.Unlock()
		if closed != nil {
			return News{}, closed
		}
		select {
		case <-w.signal:
		case <-ctx.Done():
			return News{}, ctx.Err()
		}
	}
}

func (w *Watcher) tellLocked(p *partition) {
	w.risen[p.id] = p.safe
	w.signalLocked()
}

func (w *Watcher) signalLocked() {
	select {
	case w.signal <- struct{}{}:
	default:
	}
}
