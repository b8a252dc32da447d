package kafkaclient

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/compress"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// encode makes a record batch of version 2 by kafka-go.
func encode(t testing.TB, c compress.Compression, base int64, records ...protocol.Record) []byte {
	t.Helper()
	set := protocol.RecordSet{Version: 2, Attributes: protocol.Attributes(c), Records: protocol.NewRecordReader(records...)}
	var b bytes.Buffer
	if _, err := set.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	batch := b.Bytes()[4:]
	binary.BigEndian.PutUint64(batch, uint64(base))
	return batch
}

// change edits a batch and corrects its checksum.
func change(b []byte, edit func(b []byte)) []byte {
	b = slices.Clone(b)
	edit(b)
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], castagnoli))
	return b
}

func transactional(b []byte, producer int64, attributes uint16) []byte {
	return change(b, func(b []byte) {
		binary.BigEndian.PutUint16(b[21:], binary.BigEndian.Uint16(b[21:])|attributes)
		binary.BigEndian.PutUint64(b[43:], uint64(producer))
	})
}

func marker(t testing.TB, at, producer int64, kind byte) []byte {
	b := encode(t, compress.None, at, protocol.Record{Key: protocol.NewBytes([]byte{0, 0, 0, kind}), Value: protocol.NewBytes([]byte{0, 0, 0, 0, 0, 0})})
	return transactional(b, producer, attributeTransactional|attributeControl)
}

func text(v string) protocol.Record {
	return protocol.Record{Time: time.UnixMilli(1000), Value: protocol.NewBytes([]byte(v))}
}

// read returns what Each yields as "offset=value", and where it goes on.
func read(f *Fetched) (got []string, next int64, err error) {
	got, _, next, err = readAll(f)
	return got, next, err
}

func readAll(f *Fetched) (got, reasons []string, next int64, err error) {
	next, err = f.Each(func(offset int64, r *recordbatch.Record) error {
		got = append(got, fmt.Sprintf("%d=%s", offset, r.Value))
		return nil
	}, func(first, next int64, reason string) error {
		got = append(got, fmt.Sprintf("[%d,%d) is bad", first, next))
		reasons = append(reasons, reason)
		return nil
	})
	return got, reasons, next, err
}

func TestEach(t *testing.T) {
	two := encode(t, compress.None, 10, text("a"), text("b"))
	emptied := change(encode(t, compress.None, 12, text("x")), func(b []byte) {
		binary.BigEndian.PutUint32(b[8:], headerBytes-frameBytes)
		binary.BigEndian.PutUint32(b[23:], 99) // covers [12,112)
		binary.BigEndian.PutUint32(b[57:], 0)
	})[:headerBytes]
	emptied = change(emptied, func([]byte) {})
	compacted := change(encode(t, compress.None, 12, text("c")), func(b []byte) { binary.BigEndian.PutUint32(b[23:], 7) })
	of := func(producer int64, b []byte) []byte { return transactional(b, producer, attributeTransactional) }
	join := func(all ...[]byte) []byte { return bytes.Join(all, nil) }
	for _, test := range []struct {
		name    string
		set     []byte
		from    int64
		aborted []abortedTransaction
		want    string
		next    int64
	}{
		{"nothing", nil, 10, nil, "", 10},
		{"all", two, 10, nil, "10=a 11=b", 12},
		{"from within a batch", two, 11, nil, "11=b", 12},
		{"a batch that is cut", join(two, encode(t, compress.None, 12, text("c"))[:68]), 10, nil, "10=a 11=b", 12},
		{"less than a header at the end", join(two, encode(t, compress.None, 12, text("c"))[:30]), 10, nil, "10=a 11=b", 12},
		{"emptied at the tail", emptied, 12, nil, "", 112},
		{"emptied, from its middle", emptied, 50, nil, "", 112},
		{"compacted", join(two, compacted), 10, nil, "10=a 11=b 12=c", 20},
		{"committed", join(of(7, two), marker(t, 12, 7, 1)), 10, nil, "10=a 11=b", 13},
		{"aborted", join(of(7, two), marker(t, 12, 7, 0)), 10, []abortedTransaction{{7, 10}}, "", 13},
		{"aborted, then committed", join(of(7, two), marker(t, 12, 7, 0), of(7, encode(t, compress.None, 13, text("c"))), marker(t, 14, 7, 1)), 10,
			[]abortedTransaction{{7, 10}}, "13=c", 15},
		{"only one of two producers aborted", join(of(7, two), of(8, encode(t, compress.None, 12, text("c"))), marker(t, 13, 8, 0)), 10,
			[]abortedTransaction{{8, 12}}, "10=a 11=b", 14},
		{"not transactional within an aborted one", join(of(7, two), encode(t, compress.None, 12, text("c")), marker(t, 13, 7, 0)), 10,
			[]abortedTransaction{{7, 10}}, "12=c", 14},
		{"compaction removed the aborted records", join(marker(t, 12, 7, 0), encode(t, compress.None, 13, text("c"))), 10,
			[]abortedTransaction{{7, 10}}, "13=c", 14},
		{"version 1", oldSet(t, 3, "a", "b"), 3, nil, "3=a 4=b", 5},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, next, err := read(&Fetched{position: test.from, set: test.set, aborted: test.aborted})
			if s := strings.Join(got, " "); s != test.want || next != test.next || err != nil {
				t.Errorf("got %q, then %d, %v; want %q, then %d", s, next, err, test.want, test.next)
			}
		})
	}
}

