package hdfsfs

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const (
	// heartbeatAfter is how long nothing is sent before a heartbeat is. A DataNode gives a writer
	// up that it has not heard for its dfs.client.socket-timeout, a minute, or some seconds where
	// somebody is in a hurry.
	heartbeatAfter = 4 * time.Second
	// ackPatience is how long packets wait without a sign of the DataNodes.
	ackPatience = 30 * time.Second
	// setupPatience bounds the connection of all DataNodes of a block.
	setupPatience = 30 * time.Second

	// Whose fault an end is where it is no DataNode's, and where it is one's that is not known.
	noNode, unknownNode = -1, -2

	dataTransferVersion = 28
	opWriteBlock        = 80
	stageCreate         = 6 // PIPELINE_SETUP_CREATE
	checksumCRC32C      = 2
)

// openBlock is a block that is being written. A goroutine of its own reads acks as long as it is
// open. Whatever goes wrong ends it: nothing repairs a pipeline, so every DataNode of it has all
// that was ever acknowledged.
type openBlock struct {
	conn *blockConn
	r    *bufio.Reader
	at   *located
	sync bool // a commit is on the DataNodes' disks
	// ended is told once why the block takes nothing more, and which DataNode's fault it is.
	ended func(err error, node int)

	send   sync.Mutex // for a packet
	head   []byte
	length int64 // sent
	seqno  int64 // of the next packet

	mu      sync.Mutex
	err     error
	acked   int64         // all packets up to this one
	pending int           // packets sent and not acked, heartbeats too
	sent    time.Time     // when a packet was last
	sign    time.Time     // when the last ack came, or the first packet without one was sent
	last    int64         // seqno of the last packet of the block; -1 before it is sent
	changed chan struct{} // has room for one: an ack came
	dead    chan struct{} // closed when the block ends
}

