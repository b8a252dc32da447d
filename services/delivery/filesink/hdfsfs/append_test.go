package hdfsfs

import (
	"bytes"
	"net"
	"reflect"
	"strings"
	"testing"

	"github.com/colinmarc/hdfs/v2"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// What is used of the library beyond what it exports is as in the version that was read.
func TestInternals(t *testing.T) {
	w := &hdfs.FileWriter{}
	if block := blockOf(w); block != nil {
		t.Errorf("a writer that has no block yet writes to %v", block)
	}
	writer := hidden(w, "blockWriter")
	writer.Set(reflect.New(writer.Type().Elem()))
	if _, ok := writer.Elem().FieldByName("DialFunc").Interface().(dialFunc); !ok {
		t.Error("a block writer dials in another way")
	}
	if writer.Elem().FieldByName("Append").Bool() {
		t.Error("a new block writer appends")
	}
	stream := hidden(writer.Interface(), "stream")
	stream.Set(reflect.New(stream.Type().Elem()))
	for _, channel := range []string{"heartbeats", "packets"} {
		c := hidden(stream.Interface(), channel)
		c.Set(reflect.MakeChan(c.Type(), 1))
	}
	advance(w, 7)
	if got := hidden(stream.Interface(), "offset").Int(); got != 7 || writer.Elem().FieldByName("Offset").Int() != 7 {
		t.Errorf("the stream is at %d", got)
	}
	packets := hidden(stream.Interface(), "packets")
	packets.Send(reflect.ValueOf(1))
	for range 2 {
		abandon(w)
		if v, ok := packets.TryRecv(); ok || !v.IsValid() {
			t.Error("an abandoned writer waits for packets")
		}
	}
	located := message("LocatedBlockProto")
	located.Mutable(located.Descriptor().Fields().ByName("b"))
	locs := mutable(located, "locs")
	for _, id := range []string{"one", "two"} {
		info := message("DatanodeInfoProto")
		set(info.Mutable(info.Descriptor().Fields().ByName("id")).Message(), "datanodeUuid", protoreflect.ValueOfString(id))
		locs.Append(protoreflect.ValueOfMessage(info))
	}
	writer.Elem().FieldByName("Block").Set(reflect.ValueOf(located.Interface()))
	if got := dataNodes(blockOf(w)); !reflect.DeepEqual(got, []string{"one", "two"}) {
		t.Errorf("the block is on %q", got)
	}
	set(get(blockOf(w), "b").Message(), "generationStamp", protoreflect.ValueOfUint64(7))
	if got := get(get(located, "b").Message(), "generationStamp").Uint(); got != 7 {
		t.Errorf("the writer's own block has stamp %d", got)
	}
	for name, fields := range map[protoreflect.Name]string{
		"UpdateBlockForPipelineRequestProto": "block clientName", "UpdateBlockForPipelineResponseProto": "block",
		"UpdatePipelineRequestProto": "clientName oldBlock newBlock newNodes storageIDs", "UpdatePipelineResponseProto": "",
		"GetBlockLocationsRequestProto": "src offset length", "GetBlockLocationsResponseProto": "locations", "LocatedBlocksProto": "fileLength lastBlock",
	} {
		for _, field := range strings.Fields(fields) {
			if message(name).Descriptor().Fields().ByName(protoreflect.Name(field)) == nil {
				t.Errorf("%s has no %s", name, field)
			}
		}
	}
	if _, ok := hidden(&hdfs.Client{}, "namenode").Interface().(nameNode); !ok {
		t.Error("a client sends requests in another way")
	}
}

// The request to write, and nothing else, gets the new stamp.
func TestRestamp(t *testing.T) {
	encode := func(stamp string) []byte {
		m := message("OpWriteBlockProto").Interface()
		err := prototext.Unmarshal([]byte(`
			header { baseHeader { block { poolId: "p" blockId: 1073741825 generationStamp: 1001 } } clientName: "c" }
			targets { id { ipAddr: "127.0.0.1" hostName: "h" datanodeUuid: "u" xferPort: 9866 infoPort: 9864 ipcPort: 9867 } }
			stage: PIPELINE_SETUP_APPEND pipelineSize: 1 minBytesRcvd: 10 maxBytesRcvd: 10
			requestedChecksum { type: CHECKSUM_CRC32C bytesPerChecksum: 512 } latestGenerationStamp: `+stamp), m)
		if err != nil {
			t.Fatal(err)
		}
		body, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return protowire.AppendBytes([]byte{0, 28, 80}, body)
	}
	ours, theirs := net.Pipe()
	defer theirs.Close()
	conn := &blockConn{Conn: ours, stamp: protoreflect.ValueOfUint64(1_000_002)}
	before, packet := encode("1001"), []byte("a packet")
	go func() {
		defer ours.Close()
		for _, p := range [][]byte{before, packet} {
			if n, err := conn.Write(p); n != len(p) || err != nil {
				t.Errorf("Write of %d bytes: %d, %v", len(p), n, err)
			}
		}
	}()
	var got bytes.Buffer
	if _, err := got.ReadFrom(theirs); err != nil {
		t.Fatal(err)
	}
	if want := append(encode("1000002"), packet...); !bytes.Equal(got.Bytes(), want) {
		t.Errorf("sent %x, want %x", got.Bytes(), want)
	}
	for _, bad := range [][]byte{nil, {0, 28}, {0, 28, 80}, {0, 28, 80, 5, 1}, append(before[:len(before):len(before)], 0), {0, 28, 80, 1, 7}} {
		if _, err := restamp(bad, protoreflect.ValueOfUint64(1)); err == nil {
			t.Errorf("restamp of %x succeeded", bad)
		}
	}
}
