package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/spf13/cobra"
)

func newCertificates() *cobra.Command {
	var valid time.Duration
	cmd := &cobra.Command{
		Use:   "certificates DIRECTORY NAME...",
		Short: "Makes an authority and certificates, to try out security.tls",
		Long: `Makes DIRECTORY/ca.crt, and for each name DIRECTORY/NAME/tls.crt and tls.key: a certificate of a server and a client, for
the host NAME and for localhost. The name is what security.identities knows it by. The authority's key is thrown away, so that
nobody makes more; a directory that has an authority is left as it is.

It is for trying out, and for docker compose. Where services matter, an authority of your own, cert-manager, Vault or
SPIFFE makes certificates that are replaced in time.`,
		Example: "  spillway certificates /tls buffer ingest delivery-hdfs admin",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return &usageError{errors.New("want a directory, and names of hosts; see spillway certificates --help")}
			}
			for _, name := range args[1:] {
				if !hostName.MatchString(name) {
					return &usageError{fmt.Errorf("%q: want the name of a host, such as buffer", name)}
				}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if valid <= 0 {
				return &usageError{fmt.Errorf("--valid %s: want more than 0, as in 8760h", valid)}
			}
			return makeCertificates(cmd, args[0], args[1:], valid)
		},
	}
	cmd.Flags().DurationVar(&valid, "valid", 365*24*time.Hour, "for how long they are good")
	return cmd
}

var hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$`)

func makeCertificates(cmd *cobra.Command, dir string, names []string, valid time.Duration) error {
	authority := filepath.Join(dir, "ca.crt")
	if _, err := os.Stat(authority); err == nil {
		_, err := fmt.Fprintln(cmd.OutOrStdout(), authority, "is there already: nothing was made")
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ca := certificate("spillway certificates", valid)
	ca.IsCA, ca.BasicConstraintsValid, ca.MaxPathLenZero, ca.KeyUsage = true, true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &key.PublicKey, key)
	if err != nil {
		return fmt.Errorf("make an authority: %w", err)
	}
	for _, name := range names {
		if err := issue(filepath.Join(dir, name), name, valid, ca, key); err != nil {
			return err
		}
	}
	// Last: it says that all is there.
	if err := writePEM(authority, "CERTIFICATE", der, 0o644); err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s, and certificates of %d names, good for %s\n", authority, len(names), short(valid))
	return err
}

// issue makes a key and a certificate in a directory of their own.
func issue(dir, name string, valid time.Duration, ca *x509.Certificate, caKey *ecdsa.PrivateKey) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	c := certificate(name, valid)
	c.KeyUsage, c.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	c.DNSNames, c.IPAddresses = []string{name, "localhost"}, []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	der, err := x509.CreateCertificate(rand.Reader, c, ca, &key.PublicKey, caKey)
	if err != nil {
		return fmt.Errorf("make a certificate of %s: %w", name, err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return errors.Join(writePEM(filepath.Join(dir, "tls.key"), "PRIVATE KEY", pkcs8, 0o600), writePEM(filepath.Join(dir, "tls.crt"), "CERTIFICATE", der, 0o644))
}

// certificate has what all of them have. A clock may be an hour behind.
func certificate(name string, valid time.Duration) *x509.Certificate {
	serial := new(big.Int).SetBytes([]byte(rand.Text())[:16]) // 80 bits and more of it are random
	return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(valid)}
}

func writePEM(path, kind string, der []byte, mode os.FileMode) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode)
}
