package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/spillwayio/spillway/services/internal/rpc"
)

// silent listens, accepts, and never answers. It returns its address and a channel with each
// connection.
func silent(t *testing.T) (address string, accepted chan net.Conn) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	accepted = make(chan net.Conn, 100)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	t.Cleanup(func() {
		lis.Close()
		<-done
		close(accepted)
		for conn := range accepted {
			conn.Close()
		}
	})
	return lis.Addr().String(), accepted
}

// fifo makes a file that cannot be opened for reading before somebody writes.
func fifo(t *testing.T, path string) string {
	t.Helper()
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// awaitReader waits until somebody opens a FIFO, and keeps it open, so that the reader has
// something to wait for.
func awaitReader(t *testing.T, path string) {
	t.Helper()
	for begin := time.Now(); time.Since(begin) < limit; time.Sleep(5 * time.Millisecond) {
		fd, err := syscall.Open(path, syscall.O_WRONLY|syscall.O_NONBLOCK, 0) // refused until somebody reads
		if err == nil {
			t.Cleanup(func() { _ = syscall.Close(fd) })
			return
		}
	}
	t.Fatalf("nobody opens %s", path)
}

// awaitOpen waits until a child has a file open.
func awaitOpen(c *child, path string) {
	c.t.Helper()
	for begin := time.Now(); time.Since(begin) < limit; time.Sleep(5 * time.Millisecond) {
		fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", c.cmd.Process.Pid))
		if err != nil {
			c.t.Fatal(err)
		}
		for _, fd := range fds {
			if to, err := os.Readlink(fd); err == nil && to == path {
				return
			}
		}
	}
	c.t.Fatalf("it does not open %s", path)
}

// TestEveryCommandHearsSIGTERM has each command wait for something that never comes, and end at
// the first signal.
func TestEveryCommandHearsSIGTERM(t *testing.T) {
	for name, args := range map[string]string{
		"check": "check -c FIFO", "run": "run -c FIFO", "buffer": "buffer -c FIFO", "ingest": "ingest -c FIFO", "delivery": "delivery d -c FIFO", "audit of a file": "audit -c FIFO",
		"inspect": "inspect DIR", "repair": "inspect DIR --repair",
		"audit": "audit -b SILENT --timeout 1h", "health": "health http://SILENT/readyz --timeout 1h", "generate": "generate --brokers SILENT --topics t",
	} {
		for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
			t.Run(name+" "+signal.String(), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				address, accepted := silent(t)
				path, segment := fifo(t, filepath.Join(dir, "fifo")), filepath.Join(dir, "q", "1.dat")
				if err := errors.Join(os.Mkdir(filepath.Join(dir, "q"), 0o755), os.WriteFile(segment, nil, 0o600), os.Truncate(segment, 1<<40)); err != nil {
					t.Fatal(err)
				}
				c := start(t, strings.Fields(strings.NewReplacer("FIFO", path, "DIR", dir, "SILENT", address).Replace(args))...)
				switch {
				case strings.Contains(args, "SILENT"):
					<-accepted
				case strings.Contains(args, "FIFO"):
					awaitReader(t, path)
				default:
					awaitOpen(c, segment)
				}
				c.signal(signal)
				begin := time.Now()
				if status := c.status(); status == 0 {
					t.Error("it ended with 0, and has done nothing")
				}
				if took := time.Since(begin); took > 10*promptly {
					t.Errorf("it ended %s after the signal", took)
				}
			})
		}
	}
}

// TestSIGHUPWithoutATerminal is what `systemctl reload` sends: the service goes on.
func TestSIGHUPWithoutATerminal(t *testing.T) {
	c := newChild(t, "buffer", "-c", bufferFile(t, t.TempDir()))
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	c.run()
	c.wait("msg=ready")
	c.signal(syscall.SIGHUP)
	c.wait("the configuration was reloaded")
	if got := spillway(t, "health", readyz(c)); got.status != 0 {
		t.Errorf("health: %+v", got)
	}
	c.signal(syscall.SIGTERM)
	c.wait("stopping; a second signal ends it at once")
	_ = c.cmd.Process.Signal(syscall.SIGHUP) // no second signal; it may have ended
	if status := c.status(); status != 0 || !strings.Contains(c.out.String(), "msg=stopped") {
		t.Errorf("it ended with %d", status)
	}
}

// TestClosedTerminal closes the terminal that a service was started from: it drains.
func TestClosedTerminal(t *testing.T) {
	master, tty := terminal(t)
	c := newChild(t, "buffer", "-c", bufferFile(t, t.TempDir()))
	c.cmd.ExtraFiles = []*os.File{tty}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 3}
	c.run()
	tty.Close()
	c.wait("msg=ready")
	if err := master.Close(); err != nil {
		t.Fatal(err)
	}
	if status := c.status(); status != 0 || !strings.Contains(c.out.String(), "the terminal was closed") || !strings.Contains(c.out.String(), "msg=stopped") {
		t.Errorf("it ended with %d", status)
	}
}

// terminal makes a terminal, and returns its two ends.
func terminal(t *testing.T) (master, tty *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() }) // in most cases it is closed
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, tty
}

// TestNobodyReadsTheLog ends whoever reads the log, as Ctrl-C does to `spillway buffer | tee`:
// the service goes on, and drains when it is told to.
func TestNobodyReadsTheLog(t *testing.T) {
	dir := t.TempDir()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c := newChild(t, "buffer", "-c", bufferFile(t, dir))
	c.cmd.Stderr = write
	c.run()
	var text []byte
	for b := make([]byte, 1000); !strings.Contains(string(text), "msg=ready"); {
		n, err := read.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, b[:n]...)
	}
	read.Close()
	write.Close()
	for range 3 {
		c.signal(syscall.SIGHUP) // has it log a line, or drain
	}
	c.signal(syscall.SIGTERM)
	if status := c.status(); status != 0 {
		t.Errorf("it ended with %d: %v", status, c.cmd.ProcessState)
	}
}

// TestStopTimeout has a call that does not end hold up a service for longer than it was given.
func TestStopTimeout(t *testing.T) {
	c := start(t, "buffer", "--stop-timeout", "1s", "-c", bufferFile(t, t.TempDir()))
	out := c.wait("msg=ready")
	_, after, _ := strings.Cut(out, " grpc=")
	address, _, _ := strings.Cut(after, " ")
	conn, err := rpc.Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	watch, err := healthv1.NewHealthClient(conn).Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := watch.Recv(); err != nil || m.Status != healthv1.HealthCheckResponse_SERVING {
		t.Fatalf("health is %v, %v", m, err)
	}
	c.signal(syscall.SIGTERM)
	if m, err := watch.Recv(); err != nil || m.Status != healthv1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("health while it stops is %v, %v", m, err)
	}
	c.status()
	if s := c.cmd.ProcessState.Sys().(syscall.WaitStatus); !s.Signaled() || s.Signal() != syscall.SIGTERM {
		t.Errorf("it ended with %v", c.cmd.ProcessState)
	}
	if want := "not done 1s after the signal to stop; ending at once"; !strings.Contains(c.out.String(), want) {
		t.Errorf("it did not say %q", want)
	}
}
