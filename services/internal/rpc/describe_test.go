package rpc

import (
	"slices"
	"testing"

	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// TestReflectionHasComments asks as grpcurl's describe does.
func TestReflectionHasComments(t *testing.T) {
	f := start(t)
	stream, err := reflectionv1.NewServerReflectionClient(f.conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	file := func(symbol string) *descriptorpb.FileDescriptorProto {
		t.Helper()
		if err := stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_FileContainingSymbol{
			FileContainingSymbol: symbol}}); err != nil {
			t.Fatal(err)
		}
		response, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		files := response.GetFileDescriptorResponse().GetFileDescriptorProto()
		if len(files) == 0 {
			t.Fatalf("no file for %s: %v", symbol, response)
		}
		d := new(descriptorpb.FileDescriptorProto) // those it imports follow
		if err := proto.Unmarshal(files[0], d); err != nil {
			t.Fatal(err)
		}
		return d
	}

	d := file("spillway.v1.BufferService")
	if d.GetName() != spillwayv1.File_spillway_v1_buffer_proto.Path() {
		t.Errorf("file is %s", d.GetName())
	}
	if !slices.ContainsFunc(d.GetSourceCodeInfo().GetLocation(), func(l *descriptorpb.SourceCodeInfo_Location) bool {
		return slices.Equal(l.Path, []int32{6, 0}) && l.GetLeadingComments() != "" // the first service
	}) {
		t.Error("the service has no comment")
	}
	// What is compiled is what the generated code speaks.
	d.SourceCodeInfo = nil
	if generated := protodesc.ToFileDescriptorProto(spillwayv1.File_spillway_v1_buffer_proto); !proto.Equal(d, generated) {
		t.Errorf("proto/ and gen/ differ")
	}

	if d := file("grpc.health.v1.Health"); d.GetName() != "grpc/health/v1/health.proto" {
		t.Errorf("file of another API is %s", d.GetName())
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
}
