package security

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/rpc"
	"github.com/spillwayio/spillway/services/internal/tlsconfig/tlstest"
)

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	old := time.Unix(1_000_000_000, 0)
	if err := os.Chtimes(path+".new", old, old); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func (service) TapRecords(_ *spillwayv1.TapRecordsRequest, stream spillwayv1.BufferAdminService_TapRecordsServer) error {
	return stream.Send(&spillwayv1.TapRecordsResponse{})
}

// TestTapNeedsItsRole, for its queue, and is noted.
func TestTapNeedsItsRole(t *testing.T) {
	const tapToken = "tap-0123456789abcdefghijklmn"
	p := newPort(t, service{}, func(p *port, c *config.Security) {
		p.put("tappers", tapToken+"\n")
		c.Tokens = append(c.Tokens, config.StaticToken{Name: "tapper", File: p.file("tappers"), Roles: []string{"tap:q"}})
	})
	for _, test := range []struct {
		token, queue string
		want         codes.Code
	}{{tapToken, "q", codes.OK}, {tapToken, "other", codes.PermissionDenied}, {tapToken, "", codes.PermissionDenied}, {readToken, "q", codes.PermissionDenied},
		{adminToken, "q", codes.PermissionDenied}, {ownToken, "q", codes.PermissionDenied}, {"", "q", codes.Unauthenticated}} {
		c := p.dial(test.token, "")
		stream, err := spillwayv1.NewBufferAdminServiceClient(c).TapRecords(c.context(), &spillwayv1.TapRecordsRequest{Queue: test.queue})
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != test.want {
			t.Errorf("%q taps %q: %v, want %s", test.token, test.queue, err, test.want)
		}
	}
	if log := p.log.String(); strings.Count(log, "event=change") != 1 || !strings.Contains(log, "caller=token:tapper") || !strings.Contains(log, "TapRecords object=q result=OK") {
		t.Errorf("the audit log is %s", log)
	}
}

// TestWhoMayDoWhat goes through kinds of callers and of calls.
func TestWhoMayDoWhat(t *testing.T) {
	p := newPort(t, service{}, nil)
	p.security.audit.most = 10_000
	p.issue(p.ca, "ingest", "nobody", time.Hour, "spiffe://prod/ingest")
	p.issue(p.ca, "delivery", "delivery", time.Hour)
	p.issue(p.ca, "unknown", "unknown", time.Hour)
	p.issue(p.ca, "pretender", "delivery", time.Hour, "spiffe://elsewhere") // its common name does not count
	const ok, none, denied = codes.OK, codes.Unauthenticated, codes.PermissionDenied
	for who, test := range map[string]struct {
		token, cert                           string
		list, pause, reflect, append, consume codes.Code
		metrics                               int
	}{
		"nobody":                      {"", "", none, none, none, none, none, 401},
		"unknown token":               {"wrong-0123456789abcdefghijklm", "", none, none, none, none, none, 401},
		"reader":                      {readToken, "", ok, denied, ok, denied, denied, 200},
		"admin":                       {adminToken, "", ok, ok, ok, denied, denied, 200},
		"owner":                       {ownToken, "", denied, denied, denied, ok, ok, 403},
		"ingest's certificate":        {"", "ingest", denied, denied, denied, ok, denied, 403},
		"delivery's certificate":      {"", "delivery", denied, denied, denied, denied, ok, 403},
		"certificate of nobody known": {"", "unknown", denied, denied, denied, denied, denied, 403},
		"common name beside a URI":    {"", "pretender", denied, denied, denied, denied, denied, 403},
		"bad token, good certificate": {"wrong-0123456789abcdefghijklm", "ingest", none, none, none, none, none, 401},
		"token and certificate":       {readToken, "ingest", ok, denied, ok, denied, denied, 200},
	} {
		c := p.dial(test.token, test.cert)
		_, appendErr := c.append("q")
		_, consumeErr := c.consume("q/s")
		for what, x := range map[string]struct {
			err  error
			want codes.Code
		}{"list": {c.list(), test.list}, "pause": {c.pause(), test.pause}, "reflection": {c.reflection(), test.reflect}, "append": {appendErr, test.append}, "consume": {consumeErr, test.consume}, "health": {c.health(), ok}} {
			if status.Code(x.err) != x.want {
				t.Errorf("%s: %s: %v, want %s", who, what, x.err, x.want)
			}
		}
		for path, want := range map[string]int{"/metrics": test.metrics, "/debug/goroutines": test.metrics, "/debug/pprof/": map[int]int{200: 404, 401: 401, 403: 403}[test.metrics], "/healthz": 200, "/readyz": 503, "/../metrics": test.metrics, "//metrics": test.metrics} {
			code, body := c.get(p, path)
			if code != want && !(strings.Contains(path, "//") && code == 404) {
				t.Errorf("%s: %s: %d %s, want %d", who, path, code, body, want)
			}
			if path == "/readyz" && strings.Contains(body, "secret-host") != (test.metrics == 200) {
				t.Errorf("%s: hears %q", who, body)
			}
		}
		// Other objects are other people's.
		if _, err := c.append("other"); status.Code(err) == ok {
			t.Errorf("%s appends to another queue", who)
		}
		if _, err := c.consume("q/other"); status.Code(err) == ok {
			t.Errorf("%s consumes another subscription", who)
		}
	}
	log := p.log.String()
	for _, want := range []string{"event=change caller=token:admin", "rpc=/spillway.v1.BufferAdminService/PauseSubscription object=q/s result=OK", "event=refusal caller=token:reader",
		"event=refusal caller=unknown"} {
		if !strings.Contains(log, want) {
			t.Errorf("the audit log lacks %q", want)
		}
	}
	for _, secret := range []string{readToken, adminToken, ownToken, "wrong-0123456789"} {
		if strings.Contains(log, secret) {
			t.Errorf("the log has the token %s", secret)
		}
	}
}

