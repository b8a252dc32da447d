package security

import (
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// TestRoomForNewcomers: however many connections others hold, in their handshake or after it, one
// with rights gets in, and one that is in is not closed.
func TestRoomForNewcomers(t *testing.T) {
	p := newPort(t, service{}, nil)
	stream, err := p.dial(ownToken, "").append("q")
	if err != nil {
		t.Fatal(err)
	}
	var open []net.Conn
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	for i := range 800 {
		conn, err := net.DialTimeout("tcp", p.addr, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, conn)
		if i%2 == 0 {
			continue // it says nothing
		}
		secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		_ = secure.SetDeadline(time.Now().Add(10 * time.Second))
		if secure.Handshake() == nil {
			_, _ = secure.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
		}
	}
	for _, token := range []string{adminToken, readToken} {
		if err := p.dial(token, "").list(); err != nil {
			t.Errorf("a newcomer: %v", err)
		}
	}
	if code, body := p.dial(readToken, "").get(p, "/metrics"); code != 200 {
		t.Errorf("metrics: %d %s", code, body)
	}
	if err := stream.Send(&spillwayv1.AppendRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Errorf("one that was in: %v", err)
	}
}

// TestAdminRequestsAreSmall: only streams of records may bring large messages.
func TestAdminRequestsAreSmall(t *testing.T) {
	p := newPort(t, service{}, nil)
	c := p.dial(adminToken, "")
	large := &spillwayv1.CreateSubscriptionRequest{Name: "q/s"}
	for range 12_000 {
		large.Topics = append(large.Topics, strings.Repeat("t", 250))
	}
	_, err := spillwayv1.NewBufferAdminServiceClient(c).CreateSubscription(c.context(), large)
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "1048576") {
		t.Errorf("3 MB: %v", err)
	}
	large.Topics = large.Topics[:3_600]
	if _, err := spillwayv1.NewBufferAdminServiceClient(c).CreateSubscription(c.context(), large); status.Code(err) != codes.Unimplemented {
		t.Errorf("0.9 MB: %v", err)
	}
	own := p.dial(ownToken, "")
	stream, err := own.append("q")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := stream.Send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Batch{Batch: &spillwayv1.Batch{Payload: make([]byte, 3<<20)}}}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Errorf("a batch of 3 MiB: %v", err)
		}
	}
}
