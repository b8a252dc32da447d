package security

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spillwayio/spillway/services/internal/config"
)

// TestReload takes a role from one caller, and knows another: streams that are no longer allowed
// end. A section that cannot be used changes nothing.
func TestReload(t *testing.T) {
	var conf config.Security
	p := newPort(t, service{}, func(_ *port, c *config.Security) { conf = *c })
	p.issue(p.ca, "delivery", "delivery", time.Hour)
	owner, reader, delivery := p.dial(ownToken, ""), p.dial(readToken, ""), p.dial("", "delivery")
	stream, err := owner.append("q")
	if err != nil {
		t.Fatal(err)
	}
	if err := reader.list(); err != nil {
		t.Fatal(err)
	}
	if err := delivery.list(); status.Code(err) != codes.PermissionDenied {
		t.Fatal(err)
	}

	broken := conf
	broken.Tokens = []config.StaticToken{{Name: "reader", File: p.file("readers"), Roles: []string{"admin"}}, {Name: "x", File: p.file("nowhere"), Roles: []string{"read"}}}
	if _, err := p.security.CheckReload(&broken); err == nil {
		t.Error("a section with a file that is not there can be used")
	}
	open := config.Security{TLS: conf.TLS}
	if _, err := p.security.CheckReload(&open); err == nil {
		t.Error("the port can be opened to everybody")
	}
	if err := reader.list(); err != nil {
		t.Error(err)
	}

	next := conf
	next.Tokens = []config.StaticToken{{Name: "owner", File: p.file("owners"), Roles: []string{"read"}}}
	next.Identities = []config.CertificateIdentity{{Name: "delivery", Roles: []string{"read"}}}
	next.Limits.Streams = 1
	apply, err := p.security.CheckReload(&next)
	if err != nil {
		t.Fatal(err)
	}
	if err := reader.list(); err != nil {
		t.Errorf("it took effect before it was applied: %v", err)
	}
	apply()
	if err := reader.list(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("who is not there any more: %v", err)
	}
	if err := delivery.list(); err != nil {
		t.Errorf("who has a role now: %v", err)
	}
	if _, err := stream.Recv(); err == nil || status.Code(err) == codes.DeadlineExceeded {
		t.Errorf("the stream whose role is gone: %v", err)
	}
	if _, err := owner.append("q"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("it comes back: %v", err)
	}
}
