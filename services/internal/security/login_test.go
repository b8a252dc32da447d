package security

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
)

// site is a console behind the guard: it answers with the caller and the page's token.
type site struct {
	t       *testing.T
	s       *Security
	log     *journal
	handler http.Handler
}

func newSite(t *testing.T, section *config.Security) *site {
	t.Helper()
	x := &site{t: t, log: &journal{}}
	var err error
	if x.s, err = New(section, slog.New(slog.NewTextHandler(x.log, nil))); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /console/api/login", func(w http.ResponseWriter, r *http.Request) {
		if err := x.s.Login(w, r, r.FormValue("token")); err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
		}
	})
	mux.HandleFunc("POST /console/api/logout", func(w http.ResponseWriter, r *http.Request) { x.s.Logout(w, r) })
	mux.HandleFunc("GET /console/api/me", func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte(Caller(r.Context()).String() + " " + x.s.Token(r)))
	})
	mux.HandleFunc("POST /console/api/pause", func(w http.ResponseWriter, r *http.Request) {
		err := x.s.CheckPage(r)
		if err == nil {
			err = x.s.Call(r, "/spillway.v1.BufferAdminService/PauseSubscription", &spillwayv1.PauseSubscriptionRequest{Name: "q/s"}, func(context.Context) error { return nil })
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
		}
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if MayRead(r.Context()) {
			_, _ = w.Write([]byte("secret"))
		}
	})
	x.handler = x.s.Handler(mux)
	return x
}

// ask sends a request to an address of the site, with headers in pairs.
func (x *site) ask(method, path, local string, headers ...string) *httptest.ResponseRecorder {
	x.t.Helper()
	r := httptest.NewRequest(method, "http://localhost:7401"+path, nil)
	addr, err := net.ResolveTCPAddr("tcp", local)
	if err != nil {
		x.t.Fatal(err)
	}
	r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(addr)))
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			r.Host = headers[i+1]
			continue
		}
		r.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	x.handler.ServeHTTP(w, r)
	return w
}

const here = "127.0.0.1:7401"

func tokensOf(t *testing.T) *config.Security {
	t.Helper()
	dir := t.TempDir()
	put(t, dir+"/readers", readToken+"\n")
	put(t, dir+"/admins", adminToken+"\n")
	put(t, dir+"/owners", ownToken+"\n")
	return &config.Security{Tokens: []config.StaticToken{{Name: "reader", File: dir + "/readers", Roles: []string{"read"}},
		{Name: "admin", File: dir + "/admins", Roles: []string{"admin"}}, {Name: "owner", File: dir + "/owners", Roles: []string{"append:q"}}}}
}

// TestLogin has a browser log in and out. Only a page of the console itself may change something,
// and only for a caller who may.
func TestLogin(t *testing.T) {
	x := newSite(t, tokensOf(t))
	for path, want := range map[string]int{"/console/": 200, "/console/app.js": 200, "/console": 200, "/": 200, "/healthz": 200,
		"/console/api/me": 401, "/console/api/picture": 401, "/console/../metrics": 307, "/metrics": 401, "/console%2fapi%2fme": 401} {
		got := x.ask("GET", path, here)
		if got.Code != want && !(want == 307 && got.Code/100 == 3) || strings.Contains(got.Body.String(), "secret") {
			t.Errorf("GET %s answers %d %q, want %d", path, got.Code, got.Body, want)
		}
	}
	for token, want := range map[string]string{"": "want a token", "wrong": "unknown token", ownToken: "token:owner lacks the role read"} {
		got := x.ask("POST", "/console/api/login?token="+token, here)
		if got.Code != 401 || !strings.Contains(got.Body.String(), want) || len(got.Result().Cookies()) > 0 {
			t.Errorf("login with %q: %d %s", token, got.Code, got.Body)
		}
	}
	if got := x.ask("POST", "/console/api/login?token="+adminToken, here, "Sec-Fetch-Site", "cross-site"); got.Code != 401 {
		t.Errorf("another site's page logs in: %d", got.Code)
	}
	login := func(token string) (cookie, csrf string) {
		t.Helper()
		got := x.ask("POST", "/console/api/login?token="+token, here)
		if len(got.Result().Cookies()) != 1 {
			t.Fatalf("login: %d %s", got.Code, got.Body)
		}
		c := got.Result().Cookies()[0]
		if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/console/" || c.Name != "spillway_console_7401" || strings.Contains(c.Value, token) {
			t.Errorf("cookie %+v", c)
		}
		cookie = c.Name + "=" + c.Value
		_, csrf, _ = strings.Cut(x.ask("GET", "/console/api/me", here, "Cookie", cookie).Body.String(), " ")
		return cookie, csrf
	}
	admin, csrf := login(adminToken)
	reader, readers := login(readToken)
	if got := x.ask("GET", "/console/api/me", here, "Cookie", admin).Body.String(); !strings.HasPrefix(got, "token:admin ") || csrf == readers {
		t.Errorf("it is %s", got)
	}
	if got := x.ask("GET", "/metrics", here, "Cookie", admin); got.Code != 401 {
		t.Errorf("a cookie is good for %d elsewhere", got.Code)
	}
	for _, test := range []struct {
		name    string
		want    int
		headers []string
	}{
		{"the page", 200, []string{"Cookie", admin, "X-Spillway-Csrf", csrf, "Sec-Fetch-Site", "same-origin"}},
		{"without the token", 403, []string{"Cookie", admin, "Sec-Fetch-Site", "same-origin"}},
		{"with another's token", 403, []string{"Cookie", admin, "X-Spillway-Csrf", readers}},
		{"of another site", 403, []string{"Cookie", admin, "X-Spillway-Csrf", csrf, "Sec-Fetch-Site", "cross-site"}},
		{"of another origin", 403, []string{"Cookie", admin, "X-Spillway-Csrf", csrf, "Origin", "http://evil.example"}},
		{"who may only read", 403, []string{"Cookie", reader, "X-Spillway-Csrf", readers}},
		{"nobody", 401, nil},
	} {
		if got := x.ask("POST", "/console/api/pause", here, test.headers...); got.Code != test.want {
			t.Errorf("%s: %d %s, want %d", test.name, got.Code, got.Body, test.want)
		}
	}
	if log := x.log.String(); strings.Count(log, "event=change") != 1 || !strings.Contains(log, "token:reader lacks the role operate:q/s") && !strings.Contains(log, "lacks the role operate") || strings.Contains(log, readToken) {
		t.Errorf("the log is\n%s", log)
	}
	x.ask("POST", "/console/api/logout", here, "Cookie", admin)
	if got := x.ask("GET", "/console/api/me", here, "Cookie", admin); got.Code != 401 {
		t.Errorf("after logging out: %d", got.Code)
	}
}

