package config

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Security says who may do what on the ports of a process, and what it shows to others. Without
// it, a process listens on loopback only, and everybody there may do everything.
type Security struct {
	TLS    *SecurityTLS  `yaml:"tls"` // nil: plain text
	Tokens []StaticToken `yaml:"tokens"`
	OIDC   *OIDC         `yaml:"oidc"` // nil: no tokens of an issuer
	// Identities are those of client certificates.
	Identities []CertificateIdentity `yaml:"identities"`
	Client     SecurityClient        `yaml:"client"`
	// Insecure allows plain text, and ports that are open to everybody, on addresses other than
	// loopback.
	Insecure bool   `yaml:"insecure"`
	Limits   Limits `yaml:"limits"`
}

// Authenticates says whether callers need an identity.
func (s *Security) Authenticates() bool {
	return len(s.Tokens) > 0 || s.OIDC != nil || len(s.Identities) > 0
}

// SecurityTLS encrypts all ports. All files are PEM, and read again when they change.
type SecurityTLS struct {
	Cert string `yaml:"cert"` // file of this process's certificate, for its ports and for others
	Key  string `yaml:"key"`  // file of its key
	CA   string `yaml:"ca"`   // file of the authorities of clients and of other services; empty: the system's, and no clients'
	// ClientAuth is none, request or require: whether callers may, or must, show a certificate.
	ClientAuth string `yaml:"client_auth"`
}

// StaticToken is who presents one of the tokens of a file.
type StaticToken struct {
	Name  string   `yaml:"name"`
	File  string   `yaml:"file"` // one token a line; several while one is replaced
	Roles []string `yaml:"roles"`
}

// OIDC accepts the signed tokens (JWT) of an issuer.
type OIDC struct {
	Issuer   string `yaml:"issuer"`
	Audience string `yaml:"audience"`
	// JWKSFile and JWKSURL have the issuer's keys; one of them.
	JWKSFile string `yaml:"jwks_file"`
	JWKSURL  string `yaml:"jwks_url"`
	CA       string `yaml:"ca"` // file of the authorities of JWKSURL; empty: the system's
	// NameClaim and RolesClaim are where the caller's name and roles are; dots lead into objects.
	NameClaim  string `yaml:"name_claim"`
	RolesClaim string `yaml:"roles_claim"`
}

// CertificateIdentity is who shows a certificate with a name.
type CertificateIdentity struct {
	Name  string   `yaml:"name"` // a URI of it, or its common name
	Roles []string `yaml:"roles"`
}

// SecurityClient is what this process, or a command, shows to services.
type SecurityClient struct {
	TokenFile  string `yaml:"token_file"`
	CA         string `yaml:"ca"`          // instead of SecurityTLS's
	Cert       string `yaml:"cert"`        // instead of SecurityTLS's
	Key        string `yaml:"key"`         // instead of SecurityTLS's
	ServerName string `yaml:"server_name"` // what certificates must be for; empty: the host that is connected to
}

// Limits bound what one identity may have at a time. All who come without one share theirs.
type Limits struct {
	Connections int `yaml:"connections"`
	Streams     int `yaml:"streams"` // calls that run
	Sessions    int `yaml:"sessions"`
	// Bytes bounds the messages that were received and are not yet handled.
	Bytes ByteSize `yaml:"bytes"`
}

func (s *Security) setDefaults() {
	s.Limits = Limits{Connections: 256, Streams: 512, Sessions: 256, Bytes: 64 * MiB}
}

func (t *SecurityTLS) setDefaults() { t.ClientAuth = "request" }

func (o *OIDC) setDefaults() { o.NameClaim, o.RolesClaim = "sub", "roles" }

// Roles that a Grant may have.
const (
	RoleAppend  = "append"  // to a queue
	RoleConsume = "consume" // a subscription
	RoleRead    = "read"    // lists, status, metrics
	RoleTap     = "tap"     // the content of records
	RoleOperate = "operate" // pause, seek, roll; with read
	RoleAdmin   = "admin"   // create, delete, forget; with operate and read
)

// Grant is a role, on all objects or on some.
type Grant struct {
	Role   string // "*" is any
	object string // QUEUE, QUEUE/SUBSCRIPTION, with * for any name; empty is all
}

var grantForm = regexp.MustCompile(`^(append|consume|read|tap|operate|admin)(?::((?:[A-Za-z0-9_-]+|\*)(?:/(?:[A-Za-z0-9_-]+|\*))?))?$`)

// ParseGrant reads ROLE, ROLE:QUEUE, ROLE:QUEUE/SUBSCRIPTION or *.
func ParseGrant(text string) (Grant, error) {
	if text == "*" {
		return Grant{Role: "*"}, nil
	}
	m := grantForm.FindStringSubmatch(text)
	if m == nil {
		return Grant{}, fmt.Errorf("bad role %q: want append:QUEUE, consume:QUEUE/SUBSCRIPTION, read, tap, operate, admin or *", text)
	}
	g := Grant{Role: m[1], object: m[2]}
	switch {
	case g.Role == RoleAppend && (g.object == "" || strings.Contains(g.object, "/")):
		return Grant{}, fmt.Errorf("bad role %q: want append:QUEUE, or append:* for all queues", text)
	case g.Role == RoleConsume && g.object != "*" && !strings.Contains(g.object, "/"):
		return Grant{}, fmt.Errorf("bad role %q: want consume:QUEUE/SUBSCRIPTION; QUEUE/* is all of a queue, * all there are", text)
	}
	return g, nil
}

// Streams says whether the grant is for streams of a queue's records: to append to it, or to
// consume one of its subscriptions.
func (g Grant) Streams(queue string) bool {
	if g.Role != "*" && g.Role != RoleAppend && g.Role != RoleConsume {
		return false
	}
	of, _, _ := strings.Cut(g.object, "/")
	return of == "" || of == "*" || of == queue
}

// Allows says whether the grant has the role on an object: QUEUE, QUEUE/SUBSCRIPTION, or empty for
// everything at once, which only a grant on all objects allows.
func (g Grant) Allows(role, object string) bool {
	if g.Role == "*" {
		return true
	}
	if !slices.Contains(implied[g.Role], role) {
		return false
	}
	if g.object == "" || g.object == "*" {
		return true
	}
	wantQueue, wantSub, wantsSub := strings.Cut(g.object, "/")
	queue, sub, hasSub := strings.Cut(object, "/")
	if object == "" || wantQueue != "*" && wantQueue != queue {
		return false
	}
	return !wantsSub || hasSub && (wantSub == "*" || wantSub == sub)
}

// implied are the roles that a role has.
var implied = map[string][]string{
	RoleAppend: {RoleAppend}, RoleConsume: {RoleConsume}, RoleTap: {RoleTap}, RoleRead: {RoleRead},
	RoleOperate: {RoleOperate, RoleRead}, RoleAdmin: {RoleAdmin, RoleOperate, RoleRead},
}
