package kafkaclient

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/segmentio/kafka-go/compress"

	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// sealed makes a record batch of version 2 around compressed bytes, with a right checksum.
func sealed(c compress.Compression, base int64, records int, body []byte) []byte {
	b := make([]byte, headerBytes, headerBytes+len(body))
	binary.BigEndian.PutUint64(b, uint64(base))
	b = append(b, body...)
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-frameBytes))
	b[magicAt] = 2
	binary.BigEndian.PutUint16(b[21:], uint16(c))
	binary.BigEndian.PutUint32(b[23:], uint32(records-1))
	binary.BigEndian.PutUint64(b[43:], ^uint64(0))
	binary.BigEndian.PutUint32(b[57:], uint32(records))
	return change(b, func([]byte) {})
}

// zeros is the encoding of n records with values of size bytes.
func zeros(n, size int) []byte {
	var all []byte
	for i := range n {
		r := []byte{0, 0}
		r = binary.AppendVarint(r, int64(i))
		r = append(r, 1) // no key
		r = binary.AppendVarint(r, int64(size))
		r = append(r, make([]byte, size)...)
		r = append(r, 0)
		all = append(binary.AppendVarint(all, int64(len(r))), r...)
	}
	return all
}

// zstdRuns is a frame with a window of 1 << log bytes and n runs of 128 KiB of zeros.
func zstdRuns(log, n int) []byte {
	b := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, byte(log-10) << 3}
	for i := range n {
		const run, size = 1, 128 << 10
		h := uint32(size<<3 | run<<1)
		if i == n-1 {
			h |= 1
		}
		b = append(b, byte(h), byte(h>>8), byte(h>>16), 0)
	}
	return b
}

func zstdSmall(log int, data []byte) []byte {
	z, err := zstd.NewWriter(nil, zstd.WithWindowSize(1<<min(log, 27)), zstd.WithSingleSegment(false), zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err)
	}
	defer z.Close()
	b := z.EncodeAll(data, nil)
	// Java's writer does not know the size beforehand, and declares the window of its level.
	var h zstd.Header
	if err := h.Decode(b); err != nil {
		panic(err)
	}
	return append([]byte{0x28, 0xb5, 0x2f, 0xfd, 4, byte(log-10) << 3}, b[h.HeaderSize:]...)
}

func xerial(blocks ...[]byte) []byte {
	b := []byte("\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01")
	for _, block := range blocks {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(block))), block...)
	}
	return b
}

