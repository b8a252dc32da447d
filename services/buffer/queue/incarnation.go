package queue

import (
	"slices"
	"time"
)

// A topic that is deleted and created again has its old name and offsets that begin anew: another
// incarnation, of which every partition has a ledger of its own. Kafka's clients are not told. An
// ingest finds out by reading again a record whose fingerprint the queue kept.

const (
	// printInterval is how often the newest fingerprint of a partition is journaled. An older one
	// serves as well, as long as Kafka has its record.
	printInterval = 10 * time.Second
	// maxPrints is how many are kept, closer to each other the newer they are: a broker that is
	// elected without having all records cuts off the end of a partition, and they tell how much
	// is still the same.
	maxPrints = 8
)

// Fingerprint tells a record from what another incarnation has at its offset.
type Fingerprint struct {
	Offset      int64  `json:"at"`
	TimestampMs int64  `json:"ts"`
	CRC         uint32 `json:"crc"`
}

// topic is the partition without its incarnation.
func (id Partition) topic() Partition {
	id.Incarnation = 0
	return id
}

// Assigned is where an ingest goes on with a partition.
type Assigned struct {
	Partition Partition
	Known     bool // whether anything of the partition was ever appended; the others are only set then
	Resume    int64
	Safe      int64
	Prints    []Fingerprint // of records that were read, the newest first
}

// Assign tells where to go on with a partition, in its newest incarnation. With recreated, the
// ingest has found that id's own incarnation is gone, and that what Kafka has under the name is
// another: if id's was the newest, the next one begins.
func (q *Queue) Assign(id Partition, recreated bool) (Assigned, error) {
	if err := id.validate(); err != nil {
		return Assigned{}, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed != nil {
		return Assigned{}, q.closed
	}
	gone := id.Incarnation
	id.Incarnation = q.newest[id.topic()]
	if recreated && id.Incarnation == gone && q.partitions[id] != nil {
		id.Incarnation++
		q.spillOldLocked() // of which Kafka has nothing any more
		q.cfg.Log.Warn("topic was created again: its offsets begin anew", "topic", id.Topic, "partition", id.Number, "incarnation", id.Incarnation)
	}
	p := q.partitions[id]
	if p == nil {
		return Assigned{Partition: id}, nil
	}
	return Assigned{Partition: id, Known: true, Resume: p.appended, Safe: p.safe, Prints: p.knownRecords()}, nil
}

// notePrintLocked remembers the newest record that was read, and journals it now and then.
func (q *Queue) notePrintLocked(p *partition, print *Fingerprint) {
	if print == nil || p.print != nil && print.Offset <= p.print.Offset {
		return
	}
	first := len(p.prints) == 0
	p.print = print
	if now := q.clock(); first || now-p.printed >= int64(printInterval) {
		p.printed = now
		q.enqueueLocked(&change{Seen: &seenChange{Partition: p.id, First: p.first, Print: print}})
	}
}

// addPrint keeps a fingerprint that is journaled. Of too many that one goes which leaves the
// smallest gap, in proportion to its distance from the newest.
func (p *partition) addPrint(print *Fingerprint) {
	if p.print == nil || p.print.Offset < print.Offset {
		p.print = print
	}
	if n := len(p.prints); n > 0 && p.prints[n-1].Offset >= print.Offset {
		return
	}
	if p.prints = append(p.prints, *print); len(p.prints) <= maxPrints {
		return
	}
	best, least := 1, 0.0
	for i := 1; i < len(p.prints)-1; i++ {
		before := float64(print.Offset - p.prints[i-1].Offset)
		if gap := (before - float64(print.Offset-p.prints[i+1].Offset)) / before; i == 1 || gap < least {
			best, least = i, gap
		}
	}
	p.prints = slices.Delete(p.prints, best, best+1)
}

// knownRecords is the fingerprints of a partition, the newest first.
func (p *partition) knownRecords() []Fingerprint {
	var all []Fingerprint
	if n := len(p.prints); p.print != nil && (n == 0 || p.prints[n-1].Offset < p.print.Offset) {
		all = append(all, *p.print)
	}
	for _, print := range slices.Backward(p.prints) {
		all = append(all, print)
	}
	return all
}

// supersededLocked says whether Kafka has another incarnation of the partition by now.
func (q *Queue) supersededLocked(p *partition) bool { return p.id.Incarnation < q.newest[p.id.topic()] }

// giveUpLocked settles as lost what subscriptions need of a superseded partition and nobody holds.
func (q *Queue) giveUpLocked(p *partition, left *int) {
	if p.refetch != nil {
		q.endRefetchLocked(p)
	}
	q.deferredLocked(p, left) // holds again what is held for others
	if p.givingUp {
		return
	}
	const reason = "the topic was created again, and Kafka has these records no more"
	c := &change{done: func(q *Queue) {
		p.givingUp = false
		for _, g := range p.progress {
			q.readyLocked(g)
			q.dispatchLocked(g.sub)
		}
	}}
	for _, g := range p.progress {
		for deferred := range g.deferred.All() {
			if len(c.Settle) >= q.holdItems {
				break // the rest follows when this is durable
			}
			for _, r := range p.notHeld(deferred) {
				c.Settle = append(c.Settle, settleChange{Partition: p.id, First: p.first, Range: r, Except: []Interval{{r, Lost}}, Reason: reason,
					AtMs: q.cfg.Now().UnixMilli(), Deferred: true})
			}
		}
	}
	if len(c.Settle) > 0 {
		p.givingUp = true
		q.enqueueLocked(c)
	}
}

// notHeld is the parts of r that no piece answers for.
func (p *partition) notHeld(r Range) []Range {
	var parts []Range
	o := r.First
	for pc := range p.pieces.from(p.pieces.over(o)) {
		if pc.own.First >= r.Next {
			break
		}
		if pc.own.First > o {
			parts = append(parts, Range{o, pc.own.First})
		}
		o = pc.own.Next
	}
	if o < r.Next {
		parts = append(parts, Range{o, r.Next})
	}
	return parts
}
