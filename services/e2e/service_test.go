package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
)

// service is one of the four commands, as a process that can be killed and started again.
type service struct {
	t    testing.TB
	name string
	args []string
	env  []string // added to the environment
	grpc string   // addresses
	http string
	log  string // file that every start appends to
	conn *grpc.ClientConn
	web  *http.Client // nil: plain text

	mu      sync.Mutex
	running *exec.Cmd     // nil when not running
	ended   chan struct{} // closed when running has ended
	wanted  bool          // that it ends
	result  error         // of Wait
}

func newService(t testing.TB, dir, name string, args ...string) *service {
	s := &service{t: t, name: name, args: args, grpc: freeAddr(t), http: freeAddr(t), log: dir + "/" + name + ".log"}
	var err error
	// What comes back is seen at once, also by tests that measure how long it was away.
	again := grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: 200 * time.Millisecond}, MinConnectTimeout: 5 * time.Second}
	if s.conn, err = grpc.NewClient(s.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(), grpc.WithConnectParams(again)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.kill()
		if err := s.conn.Close(); err != nil {
			t.Errorf("close connection to %s: %v", name, err)
		}
		if t.Failed() {
			t.Logf("the end of the log of %s:\n%s", name, s.logTail(40))
		}
	})
	return s
}

// start does not wait for anything.
func (s *service) start() {
	s.t.Helper()
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(binary, s.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), s.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := errors.Join(cmd.Start(), log.Close()); err != nil {
		s.t.Fatalf("start %s: %v", s.name, err)
	}
	ended := make(chan struct{})
	s.mu.Lock()
	s.running, s.ended, s.wanted = cmd, ended, false
	s.mu.Unlock()
	go func() {
		err := cmd.Wait()
		s.mu.Lock()
		s.running, s.result = nil, err
		if !s.wanted {
			s.t.Errorf("%s ended by itself: %v", s.name, err)
		}
		s.mu.Unlock()
		close(ended)
	}()
}

// signal returns the channel that tells the end, or nil when the service does not run.
func (s *service) signal(sig syscall.Signal) chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		return nil
	}
	s.wanted = true
	if err := s.running.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.t.Errorf("signal %s: %v", s.name, err)
	}
	return s.ended
}

// kill ends it with SIGKILL, if it runs, and returns when it is gone.
func (s *service) kill() {
	if ended := s.signal(syscall.SIGKILL); ended != nil {
		<-ended
	}
}

// stop ends it with SIGTERM. It must drain and end with status 0.
func (s *service) stop() {
	s.t.Helper()
	ended := s.signal(syscall.SIGTERM)
	if ended == nil {
		return
	}
	select {
	case <-ended:
		if s.result != nil {
			s.t.Errorf("%s after SIGTERM: %v, want status 0", s.name, s.result)
		}
	case <-time.After(40 * time.Second):
		s.t.Errorf("%s has not ended 40 s after SIGTERM", s.name)
		s.kill()
	}
}

// url is of the HTTP port.
func (s *service) url(path string) string {
	if s.web != nil {
		return "https://" + s.http + path
	}
	return "http://" + s.http + path
}

// get asks the HTTP port.
func (s *service) get(path string) (int, string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url(path), nil)
	if err != nil {
		return 0, "", err
	}
	client := http.DefaultClient
	if s.web != nil {
		client = s.web
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), errors.Join(err, resp.Body.Close())
}

// ready is nil when /readyz says so.
func (s *service) ready() error {
	code, body, err := s.get("/readyz")
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("%s is not ready: %d %s", s.name, code, strings.TrimSpace(body))
	}
	return err
}

func (s *service) waitReady() {
	s.t.Helper()
	eventually(s.t, 30*time.Second, s.name+" is ready", s.ready)
}

// memoryBytes is the process's resident set: now, and the most it ever was.
func (s *service) memoryBytes() (now, peak int64) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		s.t.Fatalf("%s does not run", s.name)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.running.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		if name != "VmRSS" && name != "VmHWM" {
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			s.t.Fatal(err)
		}
		if name == "VmRSS" {
			now = kib << 10
		} else {
			peak = kib << 10
		}
	}
	return now, peak
}

func (s *service) logTail(lines int) string {
	b, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	all := bytes.SplitAfter(b, []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines-1):], nil))
}

// eventually polls until the condition holds, and fails with its last error when that takes too
// long.
func eventually(t testing.TB, timeout time.Duration, what string, condition func() error) {
	t.Helper()
	poll(t, 100*time.Millisecond, timeout, what, condition)
}

func poll(t testing.TB, every, timeout time.Duration, what string, condition func() error) {
	t.Helper()
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		err := condition()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("after %s still not: %s: %v", timeout, what, err)
		}
	}
}

// pause lets time pass in which something happens elsewhere.
func pause(t testing.TB, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
}

// metric is a value in the text of /metrics, 0 when it is not there.
func metric(body, name string) float64 {
	for line := range strings.Lines(body) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err == nil {
				return v
			}
		}
	}
	return 0
}

// repeat calls f again and again, each time after a pause, until it fails or stop is called. stop
// returns why it failed.
func repeat(pause time.Duration, f func() error) (stop func() error) {
	stopped, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stopped:
				ended <- nil
				return
			case <-time.After(pause):
			}
			if err := f(); err != nil {
				ended <- err
				return
			}
		}
	}()
	return func() error {
		close(stopped)
		return <-ended
	}
}
