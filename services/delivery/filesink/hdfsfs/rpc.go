package hdfsfs

import (
	"errors"
	"fmt"
	"net"
	"os"
	"reflect"
	"strconv"
	"strings"

	"github.com/colinmarc/hdfs/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// Requests to the NameNode that the library does not make, or makes under its own client name.
// Its messages are internal to it, and registered: they are built by the names of their fields.
// TestMessages fails when one of those is not there in a new version.

// Bits of CreateRequestProto.createFlag, and ids of storage policies and erasure coding policies.
const (
	createNew         = 0x01
	policyLazyPersist = 15
	policyReplication = 0
)

// dataNode is one of those that have a block, or are to get it.
type dataNode struct {
	info protoreflect.Message // DatanodeInfoProto
	uuid string
	addr string // host:port for block data
	ip   string // the same by its address, as DataNodes name each other
	beat uint64 // when the NameNode heard of it last, in ms by the NameNode's monotonic clock
}

// located is a block and where it is.
type located struct {
	m     protoreflect.Message // LocatedBlockProto
	nodes []dataNode
}

// block is its ExtendedBlockProto, with a length.
func (l *located) block(length int64) protoreflect.Message {
	b := proto.Clone(get(l.m, "b").Message().Interface()).ProtoReflect()
	set(b, "numBytes", protoreflect.ValueOfUint64(uint64(length)))
	return b
}

// offset is where in the file the block begins.
func (l *located) offset() int64 { return int64(get(l.m, "offset").Uint()) }

// end is where in the file the block ends, as far as the NameNode knows.
func (l *located) end() int64 {
	return l.offset() + int64(get(get(l.m, "b").Message(), "numBytes").Uint())
}

// String names the block and its DataNodes, for operators.
func (l *located) String() string {
	addrs := make([]string, len(l.nodes))
	for i, n := range l.nodes {
		addrs[i] = n.addr
	}
	return fmt.Sprintf("blk_%d on DataNodes %s", get(get(l.m, "b").Message(), "blockId").Uint(), strings.Join(addrs, ", "))
}

func newLocated(m protoreflect.Message, byName bool) *located {
	l := &located{m: m}
	locs := get(m, "locs").List()
	for i := range locs.Len() {
		info := locs.Get(i).Message()
		id := get(info, "id").Message()
		port := strconv.FormatUint(get(id, "xferPort").Uint(), 10)
		n := dataNode{info: info, uuid: get(id, "datanodeUuid").String(), ip: net.JoinHostPort(get(id, "ipAddr").String(), port),
			beat: get(info, "lastUpdateMonotonic").Uint()}
		if n.addr = n.ip; byName {
			n.addr = net.JoinHostPort(get(id, "hostName").String(), port)
		}
		l.nodes = append(l.nodes, n)
	}
	return l
}

// created is a new file.
type created struct {
	id                      uint64
	storagePolicy, ecPolicy uint64
}

func (c *client) create(name, holder string, replication int, blockSize int64) (created, error) {
	resp := message("CreateResponseProto")
	err := c.execute("create", resp, "CreateRequestProto", fields{
		"src": name, "clientName": holder, "createFlag": uint32(createNew), "createParent": false,
		"masked":      build("FsPermissionProto", fields{"perm": uint32(c.cluster.fileMode)}),
		"replication": uint32(replication), "blockSize": uint64(blockSize),
	})
	status := get(resp, "fs").Message()
	return created{get(status, "fileId").Uint(), get(status, "storagePolicy").Uint(), get(get(status, "ecPolicy").Message(), "id").Uint()}, err
}

// addBlock asks for the next block of a file. Repeated with the same previous block, it names the
// same one.
func (c *client) addBlock(name, holder string, id uint64, previous protoreflect.Message, excluded []protoreflect.Message) (*located, error) {
	resp := message("AddBlockResponseProto")
	err := c.execute("addBlock", resp, "AddBlockRequestProto", fields{
		"src": name, "clientName": holder, "fileId": id, "previous": previous, "excludeNodes": excluded})
	if err != nil {
		return nil, err
	}
	return newLocated(get(resp, "block").Message(), c.cluster.options.UseDatanodeHostname), nil
}

func (c *client) abandonBlock(name, holder string, id uint64, block protoreflect.Message) error {
	return c.execute("abandonBlock", message("AbandonBlockResponseProto"), "AbandonBlockRequestProto", fields{
		"b": block, "src": name, "holder": holder, "fileId": id})
}

// fsync tells the NameNode the length of a file's last block.
func (c *client) fsync(name, holder string, id uint64, lastBlock int64) error {
	return c.execute("fsync", message("FsyncResponseProto"), "FsyncRequestProto", fields{
		"src": name, "client": holder, "lastBlockLength": lastBlock, "fileId": id})
}

// complete closes a file with the length of its last block, if it has one. False is: not yet.
func (c *client) complete(name, holder string, id uint64, last protoreflect.Message) (bool, error) {
	resp := message("CompleteResponseProto")
	err := c.execute("complete", resp, "CompleteRequestProto", fields{"src": name, "clientName": holder, "fileId": id, "last": last})
	return get(resp, "result").Bool(), err
}

func (c *client) renewLease(holder string) error {
	return c.execute("renewLease", message("RenewLeaseResponseProto"), "RenewLeaseRequestProto", fields{"clientName": holder})
}

// recoverLease has the NameNode finish a file. True is: it is closed.
func (c *client) recoverLease(name, holder string) (bool, error) {
	resp := message("RecoverLeaseResponseProto")
	err := c.execute("recoverLease", resp, "RecoverLeaseRequestProto", fields{"src": name, "clientName": holder})
	return get(resp, "result").Bool(), err
}

// truncate cuts a closed file. False is: recoverLease tells when it is done.
func (c *client) truncate(name, holder string, length int64) (bool, error) {
	resp := message("TruncateResponseProto")
	err := c.execute("truncate", resp, "TruncateRequestProto", fields{"src": name, "newLength": uint64(length), "clientName": holder})
	return get(resp, "result").Bool(), err
}

func (c *client) concat(name, more string) error {
	return c.execute("concat", message("ConcatResponseProto"), "ConcatRequestProto", fields{"trg": name, "srcs": []string{more}})
}

// rename gives from the name to. With overwrite it replaces what is there.
func (c *client) rename(from, to string, overwrite bool) error {
	return c.execute("rename2", message("Rename2ResponseProto"), "Rename2RequestProto", fields{"src": from, "dst": to, "overwriteDest": overwrite})
}

// state is what the NameNode knows of a file's end.
type state struct {
	length int64
	open   bool     // somebody writes it, or HDFS still recovers it
	last   *located // nil without blocks
}

func (c *client) locate(name string) (state, error) {
	resp := message("GetBlockLocationsResponseProto")
	err := c.execute("getBlockLocations", resp, "GetBlockLocationsRequestProto", fields{"src": name, "offset": uint64(0), "length": uint64(1)})
	if err == nil && !has(resp, "locations") {
		err = os.ErrNotExist
	}
	if err != nil {
		return state{}, err
	}
	file := get(resp, "locations").Message()
	s := state{length: int64(get(file, "fileLength").Uint()), open: get(file, "underConstruction").Bool()}
	if has(file, "lastBlock") {
		s.last = newLocated(get(file, "lastBlock").Message(), c.cluster.options.UseDatanodeHostname)
	}
	return s, nil
}

// nameNode sends requests of Hadoop's ClientNamenodeProtocol.
type nameNode interface {
	Execute(method string, request, response proto.Message) error
}

// execute sends a request to the NameNode. Its errors are those of package os where that has them.
func (c *client) execute(method string, response protoreflect.Message, request protoreflect.Name, with fields) error {
	err := hidden(c.Client, "namenode").Interface().(nameNode).Execute(method, build(request, with).Interface(), response.Interface())
	if meaning := os.ErrNotExist; exceptionOf(err) != "" {
		switch exceptionOf(err) {
		case "java.io.FileNotFoundException":
		case "hdfs.protocol.AlreadyBeingCreatedException":
			if method != "create" {
				return err
			}
			meaning = os.ErrExist
		case "fs.FileAlreadyExistsException":
			meaning = os.ErrExist
		case "security.AccessControlException":
			meaning = os.ErrPermission
		case "HadoopIllegalArgumentException":
			meaning = os.ErrInvalid
		default:
			return err
		}
		return fmt.Errorf("%w: %w", meaning, err)
	}
	return err
}

// exceptionOf is the class of the exception in err, without org.apache.hadoop; empty when the
// NameNode did not answer.
func exceptionOf(err error) string {
	var remote hdfs.Error
	if !errors.As(err, &remote) {
		return ""
	}
	return strings.TrimPrefix(remote.Exception(), "org.apache.hadoop.")
}

// fields are those to set of a message. A nil message, or an empty list, is left out.
type fields map[protoreflect.Name]any

func build(name protoreflect.Name, with fields) protoreflect.Message {
	m := message(name)
	for field, v := range with {
		switch v := v.(type) {
		case protoreflect.Message:
			if v != nil {
				set(m, field, protoreflect.ValueOfMessage(v))
			}
		case []protoreflect.Message:
			for _, x := range v {
				mutable(m, field).Append(protoreflect.ValueOfMessage(x))
			}
		case []string:
			for _, x := range v {
				mutable(m, field).Append(protoreflect.ValueOfString(x))
			}
		case nil:
		default:
			set(m, field, protoreflect.ValueOf(v))
		}
	}
	return m
}

// message is a new message of Hadoop's protocols, which the library has registered.
func message(name protoreflect.Name) protoreflect.Message {
	t, err := protoregistry.GlobalTypes.FindMessageByName("hadoop.hdfs." + protoreflect.FullName(name))
	if err != nil {
		panic(err)
	}
	return t.New()
}

func has(m protoreflect.Message, field protoreflect.Name) bool {
	return m.Has(m.Descriptor().Fields().ByName(field))
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

// hidden is an unexported field of what p points to.
func hidden(p any, name string) reflect.Value {
	field := reflect.ValueOf(p).Elem().FieldByName(name)
	return reflect.NewAt(field.Type(), field.Addr().UnsafePointer()).Elem()
}
