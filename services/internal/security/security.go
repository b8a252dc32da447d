// Package security decides who may do what on the ports of a process, and shows others who it is.
//
// A caller has an identity by a token (Authorization: Bearer …) or by a client certificate; a
// token that is no good is never made up for by a certificate. Its grants (config.Grant) are
// compared with what the called RPC needs (table.go). What is in no table is refused. Nothing here
// keeps a goroutine: files are looked at again when they are used, at most once a second, by
// content.
//
// A long stream is looked at again every recheck; when its caller would not be let in any more,
// its connection is closed, and the client comes back with what it has by then.
package security

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/tlsconfig"
)

// Security is the section of the configuration at work. Its methods may be called concurrently.
type Security struct {
	enforced bool // callers need an identity and grants
	require  bool // callers must show a certificate besides
	server   *tlsconfig.Reloader
	client   *tlsconfig.Reloader // nil: plain text
	insecure bool                // plain text may leave this machine
	name     string              // that servers' certificates must be for; empty: the host
	token    *file               // nil: none is shown
	known    atomic.Pointer[known]
	log      *slog.Logger
	audit    *Audit
	limits   *limits
	recheck  time.Duration
	logins   *logins // to the console
}

// known is who is known, with their grants. It does not change; Reload puts another in its place.
type known struct {
	conf   config.Security
	tokens []*staticTokens
	oidc   *issuer                   // nil: none
	grants map[string][]config.Grant // of client certificates, by name
}

// New reads the files that the section names.
func New(c *config.Security, log *slog.Logger) (*Security, error) {
	s := &Security{enforced: c.Authenticates(), audit: newAudit(log), recheck: 5 * time.Second, logins: newLogins(), log: log}
	s.limits = newLimits(c.Limits, s.audit)
	if err := s.setClient(c, log); err != nil {
		return nil, err
	}
	var err error
	if c.TLS != nil {
		s.require = c.TLS.ClientAuth == "require"
		if s.server, err = tlsconfig.Load(tlsconfig.Files{CA: c.TLS.CA, Cert: c.TLS.Cert, Key: c.TLS.Key}, log); err != nil {
			return nil, fmt.Errorf("security.tls: %w", err)
		}
	}
	k, err := newKnown(c, nil, log)
	if err != nil {
		return nil, err
	}
	s.known.Store(k)
	return s, nil
}

// newKnown reads the files of tokens and keys. An issuer that is as before keeps the keys that it
// has, since it may be away.
func newKnown(c *config.Security, before *known, log *slog.Logger) (*known, error) {
	k := &known{conf: *c, grants: make(map[string][]config.Grant)}
	for _, t := range c.Tokens {
		grants, err := grantsOf(t.Roles)
		if err != nil {
			return nil, fmt.Errorf("security.tokens %s: %w", t.Name, err)
		}
		tokens, err := newStaticTokens(t.Name, t.File, grants, log)
		if err != nil {
			return nil, fmt.Errorf("security.tokens %s: %w", t.Name, err)
		}
		k.tokens = append(k.tokens, tokens)
	}
	var err error
	for _, x := range c.Identities {
		if k.grants[x.Name], err = grantsOf(x.Roles); err != nil {
			return nil, fmt.Errorf("security.identities %s: %w", x.Name, err)
		}
	}
	switch {
	case c.OIDC == nil:
	case before != nil && before.oidc != nil && before.oidc.conf == *c.OIDC && c.OIDC.JWKSURL != "":
		k.oidc = before.oidc
	default:
		if k.oidc, err = newIssuer(c.OIDC, log); err != nil {
			return nil, fmt.Errorf("security.oidc: %w", err)
		}
	}
	return k, nil
}

// errNotWhileRunning is of a section that begins to ask for identities, or ceases to.
var errNotWhileRunning = errors.New("whether callers need an identity does not change while the process runs: restart it")

// CheckReload reads all files that the section names, and returns what puts it in the place of the
// one that counts: its tokens, identities, oidc and limits. Certificates are read again, from the
// files that the process was started with. An error says what cannot be used. Calls that are under
// way, and streams, are held to what counts then within seconds.
func (s *Security) CheckReload(c *config.Security) (apply func(), err error) {
	if c.Authenticates() != s.enforced {
		return nil, errNotWhileRunning
	}
	k, err := newKnown(c, s.known.Load(), s.log)
	if err != nil {
		return nil, err
	}
	for _, files := range []*tlsconfig.Reloader{s.server, s.client} {
		if files == nil {
			continue
		}
		if err := files.Check(); err != nil {
			return nil, fmt.Errorf("security.tls: %w", err)
		}
	}
	return func() {
		s.known.Store(k)
		s.limits.set(c.Limits)
	}, nil
}

// NewClient returns what commands need that call services: Dial and HTTPClient. It reads nothing
// that is for ports.
func NewClient(c *config.Security, log *slog.Logger) (*Security, error) {
	s := &Security{audit: newAudit(log)}
	return s, s.setClient(c, log)
}

