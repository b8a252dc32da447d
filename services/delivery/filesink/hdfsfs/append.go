package hdfsfs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"

	"github.com/colinmarc/hdfs/v2"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/spillwayio/spillway/services/internal/failpoint"
)

// begin connects to the DataNodes of the block that w writes to next, and returns the connection and where in the block that is.
//
// An append is begun as Hadoop's own client does it and the library does not: under a new generation stamp. By that a replica
// that the append did not reach is known to be an old one: that of a DataNode that comes back, or a copy that was on its way.
// With the same stamp the NameNode takes it for a good one, and when the append fails, the recovery of the file cuts it to the
// shortest of them: what was committed would be lost. As in Hadoop's DataStreamer the NameNode gives out a stamp, the DataNodes
// get it with the request to write, and once they have answered, and before anything is written, the NameNode is told.
func (c *client) begin(w *hdfs.FileWriter) (*blockConn, int64, error) {
	if _, err := w.Write(nil); err != nil { // makes a new block when there is none to append to
		return nil, 0, err
	}
	writer := hidden(w, "blockWriter").Elem()
	var stamp protoreflect.Value
	if writer.FieldByName("Append").Bool() {
		var err error
		if stamp, err = c.newStamp(blockOf(w)); err != nil {
			return nil, 0, fmt.Errorf("get a generation stamp: %w", err)
		}
	}
	var conn *blockConn
	dial := writer.FieldByName("DialFunc")
	next := dial.Interface().(dialFunc)
	dial.Set(reflect.ValueOf(func(ctx context.Context, network, addr string) (net.Conn, error) {
		to, err := next(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		conn = &blockConn{Conn: to, r: bufio.NewReader(to), stamp: stamp}
		return conn, nil
	}))
	if _, err := writer.Addr().Interface().(io.Writer).Write(nil); err != nil { // connects
		return nil, 0, err
	}
	if stamp.IsValid() {
		failpoint.At(failpoint.FSStamped)
		if err := c.reportStamp(blockOf(w), stamp); err != nil {
			return nil, 0, fmt.Errorf("report the generation stamp: %w", err)
		}
	}
	conn.nodes = dataNodes(blockOf(w))
	return conn, writer.FieldByName("Offset").Int(), nil
}

// advance tells w that its block ends at offset now.
func advance(w *hdfs.FileWriter, offset int64) {
	writer := hidden(w, "blockWriter")
	writer.Elem().FieldByName("Offset").SetInt(offset)
	hidden(hidden(writer.Interface(), "stream").Interface(), "offset").SetInt(offset)
}

// abandon ends the goroutines of a writer that failed, whose connection is cut: the library's own Close leaves one behind.
func abandon(w *hdfs.FileWriter) {
	writer := hidden(w, "blockWriter")
	if writer.IsNil() {
		return
	}
	stream := hidden(writer.Interface(), "stream")
	if stream.IsNil() {
		return
	}
	if closed := hidden(stream.Interface(), "closed"); !closed.Bool() {
		closed.SetBool(true)
		hidden(stream.Interface(), "heartbeats").Close()
	}
	for packets := hidden(stream.Interface(), "packets"); ; {
		if packet, ok := packets.TryRecv(); ok {
			continue
		} else if !packet.IsValid() { // open, and empty
			packets.Close()
		}
		return
	}
}

// newStamp has the NameNode give out a generation stamp for an append to the block.
func (c *client) newStamp(block protoreflect.Message) (protoreflect.Value, error) {
	given := message("UpdateBlockForPipelineResponseProto")
	err := c.execute("updateBlockForPipeline", given, message("UpdateBlockForPipelineRequestProto"), fields{
		"block": get(block, "b"), "clientName": protoreflect.ValueOfString(c.Name()),
	})
	return get(get(get(given, "block").Message(), "b").Message(), "generationStamp"), err
}

// reportStamp tells the NameNode that the block has the stamp now, on the DataNodes that it names itself. The block is what the
// library closes the file with.
func (c *client) reportStamp(block protoreflect.Message, stamp protoreflect.Value) error {
	b := get(block, "b").Message()
	stamped := proto.Clone(b.Interface()).ProtoReflect()
	set(stamped, "generationStamp", stamp)
	request := message("UpdatePipelineRequestProto")
	nodes, locs := mutable(request, "newNodes"), get(block, "locs").List()
	for i := range locs.Len() {
		nodes.Append(get(locs.Get(i).Message(), "id"))
	}
	storages, ids := mutable(request, "storageIDs"), get(block, "storageIDs").List()
	for i := range ids.Len() {
		storages.Append(ids.Get(i))
	}
	err := c.execute("updatePipeline", message("UpdatePipelineResponseProto"), request, fields{
		"clientName": protoreflect.ValueOfString(c.Name()),
		"oldBlock":   protoreflect.ValueOfMessage(b), "newBlock": protoreflect.ValueOfMessage(stamped),
	})
	if err == nil {
		set(b, "generationStamp", stamp)
	}
	return err
}

// locate returns the size of a file, which is closed, and the DataNodes that the NameNode knows of to have its last block.
func (c *client) locate(name string) (int64, []string, error) {
	located := message("GetBlockLocationsResponseProto")
	err := c.execute("getBlockLocations", located, message("GetBlockLocationsRequestProto"), fields{
		"src": protoreflect.ValueOfString(name), "offset": protoreflect.ValueOfUint64(0), "length": protoreflect.ValueOfUint64(1),
	})
	if err != nil {
		return 0, nil, fmt.Errorf("locate the last block: %w", err)
	}
	file := get(located, "locations").Message()
	return int64(get(file, "fileLength").Uint()), dataNodes(get(file, "lastBlock").Message()), nil
}

// restamp returns the request to write a block, in which the library has the old stamp, with another latestGenerationStamp. It
// is a version (2 bytes), an opcode (1), the length of the OpWriteBlockProto as a varint, and that: see Hadoop's DataTransferProtocol.
func restamp(request []byte, stamp protoreflect.Value) ([]byte, error) {
	const headerBytes = 3
	if len(request) < headerBytes {
		return nil, errors.New("the request to append to a block is too short")
	}
	body, n := protowire.ConsumeBytes(request[headerBytes:])
	if n != len(request)-headerBytes {
		return nil, errors.New("the request to append to a block is not one message")
	}
	m := message("OpWriteBlockProto")
	if err := proto.Unmarshal(body, m.Interface()); err != nil {
		return nil, fmt.Errorf("decode the request to append to a block: %w", err)
	}
	set(m, "latestGenerationStamp", stamp)
	body, err := proto.Marshal(m.Interface())
	if err != nil {
		return nil, fmt.Errorf("encode the request to append to a block: %w", err)
	}
	return protowire.AppendBytes(request[:headerBytes:headerBytes], body), nil
}

// What follows reaches into colinmarc/hdfs, which exports neither blocks nor requests to the NameNode. TestInternals fails when
// what is used of it is not there in a new version.

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// hidden is an unexported field of what p points to.
func hidden(p any, name string) reflect.Value {
	field := reflect.ValueOf(p).Elem().FieldByName(name)
	return reflect.NewAt(field.Type(), field.Addr().UnsafePointer()).Elem()
}

// blockOf is the LocatedBlockProto that w writes to now, the writer's own, or nil when w writes to none yet.
func blockOf(w *hdfs.FileWriter) protoreflect.Message {
	writer := hidden(w, "blockWriter")
	if writer.IsNil() {
		return nil
	}
	return writer.Elem().FieldByName("Block").Interface().(proto.Message).ProtoReflect()
}

// dataNodes are the ids of the DataNodes that a block is on.
func dataNodes(block protoreflect.Message) []string {
	locs := get(block, "locs").List()
	ids := make([]string, locs.Len())
	for i := range ids {
		ids[i] = get(get(locs.Get(i).Message(), "id").Message(), "datanodeUuid").String()
	}
	return ids
}

// nameNode sends requests of Hadoop's ClientNamenodeProtocol.
type nameNode interface {
	Execute(method string, request, response proto.Message) error
}

type fields map[protoreflect.Name]protoreflect.Value

// execute sends request, with these fields set, to the NameNode.
func (c *client) execute(method string, response, request protoreflect.Message, with fields) error {
	for name, value := range with {
		set(request, name, value)
	}
	return hidden(c.Client, "namenode").Interface().(nameNode).Execute(method, request.Interface(), response.Interface())
}

// message is a new message of Hadoop's protocols, which the library has registered.
func message(name protoreflect.Name) protoreflect.Message {
	t, err := protoregistry.GlobalTypes.FindMessageByName("hadoop.hdfs." + protoreflect.FullName(name))
	if err != nil {
		panic(err)
	}
	return t.New()
}

func get(m protoreflect.Message, field protoreflect.Name) protoreflect.Value {
	return m.Get(m.Descriptor().Fields().ByName(field))
}

func set(m protoreflect.Message, field protoreflect.Name, v protoreflect.Value) {
	m.Set(m.Descriptor().Fields().ByName(field), v)
}

func mutable(m protoreflect.Message, field protoreflect.Name) protoreflect.List {
	return m.Mutable(m.Descriptor().Fields().ByName(field)).List()
}