// setUp asks the DataNodes of a block, the first of which conn leads to, to take it. The error is
// a *pipelineError where they say whose fault it is.
func setUp(ctx context.Context, conn *blockConn, at *located, holder string, sync bool, ended func(error, int)) (*openBlock, error) {
	ctx, cancel := context.WithTimeout(ctx, setupPatience)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	b := &openBlock{conn: conn, r: bufio.NewReader(conn), at: at, sync: sync, ended: ended, acked: -1, last: -1, changed: make(chan struct{}, 1), dead: make(chan struct{})}
	err := b.request(holder)
	if !stop() {
		err = fmt.Errorf("set up %v: %w", at, errors.Join(ctx.Err(), err))
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	b.sign = time.Now()
	b.sent = b.sign
	return b, nil
}

// request is a version (2 bytes), an opcode (1), and a message; the answer is a message. See
// Hadoop's DataTransferProtocol.
func (b *openBlock) request(holder string) error {
	var targets []protoreflect.Message
	for _, n := range b.at.nodes[1:] {
		targets = append(targets, n.info)
	}
	block := get(b.at.m, "b").Message()
	with := fields{
		"header": build("ClientOperationHeaderProto", fields{"clientName": holder,
			"baseHeader": build("BaseHeaderProto", fields{"block": block, "token": get(b.at.m, "blockToken").Message()})}),
		"targets": targets, "stage": protoreflect.EnumNumber(stageCreate), "pipelineSize": uint32(len(b.at.nodes)),
		"minBytesRcvd": uint64(0), "maxBytesRcvd": uint64(0), "latestGenerationStamp": uint64(0),
		"requestedChecksum": build("ChecksumProto", fields{"type": protoreflect.EnumNumber(checksumCRC32C), "bytesPerChecksum": uint32(chunkBytes)}),
	}
	op := build("OpWriteBlockProto", with)
	// Where the NameNode chose storages it says which, the first of which is the first DataNode's.
	for from, to := range map[protoreflect.Name][2]protoreflect.Name{"storageTypes": {"storageType", "targetStorageTypes"}, "storageIDs": {"storageId", "targetStorageIds"}} {
		list := get(b.at.m, from).List()
		for i := range list.Len() {
			if i == 0 {
				set(op, to[0], list.Get(0))
			} else {
				mutable(op, to[1]).Append(list.Get(i))
			}
		}
	}
	body, err := proto.Marshal(op.Interface())
	if err != nil {
		return fmt.Errorf("encode the request for %v: %w", b.at, err)
	}
	request := protowire.AppendBytes(append(binary.BigEndian.AppendUint16(nil, dataTransferVersion), opWriteBlock), body)
	if _, err := b.conn.Write(request); err != nil {
		return fmt.Errorf("set up %v: %w", b.at, err)
	}
	answer := message("BlockOpResponseProto")
	if err := readMessage(b.r, answer); err != nil {
		return fmt.Errorf("set up %v: %w", b.at, err)
	}
	if status := get(answer, "status").Enum(); status != 0 {
		e := &pipelineError{0, statusName(answer, "status", status) + " " + get(answer, "message").String()}
		for i, n := range b.at.nodes {
			if bad := get(answer, "firstBadLink").String(); bad == n.ip || bad == n.addr {
				e.node = i
			}
		}
		return fmt.Errorf("set up %v: %w", b.at, e)
	}
	return nil
}

// readAcks reads acks until the block is complete or broken.
func (b *openBlock) readAcks() {
	for {
		seqno, err := readAck(b.r, len(b.at.nodes))
		if err != nil {
			var refused *pipelineError
			node := 0 // who closed the connection
			if errors.As(err, &refused) {
				node = refused.node
			}
			if err == io.EOF {
				err = errors.New("the DataNode closed the connection")
			}
			b.end(err, node)
			return
		}
		b.mu.Lock()
		switch {
		case seqno == heartbeatSeqno:
		case seqno != b.acked+1:
			err = fmt.Errorf("ack of packet %d, want %d", seqno, b.acked+1)
		default:
			b.acked = seqno
		}
		b.pending--
		b.sign = time.Now()
		done := b.last >= 0 && b.acked == b.last
		b.mu.Unlock()
		select {
		case b.changed <- struct{}{}:
		default:
		}
		if err != nil {
			b.end(err, noNode)
		}
		if err != nil || done {
			return
		}
	}
}

// end closes the connection, at once and for good.
func (b *openBlock) end(err error, node int) {
	b.mu.Lock()
	first := b.err == nil
	if first {
		b.err = fmt.Errorf("write %v: %w", b.at, err)
	}
	complete := b.last >= 0 && b.acked == b.last
	err = b.err
	b.mu.Unlock()
	if tcp, ok := b.conn.raw.(*net.TCPConn); ok && !complete {
		_ = tcp.SetLinger(0) // what waits to be sent is not
	}
	_ = b.conn.Close()
	if first {
		close(b.dead)
		if !complete {
			b.ended(err, node)
		}
	}
}

// write appends data, which fits, and returns when every DataNode has written it: in sync mode to
// its disk. With full the block ends there.
func (b *openBlock) write(ctx context.Context, data []byte, full bool) error {
	stop := context.AfterFunc(ctx, func() { b.end(context.Cause(ctx), noNode) })
	defer stop()
	b.send.Lock()
	for len(data) > 0 {
		n := min(len(data), packetBytes)
		if begun := int(b.length % chunkBytes); begun > 0 {
			n = min(n, chunkBytes-begun)
		}
		if err := b.sendLocked(packet{offset: b.length, seqno: b.seqno}, data[:n]); err != nil {
			b.send.Unlock()
			return err
		}
		data = data[n:]
	}
	// The ack of a packet says that those before it are written; that of a packet with data does
	// not say so of itself.
	barrier := b.seqno
	err := b.sendLocked(packet{offset: b.length, seqno: barrier, last: full, sync: b.sync}, nil)
	b.send.Unlock()
	if err != nil {
		return err
	}
	for {
		b.mu.Lock()
		acked := b.acked
		b.mu.Unlock()
		if acked >= barrier {
			return nil
		}
		select {
		case <-b.changed:
		case <-b.dead:
			return b.reason()
		}
	}
}

// sendLocked sends a packet. It needs send.
func (b *openBlock) sendLocked(p packet, data []byte) error {
	b.mu.Lock()
	if b.err != nil {
		defer b.mu.Unlock()
		return b.err
	}
	b.sent = time.Now()
	if b.pending == 0 {
		b.sign = b.sent
	}
	b.pending++
	if p.last {
		b.last = p.seqno
	}
	b.mu.Unlock()
	b.head = p.appendHead(b.head[:0], data)
	if p.seqno != heartbeatSeqno {
		b.seqno++
		b.length += int64(len(data))
	}
	var to io.Writer = b.conn
	if b.conn.Conn == b.conn.raw {
		to = b.conn.raw // one system call for both
	}
	packet := net.Buffers{b.head}
	if len(data) > 0 {
		packet = append(packet, data)
	}
	if _, err := packet.WriteTo(to); err != nil {
		select { // an ack may say why
		case <-time.After(time.Second):
			b.end(err, 0)
		case <-b.dead:
		}
		return b.reason()
	}
	return nil
}

// tick sends a heartbeat when it is time, and ends a block whose DataNodes say nothing. While
// packets wait for acks there is no need of heartbeats, and no room for them where the connection
// is stuck.
func (b *openBlock) tick(now time.Time, heartbeat time.Duration) {
	b.mu.Lock()
	silent := b.pending > 0 && now.Sub(b.sign) > ackPatience
	due := b.pending == 0 && b.last < 0 && b.err == nil && now.Sub(b.sent) >= heartbeat
	b.mu.Unlock()
	switch {
	case silent:
		b.end(fmt.Errorf("the DataNodes said nothing for %s", ackPatience), unknownNode)
	case due && b.send.TryLock():
		_ = b.sendLocked(packet{seqno: heartbeatSeqno}, nil) // an error has ended the block
		b.send.Unlock()
	}
}

// reason is why the block ended.
func (b *openBlock) reason() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}