// oldSet is what brokers before 0.11 store: messages of version 1.
func oldSet(t *testing.T, base int64, values ...string) []byte {
	var all []byte
	for i, v := range values {
		set := protocol.RecordSet{Version: 1, Records: protocol.NewRecordReader(text(v))}
		var b bytes.Buffer
		if _, err := set.WriteTo(&b); err != nil {
			t.Fatal(err)
		}
		message := b.Bytes()[4:]
		binary.BigEndian.PutUint64(message, uint64(base)+uint64(i))
		all = append(all, message...)
	}
	return all
}

func TestRecordsAreUnchangedInAllCompressions(t *testing.T) {
	large := bytes.Repeat([]byte("0123456789"), 1<<20)
	for c := compress.None; c <= compress.Zstd; c++ {
		t.Run(c.String(), func(t *testing.T) {
			set := encode(t, c, 5,
				protocol.Record{Time: time.UnixMilli(1000)},
				protocol.Record{Time: time.UnixMilli(999), Key: protocol.NewBytes([]byte{}), Value: protocol.NewBytes([]byte{})},
				protocol.Record{Time: time.UnixMilli(2000), Key: protocol.NewBytes([]byte{0, 255}), Value: protocol.NewBytes(large),
					Headers: []protocol.Header{{Key: "a\xff", Value: []byte{1}}, {Key: "", Value: nil}, {Key: "a\xff", Value: []byte{}}}},
				text("last"))
			var got []recordbatch.Record
			f := &Fetched{position: 5, set: set}
			next, err := f.Each(func(offset int64, r *recordbatch.Record) error {
				c := *r
				c.OffsetDelta = offset
				c.Key, c.Value = clone(r.Key), clone(r.Value)
				c.Headers = nil
				for _, h := range r.Headers {
					c.Headers = append(c.Headers, recordbatch.Header{Name: clone(h.Name), Value: clone(h.Value)})
				}
				got = append(got, c)
				return nil
			}, nil)
			if err != nil || next != 9 || len(got) != 4 {
				t.Fatalf("%d records, then %d, %v", len(got), next, err)
			}
			if r := got[0]; r.Key != nil || r.Value != nil || r.TimestampMs != 1000 || r.OffsetDelta != 5 || len(r.Headers) != 0 {
				t.Errorf("nulls became %+v", r)
			}
			if r := got[1]; r.Key == nil || r.Value == nil || len(r.Key)+len(r.Value) != 0 || r.TimestampMs != 999 {
				t.Errorf("empty became %+v", r)
			}
			r := got[2]
			if string(r.Key) != "\x00\xff" || !bytes.Equal(r.Value, large) || r.TimestampMs != 2000 || len(r.Headers) != 3 {
				t.Fatalf("binary became key %q, %d bytes, %d headers", r.Key, len(r.Value), len(r.Headers))
			}
			if h := r.Headers; string(h[0].Name) != "a\xff" || string(h[0].Value) != "\x01" || len(h[1].Name) != 0 || h[1].Value != nil || h[2].Value == nil || len(h[2].Value) != 0 {
				t.Errorf("headers became %q", h)
			}
			if string(got[3].Value) != "last" {
				t.Errorf("the last one became %+v", got[3])
			}
		})
	}
}

func clone(b []byte) []byte {
	if b == nil {
		return nil
	}
	return append([]byte{}, b...)
}