func lz4Frame(size lz4.BlockSize, data []byte) []byte {
	var b bytes.Buffer
	w := lz4.NewWriter(&b)
	if err := w.Apply(lz4.BlockSizeOption(size)); err != nil {
		panic(err)
	}
	if _, err := w.Write(data); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// allocated returns how many bytes do allocates.
func allocated(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// TestBombs has a few bytes that declare, or decompress to, much more than they should: nothing
// is allocated that was not reserved, small records come through whatever window is declared
// around them, and the batch after the bomb is read.
func TestBombs(t *testing.T) {
	two := zeros(2, 100)
	header := func(n uint32) []byte { return append(binary.AppendUvarint(nil, uint64(n)), 0, 0) }
	for _, test := range []struct {
		name  string
		codec compress.Compression
		body  []byte
		good  bool // its two records can be read
		most  int64
	}{
		{"zstd, window of 128 MiB around little", compress.Zstd, zstdSmall(27, two), true, 1 << 20},
		{"zstd, window of 2 GiB around little", compress.Zstd, zstdSmall(31, two), true, 1 << 20},
		{"zstd, window of 128 MiB around nothing", compress.Zstd, []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 17 << 3, 1, 0, 0}, false, 1 << 20},
		{"zstd, window of 2 GiB around runs", compress.Zstd, zstdRuns(31, 100), false, 8 << 20},
		{"zstd, single segment of 400 MiB", compress.Zstd, []byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0, 0x19, 1, 0, 0}, false, 1 << 20},
		{"zstd, runs, 1 GiB", compress.Zstd, zstdRuns(20, 8<<10), false, 20 << 20},
		{"snappy, a block of 2 GiB", compress.Snappy, header(1<<31 - 1), false, 1 << 20},
		{"snappy, a block of 1 MiB", compress.Snappy, header(1 << 20), false, 1 << 20},
		{"xerial, a block of 2 GiB", compress.Snappy, xerial(header(1<<31 - 1)), false, 1 << 20},
		{"xerial, a frame of 2 GiB", compress.Snappy, append(xerial(), 0x7f, 0xff, 0xff, 0xff), false, 1 << 20},
		{"lz4, blocks of 4 MiB around little", compress.Lz4, lz4Frame(lz4.Block4Mb, two), true, 20 << 20},
		{"lz4, legacy", compress.Lz4, []byte{0x02, 0x21, 0x4c, 0x18, 1, 0, 0, 0, 0}, false, 1 << 20},
		{"gzip, nested", compress.Gzip, gzipped(gzipped(make([]byte, 100<<20))), false, 20 << 20},
		{"gzip, 100 MiB", compress.Gzip, gzipped(make([]byte, 100<<20)), false, 20 << 20},
	} {
		t.Run(test.name, func(t *testing.T) {
			set := append(sealed(test.codec, 10, 2, test.body), encode(t, compress.None, 12, text("after"))...)
			var most, held int64
			f := &Fetched{position: 10, set: set, Unpack: func(n int64) (func(), error) {
				held += n
				most = max(most, held)
				return func() { held -= n }, nil
			}}
			var got, reasons []string
			var next int64
			var err error
			bytes := allocated(func() { got, reasons, next, err = readAll(f) })
			want := 2
			if test.good {
				want = 3
			}
			if err != nil || next != 13 || len(got) != want || !strings.HasSuffix(got[len(got)-1], "12=after") {
				t.Fatalf("got %.50q (%d), then %d, %v, %q", got, len(got), next, err, reasons)
			}
			if !test.good && len(reasons) != 1 {
				t.Errorf("reasons: %q", reasons)
			}
			if most > test.most || held != 0 {
				t.Errorf("%d bytes were reserved, want %d at most; %d are held after the end", most, test.most, held)
			}
			const slack = 4 << 20 // decoders that are kept, and dead attempts
			if bytes > uint64(2*test.most)+slack {
				t.Errorf("%d bytes were allocated, with %d reserved", bytes, most)
			}
		})
	}
}

func gzipped(b []byte) []byte {
	var out bytes.Buffer
	w := compress.Gzip.Codec().NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}

// TestLargeBatchesAreRead: records come through whose batch does not fit into what is tried
// first, in each compression.
func TestLargeBatchesAreRead(t *testing.T) {
	for name, body := range map[string]struct {
		codec compress.Compression
		data  []byte
	}{
		"zstd, stream":               {compress.Zstd, zstdSmall(23, zeros(20, 1<<20))},
		"zstd, stream, large window": {compress.Zstd, zstdSmall(27, zeros(20, 1<<20))},
		"zstd, at once, second go":   {compress.Zstd, zstdSmall(20, zeros(20, 100<<10))},
		"gzip":                       {compress.Gzip, gzipped(zeros(20, 1<<20))},
		"lz4":                        {compress.Lz4, lz4Frame(lz4.Block64Kb, zeros(20, 1<<20))},
		"snappy":                     {compress.Snappy, snappy.Encode(nil, zeros(20, 1<<20))},
		"xerial":                     {compress.Snappy, xerial(snappy.Encode(nil, zeros(20, 1<<20)[:3<<20]), snappy.Encode(nil, zeros(20, 1<<20)[3<<20:]))},
	} {
		t.Run(name, func(t *testing.T) {
			n, offsets := 0, int64(0)
			f := &Fetched{position: 0, set: sealed(body.codec, 0, 20, body.data)}
			next, err := f.Each(func(offset int64, r *recordbatch.Record) error {
				if offset != offsets {
					return fmt.Errorf("offset %d, want %d", offset, offsets)
				}
				n, offsets = n+len(r.Value), offset+1
				return nil
			}, nil)
			if err != nil || next != 20 || offsets != 20 || n < 20*100<<10 {
				t.Errorf("%d records with %d bytes, then %d, %v", offsets, n, next, err)
			}
		})
	}
}

// TestUnpackMayFail: the error of the caller's is the caller's, not the batch's.
func TestUnpackMayFail(t *testing.T) {
	stop := errors.New("stop")
	f := &Fetched{set: sealed(compress.Gzip, 0, 2, gzipped(zeros(2, 10))), Unpack: func(int64) (func(), error) { return nil, stop }}
	if _, err := f.Each(func(int64, *recordbatch.Record) error { return nil }, func(int64, int64, string) error { return nil }); !errors.Is(err, stop) {
		t.Error(err)
	}
}

