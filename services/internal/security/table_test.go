package security

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "google.golang.org/grpc/health/grpc_health_v1"
	_ "google.golang.org/grpc/reflection/grpc_reflection_v1"
	_ "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"

	_ "github.com/spillwayio/spillway/gen/externalscaler"
	_ "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
)

// TestNoRPCEscapes: every RPC that is linked into the program has a rule or is open, the rule's
// object is a text of its request, and a request that names a queue or a subscription has a rule
// with an object.
func TestNoRPCEscapes(t *testing.T) {
	there := make(map[string]bool)
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			methods := f.Services().Get(i).Methods()
			for j := range methods.Len() {
				checkRule(t, methods.Get(j), there)
			}
		}
		return true
	})
	for method := range rules {
		if !there[method] {
			t.Errorf("the table has %s, which no service has", method)
		}
		if open[method] {
			t.Errorf("%s is open, and has a rule", method)
		}
	}
	for method := range open {
		if !there[method] || !strings.HasPrefix(method, "/grpc.health.v1.Health/") {
			t.Errorf("%s is open: it is not of the health service, or is not there", method)
		}
	}
	if len(there) < 30 {
		t.Errorf("only %d RPCs were found", len(there))
	}
}

func checkRule(t *testing.T, m protoreflect.MethodDescriptor, there map[string]bool) {
	method := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
	there[method] = true
	r, ok := rules[method]
	if !ok {
		if !open[method] {
			t.Errorf("table.go has no rule for %s: nobody could call it", method)
		}
		return
	}
	known := false
	for _, role := range []string{config.RoleAppend, config.RoleConsume, config.RoleRead, config.RoleTap, config.RoleOperate, config.RoleAdmin} {
		known = known || r.role == role
	}
	if !known {
		t.Errorf("%s needs role %q, which nobody can have", method, r.role)
	}
	if r.object == "" {
		for _, name := range []protoreflect.Name{"queue", "subscription", "name"} {
			if f := m.Input().Fields().ByName(name); f != nil && f.Kind() == protoreflect.StringKind {
				t.Errorf("%s has %s in its request, and its rule has no object", method, name)
			}
		}
		return
	}
	d, path := m.Input(), r.object
	if first, rest, inner := cutDot(path); inner {
		f := d.Fields().ByName(protoreflect.Name(first))
		if f == nil || f.Message() == nil || !m.IsStreamingClient() {
			t.Errorf("%s: %s is no message of a stream", method, first)
			return
		}
		d, path = f.Message(), rest
	} else if m.IsStreamingClient() {
		t.Errorf("%s is a stream of requests: its object must be in a message of its own", method)
	}
	if f := d.Fields().ByName(protoreflect.Name(path)); f == nil || f.Kind() != protoreflect.StringKind || f.IsList() {
		t.Errorf("%s: %s is no text of the request", method, r.object)
	}
}
