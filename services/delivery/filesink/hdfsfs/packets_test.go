package hdfsfs

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// dataNode reads packets as a DataNode does, and answers each with the acks that ack gives.
type dataNode struct {
	conn   net.Conn
	ack    func(seqno int64) []string // PipelineAckProtos as text
	length int64                      // of the block
	got    []byte
}

func (d *dataNode) serve() error {
	r := bufio.NewReader(d.conn)
	for {
		var lengths struct {
			Payload int32
			Header  uint16
		}
		if err := binary.Read(r, binary.BigEndian, &lengths); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		header := make([]byte, lengths.Header)
		if _, err := io.ReadFull(r, header); err != nil {
			return err
		}
		m := message("PacketHeaderProto")
		if err := proto.Unmarshal(header, m.Interface()); err != nil {
			return err
		}
		payload := make([]byte, lengths.Payload-4)
		if _, err := io.ReadFull(r, payload); err != nil {
			return err
		}
		n := int(get(m, "dataLen").Int())
		checksums, data := payload[:len(payload)-n], payload[len(payload)-n:]
		at := get(m, "offsetInBlock").Int()
		if at != d.length || get(m, "lastPacketInBlock").Bool() {
			return fmt.Errorf("packet %v of a block of %d bytes", m, d.length)
		}
		if at%chunkBytes > 0 && at%chunkBytes+int64(n) > chunkBytes {
			return fmt.Errorf("a packet of %d bytes goes over the end of the chunk that was begun at %d", n, at)
		}
		for rest := data; len(rest) > 0; {
			chunk := rest[:min(len(rest), chunkBytes)]
			if len(checksums) < 4 || binary.BigEndian.Uint32(checksums) != crc32.Checksum(chunk, crc32.MakeTable(crc32.Castagnoli)) {
				return fmt.Errorf("a wrong checksum, of %d bytes", len(checksums))
			}
			rest, checksums = rest[len(chunk):], checksums[4:]
		}
		if len(checksums) > 0 {
			return fmt.Errorf("%d bytes of checksums too many", len(checksums))
		}
		d.got = append(d.got, data...)
		d.length += int64(n)
		for _, text := range d.ack(get(m, "seqno").Int()) {
			ack := message("PipelineAckProto").Interface()
			if err := prototext.Unmarshal([]byte(text), ack); err != nil {
				return err
			}
			body, err := proto.Marshal(ack)
			if err != nil {
				return err
			}
			if _, err := d.conn.Write(protowire.AppendBytes(nil, body)); err != nil {
				return err
			}
		}
	}
}

// sendTo sends data to a DataNode that has offset bytes of the block.
func sendTo(t *testing.T, offset int64, data []byte, ack func(seqno int64) []string) ([]byte, error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ours, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	d := &dataNode{conn: theirs, ack: ack, length: offset}
	served := make(chan error, 1)
	go func() { served <- d.serve() }()
	b := &blockConn{Conn: ours, r: bufio.NewReader(ours), nodes: []string{"a", "b"}}
	sendErr := b.send(offset, data)
	if err := ours.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil && sendErr == nil {
		t.Errorf("the DataNode: %v", err)
	}
	if err := theirs.Close(); err != nil {
		t.Error(err)
	}
	return d.got, sendErr
}

func success(seqno int64) []string {
	return []string{"seqno: -1 reply: SUCCESS", fmt.Sprintf("seqno: %d reply: SUCCESS reply: SUCCESS", seqno)}
}

func TestSend(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 3*packetBytes)
	for i := range data {
		data[i] = byte(random.Uint32())
	}
	for _, offset := range []int64{0, 1, 511, 512, 513, 7_400_448, 7_400_449} {
		for _, n := range []int{1, 510, 511, 512, 513, packetBytes - 1, packetBytes, packetBytes + 1, 3 * packetBytes} {
			got, err := sendTo(t, offset, data[:n], success)
			if err != nil || !bytes.Equal(got, data[:n]) {
				t.Errorf("%d bytes at %d: %d bytes arrived, %v", n, offset, len(got), err)
			}
		}
	}
}

// Data counts when every DataNode says so, and of every packet.
func TestSendFails(t *testing.T) {
	data := make([]byte, 2*packetBytes)
	for name, c := range map[string]struct {
		ack  func(seqno int64) []string
		want string
	}{
		"a DataNode refuses": {func(n int64) []string {
			return []string{fmt.Sprintf("seqno: %d reply: SUCCESS reply: ERROR_CHECKSUM", n)}
		}, "DataNode 2 of the pipeline: ERROR_CHECKSUM"},
		"one packet is not acknowledged": {func(n int64) []string {
			return []string{fmt.Sprintf("seqno: %d reply: SUCCESS reply: SUCCESS", n&^1)}
		}, fmt.Sprintf("ack of packet %d, want %d", firstSeqno, firstSeqno+1)},
		"one DataNode says nothing": {func(n int64) []string {
			return []string{fmt.Sprintf("seqno: %d reply: SUCCESS", n)}
		}, "an ack of 1 DataNodes, want 2"},
		"nonsense": {func(n int64) []string { return []string{"seqno: 5 reply: SUCCESS"} }, "ack of packet 5"},
	} {
		if _, err := sendTo(t, 0, data, c.ack); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	for name, answer := range map[string][]byte{
		"no ack": nil, "half of one": {5, 1}, "a huge one": {255, 255, 255, 255, 15}, "none at all": {2, 255, 255}, "a number that does not end": bytes.Repeat([]byte{255}, 11),
	} {
		ours, theirs := net.Pipe()
		b := &blockConn{Conn: ours, r: bufio.NewReader(ours)}
		go func() {
			_, _ = theirs.Write(answer)
			_ = theirs.Close()
		}()
		if err := b.awaitAck(firstSeqno); err == nil {
			t.Errorf("%s is taken for an ack", name)
		}
		_ = ours.Close()
	}
}
