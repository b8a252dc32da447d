package kafkastore

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"sync"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

const (
	// chunkBytes is how a payload is cut into records of one batch, so that no record is too large
	// to be read.
	chunkBytes = 1 << 20
	// payloadBatchBytes is what small payloads share a batch up to.
	payloadBatchBytes = 1 << 20
	// cacheBytes bounds what is kept of batches that were read.
	cacheBytes = 16 << 20
)

// A record of the payload topic has the key {version 1 byte, 'P'} and a part of a payload. What
// refers to none is garbage: an owner wrote it whose group never counted, or wrote it twice.
//
// With the key {version, 'O'} it is empty: each owner writes one when it opens.
var payloadKey, ownerKey = []byte{1, 'P'}, []byte{1, 'O'}

// payloads are the payloads of batches: where they are, and which space they hold.
type payloads struct {
	log partitionLog

	mu       sync.Mutex
	places   []heldPlace // by pos
	released int         // of places
	segments []segment   // by first; the last one is written to
	next     int64       // the end of what is known of the topic
	cache    []cached    // the one used last is first
}

// heldPlace is a place with a payload that is needed, or that was released.
type heldPlace struct {
	place
	released bool
}

// segment is a part of the payload topic that is trimmed as a whole.
type segment struct {
	first       int64
	bytes, live int64
}

// cached is what one read has brought: records at offsets from first on, without a gap.
type cached struct {
	first  int64
	values [][]byte
	bytes  int
}

// put stores payloads, which takes a place for each, of one group. It never returns while the log
// may only be away.
func (p *payloads) put(ctx context.Context, all [][]byte, try func(do func() (int64, error)) (int64, error)) ([]place, error) {
	places := make([]place, len(all))
	base := int64(-1)
	for done := 0; done < len(all); {
		var records []record
		size, n := 0, done
		for n < len(all) && (n == done || size+len(all[n]) <= payloadBatchBytes) {
			size += len(all[n]) + 1
			records = appendChunks(records, all[n])
			n++
		}
		at, err := try(func() (int64, error) { return p.log.produce(ctx, records) })
		if err != nil {
			return nil, err
		}
		p.mu.Lock()
		next := p.next
		p.next = max(p.next, at+int64(len(records)))
		p.mu.Unlock()
		if at < next {
			return nil, fmt.Errorf("%w: a payload was stored at offset %d, before %d, which is written already", ErrReplaced, at, next)
		}
		if base < 0 {
			base = at
		}
		for ; done < n; done++ {
			b := all[done]
			if at-base > 1<<32-1 {
				return nil, fmt.Errorf("a group of payloads is cut by %d records of others", at-base)
			}
			places[done] = place{queue.Ref{Group: uint64(base) + 1, Offset: uint32(at - base), Length: uint32(len(b))}, at, crc32.Checksum(b, castagnoli)}
			at += chunks(len(b))
		}
	}
	return places, nil
}

func appendChunks(records []record, b []byte) []record {
	for first := true; first || len(b) > 0; first = false {
		n := min(len(b), chunkBytes)
		records = append(records, record{payloadKey, b[:n:n]})
		b = b[n:]
	}
	return records
}

// chunks is the number of records of a payload.
func chunks(bytes int) int64 { return max(1, int64(bytes+chunkBytes-1)/chunkBytes) }

// segmentBytesLocked adds what was written at an offset to the segment that it is in. A segment
// that is full is followed by another.
func (p *payloads) addLocked(at, bytes, segmentBytes int64) {
	if len(p.segments) == 0 || p.segments[len(p.segments)-1].bytes >= segmentBytes && at > p.segments[len(p.segments)-1].first {
		p.segments = append(p.segments, segment{first: at})
	}
	s := &p.segments[len(p.segments)-1]
	s.bytes += bytes
	s.live += bytes
}

// hold notes payloads whose group is durable.
func (p *payloads) hold(places []place, segmentBytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pl := range places {
		p.places = append(p.places, heldPlace{place: pl})
		p.addLocked(pl.at, size(&pl), segmentBytes)
	}
}

// size is what a payload takes, about.
func size(p *place) int64 { return int64(p.ref.Length) + 16 }

// findLocked returns the place of a ref, or nil.
func (p *payloads) findLocked(ref queue.Ref) *heldPlace {
	i, ok := slices.BinarySearchFunc(p.places, refPos(ref), func(h heldPlace, pos int64) int { return cmp.Compare(h.pos(), pos) })
	if !ok || p.places[i].ref != ref || p.places[i].released {
		return nil
	}
	return &p.places[i]
}

// segmentOfLocked returns the segment that an offset is in.
func (p *payloads) segmentOfLocked(at int64) *segment {
	i, ok := slices.BinarySearchFunc(p.segments, at, func(s segment, at int64) int { return cmp.Compare(s.first, at) })
	if !ok {
		i--
	}
	return &p.segments[max(i, 0)]
}

// release lets go of payloads. Others than those that are held are left alone.
func (p *payloads) release(refs []queue.Ref) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ref := range refs {
		if h := p.findLocked(ref); h != nil {
			h.released = true
			p.released++
			p.segmentOfLocked(h.at).live -= size(&h.place)
		}
	}
	if p.released > len(p.places)/2 {
		p.places, p.released = slices.DeleteFunc(p.places, func(h heldPlace) bool { return h.released }), 0
	}
}

// where returns where the payload of a ref is, false when none is held.
func (p *payloads) where(ref queue.Ref) (place, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h := p.findLocked(ref); h != nil {
		return h.place, true
	}
	return place{}, false
}

