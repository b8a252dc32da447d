package rpc

import (
	"bytes"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// fill gives every field outside of oneofs a value.
func fill(m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.ContainingOneof() != nil {
			continue
		}
		one := func(v protoreflect.Value) protoreflect.Value {
			if f.Message() != nil {
				fill(v.Message())
				return v
			}
			switch f.Kind() {
			case protoreflect.BoolKind:
				return protoreflect.ValueOfBool(true)
			case protoreflect.StringKind:
				return protoreflect.ValueOfString("text")
			case protoreflect.BytesKind:
				return protoreflect.ValueOfBytes(bytes.Repeat([]byte("payload"), 1000))
			case protoreflect.EnumKind:
				return protoreflect.ValueOfEnum(1)
			case protoreflect.Int32Kind:
				return protoreflect.ValueOfInt32(-7)
			case protoreflect.Int64Kind:
				return protoreflect.ValueOfInt64(-1 << 40)
			case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
				return protoreflect.ValueOfUint32(7)
			case protoreflect.Uint64Kind:
				return protoreflect.ValueOfUint64(1 << 60)
			}
			panic(f.Kind())
		}
		switch {
		case f.IsList():
			list := m.Mutable(f).List()
			list.Append(one(list.NewElement()))
		case f.Message() != nil:
			one(m.Mutable(f))
		default:
			m.Set(f, one(protoreflect.Value{}))
		}
	}
}

// carriers are messages with a payload, all fields filled.
func carriers() []proto.Message {
	batch, lease := &spillwayv1.Batch{}, &spillwayv1.Lease{}
	fill(batch.ProtoReflect())
	fill(lease.ProtoReflect())
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 1000, protowire.VarintType), 5)
	batch.ProtoReflect().SetUnknown(unknown)
	lease.ProtoReflect().SetUnknown(unknown)
	return []proto.Message{
		&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Batch{Batch: batch}, RefetchId: 3},
		&spillwayv1.ConsumeResponse{Message: &spillwayv1.ConsumeResponse_Lease{Lease: lease}},
	}
}

// TestCodecIsProtobuf has the codec understood by protobuf, and protobuf by the codec.
func TestCodecIsProtobuf(t *testing.T) {
	for _, m := range carriers() {
		split, err := codec.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if len(split) != 2 {
			t.Errorf("%T is sent in %d parts: the payload was copied", m, len(split))
		}
		got := m.ProtoReflect().New().Interface()
		if err := proto.Unmarshal(split.Materialize(), got); err != nil || !proto.Equal(got, m) {
			t.Errorf("protobuf reads %T as %v, %v", m, got, err)
		}
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		got = m.ProtoReflect().New().Interface()
		if err := codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(b[:100]), mem.SliceBuffer(b[100:])}, got); err != nil || !proto.Equal(got, m) {
			t.Errorf("the codec reads %T as %v, %v", m, got, err)
		}
	}
}

// FuzzCodec has the codec read what protobuf reads, and nothing else.
func FuzzCodec(f *testing.F) {
	padding := protowire.AppendBytes(protowire.AppendTag(nil, 2000, protowire.BytesType), make([]byte, splitBytes))
	for i, m := range carriers() {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, i == 0)
		f.Add(append(b, b...), i == 0) // merged, by protobuf's rules
		settle, err := proto.Marshal(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Settle{Settle: &spillwayv1.SettleRange{Reason: "r"}}})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append(b, settle...), i == 0) // the last of a oneof counts
	}
	f.Fuzz(func(t *testing.T, b []byte, request bool) {
		b = append(b, padding...) // large enough to be split
		var got, want proto.Message = new(spillwayv1.ConsumeResponse), new(spillwayv1.ConsumeResponse)
		if request {
			got, want = new(spillwayv1.AppendRequest), new(spillwayv1.AppendRequest)
		}
		gotErr, wantErr := codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, got), proto.Unmarshal(b, want)
		if (gotErr == nil) != (wantErr == nil) || gotErr == nil && !proto.Equal(got, want) {
			t.Errorf("read as %v, %v; want %v, %v", got, gotErr, want, wantErr)
		}
	})
}