// TestStreamsCannotChangeTheirObject: neither a stream that never opens nor one that opens again
// gets to another's object.
func TestStreamsCannotChangeTheirObject(t *testing.T) {
	p := newPort(t, service{}, nil)
	c := p.dial(ownToken, "")
	stream, err := c.append("q")
	if err != nil {
		t.Fatal(err)
	}
	_ = stream.Send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Open{Open: &spillwayv1.AppendOpen{Queue: "other"}}})
	if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a second open: %v", err)
	}
	stream, err = spillwayv1.NewBufferServiceClient(c).Append(c.context())
	if err != nil {
		t.Fatal(err)
	}
	_ = stream.Send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Batch{Batch: &spillwayv1.Batch{}}})
	if _, err := stream.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a stream that does not open: %v", err)
	}
}

// TestForeignCertificates: what other authorities sign, or is over, or is not TLS, does not
// connect.
func TestForeignCertificates(t *testing.T) {
	p := newPort(t, service{}, nil)
	other := tlstest.New(t)
	p.issue(other, "foreign", "delivery", time.Hour)
	p.issue(p.ca, "expired", "delivery", -time.Minute)
	for _, cert := range []string{"foreign", "expired"} {
		c := p.dial("", cert)
		if _, err := c.consume("q/s"); err == nil {
			t.Errorf("%s: gets in", cert)
		}
		if code, _ := c.get(p, "/metrics"); code == 200 {
			t.Errorf("%s: gets metrics", cert)
		}
		if err := p.dial("", "").health(); err != nil {
			t.Errorf("health beside %s: %v", cert, err)
		}
	}
	// A service that is not ours is not told our token.
	p.put("other.crt", string(other.PEM()))
	if err := p.dialWith(config.SecurityClient{CA: p.file("other.crt")}, readToken, "").list(); status.Code(err) != codes.Unavailable {
		t.Errorf("a server of another authority: %v", err)
	}
	if err := p.dialWith(config.SecurityClient{CA: p.file("ca.crt"), ServerName: "elsewhere"}, readToken, "").list(); status.Code(err) != codes.Unavailable {
		t.Errorf("a server of another name: %v", err)
	}
	plain, err := rpc.Dial(p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if err := (&caller{ClientConn: plain, t: t}).health(); err == nil {
		t.Error("plain text passes on a port with TLS")
	}
	if _, err := tls.Dial("tcp", p.addr, &tls.Config{MaxVersion: tls.VersionTLS11, InsecureSkipVerify: true, NextProtos: []string{"h2"}}); err == nil {
		t.Error("TLS 1.1 passes")
	}
	if _, err := NewClient(&config.Security{Client: config.SecurityClient{TokenFile: p.file("readers")}}, slog.New(slog.DiscardHandler)); err != nil {
		t.Error(err)
	} else if client, _ := NewClient(&config.Security{Client: config.SecurityClient{TokenFile: p.file("readers")}}, slog.New(slog.DiscardHandler)); client != nil {
		if _, err := client.Dial("10.0.0.1:7400"); err == nil || !strings.Contains(err.Error(), "plain text") {
			t.Errorf("a token in plain text to another machine: %v", err)
		}
	}
}

// TestRequire: with client_auth require a token alone gets nowhere, and health works.
func TestRequire(t *testing.T) {
	p := newPort(t, service{}, func(_ *port, c *config.Security) { c.TLS.ClientAuth = "require" })
	p.issue(p.ca, "somebody", "somebody", time.Hour)
	c := p.dial(readToken, "")
	if err := c.list(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a token without a certificate: %v", err)
	}
	if code, _ := c.get(p, "/metrics"); code != 401 {
		t.Errorf("metrics with a token alone: %d", code)
	}
	if err := c.health(); err != nil {
		t.Error(err)
	}
	if code, _ := c.get(p, "/healthz"); code != 200 {
		t.Errorf("/healthz: %d", code)
	}
	if err := p.dial(readToken, "somebody").list(); err != nil {
		t.Errorf("a token and a certificate: %v", err)
	}
}

// eventually is for what is looked at once a second.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	var err error
	for until := time.Now().Add(15 * time.Second); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Errorf("%s: %v", what, err)
}

