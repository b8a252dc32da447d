package kafkastore

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"
)

// appendBatch appends a record batch (version 2) without producer id, compression, headers or
// times, which the broker sets. All numbers are big-endian:
//
//	 0 base offset int64 | 8 bytes that follow int32 | 12 leader epoch int32 | 16 magic int8, 2 |
//	17 CRC32C of all that follows uint32 | 21 attributes int16 | 23 last offset delta int32 |
//	27 first timestamp int64 | 35 max timestamp int64 | 43 producer id int64, -1 | 51 epoch int16, -1 |
//	53 base sequence int32, -1 | 57 records int32 | 61 the records
//
// A record, all numbers zigzag varints: length of the rest | attributes (int8) | timestamp delta |
// offset delta | key length | key | value length | value | number of headers.
func appendBatch(dst []byte, records []record) []byte {
	const header = 61
	start := len(dst)
	dst = append(dst, make([]byte, header)...)
	for i, r := range records {
		delta := int64(i)
		size := 1 + 1 + varintSize(delta) + varintSize(int64(len(r.key))) + len(r.key) + varintSize(int64(len(r.value))) + len(r.value) + 1
		dst = binary.AppendVarint(dst, int64(size))
		dst = append(dst, 0, 0)
		dst = binary.AppendVarint(dst, delta)
		dst = binary.AppendVarint(dst, int64(len(r.key)))
		dst = append(dst, r.key...)
		dst = binary.AppendVarint(dst, int64(len(r.value)))
		dst = append(dst, r.value...)
		dst = append(dst, 0)
	}
	b, be := dst[start:], binary.BigEndian
	be.PutUint32(b[8:], uint32(len(b)-12))
	be.PutUint32(b[12:], ^uint32(0))
	b[16] = 2
	be.PutUint32(b[23:], uint32(len(records)-1))
	be.PutUint64(b[43:], ^uint64(0))
	be.PutUint16(b[51:], ^uint16(0))
	be.PutUint32(b[53:], ^uint32(0))
	be.PutUint32(b[57:], uint32(len(records)))
	be.PutUint32(b[17:], crc32.Checksum(b[21:], castagnoli))
	return dst
}

func varintSize(v int64) int {
	zigzag := uint64(v)<<1 ^ uint64(v>>63)
	return (bits.Len64(zigzag|1) + 6) / 7
}
