package kafkasink

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"

	"github.com/segmentio/kafka-go/compress"

	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// A batch as it goes into a produce request (record batch v2, Kafka 0.11 and later), big endian:
//
//	 0  int32  bytes that follow
//	 4  int64  base offset, the broker's to set
//	12  int32  bytes that follow
//	16  int32  partition leader epoch, -1
//	20  int8   magic, 2
//	21  uint32 CRC32C of all that follows
//	25  int16  attributes: the low three bits are the compression, bit 4 says that it is part of a transaction
//	27  int32  last offset delta
//	31  int64  first timestamp
//	39  int64  max timestamp
//	47  int64  producer id, or -1
//	55  int16  producer epoch, or -1
//	57  int32  base sequence, or -1
//	61  int32  records
//	65  the records, compressed as a whole
//
// A record, all numbers zigzag varints, with -1 for the length of what is null:
//
//	length of the rest | attributes (int8) | timestamp delta | offset delta | key length | key |
//	value length | value | headers | (name length | name | value length | value)...
const batchHeaderBytes = 65

var emptyHeader [batchHeaderBytes]byte

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// record is one record to produce. Its slices point into the payload of its lease.
type record struct {
	offset    int64 // at the source
	timestamp int64 // ms since the Unix epoch
	key       []byte
	value     []byte
	headers   []recordbatch.Header
	lease     int32 // its index in job.leases
}

// size is the number of key, value and header bytes.
func (r *record) size() int {
	n := len(r.key) + len(r.value)
	for i := range r.headers {
		n += len(r.headers[i].Name) + len(r.headers[i].Value)
	}
	return n
}

// stamp is what a batch says of its producer.
type stamp struct {
	id         int64
	epoch      int16
	sequence   int32
	attributes uint16
}

const transactional = 1 << 4

// noStamp is that of a producer without an id.
var noStamp = stamp{-1, -1, -1, 0}

// encoder appends batches to a buffer. Plain is its scratch space.
type encoder struct {
	compression compress.Compression
	plain       []byte
}

// append appends a batch of the first of the chosen records to dst: at most maxRecords, and no
// more than maxBytes before compression unless the first alone is larger. It returns how many
// records it took, and their bytes before compression.
func (e *encoder) append(dst []byte, records []record, chosen []int32, maxRecords, maxBytes int, by stamp) (out []byte, taken, size int, err error) {
	start := len(dst)
	dst = append(dst, emptyHeader[:]...)
	into := dst
	if e.compression != compress.None {
		into = e.plain[:0]
	}
	bodyStart := len(into)
	first := &records[chosen[0]]
	maxTimestamp := first.timestamp
	n := 0
	for ; n < len(chosen) && n < maxRecords; n++ {
		r := &records[chosen[n]]
		body := bodySize(r, r.timestamp-first.timestamp, int64(n))
		if n > 0 && batchHeaderBytes+len(into)-bodyStart+body+varintSize(int64(body)) > maxBytes {
			break
		}
		into = appendRecord(into, r, body, r.timestamp-first.timestamp, int64(n))
		maxTimestamp = max(maxTimestamp, r.timestamp)
	}
	size = batchHeaderBytes + len(into) - bodyStart
	if e.compression == compress.None {
		dst = into
	} else {
		e.plain = into
		buffer := bytes.NewBuffer(dst)
		w := e.compression.Codec().NewWriter(buffer)
		if _, err := w.Write(into); err != nil {
			return nil, 0, 0, fmt.Errorf("compress batch: %w", err)
		}
		if err := w.Close(); err != nil {
			return nil, 0, 0, fmt.Errorf("compress batch: %w", err)
		}
		dst = buffer.Bytes()
	}

	b := dst[start:]
	binary.BigEndian.PutUint32(b[0:], uint32(len(b)-4))
	binary.BigEndian.PutUint32(b[12:], uint32(len(b)-16))
	binary.BigEndian.PutUint32(b[16:], ^uint32(0))
	b[20] = 2
	binary.BigEndian.PutUint16(b[25:], uint16(e.compression)&7|by.attributes)
	binary.BigEndian.PutUint32(b[27:], uint32(n-1))
	binary.BigEndian.PutUint64(b[31:], uint64(first.timestamp))
	binary.BigEndian.PutUint64(b[39:], uint64(maxTimestamp))
	binary.BigEndian.PutUint64(b[47:], uint64(by.id))
	binary.BigEndian.PutUint16(b[55:], uint16(by.epoch))
	binary.BigEndian.PutUint32(b[57:], uint32(by.sequence))
	binary.BigEndian.PutUint32(b[61:], uint32(n))
	binary.BigEndian.PutUint32(b[21:], crc32.Checksum(b[25:], castagnoli))
	return dst, n, size, nil
}

// bodySize is the size of an encoded record without its own length.
func bodySize(r *record, timestampDelta, offsetDelta int64) int {
	n := 1 + varintSize(timestampDelta) + varintSize(offsetDelta) + bytesSize(r.key) + bytesSize(r.value) + varintSize(int64(len(r.headers)))
	for i := range r.headers {
		name := len(r.headers[i].Name)
		n += varintSize(int64(name)) + name + bytesSize(r.headers[i].Value)
	}
	return n
}

func appendRecord(b []byte, r *record, size int, timestampDelta, offsetDelta int64) []byte {
	b = binary.AppendVarint(b, int64(size))
	b = append(b, 0)
	b = binary.AppendVarint(b, timestampDelta)
	b = binary.AppendVarint(b, offsetDelta)
	b = appendBytes(b, r.key)
	b = appendBytes(b, r.value)
	b = binary.AppendVarint(b, int64(len(r.headers)))
	for i := range r.headers {
		h := &r.headers[i]
		b = binary.AppendVarint(b, int64(len(h.Name))) // a name is never null
		b = append(b, h.Name...)
		b = appendBytes(b, h.Value)
	}
	return b
}

func appendBytes(b, v []byte) []byte {
	if v == nil {
		return binary.AppendVarint(b, -1)
	}
	return append(binary.AppendVarint(b, int64(len(v))), v...)
}

func bytesSize(v []byte) int {
	if v == nil {
		return 1
	}
	return varintSize(int64(len(v))) + len(v)
}

func varintSize(v int64) int {
	zigzag := uint64(v)<<1 ^ uint64(v>>63)
	return (bits.Len64(zigzag|1) + 6) / 7
}
