package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"google.golang.org/protobuf/encoding/prototext"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// TestSecretsStayInside: a password and a token, wrong and right ones, in a file, in a variable
// and in the configuration, are in no log at debug level, no answer, no metric, no message about a
// configuration.
func TestSecretsStayInside(t *testing.T) {
	t.Parallel()
	const inline, wrong = "inline-canary-7f3a", "wrong-canary-91bc"
	p := newRoute(t, stack.kafka)
	reader, writer := newPeer(t, "SCRAM-SHA-512", "reader-"+p.topic), newPeer(t, "SCRAM-SHA-256", "writer-"+p.topic)
	secret := func(peer *peer) string { return "a password of " + peer.user }
	plain := fmt.Sprintf("brokers: [%q]", stack.kafka.addr())
	p.rewrite(plain+", group", strings.Replace(reader.config(stack.kafka), "secret_file: "+reader.file("secret"), "password: "+inline, 1)+", group", plain+", topic", writer.config(stack.kafka)+", topic")
	createTopic(t, stack.kafka, p.topic, nil)
	createTopic(t, stack.kafka, p.out, nil)
	allow(t, reader.principal(), kadm.NewACLs().Topics(p.topic).Groups(p.topic), kadm.OpRead)
	allow(t, writer.principal(), kadm.NewACLs().Topics(p.out), kadm.OpWrite)
	for _, s := range []*peer{reader, writer} {
		s.trust(authority)
		s.right()
	}
	writer.put("secret", []byte(wrong+"\n"))
	all := []*service{p.buffer, p.ingest, p.kafka}
	for _, s := range all {
		s.env = append(s.env, "SPILLWAY_LOG_LEVEL=debug")
		s.start()
	}
	for _, s := range []*service{p.ingest, p.kafka} {
		eventually(t, 30*time.Second, s.name+" is refused", func() error { return s.complains("SASL Authentication Failed") })
	}
	if log := p.ingest.logTail(1000); !strings.Contains(log, "sasl.password: is a secret in the file") {
		t.Errorf("the password in the file is not warned of:\n%s", log)
	}
	var outputs strings.Builder
	note := func(what string, text string) { fmt.Fprintf(&outputs, "== %s\n%s\n", what, text) }
	look := func() {
		for _, s := range all {
			for _, path := range []string{"/readyz", "/metrics", "/healthz"} {
				_, body, err := s.get(path)
				note(s.name+path, fmt.Sprint(body, err))
			}
		}
		sources, err := spillwayv1.NewIngestAdminServiceClient(p.ingest.conn).ListSources(t.Context(), &spillwayv1.ListSourcesRequest{})
		note("ListSources", prototext.Format(sources)+fmt.Sprint(err))
		delivery, err := spillwayv1.NewDeliveryAdminServiceClient(p.kafka.conn).GetDelivery(t.Context(), &spillwayv1.GetDeliveryRequest{})
		note("GetDelivery", prototext.Format(delivery)+fmt.Sprint(err))
	}
	look()
	// The right ones: by a variable, and by the file.
	p.ingest.kill()
	p.ingest.env = append(p.ingest.env, "SPILLWAY_INGEST__SOURCES__S__SASL__PASSWORD="+secret(reader))
	p.ingest.start()
	writer.put("secret", []byte(secret(writer)+"\n"))
	p.ingest.waitReady()
	p.kafka.waitReady()
	source := newProducer(t, stack.kafka, p.topic)
	if err := source.produce(1_000, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "everything is delivered", func() error { return p.settled(1_000, "test") })
	look()

	command := func(env []string, args ...string) {
		cmd := exec.Command(binary, args...)
		cmd.Env = append(os.Environ(), env...)
		out, err := cmd.CombinedOutput()
		note(strings.Join(args, " "), fmt.Sprint(string(out), err))
	}
	command(nil, "check", "-c", p.config)
	command(nil, "check", "-c", p.config, "--output", "json")
	command([]string{"SPILLWAY_INGEST__SOURCES__S__SASL__PASSWORD=" + secret(reader)}, "check", "-c", p.config)
	command(nil, "audit", "--buffer", p.buffer.grpc)
	text, err := os.ReadFile(p.config)
	if err != nil {
		t.Fatal(err)
	}
	for i, broken := range []string{
		strings.Replace(string(text), "password: "+inline, "password: ["+inline+"]", 1), strings.Replace(string(text), "password: "+inline, "password: {x: "+inline+"}", 1),
		strings.Replace(string(text), "password: "+inline, "pasword: "+inline, 1), strings.Replace(string(text), "password: "+inline, "password: "+inline+", secret_file: /x", 1),
		strings.Replace(string(text), "password: "+inline, "password: \""+inline, 1), string(text) + "security: {tokens: [{name: a, token: " + inline + ", roles: [read]}]}\n",
	} {
		path := filepath.Join(p.dir, fmt.Sprintf("broken-%d.yaml", i))
		if err := os.WriteFile(path, []byte(broken), 0o600); err != nil {
			t.Fatal(err)
		}
		command(nil, "check", "-c", path)
	}
	for _, s := range all {
		note("log of "+s.name, s.logTail(1_000_000))
	}
	text2 := outputs.String()
	if len(text2) < 10_000 || !strings.Contains(text2, "SASL Authentication Failed") {
		t.Fatalf("there is little output to look at: %d bytes", len(text2))
	}
	for _, canary := range []string{inline, wrong, "a password of"} {
		for line := range strings.Lines(text2) {
			if strings.Contains(line, canary) {
				t.Errorf("a secret is in: %.300s", line)
			}
		}
	}
}
