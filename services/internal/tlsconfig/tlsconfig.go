// Package tlsconfig makes TLS configurations of clients and servers from files, and follows their
// changes: a connection that is opened after a file changed uses what is in it then. Files are
// told apart by what is in them, since Kubernetes swaps a link above them.
package tlsconfig

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Files are PEM files. Empty paths are left out: without a CA the system's are trusted, without
// certificate and key the client shows none.
type Files struct {
	CA, Cert, Key string
}

// Reloader yields the configuration that the files make now. Its methods may be called
// concurrently.
type Reloader struct {
	files Files
	log   *slog.Logger

	mu      sync.Mutex
	config  *tls.Config // of the last files that could be used
	read    version     // of the files, as of the last attempt
	failing bool        // that attempt failed
	looked  time.Time   // of the last attempt
}

// version changes with what is in the files.
type version [sha256.Size]byte

// Load reads the files.
func Load(files Files, log *slog.Logger) (*Reloader, error) {
	r := &Reloader{files: files, log: log}
	pem, err := files.content()
	if err != nil {
		return nil, err
	}
	r.read = pem.version()
	r.config, err = files.load(pem)
	return r, err
}

// Client returns a configuration for a connection to the host of that name. Files that changed
// and cannot be used, such as a certificate whose key is not written yet, leave the one before in
// use.
func (r *Reloader) Client(serverName string) *tls.Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reloadLocked()
	config := r.config.Clone()
	config.ServerName = serverName
	return config
}

// Check reads the files again, and returns an error when what is in them now cannot be used.
func (r *Reloader) Check() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reloadLocked()
	if !r.failing {
		return nil
	}
	pem, err := r.files.content()
	if err == nil {
		_, err = r.files.load(pem)
	}
	return err
}

// reloadLocked makes the configuration anew when the files changed.
func (r *Reloader) reloadLocked() {
	r.looked = time.Now()
	pem, err := r.files.content()
	if err == nil && (pem.version() != r.read || r.failing) {
		var config *tls.Config
		if config, err = r.files.load(pem); err == nil {
			r.config = config
			r.log.Info("TLS files were read again", "ca", r.files.CA, "cert", r.files.Cert)
		}
		r.read = pem.version()
	}
	if err != nil && !r.failing {
		r.log.Error("TLS files changed and cannot be used; going on with those before", "error", err)
	}
	r.failing = err != nil
}

// content is what is in the files.
type content struct{ ca, cert, key []byte }

func (c content) version() version {
	h := sha256.New()
	for _, part := range [][]byte{c.ca, c.cert, c.key} {
		sum := sha256.Sum256(part)
		h.Write(sum[:])
	}
	return version(h.Sum(nil))
}

func (f Files) content() (c content, err error) {
	for _, part := range []struct {
		path string
		into *[]byte
	}{{f.CA, &c.ca}, {f.Cert, &c.cert}, {f.Key, &c.key}} {
		if part.path == "" {
			continue
		}
		if *part.into, err = os.ReadFile(part.path); err != nil {
			return c, err
		}
	}
	return c, nil
}

func (f Files) load(pem content) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.CA != "" {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem.ca) {
			return nil, fmt.Errorf("%s has no certificate in PEM form", f.CA)
		}
	}
	if (f.Cert == "") != (f.Key == "") {
		return nil, errors.New("a certificate needs both its file and the file of its key")
	}
	if f.Cert != "" {
		pair, err := tls.X509KeyPair(pem.cert, pem.key)
		if err != nil {
			return nil, fmt.Errorf("load certificate %s with key %s: %w", f.Cert, f.Key, err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}
