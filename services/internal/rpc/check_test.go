package rpc

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

func consumeOpen(o *spillwayv1.ConsumeOpen) proto.Message {
	return &spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Open{Open: o}}
}

func nack(n *spillwayv1.Nack) proto.Message {
	return &spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Nack{Nack: n}}
}

func TestCheck(t *testing.T) {
	seek := func(p *spillwayv1.StartPosition) proto.Message {
		return &spillwayv1.SeekSubscriptionRequest{Name: "q/s", To: p}
	}
	for _, m := range []proto.Message{
		&spillwayv1.ListQueuesRequest{}, &spillwayv1.ListQueuesRequest{PageSize: math.MaxInt32, PageToken: strings.Repeat("t", 1000)},
		consumeOpen(&spillwayv1.ConsumeOpen{Subscription: "q/s", Consumer: "host.example-1:2 (é)", Ordering: spillwayv1.Ordering_ORDERING_PARTITION}),
		nack(&spillwayv1.Nack{Delay: durationpb.New(0), Reason: "two\nlines " + strings.Repeat("x", 1<<20)}),
		seek(&spillwayv1.StartPosition{Place: &spillwayv1.StartPosition_Time{Time: timestamppb.Now()}}),
		// Batches and acks are the handlers' to judge.
		&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Batch{Batch: &spillwayv1.Batch{Codec: 99, FirstOffset: -1, MaxTimestampMs: -1}}},
	} {
		if err := Check(m); err != nil {
			t.Errorf("%v: %v", m, err)
		}
	}
	for want, m := range map[string]proto.Message{
		"ConsumeRequest open.ordering: 257 is no value of Ordering":                  consumeOpen(&spillwayv1.ConsumeOpen{Ordering: 257}),
		"ConsumeRequest open.ordering: -1 is no value of Ordering":                   consumeOpen(&spillwayv1.ConsumeOpen{Ordering: -1}),
		`ConsumeRequest open.consumer: "a\nb" has a control character`:               consumeOpen(&spillwayv1.ConsumeOpen{Consumer: "a\nb"}),
		"ConsumeRequest open.consumer: has 257 bytes; want at most 256":              consumeOpen(&spillwayv1.ConsumeOpen{Consumer: strings.Repeat("x", 257)}),
		`ConsumeRequest open.subscription: "q/\x00" has a control character`:         consumeOpen(&spillwayv1.ConsumeOpen{Subscription: "q/\x00"}),
		"ConsumeRequest nack.delay: -1s is no duration from 0 to 292 years":          nack(&spillwayv1.Nack{Delay: durationpb.New(-1e9)}),
		"ConsumeRequest nack.delay: 10000000000s is no duration from 0 to 292 years": nack(&spillwayv1.Nack{Delay: &durationpb.Duration{Seconds: 1e10}}),
		"AppendRequest open.client: has 30000000 bytes; want at most 256": &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Open{
			Open: &spillwayv1.AppendOpen{Client: strings.Repeat("x", 30_000_000)}}},
		`AppendRequest assign.source.topic: "a\u0085" has a control character`: &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Assign{
			Assign: &spillwayv1.AssignPartition{Source: &spillwayv1.SourcePartition{Topic: "a\u0085"}}}},
		"AppendRequest topics.topics[1].partitions: is -1; want 0 or more": &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Topics{
			Topics: &spillwayv1.SourceTopics{Topics: []*spillwayv1.SourceTopic{{Topic: "a", Partitions: 1}, {Topic: "b", Partitions: -1}}}}},
		"SeekSubscriptionRequest to.time: -1s since 1970 is no time from 1970 to 9999": seek(&spillwayv1.StartPosition{Place: &spillwayv1.StartPosition_Time{
			Time: &timestamppb.Timestamp{Seconds: -1}}}),
		"SeekSubscriptionRequest to.offsets[0].offset: is -1; want 0 or more":  seek(&spillwayv1.StartPosition{Offsets: []*spillwayv1.PartitionOffset{{Offset: -1}}}),
		"CreateSubscriptionRequest on_full: 7 is no value of OnFull":           &spillwayv1.CreateSubscriptionRequest{Name: "q/s", OnFull: 7},
		"CreateSubscriptionRequest topics[0]: has 257 bytes; want at most 256": &spillwayv1.CreateSubscriptionRequest{Topics: []string{strings.Repeat("x", 257)}},
		"ListUndeliveredRequest outcome: 99 is no value of Outcome":            &spillwayv1.ListUndeliveredRequest{Outcome: 99},
		"ListSessionsRequest page_size: is -1; want 0 or more":                 &spillwayv1.ListSessionsRequest{PageSize: -1},
	} {
		err := Check(m)
		if status.Code(err) != codes.InvalidArgument || status.Convert(err).Message() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// TestServerChecks has both kinds of calls checked.
func TestServerChecks(t *testing.T) {
	f := start(t)
	stream := f.append(t)
	if err := stream.Send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Open{Open: &spillwayv1.AppendOpen{Queue: "q\x01"}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a stream: %v", err)
	}
	_, err := checkUnary(t.Context(), &spillwayv1.GetQueueRequest{Name: "q\x01"}, &grpc.UnaryServerInfo{FullMethod: "/spillway.v1.BufferAdminService/GetQueue"}, nil)
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a unary call: %v", err)
	}
}

