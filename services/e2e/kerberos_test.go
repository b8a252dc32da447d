package e2e

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/keytab"

	"github.com/spillwayio/spillway/services/delivery/filesink/fstest"
	"github.com/spillwayio/spillway/services/delivery/filesink/hdfsfs"
	"github.com/spillwayio/spillway/services/internal/config"
)

const ticketLifetime = 20 * time.Second

// shortTickets is the cluster's krb5.conf, but that tickets are asked for that soon expire.
func shortTickets(t testing.TB, c *cluster) string {
	t.Helper()
	text, err := os.ReadFile(c.file("krb5.conf"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "krb5.conf")
	text = []byte(strings.Replace(string(text), "ticket_lifetime = 1d", fmt.Sprintf("ticket_lifetime = %ds", int(ticketLifetime.Seconds())), 1))
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestSecureHDFS: one run of the processes outlives its tickets, all keys, and each protection of
// the connections to DataNodes. Where the NameNodes are and what they are called comes from
// Hadoop's own files.
func TestSecureHDFS(t *testing.T) {
	t.Parallel()
	const first, part = 40_000, 5_000
	c := newCluster(t, 1, "HDFS_PROTECTION=privacy", "HDFS_RPC_PROTECTION=privacy")
	krb5Conf := shortTickets(t, c)
	p := newPipeline(t, stack.kafka, fmt.Sprintf("url: \"hdfs://%s\", user: hdfs", stack.hdfs),
		fmt.Sprintf("url: \"hdfs:///\", conf_dir: %q, kerberos: {principal: spillway@EXAMPLE.COM, keytab: %q, krb5_conf: %q}, umask: 027", c.file("conf"), c.file("kdc.keytab"), krb5Conf))
	createTopic(t, stack.kafka, p.topic, nil)
	p.start()
	loggedIn := time.Now()
	source := newProducer(t, stack.kafka, p.topic)
	total := 0
	more := func(n int, what string) {
		t.Helper()
		if err := source.produce(n, 0); err != nil {
			t.Fatal(err)
		}
		total += n
		defer func(began time.Time) { t.Logf("%s, in %.1f s", what, time.Since(began).Seconds()) }(time.Now())
		eventually(t, 2*time.Minute, what, func() error { return p.settled(total, "hdfs") })
	}
	scripts := func(names ...string) {
		t.Helper()
		for _, name := range names {
			script, arg, _ := strings.Cut(name, " ")
			if err := c.script(script, strings.Fields(arg)...); err != nil {
				t.Fatal(err)
			}
		}
	}
	more(first, "all is delivered with privacy")

	// A NameNode that was away wants a new login of each connection. The first tickets are no
	// good by then.
	pause(t, time.Until(loggedIn.Add(ticketLifetime+time.Second)))
	scripts("hdfs-restart-namenode")
	more(part, "all is delivered after the tickets expired")

	// Everybody has new keys, and nobody knows the old tickets.
	scripts("hdfs-stop", "hdfs-start 1")
	more(part, "all is delivered with the new keytab")

	for _, protection := range []string{"privacy-aes", "integrity", "authentication"} {
		c.env[0] = "HDFS_PROTECTION=" + protection
		scripts("hdfs-restart-datanode 1")
		more(part, "all is delivered with "+protection)
		private := writePrivately(t, c, krb5Conf)
		if wanted := strings.HasPrefix(protection, "privacy"); wanted != (private == nil) || !wanted && !strings.Contains(private.Error(), "qop") {
			t.Errorf("privacy was wanted, %s is there: %v", protection, private)
		}
	}
	eventually(t, time.Minute, "every file is final", func() error { return errors.Join(noOpenFiles(p.hdfs), p.noOrphans()) })
	c.tally(t, p.hdfsDir, total).check(t, "secure HDFS", false)
	for line := range strings.Lines(string(c.tool(t, "hdfs-dfs", "-ls", "-R", p.hdfsDir))) {
		if f := strings.Fields(line); len(f) == 8 && (f[2] != "spillway" || f[0] != "-rw-r-----" && f[0] != "drwxr-x---") {
			t.Errorf("%s belongs to %s and has mode %s", f[7], f[2], f[0])
		}
	}
	kerberosErrors(t, c, krb5Conf)

	// The tests of the file system that read with the library, which can do that with
	// authentication alone, and of a KDC that is away.
	cmd := exec.Command("go", "test", "-count=1", "-v", "-run", "Conformance|Modes|ConcurrentWrites|AbsentKDC", "../delivery/filesink/hdfsfs")
	cmd.Env = append(os.Environ(), "E2E_HDFS=hdfs:///", "E2E_CONF_DIR="+c.file("conf"), "E2E_KEYTAB="+c.file("kdc.keytab"), "E2E_KRB5_CONF="+krb5Conf)
	if out, err := cmd.CombinedOutput(); err != nil || strings.Count(string(out), "--- PASS: ") < 18 {
		t.Errorf("%v\n%s", err, out)
	}
}

// secureFS is the secure HDFS as somebody sees it.
func secureFS(t testing.TB, c *cluster, h config.HDFS) *hdfsfs.FS {
	t.Helper()
	h.URL, h.ConfDir = "hdfs:///", c.file("conf")
	return newFS(t, h)
}

// writePrivately is what somebody does who wants privacy whatever the DataNodes have.
func writePrivately(t testing.TB, c *cluster, krb5Conf string) error {
	t.Helper()
	fs := secureFS(t, c, config.HDFS{DataTransferProtection: "privacy", Kerberos: &config.Kerberos{Principal: "spillway", Keytab: c.file("kdc.keytab"), Krb5Conf: krb5Conf}})
	return fstest.WriteFile(t.Context(), fs, fmt.Sprintf("/secret-%d", time.Now().UnixNano()), []byte("secret"))
}

// kerberosErrors checks what an operator reads: of a principal that the KDC does not know, of a
// wrong key, and of a KDC that is away.
func kerberosErrors(t testing.TB, c *cluster, krb5Conf string) {
	t.Helper()
	probe := func(principal, path, service string) error {
		fs := secureFS(t, c, config.HDFS{Kerberos: &config.Kerberos{Principal: principal, Keytab: path, Krb5Conf: krb5Conf, ServicePrincipal: service}})
		return fs.Probe(t.Context())
	}
	forged := func(name string) string {
		k := keytab.New()
		if err := k.AddEntry(name, "EXAMPLE.COM", "wrong", time.Now(), 1, etypeID.AES128_CTS_HMAC_SHA1_96); err != nil {
			t.Fatal(err)
		}
		data, err := k.Marshal()
		path := filepath.Join(t.TempDir(), "keytab")
		if err == nil {
			err = os.WriteFile(path, data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := c.file("kdc.keytab")
	unprotected, err := hdfsfs.New(&config.HDFS{URL: fmt.Sprintf("hdfs://localhost:%d", c.port), Kerberos: &config.Kerberos{
		Principal: "spillway@EXAMPLE.COM", Keytab: good, Krb5Conf: krb5Conf, ServicePrincipal: "nn/_HOST@EXAMPLE.COM"}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(fstest.WriteFile(t.Context(), unprotected, "/unprotected", []byte("x")), unprotected.Close())
	t.Logf("no protection where DataNodes want one: %v", err)
	if err == nil {
		t.Error("DataNodes took a connection without SASL")
	}
	if err := probe("spillway", good, ""); err != nil {
		t.Errorf("the right principal and keytab: %v", err)
	}
	simple, err := hdfsfs.New(&config.HDFS{URL: fmt.Sprintf("hdfs://localhost:%d", c.port), User: "spillway"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(simple.Probe(t.Context()), simple.Close()); err == nil || !strings.Contains(err.Error(), "may want Kerberos") {
		t.Errorf("without Kerberos: %v", err)
	}
	for _, test := range []struct{ what, principal, keytab, service, want string }{
		{"unknown principal", "nobody", forged("nobody"), "", "KDC_ERR_C_PRINCIPAL_UNKNOWN"},
		{"wrong key", "spillway", forged("spillway"), "", "log in to Kerberos as spillway@EXAMPLE.COM"},
		{"wrong service principal", "spillway", good, "hdfs/_HOST@EXAMPLE.COM", "KDC_ERR_S_PRINCIPAL_UNKNOWN"},
	} {
		err := probe(test.principal, test.keytab, test.service)
		t.Logf("%s: %v", test.what, err)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v; want it to say %s", test.what, err, test.want)
		}
	}
}
