package tlsconfig

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"
)

// serverFresh is how long a server goes by the files as they were read last: handshakes may come
// in floods.
const serverFresh = time.Second

// Server returns a configuration for a port, which hands each handshake the certificate and the
// authorities that the files have then. Protocols are those of ALPN. Client certificates are asked
// for when wanted is true, and count only when an authority of the CA file has issued them; who
// shows none still gets a connection, and the caller decides what it is good for.
func (r *Reloader) Server(wanted bool, protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: protocols,
		// The configuration that this returns takes the place of the one that gRPC made of ours,
		// so that it has to have everything, its protocols above all.
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			current := r.fresh()
			if len(current.Certificates) == 0 {
				return nil, errors.New("this port has no certificate")
			}
			c := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protocols, Certificates: current.Certificates,
				// A resumed session would keep a client certificate whose authority is gone.
				SessionTicketsDisabled: true}
			if wanted && current.RootCAs != nil {
				c.ClientAuth, c.ClientCAs = tls.VerifyClientCertIfGiven, current.RootCAs
			}
			return c, nil
		},
	}
}

// fresh is the configuration of files that were looked at within serverFresh.
func (r *Reloader) fresh() *tls.Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.looked) >= serverFresh {
		r.reloadLocked()
	}
	return r.config
}

// Verify says whether client certificates, as a connection showed them, are still good: by the
// clock, and by the authorities that the files have now.
func (r *Reloader) Verify(chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return errors.New("no certificate")
	}
	roots := r.fresh().RootCAs
	if roots == nil {
		return errors.New("no authority of client certificates is configured")
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err
}

// Expires returns when the certificate expires that is shown now; the zero time when there is
// none.
func (r *Reloader) Expires() time.Time {
	config := r.fresh()
	if len(config.Certificates) == 0 || config.Certificates[0].Leaf == nil {
		return time.Time{}
	}
	return config.Certificates[0].Leaf.NotAfter
}