// TestCredentialsChange: tokens, certificates and authorities are read again, and streams of those
// that are no good any more end.
func TestCredentialsChange(t *testing.T) {
	p := newPort(t, service{}, nil)
	p.issue(p.ca, "ingest", "x", time.Hour, "spiffe://prod/ingest")
	owner, ingest := p.dial(ownToken, ""), p.dial("", "ingest")
	byToken, err := owner.append("q")
	if err != nil {
		t.Fatal(err)
	}
	byCert, err := ingest.append("q")
	if err != nil {
		t.Fatal(err)
	}
	ended := func(stream spillwayv1.BufferService_AppendClient) error {
		_ = stream.Send(&spillwayv1.AppendRequest{})
		if _, err := stream.Recv(); err != nil {
			return nil
		}
		return fmt.Errorf("goes on")
	}

	// Two tokens while one is replaced; then the old one is gone.
	const next = "next-0123456789abcdefghijklmnopq"
	p.put("owners", ownToken+"\n"+next+"\n")
	eventually(t, "the new token is known", func() error { _, err := p.dial(next, "").append("q"); return err })
	if ended(byToken) == nil {
		t.Error("the old token's stream ended while it was still there")
	}
	p.put("owners", next+"\n")
	eventually(t, "the old token's stream ends", func() error { return ended(byToken) })
	if _, err := owner.append("q"); status.Code(err) != codes.Unauthenticated {
		t.Errorf("the old token: %v", err)
	}
	if ended(byCert) == nil {
		t.Error("another's stream ended")
	}
	// A file that cannot be used leaves what was there.
	p.put("owners", "short\n")
	pauseSecond(t)
	if _, err := p.dial(next, "").append("q"); err != nil {
		t.Errorf("a file with a weak token took away the others: %v", err)
	}

	// A new authority, and everybody's new certificates, on running processes.
	second := tlstest.New(t)
	p.put("ca.crt", string(p.ca.PEM())+string(second.PEM()))
	p.issue(second, "server", "localhost", time.Hour)
	eventually(t, "the new certificate is shown", func() error { return p.dial(readToken, "").list() })
	if ended(byCert) == nil {
		t.Error("the stream ended while its authority was still there")
	}
	p.put("ca.crt", string(second.PEM()))
	eventually(t, "the stream of the old authority ends", func() error { return ended(byCert) })
	p.issue(second, "ingest", "x", time.Hour, "spiffe://prod/ingest")
	eventually(t, "the same client comes back with its new certificate", func() error { _, err := ingest.append("q"); return err })
}