// TestDecodingIsBounded has requests that are short on the wire and large in memory.
func TestDecodingIsBounded(t *testing.T) {
	empty := func(n int) []byte { return []byte(strings.Repeat("\x12\x00", n)) } // AckedLease.filtered, without anything in it
	ack := func(leases ...[]byte) []byte {
		var b []byte
		for _, l := range leases {
			b = protowire.AppendBytes(protowire.AppendTag(b, 2, protowire.BytesType), l)
		}
		return protowire.AppendBytes(protowire.AppendTag(nil, 3, protowire.BytesType), b)
	}
	extend := func(n int) []byte {
		ids := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), []byte(strings.Repeat("\x01", n)))
		return protowire.AppendBytes(protowire.AppendTag(nil, 5, protowire.BytesType), ids)
	}
	read := func(b []byte, v proto.Message) error { return codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, v) }
	for name, test := range map[string]struct {
		b    []byte
		fits bool
	}{
		"600,000 ranges":            {ack(empty(600_000)), true},
		"3,000,000 ranges":          {ack(empty(3_000_000)), false},
		"3,000,000 ranges in parts": {ack(empty(1_000_000), empty(1_000_000), empty(1_000_000)), false},
		"900,000 leases":            {extend(900_000), true},
		"3,000,000 leases":          {extend(3_000_000), false},
		"an unknown field":          {protowire.AppendBytes(protowire.AppendTag(nil, 999, protowire.BytesType), make([]byte, 15<<20)), true},
	} {
		m := new(spillwayv1.ConsumeRequest)
		if err := read(test.b, m); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := Check(m); (err == nil) != test.fits || err != nil && status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
		if n := proto.Size(m); !test.fits && n > 1000 {
			t.Errorf("%s: it was decoded: %d bytes", name, n)
		}
	}
	payload := &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Batch{Batch: &spillwayv1.Batch{Payload: make([]byte, 30<<20)}}}
	b, err := proto.Marshal(payload)
	if err != nil {
		t.Fatal(err)
	}
	if err := read(b, new(spillwayv1.AppendRequest)); err != nil {
		t.Errorf("a payload of 30 MiB: %v", err)
	}
	if err := read(make([]byte, 0), new(spillwayv1.ListQueuesRequest)); err != nil {
		t.Error(err)
	}
}

// FuzzCheck decodes any request: Check ends, and what it passes has known enum values, short
// names without control characters, and no number below 0 where there is none.
func FuzzCheck(f *testing.F) {
	requests := []protoreflect.FullName{"spillway.v1.AppendRequest", "spillway.v1.ConsumeRequest", "spillway.v1.CreateSubscriptionRequest",
		"spillway.v1.SeekSubscriptionRequest", "spillway.v1.ListUndeliveredRequest", "spillway.v1.PeekRecordsRequest"}
	for i, m := range []proto.Message{consumeOpen(&spillwayv1.ConsumeOpen{Ordering: 257, Consumer: "a\nb"}), nack(&spillwayv1.Nack{Delay: durationpb.New(-5)}),
		&spillwayv1.ListUndeliveredRequest{PageSize: -1, Outcome: 99}} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint8(1+3*(i/2)))
	}
	f.Fuzz(func(t *testing.T, b []byte, which uint8) {
		kind, err := protoregistry.GlobalTypes.FindMessageByName(requests[int(which)%len(requests)])
		if err != nil {
			t.Fatal(err)
		}
		m := kind.New().Interface()
		if proto.Unmarshal(b, m) != nil || Check(m) != nil {
			return
		}
		switch m := m.(type) {
		case *spillwayv1.ConsumeRequest:
			if o := m.GetOpen(); o != nil {
				if spillwayv1.Ordering_name[int32(o.Ordering)] == "" || len(o.Consumer) > maxNameBytes || strings.ContainsAny(o.Consumer+o.Subscription, "\x00\n\r\x1b") {
					t.Errorf("passed: %v", m)
				}
			}
			if d := m.GetNack().GetDelay(); d != nil && d.AsDuration() < 0 {
				t.Errorf("passed: %v", m)
			}
		case *spillwayv1.ListUndeliveredRequest:
			if m.PageSize < 0 || spillwayv1.Outcome_name[int32(m.Outcome)] == "" {
				t.Errorf("passed: %v", m)
			}
		case *spillwayv1.PeekRecordsRequest:
			if m.Limit < 0 || m.FromOffset < 0 || m.Source.GetPartition() < 0 || len(m.Source.GetTopic()) > maxNameBytes {
				t.Errorf("passed: %v", m)
			}
		}
		_ = fmt.Sprint(m)
	})
}