// setClient reads what this process shows to others.
func (s *Security) setClient(c *config.Security, log *slog.Logger) (err error) {
	s.name, s.insecure = c.Client.ServerName, c.Insecure
	ours := tlsconfig.Files{CA: c.Client.CA, Cert: c.Client.Cert, Key: c.Client.Key}
	if c.TLS != nil {
		if ours.CA == "" {
			ours.CA = c.TLS.CA
		}
		if ours.Cert == "" && c.TLS.ClientAuth != "none" {
			ours.Cert, ours.Key = c.TLS.Cert, c.TLS.Key
		}
	}
	if c.TLS != nil || ours != (tlsconfig.Files{}) {
		if s.client, err = tlsconfig.Load(ours, log); err != nil {
			return fmt.Errorf("security.client: %w", err)
		}
	}
	if c.Client.TokenFile != "" {
		s.token = &file{path: c.Client.TokenFile, log: log}
		if _, err := s.token.content(); err != nil {
			return fmt.Errorf("security.client.token_file: %w", err)
		}
	}
	return nil
}

func grantsOf(roles []string) ([]config.Grant, error) {
	all := make([]config.Grant, 0, len(roles))
	for _, role := range roles {
		g, err := config.ParseGrant(role)
		if err != nil {
			return nil, err
		}
		all = append(all, g)
	}
	return all, nil
}

// Identity is a caller that was recognized.
type Identity struct {
	// Name is a token's, a certificate's, or what an issuer calls its subject; "anonymous" where
	// nobody needs an identity.
	Name string
	// Kind is token, oidc, certificate or anonymous.
	Kind   string
	grants []config.Grant
}

// String is for logs.
func (i Identity) String() string {
	if i.Kind == "anonymous" {
		return i.Name
	}
	return i.Kind + ":" + i.Name
}

// May says whether the identity has a role on an object; see config.Grant.
func (i Identity) May(role, object string) bool {
	return slices.ContainsFunc(i.grants, func(g config.Grant) bool { return g.Allows(role, object) })
}

// streams says whether the caller may append to a queue, or consume of it.
func (i Identity) streams(queue string) bool {
	return slices.ContainsFunc(i.grants, func(g config.Grant) bool { return g.Streams(queue) })
}

var anonymous = Identity{Name: "anonymous", Kind: "anonymous", grants: []config.Grant{{Role: "*"}}}

// identityKey is of contexts.
type identityKey struct{}

// Caller returns who called the handler that ctx is of.
func Caller(ctx context.Context) Identity {
	if i, ok := ctx.Value(identityKey{}).(Identity); ok {
		return i
	}
	return anonymous
}

// errNobody is of callers that show nothing.
var errNobody = errors.New("no credentials: want a token (authorization: Bearer TOKEN) or a client certificate")

// shown is what a caller shows.
type shown struct {
	bearer string // empty: none
	chain  []*x509.Certificate
}

// credentialsOf takes apart an Authorization header and the state of a connection.
func credentialsOf(authorization []string, state *tls.ConnectionState) (c shown, err error) {
	if state != nil && len(state.VerifiedChains) > 0 {
		c.chain = state.PeerCertificates
	}
	if len(authorization) == 0 {
		return c, nil
	}
	scheme, token, ok := strings.Cut(authorization[0], " ")
	token = strings.TrimSpace(token)
	if len(authorization) > 1 || !ok || !strings.EqualFold(scheme, "Bearer") || token == "" {
		return c, errors.New("malformed authorization: want one, Bearer TOKEN")
	}
	c.bearer = token
	return c, nil
}

// identify says who shows these credentials.
func (s *Security) identify(c shown) (Identity, error) {
	if !s.enforced {
		return anonymous, nil
	}
	if s.require || c.bearer == "" && c.chain != nil {
		if c.chain == nil {
			return Identity{}, errors.New("no client certificate, which client_auth: require asks for")
		}
		if err := s.server.Verify(c.chain); err != nil {
			return Identity{}, fmt.Errorf("the client certificate is no good any more: %w", err)
		}
	}
	switch {
	case c.bearer != "":
		return s.identifyToken(c.bearer)
	case c.chain != nil:
		return s.identifyCertificate(c.chain[0]), nil
	}
	return Identity{}, errNobody
}

func (s *Security) identifyToken(token string) (Identity, error) {
	k := s.known.Load()
	for _, t := range k.tokens {
		if t.has(token) {
			return Identity{Name: t.name, Kind: "token", grants: t.grants}, nil
		}
	}
	if k.oidc == nil {
		return Identity{}, errors.New("unknown token")
	}
	return k.oidc.identify(token)
}

// identifyCertificate prefers URIs, since anybody may have a common name. A certificate that
// nobody knows has a name and no grants.
func (s *Security) identifyCertificate(cert *x509.Certificate) Identity {
	known := s.known.Load().grants
	for _, uri := range cert.URIs {
		if grants, ok := known[uri.String()]; ok {
			return Identity{Name: uri.String(), Kind: "certificate", grants: grants}
		}
	}
	name := cert.Subject.CommonName
	if len(cert.URIs) > 0 {
		// Its common name does not count beside URIs.
		return Identity{Name: cert.URIs[0].String(), Kind: "certificate"}
	}
	return Identity{Name: name, Kind: "certificate", grants: known[name]}
}
