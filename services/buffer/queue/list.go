package queue

import (
	"encoding/json"
	"iter"
	"slices"
	"sort"
)

// ranged is what a list holds: something that stands for a range of offsets.
type ranged interface{ offsets() Range }

func (r Range) offsets() Range { return r }

// list keeps items in ascending order of where their ranges begin. Items that begin at the same
// offset keep the order in which they were added. An empty list takes one word.
//
// The items are in chunks of at most chunkItems, so that adding or removing one moves few others
// however many there are. The zero list is empty and ready for use.
type list[T ranged] struct{ *chunked[T] }

type chunked[T ranged] struct {
	chunks [][]T // none is empty
	n      int
	one    [1][]T // chunks, as long as there is one
}

const chunkItems = 128

// place is where an item of a list is, or would be. Adding and removing items makes places
// invalid.
type place struct{ chunk, item int }

// size is the number of items.
func (l list[T]) size() int {
	if l.chunked == nil {
		return 0
	}
	return l.n
}

// seek is the place of the first item that begins at o or after.
func (l list[T]) seek(o int64) place {
	return l.search(func(item T) bool { return item.offsets().First >= o })
}

// search is the place of the first item for which is is true; of those before it, it must be
// false.
func (l list[T]) search(is func(T) bool) place {
	if l.chunked == nil {
		return place{}
	}
	c := sort.Search(len(l.chunks), func(i int) bool { return is(l.chunks[i][0]) })
	if c == 0 {
		return place{}
	}
	chunk := l.chunks[c-1]
	if i := sort.Search(len(chunk), func(i int) bool { return is(chunk[i]) }); i < len(chunk) {
		return place{c - 1, i}
	}
	return place{chunk: c}
}

// over is the place of the first item that ends after o, of a list whose items do not overlap.
func (l list[T]) over(o int64) place {
	return l.search(func(item T) bool { return item.offsets().Next > o })
}

// at is the item at a place, and false behind the last one.
func (l list[T]) at(p place) (item T, ok bool) {
	if l.chunked == nil || p.chunk >= len(l.chunks) || p.chunk < 0 {
		return item, false
	}
	return l.chunks[p.chunk][p.item], true
}

// next is the place behind p.
func (l list[T]) next(p place) place {
	if p.item++; p.item >= len(l.chunks[p.chunk]) {
		return place{chunk: p.chunk + 1}
	}
	return p
}

// prev is the place before p. Before the first there is no item.
func (l list[T]) prev(p place) place {
	if p.item > 0 {
		p.item--
		return p
	}
	if p.chunk == 0 || l.chunked == nil {
		return place{chunk: -1}
	}
	return place{p.chunk - 1, len(l.chunks[p.chunk-1]) - 1}
}

// end is the place behind the last item.
func (l list[T]) end() place {
	if l.chunked == nil {
		return place{}
	}
	return place{chunk: len(l.chunks)}
}

func (l list[T]) first() (T, bool) { return l.at(place{}) }
func (l list[T]) last() (T, bool)  { return l.at(l.prev(l.end())) }

// from yields the items from a place on. The list must not change meanwhile.
func (l list[T]) from(p place) iter.Seq[T] {
	return func(yield func(T) bool) {
		for item, ok := l.at(p); ok; item, ok = l.at(p) {
			if !yield(item) {
				return
			}
			p = l.next(p)
		}
	}
}

// all yields all items. The list must not change meanwhile.
func (l list[T]) all() iter.Seq[T] { return l.from(place{}) }

// set replaces the item at a place by one that belongs there, too.
func (l list[T]) set(p place, item T) { l.chunks[p.chunk][p.item] = item }

// add puts an item behind those that begin where it does, or before.
func (l *list[T]) add(item T) {
	first := item.offsets().First
	if last, ok := l.last(); !ok || last.offsets().First <= first {
		l.insert(l.end(), item)
		return
	}
	l.insert(l.search(func(x T) bool { return x.offsets().First > first }), item)
}

