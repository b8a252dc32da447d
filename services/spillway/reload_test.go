package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/spillwayio/spillway/services/internal/config"
)

// reloadFile is the file of a buffer with tokens.
func reloadFile(t *testing.T, dir string) string {
	t.Helper()
	for name, token := range map[string]string{"admin": "admin-0123456789abcdefghijklmnop", "reader": "reader-0123456789abcdefghijklmno"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return writeFile(t, "pipeline.yaml", fmt.Sprintf(`buffers: [%q]
buffer:
  listen: %[1]q
  http: 127.0.0.1:0
  data_dir: %[2]q
  queues: {q: {disk: {bytes: 300MiB}, memory: {bytes: 8MiB}, subscriptions: {s: {}}}}
security:
  tokens:
    - {name: admin, file: %[2]s/admin, roles: [admin]}
    - {name: reader, file: %[2]s/reader, roles: [read]}
  client: {token_file: %[2]s/admin}
`, freeAddr(t), dir))
}

func replaceIn(t *testing.T, file string, pairs ...string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, []byte(strings.NewReplacer(pairs...).Replace(string(text))), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestReload changes roles, a disk bound and a policy of a running buffer by its file; what needs
// a restart is named, a broken file changes nothing, and SIGHUP does the same.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	file := reloadFile(t, dir)
	c := newChild(t, "buffer", "-c", file)
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	c.run()
	c.wait("msg=ready")
	asReader := []string{"--token-file", filepath.Join(dir, "reader")}
	run := func(args ...string) result { return spillway(t, args...) }

	if got := run("reload", "-c", file); got.status != 0 || !strings.Contains(got.stdout, "no key has changed") {
		t.Errorf("of the same file: %+v", got)
	}
	if got := run(append([]string{"reload", "-c", file}, asReader...)...); got.status != 1 || !strings.Contains(got.stderr, "lacks the role admin") {
		t.Errorf("by a reader: %+v", got)
	}

	replaceIn(t, file, "300MiB", "400MiB", "8MiB", "16MiB", "s: {}", "s: {limit: 1MiB}, new: {}", "roles: [read]", "roles: [admin]")
	const applied, restart = "buffer.queues.q.disk.bytes, buffer.queues.q.subscriptions.s.limit, security.tokens",
		"needs a restart: buffer.queues.q.memory.bytes, buffer.queues.q.subscriptions.new\n"
	if got := run("reload", "-c", file, "--dry-run"); got.status != 0 || !strings.Contains(got.stdout, "would be in force: "+applied+"; "+restart) {
		t.Errorf("dry run: %+v", got)
	}
	if got := run("config", "diff", "-c", file); got.status != 1 || !strings.Contains(got.stdout, "disk.bytes") {
		t.Errorf("after a dry run: %+v", got)
	}
	replaceIn(t, file, dir+"/reader", dir+"/nowhere")
	if got := run("reload", "-c", file); got.status != 1 || !strings.Contains(got.stderr, "nowhere: no such file") {
		t.Errorf("with a file that is not there: %+v", got)
	}
	replaceIn(t, file, dir+"/nowhere", dir+"/reader")
	if got := run("reload", "-c", file); got.status != 0 || !strings.Contains(got.stdout, ": in force: "+applied+"; "+restart) {
		t.Errorf("%+v", got)
	}
	if got := run("config", "diff", "-c", file); got.status != 1 || strings.Contains(got.stdout, "disk.bytes") || strings.Contains(got.stdout, "s.limit") || !strings.Contains(got.stdout, "memory.bytes") {
		t.Errorf("what differs: %+v", got)
	}
	if got := run(append([]string{"reload", "-c", file}, asReader...)...); got.status != 0 || !strings.Contains(got.stdout, ": "+restart) {
		t.Errorf("by whom is an admin now: %+v", got)
	}

	replaceIn(t, file, "disk: {", "dsik: {")
	c.signal(syscall.SIGHUP)
	c.wait("the configuration was not reloaded; all stays as it was")
	replaceIn(t, file, "dsik: {", "disk: {", "400MiB", "500MiB")
	c.signal(syscall.SIGHUP)
	c.wait("applied=[buffer.queues.q.disk.bytes]")
	c.signal(syscall.SIGTERM)
	if status := c.status(); status != 0 {
		t.Errorf("it ended with %d", status)
	}
}

// TestReloadOfARevision takes what a file says of a queue that is kept in Kafka together with its
// revision, and nothing of it when conditions of headers differ, which need a restart.
func TestReloadOfARevision(t *testing.T) {
	t.Parallel()
	parse := func(revision int, topic, header string) *config.Config {
		t.Helper()
		c, err := config.Parse("f.yaml", fmt.Appendf(nil, `
buffers: [localhost:7400]
buffer: {queues: {q: {commit_after: delivered, revision: %d, store: {kafka: {brokers: [k:1], namespace: n}},
  subscriptions: {s: {topics: [%s], headers: [{name: %s, in: [v]}]}}}}}
`, revision, topic, header), nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	now := parse(1, "t", "h")
	if q := mergeReloadable(now, parse(2, "u", "h")).Buffer.Queues["q"]; q.Revision != 2 || q.Subscriptions["s"].Topics[0] != "u" {
		t.Errorf("merged %+v", q)
	}
	next := parse(2, "u", "i")
	merged := mergeReloadable(now, next)
	if q := merged.Buffer.Queues["q"]; q.Revision != 1 || q.Subscriptions["s"].Topics[0] != "t" {
		t.Errorf("merged with other headers %+v", q)
	}
	if restart := config.Changed(merged, next); !slices.Contains(restart, "buffer.queues.q.revision") {
		t.Errorf("a restart is needed for %v", restart)
	}
}
