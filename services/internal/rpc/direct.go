package rpc

import (
	"context"
	"log/slog"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// Direct calls unary methods of services of this process, without a connection, a port or a
// goroutine. Nobody is asked who calls: that is the caller's affair. Services are registered
// before the first call.
type Direct struct {
	log     *slog.Logger
	methods map[string]directMethod
}

type directMethod struct {
	service any
	desc    grpc.MethodDesc
}

// NewDirect returns one without services.
func NewDirect(log *slog.Logger) *Direct {
	return &Direct{log: log, methods: make(map[string]directMethod)}
}

// RegisterService implements grpc.ServiceRegistrar.
func (d *Direct) RegisterService(desc *grpc.ServiceDesc, service any) {
	for _, m := range desc.Methods {
		d.methods["/"+desc.ServiceName+"/"+m.MethodName] = directMethod{service, m}
	}
}

// Invoke implements grpc.ClientConnInterface. The method gets a copy of the request, and reply a
// copy of the response. A method that panics fails.
func (d *Direct) Invoke(ctx context.Context, method string, request, reply any, _ ...grpc.CallOption) (err error) {
	m, ok := d.methods[method]
	if !ok {
		return Error(codes.Unimplemented, "UNKNOWN_METHOD", 0, "unknown method %s", method)
	}
	defer recovered(d.log, method, &err)
	response, err := m.desc.Handler(m.service, ctx, func(into any) error {
		proto.Merge(into.(proto.Message), request.(proto.Message))
		return nil
	}, nil)
	if err != nil {
		return err
	}
	proto.Merge(reply.(proto.Message), response.(proto.Message))
	return nil
}

// NewStream implements grpc.ClientConnInterface: there are no streams.
func (d *Direct) NewStream(_ context.Context, _ *grpc.StreamDesc, method string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, Error(codes.Unimplemented, "NO_STREAMS", 0, "%s cannot be called directly: it is a stream", method)
}
