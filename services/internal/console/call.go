package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/rpc"
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
	"RedriveUndelivered": func() (proto.Message, proto.Message) {
		return &spillwayv1.RedriveUndeliveredRequest{}, &spillwayv1.RedriveUndeliveredResponse{}
	},
	"ResumeSubscription": func() (proto.Message, proto.Message) {
		return &spillwayv1.ResumeSubscriptionRequest{}, &spillwayv1.ResumeSubscriptionResponse{}
	},
}

// elsewhere are the reasons of errors that say that another buffer has what is asked for.
var elsewhere = []string{"NOT_OWNER", "NOTHING_CHOSEN"}

// call passes a call on to the buffer, or to all of them: the body is the request in protobuf's
// JSON, and so is the answer.
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
		return c.askAll(ctx, method, request, response)
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

// askAll calls an RPC of this process's buffer, and of the others that the picture has. The answer
// is of all together: lists follow each other, numbers are added. Those that do not answer are
// left out of lists, as they are of the picture, which says so; a change is an error then, though
// the others have made it.
func (c *Console) askAll(ctx context.Context, method string, request, response proto.Message) error {
	if len(c.others) == 0 {
		return c.conn.Invoke(ctx, method, request, response)
	}
	p, err := c.look(ctx)
	if err != nil {
		return err
	}
	var failed, strange []error
	for i, b := range p.Buffers {
		var conn grpc.ClientConnInterface = c.conn
		if i > 0 {
			conn = c.at(b.Address)
		}
		if !b.Answers && strings.HasPrefix(path.Base(method), "List") {
			continue
		}
		one := response.ProtoReflect().New().Interface()
		err := conn.Invoke(ctx, method, request, one)
		switch {
		case err == nil:
			join(response, one)
		case slices.Contains(elsewhere, rpc.Reason(err)):
			strange = append(strange, err)
		default:
			failed = append(failed, fmt.Errorf("the buffer at %s: %w", b.Address, rpc.Explain(err, "buffer", b.Address)))
		}
	}
	if len(failed) == 0 && len(strange) == len(p.Buffers) {
		return strange[len(strange)-1]
	}
	return errors.Join(failed...)
}

// at returns the connection to an address; it is one of the others'.
func (c *Console) at(address string) grpc.ClientConnInterface {
	for _, other := range c.others {
		if rpc.Address(other) == address {
			return other
		}
	}
	return c.conn // a picture has no other addresses
}

// join adds what one more buffer answers.
func join(sum, one proto.Message) {
	to := sum.ProtoReflect()
	before := make(map[protoreflect.FieldDescriptor]int64)
	to.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if f.Kind() == protoreflect.Int64Kind && !f.IsList() {
			before[f] = v.Int()
		}
		return true
	})
	proto.Merge(sum, one)
	for f, n := range before {
		to.Set(f, protoreflect.ValueOfInt64(n+one.ProtoReflect().Get(f).Int()))
	}
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
