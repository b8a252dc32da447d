package security

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spillwayio/spillway/services/internal/config"
)

// signer makes tokens.
type signer struct {
	t   *testing.T
	alg jose.SignatureAlgorithm
	key any
	id  string
}

func newSigner(t *testing.T, alg jose.SignatureAlgorithm, id string) *signer {
	t.Helper()
	s := &signer{t: t, alg: alg, id: id}
	var err error
	switch alg {
	case jose.RS256:
		s.key, err = rsa.GenerateKey(rand.Reader, 2048)
	case jose.ES256:
		s.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case jose.HS256:
		s.key = []byte(strings.Repeat("k", 32))
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *signer) jwk() jose.JSONWebKey {
	return jose.JSONWebKey{Key: s.key, KeyID: s.id, Algorithm: string(s.alg), Use: "sig"}
}

func keySet(t *testing.T, all ...*signer) string {
	t.Helper()
	var set jose.JSONWebKeySet
	for _, s := range all {
		k := s.jwk()
		if s.alg != jose.HS256 {
			k = k.Public()
		}
		set.Keys = append(set.Keys, k)
	}
	data, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// token has good claims, with changes; a nil value takes one away.
func (s *signer) token(change map[string]any) string {
	s.t.Helper()
	now := time.Now()
	claims := map[string]any{"iss": "https://issuer", "aud": []string{"other", "spillway"}, "sub": "alice", "exp": now.Add(time.Hour).Unix(), "iat": now.Unix(), "nbf": now.Unix(),
		"realm": map[string]any{"roles": []string{"append:q", "offline_access", "read"}}}
	for k, v := range change {
		if claims[k] = v; v == nil {
			delete(claims, k)
		}
	}
	options := (&jose.SignerOptions{}).WithType("JWT")
	if s.id != "" {
		options = options.WithHeader("kid", s.id)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: s.alg, Key: s.key}, options)
	if err != nil {
		s.t.Fatal(err)
	}
	text, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		s.t.Fatal(err)
	}
	return text
}

