package main

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// fakeQueues is a buffer with two queues, which notes the tokens that it is shown.
type fakeQueues struct {
	spillwayv1.UnimplementedBufferAdminServiceServer
	mu     sync.Mutex
	tokens []string
}

// ListQueues implements BufferAdminService, in two pages.
func (f *fakeQueues) ListQueues(ctx context.Context, r *spillwayv1.ListQueuesRequest) (*spillwayv1.ListQueuesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	md, _ := metadata.FromIncomingContext(ctx)
	f.tokens = append(f.tokens, strings.Join(md.Get("authorization"), ","))
	if r.PageToken == "" {
		return &spillwayv1.ListQueuesResponse{Queues: []*spillwayv1.Queue{{Name: "logs", Subscriptions: []string{"copy", "hdfs"}}}, NextPageToken: "2"}, nil
	}
	return &spillwayv1.ListQueuesResponse{Queues: []*spillwayv1.Queue{{Name: "web", Subscriptions: []string{"hdfs"}}}}, nil
}

// shown returns the last token, and how often there was a call since the last time.
func (f *fakeQueues) shown() (last string, calls int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if calls = len(f.tokens); calls > 0 {
		last = f.tokens[calls-1]
	}
	f.tokens = nil
	return last, calls
}

// serveAdmin returns the address of a fake buffer.
func serveAdmin(t *testing.T, buffer spillwayv1.BufferAdminServiceServer) string {
	t.Helper()
	return startGRPC(t, func(s *grpc.Server) { spillwayv1.RegisterBufferAdminServiceServer(s, buffer) }, pass)
}

// TestContextsOfCommands: which context counts, and that its token goes nowhere else.
func TestContextsOfCommands(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	one, two := new(fakeQueues), new(fakeQueues)
	at, other := serveAdmin(t, one), serveAdmin(t, two)
	token := writeFile(t, "token", "secret\n")
	do := func(command string) result {
		t.Helper()
		got := spillway(t, strings.Fields(command)...)
		if got.status != 0 {
			t.Errorf("spillway %s: %+v", command, got)
		}
		return got
	}
	// asks says which of the two is asked, and what it is shown.
	asks := func(command string, asked *fakeQueues, want string) {
		t.Helper()
		do(command)
		for _, f := range []*fakeQueues{one, two} {
			token, calls := f.shown()
			if (calls > 0) != (f == asked) || f == asked && token != want {
				t.Errorf("spillway %s: %d calls with %q", command, calls, token)
			}
		}
	}
	do("context set one --token-file " + token + " --buffer " + at)
	do("context set two --buffer " + other)
	do("context use one")
	asks("queues", one, "Bearer secret")
	asks("queues --context two", two, "")
	asks("queues -b "+other, two, "") // without the token of the current context
	asks("queues --context one -b "+other, two, "Bearer secret")
	file := writeFile(t, "pipeline.yaml", "buffers: ['"+other+"']\nbuffer: {data_dir: /x, queues: {q: {subscriptions: {s: {}}}}}")
	asks("queues -c "+file, two, "")
	t.Setenv("SPILLWAY_CONTEXT", "two")
	asks("queues", two, "")
	asks("queues --context one", one, "Bearer secret")
	asks("queues -b "+at, one, "")

	var list struct{ Contexts []contextLine }
	if err := json.Unmarshal([]byte(do("context -o json").stdout), &list); err != nil || len(list.Contexts) != 2 || !list.Contexts[0].Current {
		t.Errorf("%+v, %v", list, err)
	}
	do("context set two --ingest localhost:1")
	if got := do("context list").stdout; !strings.Contains(got, "*        one      "+at) || !strings.Contains(got, other) || !strings.Contains(got, "localhost:1") {
		t.Errorf("context list: %s", got)
	}
	if got := spillway(t, "deliveries"); got.status != 2 || !strings.Contains(got.stderr, "context two does not say where the delivery is; want --delivery") {
		t.Errorf("%+v", got)
	}
	do("context delete one")
	if got := do("context list").stdout; strings.Contains(got, "*") || strings.Contains(got, "one") {
		t.Errorf("context list: %s", got)
	}
}

// TestWithoutHome: a process that has no home has no context, and needs none.
func TestWithoutHome(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("HOME", "")
	if got := spillway(t, "queues", "--timeout", "1ns"); got.status != 1 {
		t.Errorf("%+v", got)
	}
}

func TestCompletion(t *testing.T) {
	address := serveAdmin(t, new(fakeQueues))
	for command, want := range map[string][]string{
		"queues -b " + address + " ":                   {"logs", "web"},
		"subscriptions pause -b " + address + " ":      {"logs/copy", "logs/hdfs", "web/hdfs"},
		"subscriptions -b " + address + " ":            {"create", "logs", "web"},
		"check subscription -b " + address + " ":       {"logs/copy", "logs/hdfs", "web/hdfs"},
		"audit -b " + address + " ":                    {"logs", "web", "logs/copy"},
		"audit -b " + freeAddr(t) + " ":                nil, // and no error
		"queues update -b " + address + " ":            {"logs", "web"},
		"queues logs -b " + address + " ":              nil,
		"queues --output ":                             {"table", "json"},
		"completion ":                                  {"bash", "zsh", "fish"},
		"subscriptions seek --context nowhere --to 1 ": nil,
	} {
		got := spillway(t, append([]string{"__complete"}, strings.Split(command, " ")...)...)
		lines := strings.Split(got.stdout, "\n")
		for _, name := range want {
			if !slices.ContainsFunc(lines, func(l string) bool { return strings.Split(l, "\t")[0] == name }) {
				t.Errorf("%s<TAB> has no %q: %+v", command, name, got)
			}
		}
		if want == nil && !strings.HasPrefix(got.stdout, ":") || got.status != 0 {
			t.Errorf("%s<TAB>: %+v", command, got)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if got := spillway(t, "completion", shell); got.status != 0 || !strings.Contains(got.stdout, "__complete") {
			t.Errorf("completion %s: %+v", shell, got)
		}
	}
}