func TestAppendTimeIsTheTimestamp(t *testing.T) {
	set := change(encode(t, compress.None, 0, text("a"), text("b")), func(b []byte) {
		b[22] |= attributeAppendTime
		binary.BigEndian.PutUint64(b[35:], 777)
	})
	n := 0
	if _, err := (&Fetched{set: set}).Each(func(_ int64, r *recordbatch.Record) error {
		n++
		if r.TimestampMs != 777 {
			t.Errorf("timestamp is %d, want the append time 777", r.TimestampMs)
		}
		return nil
	}, nil); err != nil || n != 2 {
		t.Error(n, err)
	}
}

// A few compressed bytes may be one record of any size.
func TestHugeRecordIsNotHeldInMemory(t *testing.T) {
	zeros := protocol.Record{Value: protocol.NewBytes(make([]byte, 64<<20))}
	set := encode(t, compress.Zstd, 3, text("a"), zeros, text("b"))
	f := &Fetched{position: 3, set: set}
	got, next, err := read(f)
	if want := []string{"3=a", "[4,5) is bad", "5=b"}; !slices.Equal(got, want) || next != 6 || err != nil {
		t.Errorf("got %q, then %d, %v; want %q", got, next, err, want)
	}
	if c := cap(f.reader.window); c > 1<<20 {
		t.Errorf("%d bytes of memory for it", c)
	}
	if _, err := (&Fetched{position: 3, set: set}).Each(func(int64, *recordbatch.Record) error { return nil }, nil); !errors.Is(err, ErrMalformed) {
		t.Errorf("without huge: %v", err)
	}
}

func TestDamageIsNamed(t *testing.T) {
	good := encode(t, compress.None, 10, text("a"), text("b"))
	flipped := slices.Clone(good)
	flipped[len(flipped)-2] ^= 1
	for name, set := range map[string][]byte{
		"flipped bit":    flipped,
		"negative delta": change(good, func(b []byte) { binary.BigEndian.PutUint32(b[23:], 1<<31) }),
		"no whole batch": good[:68],
		"version 3":      change(good, func(b []byte) { b[magicAt] = 3 }),
	} {
		got, next, err := read(&Fetched{position: 10, set: set})
		if err == nil || next > 12 {
			t.Errorf("%s: got %q, then %d, without an error", name, got, next)
		}
	}
}

// TestWhatCannotBeOpenedIsPassed: a batch with the right checksum comes again as it is, so what
// is wrong in it is reported once, and what comes before and after it counts.
func TestWhatCannotBeOpenedIsPassed(t *testing.T) {
	good := encode(t, compress.None, 10, text("a"), text("b"))
	after := encode(t, compress.None, 12, text("c"))
	for name, test := range map[string]struct {
		set  []byte
		want string
	}{
		"too few records":   {change(good, func(b []byte) { binary.BigEndian.PutUint32(b[57:], 3) }), "10=a 11=b [12,12) is bad"},
		"bad length":        {change(good, func(b []byte) { b[headerBytes] = 0x7f }), "[10,12) is bad"},
		"second bad length": {change(good, func(b []byte) { b[len(b)-8] = 0x7f }), "10=a [11,12) is bad"},
		"unknown codec":     {change(good, func(b []byte) { b[22] |= 7 }), "[10,12) is bad"},
		"not compressed":    {change(good, func(b []byte) { b[22] |= byte(compress.Zstd) }), "[10,12) is bad"},
		"offsets go back":   {change(good, func(b []byte) { b[len(b)-8+3] = 0 }), "10=a [11,12) is bad"},
		"offset after last": {change(good, func(b []byte) { b[len(b)-8+3] = 20 }), "10=a [11,12) is bad"},
	} {
		got, reasons, next, err := readAll(&Fetched{position: 10, set: slices.Concat(test.set, after)})
		want := strings.ReplaceAll(test.want, " [12,12) is bad", "") + " 12=c"
		if s := strings.Join(got, " "); s != want || next != 13 || err != nil {
			t.Errorf("%s: got %q, then %d, %v, %q; want %q", name, s, next, err, reasons, want)
		}
	}
}

func FuzzEach(f *testing.F) {
	for c := compress.None; c <= compress.Zstd; c++ {
		f.Add(encode(f, c, 1, text("a"), text("b")), int64(1))
	}
	f.Add(marker(f, 0, 1, 0), int64(0))
	f.Fuzz(func(t *testing.T, set []byte, from int64) {
		if len(set) > headerBytes { // let damage come through
			set = change(set, func([]byte) {})
		}
		_, _, _ = read(&Fetched{position: from, set: set})
	})
}
