package rpc

import (
	"context"
	"log/slog"
	"runtime/debug"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// recoverUnary and recoverStream make an INTERNAL error of a handler's panic, which ends that call
// and no other. The log has the stack; the caller hears nothing of it.
func recoverUnary(log *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (response any, err error) {
		defer recovered(log, info.FullMethod, &err)
		return handler(ctx, request)
	}
}

func recoverStream(log *slog.Logger) grpc.StreamServerInterceptor {
	return func(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
		defer recovered(log, info.FullMethod, &err)
		return handler(server, stream)
	}
}

func recovered(log *slog.Logger, method string, err *error) {
	if p := recover(); p != nil {
		log.Error("a call panicked and was ended; please report it with this stack", "rpc", method, "panic", p, "stack", string(debug.Stack()))
		*err = Error(codes.Internal, "PANIC", 0, "the call failed inside the service; its log has the reason")
	}
}
