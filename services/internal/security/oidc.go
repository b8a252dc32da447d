package security

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/tlsconfig"
)

const (
	// leeway is how far the issuer's clock may be from ours.
	leeway = 30 * time.Second
	// keysFresh is for how long keys from a URL are used before they are asked for again;
	// keysPause is between two attempts, also when a token names a key that nobody knows.
	keysFresh   = 5 * time.Minute
	keysPause   = 15 * time.Second
	keysTimeout = 5 * time.Second
	// maxTokenBytes bounds a JWT before anything of it is looked at.
	maxTokenBytes = 8 << 10
)

// algorithms are those that issuers may sign with: with keys whose secret part only they have.
var algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
	jose.ES256, jose.ES384, jose.ES512, jose.EdDSA}

// issuer recognizes the tokens of an OpenID Connect issuer.
type issuer struct {
	conf config.OIDC
	log  *slog.Logger
	now  func() time.Time

	file   *file // nil: by URL
	client *http.Client

	mu      sync.Mutex
	set     *jose.JSONWebKeySet // nil: never read
	of      string              // the text of set, when it is a file's
	asked   time.Time           // of the last attempt by URL
	got     time.Time           // of the last that succeeded
	asking  bool
	failing bool
}

func newIssuer(c *config.OIDC, log *slog.Logger) (*issuer, error) {
	i := &issuer{conf: *c, log: log, now: time.Now}
	if c.JWKSFile != "" {
		i.file = &file{path: c.JWKSFile, log: log}
		_, err := i.keys("")
		return i, err
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: keysTimeout, MaxIdleConns: 1, IdleConnTimeout: time.Second}
	if c.CA != "" {
		files, err := tlsconfig.Load(tlsconfig.Files{CA: c.CA}, log)
		if err != nil {
			return nil, fmt.Errorf("ca: %w", err)
		}
		transport.TLSClientConfig = files.Client("")
	}
	i.client = &http.Client{Transport: transport, Timeout: keysTimeout}
	return i, nil // an issuer that is away must not keep a process from starting
}

// identify checks a token: its signature, issuer, audience and times.
func (i *issuer) identify(token string) (Identity, error) {
	if len(token) > maxTokenBytes {
		return Identity{}, fmt.Errorf("the token has %d bytes; want at most %d", len(token), maxTokenBytes)
	}
	parsed, err := jwt.ParseSigned(token, algorithms)
	if err != nil || len(parsed.Headers) != 1 {
		return Identity{}, errors.New("unknown token, or a JWT whose algorithm is not one of RS, PS, ES or EdDSA")
	}
	keys, err := i.keys(parsed.Headers[0].KeyID)
	if err != nil {
		return Identity{}, err
	}
	var standard jwt.Claims
	var all map[string]any
	verified := false
	for _, key := range keys {
		if key.Algorithm != "" && key.Algorithm != parsed.Headers[0].Algorithm {
			continue
		}
		if parsed.Claims(key.Public().Key, &standard, &all) == nil {
			verified = true
			break
		}
	}
	if !verified {
		return Identity{}, errors.New("the token's signature is not the issuer's")
	}
	if standard.Expiry == nil {
		return Identity{}, errors.New("the token never expires: it has no exp")
	}
	expected := jwt.Expected{Issuer: i.conf.Issuer, AnyAudience: jwt.Audience{i.conf.Audience}, Time: i.now()}
	if err := standard.ValidateWithLeeway(expected, leeway); err != nil {
		return Identity{}, fmt.Errorf("the token is refused: %w", err)
	}
	name, _ := claim(all, i.conf.NameClaim).(string)
	if name == "" {
		return Identity{}, fmt.Errorf("the token has no claim %s with the caller's name", i.conf.NameClaim)
	}
	return Identity{Name: name, Kind: "oidc", grants: grantsIn(claim(all, i.conf.RolesClaim))}, nil
}

// claim follows dots into objects, unless a claim has them in its name.
func claim(all map[string]any, path string) any {
	if v, ok := all[path]; ok {
		return v
	}
	first, rest, ok := strings.Cut(path, ".")
	inner, isObject := all[first].(map[string]any)
	if !ok || !isObject {
		return nil
	}
	return claim(inner, rest)
}

