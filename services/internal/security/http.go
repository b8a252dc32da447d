package security

import (
	"context"
	"crypto/tls"
	"net/http"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/spillwayio/spillway/services/internal/config"
)

// openPaths need no identity.
var openPaths = map[string]bool{"/": true, "/healthz": true, "/readyz": true}

// HTTPS returns the TLS configuration of HTTP ports; nil is plain text.
func (s *Security) HTTPS() *tls.Config {
	if s.server == nil {
		return nil
	}
	return s.server.Server(true, "h2", "http/1.1")
}

// Handler lets only callers with the role read through to next, but for health checks, the pages
// of the console, and the login there. Whether somebody else may read is told to those by MayRead.
func (s *Security) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, ConsolePath) && s.rebound(r) {
			http.Error(w, "the console is at this machine's address only, such as localhost; to reach it by another name, configure security", http.StatusMisdirectedRequest)
			return
		}
		caller, err := s.identifyRequest(r)
		allowed := err == nil && caller.May(config.RoleRead, "")
		if !allowed && !isOpen(r.URL.Path) {
			code, name, reason := http.StatusUnauthorized, "unknown", ""
			if err == nil {
				code, name, reason = http.StatusForbidden, caller.String(), caller.String()+" lacks the role read"
			} else {
				reason = err.Error()
				w.Header().Set("WWW-Authenticate", `Bearer realm="spillway"`)
			}
			s.audit.Refused(name, r.RemoteAddr, r.Method+" "+cut(r.URL.Path), "", reason)
			http.Error(w, reason, code)
			return
		}
		ctx := context.WithValue(r.Context(), mayRead{}, allowed)
		next.ServeHTTP(w, r.WithContext(context.WithValue(ctx, identityKey{}, caller)))
	})
}

type mayRead struct{}

// MayRead says whether the caller of a request that came through Handler has the role read. One
// that did not come through it is nobody's business.
func MayRead(ctx context.Context) bool {
	allowed, checked := ctx.Value(mayRead{}).(bool)
	return allowed || !checked
}

func (s *Security) identifyRequest(r *http.Request) (Identity, error) {
	got, err := credentialsOf(r.Header.Values("Authorization"), r.TLS)
	if err != nil && s.enforced {
		return Identity{}, err
	}
	if got.bearer == "" && strings.HasPrefix(r.URL.Path, ConsolePath) {
		got.bearer = s.logins.token(cookieOf(r))
	}
	return s.identify(got)
}

// Call calls do for a request that came through Handler, if its caller may call the RPC, by the
// table that gRPC ports are held to, and notes it if it changes something. Where nobody has an
// identity, what changes something is for callers on this machine.
func (s *Security) Call(r *http.Request, method string, request proto.Message, do func(context.Context) error) error {
	c := &call{s: s, ctx: r.Context(), method: method, caller: Caller(r.Context()), address: r.RemoteAddr}
	var known bool
	if c.rule, known = rules[method]; !known {
		return c.refuse("", codes.PermissionDenied, "NO_SUCH_RULE", "nobody may call "+method)
	}
	object := ""
	if c.rule.object != "" {
		object, _ = objectOf(request, c.rule.object)
	}
	if err := c.allow(object); err != nil {
		return err
	}
	if !s.enforced && c.rule.role != config.RoleRead && !isHere(r) {
		return c.refuse(object, codes.PermissionDenied, "PERMISSION_DENIED", "without security, the console changes things for callers on this machine only")
	}
	err := do(r.Context())
	if c.rule.audited() {
		s.audit.Changed(c.caller, c.address, method, cut(object), status.Code(err).String())
	}
	return err
}

// MayOperate says whether the caller of a request that came through Handler may pause, resume and
// the like a queue or a subscription.
func (s *Security) MayOperate(r *http.Request, object string) bool {
	return Caller(r.Context()).May(config.RoleOperate, object) && (s.enforced || isHere(r))
}
