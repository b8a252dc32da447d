package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/security"
	"github.com/spillwayio/spillway/services/internal/tlsconfig/tlstest"
)

// owned is a route whose ports have owners.
type owned struct {
	*pipeline
	dir string
	ca  *tlstest.Authority
}

// Tokens of those who come without certificates.
const (
	operatorToken = "operator-canary-0123456789abcdef"
	readerToken   = "reader-canary-0123456789abcdef"
	strangerToken = "stranger-canary-0123456789abcdef"
)

// newOwned makes the certificates of each service, and starts nothing.
func newOwned(t *testing.T) *owned {
	t.Helper()
	o := &owned{pipeline: newRoute(t, stack.kafka), dir: t.TempDir(), ca: tlstest.New(t)}
	o.put("ca.crt", o.ca.PEM())
	o.put("operator", []byte(operatorToken+"\n"))
	o.put("reader", []byte(readerToken+"\n"))
	section := fmt.Sprintf(`security:
  tls: {cert: %[1]s/none.crt, key: %[1]s/none.key, ca: %[1]s/ca.crt, client_auth: request}
  tokens:
    - {name: operator, file: %[1]s/operator, roles: [operate]}
    - {name: reader, file: %[1]s/reader, roles: [read]}
  identities:
    - {name: "spiffe://test/ingest", roles: ["append:c"]}
    - {name: "spiffe://test/delivery-t", roles: ["consume:c/test"]}
delivery:
`, o.dir)
	o.rewrite("delivery:\n", section)
	for _, s := range o.parts() {
		o.issue(o.ca, s.name, time.Hour)
		s.env = append(s.env, "SPILLWAY_SECURITY__TLS__CERT="+o.file(s.name+".crt"), "SPILLWAY_SECURITY__TLS__KEY="+o.file(s.name+".key"), "SPILLWAY_LOG_LEVEL=debug")
		if err := s.conn.Close(); err != nil {
			t.Fatal(err)
		}
		s.conn, s.web = o.caller(s, operatorToken, "")
	}
	return o
}

func (o *owned) parts() []*service { return []*service{o.buffer, o.ingest, o.kafka} }

func (o *owned) file(name string) string { return filepath.Join(o.dir, name) }

func (o *owned) put(name string, content []byte) {
	o.t.Helper()
	if err := errors.Join(os.WriteFile(o.file(name+".new"), content, 0o600), os.Rename(o.file(name+".new"), o.file(name))); err != nil {
		o.t.Fatal(err)
	}
}

// issue makes the certificate of a service, or of somebody who calls himself so.
func (o *owned) issue(ca *tlstest.Authority, name string, valid time.Duration) {
	o.t.Helper()
	identity, _, _ := strings.Cut(name, ".")
	cert, key := ca.IssueFor(o.t, "localhost", valid, "spiffe://test/"+identity)
	o.put(name+".key", key)
	o.put(name+".crt", cert)
}

// caller connects to a service with a token, or the certificate of a file; empty: without.
func (o *owned) caller(s *service, token, cert string) (*grpc.ClientConn, *http.Client) {
	o.t.Helper()
	c := config.SecurityClient{CA: o.file("ca.crt")}
	if token != "" {
		o.put("token-"+token, []byte(token+"\n"))
		c.TokenFile = o.file("token-" + token)
	}
	if cert != "" {
		c.Cert, c.Key = o.file(cert+".crt"), o.file(cert+".key")
	}
	client, err := security.NewClient(&config.Security{Client: c}, slog.New(slog.DiscardHandler))
	if err != nil {
		o.t.Fatal(err)
	}
	conn, err := client.Dial(s.grpc)
	if err != nil {
		o.t.Fatal(err)
	}
	if token != operatorToken { // the services close theirs
		o.t.Cleanup(func() { _ = conn.Close() })
	}
	return conn, client.HTTPClient()
}

// methods are all RPCs that are linked into this program but those of health.
func methods() (all []protoreflect.MethodDescriptor) {
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			service := f.Services().Get(i)
			if name := string(service.FullName()); strings.HasPrefix(name, "spillway.v1.") || strings.HasPrefix(name, "grpc.reflection.") {
				for j := range service.Methods().Len() {
					all = append(all, service.Methods().Get(j))
				}
			}
		}
		return true
	})
	return all
}

// call does an RPC with an empty request, or opens its stream with one.
func call(conn *grpc.ClientConn, m protoreflect.MethodDescriptor) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	in, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
	if err != nil {
		return err
	}
	out, err := protoregistry.GlobalTypes.FindMessageByName(m.Output().FullName())
	if err != nil {
		return err
	}
	method := fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())
	if !m.IsStreamingClient() && !m.IsStreamingServer() {
		return conn.Invoke(ctx, method, in.New().Interface(), out.New().Interface())
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: m.IsStreamingClient(), ServerStreams: m.IsStreamingServer()}, method)
	if err != nil {
		return err
	}
	_ = stream.SendMsg(in.New().Interface()) // RecvMsg has the reason
	return stream.RecvMsg(out.New().Interface())
}

