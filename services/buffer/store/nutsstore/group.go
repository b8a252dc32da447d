package nutsstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// A group is the value of one nutsdb entry. All numbers are big-endian.
//
//	header, 40 bytes                            table, 16 bytes per entry
//	 0  8  magic "SPWGROUP"                      0  1  kind; 0: nothing but the row is left
//	 8  4  version, 1                            1  3  zero
//	12  4  CRC32C of bytes 16.. of the header    4  4  length of the meta
//	       and of the table                      8  4  length of the payload
//	16  8  group number                         12  4  CRC32C of meta and payload
//	24  8  segment number
//	32  4  number of entries                    then meta and payload of each entry,
//	36  4  length of the whole group            without anything between them
//
// The lengths stand together, under a checksum of their own, so that a damaged payload hides
// nothing but itself.
const (
	groupMagic   = "SPWGROUP"
	groupVersion = 1
	headerSize   = 40
	rowSize      = 16
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	errNotGroup = errors.New("not a group")
	errVersion  = errors.New("unknown version")
)

// group is a decoded group. It shares the memory of the bytes it was decoded from.
type group struct {
	number  uint64
	segment int64
	size    int // bytes of the whole group
	entries []groupEntry
}

type groupEntry struct {
	kind    queue.EntryKind
	meta    []byte
	payload []byte
	damaged bool // the checksum of meta and payload is wrong

	metaSize, payloadSize uint32 // also when they are damaged
	crc                   uint32
}

func (e *groupEntry) size() int64 { return int64(e.metaSize) + int64(e.payloadSize) }

// groupSize is how many bytes the entries take as one group.
func groupSize(entries []queue.Entry) int64 {
	size := int64(headerSize)
	for i := range entries {
		size += rowSize + int64(len(entries[i].Meta)) + int64(len(entries[i].Payload))
	}
	return size
}

// appendGroup encodes entries as a group behind b, which must be empty.
func appendGroup(b []byte, segment int64, number uint64, entries []queue.Entry) []byte {
	b = append(b, groupMagic...)
	b = binary.BigEndian.AppendUint32(b, groupVersion)
	b = binary.BigEndian.AppendUint32(b, 0) // checksum, below
	b = binary.BigEndian.AppendUint64(b, number)
	b = binary.BigEndian.AppendUint64(b, uint64(segment))
	b = binary.BigEndian.AppendUint32(b, uint32(len(entries)))
	b = binary.BigEndian.AppendUint32(b, uint32(groupSize(entries)))
	for i := range entries {
		e := &entries[i]
		b = append(b, byte(e.Kind), 0, 0, 0)
		b = binary.BigEndian.AppendUint32(b, uint32(len(e.Meta)))
		b = binary.BigEndian.AppendUint32(b, uint32(len(e.Payload)))
		b = binary.BigEndian.AppendUint32(b, entryChecksum(e.Meta, e.Payload))
	}
	binary.BigEndian.PutUint32(b[12:], crc32.Checksum(b[16:], castagnoli))
	for i := range entries {
		b = append(b, entries[i].Meta...)
		b = append(b, entries[i].Payload...)
	}
	return b
}

// entryRef locates entry i of a group by its row in the table: payloads can be empty, and then
// several of them begin at the same byte.
func entryRef(group uint64, i int, payloadSize uint32) queue.Ref {
	return queue.Ref{Group: group, Offset: uint32(headerSize + rowSize*i), Length: payloadSize}
}

func entryChecksum(meta, payload []byte) uint32 {
	return crc32.Update(crc32.Checksum(meta, castagnoli), castagnoli, payload)
}

// groupExtent returns the length of the group that begins at b, of which the header is enough, and
// the length of its header and table.
func groupExtent(b []byte) (size, tableEnd int64, err error) {
	if len(b) < headerSize || string(b[:len(groupMagic)]) != groupMagic {
		return 0, 0, errNotGroup
	}
	if v := binary.BigEndian.Uint32(b[8:]); v != groupVersion {
		return 0, 0, fmt.Errorf("%w: group has %d, this program knows %d", errVersion, v, groupVersion)
	}
	size = int64(binary.BigEndian.Uint32(b[36:]))
	tableEnd = headerSize + rowSize*int64(binary.BigEndian.Uint32(b[32:]))
	if tableEnd > size || size > math.MaxInt32 {
		return 0, 0, errNotGroup
	}
	return size, tableEnd, nil
}

// decodeTable decodes the header and the table of a group, which must be all of b; its entries
// have sizes only.
func decodeTable(b []byte) (group, error) {
	if len(b) < headerSize || binary.BigEndian.Uint32(b[12:]) != crc32.Checksum(b[16:], castagnoli) {
		return group{}, errors.New("group has a wrong header checksum")
	}
	g := group{
		number:  binary.BigEndian.Uint64(b[16:]),
		segment: int64(binary.BigEndian.Uint64(b[24:])),
		size:    int(binary.BigEndian.Uint32(b[36:])),
		entries: make([]groupEntry, (len(b)-headerSize)/rowSize),
	}
	size := int64(len(b))
	for i := range g.entries {
		row := b[headerSize+rowSize*i:]
		g.entries[i] = groupEntry{kind: queue.EntryKind(row[0]), metaSize: binary.BigEndian.Uint32(row[4:]),
			payloadSize: binary.BigEndian.Uint32(row[8:]), crc: binary.BigEndian.Uint32(row[12:])}
		size += g.entries[i].size()
	}
	if size != int64(g.size) {
		return group{}, errors.New("group and its entries are not of the same length")
	}
	return g, nil
}

// decodeGroup decodes the group that begins at b. It fails when header or table are wrong; a wrong
// entry is only marked, as is one that ends behind b.
func decodeGroup(b []byte) (group, error) {
	_, at, err := groupExtent(b)
	if err != nil {
		return group{}, err
	}
	if at > int64(len(b)) {
		return group{}, errors.New("group is cut off in its table")
	}
	g, err := decodeTable(b[:at])
	if err != nil {
		return group{}, err
	}
	for i := range g.entries {
		e := &g.entries[i]
		payload, end := at+int64(e.metaSize), at+e.size()
		if e.damaged = end > int64(len(b)); !e.damaged {
			e.meta, e.payload = b[at:payload:payload], b[payload:end:end]
			e.damaged = entryChecksum(e.meta, e.payload) != e.crc
		}
		at = end
	}
	return g, nil
}

// payload returns the payload that ref locates, in memory that nobody changes.
func (g *group) payload(ref queue.Ref) ([]byte, error) {
	i := (int(ref.Offset) - headerSize) / rowSize
	if i < 0 || i >= len(g.entries) || entryRef(g.number, i, 0).Offset != ref.Offset || g.entries[i].kind != queue.BatchEntry {
		return nil, fmt.Errorf("group %d has no batch at offset %d", g.number, ref.Offset)
	}
	e := &g.entries[i]
	if e.damaged {
		return nil, fmt.Errorf("%w: entry %d of group %d has a wrong checksum", queue.ErrDamaged, i, g.number)
	}
	if len(e.payload) != int(ref.Length) {
		return nil, fmt.Errorf("batch at offset %d of group %d has %d bytes, not %d", ref.Offset, g.number, len(e.payload), ref.Length)
	}
	// A slice keeps the whole group in memory: hand it out only when it is most of the group.
	if len(e.payload) < g.size/2 {
		return bytes.Clone(e.payload), nil
	}
	return e.payload, nil
}
