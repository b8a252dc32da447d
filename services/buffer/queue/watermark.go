package queue

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"
	"time"
)

// How far the time of records has come, for those who do something once a time is over. Of it
// only is stored what sources read, since one that is away must hold time up, and what sink state
// holds back. After a restart it is told anew where partitions are at their end.

const (
	// passStep is how close the noted passes of a partition are to each other.
	passStep = time.Second
	// maxPasses is how many are noted of a partition.
	maxPasses = 256
	// watermarkInterval is how often it is told that time went on.
	watermarkInterval = time.Second
	// listPatience is how long after Open partitions count that no source has ever said it reads:
	// it may be about to say it.
	listPatience = time.Minute
)

// Watermark is a time that all partitions have passed, in ms since the Unix epoch. Complete is
// below what entries of sink state hold back.
type Watermark struct{ Passed, Complete int64 }

// pass says that who has settled all before an offset has passed a time, in ms since the Unix
// epoch.
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

// until is the time passed by who has settled all before an offset; 0 when that is not known. What
// was noted as later than now was noted before the clock was set back.
func (ps passes) until(offset, now int64) int64 {
	if i := sort.Search(len(ps), func(i int) bool { return ps[i].next > offset || ps[i].ms > now }); i > 0 {
		return ps[i-1].ms
	}
	return 0
}

// forget forgets what was noted as later than now.
func (ps *passes) forget(now int64) {
	list := *ps
	for len(list) > 0 && list[len(list)-1].ms > now {
		list = list[:len(list)-1]
	}
	*ps = list
}

// passLocked notes how far time has come before an offset. The time of a record may be a wrong
// one, but not one to come.
func (q *Queue) passLocked(p *partition, next, ms int64) {
	now := q.cfg.Now().UnixMilli()
	p.passes.forget(now)
	p.passes.add(next, min(ms, now))
}

// CaughtUp notes that a partition ended at an offset at a time, in ms since the Unix epoch. Of
// partitions without records it notes only so many.
func (q *Queue) CaughtUp(id Partition, offset, ms int64) error {
	if err := id.validate(); err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if p := q.partitions[id]; p != nil {
		q.passLocked(p, offset, ms)
		return nil
	}
	if newest := q.newest[id.topic()]; id.Incarnation > newest { // created again, and without records so far
		id.Incarnation = newest
		if p := q.partitions[id]; p != nil {
			q.passLocked(p, p.appended, ms)
		}
		return nil
	}
	if _, known := q.empty[id]; !known {
		if err := q.takesPartitionLocked(id); err != nil {
			return err
		}
	}
	now := q.cfg.Now().UnixMilli()
	if q.empty[id] > now {
		delete(q.empty, id)
	}
	q.empty[id] = max(q.empty[id], min(ms, now))
	return nil
}

// reads names a source of the configuration.
type reads struct{ cluster, source string }

// readsChange is all that a source reads: topics with their numbers of partitions. Without any,
// it is forgotten.
type readsChange struct {
	Cluster string           `json:"c"`
	Source  string           `json:"s"`
	Topics  map[string]int32 `json:"t"`

	own map[string]int32 // as in listedTopics, when it is known
}

// ListTopics notes all topics that a source reads, with their numbers of partitions. It counts at
// once, and is journaled.
func (q *Queue) ListTopics(cluster, source string, topics map[string]int32) error {
	if len(source) > MaxNameBytes {
		return fmt.Errorf("%w source %.100q…: its name has %d bytes, at most %d", ErrInvalid, source, len(source), MaxNameBytes)
	}
	for topic := range topics {
		if err := (Partition{Cluster: cluster, Topic: topic}).validate(); err != nil {
			return err
		}
	}
	own := q.ownOf(cluster, topics)
	q.mu.Lock()
	defer q.mu.Unlock()
	r := reads{cluster, source}
	before, known := q.listed[r]
	if q.closed != nil || maps.Equal(before.partitions, topics) {
		return nil
	}
	all := len(topics) - len(before.partitions)
	for _, listed := range q.listed {
		all += len(listed.partitions)
	}
	if all > maxListedTopics || len(topics) > 0 && !known && len(q.listed) >= maxSources {
		return fmt.Errorf("%w: sources of the queue read %d topics, at most %d of %d sources", ErrTooMany, all, maxListedTopics, maxSources)
	}
	c := &readsChange{cluster, source, topics, own}
	q.listLocked(c)
	q.enqueueLocked(&change{Reads: c})
	return nil
}

