package queue

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
)

// How far the time of records has come, for those who do something once a time is over. Of it only is stored what sources
// read, since one that is away must hold time up, and what sink state holds back. After a restart it is told anew
// where partitions are at their end.

const (
	// passStep is how close the noted passes of a partition are to each other.
	passStep = time.Second
	// maxPasses is how many are noted of a partition.
	maxPasses = 256
	// watermarkInterval is how often it is told that time went on.
	watermarkInterval = time.Second
	// listPatience is how long after Open partitions count that no source has ever said it reads: it may be about to say it.
	listPatience = time.Minute
)

// Watermark is a time that all partitions have passed, in ms since the Unix epoch. Complete is below what entries of
// sink state hold back.
type Watermark struct{ Passed, Complete int64 }

// pass says that who has settled all before an offset has passed a time, in ms since the Unix epoch.
type pass struct{ next, ms int64 }

// passes are ascending in both.
type passes []pass

// add notes a pass. What it leaves out only makes the others later.
func (ps *passes) add(next, ms int64) {
	list := *ps
	n := len(list)
	switch {
	case n > 0 && (next < list[n-1].next || ms <= list[n-1].ms):
	case n > 0 && next == list[n-1].next, n > 1 && ms-list[n-2].ms < passStep.Milliseconds():
		list[n-1] = pass{next, ms}
	case n == maxPasses:
		kept := list[:0]
		for i, p := range list {
			if i%2 == 1 {
				kept = append(kept, p)
			}
		}
		*ps = append(kept, pass{next, ms})
	default:
		*ps = append(list, pass{next, ms})
	}
}

// until is the time passed by who has settled all before an offset; 0 when that is not known.
func (ps passes) until(offset int64) int64 {
	for i := len(ps) - 1; i >= 0; i-- {
		if ps[i].next <= offset {
			return ps[i].ms
		}
	}
	return 0
}

// passLocked notes how far time has come before an offset. The time of a record may be a wrong one, but not one to come.
func (q *Queue) passLocked(p *partition, next, ms int64) {
	p.passes.add(next, min(ms, q.cfg.Now().UnixMilli()))
}

// CaughtUp notes that a partition ended at an offset at a time, in ms since the Unix epoch.
func (q *Queue) CaughtUp(id Partition, offset, ms int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if p := q.partitions[id]; p != nil {
		q.passLocked(p, offset, ms)
		return
	}
	if newest := q.newest[id.topic()]; id.Incarnation > newest { // created again, and without records so far
		id.Incarnation = newest
		if p := q.partitions[id]; p != nil {
			q.passLocked(p, p.appended, ms)
		}
		return
	}
	q.empty[id] = max(q.empty[id], min(ms, q.cfg.Now().UnixMilli()))
}

// reads names a source of the configuration.
type reads struct{ cluster, source string }

// readsChange is all that a source reads: topics with their numbers of partitions. Without any, it is forgotten.
type readsChange struct {
	Cluster string           `json:"c"`
	Source  string           `json:"s"`
	Topics  map[string]int32 `json:"t"`
}

// ListTopics notes all topics that a source reads, with their numbers of partitions. It counts at once, and is journaled.
func (q *Queue) ListTopics(cluster, source string, topics map[string]int32) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed != nil || maps.Equal(q.listed[reads{cluster, source}], topics) {
		return
	}
	c := &readsChange{cluster, source, topics}
	q.listLocked(c)
	q.enqueueLocked(&change{Reads: c})
}

// ForgetSource has a source that nobody reads any more no longer hold time up, and returns when that is durable.
func (q *Queue) ForgetSource(ctx context.Context, source string) error {
	for {
		more := false
		err := q.manage(ctx, func() (*change, error) {
			var gone []reads
			var known []string
			for r := range q.listed {
				if known = append(known, r.source); r.source == source {
					gone = append(gone, r)
				}
			}
			if len(gone) == 0 {
				slices.Sort(known)
				return nil, fmt.Errorf("%w: %q; ingests have told of %q", ErrNoSource, source, slices.Compact(known))
			}
			more = len(gone) > 1 // of several clusters
			return &change{Reads: &readsChange{Cluster: gone[0].cluster, Source: source}}, nil
		})
		if err != nil || !more {
			return err
		}
	}
}

func (q *Queue) listLocked(c *readsChange) {
	if r := (reads{c.Cluster, c.Source}); len(c.Topics) > 0 {
		q.listed[r] = c.Topics
	} else {
		delete(q.listed, r)
	}
}

// watermarkLocked looks at all partitions that the subscription wants: those that sources read, and others where
// something is pending.
func (q *Queue) watermarkLocked(sub *subscription) Watermark {
	const none = math.MaxInt64
	passed := int64(none)
	listed := make(map[Partition]bool)
	for r, topics := range q.listed {
		for name, partitions := range topics {
			if !sub.wants(name) {
				continue
			}
			for n := range partitions {
				id := Partition{Cluster: r.cluster, Topic: name, Number: n}
				id.Incarnation = q.newest[id]
				listed[id] = true
				if q.partitions[id] == nil {
					passed = min(passed, q.empty[id])
				}
			}
		}
	}
	patient := q.clock() < int64(listPatience)
	for _, g := range sub.progress {
		p := g.part
		if over := g.settled.Floor >= p.appended && (!patient || q.supersededLocked(p)); !over || listed[p.id] {
			passed = min(passed, p.passes.until(g.settled.Floor))
		}
	}
	if passed == none || passed == 0 {
		return Watermark{}
	}
	w := Watermark{Passed: passed, Complete: passed}
	for _, s := range q.sessions {
		if s.sub == sub {
			for _, ms := range s.holds {
				w.Complete = min(w.Complete, ms-1)
			}
		}
	}
	return w
}

// tellWatermarksLocked tells the sessions that want to know how far time has come.
func (q *Queue) tellWatermarksLocked() {
	now := q.clock()
	if now-q.watermarkTold < int64(watermarkInterval) {
		return
	}
	q.watermarkTold = now
	for _, sub := range q.subs {
		if !slices.ContainsFunc(sub.sessions, func(s *Session) bool { return s.watermarks }) {
			continue
		}
		w := q.watermarkLocked(sub)
		for _, s := range sub.sessions {
			if s.watermarks && (w.Passed > s.told.Passed || w.Complete > s.told.Complete) {
				told := Watermark{max(w.Passed, s.told.Passed), max(w.Complete, s.told.Complete)}
				s.told = told
				s.tellLocked(Event{Watermark: &told})
			}
		}
	}
}

// WantWatermarks has the session told, by Events, how far time has come.
func (s *Session) WantWatermarks() {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	s.watermarks = true
}
