package queue

import (
	"cmp"
	"strings"
)

// maxOffset bounds offsets: what no log will reach, and far enough from what an int64 can hold
// that sums of lengths do not overflow.
const maxOffset = 1 << 53

// Partition names one source partition.
type Partition struct {
	Cluster     string `json:"c"`
	Topic       string `json:"t"`
	Incarnation uint32 `json:"i,omitempty"`
	Number      int32  `json:"p"`
}

// compare orders partitions by topic, cluster, number and incarnation.
func (id Partition) compare(o Partition) int {
	return cmp.Or(strings.Compare(id.Topic, o.Topic), strings.Compare(id.Cluster, o.Cluster),
		cmp.Compare(id.Number, o.Number), cmp.Compare(id.Incarnation, o.Incarnation))
}

// Batch is a batch of records as it is appended and leased. Its payload is opaque.
type Batch struct {
	Partition Partition
	Range
	Records        int32
	Codec          int32 // spillway.v1.Codec
	CRC            uint32
	MaxTimestampMs int64
	Payload        []byte
	Last           *Fingerprint // of its last record, as it is appended; may be nil
}

// piece is a batch held for at least one subscription. It answers for the offsets own, which is
// the whole batch unless a part of it was known when it was appended.
//
// Its payload is in memory until it is stored or needed by nobody, whichever comes first. A
// backlog on disk costs memory for pieces alone: 112 bytes each, and 8 where the partition lists
// it.
type piece struct {
	part           *partition
	payload        []byte // nil once it left memory
	batch, own     Range
	ref            Ref // of the stored payload
	maxTimestampMs int64
	appended       int64 // nanoseconds since the queue was opened, on the monotonic clock
	size, records  int32 // payload bytes; records
	crc            uint32
	waiting        int16 // subscriptions that need it
	codec          int8
	stored         bool
}

func (pc *piece) offsets() Range { return pc.own }

// out is the batch as it is leased, without its payload.
func (pc *piece) out() Batch {
	return Batch{Partition: pc.part.id, Range: pc.batch, Records: pc.records, Codec: int32(pc.codec), CRC: pc.crc,
		MaxTimestampMs: pc.maxTimestampMs}
}

// partition is everything the queue knows of one source partition.
//
// Below appended, an offset is settled, held in a piece, or deferred, for each subscription that
// wants the topic. Only the ledger and the stored pieces survive a crash; what is then neither
// settled nor held below the highest offset that either knows is deferred.
type partition struct {
	id       Partition
	first    int64                       // first offset ever seen
	appended int64                       // the offset after the last one appended, and where an ingest goes on
	reached  int64                       // durable: appended was at least this
	safe     int64                       // needs Kafka no more below it
	pieces   list[*piece]                // by own, disjoint
	progress map[*subscription]*progress // of the subscriptions that want the topic
	reaching bool                        // a change that raises reached is being written
	settling Set                         // a change that settles it for all is being written
	refetch  *refetch                    // what is asked for now
	print    *Fingerprint                // of the newest record that was read; nil: unknown
	prints   []Fingerprint               // those that are journaled, ascending
	passes   passes                      // of the batches that were appended, and where it was at its end
	printed  int64                       // when one was journaled, on the queue's clock
	givingUp bool                        // a change that settles what is lost is being written
	lacks    node[*partition]            // in Queue.lacking
	old      int64                       // Kafka may delete soon what is before it, as an ingest said last; 0: nothing
	unread   unread                      // what nobody tells of
	snapshot uint32                      // the number of the one that was begun before it became known
	listed   bool                        // a source reads it, as topicTimesLocked found last
}

// pieceAt is the piece that answers for o, or nil.
func (p *partition) pieceAt(o int64) *piece {
	if pc, ok := p.pieces.at(p.pieces.over(o)); ok && pc.own.First <= o {
		return pc
	}
	return nil
}

// heldFrom is where the first piece begins that ends after o, at most limit.
func (p *partition) heldFrom(o, limit int64) int64 {
	if pc, ok := p.pieces.at(p.pieces.over(o)); ok {
		return min(pc.own.First, limit)
	}
	return limit
}

