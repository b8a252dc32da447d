package security

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/spillwayio/spillway/services/internal/config"
)

// ConsolePath is where the console is. Its pages hold no secrets and are open; everything below
// its api/ needs the role read. Only there a cookie counts as a token.
const ConsolePath = "/console/"

const (
	apiPath     = ConsolePath + "api/"
	loginPath   = apiPath + "login"
	loginLasts  = 12 * time.Hour
	maxLogins   = 1000
	csrfHeader  = "X-Spillway-Csrf"
	cookiePart  = "spillway_console_" // and the port: browsers do not tell ports of a host apart
	maxTokenLen = 16 << 10
)

// logins are the people whose browsers have a cookie. The cookie is a random name for the token
// that they logged in with, which is looked at anew for each request.
type logins struct {
	secret [32]byte // of the tokens against cross-site requests
	mu     sync.Mutex
	tokens map[[32]byte]login // by the hash of the cookie
}

type login struct {
	token string
	until time.Time
}

func newLogins() *logins {
	l := &logins{tokens: make(map[[32]byte]login)}
	_, _ = rand.Read(l.secret[:]) // never fails
	return l
}

// add returns the cookie of a new login. When there are too many, the oldest one ends.
func (l *logins) add(token string) (cookie string) {
	cookie = rand.Text()
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	var oldest [32]byte
	for id, x := range l.tokens {
		if now.After(x.until) {
			delete(l.tokens, id)
		} else if o, ok := l.tokens[oldest]; !ok || x.until.Before(o.until) {
			oldest = id
		}
	}
	if len(l.tokens) >= maxLogins {
		delete(l.tokens, oldest)
	}
	l.tokens[sha256.Sum256([]byte(cookie))] = login{token, now.Add(loginLasts)}
	return cookie
}

// token returns what somebody logged in with; empty when the login is over.
func (l *logins) token(cookie string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.tokens[sha256.Sum256([]byte(cookie))]
	if time.Now().After(x.until) {
		return ""
	}
	return x.token
}

func (l *logins) remove(cookie string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.tokens, sha256.Sum256([]byte(cookie)))
}

// csrf returns what a page must send along with what it asks for, so that other sites' pages
// cannot have the browser ask for it.
func (l *logins) csrf(caller Identity, cookie string) string {
	mac := hmac.New(sha256.New, l.secret[:])
	_, _ = mac.Write([]byte(caller.String() + "\x00" + cookie)) // never fails
	return hex.EncodeToString(mac.Sum(nil))
}

func cookieName(r *http.Request) string {
	_, port, _ := net.SplitHostPort(r.Host)
	return cookiePart + port
}

func cookieOf(r *http.Request) string {
	if c, err := r.Cookie(cookieName(r)); err == nil {
		return c.Value
	}
	return ""
}

// isOpen says whether a path needs no identity.
func isOpen(path string) bool {
	return openPaths[path] || path == loginPath || path+"/" == ConsolePath ||
		strings.HasPrefix(path, ConsolePath) && !strings.HasPrefix(path, apiPath)
}

// crossOrigin refuses what a page of another site has a browser send.
var crossOrigin = http.NewCrossOriginProtection()

// CheckPage refuses a request that does not come from a page of the console: it must not be
// cross-origin, and must have the token that only such a page can read.
func (s *Security) CheckPage(r *http.Request) error {
	if err := crossOrigin.Check(r); err != nil {
		return err
	}
	if !hmac.Equal([]byte(r.Header.Get(csrfHeader)), []byte(s.Token(r))) {
		return errors.New("the header " + csrfHeader + " is missing or outdated: load the page again")
	}
	return nil
}

// Token returns what CheckPage wants from the caller of a request that came through Handler.
func (s *Security) Token(r *http.Request) string {
	return s.logins.csrf(Caller(r.Context()), cookieOf(r))
}

// Login exchanges a token for a cookie. It refuses tokens without the role read.
func (s *Security) Login(w http.ResponseWriter, r *http.Request, token string) error {
	if err := crossOrigin.Check(r); err != nil {
		return err
	}
	got, err := credentialsOf(nil, r.TLS)
	if err != nil {
		return err
	}
	got.bearer = strings.TrimSpace(token)
	if got.bearer == "" || len(got.bearer) > maxTokenLen {
		return errors.New("want a token")
	}
	caller, err := s.identify(got)
	if err == nil && !caller.May(config.RoleRead, "") {
		err = errors.New(caller.String() + " lacks the role read")
	}
	if err != nil {
		s.audit.Refused("unknown", r.RemoteAddr, "login to the console", "", err.Error())
		return err
	}
	s.logins.remove(cookieOf(r))
	http.SetCookie(w, cookie(r, s.logins.add(got.bearer), int(loginLasts/time.Second)))
	return nil
}

// Logout ends what Login began.
func (s *Security) Logout(w http.ResponseWriter, r *http.Request) {
	s.logins.remove(cookieOf(r))
	http.SetCookie(w, cookie(r, "", -1))
}

func cookie(r *http.Request, value string, maxAge int) *http.Cookie {
	return &http.Cookie{Name: cookieName(r), Value: value, Path: ConsolePath, MaxAge: maxAge, HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteStrictMode}
}

// isHere says whether a request came to an address of this machine only.
func isHere(r *http.Request) bool {
	a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return false
	}
	host, _, err := net.SplitHostPort(a.String())
	ip := net.ParseIP(host)
	return err == nil && ip != nil && ip.IsLoopback()
}

// rebound says whether a page of another site may be behind a request: one that had its own name
// resolved to this machine. Where callers have an identity, such a page has none.
func (s *Security) rebound(r *http.Request) bool {
	if s.enforced || !isHere(r) {
		return false
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return !strings.EqualFold(host, "localhost") && net.ParseIP(strings.Trim(host, "[]")) == nil
}
