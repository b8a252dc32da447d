package queue

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/spillwayio/spillway/services/internal/race"
)

// TestListAgainstSlice drives a list with random changes, enough of them for many chunks, and
// compares it with a slice.
func TestListAgainstSlice(t *testing.T) {
	race.Apart(t)
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 5))
		var l list[Range]
		var want []Range
		shrinking := false
		for range 4000 {
			if n := len(want); n > 1000 || shrinking && n > 0 {
				shrinking = n > 1
			}
			switch at := r.IntN(1 + len(want)); {
			case shrinking && r.IntN(4) > 0:
				at = at % len(want)
				next := l.remove(placeOf(l, at))
				want = slices.Delete(want, at, at+1)
				if item, ok := l.at(next); ok != (at < len(want)) || ok && item != want[at] {
					t.Fatalf("seed %d: behind what was removed is %v", seed, item)
				}
			case r.IntN(200) == 0:
				tail := l.cut(placeOf(l, at))
				if diff := cmp.Diff(want[at:], append([]Range{}, slices.Collect(tail.all())...), cmpopts.EquateEmpty()); diff != "" {
					t.Fatalf("seed %d: cut off (-want +got):\n%s", seed, diff)
				}
				want = want[:at:at]
			default:
				first := r.Int64N(500)
				item := Range{first, first + 1 + r.Int64N(3)}
				l.add(item)
				i, _ := slices.BinarySearchFunc(want, first, func(x Range, o int64) int {
					if x.First <= o {
						return -1
					}
					return 1
				})
				want = slices.Insert(want, i, item)
			}
			if l.size() != len(want) {
				t.Fatalf("seed %d: %d items, want %d", seed, l.size(), len(want))
			}
		}
		checkList(t, l, want)
		l.cut(place{})
		checkList(t, l, nil)
	}
}

// placeOf is the place of the item with an index.
func placeOf(l list[Range], index int) place {
	p := place{}
	for range index {
		p = l.next(p)
	}
	return p
}

func checkList(t *testing.T, l list[Range], want []Range) {
	t.Helper()
	if diff := cmp.Diff(want, slices.Collect(l.all())); diff != "" {
		t.Fatalf("up (-want +got):\n%s", diff)
	}
	var down []Range
	for p := l.prev(l.end()); ; p = l.prev(p) {
		item, ok := l.at(p)
		if !ok {
			break
		}
		down = append(down, item)
	}
	slices.Reverse(down)
	if diff := cmp.Diff(want, down); diff != "" {
		t.Fatalf("down (-want +got):\n%s", diff)
	}
	for o := range int64(510) {
		i := slices.IndexFunc(want, func(r Range) bool { return r.First >= o })
		item, ok := l.at(l.seek(o))
		if ok != (i >= 0) || ok && item != want[i] {
			t.Fatalf("seek of %d found %v, %t; want index %d", o, item, ok, i)
		}
	}
	for c, chunk := range l.chunksOf() {
		if len(chunk) == 0 || len(chunk) > chunkItems {
			t.Fatalf("chunk %d has %d items", c, len(chunk))
		}
	}
}

func (l list[T]) chunksOf() [][]T {
	if l.chunked == nil {
		return nil
	}
	return l.chunks
}

// TestListStaysDense: what is taken out at random leaves no chunks of few items, which would make
// places slow to find.
func TestListStaysDense(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 5))
	var l list[Range]
	const n = 20_000
	for i := range int64(n) {
		l.add(Range{i, i + 1})
	}
	for l.size() > n/20 {
		l.remove(l.seek(r.Int64N(l.lastFirst() + 1)))
	}
	if chunks := len(l.chunks); chunks > 4*l.size()/chunkItems+2 {
		t.Fatalf("%d items are in %d chunks", l.size(), chunks)
	}
}

func (l list[T]) lastFirst() int64 {
	last, _ := l.last()
	return last.offsets().First
}

func TestLine(t *testing.T) {
	var a, b line[int]
	nodes := make([]node[int], 5)
	for i := range nodes {
		nodes[i].value = i
		a.push(&nodes[i])
	}
	nodes[2].leave()
	nodes[2].leave() // it waits nowhere
	a.push(&nodes[0])
	b.push(&nodes[3]) // leaves a
	b.take(&a)
	var got []int
	for v, ok := b.first(); ok; v, ok = b.first() {
		got = append(got, v)
		nodes[v].leave()
	}
	if diff := cmp.Diff([]int{3, 1, 4, 0}, got); diff != "" || a.n != 0 || b.n != 0 {
		t.Fatalf("%d and %d are left (-want +got):\n%s", a.n, b.n, diff)
	}
}
