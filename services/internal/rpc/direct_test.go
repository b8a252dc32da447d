package rpc

import (
	"context"
	"log/slog"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// directService answers with what it was asked, and changes its request.
type directService struct {
	spillwayv1.UnimplementedBufferAdminServiceServer
}

func (directService) GetQueue(_ context.Context, r *spillwayv1.GetQueueRequest) (*spillwayv1.GetQueueResponse, error) {
	switch r.Name {
	case "panic":
		panic("as asked")
	case "none":
		return nil, status.Error(codes.NotFound, "no such queue")
	}
	name := r.Name
	r.Name = "changed"
	return &spillwayv1.GetQueueResponse{Queue: &spillwayv1.Queue{Name: name}}, nil
}

// TestDirect calls methods of this process as over a connection: with copies, errors, and panics
// that end the call only.
func TestDirect(t *testing.T) {
	d := NewDirect(slog.New(slog.DiscardHandler))
	spillwayv1.RegisterBufferAdminServiceServer(d, directService{})
	client := spillwayv1.NewBufferAdminServiceClient(d)
	r := &spillwayv1.GetQueueRequest{Name: "q"}
	got, err := client.GetQueue(t.Context(), r)
	if err != nil || got.Queue.Name != "q" || r.Name != "q" {
		t.Errorf("got %v, %v; the request is %v", got, err, r)
	}
	for name, want := range map[string]codes.Code{"panic": codes.Internal, "none": codes.NotFound} {
		if _, err := client.GetQueue(t.Context(), &spillwayv1.GetQueueRequest{Name: name}); status.Code(err) != want {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
	if _, err := spillwayv1.NewIngestAdminServiceClient(d).ListSources(t.Context(), &spillwayv1.ListSourcesRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("a service that is not there: %v", err)
	}
	if _, err := spillwayv1.NewBufferServiceClient(d).Append(t.Context()); status.Code(err) != codes.Unimplemented {
		t.Errorf("a stream: %v", err)
	}
}