// read returns a payload. One that is gone or wrong is queue.ErrDamaged.
func (p *payloads) read(ctx context.Context, ref queue.Ref, try func(do func() (int64, error)) (int64, error)) ([]byte, error) {
	for {
		pl, ok := p.where(ref)
		if !ok {
			return nil, errors.New("it is not in the store")
		}
		b, err := p.load(ctx, &pl, try)
		if err == nil && crc32.Checksum(b, castagnoli) != pl.crc {
			err = fmt.Errorf("%w: wrong checksum", queue.ErrDamaged)
		}
		if errors.Is(err, errTrimmed) {
			if now, ok := p.where(ref); ok && now.at != pl.at { // it moved meanwhile
				continue
			}
			err = fmt.Errorf("%w: %w", queue.ErrDamaged, err)
		}
		return b, err
	}
}

func (p *payloads) load(ctx context.Context, pl *place, try func(do func() (int64, error)) (int64, error)) ([]byte, error) {
	out := make([]byte, 0, min(pl.ref.Length, 64<<20))
	const patient = 60 // reads of half a second each: a new leader learns late how much all have
	nothing := 0
	for at, end := pl.at, pl.at+chunks(int(pl.ref.Length)); at < end; {
		if out, at = p.fromCache(out, at, end); at == end {
			break
		}
		next, err := try(func() (int64, error) { return p.fetch(ctx, at) })
		if err != nil {
			return nil, err
		}
		if next > at {
			nothing = 0
		} else if nothing++; nothing == patient {
			return nil, fmt.Errorf("%w: the payload topic ends at offset %d, before a payload", queue.ErrDamaged, at)
		}
	}
	if len(out) != int(pl.ref.Length) {
		return nil, fmt.Errorf("%w: %d bytes instead of %d", queue.ErrDamaged, len(out), pl.ref.Length)
	}
	return out, nil
}

// fromCache appends what the cache has of the records in [at, end), and returns where it ends.
func (p *payloads) fromCache(out []byte, at, end int64) ([]byte, int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := 0; i < len(p.cache) && at < end; i++ {
		c := p.cache[i]
		if at < c.first || at >= c.first+int64(len(c.values)) {
			continue
		}
		for ; at < end && at < c.first+int64(len(c.values)); at++ {
			out = append(out, c.values[at-c.first]...)
		}
		copy(p.cache[1:i+1], p.cache[:i])
		p.cache[0] = c
		i = -1
	}
	return out, at
}

// fetch reads some records into the cache and returns where they end.
func (p *payloads) fetch(ctx context.Context, at int64) (int64, error) {
	c := cached{first: at}
	next, err := p.log.read(ctx, at, func(offset int64, r record) error {
		if offset != c.first+int64(len(c.values)) {
			return fmt.Errorf("%w: the payload topic has no record at offset %d", queue.ErrDamaged, c.first+int64(len(c.values)))
		}
		c.values = append(c.values, slices.Clone(r.value))
		c.bytes += len(r.value) + 64
		return nil
	})
	if err != nil {
		return at, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(c.values) > 0 {
		p.cache = slices.Insert(p.cache, 0, c)
	}
	total := 0
	for i := range p.cache {
		if total += p.cache[i].bytes; i > 0 && total > cacheBytes {
			clear(p.cache[i:])
			p.cache = p.cache[:i]
			break
		}
	}
	return next, nil
}

// movable returns up to a number of payloads of the oldest segment, which is to be emptied when
// what is needed is a quarter or less of what is there.
func (p *payloads) movable(most int) []place {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.segments) < 2 {
		return nil
	}
	bytes, live := int64(0), int64(0)
	old := p.segments[:len(p.segments)-1]
	for _, s := range old {
		bytes += s.bytes
		live += s.live
	}
	if old[0].live == 0 || live*4 > bytes {
		return nil
	}
	var all []place
	for i := range p.places {
		if h := &p.places[i]; !h.released && h.at < p.segments[1].first {
			if all = append(all, h.place); len(all) == most {
				break
			}
		}
	}
	return all
}

// moved notes where a payload is from now on.
func (p *payloads) moved(to place, segmentBytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if h := p.findLocked(to.ref); h != nil {
		p.segmentOfLocked(h.at).live -= size(&to)
		h.at = to.at
		p.addLocked(to.at, size(&to), segmentBytes)
		return
	}
	p.addLocked(to.at, size(&to), segmentBytes) // released meanwhile
	p.segments[len(p.segments)-1].live -= size(&to)
}

// empty returns up to which offset nothing is needed, and the number of segments before it.
func (p *payloads) empty() (before int64, segments int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for segments < len(p.segments)-1 && p.segments[segments].live == 0 {
		segments++
	}
	if segments == 0 {
		return 0, 0
	}
	return p.segments[segments].first, segments
}

// trimmed forgets the first segments.
func (p *payloads) trimmed(segments int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.segments = slices.Delete(p.segments, 0, segments)
}

// encodeSegments is the body of a segmentsEntry.
func (p *payloads) encodeSegments() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b []byte
	for _, s := range p.segments {
		b = binary.AppendUvarint(b, uint64(s.first))
		b = binary.AppendUvarint(b, uint64(s.bytes))
	}
	return b
}

func parseSegments(b []byte) (all []segment, err error) {
	for len(b) > 0 {
		first, n := binary.Uvarint(b)
		if n <= 0 {
			return nil, errEntry
		}
		bytes, m := binary.Uvarint(b[n:])
		if m <= 0 || first > 1<<62 || bytes > 1<<62 {
			return nil, errEntry
		}
		all, b = append(all, segment{first: int64(first), bytes: int64(bytes)}), b[n+m:]
	}
	return all, nil
}

func (p *payloads) stats() (bytes int64, segments int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.segments {
		bytes += s.bytes
	}
	return bytes, len(p.segments)
}
