package buffer

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// TestLongNames opens streams with names of 20 MB, and sends reasons and topics as long: each is
// refused or cut, and the lists still answer a client that takes the usual 4 MiB.
func TestLongNames(t *testing.T) {
	r := start(t, t.TempDir(), nil)
	long := strings.Repeat("x", 20<<20)
	client := spillwayv1.NewBufferServiceClient(r.conn)
	refused := func(what string, err error) {
		t.Helper()
		if status.Code(err) != codes.InvalidArgument && status.Code(err) != codes.NotFound || len(err.Error()) > 2*maxMessageBytes {
			t.Errorf("%s: %.300v, want it refused in few words", what, err)
		}
	}
	for what, open := range map[string]*spillwayv1.AppendOpen{
		"client": {Queue: "c", Cluster: "k", Client: long}, "cluster": {Queue: "c", Cluster: long}, "queue": {Queue: long, Cluster: "k"}} {
		s, err := client.Append(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Open{Open: open}}); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		_, err = s.Recv()
		refused(what, err)
	}
	for what, open := range map[string]*spillwayv1.ConsumeOpen{
		"consumer":     {Subscription: "c/all", Consumer: long, Ordering: spillwayv1.Ordering_ORDERING_NONE},
		"subscription": {Subscription: "c/" + long, Ordering: spillwayv1.Ordering_ORDERING_NONE}} {
		s, err := client.Consume(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(&spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Open{Open: open}}); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		_, err = s.Recv()
		refused(what, err)
	}
	in := r.appendStream()
	for i := range int64(4) {
		r.send(in, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Settle{Settle: &spillwayv1.SettleRange{Source: source("t"),
			Range: &spillwayv1.OffsetRange{First: i, Next: i + 1}, Outcome: spillwayv1.Outcome_OUTCOME_LOST, Reason: fmt.Sprint(i, long)}}})
		if a := r.result(in); a.Status != nil {
			t.Fatalf("settle with a long reason: %v", a)
		}
	}
	r.send(in, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Assign{Assign: &spillwayv1.AssignPartition{Source: source(long)}}})
	for {
		if _, err := in.Recv(); err != nil {
			refused("topic", err)
			break
		}
	}
	admin := spillwayv1.NewBufferAdminServiceClient(r.conn)
	eventually(t, "the settled ranges are listed", func() bool {
		list, err := admin.ListUndelivered(t.Context(), &spillwayv1.ListUndeliveredRequest{Subscription: "c/all"})
		return err == nil && len(list.Ranges) == 4
	})
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not after a minute: %s", what)
		}
	}
}
