package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestCommandsAskAllBuffers runs two buffers that divide a queue. Commands with the file see and
// change both, and leave out those that do not have a queue; one that is away is named.
func TestCommandsAskAllBuffers(t *testing.T) {
	addresses := []string{freeAddr(t), freeAddr(t)}
	var files []string
	var running []*child
	for shard, address := range addresses {
		file := writeFile(t, "pipeline.yaml", fmt.Sprintf(`
buffers: [%q, %q]
buffer: {listen: %q, http: '127.0.0.1:0', data_dir: %q, shard: %d, queues: {q: {shards: 2, subscriptions: {s: {}}}, own: {subscriptions: {s: {}}}}}
`, addresses[1], addresses[0], address, filepath.Join(t.TempDir(), "data"), shard))
		files = append(files, file)
		c := start(t, "buffer", "-c", file)
		c.wait("queue is open")
		running = append(running, c)
	}
	ask := func(wanted int, args string) result {
		t.Helper()
		got := spillway(t, append(strings.Fields(args), "-c", files[0])...)
		if got.status != wanted {
			t.Errorf("spillway %s: %+v, want status %d", args, got, wanted)
		}
		return got
	}
	lines := func(text, of string) (n int) {
		for line := range strings.Lines(text) {
			if fields := strings.Fields(line); len(fields) > 0 && fields[0] == of {
				n++
			}
		}
		return n
	}
	waitUntil(t, "all queues are open", func() bool { return strings.Count(ask(0, "queues").stdout, " open ") == 3 })
	got := ask(0, "shards").stdout
	for _, want := range []string{"q      0 of 2  " + addresses[0] + "  open", "q      1 of 2  " + addresses[1] + "  open", "own    -       " + addresses[0] + "  open"} {
		if !strings.Contains(got, want) {
			t.Errorf("shards lacks %q:\n%s", want, got)
		}
	}
	if got := ask(0, "shards own").stdout; lines(got, "own") != 1 || lines(got, "q") != 0 {
		t.Errorf("shards of one queue:\n%s", got)
	}
	if got := ask(0, "subscriptions").stdout; lines(got, "q/s") != 1 || lines(got, "own/s") != 1 {
		t.Errorf("subscriptions are not one line each:\n%s", got)
	}
	if got := ask(0, "audit own").stdout; !strings.Contains(got, "SUBSCRIPTION") {
		t.Errorf("audit of a queue of one buffer:\n%s", got)
	}
	ask(0, "subscriptions pause own/s")
	ask(0, "subscriptions pause q/s")
	for _, address := range addresses {
		if got := spillway(t, "subscriptions", "q", "-b", address); !strings.Contains(got.stdout, "paused") {
			t.Errorf("at %s: %+v", address, got)
		}
	}
	if got := ask(1, "subscriptions pause q/other"); !strings.Contains(got.stderr, addresses[0]) || !strings.Contains(got.stderr, addresses[1]) {
		t.Errorf("a subscription that is nowhere: %+v", got)
	}
	ask(0, "check subscription q/s")

	running[1].signal(syscall.SIGTERM)
	running[1].status()
	if got := ask(1, "queues"); !strings.Contains(got.stderr, "nothing listens at "+addresses[1]) {
		t.Errorf("with a buffer that is away: %+v", got)
	}
	if got := ask(1, "shards"); !strings.Contains(got.stdout, "0 of 2") || !strings.Contains(got.stderr, addresses[1]) {
		t.Errorf("with a buffer that is away: %+v", got)
	}
	ask(1, "audit")
	ask(3, "check subscription q/s")
}