// TestLoginsAreBounded ends the oldest ones, and those that are over.
func TestLoginsAreBounded(t *testing.T) {
	l := newLogins()
	first := l.add("a")
	for range maxLogins {
		l.add("b")
	}
	if len(l.tokens) != maxLogins || l.token(first) != "" {
		t.Errorf("%d logins, the first one is %q", len(l.tokens), l.token(first))
	}
	for id := range l.tokens {
		l.tokens[id] = login{"b", time.Now().Add(-time.Second)}
	}
	last := l.add("c")
	if len(l.tokens) != 1 || l.token(last) != "c" || l.token("") != "" {
		t.Errorf("%d logins", len(l.tokens))
	}
}

// TestConsoleWithoutSecurity is open on this machine, by its own names; from elsewhere nothing can
// be changed.
func TestConsoleWithoutSecurity(t *testing.T) {
	x := newSite(t, &config.Security{})
	for host, want := range map[string]int{"localhost:7401": 200, "127.0.0.1:7401": 200, "[::1]:7401": 200, "LOCALHOST": 200, "evil.example:7401": 421, "evil.example": 421} {
		if got := x.ask("GET", "/console/api/me", here, "Host", host); got.Code != want {
			t.Errorf("Host %s: %d, want %d", host, got.Code, want)
		}
	}
	if got := x.ask("GET", "/console/api/me", "10.0.0.1:7401", "Host", "buffer:7401"); got.Code != 200 {
		t.Errorf("from elsewhere: %d", got.Code)
	}
	_, csrf, _ := strings.Cut(x.ask("GET", "/console/api/me", here).Body.String(), " ")
	for local, want := range map[string]int{here: 200, "10.0.0.1:7401": 403} {
		if got := x.ask("POST", "/console/api/pause", local, "X-Spillway-Csrf", csrf); got.Code != want {
			t.Errorf("pause at %s: %d %s, want %d", local, got.Code, got.Body, want)
		}
	}
	r := httptest.NewRequest("POST", "/", nil)
	if err := x.s.Call(r, "/spillway.v1.Nobody/Knows", nil, func(context.Context) error { return errors.New("called") }); err == nil || err.Error() == "called" {
		t.Errorf("an unknown RPC: %v", err)
	}
}

// TestMayOperate tells a page which buttons its caller has.
func TestMayOperate(t *testing.T) {
	section := tokensOf(t)
	section.Tokens[0].Roles = []string{"read", "operate:q/s"}
	x := newSite(t, section)
	caller, err := x.s.identifyToken(readToken)
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest("GET", "/", nil)
	r = r.WithContext(context.WithValue(r.Context(), identityKey{}, caller))
	for object, want := range map[string]bool{"q/s": true, "q/t": false, "q": false, "": false} {
		if got := x.s.MayOperate(r, object); got != want {
			t.Errorf("%q: %v", object, got)
		}
	}
}
