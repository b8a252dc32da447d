package tlsconfig

import (
	"crypto/tls"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/internal/tlsconfig/tlstest"
)

// handshake connects a client to a server that wants a certificate of an authority, and returns
// whom the server took the client for.
func handshake(t *testing.T, client *tls.Config, server tls.Certificate, clients *tlstest.Authority) (string, error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	s := tls.Server(b, &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients.Pool()})
	served := make(chan error, 1)
	go func() {
		err := s.Handshake()
		if err != nil {
			b.Close()
		}
		served <- err
	}()
	err := tls.Client(a, client).Handshake()
	if err != nil {
		a.Close()
	}
	if serverErr := <-served; err == nil {
		err = serverErr
	}
	if err != nil {
		return "", err
	}
	return s.ConnectionState().PeerCertificates[0].Subject.CommonName, nil
}

func write(t *testing.T, path string, content []byte, age time.Duration) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(-age) // two writes within the clock's resolution are told apart
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

func TestFilesAreReadAgain(t *testing.T) {
	dir := t.TempDir()
	files := Files{CA: filepath.Join(dir, "ca"), Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key")}
	one, two := tlstest.New(t), tlstest.New(t)
	put := func(ca, from *tlstest.Authority, name string, age time.Duration) {
		cert, key := from.Issue(t, name)
		write(t, files.CA, ca.PEM(), age)
		write(t, files.Cert, cert, age)
		write(t, files.Key, key, age)
	}
	put(one, one, "first", time.Hour)
	log := &strings.Builder{}
	r, err := Load(files, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	serverOne, serverTwo := one.Certificate(t, "kafka"), two.Certificate(t, "kafka")
	expect := func(server tls.Certificate, clients *tlstest.Authority, want string) {
		t.Helper()
		if got, err := handshake(t, r.Client("kafka"), server, clients); got != want || err != nil {
			t.Errorf("the server sees %q, %v; want %q", got, err, want)
		}
	}
	expect(serverOne, one, "first")
	if _, err := handshake(t, r.Client("other"), serverOne, one); err == nil {
		t.Error("a certificate for another name passed")
	}
	if _, err := handshake(t, r.Client("kafka"), serverTwo, one); err == nil {
		t.Error("an unknown authority passed")
	}

	put(two, two, "second", time.Minute)
	expect(serverTwo, two, "second")

	write(t, files.Key, []byte("half a ke"), 0)
	expect(serverTwo, two, "second")
	expect(serverTwo, two, "second")
	if n := strings.Count(log.String(), "cannot be used"); n != 1 {
		t.Errorf("%d lines about files that cannot be used, want 1: %s", n, log)
	}
	if err := os.Remove(files.CA); err != nil {
		t.Fatal(err)
	}
	expect(serverTwo, two, "second")
	put(one, one, "third", 0)
	expect(serverOne, one, "third")
}

func TestLoadRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "no.pem")
	write(t, path, []byte("nothing"), 0)
	cert, _ := tlstest.New(t).Issue(t, "x")
	certPath := filepath.Join(dir, "cert.pem")
	write(t, certPath, cert, 0)
	for _, f := range []Files{{CA: path}, {CA: dir + "/none"}, {Cert: certPath}, {Cert: certPath, Key: path}} {
		if _, err := Load(f, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%+v passed", f)
		}
	}
	if _, err := Load(Files{}, slog.New(slog.DiscardHandler)); err != nil {
		t.Error("no files at all:", err)
	}
}
