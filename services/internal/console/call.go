package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// callable are the RPCs of BufferAdminService that the pages use, with what makes a request and a
// response. Who may call which is in the table of package security.
var callable = map[string]func() (request, response proto.Message){
	"Audit": func() (proto.Message, proto.Message) { return &spillwayv1.AuditRequest{}, &spillwayv1.AuditResponse{} },
	"ListUndelivered": func() (proto.Message, proto.Message) {
		return &spillwayv1.ListUndeliveredRequest{}, &spillwayv1.ListUndeliveredResponse{}
	},
	"ListSinkState": func() (proto.Message, proto.Message) {
		return &spillwayv1.ListSinkStateRequest{}, &spillwayv1.ListSinkStateResponse{}
	},
	"PauseSubscription": func() (proto.Message, proto.Message) {
		return &spillwayv1.PauseSubscriptionRequest{}, &spillwayv1.PauseSubscriptionResponse{}
	},
	"ResumeSubscription": func() (proto.Message, proto.Message) {
		return &spillwayv1.ResumeSubscriptionRequest{}, &spillwayv1.ResumeSubscriptionResponse{}
	},
}

// call passes a call on to the buffer: the body is the request in protobuf's JSON, and so is the
// answer.
func (c *Console) call(w http.ResponseWriter, r *http.Request) error {
	messages := callable[r.PathValue("method")]
	if messages == nil {
		return status.Errorf(codes.NotFound, "no page uses %.100q", r.PathValue("method"))
	}
	request, response := messages()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err == nil {
		err = protojson.Unmarshal(body, request)
	}
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "request: %v", err)
	}
	method := fmt.Sprintf("/%s/%s", spillwayv1.BufferAdminService_ServiceDesc.ServiceName, r.PathValue("method"))
	err = c.guard.Call(r, method, request, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		return c.conn.Invoke(ctx, method, request, response)
	})
	if err != nil {
		return err
	}
	b, err := protojson.MarshalOptions{EmitUnpopulated: true, UseProtoNames: true}.Marshal(response)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b) // the browser may be gone
	return nil
}

// httpStatus is the status for an error of a call.
func httpStatus(err error) int {
	if errors.Is(err, context.Canceled) {
		return http.StatusServiceUnavailable
	}
	switch status.Code(err) {
	case codes.Unauthenticated:
		return http.StatusUnauthorized
	case codes.PermissionDenied:
		return http.StatusForbidden
	case codes.NotFound:
		return http.StatusNotFound
	case codes.InvalidArgument, codes.FailedPrecondition, codes.OutOfRange:
		return http.StatusBadRequest
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.ResourceExhausted:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}
