package queue

import (
	"slices"
	"sort"
	"time"
)

// Partition names one source partition.
type Partition struct {
	Cluster     string `json:"c"`
	Topic       string `json:"t"`
	Incarnation uint32 `json:"i,omitempty"`
	Number      int32  `json:"p"`
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
}

// piece is a batch held for at least one subscription. It answers for the offsets own, which is
// the whole batch unless a part of it was known when it was appended.
//
// Its payload is in memory until it is stored or settled by all, whichever comes first.
type piece struct {
	batch    Batch // Payload is nil once it left memory
	own      Range
	size     int64 // payload bytes
	appended time.Time
	ref      Ref // of the stored payload
	stored   bool
	waiting  int // subscriptions that have not settled all of own
}

// partition is everything the queue knows of one source partition.
type partition struct {
	id       Partition
	first    int64                       // first offset ever seen
	appended int64                       // the offset after the last one appended
	safe     int64                       // needs Kafka no more below it
	resume   int64                       // the first offset neither held nor settled by all: where an ingest goes on
	pieces   []*piece                    // ascending by own, disjoint
	progress map[*subscription]*progress // of the subscriptions that want the topic
}

// pieceIndex is the index of the first piece that ends after o.
func (p *partition) pieceIndex(o int64) int {
	return sort.Search(len(p.pieces), func(i int) bool { return p.pieces[i].own.Next > o })
}

// settledUntil returns the first offset at or after o that some subscription has not settled; a
// partition that nobody wants is settled up to its appended offset.
func (p *partition) settledUntil(o int64) int64 {
	until := p.appended
	for _, g := range p.progress {
		until = min(until, g.settled.Until(o))
	}
	return until
}

// unknown returns the parts of r that are neither held nor settled by all.
func (p *partition) unknown(r Range) []Range {
	var parts []Range
	for o := r.First; o < r.Next; {
		if i := p.pieceIndex(o); i < len(p.pieces) && p.pieces[i].own.First <= o {
			o = p.pieces[i].own.Next
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

// unknownUntil returns where the unknown range that begins at o ends, at most limit.
func (p *partition) unknownUntil(o, limit int64) int64 {
	end := limit
	if i := p.pieceIndex(o); i < len(p.pieces) {
		end = min(end, p.pieces[i].own.First)
	}
	// Settled by all means settled by each: the next place where that can begin is where the last of
	// the subscriptions' next settled ranges begins.
	next := int64(-1)
	for _, g := range p.progress {
		if g.settled.Floor > o {
			continue
		}
		i := sort.Search(len(g.settled.Above), func(i int) bool { return g.settled.Above[i].Next > o })
		if i == len(g.settled.Above) {
			return end
		}
		next = max(next, g.settled.Above[i].First)
	}
	if next > o {
		end = min(end, next)
	}
	return end
}

// insert adds a piece at its place.
func (p *partition) insert(pc *piece) {
	if n := len(p.pieces); n == 0 || p.pieces[n-1].own.Next <= pc.own.First {
		p.pieces = append(p.pieces, pc)
		return
	}
	p.pieces = slices.Insert(p.pieces, p.pieceIndex(pc.own.First), pc)
}

// remove takes out a piece that nobody waits for.
func (p *partition) remove(pc *piece) {
	i := p.pieceIndex(pc.own.First)
	if i == len(p.pieces) || p.pieces[i] != pc {
		return
	}
	if i == 0 {
		p.pieces[0] = nil
		p.pieces = p.pieces[1:]
		return
	}
	p.pieces = slices.Delete(p.pieces, i, i+1)
}

// raiseSafe moves safe over everything that is settled by all or durably held, and says whether it
// moved. With delivered, what a required subscription still waits for is not safe on disk either.
func (p *partition) raiseSafe(delivered bool) bool {
	o := p.safe
	for o < p.appended {
		next := p.settledUntil(o)
		if i := p.pieceIndex(o); i < len(p.pieces) && p.pieces[i].own.First <= o && p.pieces[i].stored {
			end := p.pieces[i].own.Next
			if delivered {
				for _, g := range p.progress {
					if g.sub.required {
						end = min(end, g.settled.Until(o))
					}
				}
			}
			next = max(next, end)
		}
		if next <= o {
			break
		}
		o = next
	}
	moved := o > p.safe
	p.safe = o
	return moved
}

// raiseResume moves resume over everything that is held or settled by all.
func (p *partition) raiseResume() {
	for p.resume < p.appended {
		next := p.settledUntil(p.resume)
		if i := p.pieceIndex(p.resume); i < len(p.pieces) && p.pieces[i].own.First <= p.resume {
			next = max(next, p.pieces[i].own.Next)
		}
		if next <= p.resume {
			return
		}
		p.resume = next
	}
}
