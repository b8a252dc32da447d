package e2e

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/spillwayio/spillway/services/internal/tlsconfig/tlstest"
)

// reauthenticate is how long the broker lets a client that logged in stay connected. kafka-go
// does not log in again on a connection, so that each one breaks then.
const reauthenticate = 4 * time.Second

// authority is whose certificates the stack's broker has and wants.
var authority *tlstest.Authority

// failer is tlstest's T where there is no test.
type failer struct{}

func (failer) Helper()           {}
func (failer) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

// makeCertificates makes what kafka-start wants of KAFKA_TLS.
func makeCertificates(dir string) error {
	authority = tlstest.New(failer{})
	cert, key := authority.Issue(failer{}, "kafka")
	return errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "ca.pem"), authority.PEM(), 0o600),
		os.WriteFile(filepath.Join(dir, "broker.pem"), append(key, cert...), 0o600))
}

// peer is how one side of a route gets into the broker.
type peer struct {
	t         *testing.T
	mechanism string // or "certificate"
	user      string
	dir       string // of its files: ca, cert, key, secret
}

func newPeer(t *testing.T, mechanism, user string) *peer {
	if mechanism == "PLAIN" {
		user = "plain" // the only one that kafka-start gives a password
	}
	return &peer{t: t, mechanism: mechanism, user: user, dir: t.TempDir()}
}

func (r *peer) file(name string) string { return filepath.Join(r.dir, name) }

// put replaces a file as a whole, as those who rotate secrets do.
func (r *peer) put(name string, content []byte) {
	r.t.Helper()
	if err := errors.Join(os.WriteFile(r.file("new"), content, 0o600), os.Rename(r.file("new"), r.file(name))); err != nil {
		r.t.Fatal(err)
	}
}

// config is the YAML that takes the place of the plain broker.
func (r *peer) config(b broker) string {
	if r.mechanism == "certificate" {
		return fmt.Sprintf("brokers: [%q], tls: {ca: %s, cert: %s, key: %s}", b.certAddr(), r.file("ca"), r.file("cert"), r.file("key"))
	}
	user := ", username: " + r.user
	if r.mechanism == "OAUTHBEARER" {
		user = ""
	}
	return fmt.Sprintf("brokers: [%q], tls: {ca: %s}, sasl: {mechanism: %s%s, secret_file: %s}", b.saslAddr(), r.file("ca"), r.mechanism, user, r.file("secret"))
}

// principal is whom the broker takes it for.
func (r *peer) principal() string {
	if r.mechanism == "certificate" {
		return "User:CN=" + r.user
	}
	return "User:" + r.user
}

// trust puts the certificate of the authority that the broker's is to be of.
func (r *peer) trust(a *tlstest.Authority) { r.put("ca", a.PEM()) }

// show puts a client certificate of an authority.
func (r *peer) show(a *tlstest.Authority) {
	cert, key := a.Issue(r.t, r.user)
	r.put("key", key)
	r.put("cert", cert)
}

// mistake puts credentials that the broker does not take; right puts those that it takes.
func (r *peer) mistake() {
	switch r.mechanism {
	case "certificate":
		r.show(tlstest.New(r.t))
	case "OAUTHBEARER":
		r.put("secret", token(r.user, -time.Minute))
	default:
		r.put("secret", []byte("wrong\n"))
	}
}

func (r *peer) right() {
	switch r.mechanism {
	case "certificate":
		r.show(authority)
	case "OAUTHBEARER":
		r.put("secret", token(r.user, 10*time.Minute))
	case "PLAIN":
		r.put("secret", []byte("plain secret\n"))
	default:
		r.setPassword("a password of " + r.user)
	}
}

func (r *peer) setPassword(password string) {
	r.t.Helper()
	mechanism := kadm.ScramSha256
	if r.mechanism == "SCRAM-SHA-512" {
		mechanism = kadm.ScramSha512
	}
	altered, err := kadm.NewClient(newClient(r.t, stack.kafka)).AlterUserSCRAMs(r.t.Context(), nil,
		[]kadm.UpsertSCRAM{{User: r.user, Mechanism: mechanism, Iterations: 4096, Password: password}})
	if err := errors.Join(err, altered.Error()); err != nil {
		r.t.Fatal(err)
	}
	r.put("secret", []byte(password+"\n"))
}

// token is an unsigned one, which a broker takes that has not been told whose signatures to want.
func token(user string, valid time.Duration) []byte {
	now := time.Now()
	claims := fmt.Sprintf(`{"sub":%q,"iat":%d,"exp":%d}`, user, now.Add(-10*time.Minute).Unix(), now.Add(valid).Unix())
	return []byte(base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".\n")
}

// allow lets a peer do things to topics.
func allow(t *testing.T, principal string, build *kadm.ACLBuilder, operations ...kadm.ACLOperation) {
	t.Helper()
	allowAll(t, kadm.ACLPatternLiteral, principal, build, operations...)
}

// allowAll is allow for what has one of these names, or for ACLPatternPrefixed begins with one.
func allowAll(t *testing.T, pattern kadm.ACLPattern, principal string, build *kadm.ACLBuilder, operations ...kadm.ACLOperation) {
	t.Helper()
	results, err := kadm.NewClient(newClient(t, stack.kafka)).CreateACLs(t.Context(), build.Allow(principal).AllowHosts().ResourcePatternType(pattern).Operations(operations...))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
}

