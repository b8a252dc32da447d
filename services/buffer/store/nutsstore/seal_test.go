package nutsstore

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// TestSealWithoutPayloads has the keeper write the same sidecars as one that reads all of a
// segment.
func TestSealWithoutPayloads(t *testing.T) {
	h := newHarness(t, 64<<10)
	s, _ := h.mustOpen()
	for i := range 120 {
		refs := h.mustAppend(s, batch(fmt.Sprintf("meta %d", i), noise(uint64(i), 2000)), change("change"), batch("of nothing", nil), batch("small", []byte("payload")))
		h.mustAppend(s, change(fmt.Sprintf("change %d", i)))
		if i%3 == 0 { // segments go, and nutsdb's tombstones come
			s.Release(refs)
		}
	}
	h.Settle(s)
	compared := 0
	for _, seg := range s.segments[:len(s.segments)-1] {
		if seg.moved != nil {
			continue
		}
		sidecars := func() (b []byte) {
			for _, suffix := range []string{indexSuffix, hintSuffix} {
				one, err := os.ReadFile(segmentPath(s.dir, seg.id, suffix))
				if err != nil {
					t.Fatal(err)
				}
				b = append(b, one...)
			}
			return b
		}
		skimmed := sidecars()
		if _, err := seal(s.dir, seg.id, func(d string) { t.Errorf("damage: %s", d) }); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(skimmed, sidecars()) {
			t.Errorf("segment %d: the sidecars differ", seg.id)
		}
		compared++
	}
	if compared < 3 {
		t.Fatalf("only %d segments were compared", compared)
	}
}

// TestSkimNoticesWhatItDoesNotExpect changes headers and tables: then the segment is read as a
// whole.
func TestSkimNoticesWhatItDoesNotExpect(t *testing.T) {
	value := appendGroup(nil, 1, 7, []queue.Entry{batch("meta", []byte("payload"))})
	e := dataEntry{status: 1, flag: 1, structure: 2, bucket: bucketID}
	file := e.encode(nil, keyOf(7), value)
	skim := func(b []byte, end int64) error {
		s := scanner{segment: 1, w: window{r: bytes.NewReader(b), size: int64(len(b))}, found: func(found) error { return nil }}
		return s.skim(end)
	}
	whole := int64(len(file))
	if err := skim(file, whole); err != nil {
		t.Fatalf("as it was written: %v", err)
	}
	start := len(file) - len(value)
	for name, at := range map[string]int{"magic": start, "number": start + 20, "segment": start + 31, "count": start + 35, "length": start + 39, "row": start + 45} {
		b := bytes.Clone(file)
		b[at]++
		if err := skim(b, whole); !errors.Is(err, errUnexpected) {
			t.Errorf("%s changed: %v", name, err)
		}
	}
	if err := skim(file, whole-1); !errors.Is(err, errUnexpected) {
		t.Errorf("cut short: %v", err)
	}
	if err := skim(append(bytes.Clone(file), make([]byte, 100)...), whole+100); !errors.Is(err, errUnexpected) {
		t.Errorf("zeros behind it: %v", err)
	}
}
