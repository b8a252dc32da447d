package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// runEnv makes the test binary be spillway: what tests of signals and exit statuses start.
const runEnv = "SPILLWAY_LOG_TEST_RUN" // a name that the configuration passes over

func TestMain(m *testing.M) {
	if os.Getenv(runEnv) != "" {
		go func() { // ends with the test, whatever becomes of that
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(3)
		}()
		os.Exit(run())
	}
	for _, entry := range os.Environ() { // whoever runs the tests may have a pipeline of his own
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "SPILLWAY_") {
			if err := os.Unsetenv(name); err != nil {
				panic(err)
			}
		}
	}
	// Nor do his contexts count.
	if err := os.Setenv("XDG_CONFIG_HOME", filepath.Join(os.TempDir(), "spillway-tests-have-no-contexts")); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m,
		// nutsdb leaves these behind.
		goleak.IgnoreAnyFunction("github.com/antlabs/timer.(*timeWheel).Run"),
		goleak.IgnoreAnyFunction("github.com/nutsdb/nutsdb.(*ttlManager).run"),
		goleak.IgnoreAnyFunction("github.com/nutsdb/nutsdb.(*DB).doWrites"))
}

// limit bounds what may take long on a busy machine.
const limit = 2 * time.Minute

// result is what a command left behind.
type result struct {
	status         int
	stdout, stderr string
}

// spillway runs a command in this process.
func spillway(t *testing.T, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var stdout, stderr bytes.Buffer
	status := execute(ctx, args, &stdout, &stderr)
	return result{status, stdout.String(), stderr.String()}
}

// writeFile writes a file in a directory of the test's own and returns its path.
func writeFile(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// child is spillway as a process of its own.
type child struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  output
	done chan struct{} // closed when it has ended
}

// output is what a child wrote so far.
type output struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	more chan struct{} // has room for one
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buf.Write(p)
	select {
	case o.more <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func start(t *testing.T, args ...string) *child {
	t.Helper()
	return startWith(t, nil, args...)
}

// startWith is start with a file as stderr.
func startWith(t *testing.T, stderr *os.File, args ...string) *child {
	t.Helper()
	c := newChild(t, args...)
	if stderr != nil {
		c.cmd.Stderr = stderr
	}
	c.run()
	return c
}

// newChild is a child that does not run yet.
func newChild(t *testing.T, args ...string) *child {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &child{t: t, cmd: exec.Command(self, args...), done: make(chan struct{})}
	c.out.more = make(chan struct{}, 1)
	c.cmd.Env = append(os.Environ(), runEnv+"=1")
	c.cmd.Stdout, c.cmd.Stderr = &c.out, &c.out
	return c
}

func (c *child) run() {
	c.t.Helper()
	if c.cmd.Stdin == nil {
		if _, err := c.cmd.StdinPipe(); err != nil { // open until the child or this process ends
			c.t.Fatal(err)
		}
	}
	if err := c.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	go func() {
		defer close(c.done)
		_ = c.cmd.Wait() // its status is looked at
	}()
	c.t.Cleanup(func() {
		_ = c.cmd.Process.Kill() // in most cases it has ended
		<-c.done
		if c.t.Failed() {
			c.t.Logf("%s wrote:\n%s", strings.Join(c.cmd.Args[1:], " "), &c.out)
		}
	})
}

// wait waits until it has written text, and returns all it wrote.
func (c *child) wait(text string) string {
	c.t.Helper()
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	for {
		if out := c.out.String(); strings.Contains(out, text) {
			return out
		}
		select {
		case <-c.out.more:
		case <-c.done:
			if out := c.out.String(); strings.Contains(out, text) {
				return out
			}
			c.t.Fatalf("it ended with %v and had not written %q", c.cmd.ProcessState, text)
		case <-timeout.C:
			c.t.Fatalf("it has not written %q after %s", text, limit)
		}
	}
}

func (c *child) signal(s syscall.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		c.t.Fatal(err)
	}
}

// status waits for its end.
func (c *child) status() int {
	c.t.Helper()
	select {
	case <-c.done:
	case <-time.After(limit):
		c.t.Fatalf("it has not ended after %s", limit)
	}
	return c.cmd.ProcessState.ExitCode()
}
