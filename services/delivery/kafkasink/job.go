package kafkasink

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"

	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// job is a run of leases of one source partition on their way to Kafka. One goroutine at a time
// has it.
//
// Its records first wait at their target topic; once the topic's partitions are known they go to
// groups, one for each target partition, from which batches are taken in order. Records are named
// by their index in records.
type job struct {
	source  sourceKey
	session delivery.Session
	loops   *loops // of the session
	leases  []*delivery.Lease
	dropped []bool // by lease: revoked
	dead    [][]delivery.DeadLetter

	records []record
	headers []recordbatch.Header // those of all records
	topics  []target
	byName  map[string]int
	groups  []group
	index   map[place]int // of groups

	// With exactly_once.
	producer *producer
	rejected map[int64]string // why, by offset: found out in an attempt before
	covered  []int64          // by lease: the offset up to which the transaction goes
	partial  bool             // something is left for the next transaction

	delivered []span // by a transaction before, as the progress proves
	acked     []span // of that, what is acked already
	crowded   bool   // the progress was too long for the last transaction

	allowLoop bool
	failing   atomic.Bool // the last attempt failed

	loaded  bool
	name    []byte // scratch
	numbers []byte // the text of numbers in headers
}

// target is a target topic.
type target struct {
	name    string
	id      [16]byte // of the topic when its records were spread; zero: unknown
	waiting []int32  // records without a partition yet
	groups  []int    // indexes in job.groups
}

// place is a partition of a target.
type place struct {
	target    int
	partition int32
}

// group is what goes to one target partition.
type group struct {
	target    int
	partition int32
	records   []int32
	produced  int   // so many of records are done
	limit     int   // at most so many in the next batch; 0: no limit
	leader    int32 // of this attempt
	sent      int   // in the request under way: records,
	sentBytes int   // and bytes of them before compression
}

func newJob() *job { return &job{byName: make(map[string]int), index: make(map[place]int)} }

// reject dead-letters a record that the broker refused.
func (j *job) reject(i int, reason string) {
	j.deadLetter(i, reason)
	if j.producer != nil {
		if j.rejected == nil {
			j.rejected = make(map[int64]string)
		}
		j.rejected[j.records[i].offset] = reason
	}
}

// reset makes the job empty, keeping its memory unless it is much.
func (j *job) reset() {
	if cap(j.records) > 4*maxJobRecords || len(j.topics) > 1000 || len(j.groups) > 1000 {
		j.records, j.headers, j.topics, j.groups = nil, nil, nil, nil
		j.byName, j.index = make(map[string]int), make(map[place]int)
	}
	clear(j.leases)
	j.leases, j.session, j.loops, j.producer, j.rejected, j.acked, j.crowded = j.leases[:0], nil, nil, nil, nil, nil, false
	j.unload()
}

// unload forgets the leases' records, and all that was done with them.
func (j *job) unload() {
	clear(j.records)
	clear(j.headers)
	clear(j.byName)
	clear(j.index)
	clear(j.dead)
	j.numbers = j.numbers[:0]
	j.dropped, j.dead, j.covered, j.partial, j.delivered = j.dropped[:0], j.dead[:0], j.covered[:0], false, j.delivered[:0]
	j.records, j.headers, j.topics, j.groups = j.records[:0], j.headers[:0], j.topics[:0], j.groups[:0]
	j.loaded = false
}

// errEnough ends the reading of a lease's records.
var errEnough = errors.New("enough for one transaction")

// load reads the leases' records: the first, and then at most so many bytes; 0 is no limit. Marks
// are those that target topics have now, so that it leaves out what was delivered to them in
// transactions before.
func (j *job) load(t template, perRecord, provenance bool, limit int, marks map[string]string) {
	j.loaded = true
	left, again := limit, true // again: the record before was not delivered before
	origin := j.provenance(provenance)
	for i, l := range j.leases {
		j.dropped = append(j.dropped, false)
		j.dead = append(j.dead, nil)
		j.covered = append(j.covered, l.Next)
		again = true
		from := l.First // after what was delivered before
		start := len(j.records)
		if j.partial {
			j.covered[i] = l.First
			continue
		}
		err := l.Records(func(offset int64, r *recordbatch.Record) error {
			if j.producer != nil {
				if contains(j.acked, offset) {
					from = offset + 1
					return nil
				}
				if j.producer.progress.has(offset) && j.proves(t, r, marks) {
					j.deliver(offset, again)
					again, from = false, offset+1
					return nil
				}
				again = true
				if reason, rejected := j.rejected[offset]; rejected {
					j.dead[i] = append(j.dead[i], delivery.DeadLetter{Offset: offset, Reason: reason})
					return nil
				}
			}
			if limit > 0 {
				if left -= r.Size(); left < 0 && len(j.records) > 0 {
					j.covered[i], j.partial = offset, true
					return errEnough
				}
			}
			firstHeader := len(j.headers)
			if provenance && !j.allowLoop && hopsOf(r.Headers) >= maxHops {
				j.dead[i] = append(j.dead[i], delivery.DeadLetter{Offset: offset, Reason: roundReason})
				return nil
			}
			j.headers = append(j.headers, r.Headers...)
			if provenance {
				j.headers = append(j.headers, origin...)
				j.headers = append(j.headers, recordbatch.Header{Name: offsetHeader, Value: j.number(offset)})
			}
			j.records = append(j.records, record{
				offset: offset, timestamp: r.TimestampMs, key: r.Key, value: r.Value,
				headers: j.headers[firstHeader:len(j.headers):len(j.headers)], lease: int32(i),
			})
			return nil
		})
		if err != nil && !j.partial { // only a malformed payload
			j.records = j.records[:start]
			j.dead[i] = []delivery.DeadLetter{{Offset: from, Next: l.Next, Reason: err.Error()}}
			continue
		}
		j.assign(t, perRecord, start)
	}
}

