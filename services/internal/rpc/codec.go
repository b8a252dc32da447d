package rpc

import (
	"bytes"
	"fmt"

	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// payloadCodec is gRPC's protobuf codec, but for messages that carry a batch: it does not copy
// the payload into the encoded message, and takes it out of the received bytes in one copy. What
// is on the wire is the same.
//
// A payload that is sent must not change afterwards, which gRPC asks of messages anyway. A
// payload that was received keeps the bytes of its message alive, which are little more.
type payloadCodec struct{ encoding.CodecV2 }

var codec = payloadCodec{encoding.GetCodecV2(protocodec.Name)}

// splitBytes is the size of a payload for which this is worth it.
const splitBytes = 4 << 10

// A route leads from a message to the payload in it.
type route []protoreflect.FieldDescriptor

var (
	batchRoute = route{field[*spillwayv1.Batch]("payload")}
	routes     = map[protoreflect.FullName]route{
		"spillway.v1.AppendRequest":   append(route{field[*spillwayv1.AppendRequest]("batch")}, batchRoute...),
		"spillway.v1.ConsumeResponse": append(route{field[*spillwayv1.ConsumeResponse]("lease"), field[*spillwayv1.Lease]("batch")}, batchRoute...),
	}
)

func field[M proto.Message](name protoreflect.Name) protoreflect.FieldDescriptor {
	var m M
	return m.ProtoReflect().Descriptor().Fields().ByName(name)
}

func routeOf(v any) (protoreflect.Message, route) {
	m, ok := v.(proto.Message)
	if !ok {
		return nil, nil
	}
	r := m.ProtoReflect()
	return r, routes[r.Descriptor().FullName()]
}

// Tracked is a message that can be sent in place of one of its type, with SendMsg. Sent is called
// once its payload is written to the network, or copied. It may not be called when the stream
// ends before that.
type Tracked struct {
	Message proto.Message
	Sent    func()
}

// sentPool is a pool to which only one buffer is given back.
type sentPool func()

// Get implements mem.BufferPool. It is never called.
func (sentPool) Get(n int) *[]byte {
	b := make([]byte, n)
	return &b
}

// Put implements mem.BufferPool.
func (p sentPool) Put(*[]byte) { p() }

// Marshal implements encoding.CodecV2.
func (c payloadCodec) Marshal(v any) (mem.BufferSlice, error) {
	var pool mem.BufferPool
	if t, ok := v.(*Tracked); ok {
		v = t.Message
		pool = sentPool(t.Sent)
	}
	m, p := routeOf(v)
	if payload := p.payload(m); len(payload) >= splitBytes {
		head, err := p.marshalHead(m, len(payload))
		if err != nil {
			return nil, fmt.Errorf("marshal %T: %w", v, err)
		}
		return mem.BufferSlice{mem.SliceBuffer(head), mem.NewBuffer(&payload, pool)}, nil
	}
	b, err := c.CodecV2.Marshal(v)
	if pool != nil && err == nil {
		pool.Put(nil)
	}
	return b, err
}

// payload is what the route leads to; nil when there is nothing.
func (p route) payload(m protoreflect.Message) []byte {
	for i, f := range p {
		if !m.Has(f) {
			return nil
		}
		if i == len(p)-1 {
			return m.Get(f).Bytes()
		}
		m = m.Get(f).Message()
	}
	return nil
}

// marshalHead encodes all but the payload, so that the payload comes last.
func (p route) marshalHead(m protoreflect.Message, payload int) ([]byte, error) {
	rest := m.New()
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if f != p[0] {
			rest.Set(f, v)
		}
		return true
	})
	rest.SetUnknown(m.GetUnknown())
	head, err := proto.Marshal(rest.Interface())
	if err != nil {
		return nil, err
	}
	var inner []byte
	if len(p) > 1 {
		if inner, err = p[1:].marshalHead(m.Get(p[0]).Message(), payload); err != nil {
			return nil, err
		}
	}
	head = protowire.AppendTag(head, p[0].Number(), protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(len(inner)+payload))
	return append(head, inner...), nil
}

// Unmarshal implements encoding.CodecV2.
func (c payloadCodec) Unmarshal(data mem.BufferSlice, v any) error {
	m, p := routeOf(v)
	if m == nil || data.Len() < splitBytes {
		return c.CodecV2.Unmarshal(data, v)
	}
	chunks := make([][]byte, len(data))
	for i, b := range data {
		chunks[i] = b.ReadOnlyData()
	}
	b := bytes.Join(chunks, nil) // does not clear the memory first, as make would
	rest, payload, ok := b, []byte(nil), false
	if p != nil {
		if rest, payload, ok = p.cut(b); !ok {
			rest = b
		}
	}
	if problem := bounded(m.Descriptor(), rest); problem != "" {
		proto.Reset(m.Interface())
		markOversize(m, problem)
		return nil
	}
	if err := proto.Unmarshal(rest, m.Interface()); err != nil || !ok {
		return err
	}
	for _, f := range p[:len(p)-1] {
		m = m.Mutable(f).Message()
	}
	m.Set(p[len(p)-1], protoreflect.ValueOfBytes(payload))
	return nil
}

// cut takes the payload out of an encoded message. Not ok is a message without one, or with
// fields that are repeated or malformed: protobuf has rules for those.
func (p route) cut(b []byte) (rest, payload []byte, ok bool) {
	var inner []byte
	for at := b; len(at) > 0; {
		number, kind, n := protowire.ConsumeField(at)
		if n < 0 {
			return nil, nil, false
		}
		switch one := p[0].ContainingOneof(); {
		case number != p[0].Number():
			if one != nil && one.Fields().ByNumber(number) != nil {
				return nil, nil, false
			}
			rest = append(rest, at[:n]...)
		case kind != protowire.BytesType || ok:
			return nil, nil, false
		default:
			_, _, tag := protowire.ConsumeTag(at)
			inner, _ = protowire.ConsumeBytes(at[tag:])
			ok = true
		}
		at = at[n:]
	}
	if !ok || len(p) == 1 {
		return rest, inner[:len(inner):len(inner)], ok
	}
	if inner, payload, ok = p[1:].cut(inner); !ok {
		return nil, nil, false
	}
	rest = protowire.AppendTag(rest, p[0].Number(), protowire.BytesType)
	return protowire.AppendBytes(rest, inner), payload, true
}
