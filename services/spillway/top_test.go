package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/spillwayio/spillway/services/internal/rpc"
)

// TestTopOutlivesARestart has top run on a screen that changes its size while the buffer goes away
// and comes back, and ends it with a key.
func TestTopOutlivesARestart(t *testing.T) {
	t.Parallel()
	address := freeAddr(t)
	file := writeFile(t, "pipeline.yaml", fmt.Sprintf(`
buffer: {listen: %q, http: '127.0.0.1:0', data_dir: %q, queues: {q: {subscriptions: {files: {}}}}}
`, address, filepath.Join(t.TempDir(), "buffer")))
	buffer := start(t, "buffer", "-c", file)
	buffer.wait("msg=ready")

	conn, err := rpc.Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	target := bufferTarget()
	target.address, target.timeout = address, limit
	shown := &display{}
	size, resized, quit := make(chan [2]int, 1), make(chan os.Signal, 1), make(chan struct{})
	size <- [2]int{80, 24}
	s := &screen{out: shown, resized: resized, quit: quit, size: func() (int, int) {
		now := <-size
		size <- now
		return now[0], now[1]
	}}
	keys, press := io.Pipe()
	go func() {
		defer close(quit)
		awaitQuit(keys)
	}()
	live := newTopOf(&call{target: target, ctx: t.Context(), out: shown, all: []*grpc.ClientConn{conn}})
	ended := make(chan error, 1)
	go func() { ended <- live.live(s) }()

	wait := func(what string, holds func(frame string) bool) {
		t.Helper()
		waitUntil(t, what, func() bool { return holds(shown.last()) })
	}
	wait("the queue is shown", func(f string) bool {
		return strings.Contains(f, address) && strings.Contains(f, "files") && strings.Contains(f, "q: no ingest is connected")
	})
	<-size
	size <- [2]int{100, 5}
	resized <- syscall.SIGWINCH
	wait("the frame has five lines", func(f string) bool {
		lines := strings.Split(f, "\r\n")
		return len(lines) == 5 && len([]rune(strings.TrimPrefix(lines[0], "\x1b[K"))) == 100 && strings.Contains(lines[4], "more lines")
	})
	<-size
	size <- [2]int{80, 24}

	buffer.signal(syscall.SIGTERM)
	buffer.status()
	wait("the buffer is away, and what was before stays", func(f string) bool {
		return strings.Contains(f, "No answer for ") && strings.Contains(f, "files")
	})
	again := start(t, "buffer", "-c", file)
	again.wait("msg=ready")
	wait("the buffer is back", func(f string) bool { return strings.Contains(f, "files") && !strings.Contains(f, "No answer") })

	if _, err := press.Write([]byte("xq")); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("after q: %v", err)
		}
	case <-time.After(limit):
		t.Fatal("q does not end it")
	}
	if got := spillway(t, "top", "-b", freeAddr(t)); got.status != 1 || !strings.Contains(got.stderr, "nothing listens at") {
		t.Errorf("without a buffer: %+v", got)
	}
}

// display keeps what is drawn on it.
type display struct{ output }

// last returns the frame that was drawn last.
func (s *display) last() string {
	frames := strings.Split(s.String(), "\x1b[H")
	return frames[len(frames)-1]
}
