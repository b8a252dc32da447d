package rpc

import (
	"context"
	"fmt"
	"strings"
	"unicode"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// maxAdminBytes bounds requests that are not of the streams that records flow in.
const maxAdminBytes = 1 << 20

// large are the requests of those.
var large = map[protoreflect.Name]bool{"AppendRequest": true, "ConsumeRequest": true}

const (
	// maxElements bounds the messages and numbers in a request: two bytes can be a message, which
	// takes 60 in memory.
	maxElements = 1_000_000
	// maxNameBytes and maxTextBytes bound strings that are names, and others.
	maxNameBytes = 256
	maxTextBytes = 4 << 10
)

// counts are fields of numbers that are never below 0, wherever they are.
var counts = map[protoreflect.Name]bool{"page_size": true, "limit": true, "limit_bytes": true, "offset": true, "from_offset": true, "partition": true, "partitions": true}

// unchecked are messages in which the handlers look for themselves: their answers are about one
// batch or ack, and do not end the stream.
var unchecked = map[protoreflect.FullName]bool{"spillway.v1.Batch": true, "spillway.v1.SettleRange": true, "spillway.v1.Ack": true, "spillway.v1.Fingerprint": true}

// Check refuses requests that can never be right, whatever they ask for: enum values that nobody
// knows, names with control characters or without end, numbers below 0 where there is no such
// number, times that are none. The error is INVALID_ARGUMENT and names the field.
func Check(m proto.Message) error {
	problem := oversized(m.ProtoReflect())
	if problem == "" {
		problem = checkMessage(m.ProtoReflect())
	}
	if problem != "" {
		return Error(codes.InvalidArgument, "MALFORMED", 0, "%s %s", m.ProtoReflect().Descriptor().Name(), problem)
	}
	return nil
}

// checkMessage returns what is wrong with a message: a path of fields and a problem with a colon
// before it. The path is put together on the way back, so that it costs nothing when all is well.
func checkMessage(m protoreflect.Message) (problem string) {
	if unchecked[m.Descriptor().FullName()] {
		return ""
	}
	switch v := m.Interface().(type) {
	case *durationpb.Duration:
		if v.CheckValid() != nil || v.AsDuration() < 0 || v.Seconds > maxSeconds {
			return fmt.Sprintf(": %ds is no duration from 0 to 292 years", v.Seconds)
		}
		return ""
	case *timestamppb.Timestamp:
		if v.CheckValid() != nil || v.Seconds < 0 {
			return fmt.Sprintf(": %ds since 1970 is no time from 1970 to 9999", v.Seconds)
		}
		return ""
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		at := ""
		switch {
		case f.IsMap():
		case f.IsList():
			list := v.List()
			for i := 0; i < list.Len() && problem == ""; i++ {
				if problem = checkValue(f, list.Get(i)); problem != "" {
					at = fmt.Sprintf("[%d]", i)
				}
			}
		default:
			problem = checkValue(f, v)
		}
		if problem == "" {
			return true
		}
		if problem[0] != ':' {
			at += "."
		}
		problem = string(f.Name()) + at + problem
		return false
	})
	return problem
}

const maxSeconds = 292 * 365 * 24 * 60 * 60

func checkValue(f protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch f.Kind() {
	case protoreflect.MessageKind:
		return checkMessage(v.Message())
	case protoreflect.EnumKind:
		if f.Enum().Values().ByNumber(v.Enum()) == nil {
			return fmt.Sprintf(": %d is no value of %s", v.Enum(), f.Enum().Name())
		}
	case protoreflect.Int32Kind, protoreflect.Int64Kind:
		if v.Int() < 0 && counts[f.Name()] {
			return fmt.Sprintf(": is %d; want 0 or more", v.Int())
		}
	case protoreflect.StringKind:
		return checkText(f.Name(), v.String())
	}
	return ""
}

func checkText(name protoreflect.Name, text string) string {
	limit := maxNameBytes
	switch name {
	case "reason":
		return "" // is cut where it is kept
	case "page_token", "key", "name", "subscription":
		limit = maxTextBytes // a token has names in it; of the others the handlers know the length
	}
	if len(text) > limit {
		return fmt.Sprintf(": has %d bytes; want at most %d", len(text), limit)
	}
	if strings.ContainsFunc(text, unicode.IsControl) {
		return fmt.Sprintf(": %.100q has a control character", text)
	}
	return ""
}

// checkUnary and checkStream have every request of Spillway's services checked.
func checkUnary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if m, ok := request.(proto.Message); ok && ours(info.FullMethod) {
		if err := Check(m); err != nil {
			return nil, err
		}
	}
	return handler(ctx, request)
}

func checkStream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if ours(info.FullMethod) {
		stream = checkedStream{stream}
	}
	return handler(server, stream)
}

func ours(method string) bool { return strings.HasPrefix(method, "/spillway.") }

type checkedStream struct{ grpc.ServerStream }

// RecvMsg implements grpc.ServerStream.
func (s checkedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	if p, ok := m.(proto.Message); ok {
		return Check(p)
	}
	return nil
}

// oversize is a field number that no request has. The codec puts what is wrong with a request
// there instead of decoding it, as gRPC would call an error of the codec an internal one.
const oversize = protowire.Number(19_000 - 1)

// bounded returns what is wrong with an encoded request that would take far more memory than it
// is long; empty when nothing is. b is without the payload.
func bounded(d protoreflect.MessageDescriptor, b []byte) string {
	if len(b) > maxAdminBytes && d.ParentFile().Package() == "spillway.v1" && strings.HasSuffix(string(d.Name()), "Request") && !large[d.Name()] {
		return fmt.Sprintf("has %d bytes; want at most %d", len(b), maxAdminBytes)
	}
	if d.ParentFile().Package() == "spillway.v1" && strings.HasSuffix(string(d.Name()), "Request") && elements(d, b, 0) > maxElements {
		return fmt.Sprintf("has more than %d messages and numbers", maxElements)
	}
	return ""
}

// markOversize has Check refuse m.
func markOversize(m protoreflect.Message, problem string) {
	m.SetUnknown(protowire.AppendString(protowire.AppendTag(nil, oversize, protowire.BytesType), problem))
}

// oversized returns what markOversize has noted. A client that sends the field itself is refused
// as well.
func oversized(m protoreflect.Message) string {
	for b := m.GetUnknown(); len(b) > 0; {
		number, kind, n := protowire.ConsumeField(b)
		if n < 0 {
			return ""
		}
		if number == oversize && kind == protowire.BytesType {
			_, _, tag := protowire.ConsumeTag(b)
			problem, _ := protowire.ConsumeString(b[tag:])
			return fmt.Sprintf("%.200s", problem)
		}
		b = b[n:]
	}
	return ""
}

// elements counts the messages and the numbers in an encoded message. It stops at what is
// malformed, which decoding finds as well.
func elements(d protoreflect.MessageDescriptor, b []byte, depth int) (n int) {
	for len(b) > 0 && n <= maxElements && depth < 10 {
		number, kind, tag := protowire.ConsumeTag(b)
		if tag < 0 {
			return n
		}
		size := protowire.ConsumeFieldValue(number, kind, b[tag:])
		if size < 0 {
			return n
		}
		if kind == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(b[tag:])
			switch f := d.Fields().ByNumber(number); {
			case f == nil:
			case f.Message() != nil:
				n += 1 + elements(f.Message(), value, depth+1)
			case f.IsPacked():
				for _, c := range value {
					if c < 0x80 { // the last byte of a number
						n++
					}
				}
			case f.IsList():
				n++
			}
		} else {
			n++
		}
		b = b[tag+size:]
	}
	return n
}
