package kafkaclient

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/segmentio/kafka-go/compress"

	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// Messages of the versions 0 and 1, which Kafka stored before 0.11 (big endian):
//
//	0 offset int64 | 8 bytes that follow int32 | 12 CRC32 of all that follows uint32 | 16 magic int8 |
//	17 attributes int8 | [v1: 18 timestamp int64] | key int32, -1 for null | ... | value int32 | ...
//
// The value of a compressed message is a sequence of messages. Its offset is that of the last of
// them, and theirs count from the first one in version 1.
const oldCheckedAt = 16

type oldMessage struct {
	offset     int64
	version    byte
	attributes byte
	record     recordbatch.Record
}

func (m *oldMessage) compression() compress.Compression {
	return compress.Compression(m.attributes & attributeCompression)
}

// parseOld reads one message. Its bytes point into b.
func parseOld(b []byte) (m oldMessage, err error) {
	if len(b) < oldCheckedAt+2 || b[magicAt] > 1 {
		return m, fmt.Errorf("%w: a message of %d bytes", ErrMalformed, len(b))
	}
	m.offset = int64(binary.BigEndian.Uint64(b))
	if crc32.ChecksumIEEE(b[oldCheckedAt:]) != binary.BigEndian.Uint32(b[12:]) {
		return m, fmt.Errorf("%w at offset %d: wrong checksum", ErrMalformed, m.offset)
	}
	m.version, m.attributes = b[magicAt], b[magicAt+1]
	p := payload{rest: b[oldCheckedAt+2:]}
	if m.version == 1 {
		if t := p.bytes(8); t != nil {
			m.record.TimestampMs = int64(binary.BigEndian.Uint64(t))
		}
	}
	m.record.Key = p.old()
	m.record.Value = p.old()
	if p.bad || len(p.rest) > 0 {
		return m, fmt.Errorf("%w at offset %d: a message of %d bytes", ErrMalformed, m.offset, len(b))
	}
	return m, nil
}

// old reads a part of a message.
func (p *payload) old() []byte {
	n := p.bytes(4)
	if n == nil {
		return nil
	}
	size := int32(binary.BigEndian.Uint32(n))
	if size == -1 {
		return nil
	}
	return p.bytes(int64(size))
}

// eachOld yields the records of a message of the versions 0 and 1, from next on, which it moves.
func (b *batch) eachOld(next *int64, yield func(int64, *recordbatch.Record) error, bad badFunc) error {
	outer, err := parseOld(b.old)
	if err != nil {
		return err
	}
	give := func(offset int64, r *recordbatch.Record) error {
		if offset < *next {
			return nil
		}
		err := yield(offset, r)
		if err == nil {
			*next = offset + 1
		}
		return callers(err)
	}
	if outer.compression() == compress.None {
		return give(outer.offset, &outer.record)
	}
	// The first round finds how the inner offsets are counted.
	last := int64(-1)
	if err := b.eachInner(&outer, func(m *oldMessage, _ int64) error {
		last = m.offset
		return nil
	}); err != nil {
		return err
	}
	base := int64(0)
	if outer.version == 1 {
		base = outer.offset - last
	}
	return b.eachInner(&outer, func(m *oldMessage, size int64) error {
		offset := base + m.offset
		if offset < 0 || offset > outer.offset {
			return fmt.Errorf("%w: offset %d in a message of offset %d", ErrMalformed, offset, outer.offset)
		}
		if size > maxEncodedBytes {
			return b.tooLarge(offset, size, next, bad)
		}
		const appendTime = 1 << 3
		if outer.attributes&appendTime != 0 {
			m.record.TimestampMs = outer.record.TimestampMs
		}
		return give(offset, &m.record)
	})
}

// eachInner calls yield with the messages in a compressed one, and their sizes. Of those that are
// too large only the offset is told.
func (b *batch) eachInner(outer *oldMessage, yield func(m *oldMessage, size int64) error) error {
	return b.reader.unpack(outer.compression(), outer.record.Value, func(w *window) error {
		for {
			head, err := w.peek(frameBytes)
			if err != nil || len(head) == 0 {
				return err
			}
			if len(head) < frameBytes {
				return ErrMalformed
			}
			size := int64(binary.BigEndian.Uint32(head[8:])) + frameBytes
			if size > maxEncodedBytes {
				m := oldMessage{offset: int64(binary.BigEndian.Uint64(head))}
				if err = w.skip(size); err == nil {
					err = yield(&m, size)
				}
				if err != nil {
					return err
				}
				continue
			}
			body, err := w.next(int(size))
			if err != nil {
				return err
			}
			m, err := parseOld(body)
			if err == nil && (m.compression() != compress.None || m.version != outer.version) {
				err = errors.New("a compressed message in a compressed message")
			}
			if err != nil {
				return fmt.Errorf("%w: %w", ErrMalformed, err)
			}
			if err := yield(&m, size); err != nil {
				return err
			}
		}
	})
}
