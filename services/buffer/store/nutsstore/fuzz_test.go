package nutsstore

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"testing"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// FuzzScan scans any bytes as a data file: it ends, and reads no batch
// whose checksum is wrong.
func FuzzScan(f *testing.F) {
	head := dataEntry{timestamp: 1, flag: 1, status: 1, structure: 2, txID: 1, bucket: bucketID}
	one := head.encode(nil, keyOf(1), appendGroup(nil, 1, 1, []queue.Entry{batch("meta", []byte("payload")), change("c")}))
	two := head.encode(nil, keyOf(0), appendGroup(nil, 1, 2, []queue.Entry{change("c")}))
	f.Add(append(one, two...), uint64(0))
	f.Add(append(one[:40:40], two...), uint64(5))
	f.Add(append(append([]byte("x"), one...), make([]byte, 200)...), uint64(1))
	f.Add([]byte(groupMagic+groupMagic), uint64(0))
	f.Fuzz(func(t *testing.T, b []byte, through uint64) {
		size := int64(len(b))
		s := scanner{segment: 1, w: window{r: bytes.NewReader(b), size: size}, through: through}
		s.damage = func(from, to int64, what string) {
			if from < 0 || to < from { // the end of a group that was cut off lies behind the file
				t.Errorf("damage of bytes %d to %d of %d: %s", from, to, size, what)
			}
		}
		s.found = func(f found) error {
			for i := range f.entries {
				e := &f.entries[i]
				if !e.damaged && !bytes.Contains(b, e.payload) {
					t.Errorf("entry %d of group %d has bytes that are not in the file", i, f.number)
				}
				if p, err := f.payload(entryRef(f.number, i, e.payloadSize)); err == nil && (e.damaged || !bytes.Equal(p, e.payload)) {
					t.Errorf("entry %d of group %d is read although it is damaged", i, f.number)
				}
			}
			return nil
		}
		if end, err := s.scan(); err == nil && end < 0 {
			t.Errorf("the data ends at %d", end)
		}
		s.w = window{r: bytes.NewReader(b), size: size}
		s.found = func(found) error { return nil }
		_ = s.skim(size) // an error or not, but it ends
	})
}

// FuzzIndex reads any bytes as an index, with the checksum of an index that is right.
func FuzzIndex(f *testing.F) {
	g, err := decodeGroup(appendGroup(nil, 1, 1, []queue.Entry{batch("meta", []byte("payload")), change("c")}))
	if err != nil {
		f.Fatal(err)
	}
	dir := f.TempDir()
	index, err := createFile(segmentPath(dir, 1, indexSuffix))
	if err != nil {
		f.Fatal(err)
	}
	writeIndexGroup(index.Writer, &g)
	if err := index.commit(); err != nil {
		f.Fatal(err)
	}
	body, err := os.ReadFile(segmentPath(dir, 1, indexSuffix))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add(append(body, "D\x00\x00\x00\x04text"...))
	f.Add([]byte("D\xff\xff\xff\xff"))
	f.Add([]byte("G\x00\x00\x00\x00\x00\x00\x00\x01\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, body []byte) {
		b := append([]byte(indexMagic), 0, 0, 0, indexVersion)
		b = append(binary.BigEndian.AppendUint64(b, 1), body...)
		sum := summary{first: 1, last: 1}
		b = append(b, sum.encode()...)
		b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
		dir := t.TempDir()
		if err := os.WriteFile(segmentPath(dir, 1, indexSuffix), b, 0o644); err != nil {
			t.Fatal(err)
		}
		v := indexVisitor{group: func(uint64) bool { return true }, entry: func(queue.Recovered) error { return nil }, damage: func(string) {}}
		_ = readIndex(dir, 1, v) // an error or not, but it ends
	})
}
