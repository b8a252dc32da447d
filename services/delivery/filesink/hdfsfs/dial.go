package hdfsfs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"reflect"

	"github.com/colinmarc/hdfs/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Connections to DataNodes carry what the library negotiates: nothing, SASL with a block's token,
// signed or encrypted data. It does that for readers and writers of its own only. So a reader of
// one block is made that gets as far as calling a DataNode, and what it calls with is taken from
// it.

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// blockConn is a connection to a DataNode, and what is below it: the same where data is neither
// signed nor encrypted.
type blockConn struct {
	net.Conn
	raw net.Conn
}

// dialing is the value of a context in which dialDataNode connects.
type dialing struct {
	raw  net.Conn
	stop func() bool // of the context's cutting it
}

type dialingKey struct{}

var errTaken = errors.New("not dialed")

// dialDataNode is the library's way to a DataNode.
func (c *client) dialDataNode(ctx context.Context, network, addr string) (net.Conn, error) {
	d, ok := ctx.Value(dialingKey{}).(*dialing)
	switch {
	case !ok && c.dialed != nil:
		c.dialed()
		return nil, errTaken
	case !ok:
		return c.dial(ctx, network, addr)
	}
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, network, addr)
	if err == nil {
		d.raw, d.stop = conn, context.AfterFunc(ctx, func() { _ = conn.Close() })
	}
	return conn, err
}

// dialBlock connects to the DataNode at addr for a block. It uses a fresh key where data is
// encrypted. The connection outlives the client.
func (c *client) dialBlock(ctx context.Context, l *located, addr string) (*blockConn, error) {
	dial, err := c.libraryDial(l)
	if err != nil {
		return nil, err
	}
	d := &dialing{}
	conn, err := dial(context.WithValue(ctx, dialingKey{}, d), "tcp", addr)
	if d.raw != nil {
		d.stop()
	}
	if err != nil {
		if d.raw != nil {
			_ = d.raw.Close()
		}
		return nil, fmt.Errorf("connect to DataNode %s: %w", addr, err)
	}
	return &blockConn{conn, d.raw}, nil
}

// libraryDial is what the library would call DataNodes with to read the block.
func (c *client) libraryDial(l *located) (dial dialFunc, err error) {
	reader := c.reader(l, 0, 1)
	c.dialed = func() {
		dial, _ = hidden(reader, "blockReader").Elem().FieldByName("DialFunc").Interface().(dialFunc)
	}
	defer func() { c.dialed = nil }()
	if _, err := reader.Read(make([]byte, 1)); !errors.Is(err, errTaken) {
		return nil, fmt.Errorf("prepare to connect to DataNodes: %w", err)
	}
	return dial, nil
}

// reader is the library's reader of a file that has only this block, on one of its DataNodes,
// with length bytes. It begins at the last one.
func (c *client) reader(l *located, node int, length int64) *hdfs.FileReader {
	one := proto.Clone(l.m.Interface()).ProtoReflect()
	set(one, "offset", protoreflect.ValueOfUint64(0))
	set(get(one, "b").Message(), "numBytes", protoreflect.ValueOfUint64(uint64(length)))
	locs := mutable(one, "locs")
	locs.Set(0, locs.Get(node))
	locs.Truncate(1)
	reader := &hdfs.FileReader{}
	hidden(reader, "client").Set(reflect.ValueOf(c.Client))
	hidden(reader, "info").Set(reflect.ValueOf(blockInfo{size: length}))
	hidden(reader, "offset").SetInt(length - 1)
	blocks := hidden(reader, "blocks")
	blocks.Set(reflect.Append(blocks, reflect.ValueOf(one.Interface())))
	hidden(c.Client, "encryptionKey").SetZero()
	return reader
}

// blockInfo is the os.FileInfo of that file.
type blockInfo struct {
	os.FileInfo
	size int64
}

func (blockInfo) IsDir() bool   { return false }
func (i blockInfo) Size() int64 { return i.size }

// hasBytes says whether a DataNode is seen to have length bytes of the block.
func (c *client) hasBytes(l *located, node int, length int64) bool {
	reader := c.reader(l, node, length)
	n, _ := reader.Read(make([]byte, 1))
	_ = reader.Close()
	return n == 1
}
