package rpc

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"path"
	"sync"

	"github.com/bufbuild/protocompile"
	"google.golang.org/grpc"
	"google.golang.org/grpc/reflection"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/spillwayio/spillway/proto"
)

// registerReflection lets clients ask for the API. Unlike reflection.Register its answers have the
// comments of the proto files, which generated code leaves out.
func registerReflection(s *grpc.Server) {
	o := reflection.ServerOptions{Services: s, DescriptorResolver: commented{}}
	reflectionv1.RegisterServerReflectionServer(s, reflection.NewServerV1(o))
	reflectionv1alpha.RegisterServerReflectionServer(s, reflection.NewServer(o))
}

// commented finds descriptors with comments, and those of other APIs without.
type commented struct{}

// FindFileByPath implements protodesc.Resolver.
func (commented) FindFileByPath(path string) (protoreflect.FileDescriptor, error) {
	if files, err := commentedFiles(); err == nil {
		if d, err := files.FindFileByPath(path); err == nil {
			return d, nil
		}
	}
	return protoregistry.GlobalFiles.FindFileByPath(path)
}

// FindDescriptorByName implements protodesc.Resolver.
func (commented) FindDescriptorByName(name protoreflect.FullName) (protoreflect.Descriptor, error) {
	if files, err := commentedFiles(); err == nil {
		if d, err := files.FindDescriptorByName(name); err == nil {
			return d, nil
		}
	}
	return protoregistry.GlobalFiles.FindDescriptorByName(name)
}

var _ protodesc.Resolver = commented{}

// commentedFiles compiles the proto files when they are asked for first.
var commentedFiles = sync.OnceValues(func() (*protoregistry.Files, error) {
	names, err := fs.Glob(proto.Files, path.Join("spillway", "*", "*.proto"))
	if err != nil {
		return nil, fmt.Errorf("list proto files: %w", err)
	}
	compiler := protocompile.Compiler{
		Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{
			Accessor: func(path string) (io.ReadCloser, error) { return proto.Files.Open(path) },
		}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	compiled, err := compiler.Compile(context.Background(), names...)
	if err != nil {
		return nil, fmt.Errorf("compile proto files: %w", err)
	}
	files := new(protoregistry.Files)
	for _, f := range compiled {
		if err := files.RegisterFile(f); err != nil {
			return nil, fmt.Errorf("compile proto files: %w", err)
		}
	}
	return files, nil
})
