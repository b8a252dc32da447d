package security

import (
	"context"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/spillwayio/spillway/services/internal/rpc"
)

// Guard is for rpc.NewGuardedServer.
func (s *Security) Guard() rpc.Guard {
	g := rpc.Guard{Unary: s.unary, Stream: s.stream, Claims: s.enforced}
	if s.server != nil {
		g.Credentials = credentials.NewTLS(s.server.Server(true, "h2"))
	}
	return g
}

// call is one that was let in, or is about to be.
type call struct {
	s       *Security
	ctx     context.Context // the caller's
	method  string
	rule    rule
	caller  Identity
	address string
}

// enter recognizes the caller and finds the rule.
func (s *Security) enter(ctx context.Context, method string) (*call, error) {
	c := &call{s: s, ctx: ctx, method: method, caller: anonymous}
	if p, ok := peer.FromContext(ctx); ok {
		c.address = p.Addr.String()
	}
	if open[method] {
		return c, nil
	}
	var known bool
	if c.rule, known = rules[method]; !known && s.enforced {
		return nil, c.refuse("", codes.PermissionDenied, "NO_SUCH_RULE", "nobody may call "+method)
	}
	var err error
	if c.caller, err = c.identify(); err != nil {
		return nil, c.refuse("", codes.Unauthenticated, "UNAUTHENTICATED", err.Error())
	}
	return c, nil
}

func (c *call) identify() (Identity, error) {
	md, _ := metadata.FromIncomingContext(c.ctx)
	got, err := credentialsOf(md.Get("authorization"), rpc.TLSState(c.ctx))
	if err != nil && c.s.enforced {
		return Identity{}, err
	}
	return c.s.identify(got)
}

// refuse notes and returns a refusal. What the caller hears does not say what would have been
// right, beyond the role.
func (c *call) refuse(object string, code codes.Code, reason, text string) error {
	caller := c.caller.String()
	if code == codes.Unauthenticated {
		caller = "unknown"
	}
	c.s.audit.Refused(caller, c.address, c.method, cut(object), text)
	return rpc.Error(code, reason, 0, "%s", text)
}

// allow compares the caller's grants with what the rule asks for.
func (c *call) allow(object string) error {
	if c.s.enforced && !c.caller.May(c.rule.role, c.rule.scope(object)) && !(c.rule.streams && c.caller.streams(object)) {
		needs := c.rule.role
		if object != "" && !c.rule.unscoped {
			needs += ":" + cut(object)
		}
		return c.refuse(object, codes.PermissionDenied, "PERMISSION_DENIED", c.caller.String()+" lacks the role "+needs)
	}
	return nil
}

// begin counts the call against the caller's limits.
func (c *call) begin(session bool) (end func(), err error) {
	if !c.s.enforced {
		return func() {}, nil
	}
	who := c.caller.String()
	if open[c.method] {
		return func() {}, nil
	}
	if end, err = c.s.limits.begin(c.ctx, who, session); err != nil {
		c.s.audit.Refused(who, c.address, c.method, "", status.Convert(err).Message())
	}
	return end, err
}

// cut bounds texts of callers.
func cut(text string) string {
	const most = 200
	if len(text) > most {
		return strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

func (s *Security) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	c, err := s.enter(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	if open[info.FullMethod] {
		return handler(ctx, request)
	}
	object := ""
	if m, ok := request.(proto.Message); ok && c.rule.object != "" {
		object, _ = objectOf(m, c.rule.object)
	}
	if err := c.allow(object); err != nil {
		return nil, err
	}
	end, err := c.begin(false)
	if err != nil {
		return nil, err
	}
	defer end()
	response, err := handler(context.WithValue(ctx, identityKey{}, c.caller), request)
	if c.rule.audited() {
		s.audit.Changed(c.caller, c.address, c.method, cut(object), status.Code(err).String())
	}
	return response, err
}

func (s *Security) stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	c, err := s.enter(stream.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	if !s.enforced {
		return handler(server, stream)
	}
	if open[info.FullMethod] {
		return s.watch(server, stream, handler, c)
	}
	named := c.rule.object != "" // by the first message
	if !named {
		if err := c.allow(""); err != nil {
			return err
		}
	}
	end, err := c.begin(named && info.IsClientStream)
	if err != nil {
		return err
	}
	defer end()
	g := &guardedStream{ServerStream: stream, call: c, ctx: context.WithValue(stream.Context(), identityKey{}, c.caller), named: named}
	defer g.give()
	stop := g.watchOver()
	defer stop()
	return handler(server, g)
}

// maxWatches bounds the streams of all callers that need no identity.
const maxWatches = 256

// watch runs a stream that needs no identity. Their number is bounded, whoever has them.
func (s *Security) watch(server any, stream grpc.ServerStream, handler grpc.StreamHandler, c *call) error {
	end, err := s.limits.beginWatch()
	if err != nil {
		return c.refuse("", codes.ResourceExhausted, "TOO_MANY_WATCHES", err.Error())
	}
	defer end()
	return handler(server, stream)
}

// guardedStream checks what its messages are about, and goes on for as long as its caller would be
// let in.
type guardedStream struct {
	grpc.ServerStream
	*call
	ctx   context.Context
	named bool // its first message says what it is about

	mu     sync.Mutex
	opened bool
	object string
	taken  int64 // bytes of the message that is being handled
}

// Context implements grpc.ServerStream.
func (g *guardedStream) Context() context.Context { return g.ctx }

// RecvMsg implements grpc.ServerStream. One message is handled at a time: that a handler wants the
// next one says that it is done with the one before, or has taken it over.
func (g *guardedStream) RecvMsg(m any) error {
	g.give()
	if err := g.ServerStream.RecvMsg(m); err != nil || !g.named {
		return err
	}
	p, ok := m.(proto.Message)
	if !ok {
		return g.refuse("", codes.PermissionDenied, "PERMISSION_DENIED", "an unknown kind of message")
	}
	object, opens := objectOf(p, g.rule.object)
	if opens {
		if err := g.allow(object); err != nil {
			return err
		}
		if !g.opened && g.rule.audited() {
			g.s.audit.Changed(g.caller, g.address, g.method, cut(object), codes.OK.String())
		}
		g.mu.Lock()
		g.opened, g.object = true, object
		g.mu.Unlock()
		return nil
	}
	if !g.opened {
		return g.refuse("", codes.PermissionDenied, "PERMISSION_DENIED", "the first message does not say what the stream is about")
	}
	if n := int64(proto.Size(p)); n > freeBytes {
		if err := g.s.limits.take(g.ctx, g.caller.String(), n); err != nil {
			return status.FromContextError(err).Err()
		}
		g.taken = n
	}
	return nil
}

func (g *guardedStream) give() {
	g.s.limits.give(g.caller.String(), g.taken)
	g.taken = 0
}

// watchOver looks at the credentials again and again, and closes the connection when they are no
// good any more. The function ends that.
func (g *guardedStream) watchOver() (stop func()) {
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(g.s.recheck)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-g.ctx.Done():
				return
			case <-tick.C:
			}
			if g.stillGood() != nil {
				rpc.CloseConnection(g.ctx)
				return
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}

func (g *guardedStream) stillGood() error {
	caller, err := g.identify()
	if err != nil {
		return g.refuse(g.about(), codes.Unauthenticated, "UNAUTHENTICATED", "the stream ends: "+err.Error())
	}
	again := *g.call
	again.caller = caller
	if object := g.about(); object != "" || !g.named {
		return again.allow(object)
	}
	return nil
}

func (g *guardedStream) about() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.object
}
