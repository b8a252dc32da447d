package serializer

import (
	"bytes"
	stdzlib "compress/zlib"
	"encoding/binary"
	"io"
	"testing"

	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// TestSequenceFile reads the blocks back as the layout has them. That Hadoop reads them, too, but
// for zstd, is tested in services/e2e.
func TestSequenceFile(t *testing.T) {
	for compression, ext := range map[string]string{"none": "", "gzip": ".gz", "zstd": ".zst", "snappy": ".snappy", "lz4": ".lz4", "bzip2": ".bz2", "deflate": ".deflate"} {
		t.Run(compression, func(t *testing.T) {
			f := newFormat(t, "sequence_file", compression)
			if f.Extension() != "" {
				t.Errorf("the extension is %q", f.Extension())
			}
			file, want := write(t, f, odd())
			got := readSequence(t, file[len(f.(sequenceFile).header):], ext)
			if len(got) != len(want) {
				t.Fatalf("%d records, want %d", len(got), len(want))
			}
			for i := range got {
				if got[i].TimestampMs != want[i].TimestampMs || !bytes.Equal(got[i].Value, want[i].Value) {
					t.Errorf("record %d is another one", i)
				}
			}
		})
	}
}

func readSequence(t *testing.T, b []byte, ext string) (records []recordbatch.Record) {
	t.Helper()
	take := func(n int) []byte {
		taken := b[:n]
		b = b[n:]
		return taken
	}
	add := func(key, value []byte) {
		if n := int(binary.BigEndian.Uint32(value)); n != len(value)-4 {
			t.Errorf("a value of %d bytes says it has %d", len(value)-4, n)
		}
		records = append(records, recordbatch.Record{TimestampMs: int64(binary.BigEndian.Uint64(key)), Value: value[4:]})
	}
	sync := take(16)
	for len(b) > 0 {
		if binary.BigEndian.Uint32(b) == 0xffffffff {
			if take(4); !bytes.Equal(take(16), sync) {
				t.Fatal("another sync marker")
			}
			if ext == "" {
				continue
			}
			n, keyLengths := vInt(&b), column(t, ext, take(vInt(&b)))
			keys, valueLengths, values := column(t, ext, take(vInt(&b))), column(t, ext, take(vInt(&b))), column(t, ext, take(vInt(&b)))
			for range n {
				k, v := vInt(&keyLengths), vInt(&valueLengths)
				add(keys[:k], values[:v])
				keys, values = keys[k:], values[v:]
			}
			if len(keyLengths)+len(keys)+len(valueLengths)+len(values) > 0 {
				t.Error("a block has more than its records")
			}
			continue
		}
		size, key := int(binary.BigEndian.Uint32(b)), int(binary.BigEndian.Uint32(b[4:]))
		take(8)
		add(take(key), take(size-key))
	}
	return records
}

func column(t *testing.T, ext string, b []byte) []byte {
	t.Helper()
	if ext != ".deflate" {
		return decompress(t, ext, b)
	}
	r, err := stdzlib.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// vInt takes a vint off b.
func vInt(b *[]byte) int {
	first := int8((*b)[0])
	*b = (*b)[1:]
	if first >= 0 {
		return int(first)
	}
	n := 0
	for range int(-112 - first) {
		n = n<<8 | int((*b)[0])
		*b = (*b)[1:]
	}
	return n
}