// ForgetSource has a source that nobody reads any more no longer hold time up, and returns when
// that is durable. It is refused while an ingest reads it.
func (q *Queue) ForgetSource(ctx context.Context, source string) error {
	for {
		more := false
		err := q.manage(ctx, func() (*change, error) {
			for w := range q.watchers {
				if w.sources[source] {
					return nil, fmt.Errorf("%w: ingest %q is connected and reads source %q, which must hold up the time of records; take it out of the file and restart the ingest first",
						ErrInUse, w.client, source)
				}
			}
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
	r := reads{c.Cluster, c.Source}
	before := q.listed[r].partitions
	if len(c.Topics) == 0 {
		delete(q.listed, r)
	} else {
		if c.own == nil { // recovered: nobody waits for the lock yet
			c.own = q.ownOf(c.Cluster, c.Topics)
		}
		q.listed[r] = listedTopics{c.Topics, c.own}
	}
	q.forgetEmptyLocked(c.Cluster, before)
}

// forgetEmptyLocked forgets of partitions without records when they were at their end, of those
// topics that no source reads any more: that says nothing about any time then, and there is a
// bound for how many are known.
func (q *Queue) forgetEmptyLocked(cluster string, before map[string]int32) {
	if len(q.empty) == 0 {
		return
	}
	gone := maps.Clone(before)
	for r, listed := range q.listed {
		few, many := gone, listed.partitions
		if len(few) > len(many) {
			few, many = many, few
		}
		for topic := range few {
			if _, in := many[topic]; in && r.cluster == cluster {
				delete(gone, topic)
			}
		}
	}
	if len(gone) == 0 {
		return
	}
	for id := range q.empty {
		if _, is := gone[id.Topic]; is && id.Cluster == cluster {
			delete(q.empty, id)
		}
	}
}

// topicTime is how far time has come in those partitions of a topic that a source reads and of
// which nothing was appended.
type topicTime struct {
	partitions int32 // as many as sources say there are
	own        int32 // those of them that are this shard's
	known      int32 // those of own of which something was heard
	passed     int64 // by those that are empty
}

const noTime = math.MaxInt64

// topicTimes has the topics that sources read, by cluster and topic.
type topicTimes map[Partition]*topicTime

// listed is the topic of a partition that a source reads, or nil.
func (t topicTimes) listed(id Partition, newest map[Partition]uint32) *topicTime {
	topic := t[Partition{Cluster: id.Cluster, Topic: id.Topic}]
	if topic == nil || id.Number >= topic.partitions || id.Incarnation != newest[id.topic()] {
		return nil
	}
	return topic
}

// topicTimesLocked looks at all topics that sources read. Its cost follows what was heard of, and
// not the numbers of partitions that sources claim.
func (q *Queue) topicTimesLocked() topicTimes {
	topics, now := make(topicTimes), q.cfg.Now().UnixMilli()
	for r, listed := range q.listed {
		for name, n := range listed.partitions {
			at := Partition{Cluster: r.cluster, Topic: name}
			t := topics[at]
			if t == nil {
				t = &topicTime{passed: noTime}
				topics[at] = t
			}
			if n > t.partitions {
				t.partitions, t.own = n, listed.ownPartitions(name)
			}
		}
	}
	for _, p := range q.sorted {
		t := topics.listed(p.id, q.newest)
		if p.listed = t != nil; p.listed {
			t.known++
		}
	}
	for id, ms := range q.empty {
		if t := topics.listed(id, q.newest); t != nil && q.partitions[id] == nil && ms <= now {
			t.known++
			t.passed = min(t.passed, ms)
		}
	}
	return topics
}

// watermarkLocked looks at all partitions that the subscription wants: those that sources read,
// and others where something is pending. A shard that has none of those that are read has passed
// all time so far.
func (q *Queue) watermarkLocked(sub *subscription, topics topicTimes) Watermark {
	passed := int64(noTime)
	elsewhere := false // topics are read of which all partitions are other shards'
	for at, t := range topics {
		if sub.wants(at.Topic) {
			if passed = min(passed, t.passed); t.known < t.own {
				return Watermark{} // nothing was ever heard of some
			}
			elsewhere = elsewhere || t.partitions > 0 && t.own == 0
		}
	}
	patient, now := q.clock() < int64(listPatience), q.cfg.Now().UnixMilli()
	for _, g := range sub.progress {
		if g.unwanted && g.settled.Floor >= g.until {
			continue
		}
		p := g.part
		over := g.settled.Floor >= p.appended && (!patient || q.supersededLocked(p))
		if !over || p.listed {
			if passed = min(passed, p.passes.until(g.settled.Floor, now)); passed == 0 {
				break
			}
		}
	}
	if passed == noTime && elsewhere {
		passed = q.cfg.Now().UnixMilli()
	}
	if passed == noTime || passed == 0 {
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

// tellWatermarks tells the sessions that want to know how far time has come. It lets go of the
// lock between subscriptions.
func (q *Queue) tellWatermarks() {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.clock()
	if now-q.watermarkTold < int64(watermarkInterval) {
		return
	}
	q.watermarkTold = now
	const step = time.Minute // no clock that is kept right is ahead by as much
	ahead := q.cfg.Now().Add(step).UnixMilli()
	var topics topicTimes
	for _, sub := range slices.Clone(q.subs) {
		if !slices.ContainsFunc(sub.sessions, func(s *Session) bool { return s.watermarks }) {
			continue
		}
		if topics == nil {
			topics = q.topicTimesLocked()
		} else {
			q.mu.Unlock()
			q.mu.Lock()
		}
		w := q.watermarkLocked(sub, topics)
		for _, s := range sub.sessions {
			if s.told.Passed > ahead { // the clock was set back
				s.told = Watermark{}
			}
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
