package kafkaclient

import (
	"crypto/tls"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/tlsconfig/tlstest"
)

// reach asks a cluster for its topics, as the ingest and the consumer group of kafka-go would.
func reach(t *testing.T, cluster *kfake.Cluster, tc *config.TLS, sc *config.SASL) error {
	t.Helper()
	access, err := NewAccess(tc, sc, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	client := New(cluster.ListenAddrs(), "test", access)
	defer client.Close()
	if _, err := client.Cluster(t.Context()); err != nil {
		return err
	}
	conn, err := access.Dialer("test").DialContext(t.Context(), "tcp", cluster.ListenAddrs()[0])
	if err != nil {
		t.Errorf("the client gets in, the group does not: %v", err)
		return err
	}
	_, err = conn.ReadPartitions()
	if closeErr := conn.Close(); closeErr != nil {
		t.Error(closeErr)
	}
	return err
}

func newFake(t *testing.T, opts ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	cluster, err := kfake.NewCluster(append(opts, kfake.NumBrokers(1), kfake.SeedTopics(1, "t"))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return cluster
}

func TestSASL(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("pw\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cluster := newFake(t, kfake.EnableSASL(), kfake.Superuser("PLAIN", "u", "pw"), kfake.Superuser("SCRAM-SHA-256", "u", "pw"), kfake.Superuser("SCRAM-SHA-512", "u", "pw"))
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		if err := reach(t, cluster, nil, &config.SASL{Mechanism: mechanism, Username: "u", Password: "pw"}); err != nil {
			t.Errorf("%s: %v", mechanism, err)
		}
		if err := reach(t, cluster, nil, &config.SASL{Mechanism: mechanism, Username: "u", SecretFile: secret}); err != nil {
			t.Errorf("%s with a file: %v", mechanism, err)
		}
		if err := reach(t, cluster, nil, &config.SASL{Mechanism: mechanism, Username: "u", Password: "wrong"}); err == nil {
			t.Errorf("%s: a wrong password passed", mechanism)
		}
	}
	if _, err := NewAccess(nil, &config.SASL{Mechanism: "PLAIN", Username: "u", SecretFile: dir + "/none"}, nil); err == nil {
		t.Error("a missing secret file passed")
	}
}

func TestTLS(t *testing.T) {
	authority, other := tlstest.New(t), tlstest.New(t)
	cluster := newFake(t, kfake.TLS(&tls.Config{Certificates: []tls.Certificate{authority.Certificate(t, "kafka")},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: authority.Pool()}))
	dir := t.TempDir()
	files := config.TLS{CA: filepath.Join(dir, "ca"), Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key")}
	cert, key := authority.Issue(t, "client")
	for path, content := range map[string][]byte{files.CA: authority.PEM(), files.Cert: cert, files.Key: key, dir + "/other": other.PEM()} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := reach(t, cluster, &files, nil); err != nil {
		t.Error("by address:", err)
	}
	named := files
	named.ServerName = "kafka"
	if err := reach(t, cluster, &named, nil); err != nil {
		t.Error("by server_name:", err)
	}
	named.ServerName = "elsewhere"
	if err := reach(t, cluster, &named, nil); err == nil || !strings.Contains(err.Error(), "elsewhere") {
		t.Error("another name:", err)
	}
	if err := reach(t, cluster, &config.TLS{CA: dir + "/other"}, nil); err == nil {
		t.Error("another authority passed")
	}
	if err := reach(t, cluster, &config.TLS{CA: files.CA}, nil); err == nil {
		t.Error("no client certificate passed")
	}
}
