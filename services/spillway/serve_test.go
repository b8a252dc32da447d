package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// bufferFile describes a buffer on free ports.
func bufferFile(t *testing.T, dataDir string) string {
	return writeFile(t, "pipeline.yaml", fmt.Sprintf("buffer: {listen: '127.0.0.1:0', http: '127.0.0.1:0', data_dir: %q, queues: {q: {subscriptions: {s: {}}}}}", dataDir))
}

var httpAddr = regexp.MustCompile(`msg=starting .* http=(\S+)`)

// readyz is the URL of a child's readiness.
func readyz(c *child) string {
	c.t.Helper()
	m := httpAddr.FindStringSubmatch(c.wait("msg=starting"))
	if m == nil {
		c.t.Fatal("it does not say where it listens")
	}
	return "http://" + m[1] + "/readyz"
}

// TestBufferProcess starts a buffer, and a second one on its data, and ends both.
func TestBufferProcess(t *testing.T) {
	file := bufferFile(t, t.TempDir())
	first := start(t, "buffer", "-c", file)
	first.wait("msg=ready")
	if got := spillway(t, "health", readyz(first)); got.status != 0 || got.stdout != "ready\n" {
		t.Errorf("health of the first: %+v", got)
	}

	second := start(t, "buffer", "-c", file)
	second.wait("queue is not open; retrying")
	holder := fmt.Sprintf("store is in use: process %d has", first.cmd.Process.Pid)
	if got := spillway(t, "health", readyz(second)); got.status != 1 || !strings.Contains(got.stderr, "503") || !strings.Contains(got.stderr, holder) {
		t.Errorf("health of the second: %+v, want %s", got, holder)
	}

	first.signal(syscall.SIGTERM)
	if status := first.status(); status != 0 {
		t.Errorf("the first ended with %d", status)
	}
	out := first.out.String()
	if stopping, stopped := strings.Index(out, "msg=\"stopping; a second signal ends it at once\""), strings.Index(out, "msg=stopped"); stopping < 0 || stopped < stopping {
		t.Error("the first did not say that it stops, and then that it has stopped")
	}
	second.wait("msg=ready") // it takes over
	second.signal(syscall.SIGINT)
	if status := second.status(); status != 0 {
		t.Errorf("the second ended with %d", status)
	}
}

// TestBlockedStderr has a buffer log to a pipe that is full and that nobody reads: it becomes
// ready, and ends when told to.
func TestBlockedStderr(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := w.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	for err == nil { // until it is full
		_, err = w.Write(make([]byte, 4096))
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	addr := freeAddr(t)
	file := writeFile(t, "pipeline.yaml", fmt.Sprintf("buffer: {listen: '127.0.0.1:0', http: %q, data_dir: %q, queues: {q: {subscriptions: {s: {}}}}}", addr, t.TempDir()))
	c := startWith(t, w, "buffer", "-c", file)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(limit); ; {
		got := spillway(t, "health", "http://"+addr+"/readyz")
		if got.status == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("it does not become ready: %+v", got)
		}
		time.Sleep(20 * time.Millisecond)
	}
	c.signal(syscall.SIGTERM)
	if status := c.status(); status != 0 {
		t.Errorf("it ended with %d", status)
	}
}

// freeAddr is an address on which nobody listens.
func freeAddr(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	return lis.Addr().String()
}

// TestPortInUse names the key.
func TestPortInUse(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	used := lis.Addr().String()
	for _, test := range []struct{ command, grpc, http, want string }{
		{"buffer", used, "127.0.0.1:0", "buffer.listen: listen tcp " + used + ": bind: address already in use"},
		{"buffer", "127.0.0.1:0", used, "buffer.http: listen tcp " + used},
		{"ingest", used, "127.0.0.1:0", "ingest.listen: listen tcp " + used},
		{"delivery d", used, "127.0.0.1:0", "delivery.d.listen: listen tcp " + used},
		{"delivery d", "127.0.0.1:0", "192.0.2.1:1", "delivery.d.http: listen tcp 192.0.2.1:1: bind: cannot assign requested address"},
	} {
		ports := fmt.Sprintf("listen: %q, http: %q", test.grpc, test.http)
		file := writeFile(t, "pipeline.yaml", fmt.Sprintf(`
ingest: {%[1]s, sources: {s: {brokers: ["127.0.0.1:1"], group: g, topics: [t], queue: q}}}
buffer: {%[1]s, data_dir: %[2]q, queues: {q: {subscriptions: {s: {}}}}}
delivery: {d: {%[1]s, subscription: q/s, hdfs: {url: "file://%[2]s", path: /}}}
security: {insecure: true}
`, ports, t.TempDir()))
		got := spillway(t, append(strings.Fields(test.command), "-c", file)...)
		if got.status != 1 || !strings.Contains(got.stderr, test.want) {
			t.Errorf("%s: %+v, want %s", test.command, got, test.want)
		}
	}
}

// TestUnreachable has services wait for what is away, say so once, and end when told to.
func TestUnreachable(t *testing.T) {
	file := writeFile(t, "pipeline.yaml", fmt.Sprintf(`
buffers: ["127.0.0.1:1"]
ingest: {listen: "127.0.0.1:0", http: "127.0.0.1:0", sources: {s: {brokers: ["127.0.0.1:1"], group: g, topics: [t], queue: q}}}
delivery:
  files: {listen: "127.0.0.1:0", http: "127.0.0.1:0", subscription: q/files, hdfs: {url: "file://%s", path: /}}
  hdfs: {listen: "127.0.0.1:0", http: "127.0.0.1:0", subscription: q/hdfs, hdfs: {url: "hdfs://127.0.0.1:1", user: u, path: /}}
  kafka: {listen: "127.0.0.1:0", http: "127.0.0.1:0", subscription: q/kafka, kafka: {brokers: ["127.0.0.1:1"], topic: "copy-%%{topic}"}}
`, t.TempDir()))
	for _, test := range []struct{ command, log, ready string }{
		{"ingest", "cannot read from Kafka; retrying", "source s: "},
		{"delivery files", "no session with the buffer; retrying", "waiting for the buffer: nothing listens at 127.0.0.1:1 (connection refused); is the buffer running?"},
		{"delivery hdfs", "the destination fails; retrying", "waiting for the destination: connect to HDFS at 127.0.0.1:1: "},
		{"delivery kafka", "the destination fails; retrying", "waiting for the destination: reach Kafka at 127.0.0.1:1: "},
	} {
		t.Run(test.command, func(t *testing.T) {
			t.Parallel()
			c := start(t, append(strings.Fields(test.command), "-c", file)...)
			c.wait(test.log)
			url := readyz(c)
			if got := spillway(t, "health", url); got.status != 1 || !strings.Contains(got.stderr, "503") || !strings.Contains(got.stderr, test.ready) {
				t.Errorf("health: %+v, want %s", got, test.ready)
			}
			c.signal(syscall.SIGTERM)
			if status := c.status(); status != 0 {
				t.Errorf("it ended with %d", status)
			}
			if n := strings.Count(c.out.String(), test.log); n != 1 {
				t.Errorf("it said %d times: %s", n, test.log)
			}
		})
	}
}