// TestPortsHaveOwners: who has no credentials, or expired, foreign or too weak ones, gets nowhere
// on any port of any service, while health works; and all certificates and the authority are
// replaced under load, with nobody restarted and no record lost.
func TestPortsHaveOwners(t *testing.T) {
	t.Parallel()
	o := newOwned(t)
	createTopic(t, stack.kafka, o.topic, nil)
	createTopic(t, stack.kafka, o.out, nil)
	o.startRoute()
	o.intruders()

	// Records flow all the while.
	source := newProducer(t, stack.kafka, o.topic)
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
			if err := source.produce(2_000, 2_000); err != nil {
				ended <- err
				return
			}
		}
	}()
	moves := func(what string) {
		t.Helper()
		before := source.written.Load()
		eventually(t, time.Minute, what, func() error {
			audit, _, err := o.topicState(o.topic)
			if err == nil && audit <= before {
				err = fmt.Errorf("%d settled of %d that there were", audit, before)
			}
			return err
		})
	}
	moves("records are delivered with the first certificates")
	next := tlstest.New(t)
	o.put("ca.crt", slices.Concat(o.ca.PEM(), next.PEM()))
	pause(t, 2*time.Second) // everybody looks at the files
	for _, s := range o.parts() {
		o.issue(next, s.name, time.Hour)
	}
	moves("records are delivered while both authorities count")
	o.put("ca.crt", next.PEM())
	eventually(t, 30*time.Second, "streams of the old authority end", func() error {
		if log := o.buffer.logTail(2000); strings.Count(log, "the stream ends: the client certificate is no good any more") < 2 {
			return errors.New("fewer than two")
		}
		return nil
	})
	o.ca = next
	moves("records are delivered with the new certificates alone")
	close(stop)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	total := int(source.written.Load())
	eventually(t, time.Minute, "everything is delivered", func() error { return o.settled(total, "test") })
	tallyTopic(t, stack.kafka, o.out, total).check(t, o.out, true)
	o.intruders()
	for _, s := range o.parts() {
		if log := s.logTail(100_000); strings.Contains(log, "canary") {
			t.Errorf("the log of %s has a token", s.name)
		}
	}
}

// intruders try every RPC and every path of every service.
func (o *owned) intruders() {
	t := o.t
	t.Helper()
	other := tlstest.New(t)
	o.issue(other, "ingest.foreign", time.Hour)
	o.issue(o.ca, "ingest.expired", -time.Minute)
	o.issue(o.ca, "nobody", time.Hour)
	o.issue(o.ca, "ingest.again", time.Hour) // the ingest's own identity is no operator
	readOnly := func(m protoreflect.MethodDescriptor) bool {
		name := string(m.Name())
		return strings.HasPrefix(name, "List") || strings.HasPrefix(name, "Get") || name == "Audit" || name == "ServerReflectionInfo"
	}
	for _, s := range o.parts() {
		for who, x := range map[string]struct{ token, cert string }{
			"nobody": {}, "a stranger": {token: strangerToken}, "a foreign certificate": {cert: "ingest.foreign"}, "an expired certificate": {cert: "ingest.expired"},
			"an unknown certificate": {cert: "nobody"}, "a reader": {token: readerToken}, "an ingest": {cert: "ingest.again"},
		} {
			conn, web := o.caller(s, x.token, x.cert)
			refused := 0
			for _, m := range methods() {
				err := call(conn, m)
				switch code := status.Code(err); {
				case code == codes.Unauthenticated || code == codes.PermissionDenied || code == codes.Unimplemented:
					refused++
				case code == codes.Unavailable && (who == "a foreign certificate" || who == "an expired certificate"):
					refused++
				case who == "a reader" && readOnly(m):
				case who == "an ingest" && s == o.buffer && m.Name() == "Append" && code == codes.PermissionDenied:
				default:
					t.Errorf("%s: %s calls %s: %v", s.name, who, m.FullName(), err)
				}
			}
			if refused < 20 {
				t.Errorf("%s: %s: only %d calls were refused", s.name, who, refused)
			}
			canConnect := who != "a foreign certificate" && who != "an expired certificate"
			if _, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{}); canConnect && err != nil {
				t.Errorf("%s: health for %s: %v", s.name, who, err)
			}
			for path, want := range map[string]bool{"/metrics": who == "a reader", "/debug/pprof/": false, "/healthz": true, "/readyz": true} {
				if got := gets(web, "https://"+s.http+path); got != (want && canConnect) {
					t.Errorf("%s: %s gets %s: %v", s.name, who, path, got)
				}
			}
		}
		// Plain text is no way in.
		plain, err := http.Get("http://" + s.http + "/metrics")
		if err == nil {
			if plain.StatusCode == http.StatusOK {
				t.Errorf("%s: metrics in plain text", s.name)
			}
			_ = plain.Body.Close()
		}
	}
	// The command line, without credentials and with them.
	for args, want := range map[string]bool{
		"": false, "--ca " + o.file("ca.crt"): false, "--ca " + o.file("ca.crt") + " --token-file " + o.file("reader"): true,
	} {
		out, err := exec.Command(binary, append([]string{"audit", "--buffer", o.buffer.grpc}, strings.Fields(args)...)...).CombinedOutput()
		if (err == nil) != want || strings.Contains(string(out), "canary") {
			t.Errorf("spillway audit %s: %v\n%s", args, err, out)
		}
	}
	if out, err := exec.Command(binary, "health", "--ca", o.file("ca.crt"), "https://"+o.buffer.http+"/readyz").CombinedOutput(); err != nil {
		t.Errorf("spillway health: %v\n%s", err, out)
	}
}

// gets says whether a path is answered with 200.
func gets(client *http.Client, url string) bool {
	response, err := client.Get(url)
	if err != nil {
		return false
	}
	_, _ = io.Copy(io.Discard, response.Body)
	_ = response.Body.Close()
	return response.StatusCode == http.StatusOK
}