// grantsIn takes a list of roles, or a text with blanks between them. Roles of others, as issuers
// put them beside ours, are passed over.
func grantsIn(v any) (all []config.Grant) {
	var roles []string
	switch v := v.(type) {
	case string:
		roles = strings.Fields(v)
	case []any:
		for _, role := range v {
			if text, ok := role.(string); ok {
				roles = append(roles, text)
			}
		}
	}
	for _, role := range roles {
		if g, err := config.ParseGrant(role); err == nil {
			all = append(all, g)
		}
	}
	return all
}

// keys returns those with an id, or all when the token names none.
func (i *issuer) keys(id string) ([]jose.JSONWebKey, error) {
	set, err := i.current(id)
	if err != nil {
		return nil, err
	}
	keys := set.Keys
	if id != "" {
		keys = set.Key(id)
	}
	if len(keys) == 0 && id != "" {
		return nil, errors.New("the token is signed with a key that the issuer does not publish")
	}
	return keys, nil
}

// current is the set of keys: the file's, or what the URL answered last, asked for again when that
// is old or does not have a key.
func (i *issuer) current(id string) (*jose.JSONWebKeySet, error) {
	if i.file != nil {
		data, err := i.file.content()
		if err != nil {
			return nil, err
		}
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.set != nil && i.of == string(data) {
			return i.set, nil
		}
		set, err := parseKeys(data)
		if err != nil && i.set == nil {
			return nil, fmt.Errorf("%s: %w", i.conf.JWKSFile, err)
		}
		if err != nil {
			i.log.Error("the keys of the issuer cannot be used; going on with those before", "file", i.conf.JWKSFile, "error", err)
			set = i.set
		}
		i.set, i.of = set, string(data)
		return set, nil
	}

	i.mu.Lock()
	known := i.set != nil && (id == "" || len(i.set.Key(id)) > 0)
	due := (!known || time.Since(i.got) >= keysFresh) && time.Since(i.asked) >= keysPause && !i.asking
	if !due {
		defer i.mu.Unlock()
		if i.set == nil {
			return nil, errors.New("the keys of the issuer are not known yet")
		}
		return i.set, nil
	}
	i.asking, i.asked = true, time.Now()
	i.mu.Unlock()
	set, err := i.fetch()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asking = false
	if err == nil {
		i.set, i.got = set, time.Now()
		if i.failing {
			i.log.Info("recovered: keys of the issuer", "url", i.conf.JWKSURL)
		}
	} else if !i.failing {
		i.log.Error("cannot get the keys of the issuer; going on with those before, if any", "url", i.conf.JWKSURL, "error", err)
	}
	i.failing = err != nil
	if i.set == nil {
		return nil, errors.New("the keys of the issuer are not known yet")
	}
	return i.set, nil
}

func (i *issuer) fetch() (*jose.JSONWebKeySet, error) {
	ctx, cancel := context.WithTimeout(context.Background(), keysTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, i.conf.JWKSURL, nil)
	if err != nil {
		return nil, err
	}
	response, err := i.client.Do(request)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(response.Body, maxFileBytes+1))
	if err := errors.Join(err, response.Body.Close()); err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK || len(data) > maxFileBytes {
		return nil, fmt.Errorf("answers %s with %d bytes", response.Status, len(data))
	}
	return parseKeys(data)
}

// parseKeys leaves out keys that sign nothing, and refuses symmetric ones: who can check those can
// sign.
func parseKeys(data []byte) (*jose.JSONWebKeySet, error) {
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, errors.New("is no set of keys (JWKS)") // the error may quote the file
	}
	usable := &jose.JSONWebKeySet{}
	for _, key := range set.Keys {
		if public := key.Public(); key.Use != "enc" && public.Valid() {
			usable.Keys = append(usable.Keys, public)
		}
	}
	if len(usable.Keys) == 0 {
		return nil, errors.New("has no public key that signs")
	}
	return usable, nil
}