func pauseSecond(t *testing.T) {
	t.Helper()
	select {
	case <-time.After(fresh + 200*time.Millisecond):
	case <-t.Context().Done():
	}
}

// TestCertificateExpires: a stream does not outlive its certificate.
func TestCertificateExpires(t *testing.T) {
	p := newPort(t, service{}, nil)
	p.security.audit.most = 10_000
	p.issue(p.ca, "delivery", "delivery", 2*time.Second)
	stream, err := p.dial("", "delivery").consume("q/s")
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := stream.Recv(); err == nil || time.Since(began) > 8*time.Second {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
	if !strings.Contains(p.log.String(), "no good any more") {
		t.Errorf("the log does not say why:\n%s", p.log)
	}
}

// TestLimitsOfIdentity: one identity's calls, sessions and connections are bounded, and another's
// are not touched by that.
func TestLimitsOfIdentity(t *testing.T) {
	p := newPort(t, service{}, nil)
	c := p.dial(ownToken, "")
	var streams []spillwayv1.BufferService_AppendClient
	for range 4 {
		stream, err := c.append("q")
		if err != nil {
			t.Fatal(err)
		}
		streams = append(streams, stream)
	}
	if _, err := c.append("q"); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "security.limits.sessions") {
		t.Errorf("a fifth session: %v", err)
	}
	if err := p.dial(adminToken, "").pause(); err != nil {
		t.Errorf("another identity: %v", err)
	}
	_ = streams[0].CloseSend()
	eventually(t, "a session that ended makes room", func() error { _, err := c.append("q"); return err })

	for range 8 {
		if err := p.dial(readToken, "").list(); err != nil {
			t.Fatal(err)
		}
	}
	ninth := p.dial(readToken, "")
	if err := ninth.list(); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "security.limits.connections") {
		t.Errorf("a ninth connection: %v", err)
	}
	if err := ninth.health(); err != nil {
		t.Errorf("health on it: %v", err)
	}
}

// TestPanic: it ends the call, and no other.
func TestPanic(t *testing.T) {
	p := newPort(t, service{panics: true}, nil)
	c := p.dial(adminToken, "")
	if err := c.list(); status.Code(err) != codes.Internal || strings.Contains(err.Error(), "as asked") {
		t.Errorf("%v", err)
	}
	if err := c.pause(); err != nil {
		t.Errorf("after a panic: %v", err)
	}
	if !strings.Contains(p.log.String(), "as asked") {
		t.Error("the log does not have the panic")
	}
}

// TestRefusalsDoNotFlood: lines are bounded, what was left out is counted, and changes are there.
func TestRefusalsDoNotFlood(t *testing.T) {
	log := &journal{}
	a := newAudit(slog.New(slog.NewTextHandler(log, nil)))
	for range 10_000 {
		a.Refused("unknown", "1.2.3.4:5", "/x", "", "unknown token")
	}
	for range 100 {
		a.Changed(anonymous, "1.2.3.4:5", "/x", "q", "OK")
	}
	text := log.String()
	if n := strings.Count(text, "event=refusal"); n > 10*refusalsASecond {
		t.Errorf("%d lines about refusals", n)
	}
	if n := strings.Count(text, "event=change"); n != 100 || a.refusals.Load() != 10_000 {
		t.Errorf("%d of 100 changes, %d refusals counted", n, a.refusals.Load())
	}
}

// TestWithoutSection: everybody may do everything, and changes are noted.
func TestWithoutSection(t *testing.T) {
	p := newPort(t, service{}, func(_ *port, c *config.Security) { *c = config.Security{} })
	conn, err := rpc.Dial(p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := &caller{ClientConn: conn, t: t}
	// A token that is shown for nothing does no harm.
	ctx := metadata.AppendToOutgoingContext(c.context(), "authorization", "Basic x")
	if _, err := spillwayv1.NewBufferAdminServiceClient(c).ListQueues(ctx, &spillwayv1.ListQueuesRequest{}); err != nil {
		t.Error(err)
	}
	if _, err := c.append("any"); err != nil {
		t.Error(err)
	}
	if err := c.pause(); err != nil || !strings.Contains(p.log.String(), "caller=anonymous") {
		t.Errorf("%v; the log is %s", err, p.log)
	}
}
