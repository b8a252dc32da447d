package kafkasink

import (
	"fmt"
	"strconv"

	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// job is a run of leases of one source partition on their way to Kafka. One goroutine at a time has it.
//
// Its records first wait at their target topic; once the topic's partitions are known they go to
// groups, one for each target partition, from which batches are taken in order. Records are named by
// their index in records.
type job struct {
	source  sourceKey
	session delivery.Session
	leases  []*delivery.Lease
	dropped []bool // by lease: revoked
	dead    [][]delivery.DeadLetter

	records []record
	headers []recordbatch.Header // those of all records
	topics  []target
	byName  map[string]int
	groups  []group

	// With exactly_once.
	producer *producer
	rejected map[int64]string // why, by offset: found out in an attempt before

	loaded  bool
	name    []byte // scratch
	numbers []byte // the text of numbers in headers
}

// target is a target topic.
type target struct {
	name    string
	waiting []int32 // records without a partition yet
	groups  []int32 // by partition: index in job.groups, -1 when there is none yet
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

func newJob() *job { return &job{byName: make(map[string]int)} }

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
		*j = *newJob()
		return
	}
	clear(j.leases)
	j.leases, j.session, j.producer, j.rejected = j.leases[:0], nil, nil, nil
	j.unload()
}

// unload forgets the leases' records, and all that was done with them.
func (j *job) unload() {
	clear(j.records)
	clear(j.headers)
	clear(j.byName)
	clear(j.dead)
	j.numbers = j.numbers[:0]
	j.dropped, j.dead = j.dropped[:0], j.dead[:0]
	j.records, j.headers, j.topics, j.groups = j.records[:0], j.headers[:0], j.topics[:0], j.groups[:0]
	j.loaded = false
}

// load reads the leases' records.
func (j *job) load(t template, perRecord, provenance bool) {
	j.loaded = true
	origin := j.provenance(provenance)
	for i, l := range j.leases {
		j.dropped = append(j.dropped, false)
		j.dead = append(j.dead, nil)
		start := len(j.records)
		err := l.Records(func(offset int64, r *recordbatch.Record) error {
			if j.producer != nil {
				if j.producer.progress.has(offset) {
					return nil
				}
				if reason, rejected := j.rejected[offset]; rejected {
					j.dead[i] = append(j.dead[i], delivery.DeadLetter{Offset: offset, Reason: reason})
					return nil
				}
			}
			firstHeader := len(j.headers)
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
		if err != nil { // only a malformed payload
			j.records = j.records[:start]
			for offset := l.First; offset < l.Next; offset++ {
				j.dead[i] = append(j.dead[i], delivery.DeadLetter{Offset: offset, Reason: err.Error()})
			}
			continue
		}
		j.assign(t, perRecord, start)
	}
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

// spread gives the waiting records of a topic their partitions. The choice is made once.
func (j *job) spread(target int, count int, p *partitioner, turn uint32) {
	t := &j.topics[target]
	for len(t.groups) < count {
		t.groups = append(t.groups, -1)
	}
	same := uint32(j.source.partition) % uint32(count)
	if p.by == roundRobin {
		same = turn % uint32(count)
	}
	for _, i := range t.waiting {
		partition := int32(same)
		if hashed := p.hashed(&j.records[i]); hashed != nil {
			partition = keyPartition(hashed, count)
		}
		g := int(t.groups[partition])
		if g < 0 {
			g = j.addGroup(target, partition)
			t.groups[partition] = int32(g)
		}
		j.groups[g].records = append(j.groups[g].records, i)
	}
	t.waiting = t.waiting[:0]
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
		if g < 0 {
			continue
		}
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
			left = left || g >= 0 && !j.groups[g].done()
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
			acked = append(acked, delivery.AckedLease{Lease: l, DeadLetters: j.dead[i]})
		}
	}
	return acked
}

// partName names a group's target partition in messages.
func (j *job) partName(g *group) string {
	return fmt.Sprintf("%s/%d", j.topics[g.target].name, g.partition)
}