func TestOIDC(t *testing.T) {
	rsaKey, ecKey, unpublished, symmetric := newSigner(t, jose.RS256, "r"), newSigner(t, jose.ES256, "e"), newSigner(t, jose.ES256, "u"), newSigner(t, jose.HS256, "h")
	path := filepath.Join(t.TempDir(), "jwks.json")
	put(t, path, keySet(t, rsaKey, ecKey))
	i, err := newIssuer(&config.OIDC{Issuer: "https://issuer", Audience: "spillway", JWKSFile: path, NameClaim: "sub", RolesClaim: "realm.roles"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ago, soon := time.Now().Add(-2*leeway).Unix(), time.Now().Add(2*leeway).Unix()
	pretender := newSigner(t, jose.ES256, "e") // says it is the published key
	published := rsaKey.jwk()
	public, err := json.Marshal(published.Public())
	if err != nil {
		t.Fatal(err)
	}
	confused := &signer{t: t, alg: jose.HS256, key: public, id: "r"} // the public key as a secret
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + strings.Split(rsaKey.token(nil), ".")[1] + "."
	good := rsaKey.token(nil)
	parts := strings.Split(good, ".")
	for name, test := range map[string]struct{ token, want string }{
		"RS256":                  {good, ""},
		"ES256":                  {ecKey.token(nil), ""},
		"no kid":                 {(&signer{t: t, alg: jose.ES256, key: ecKey.key}).token(nil), ""},
		"one audience":           {rsaKey.token(map[string]any{"aud": "spillway"}), ""},
		"just over, in leeway":   {rsaKey.token(map[string]any{"exp": time.Now().Add(-leeway / 2).Unix()}), ""},
		"expired":                {rsaKey.token(map[string]any{"exp": ago}), "expired"},
		"never expires":          {rsaKey.token(map[string]any{"exp": nil}), "never expires"},
		"not yet":                {rsaKey.token(map[string]any{"nbf": soon}), "not valid yet"},
		"issued in the future":   {rsaKey.token(map[string]any{"iat": soon}), "future"},
		"another issuer":         {rsaKey.token(map[string]any{"iss": "https://issuer.evil"}), "issuer"},
		"no issuer":              {rsaKey.token(map[string]any{"iss": nil}), "issuer"},
		"another audience":       {rsaKey.token(map[string]any{"aud": "billing"}), "audience"},
		"no audience":            {rsaKey.token(map[string]any{"aud": nil}), "audience"},
		"no name":                {rsaKey.token(map[string]any{"sub": nil}), "claim sub"},
		"an unpublished key":     {unpublished.token(nil), "does not publish"},
		"a published key's id":   {pretender.token(nil), "signature"},
		"symmetric":              {symmetric.token(nil), "algorithm"},
		"public key as a secret": {confused.token(nil), "algorithm"},
		"alg none":               {none, "algorithm"},
		"changed payload":        {parts[0] + "." + strings.Split(rsaKey.token(map[string]any{"sub": "root"}), ".")[1] + "." + parts[2], "signature"},
		"no JWT":                 {"wrong-0123456789abcdefghijklm", "unknown token"},
		"huge":                   {strings.Repeat("a.", maxTokenBytes), "bytes"},
		"JSON form":              {`{"payload":"e30","signatures":[]}`, "unknown token"},
		"cut off":                {good[:len(good)-10], "signature"},
	} {
		who, err := i.identify(test.token)
		if test.want == "" {
			if err != nil || who.String() != "oidc:alice" || !who.May(config.RoleAppend, "q") || !who.May(config.RoleRead, "") || who.May(config.RoleAdmin, "q") {
				t.Errorf("%s: %v, %v", name, who, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v; want %q", name, err, test.want)
		}
	}

	// One changed character anywhere breaks it; the last of a part has bits that mean nothing.
	for at := 0; at < len(good); at += 7 {
		if good[at] == '.' || at+1 == len(good) || good[at+1] == '.' {
			continue
		}
		other := byte('A')
		if good[at] == other {
			other = 'B'
		}
		if _, err := i.identify(good[:at] + string(other) + good[at+1:]); err == nil {
			t.Errorf("a token with another character %d of %d passes", at, len(good))
		}
	}

	// The issuer takes a key away, and publishes another one.
	put(t, path, keySet(t, unpublished))
	eventually(t, "the new key counts", func() error { _, err := i.identify(unpublished.token(nil)); return err })
	if _, err := i.identify(good); err == nil {
		t.Error("the key that was taken away still counts")
	}
	put(t, path, "{half")
	pauseSecond(t)
	if _, err := i.identify(unpublished.token(nil)); err != nil {
		t.Errorf("a broken file took the keys away: %v", err)
	}
}

func TestKeysThatAreNone(t *testing.T) {
	for _, text := range []string{"", "{}", `{"keys":[]}`, `{"keys":[{"kty":"oct","k":"c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}]}`, keySet(t, newSigner(t, jose.HS256, "h"))} {
		if set, err := parseKeys([]byte(text)); err == nil {
			t.Errorf("%s: %v", text, set)
		}
	}
}

// TestKeysByURL: an issuer that is away neither keeps a process from starting nor takes keys away,
// and tokens with unknown keys do not make it asked again and again.
func TestKeysByURL(t *testing.T) {
	key, later := newSigner(t, jose.ES256, "a"), newSigner(t, jose.ES256, "b")
	var asked atomic.Int32
	var answer atomic.Value
	answer.Store("")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		if text := answer.Load().(string); text != "" {
			_, _ = w.Write([]byte(text))
			return
		}
		w.WriteHeader(http.StatusBadGateway)
	}))
	defer server.Close()
	i, err := newIssuer(&config.OIDC{Issuer: "https://issuer", Audience: "spillway", JWKSURL: server.URL, NameClaim: "sub", RolesClaim: "realm.roles"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.identify(key.token(nil)); err == nil || !strings.Contains(err.Error(), "not known yet") {
		t.Errorf("the issuer is away: %v", err)
	}
	for range 50 {
		_, _ = i.identify(key.token(nil))
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("the issuer was asked %d times within a moment", n)
	}
	due := func() {
		i.mu.Lock()
		i.asked = time.Time{}
		i.mu.Unlock()
	}
	answer.Store(keySet(t, key))
	due()
	if _, err := i.identify(key.token(nil)); err != nil {
		t.Errorf("the issuer is back: %v", err)
	}
	answer.Store(keySet(t, key, later))
	if _, err := i.identify(later.token(nil)); err == nil {
		t.Error("an unknown key was asked for at once")
	}
	due()
	if _, err := i.identify(later.token(nil)); err != nil {
		t.Errorf("a new key: %v", err)
	}
	answer.Store("")
	due()
	i.mu.Lock()
	i.got = time.Time{}
	i.mu.Unlock()
	if _, err := i.identify(key.token(nil)); err != nil {
		t.Errorf("the issuer is away again: %v", err)
	}
}

// TestOIDCOverGRPC: a role in a token gets as far as it says.
func TestOIDCOverGRPC(t *testing.T) {
	key := newSigner(t, jose.ES256, "a")
	p := newPort(t, service{}, func(p *port, c *config.Security) {
		p.put("jwks", keySet(t, key))
		c.OIDC = &config.OIDC{Issuer: "https://issuer", Audience: "spillway", JWKSFile: p.file("jwks"), NameClaim: "sub", RolesClaim: "realm.roles"}
	})
	c := p.dial(key.token(nil), "")
	if err := c.list(); err != nil {
		t.Error(err)
	}
	if err := c.pause(); status.Code(err) != codes.PermissionDenied {
		t.Error(err)
	}
	if _, err := c.append("q"); err != nil {
		t.Error(err)
	}
	brief := p.dial(key.token(map[string]any{"exp": time.Now().Add(2*time.Second - leeway).Unix()}), "")
	stream, err := brief.append("q")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err == nil {
		t.Error("a stream outlives its token")
	}
	if err := brief.list(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("an expired token: %v", err)
	}
}
