package hdfsfs

import (
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/internal/kerberos"
)

// kdcProxy stands before the KDC, so that it can be away.
type kdcProxy struct {
	addr, kdc string
	lis       net.Listener
	wg        sync.WaitGroup
}

func (p *kdcProxy) open(t *testing.T) {
	t.Helper()
	var err error
	if p.lis, err = net.Listen("tcp", p.addr); err != nil {
		t.Fatal(err)
	}
	p.addr = p.lis.Addr().String()
	p.wg.Go(func() {
		for {
			conn, err := p.lis.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(conn) })
		}
	})
}

// serve ends when the client does: the library closes its connection after each answer.
func (p *kdcProxy) serve(conn net.Conn) {
	defer conn.Close()
	kdc, err := net.Dial("tcp", p.kdc)
	if err != nil {
		return
	}
	defer kdc.Close()
	p.wg.Go(func() {
		_, _ = io.Copy(conn, kdc) // either end may be gone
		_ = conn.Close()
	})
	_, _ = io.Copy(kdc, conn)
}

func (p *kdcProxy) close() {
	_ = p.lis.Close()
	p.wg.Wait()
}

// A KDC that is away stops nobody who has tickets, also when the keytab changes or a NameNode was
// not content with them. Who has none gets an error, and tickets when the KDC is back.
func TestAbsentKDC(t *testing.T) {
	h := hdfsConf(t)
	if h.Kerberos == nil {
		t.Skip("needs a secure HDFS, and E2E_KEYTAB")
	}
	text, err := os.ReadFile(h.Kerberos.Krb5Conf)
	if err != nil {
		t.Fatal(err)
	}
	kdc := regexp.MustCompile(`kdc = (\S+)`).FindSubmatch(text)
	lifetime := regexp.MustCompile(`ticket_lifetime = \S+`).ReplaceAllString(string(text), "ticket_lifetime = 1h")
	proxy := &kdcProxy{addr: "127.0.0.1:0", kdc: string(kdc[1])}
	proxy.open(t)
	defer func() { proxy.close() }()
	dir := t.TempDir()
	h.Kerberos.Krb5Conf = write(t, filepath.Join(dir, "krb5.conf"), strings.Replace(lifetime, string(kdc[0]), "kdc = "+proxy.addr, 1))
	keys, err := os.ReadFile(h.Kerberos.Keytab)
	if err != nil {
		t.Fatal(err)
	}
	h.Kerberos.Keytab = write(t, filepath.Join(dir, "keytab"), string(keys))

	newFS := func() *FS {
		f, err := New(h, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeFS(t, f) })
		return f
	}
	// anew probes on a connection of its own.
	anew := func(f *FS) error {
		f.mu.Lock()
		idle := f.idle
		f.idle = nil
		f.mu.Unlock()
		for _, c := range idle {
			c.close()
		}
		return f.Probe(t.Context())
	}
	f, other := newFS(), newFS()
	if err := anew(f); err != nil {
		t.Fatal(err)
	}
	login := f.cluster.login
	current := func() *kerberos.Tickets {
		tickets, _ := login.Get() // an error beside tickets is of a newer login
		login.Release(tickets)
		return tickets
	}
	first := current()
	proxy.close()
	if err := os.Chtimes(h.Kerberos.Keytab, time.Time{}, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := anew(f); err != nil {
		t.Errorf("the keytab changed while the KDC is away: %v", err)
	}
	login.Suspect(first)
	if err := anew(f); err != nil || current() != first {
		t.Errorf("a NameNode was not content, and the KDC is away: %v", err)
	}
	if err := other.Probe(t.Context()); err == nil || !strings.Contains(err.Error(), "log in to Kerberos as spillway@EXAMPLE.COM") {
		t.Errorf("no tickets and no KDC: %v", err)
	}
	proxy.open(t)
	if err := anew(f); err != nil || current() == first {
		t.Errorf("the KDC is back: %v; or there was no new login", err)
	}
	if err := other.Probe(t.Context()); err != nil {
		t.Errorf("the KDC is back: %v", err)
	}
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
