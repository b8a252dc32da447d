package rpc

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// explained is an error of a call in plain words. It is still the error that it explains.
type explained struct {
	text  string
	cause error
}

func (e *explained) Error() string { return e.text }
func (e *explained) Unwrap() error { return e.cause }

// GRPCStatus lets status.Code see through it.
func (e *explained) GRPCStatus() *status.Status { return status.Convert(e.cause) }

// Explain returns an error of a call to a service, such as "buffer", at an address, in plain
// words that say what to do. It is still that error for errors.Is and status.Code. Errors without
// a status, and nil, are returned as they are.
func Explain(err error, service, address string) error {
	st, ok := status.FromError(err)
	if err == nil || !ok || errors.As(err, new(*explained)) {
		return err
	}
	m := st.Message()
	has := func(parts ...string) bool {
		for _, p := range parts {
			if strings.Contains(m, p) {
				return true
			}
		}
		return false
	}
	port := fmt.Sprintf("the gRPC port of a %s is %s.listen in its configuration", service, service)
	say := func(format string, args ...any) error { return &explained{fmt.Sprintf(format, args...), err} }
	switch {
	case has("HTTP/1.1 header", "HTTP status code", "missing HTTP content-type", "invalid header field value"):
		return say("what listens at %s speaks HTTP, but not gRPC; %s, and not %s.http", address, port, service)
	case has("connection refused"):
		return say("nothing listens at %s (connection refused); is the %s running? %s", address, service, capital(port))
	case has("reading server preface", "error reading from server", "connection reset", "broken pipe", "EOF") && st.Code() == codes.Unavailable:
		return say("the connection to the %s at %s broke (%s); if it always does so at once, something else listens there: %s", service, address, innermost(m), port)
	case has("no such host", "server misbehaving", "missing address", "missing port", "unknown port"):
		return say("the address %s of the %s cannot be resolved: %s", address, service, innermost(m))
	case st.Code() == codes.Unimplemented:
		return say("what listens at %s does not know this call: it is an older %s, or another service; use a spillway of its version, or upgrade it first", address, service)
	case st.Code() == codes.DeadlineExceeded && Reason(err) == "":
		return say("no answer from the %s at %s in time; it may be stopped, overloaded, or behind a load balancer without a backend", service, address)
	case st.Code() == codes.PermissionDenied || st.Code() == codes.Unauthenticated:
		return say("the %s at %s does not allow this call: %s", service, address, m)
	case st.Code() == codes.Canceled && Reason(err) == "":
		return say("interrupted")
	}
	return say("the %s at %s: %s", service, address, innermost(m))
}

// innermost is the end of gRPC's nested descriptions.
func innermost(message string) string {
	if i := strings.LastIndex(message, `desc = "`); i >= 0 {
		message = strings.TrimSuffix(message[i+len(`desc = "`):], `"`)
	}
	return strings.ReplaceAll(message, `\"`, `"`)
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
