package hdfsfs

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// fakePacket is what a DataNode receives.
type fakePacket struct {
	offset, seqno int64
	n             int
	last, sync    bool
}

// fakeNode reads packets as the first of two DataNodes does, and answers each with the acks that
// ack gives.
type fakeNode struct {
	conn net.Conn
	// ack returns PipelineAckProtos as text; a "close" ends the connection.
	ack func(p fakePacket) []string

	mu      sync.Mutex
	request string
	got     []byte
	packets []fakePacket
	err     error
}

func (d *fakeNode) serve() {
	err := d.setUp()
	for err == nil {
		err = d.packet()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe) {
		d.err = err
	}
	_ = d.conn.Close()
}

func (d *fakeNode) setUp() error {
	head := make([]byte, 3)
	if _, err := io.ReadFull(d.conn, head); err != nil {
		return err
	}
	if !bytes.Equal(head, []byte{0, 28, 80}) {
		return fmt.Errorf("a request that begins with %v", head)
	}
	op := message("OpWriteBlockProto")
	if err := readMessage(bufio.NewReaderSize(byteReader{d.conn}, 16), op); err != nil {
		return err
	}
	d.mu.Lock()
	d.request = prototext.MarshalOptions{}.Format(op.Interface())
	d.mu.Unlock()
	return d.say("BlockOpResponseProto", "status: SUCCESS")
}

// byteReader has a bufio.Reader read nothing ahead.
type byteReader struct{ io.Reader }

func (r byteReader) Read(p []byte) (int, error) { return r.Reader.Read(p[:min(1, len(p))]) }

func (d *fakeNode) say(name protoreflect.Name, text string) error {
	m := message(name).Interface()
	if err := prototext.Unmarshal([]byte(text), m); err != nil {
		return err
	}
	body, err := proto.Marshal(m)
	if err == nil {
		_, err = d.conn.Write(protowire.AppendBytes(nil, body))
	}
	return err
}

func (d *fakeNode) packet() error {
	var lengths struct {
		Payload int32
		Header  uint16
	}
	if err := binary.Read(d.conn, binary.BigEndian, &lengths); err != nil {
		return err
	}
	header := make([]byte, lengths.Header)
	if _, err := io.ReadFull(d.conn, header); err != nil {
		return err
	}
	m := message("PacketHeaderProto")
	if err := proto.Unmarshal(header, m.Interface()); err != nil {
		return err
	}
	payload := make([]byte, lengths.Payload-4)
	if _, err := io.ReadFull(d.conn, payload); err != nil {
		return err
	}
	p := fakePacket{offset: get(m, "offsetInBlock").Int(), seqno: get(m, "seqno").Int(), n: int(get(m, "dataLen").Int()),
		last: get(m, "lastPacketInBlock").Bool(), sync: get(m, "syncBlock").Bool()}
	if err := d.take(p, payload[:len(payload)-p.n], payload[len(payload)-p.n:]); err != nil {
		return err
	}
	for _, text := range d.ack(p) {
		if text == "close" {
			return io.EOF
		}
		if err := d.say("PipelineAckProto", text); err != nil {
			return err
		}
	}
	return nil
}

// take checks a packet as BlockReceiver does.
func (d *fakeNode) take(p fakePacket, checksums, data []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p.seqno == heartbeatSeqno {
		d.packets = append(d.packets, p)
		return nil
	}
	if p.offset != int64(len(d.got)) || p.last && p.n > 0 {
		return fmt.Errorf("packet %+v of a block of %d bytes", p, len(d.got))
	}
	if p.offset%chunkBytes > 0 && p.offset%chunkBytes+int64(p.n) > chunkBytes {
		return fmt.Errorf("a packet of %d bytes goes over the end of the chunk that was begun at %d", p.n, p.offset)
	}
	for rest := data; len(rest) > 0; checksums = checksums[4:] {
		chunk := rest[:min(len(rest), chunkBytes)]
		if len(checksums) < 4 || binary.BigEndian.Uint32(checksums) != crc32.Checksum(chunk, crc32.MakeTable(crc32.Castagnoli)) {
			return fmt.Errorf("a wrong checksum, of %d bytes", len(checksums))
		}
		rest = rest[len(chunk):]
	}
	if len(checksums) > 0 {
		return fmt.Errorf("%d bytes of checksums too many", len(checksums))
	}
	d.packets = append(d.packets, p)
	d.got = append(d.got, data...)
	return nil
}

