package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// TestFilesRecover finishes files in use, but for the one that has an entry in the buffer, and
// only once that answers.
func TestFilesRecover(t *testing.T) {
	dir := t.TempDir()
	old := time.Now().Add(-time.Hour)
	for name, data := range map[string]string{"logs/a.1-2.tmp": "one\ntw", "logs/a.3-4.tmp": "live\n", "logs/a.5-6.tmp": "", "other/a.7-8.tmp": "x\n"} {
		at := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(data), 0o644), os.Chtimes(at, old, old)); err != nil {
			t.Fatal(err)
		}
	}
	state := &fakeState{entry: "3-4"}
	address := startGRPC(t, func(s *grpc.Server) {
		spillwayv1.RegisterBufferAdminServiceServer(s, state)
		spillwayv1.RegisterClusterServiceServer(s, state)
	}, pass)
	file := writeFile(t, "pipeline.yaml", fmt.Sprintf(`
buffers: [%q]
security: {insecure: true}
buffer:
  listen: ':0'
  http: ':0'
  data_dir: %[2]s
  queues: {q: {subscriptions: {s: {}, c: {}}}}
delivery:
  archive: {subscription: q/s, hdfs: {url: "file://%[3]s", path: /logs, file_prefix: a}}
  copy: {subscription: q/c, listen: ':0', http: ':0', kafka: {brokers: [k:1], topic: t}}
`, address, t.TempDir(), dir))
	recovers := func(status int, args ...string) (files map[string]string, got result) {
		t.Helper()
		got = spillway(t, append([]string{"files", "recover", "-c", file, "-o", "json"}, args...)...)
		var answer struct{ Files []recoveredFile }
		if got.status != status || status == 0 && json.Unmarshal([]byte(got.stdout), &answer) != nil {
			t.Fatalf("files recover %v: %+v, want status %d", args, got, status)
		}
		files = make(map[string]string)
		for _, f := range answer.Files {
			files[f.Path] = f.Result
		}
		return files, got
	}
	refused := func(status int, want string, args ...string) {
		t.Helper()
		if _, got := recovers(status, args...); !strings.Contains(got.stderr, want) {
			t.Errorf("files recover %v: %s, want %q", args, got.stderr, want)
		}
	}
	refused(2, "want --path", "archive")
	refused(2, `no delivery "copy" to files; there is archive`, "copy", "--path", "/")
	refused(2, "want an absolute path", "archive", "--path", "logs")
	refused(2, "is not the name of the delivery, archive", "archive", "--path", "/", "--confirm", "x")
	refused(1, "no buffer has shard 0 of queue q open", "archive", "--path", "/logs")

	state.open.Store(true)
	want := map[string]string{"/logs/a.1-2.tmp": wouldFinish, "/logs/a.3-4.tmp": hasEntry, "/logs/a.5-6.tmp": wouldFinish}
	check := func(files map[string]string) {
		t.Helper()
		if fmt.Sprint(files) != fmt.Sprint(want) {
			t.Errorf("got %v, want %v", files, want)
		}
	}
	files, _ := recovers(0, "archive", "--path", "/logs")
	check(files)
	files, _ = recovers(0, "archive", "--path", "/logs", "--confirm", "archive")
	want["/logs/a.1-2.tmp"], want["/logs/a.5-6.tmp"] = "final, without the part of a record at its end", "removed: it is empty"
	check(files)
	if got, err := os.ReadFile(filepath.Join(dir, "logs/a.1-2")); err != nil || string(got) != "one\n" {
		t.Errorf("%q, %v", got, err)
	}
	files, _ = recovers(0, "archive", "--path", "/")
	want = map[string]string{"/logs/a.3-4.tmp": hasEntry, "/other/a.7-8.tmp": wouldFinish}
	check(files)
}

// fakeState is a buffer that has one entry of sink state once it is open.
type fakeState struct {
	spillwayv1.UnimplementedBufferAdminServiceServer
	spillwayv1.UnimplementedClusterServiceServer
	entry string
	open  atomic.Bool
}

// ListShards implements ClusterService.
func (f *fakeState) ListShards(context.Context, *spillwayv1.ListShardsRequest) (*spillwayv1.ListShardsResponse, error) {
	s := &spillwayv1.Shard{Queue: "q", Of: 1}
	if f.open.Load() {
		s.Life = "life"
	}
	return &spillwayv1.ListShardsResponse{Shards: []*spillwayv1.Shard{s}}, nil
}

// ListSinkState implements BufferAdminService.
func (f *fakeState) ListSinkState(_ context.Context, r *spillwayv1.ListSinkStateRequest) (*spillwayv1.ListSinkStateResponse, error) {
	if r.Subscription != "q/s" {
		return nil, errors.New("another subscription")
	}
	return &spillwayv1.ListSinkStateResponse{Entries: []*spillwayv1.SinkStateEntry{{Key: f.entry}}}, nil
}
