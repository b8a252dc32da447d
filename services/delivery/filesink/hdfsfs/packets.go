package hdfsfs

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const (
	// packetBytes is how much data a packet has. Hadoop's client puts 63 KiB into one; a DataNode takes 16 MiB, its
	// dfs.data.transfer.max.packet.size.
	packetBytes = 256 << 10
	// chunkBytes is how much data a checksum is of. It is what the library asks for when it begins a block.
	chunkBytes = 512
	// firstSeqno is the number of the first packet. Those of the library, which sends heartbeats (-1) and the last one, are small.
	firstSeqno = 1 << 32
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// blockConn is a connection to the first of the DataNodes that a block is written to. The library opens and closes the
// block over it, and send writes what is in between: the library would copy it three times, into packets of 64 KiB.
type blockConn struct {
	net.Conn
	r     *bufio.Reader      // of Conn
	stamp protoreflect.Value // to go into the request that is written first; not valid: none
	nodes []string           // the DataNodes that acknowledge a packet

	mu sync.Mutex // held for a packet: the library's heartbeats come between them
}

// Read implements net.Conn.
func (b *blockConn) Read(p []byte) (int, error) { return b.r.Read(p) }

// Write implements net.Conn.
func (b *blockConn) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.stamp.IsValid() {
		return b.Conn.Write(p)
	}
	request, err := restamp(p, b.stamp)
	b.stamp = protoreflect.Value{}
	if err != nil {
		return 0, err
	}
	if _, err := b.Conn.Write(request); err != nil {
		return 0, err
	}
	return len(p), nil
}

// send writes data to the block at offset, and returns when all DataNodes have received it; that they have written it is
// acknowledged with the last packet, which the library sends. It reads nothing before that.
//
// Acks are read when all is sent: a DataNode goes on to receive while nobody takes its acks.
//
// A packet, as of Hadoop's PacketHeader and BlockReceiver; numbers are big-endian:
//
//	4 bytes  length of what follows without the header: 4 + checksums + data
//	2 bytes  length of the header
//	header   PacketHeaderProto
//	4 bytes  CRC32C of each chunk of data, the last of which may be short
//	data
//
// Chunks lie at multiples of their size in the block. Where one is begun, a packet of its own completes it.
func (b *blockConn) send(offset int64, data []byte) error {
	packets := int64(0)
	head := make([]byte, 0, 64+4*packetBytes/chunkBytes)
	for len(data) > 0 {
		n := min(len(data), packetBytes)
		if begun := int(offset % chunkBytes); begun > 0 {
			n = min(n, chunkBytes-begun)
		}
		head = appendPacketHead(head[:0], offset, firstSeqno+packets, data[:n])
		if err := b.write(net.Buffers{head, data[:n]}); err != nil {
			_ = b.SetReadDeadline(time.Now().Add(time.Second)) // they may have said why
			return errors.Join(err, b.awaitAcks(packets))
		}
		offset, data = offset+int64(n), data[n:]
		packets++
	}
	return b.awaitAcks(packets)
}

// awaitAcks waits for those of the packets sent.
func (b *blockConn) awaitAcks(packets int64) error {
	for i := range packets {
		if err := b.awaitAck(firstSeqno + i); err != nil {
			return err
		}
	}
	return nil
}

func (b *blockConn) write(packet net.Buffers) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var to io.Writer = b.Conn
	if t, ok := to.(*trackedConn); ok { // else it signs or encrypts
		to = t.Conn // one system call for both
	}
	_, err := packet.WriteTo(to)
	return err
}

// appendPacketHead appends what goes before a packet's data.
func appendPacketHead(dst []byte, offset, seqno int64, data []byte) []byte {
	const headerBytes = 25
	checksums := 4 * ((len(data) + chunkBytes - 1) / chunkBytes)
	dst = binary.BigEndian.AppendUint32(dst, uint32(4+checksums+len(data)))
	dst = binary.BigEndian.AppendUint16(dst, headerBytes)
	dst = protowire.AppendFixed64(protowire.AppendTag(dst, 1, protowire.Fixed64Type), uint64(offset)) // offsetInBlock
	dst = protowire.AppendFixed64(protowire.AppendTag(dst, 2, protowire.Fixed64Type), uint64(seqno))  // seqno
	dst = protowire.AppendVarint(protowire.AppendTag(dst, 3, protowire.VarintType), 0)                // lastPacketInBlock
	dst = protowire.AppendFixed32(protowire.AppendTag(dst, 4, protowire.Fixed32Type), uint32(len(data)))
	for len(data) > 0 {
		n := min(len(data), chunkBytes)
		dst = binary.BigEndian.AppendUint32(dst, crc32.Checksum(data[:n], castagnoli))
		data = data[n:]
	}
	return dst
}

// awaitAck reads acks up to that of a packet. All DataNodes must have it.
func (b *blockConn) awaitAck(seqno int64) error {
	for {
		size, err := binary.ReadUvarint(b.r)
		if err != nil {
			return fmt.Errorf("wait for the DataNodes: %w", err)
		}
		if size > 1<<16 {
			return fmt.Errorf("wait for the DataNodes: an ack of %d bytes", size)
		}
		body := make([]byte, size)
		if _, err := io.ReadFull(b.r, body); err != nil {
			return fmt.Errorf("wait for the DataNodes: %w", err)
		}
		ack := message("PipelineAckProto")
		if err := proto.Unmarshal(body, ack.Interface()); err != nil {
			return fmt.Errorf("decode an ack: %w", err)
		}
		replies := get(ack, "reply").List()
		for i := range replies.Len() {
			if status := replies.Get(i).Enum(); status != 0 {
				return fmt.Errorf("DataNode %d of the pipeline: %s", i+1, statusName(ack, status))
			}
		}
		switch got := get(ack, "seqno").Int(); got {
		case seqno:
			if replies.Len() != len(b.nodes) {
				return fmt.Errorf("an ack of %d DataNodes, want %d", replies.Len(), len(b.nodes))
			}
			return nil
		case -1: // of a heartbeat
		default:
			return fmt.Errorf("ack of packet %d, want %d", got, seqno)
		}
	}
}

// statusName is Hadoop's name of a status in an ack.
func statusName(ack protoreflect.Message, status protoreflect.EnumNumber) string {
	if v := ack.Descriptor().Fields().ByName("reply").Enum().Values().ByNumber(status); v != nil {
		return string(v.Name())
	}
	return fmt.Sprint("status ", status)
}