// proves says whether the progress is about the topic that a record's target is now.
func (j *job) proves(t template, r *recordbatch.Record, marks map[string]string) bool {
	name, problem := t.append(j.name[:0], j.source.topic, r.Headers)
	j.name = name
	mark, known := marks[string(name)]
	return problem == "" && known && j.producer.progress.targets[mark]
}

// deliver notes that an offset was delivered before; begin says that the one before it was not.
func (j *job) deliver(offset int64, begin bool) {
	if n := len(j.delivered); !begin && n > 0 {
		j.delivered[n-1].next = offset + 1
		return
	}
	j.delivered = append(j.delivered, span{offset, offset + 1})
}

// The headers that tell where a record comes from. Numbers are decimal text.
var (
	clusterHeader   = []byte("spillway.source.cluster")
	topicHeader     = []byte("spillway.source.topic")
	partitionHeader = []byte("spillway.source.partition")
	offsetHeader    = []byte("spillway.source.offset")
)

// provenance are the headers that all records of the job share.
func (j *job) provenance(wanted bool) []recordbatch.Header {
	if !wanted {
		return nil
	}
	return []recordbatch.Header{
		{Name: clusterHeader, Value: []byte(j.source.cluster)}, {Name: topicHeader, Value: []byte(j.source.topic)},
		{Name: partitionHeader, Value: j.number(int64(j.source.partition))}}
}

func (j *job) number(n int64) []byte {
	start := len(j.numbers)
	j.numbers = strconv.AppendInt(j.numbers, n, 10)
	return j.numbers[start:len(j.numbers):len(j.numbers)]
}

// assign puts the records from start on, of one lease, at their target topics.
func (j *job) assign(t template, perRecord bool, start int) {
	var current int
	for i := start; i < len(j.records); i++ {
		if perRecord || i == start {
			name, problem := t.append(j.name[:0], j.source.topic, j.records[i].headers)
			j.name = name
			if problem != "" {
				j.deadLetter(i, problem)
				if !perRecord {
					start++ // the next one is told the same
				}
				continue
			}
			var known bool
			if current, known = j.byName[string(name)]; !known {
				current = j.addTarget(string(name))
			}
		}
		w := &j.topics[current].waiting
		*w = append(*w, int32(i))
	}
}

// addTarget and addGroup use again the slices that reset left behind.

func (j *job) addTarget(name string) int {
	n := len(j.topics)
	if n < cap(j.topics) {
		j.topics = j.topics[:n+1]
	} else {
		j.topics = append(j.topics, target{})
	}
	t := &j.topics[n]
	*t = target{name: name, waiting: t.waiting[:0], groups: t.groups[:0]}
	j.byName[name] = n
	return n
}

func (j *job) addGroup(target int, partition int32) int {
	n := len(j.groups)
	if n < cap(j.groups) {
		j.groups = j.groups[:n+1]
	} else {
		j.groups = append(j.groups, group{})
	}
	g := &j.groups[n]
	*g = group{target: target, partition: partition, records: g.records[:0]}
	return n
}

// spread gives the waiting records of a topic their partitions.
func (j *job) spread(target int, count int, p *partitioner, turn uint32) {
	t := &j.topics[target]
	same := uint32(j.source.partition) % uint32(count)
	if p.by == roundRobin {
		same = turn % uint32(count)
	}
	last := -1
	for _, i := range t.waiting {
		partition := int32(same)
		if hashed := p.hashed(&j.records[i]); hashed != nil {
			partition = keyPartition(hashed, count)
		}
		if last < 0 || j.groups[last].partition != partition {
			last = j.groupOf(target, partition)
		}
		j.groups[last].records = append(j.groups[last].records, i)
	}
	t.waiting = t.waiting[:0]
}

