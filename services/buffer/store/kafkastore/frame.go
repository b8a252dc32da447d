package kafkastore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// A frame is one record of the journal, alone in its Kafka batch. Its key, all numbers big-endian:
//
//	 0  1  version, 1
//	 1  1  kind
//	 2  1  flags
//	 3  8  epoch: the offset of its owner's barrier; -1 in identities and barriers
//	11  8  nonce: a random number that the owner drew for its barrier; 0 in identities
//	19  8  number: 0, 1, 2... in its epoch; 0 in identities and barriers
//
// The value is a part of a stream of entries, cut wherever frameBytes are full: one stream for
// each group, and one for each snapshot.
const (
	frameVersion  = 1
	frameKeyBytes = 27
	// frameBytes bounds the value of a frame, so that no setting of a topic matters to how large
	// an entry is.
	frameBytes = 512 << 10
)

// Kinds of frames.
const (
	identityFrame = 'I' // at offset 0: an identity entry
	barrierFrame  = 'B' // begins an owner's epoch: JSON of a barrier
	groupFrame    = 'G'
	snapshotFrame = 'S'
)

// Flags of frames.
const (
	firstFlag = 1 << iota // begins a stream
	lastFlag              // ends it
)

type frame struct {
	kind, flags byte
	epoch       int64
	nonce       uint64
	number      uint64
	value       []byte
}

// errNoFrame means that a record of the journal was not written by a store.
var errNoFrame = errors.New("not a frame")

func (f *frame) key() []byte {
	b := make([]byte, 0, frameKeyBytes)
	b = append(b, frameVersion, f.kind, f.flags)
	b = binary.BigEndian.AppendUint64(b, uint64(f.epoch))
	b = binary.BigEndian.AppendUint64(b, f.nonce)
	return binary.BigEndian.AppendUint64(b, f.number)
}

// parseFrame reads a record of the journal. The frame keeps value.
func parseFrame(key, value []byte) (frame, error) {
	if len(key) != frameKeyBytes {
		return frame{}, fmt.Errorf("%w: key of %d bytes", errNoFrame, len(key))
	}
	if key[0] != frameVersion {
		return frame{}, fmt.Errorf("%w: frame of version %d; this version of Spillway reads version %d", ErrVersion, key[0], frameVersion)
	}
	return frame{kind: key[1], flags: key[2], epoch: int64(binary.BigEndian.Uint64(key[3:])),
		nonce: binary.BigEndian.Uint64(key[11:]), number: binary.BigEndian.Uint64(key[19:]), value: value}, nil
}

// Kinds of entries in a stream. An entry: kind (1 byte), length of the rest (uvarint), the rest.
const (
	batchEntry    = byte(queue.BatchEntry)    // place, meta
	changeEntry   = byte(queue.ChangeEntry)   // meta
	ledgerEntry   = byte(queue.SnapshotEntry) // meta of a part of the ledger; in snapshots only
	movedEntry    = 4                         // place: where the payload of a batch is from now on
	segmentsEntry = 5                         // (first, bytes)... as uvarints; in snapshots only
	identityEntry = 6                         // JSON
	wholeEntry    = 7                         // the ledger is whole; in snapshots only
)

type entry struct {
	kind  byte
	place place // of a batch, or of one that moved
	body  []byte
}

// place is where a payload is. Encoded: group, offset, length and at as uvarints, CRC32C (4
// bytes).
type place struct {
	ref queue.Ref
	at  int64 // its first record in the payload topic
	crc uint32
}

// pos is where the payload was at first: what its ref says.
func (p *place) pos() int64 { return refPos(p.ref) }

func refPos(r queue.Ref) int64 { return int64(r.Group) - 1 + int64(r.Offset) }

func (p *place) append(b []byte) []byte {
	b = binary.AppendUvarint(b, p.ref.Group)
	b = binary.AppendUvarint(b, uint64(p.ref.Offset))
	b = binary.AppendUvarint(b, uint64(p.ref.Length))
	b = binary.AppendUvarint(b, uint64(p.at))
	return binary.BigEndian.AppendUint32(b, p.crc)
}

var errEntry = errors.New("an entry of the journal cannot be read")

func parsePlace(b []byte) (p place, rest []byte, err error) {
	var v [4]uint64
	for i := range v {
		n := 0
		if v[i], n = binary.Uvarint(b); n <= 0 {
			return p, nil, errEntry
		}
		b = b[n:]
	}
	const most = 1 << 62 // of an offset
	if len(b) < 4 || v[0] == 0 || v[0] > most || v[1] > 1<<32-1 || v[2] > 1<<32-1 || v[3] > most {
		return p, nil, errEntry
	}
	return place{queue.Ref{Group: v[0], Offset: uint32(v[1]), Length: uint32(v[2])}, int64(v[3]), binary.BigEndian.Uint32(b)}, b[4:], nil
}

// appendEntry appends an entry whose body is in two parts.
func appendEntry(b []byte, kind byte, head, body []byte) []byte {
	b = append(b, kind)
	b = binary.AppendUvarint(b, uint64(len(head)+len(body)))
	return append(append(b, head...), body...)
}

// cutEntry takes the first entry off a stream, or returns false when there is no whole one. The
// entry points into the stream.
func cutEntry(stream []byte) (e entry, rest []byte, ok bool, err error) {
	if len(stream) < 2 {
		return e, stream, false, nil
	}
	size, n := binary.Uvarint(stream[1:])
	if n < 0 || size > 1<<40 {
		return e, nil, false, errEntry
	}
	if n == 0 || uint64(len(stream)-1-n) < size {
		return e, stream, false, nil
	}
	e.kind = stream[0]
	e.body, rest = stream[1+n:1+n+int(size)], stream[1+n+int(size):]
	if e.kind == batchEntry || e.kind == movedEntry {
		if e.place, e.body, err = parsePlace(e.body); err != nil {
			return e, nil, false, err
		}
	}
	return e, rest, true, nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)