// insert puts an item before the place p, where it must belong.
func (l *list[T]) insert(p place, item T) {
	if l.chunked == nil {
		l.chunked = &chunked[T]{n: 1, one: [1][]T{{item}}}
		l.chunks = l.one[:]
		return
	}
	l.n++
	if p.item == 0 && p.chunk > 0 { // behind the chunk before
		if n := len(l.chunks[p.chunk-1]); n < chunkItems {
			l.chunks[p.chunk-1] = append(l.chunks[p.chunk-1], item)
			return
		}
		if p.chunk == len(l.chunks) { // lists mostly grow at their end
			l.chunks = append(l.chunks, append(make([]T, 0, chunkItems/8), item))
			return
		}
	}
	chunk := slices.Insert(l.chunks[p.chunk], p.item, item)
	if len(chunk) > chunkItems {
		half := len(chunk) / 2
		l.chunks = slices.Insert(l.chunks, p.chunk+1, slices.Clone(chunk[half:]))
		clear(chunk[half:])
		chunk = chunk[:half]
	}
	l.chunks[p.chunk] = chunk
}

// remove takes out the item at a place, and returns the place of the one behind it.
func (l *list[T]) remove(p place) place {
	if l.n--; l.n == 0 {
		l.chunked = nil
		return place{}
	}
	chunk := l.chunks[p.chunk]
	if p.item == 0 {
		var none T
		chunk[0] = none
		chunk = chunk[1:] // what leaves in order moves nothing
	} else {
		chunk = slices.Delete(chunk, p.item, p.item+1)
	}
	l.chunks[p.chunk] = chunk
	switch {
	case len(chunk) == 0:
		l.removeChunk(p.chunk)
		return place{chunk: p.chunk}
	case p.chunk > 0 && len(l.chunks[p.chunk-1])+len(chunk) <= chunkItems/2:
		p.item += len(l.chunks[p.chunk-1])
		p.chunk--
		l.join(p.chunk)
	case p.chunk+1 < len(l.chunks) && len(chunk)+len(l.chunks[p.chunk+1]) <= chunkItems/2:
		l.join(p.chunk)
	}
	if p.item == len(l.chunks[p.chunk]) {
		return place{chunk: p.chunk + 1}
	}
	return p
}

// join appends the next chunk to chunk c.
func (l *list[T]) join(c int) {
	l.chunks[c] = append(l.chunks[c], l.chunks[c+1]...)
	l.removeChunk(c + 1)
}

func (l *list[T]) removeChunk(c int) {
	if c == 0 {
		l.chunks[0] = nil
		l.chunks = l.chunks[1:]
		return
	}
	l.chunks = slices.Delete(l.chunks, c, c+1)
}

// cut takes out all items from a place on, and returns them.
func (l *list[T]) cut(p place) list[T] {
	var tail list[T]
	for item := range l.from(p) {
		tail.insert(tail.end(), item)
	}
	switch {
	case tail.size() == 0:
	case tail.size() == l.n:
		l.chunked = nil
	default:
		l.n -= tail.n
		if p.item > 0 {
			clear(l.chunks[p.chunk][p.item:])
			l.chunks[p.chunk] = l.chunks[p.chunk][:p.item]
			p.chunk++
		}
		clear(l.chunks[p.chunk:])
		l.chunks = l.chunks[:p.chunk]
	}
	return tail
}

// IsZero says whether the list is empty, to encoding/json.
func (l list[T]) IsZero() bool { return l.size() == 0 }

// MarshalJSON encodes the list as an array.
func (l list[T]) MarshalJSON() ([]byte, error) {
	return json.Marshal(slices.Collect(l.all()))
}

// UnmarshalJSON decodes an array whose items are in order.
func (l *list[T]) UnmarshalJSON(b []byte) error {
	var items []T
	if err := json.Unmarshal(b, &items); err != nil {
		return err
	}
	*l = list[T]{}
	for _, item := range items {
		l.add(item)
	}
	return nil
}