// TestTLSAndSASL: ingest and delivery get into a broker in each way there is, as users that may
// do just what they need. A wrong authority and wrong credentials are named, and when the files
// are put right the processes go on by themselves, also when the broker breaks each connection
// after some seconds because it wants them to log in again.
func TestTLSAndSASL(t *testing.T) {
	for _, ways := range [][2]string{{"SCRAM-SHA-512", "SCRAM-SHA-256"}, {"SCRAM-SHA-256", "OAUTHBEARER"}, {"OAUTHBEARER", "certificate"}, {"certificate", "PLAIN"}} {
		t.Run(ways[0]+" to "+ways[1], func(t *testing.T) {
			t.Parallel()
			const n = 3_000
			p := newRoute(t, stack.kafka)
			reader, writer := newPeer(t, ways[0], "reader-"+p.topic), newPeer(t, ways[1], "writer-"+p.topic)
			plain := fmt.Sprintf("brokers: [%q]", stack.kafka.addr())
			p.rewrite(plain+", group", reader.config(stack.kafka)+", group", plain+", topic", writer.config(stack.kafka)+", topic")
			createTopic(t, stack.kafka, p.topic, nil)
			createTopic(t, stack.kafka, p.out, nil)
			allow(t, reader.principal(), kadm.NewACLs().Topics(p.topic).Groups(p.topic), kadm.OpRead)
			allow(t, reader.principal(), kadm.NewACLs().Topics(p.topic), kadm.OpDescribeConfigs)
			allow(t, writer.principal(), kadm.NewACLs().Topics(p.out), kadm.OpWrite)

			sides := map[*peer]*service{reader: p.ingest, writer: p.kafka}
			for side := range sides {
				side.trust(tlstest.New(t))
				side.mistake()
			}
			p.buffer.start()
			p.ingest.start()
			p.kafka.start()
			for _, s := range sides {
				eventually(t, 20*time.Second, s.name+" names the authority", func() error { return s.complains("certificate signed by unknown authority") })
			}
			for side := range sides {
				side.trust(authority)
			}
			for side, s := range sides {
				what := map[string]string{"certificate": "remote error", "OAUTHBEARER": "refuses the token"}[side.mechanism]
				if what == "" {
					what = "SASL Authentication Failed"
				}
				eventually(t, 20*time.Second, s.name+" names the credentials", func() error { return s.complains(what) })
				if log := s.logTail(50); !strings.Contains(log, "unknown authority") || !strings.Contains(log, what) {
					t.Errorf("%s does not log both errors:\n%s", s.name, log)
				}
			}
			for side := range sides {
				side.right()
			}
			for _, s := range sides {
				s.waitReady()
			}
			source := newProducer(t, stack.kafka, p.topic)
			for round := range 2 {
				if round > 0 {
					pause(t, reauthenticate)
				}
				if err := source.produce(n, 0); err != nil {
					t.Fatal(err)
				}
				eventually(t, 30*time.Second, "everything is delivered", func() error { return p.settled(int(source.written.Load()), "test") })
			}
			eventually(t, 30*time.Second, "all of it is committed to Kafka", p.committedAll)
			tallyTopic(t, stack.kafka, p.out, 2*n).check(t, p.out, true)
		})
	}
}

// TestExactlyOnceWithACLs: transactions over connections that the broker ends, by a user that may
// do what the documentation says it needs. A topic that it may not write to waits, and what
// readers of committed records see is not doubled.
func TestExactlyOnceWithACLs(t *testing.T) {
	t.Parallel()
	const n = 4_000
	p := newRoute(t, stack.kafka)
	writer := newPeer(t, "SCRAM-SHA-256", "writer-"+p.topic)
	writer.trust(authority)
	writer.right()
	open, denied := p.topic+"-open", p.topic+"-denied"
	p.rewrite(fmt.Sprintf("topics: [%q]", p.topic), fmt.Sprintf("topics: [%q, %q]", open, denied),
		fmt.Sprintf("brokers: [%q], topic", stack.kafka.addr()), writer.config(stack.kafka)+", exactly_once: true, topic")
	for _, topic := range []string{open, denied} {
		createTopic(t, stack.kafka, topic, nil)
		createTopic(t, stack.kafka, "out-"+topic, nil)
	}
	ids := "spillway/c/test/"
	allowAll(t, kadm.ACLPatternPrefixed, writer.principal(), kadm.NewACLs().TransactionalIDs(ids), kadm.OpWrite, kadm.OpDescribe)
	allowAll(t, kadm.ACLPatternPrefixed, writer.principal(), kadm.NewACLs().Groups(ids), kadm.OpRead)
	allow(t, writer.principal(), kadm.NewACLs().Topics("spillway-progress"), kadm.OpRead, kadm.OpWrite, kadm.OpCreate)
	allow(t, writer.principal(), kadm.NewACLs().Topics("out-"+open), kadm.OpRead, kadm.OpWrite)
	p.startRoute()
	sources := []*producer{newProducer(t, stack.kafka, open), newProducer(t, stack.kafka, denied)}
	for range 2 {
		for _, source := range sources {
			if err := source.produce(n/2, 500); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, 30*time.Second, "the open topic is delivered", func() error { return p.settledTopic(open, n) })
	eventually(t, 30*time.Second, "the denied topic waits", func() error { return p.waits(denied, n) })
	allow(t, writer.principal(), kadm.NewACLs().Topics("out-"+denied), kadm.OpRead, kadm.OpWrite)
	eventually(t, 30*time.Second, "the denied topic is delivered", func() error { return p.settledTopic(denied, n) })
	for _, topic := range []string{open, denied} {
		checkCommitted(t, stack.kafka, "out-"+topic, n)
	}
}
