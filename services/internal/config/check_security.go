package config

import (
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// security checks the section, and that without it nothing leaves this machine.
func (k checker) security() {
	s := &k.c.Security
	if s.TLS != nil {
		k.serverTLS("security.tls", s)
	}
	names := make(map[string]bool)
	for i, t := range s.Tokens {
		at := index("security.tokens", i)
		if k.present(at+".name", t.Name) && names[t.Name] {
			k.key(at+".name", "%q is there twice; want one entry, whose file may have several tokens", t.Name)
		}
		names[t.Name] = true
		k.present(at+".file", t.File)
		k.grants(at+".roles", t.Roles)
	}
	names = make(map[string]bool)
	for i, x := range s.Identities {
		at := index("security.identities", i)
		if k.present(at+".name", x.Name) && names[x.Name] {
			k.key(at+".name", "%q is there twice; want it once", x.Name)
		}
		names[x.Name] = true
		k.grants(at+".roles", x.Roles)
	}
	if len(s.Identities) > 0 && (s.TLS == nil || s.TLS.ClientAuth == "none") {
		k.key("security.identities", "are of client certificates; want security.tls with client_auth: request or require")
	}
	if s.OIDC != nil {
		k.oidc("security.oidc", s.OIDC)
	}
	if (s.Client.Cert == "") != (s.Client.Key == "") {
		k.key("security.client", "has one of cert and key; a certificate needs both")
	}
	if s.TLS != nil && !s.Authenticates() && !s.Insecure {
		k.key("security", "has no tokens, oidc or identities, so that nobody may do anything; want one of them, or insecure: true, which lets everybody do everything")
	}
	between(k, "security.limits.connections", s.Limits.Connections, 1, maxIdentityConnections)
	between(k, "security.limits.streams", s.Limits.Streams, 1, maxIdentityStreams)
	between(k, "security.limits.sessions", s.Limits.Sessions, 1, maxIdentityStreams)
	between(k, "security.limits.bytes", s.Limits.Bytes, minIdentityBytes, maxMemory)
	k.onThisMachine(s)
}

const (
	maxIdentityConnections = 512
	maxIdentityStreams     = 1024
	minIdentityBytes       = 32 * MiB // the largest message
)

func (k checker) serverTLS(at string, s *Security) {
	k.present(at+".cert", s.TLS.Cert)
	k.present(at+".key", s.TLS.Key)
	k.oneOf(at+".client_auth", s.TLS.ClientAuth, "none", "request", "require")
	if s.TLS.CA == "" && (s.TLS.ClientAuth == "require" || len(s.Identities) > 0) {
		k.key(at+".ca", "is missing; want the file of the authorities whose client certificates count")
	}
}

func (k checker) grants(at string, roles []string) {
	k.list(at, roles, func(at, role string) {
		if _, err := ParseGrant(role); err != nil {
			k.key(at, "%v", err)
		}
	})
}

func (k checker) oidc(at string, o *OIDC) {
	k.present(at+".issuer", o.Issuer)
	k.present(at+".audience", o.Audience)
	k.present(at+".name_claim", o.NameClaim)
	k.present(at+".roles_claim", o.RolesClaim)
	if (o.JWKSFile == "") == (o.JWKSURL == "") {
		k.key(at, "wants one of jwks_file and jwks_url")
	}
	if o.JWKSURL == "" {
		return
	}
	u, err := url.Parse(o.JWKSURL)
	if err != nil || u.Host == "" || u.Scheme != "https" && !(u.Scheme == "http" && isLoopback(u.Hostname())) {
		k.key(at+".jwks_url", "malformed %q: want https://issuer/keys, since whoever changes the keys makes tokens", o.JWKSURL)
	}
}

// onThisMachine finds addresses beyond this machine where that takes TLS, or insecure. It is one
// problem, whatever their number.
func (k checker) onThisMachine(s *Security) {
	if s.Insecure || s.TLS != nil {
		return
	}
	var open []string
	check := func(at, address string) {
		if !OnLoopback(address) {
			open = append(open, fmt.Sprintf("%s (%s)", at, address))
		}
	}
	if s.Client.CA == "" && s.Client.Cert == "" { // else the way to the buffer is TLS
		for i, address := range k.c.Buffers {
			check(index("buffers", i), address)
		}
	}
	check("ingest.listen", k.c.Ingest.Listen)
	check("ingest.http", k.c.Ingest.HTTP)
	check("buffer.listen", k.c.Buffer.Listen)
	check("buffer.http", k.c.Buffer.HTTP)
	for _, name := range slices.Sorted(maps.Keys(k.c.Delivery)) {
		check("delivery."+name+".listen", k.c.Delivery[name].Listen)
		check("delivery."+name+".http", k.c.Delivery[name].HTTP)
	}
	if len(open) == 0 {
		return
	}
	k.key("security", "has no tls, and these addresses are not of this machine alone: %s; want security.tls with tokens, oidc or identities, "+
		"addresses such as localhost:7400, or, where the network itself keeps others out, security: {insecure: true} (docs/security.md)", strings.Join(open, ", "))
}

// OnLoopback says whether only this machine reaches host:port. Malformed ones are blamed
// elsewhere.
func OnLoopback(address string) bool {
	host, _, ok := splitAddress(address)
	if !ok || strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// setAddresses waits for the security to be known: the default is all interfaces where that is
// allowed, and loopback where it is not.
func (c *Config) setAddresses() {
	host := "localhost"
	if c.Security.TLS != nil || c.Security.Insecure {
		host = ""
	}
	set := func(address *string, written bool, port string) {
		if !written {
			*address = host + port
		}
	}
	set(&c.Ingest.Listen, c.Ingest.Listen != unset, ":7410")
	set(&c.Ingest.HTTP, c.Ingest.HTTP != unset, ":7411")
	set(&c.Buffer.Listen, c.Buffer.Listen != unset, ":7400")
	set(&c.Buffer.HTTP, c.Buffer.HTTP != unset, ":7401")
	for _, d := range c.Delivery {
		set(&d.Listen, d.Listen != unset, ":7420")
		set(&d.HTTP, d.HTTP != unset, ":7421")
	}
}

// unset is the value of an address that was not written, which no file can have.
const unset = "\x00"