// settledUntil returns the first offset at or after o that some subscription has not settled; a
// partition that nobody wants is settled up to its appended offset.
func (p *partition) settledUntil(o int64) int64 {
	until := p.appended
	for _, g := range p.progress {
		until = min(until, g.settledUntil(o))
	}
	return until
}

// requiredUntil is settledUntil for the subscriptions that hold back the safe offset. Where there
// is none, it is what would be known after a crash.
func (p *partition) requiredUntil(o int64) int64 {
	until := p.appended
	required := false
	for _, g := range p.progress {
		if g.sub.Required {
			if until = min(until, g.settledOnceUntil(o)); until <= o {
				return until // the others do not change that
			}
			required = required || g.tells()
		}
	}
	if !required {
		until = min(until, p.reached)
	}
	return until
}

// unknown returns the parts of r that are neither held nor settled by all, nor about to be.
func (p *partition) unknown(r Range) []Range {
	var parts []Range
	for o := r.First; o < r.Next; {
		if pc := p.pieceAt(o); pc != nil {
			o = pc.own.Next
			continue
		}
		if until := p.settling.Until(o); until > o {
			o = until
			continue
		}
		if o < p.appended {
			if until := p.settledUntil(o); until > o {
				o = until
				continue
			}
		}
		end := p.unknownUntil(o, r.Next)
		parts = append(parts, Range{o, end})
		o = end
	}
	return parts
}

// toHold is unknown, joined across what is settled. Else a batch that comes again after parts of
// it were settled one by one would be held, and written, once for each gap between them.
func (p *partition) toHold(r Range) []Range {
	var joined []Range
	for _, part := range p.unknown(r) {
		if n := len(joined); n > 0 {
			between := Range{joined[n-1].Next, part.First}
			if p.heldFrom(between.First, between.Next) == between.Next && p.settling.NextIn(between.First, between.Next) == between.Next {
				joined[n-1].Next = part.Next
				continue
			}
		}
		joined = append(joined, part)
	}
	return joined
}

// unknownUntil returns where the unknown range that begins at o ends, at most limit.
func (p *partition) unknownUntil(o, limit int64) int64 {
	end := p.heldFrom(o, p.settling.NextIn(o, limit))
	// Settled by all means settled by each: the next place where that can begin is where the last
	// of the subscriptions' next settled ranges begins.
	next := o
	for _, g := range p.progress {
		if next = max(next, g.settledFrom(o, end)); next >= end {
			return end
		}
	}
	if next > o {
		return next
	}
	return end
}

// insert adds a piece at its place.
func (p *partition) insert(pc *piece) { p.pieces.add(pc) }

// remove takes out a piece that nobody waits for.
func (p *partition) remove(pc *piece) {
	at := p.pieces.seek(pc.own.First)
	if there, ok := p.pieces.at(at); ok && there == pc {
		p.pieces.remove(at)
	}
}

// raiseSafe moves safe over everything that the required subscriptions have settled, or that is
// durably held for them, in so many steps at most. It says whether it moved, and whether it may go
// on. With delivered, what a required subscription still waits for is not safe on disk either.
func (p *partition) raiseSafe(delivered bool, steps int) (moved, more bool) {
	o := p.safe
	for ; o < p.appended; steps-- {
		if steps == 0 {
			more = true
			break
		}
		next := p.requiredUntil(o)
		if pc := p.pieceAt(o); pc != nil && pc.stored {
			next = max(next, p.storedUntil(o, pc.own.Next, delivered))
		}
		if next <= o {
			break
		}
		o = next
	}
	moved = o > p.safe
	p.safe = o
	return moved, more
}

// storedUntil is how far being stored up to end makes safe what begins at o. What a required
// subscription has deferred is not held for it, whoever else it is stored for.
func (p *partition) storedUntil(o, end int64, delivered bool) int64 {
	for _, g := range p.progress {
		if !g.sub.Required {
			continue
		}
		end = g.lacksFrom(o, end)
		if delivered {
			end = min(end, g.settledOnceUntil(o))
		}
	}
	return end
}