// fakeCluster is a NameNode and its DataNodes, of which it makes one a block.
type fakeCluster struct {
	t    *testing.T
	ack  func(p fakePacket) []string
	fail map[string]error // by request, "open" too: what it answers instead

	mu    sync.Mutex
	calls []string
	nodes []*fakeNode
	wg    sync.WaitGroup
}

func (c *fakeCluster) call(name, format string, args ...any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, strings.TrimSpace(name+" "+fmt.Sprintf(format, args...)))
	return c.fail[name]
}

func lengthOf(block protoreflect.Message) string {
	if block == nil {
		return "-"
	}
	return fmt.Sprintf("%d:%d", get(block, "blockId").Uint(), get(block, "numBytes").Uint())
}

func (c *fakeCluster) addBlock(_ context.Context, _ *file, previous protoreflect.Message) (*located, error) {
	if err := c.call("addBlock", "%s", lengthOf(previous)); err != nil {
		return nil, err
	}
	m := message("LocatedBlockProto")
	err := prototext.Unmarshal(fmt.Appendf(nil, `b { poolId: "p" blockId: %d generationStamp: 1001 } offset: 0 corrupt: false
		locs { id { ipAddr: "10.0.0.1" hostName: "a" datanodeUuid: "ua" xferPort: 9866 infoPort: 1 ipcPort: 2 } }
		locs { id { ipAddr: "10.0.0.2" hostName: "b" datanodeUuid: "ub" xferPort: 9866 infoPort: 1 ipcPort: 2 } }
		blockToken { identifier: "i" password: "p" kind: "k" service: "s" } storageTypes: SSD storageTypes: DISK storageIDs: "s1" storageIDs: "s2"`, len(c.nodes)+1), m.Interface())
	return newLocated(m, false), err
}

func (c *fakeCluster) abandonBlock(_ context.Context, _ *file, block protoreflect.Message) error {
	return c.call("abandonBlock", "%s", lengthOf(block))
}
func (c *fakeCluster) fsync(_ context.Context, _ *file, n int64) error {
	return c.call("fsync", "%d", n)
}
func (c *fakeCluster) complete(_ context.Context, _ *file, last protoreflect.Message) error {
	return c.call("complete", "%s", lengthOf(last))
}
func (c *fakeCluster) exclude(_ *located, node int) { _ = c.call("exclude", "%d", node) }
func (c *fakeCluster) release(*file)                { _ = c.call("release", "") }

func (c *fakeCluster) open(ctx context.Context, x *file, l *located) (*openBlock, error) {
	if err := c.call("open", ""); err != nil {
		return nil, err
	}
	ours, theirs := net.Pipe()
	d := &fakeNode{conn: theirs, ack: c.ack}
	c.nodes = append(c.nodes, d)
	c.wg.Go(d.serve)
	b, err := setUp(ctx, &blockConn{ours, ours}, l, x.holder, x.sync, func(err error, node int) {
		c.exclude(l, node)
		x.end(err)
	})
	if err == nil {
		c.wg.Go(b.readAcks)
	}
	return b, err
}

// said is what the NameNode was asked, without DataNodes that are excluded.
func (c *fakeCluster) said() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.calls)
}

// finish waits for goroutines and tells what a DataNode did not like.
func (c *fakeCluster) finish(f *file) {
	c.t.Helper()
	f.Abandon()
	c.wg.Wait()
	for i, d := range c.nodes {
		if d.err != nil {
			c.t.Errorf("DataNode of block %d: %v", i+1, d.err)
		}
	}
}

func success(p fakePacket) []string {
	return []string{fmt.Sprintf("seqno: %d reply: SUCCESS reply: SUCCESS", p.seqno)}
}

func newFakeFile(t *testing.T, ack func(p fakePacket) []string) (*fakeCluster, *file, *int) {
	c := &fakeCluster{t: t, ack: ack, fail: make(map[string]error)}
	notified := new(int)
	return c, &file{p: c, path: "/a.tmp", holder: "me", blockSize: 1 << 20, notify: func() { c.mu.Lock(); *notified++; c.mu.Unlock() }}, notified
}
