package e2e

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// reflected asks a service what it offers, as grpcurl does.
type reflected struct {
	t      testing.TB
	stream grpc_reflection_v1.ServerReflection_ServerReflectionInfoClient
	files  map[string]*descriptorpb.FileDescriptorProto
}

func (r *reflected) ask(m *grpc_reflection_v1.ServerReflectionRequest) *grpc_reflection_v1.ServerReflectionResponse {
	r.t.Helper()
	if err := r.stream.Send(m); err != nil {
		r.t.Fatal(err)
	}
	answer, err := r.stream.Recv()
	if err != nil {
		r.t.Fatal(err)
	}
	return answer
}

// take keeps the files of an answer and asks for those they import.
func (r *reflected) take(answer *grpc_reflection_v1.ServerReflectionResponse) {
	r.t.Helper()
	files := answer.GetFileDescriptorResponse().GetFileDescriptorProto()
	if len(files) == 0 {
		r.t.Fatalf("no descriptor: %v", answer)
	}
	for _, b := range files {
		var f descriptorpb.FileDescriptorProto
		if err := proto.Unmarshal(b, &f); err != nil {
			r.t.Fatal(err)
		}
		r.files[f.GetName()] = &f
		for _, name := range f.Dependency {
			if r.files[name] == nil {
				r.take(r.ask(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_FileByFilename{FileByFilename: name}}))
			}
		}
	}
}

// checkReflection finds the services by reflection alone, and calls each method of their admin
// API with an empty request: it answers, or says what is wrong with the request in the way all
// errors are said.
func checkReflection(t testing.TB, s *service, want []string) {
	t.Helper()
	stream, err := grpc_reflection_v1.NewServerReflectionClient(s.conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r := &reflected{t: t, stream: stream, files: make(map[string]*descriptorpb.FileDescriptorProto)}
	var names []string
	for _, x := range r.ask(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}}).GetListServicesResponse().GetService() {
		names = append(names, x.Name)
	}
	for _, name := range append(slices.Clone(want), "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection") {
		if !slices.Contains(names, name) {
			t.Fatalf("%s has %v, and not %s", s.name, names, name)
		}
		r.take(r.ask(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: name}}))
	}
	if err := stream.CloseSend(); err != nil {
		t.Error(err)
	}
	set := &descriptorpb.FileDescriptorSet{}
	for _, f := range r.files {
		set.File = append(set.File, f)
	}
	files, err := protodesc.NewFiles(set)
	if err != nil {
		t.Fatalf("%s: its descriptors do not fit together: %v", s.name, err)
	}
	for _, name := range want {
		if !strings.HasSuffix(name, "AdminService") {
			continue
		}
		d, err := files.FindDescriptorByName(protoreflect.FullName(name))
		if err != nil {
			t.Fatal(err)
		}
		methods := d.(protoreflect.ServiceDescriptor).Methods()
		for i := range methods.Len() {
			checkMethod(t, s, methods.Get(i))
		}
	}
}

func checkMethod(t testing.TB, s *service, m protoreflect.MethodDescriptor) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	path := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
	err := s.conn.Invoke(ctx, path, dynamicpb.NewMessage(m.Input()), dynamicpb.NewMessage(m.Output()))
	if err == nil {
		return
	}
	said := status.Convert(err)
	reason := ""
	for _, detail := range said.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			reason = info.Reason
		}
	}
	// Unimplemented: files are asked for, where there are none.
	if !slices.Contains([]codes.Code{codes.InvalidArgument, codes.NotFound, codes.Unimplemented}, said.Code()) || said.Message() == "" || reason == "" {
		t.Errorf("%s: an empty request is answered with %v, reason %q", path, err, reason)
	}
}
