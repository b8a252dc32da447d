package hdfsfs

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const (
	// packetBytes is how much data a packet has. Hadoop's client puts 63 KiB into one; a DataNode
	// takes 16 MiB, its dfs.data.transfer.max.packet.size.
	packetBytes = 256 << 10
	// chunkBytes is how much data a checksum is of.
	chunkBytes = 512
	// maxMessageBytes bounds what a DataNode says at a time.
	maxMessageBytes = 1 << 16
	// heartbeatSeqno is the number of packets that only keep the connection alive.
	heartbeatSeqno = -1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// packet is what goes before a packet's data. It is, as of Hadoop's PacketHeader and
// BlockReceiver, big-endian:
//
//	4 bytes  length of what follows without the header: 4 + checksums + data
//	2 bytes  length of the header
//	header   PacketHeaderProto
//	4 bytes  CRC32C of each chunk of data, the last of which may be short
//	data
//
// Chunks lie at multiples of their size in the block. Where one is begun, a packet of its own
// completes it, with a checksum of what it adds.
type packet struct {
	offset, seqno int64
	last          bool // the block ends; without data
	sync          bool // the DataNodes sync all they have of the block before they acknowledge it
}

// appendHead appends what goes before data.
func (p packet) appendHead(dst, data []byte) []byte {
	header := protowire.AppendFixed64(protowire.AppendTag(nil, 1, protowire.Fixed64Type), uint64(p.offset))
	header = protowire.AppendFixed64(protowire.AppendTag(header, 2, protowire.Fixed64Type), uint64(p.seqno))
	header = protowire.AppendVarint(protowire.AppendTag(header, 3, protowire.VarintType), protowire.EncodeBool(p.last))
	header = protowire.AppendFixed32(protowire.AppendTag(header, 4, protowire.Fixed32Type), uint32(len(data)))
	if p.sync {
		header = protowire.AppendVarint(protowire.AppendTag(header, 5, protowire.VarintType), 1)
	}
	checksums := 4 * ((len(data) + chunkBytes - 1) / chunkBytes)
	dst = binary.BigEndian.AppendUint32(dst, uint32(4+checksums+len(data)))
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(header)))
	dst = append(dst, header...)
	for len(data) > 0 {
		n := min(len(data), chunkBytes)
		dst = binary.BigEndian.AppendUint32(dst, crc32.Checksum(data[:n], castagnoli))
		data = data[n:]
	}
	return dst
}

// readMessage reads a message with its length before it.
func readMessage(r *bufio.Reader, m protoreflect.Message) error {
	size, err := binary.ReadUvarint(r)
	if err != nil {
		return err
	}
	if size > maxMessageBytes {
		return fmt.Errorf("a message of %d bytes", size)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	if err := proto.Unmarshal(body, m.Interface()); err != nil {
		return fmt.Errorf("decode %s: %w", m.Descriptor().Name(), err)
	}
	return nil
}

// pipelineError is a DataNode that refuses.
type pipelineError struct {
	node   int // in the pipeline
	status string
}

// Error implements error.
func (e *pipelineError) Error() string {
	return fmt.Sprintf("DataNode %d of the pipeline: %s", e.node+1, e.status)
}

// readAck reads the next ack and returns whose it is. It is an error unless all of n DataNodes
// have the packet.
func readAck(r *bufio.Reader, n int) (seqno int64, err error) {
	ack := message("PipelineAckProto")
	if err := readMessage(r, ack); err != nil {
		return 0, err
	}
	replies := get(ack, "reply").List()
	for i := range replies.Len() {
		if status := replies.Get(i).Enum(); status != 0 {
			return 0, &pipelineError{i, statusName(ack, "reply", status)}
		}
	}
	if replies.Len() != n {
		return 0, &pipelineError{replies.Len(), fmt.Sprintf("no reply; %d of %d have one", replies.Len(), n)}
	}
	return get(ack, "seqno").Int(), nil
}

// statusName is Hadoop's name of a status.
func statusName(m protoreflect.Message, field protoreflect.Name, status protoreflect.EnumNumber) string {
	if v := m.Descriptor().Fields().ByName(field).Enum().Values().ByNumber(status); v != nil {
		return string(v.Name())
	}
	return fmt.Sprint("status ", status)
}
