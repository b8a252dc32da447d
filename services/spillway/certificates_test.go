package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/spillwayio/spillway/services/internal/config"
)

// composeFile reads a pipeline of deploy/compose.
func composeFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../deploy/compose", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestSecurePipelineIsTheSame but for who may do what.
func TestSecurePipelineIsTheSame(t *testing.T) {
	read := func(name string) *config.Config {
		t.Helper()
		c, err := config.Parse(name, []byte(composeFile(t, name)), nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	plain, secure := read("spillway.yaml"), read("spillway-secure.yaml")
	if !reflect.DeepEqual(plain.Buffers, secure.Buffers) || !reflect.DeepEqual(plain.Ingest, secure.Ingest) || !reflect.DeepEqual(plain.Buffer, secure.Buffer) || !reflect.DeepEqual(plain.Delivery, secure.Delivery) {
		t.Error("spillway.yaml and spillway-secure.yaml of deploy/compose differ in more than security")
	}
	secrets := composeFile(t, "secrets.yaml")
	for _, service := range []string{"buffer", "ingest", "delivery-hdfs", "delivery-kafka"} {
		if n := strings.Count(secrets, "/"+service+"/tls."); n != 2 {
			t.Errorf("secrets.yaml has %d files of %s, want a certificate and a key", n, service)
		}
	}
	compose := composeFile(t, "secure.yaml")
	for _, x := range secure.Security.Identities {
		if !strings.Contains(compose, " "+x.Name) {
			t.Errorf("secure.yaml makes no certificate for %s", x.Name)
		}
	}
}

// TestCertificates runs the services of deploy/compose/secure.yaml, with the certificates,
// variables and health checks that it has, on other ports.
func TestCertificates(t *testing.T) {
	tls := filepath.Join(t.TempDir(), "tls")
	names := []string{"buffer", "ingest", "delivery-hdfs", "delivery-kafka", "admin"}
	if got := spillway(t, append([]string{"certificates", tls}, names...)...); got.status != 0 || !strings.Contains(got.stdout, "certificates of 5 names, good for 365d0h") {
		t.Fatalf("certificates: %+v", got)
	}
	for _, name := range names {
		info, err := os.Stat(filepath.Join(tls, name, "tls.key"))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info, err)
		}
	}
	before, err := os.ReadFile(filepath.Join(tls, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	if got := spillway(t, "certificates", tls, "other"); got.status != 0 || !strings.Contains(got.stdout, "nothing was made") {
		t.Errorf("certificates again: %+v", got)
	}
	if after, err := os.ReadFile(filepath.Join(tls, "ca.crt")); err != nil || string(after) != string(before) {
		t.Errorf("the authority is another one, %v", err)
	}
	for args, want := range map[string]string{"x": "want a directory, and names", "x a/b": `"a/b": want the name of a host`, "x a --valid 0s": "want more than 0"} {
		if got := spillway(t, append([]string{"certificates"}, strings.Fields(args)...)...); got.status != 2 || !strings.Contains(got.stderr, want) {
			t.Errorf("certificates %s: %+v", args, got)
		}
	}

	broker := kafkaOf(t, kfake.SeedTopics(1, "originTopic", "testTest"))[0]
	dir, buffer, http := t.TempDir(), freeAddr(t), map[string]string{"buffer": freeAddr(t), "ingest": freeAddr(t), "hdfs": freeAddr(t), "kafka": freeAddr(t)}
	text := composeFile(t, "spillway-secure.yaml")
	for _, r := range [][2]string{{"/tls/", tls + "/"}, {"buffer:7400]", "'" + strings.Replace(buffer, "127.0.0.1", "localhost", 1) + "']"}, {"kafka:9092", broker},
		{"/var/lib/spillway", dir}, {"hdfs://namenode:8020", "file://" + dir + "/files"}, {"listen: :7400", "listen: '" + buffer + "'"}, {"http: :7401", "http: '" + http["buffer"] + "'"},
		{"listen: :7410", "listen: '127.0.0.1:0'"}, {"http: :7411", "http: '" + http["ingest"] + "'"}, {"listen: :7420", "listen: '127.0.0.1:0'"}} {
		if !strings.Contains(text, r[0]) {
			t.Errorf("spillway-secure.yaml has no %s", r[0])
		}
		text = strings.ReplaceAll(text, r[0], r[1])
	}
	for _, name := range []string{"hdfs", "kafka"} {
		text = strings.Replace(text, "http: :7421", "http: '"+http[name]+"'", 1)
	}
	file := writeFile(t, "pipeline.yaml", text)
	for service, args := range map[string][]string{"buffer": {"buffer"}, "ingest": {"ingest"}, "delivery-hdfs": {"delivery", "hdfs"}, "delivery-kafka": {"delivery", "kafka"}} {
		c := newChild(t, append(args, "-c", file)...)
		c.cmd.Env = append(c.cmd.Env, "SPILLWAY_SECURITY__TLS__CERT="+filepath.Join(tls, service, "tls.crt"), "SPILLWAY_SECURITY__TLS__KEY="+filepath.Join(tls, service, "tls.key"))
		c.run()
	}
	ca := []string{"--ca", filepath.Join(tls, "ca.crt")}
	for name, address := range http {
		url := "https://" + strings.Replace(address, "127.0.0.1", "localhost", 1) + "/readyz"
		waitUntil(t, name+" is ready", func() bool { return spillway(t, append([]string{"health", url}, ca...)...).status == 0 })
	}
	as := func(name string) []string {
		return append([]string{"subscriptions", "-b", buffer, "--cert", filepath.Join(tls, name, "tls.crt"), "--key", filepath.Join(tls, name, "tls.key")}, ca...)
	}
	if got := spillway(t, as("admin")...); got.status != 0 || !strings.Contains(got.stdout, "logs/hdfs") {
		t.Errorf("admin: %+v", got)
	}
	if got := spillway(t, as("ingest")...); got.status != 1 || !strings.Contains(got.stderr, "lacks the role read") {
		t.Errorf("ingest: %+v", got)
	}
	if got := spillway(t, append([]string{"subscriptions", "-b", buffer}, ca...)...); got.status != 1 || !strings.Contains(got.stderr, "no credentials") {
		t.Errorf("nobody: %+v", got)
	}
}