// groupOf returns the index of a partition's group, which is made when there is none.
func (j *job) groupOf(target int, partition int32) int {
	at := place{target, partition}
	g, known := j.index[at]
	if !known {
		g = j.addGroup(target, partition)
		j.index[at] = g
		j.topics[target].groups = append(j.topics[target].groups, g)
	}
	return g
}

// gather takes back the choice of partitions for all that is not produced yet, because the
// topic's are others now.
func (j *job) gather(target int) {
	t := &j.topics[target]
	for _, g := range t.groups {
		group := &j.groups[g]
		t.waiting = append(t.waiting, group.records[group.produced:]...)
		group.records, group.sent = group.records[:group.produced], 0
		delete(j.index, place{target, group.partition})
	}
	t.groups = t.groups[:0]
	slices.Sort(t.waiting) // their order at the source
}

// deadLetter notes that a record can never be delivered. It is not to be produced after that.
func (j *job) deadLetter(i int, reason string) {
	r := &j.records[i]
	j.dead[r.lease] = append(j.dead[r.lease], delivery.DeadLetter{Offset: r.offset, Reason: reason})
}

// deadLetterTarget does so with all that is left for a topic.
func (j *job) deadLetterTarget(target int, reason string) {
	t := &j.topics[target]
	for _, i := range t.waiting {
		j.deadLetter(int(i), reason)
	}
	t.waiting = t.waiting[:0]
	for _, g := range t.groups {
		group := &j.groups[g]
		for _, i := range group.records[group.produced:] {
			j.deadLetter(int(i), reason)
		}
		group.records, group.sent = group.records[:group.produced], 0
	}
}

// dropRevoked forgets the records of leases that the buffer took back.
func (j *job) dropRevoked() {
	news := false
	for i, l := range j.leases {
		if !j.dropped[i] && l.Revoked() {
			j.dropped[i], news = true, true
		}
	}
	if !news {
		return
	}
	for i := range j.topics {
		j.topics[i].waiting = j.held(j.topics[i].waiting)
	}
	for i := range j.groups {
		g := &j.groups[i]
		g.records = g.records[:g.produced+len(j.held(g.records[g.produced:]))]
	}
}

// held keeps the records of leases that are held, in place.
func (j *job) held(records []int32) []int32 {
	kept := records[:0]
	for _, i := range records {
		if !j.dropped[j.records[i].lease] {
			kept = append(kept, i)
		}
	}
	return kept
}

func (g *group) done() bool { return g.produced == len(g.records) }

// done says whether nothing is left to produce.
func (j *job) done() bool {
	for i := range j.topics {
		if len(j.topics[i].waiting) > 0 {
			return false
		}
	}
	for i := range j.groups {
		if !j.groups[i].done() {
			return false
		}
	}
	return true
}

// unfinished appends the names of the topics that something is left to produce to.
func (j *job) unfinished(names []string) []string {
	for i := range j.topics {
		t := &j.topics[i]
		left := len(t.waiting) > 0
		for _, g := range t.groups {
			left = left || !j.groups[g].done()
		}
		if left {
			names = append(names, t.name)
		}
	}
	return names
}

// appendAcked appends the outcome of the leases that are still held.
func (j *job) appendAcked(acked []delivery.AckedLease) []delivery.AckedLease {
	for i, l := range j.leases {
		if !l.Revoked() { // one that was dropped is
			acked = append(acked, delivery.AckedLease{Lease: l, DeadLetters: runs(j.dead[i])})
		}
	}
	return acked
}

// runs joins dead letters that follow each other for the same reason, in place.
func runs(dead []delivery.DeadLetter) []delivery.DeadLetter {
	if len(dead) < 2 {
		return dead
	}
	slices.SortFunc(dead, func(a, b delivery.DeadLetter) int { return cmp.Compare(a.Offset, b.Offset) })
	joined := dead[:1]
	for _, d := range dead[1:] {
		if last := &joined[len(joined)-1]; nextOf(last) == d.Offset && last.Reason == d.Reason {
			last.Next = nextOf(&d)
			continue
		}
		joined = append(joined, d)
	}
	return joined
}

// nextOf is the offset after a dead letter's.
func nextOf(d *delivery.DeadLetter) int64 { return max(d.Next, d.Offset+1) }

// partName names a group's target partition in messages.
func (j *job) partName(g *group) string {
	return fmt.Sprintf("%s/%d", j.topics[g.target].name, g.partition)
}