// TestOldBombs: messages of the old formats are opened within bounds, once.
func TestOldBombs(t *testing.T) {
	message := func(offset int64, attributes byte, value []byte) []byte {
		b := binary.BigEndian.AppendUint64(nil, uint64(offset))
		b = binary.BigEndian.AppendUint32(b, 0)
		b = append(b, 0, 0, 0, 0, 1, attributes, 0, 0, 0, 0, 0, 0, 3, 232)
		b = binary.BigEndian.AppendUint32(b, ^uint32(0))
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(value))), value...)
		binary.BigEndian.PutUint32(b[8:], uint32(len(b)-frameBytes))
		binary.BigEndian.PutUint32(b[12:], crc32.ChecksumIEEE(b[16:]))
		return b
	}
	inner := bytes.Join([][]byte{message(0, 0, []byte("a")), message(1, 0, []byte("b")), message(3, 0, []byte("d"))}, nil)
	last := message(20, 0, []byte("after"))
	for _, test := range []struct {
		name string
		set  []byte
		want string
	}{
		{"gzip", message(13, 1, gzipped(inner)), "10=a 11=b 13=d 20=after"},
		{"snappy", message(13, 2, xerial(snappy.Encode(nil, inner))), "10=a 11=b 13=d 20=after"},
		{"lz4", message(13, 3, lz4Frame(lz4.Block64Kb, inner)), "10=a 11=b 13=d 20=after"},
		{"nested", message(13, 1, gzipped(message(3, 1, gzipped(inner)))), "[13,14) is bad 20=after"},
		{"bomb", message(13, 1, gzipped(make([]byte, 50<<20))), "[13,14) is bad 20=after"},
		{"large record", message(11, 1, gzipped(append(message(0, 0, make([]byte, 20<<20)), message(1, 0, []byte("b"))...))), "[10,11) is bad 11=b 20=after"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			var next int64
			var err error
			bytes := allocated(func() { got, next, err = read(&Fetched{position: 10, set: append(test.set, last...)}) })
			if s := strings.Join(got, " "); s != test.want || next != 21 || err != nil {
				t.Errorf("got %q, then %d, %v; want %q", s, next, err, test.want)
			}
			if bytes > 10<<20 {
				t.Errorf("%d bytes were allocated", bytes)
			}
		})
	}
}

// TestManyHeaders: two bytes of a header become many in memory.
func TestManyHeaders(t *testing.T) {
	r := []byte{0, 0, 0, 1, 1}
	r = binary.AppendVarint(r, 8<<20)
	r = append(r, make([]byte, 16<<20)...)
	body := append(binary.AppendVarint(nil, int64(len(r))), r...)
	set := sealed(compress.None, 0, 1, body)
	var got []string
	bytes := allocated(func() { got, _, _ = read(&Fetched{set: set}) })
	if len(got) != 1 || got[0] != "[0,1) is bad" || bytes > 1<<20 {
		t.Errorf("got %q, %d bytes allocated", got, bytes)
	}
}

// FuzzUnpack: whatever is compressed, no more is allocated than was reserved, and a stated amount.
func FuzzUnpack(f *testing.F) {
	two := zeros(2, 100)
	for _, b := range [][]byte{zstdSmall(27, two), zstdRuns(31, 3), snappy.Encode(nil, two), xerial(snappy.Encode(nil, two)), lz4Frame(lz4.Block4Mb, two), gzipped(two), {}} {
		for c := compress.Gzip; c <= compress.Zstd; c++ {
			f.Add(byte(c), b)
		}
	}
	f.Fuzz(func(t *testing.T, codec byte, body []byte) {
		c := compress.Compression(codec&3 + 1)
		attempts := int64(0)
		set := sealed(c, 0, 2, body)
		bytes := allocated(func() {
			_, _, _ = read(&Fetched{set: set, Unpack: func(n int64) (func(), error) {
				attempts += n
				return func() {}, nil
			}})
		})
		const slack = 48 << 20 // two blocks of legacy or further frames of lz4, and what other goroutines take
		if int64(bytes) > 2*attempts+slack {
			t.Errorf("%d bytes were allocated, %d reserved", bytes, attempts)
		}
	})
}
