// Package tlsconfig makes the TLS configuration of a client from files, and follows their changes: a
// connection that is opened after a file changed uses what is in it then.
package tlsconfig

import (
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

// Reloader yields the configuration that the files make now. Its methods may be called concurrently.
type Reloader struct {
	files Files
	log   *slog.Logger

	mu      sync.Mutex
	config  *tls.Config // of the last files that could be used
	read    [3]version  // of the files, as of the last attempt
	failing bool        // that attempt failed
}

// version is what changes with a file.
type version struct {
	modified time.Time
	size     int64
}

// Load reads the files.
func Load(files Files, log *slog.Logger) (*Reloader, error) {
	r := &Reloader{files: files, log: log}
	var err error
	if r.read, err = files.versions(); err != nil {
		return nil, err
	}
	r.config, err = files.load()
	return r, err
}

// Client returns a configuration for a connection to the host of that name. Files that changed and cannot
// be used, such as a certificate whose key is not written yet, leave the one before in use.
func (r *Reloader) Client(serverName string) *tls.Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	versions, err := r.files.versions()
	if err == nil && (versions != r.read || r.failing) {
		var config *tls.Config
		if config, err = r.files.load(); err == nil {
			r.config = config
			r.log.Info("TLS files were read again", "ca", r.files.CA, "cert", r.files.Cert)
		}
		r.read = versions
	}
	if err != nil && !r.failing {
		r.log.Error("TLS files changed and cannot be used; going on with those before", "error", err)
	}
	r.failing = err != nil
	config := r.config.Clone()
	config.ServerName = serverName
	return config
}

func (f Files) versions() (all [3]version, err error) {
	for i, path := range []string{f.CA, f.Cert, f.Key} {
		if path == "" {
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			return all, err
		}
		all[i] = version{info.ModTime(), info.Size()}
	}
	return all, nil
}

func (f Files) load() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.CA != "" {
		pem, err := os.ReadFile(f.CA)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s has no certificate in PEM form", f.CA)
		}
	}
	if (f.Cert == "") != (f.Key == "") {
		return nil, errors.New("a client certificate needs both its file and the file of its key")
	}
	if f.Cert != "" {
		pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			return nil, fmt.Errorf("load client certificate %s: %w", f.Cert, err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}
