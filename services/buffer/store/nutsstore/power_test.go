//go:build linux

package nutsstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spillwayio/spillway/services/internal/race"
)

// writer is a child that appends, with its output in a file: what it acknowledged is there the
// moment it is stopped.
type writer struct {
	t   *testing.T
	cmd *exec.Cmd
	out string

	stderr bytes.Buffer // read it when the process has ended
}

func startWriter(t *testing.T, dir string) *writer {
	t.Helper()
	w := &writer{t: t, out: filepath.Join(t.TempDir(), "acknowledged")}
	out, err := os.Create(w.out)
	if err != nil {
		t.Fatal(err)
	}
	w.cmd = child(t, "append", dir)
	w.cmd.Stdout = out
	w.cmd.Stderr = &w.stderr
	if err := errors.Join(w.cmd.Start(), out.Close()); err != nil {
		t.Fatal(err)
	}
	return w
}

// acked is the last step acknowledged, or 0.
func (w *writer) acked() uint64 {
	w.t.Helper()
	b, err := os.ReadFile(w.out)
	if err != nil {
		w.t.Fatal(err)
	}
	lines := strings.Fields(string(b[:bytes.LastIndexByte(b, '\n')+1]))
	if len(lines) == 0 {
		return 0
	}
	return lastStep(w.t, lines[len(lines)-1])
}

// stop returns when the process stands still: an fsync in the kernel is waited for.
func (w *writer) stop() {
	w.t.Helper()
	if err := w.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		w.t.Fatal(err)
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", w.cmd.Process.Pid))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, task := range tasks {
		for {
			b, err := os.ReadFile(task)
			if err != nil {
				break // the thread ended
			}
			if fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])); fields[0] == "T" || fields[0] == "Z" {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
}

func (w *writer) resume() {
	w.t.Helper()
	if err := w.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		w.t.Fatal(err)
	}
}

func (w *writer) kill() {
	_ = w.cmd.Process.Kill() // or it has ended
	_ = w.cmd.Wait()
}

// mountImage mounts an image until the returned function is called.
func mountImage(t *testing.T, image, dir string) (umount func()) {
	t.Helper()
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		notRun(t, fmt.Sprintf("mount %s: %v: %s", image, err, out))
	}
	return func() {
		t.Helper()
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Fatalf("umount: %v: %s", err, out)
		}
	}
}

// checkInChild checks a store in a process of its own, so that the file system can be unmounted.
func checkInChild(t *testing.T, dir string, acked uint64) {
	t.Helper()
	cmd := child(t, "check", dir)
	cmd.Env = append(cmd.Env, childAcked+"="+strconv.FormatUint(acked, 10))
	if err := cmd.Run(); err != nil {
		t.Errorf("the store with step %d acknowledged: %v", acked, err)
	}
}

// copyStill copies an image of which nothing changes meanwhile, as two equal reads show: the
// kernel's own threads may still write although the writer stands still.
func copyStill(t *testing.T, image, to string) {
	t.Helper()
	for range 20 {
		src, err := os.Open(image)
		if err != nil {
			t.Fatal(err)
		}
		dst, err := os.Create(to)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(dst, src)
		if err := errors.Join(err, src.Close(), dst.Close()); err != nil {
			t.Fatal(err)
		}
		a, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(to)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(a, b) {
			return
		}
	}
	t.Fatal("the image does not come to rest although the writer is stopped")
}

// TestPowerCuts copies the image of a mounted file system while the writer on it stands still:
// that is what a disk has when the power goes. What was acknowledged is in every copy.
func TestPowerCuts(t *testing.T) {
	race.Apart(t)
	if os.Getuid() != 0 {
		notRun(t, "only root can mount a file system")
	}
	const cuts = 20
	image, mounted, copied := ext4Image(t, 48<<20), t.TempDir(), t.TempDir()
	defer mountImage(t, image, mounted)()
	dir := filepath.Join(mounted, "store")
	w := startWriter(t, dir)
	defer func() { w.kill() }()
	begun := time.Now()
	acked := uint64(0)
	for i := range cuts {
		for before := w.acked(); w.acked() < before+5+rand.Uint64N(50); {
			time.Sleep(time.Duration(1+rand.IntN(5)) * time.Millisecond)
		}
		w.stop()
		acked = w.acked()
		cut := filepath.Join(t.TempDir(), "cut.img")
		copyStill(t, image, cut)
		if i%5 == 4 { // the next one is cut soon after a start
			w.kill()
			w = startWriter(t, dir)
		} else {
			w.resume()
		}
		umount := mountImage(t, cut, copied)
		checkInChild(t, filepath.Join(copied, "store"), acked)
		umount()
		if err := os.Remove(cut); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("%d power cuts in %s, %d steps acknowledged", cuts, time.Since(begun).Round(time.Second), acked)
}

// TestFailedFsync: the file system fails at some moment, and every fsync from then on. The store
// stops for good, and when it is opened on the file system mounted anew, all that was
// acknowledged is there.
func TestFailedFsync(t *testing.T) {
	if os.Getuid() != 0 {
		notRun(t, "only root can mount a file system")
	}
	image, mounted := ext4Image(t, 48<<20), t.TempDir()
	for range 5 {
		umount := mountImage(t, image, mounted)
		dir := filepath.Join(mounted, "store")
		w := startWriter(t, dir)
		for before := w.acked(); w.acked() < before+5+rand.Uint64N(50); {
			time.Sleep(time.Millisecond)
		}
		shutDown(t, mounted)
		timeout := time.AfterFunc(time.Minute, func() { _ = w.cmd.Process.Kill() })
		err := w.cmd.Wait()
		timeout.Stop()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(w.stderr.String(), "input/output error") {
			t.Errorf("the writer ended with %v, want an I/O error: %s", err, w.stderr.String())
		}
		t.Logf("after %d steps: %s", w.acked(), strings.TrimSpace(w.stderr.String()))
		umount()
		umount = mountImage(t, image, mounted)
		checkInChild(t, dir, w.acked())
		umount()
	}
}

// shutDown makes all I/O of a mounted ext4 fail from now on, and loses what was not synced.
func shutDown(t *testing.T, mounted string) {
	t.Helper()
	dir, err := os.Open(mounted)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	const extIOCShutdown, withoutFlush = 0x8004587d, 2
	if err := unix.IoctlSetPointerInt(int(dir.Fd()), extIOCShutdown, withoutFlush); err != nil {
		notRun(t, fmt.Sprintf("shut the file system down: %v", err))
	}
}

// TestTwoProcessesOnOneDirectory: the second is refused, whoever is first, and SIGKILL unlocks.
func TestTwoProcessesOnOneDirectory(t *testing.T) {
	h := newHarness(t, crashSegmentBytes)
	w := startWriter(t, h.dir)
	defer func() { w.kill() }()
	waitFor(t, func() bool { return w.acked() > 0 })
	if _, err := h.open(new(recovery).options()); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), strconv.Itoa(w.cmd.Process.Pid)) {
		t.Errorf("open beside process %d: got %v, want ErrLocked that names it", w.cmd.Process.Pid, err)
	}
	w.kill()
	s, _ := h.mustOpen()
	second := child(t, "append", h.dir)
	var stderr bytes.Buffer
	second.Stderr = &stderr
	if out, err := second.Output(); err == nil || len(out) > 0 || !strings.Contains(stderr.String(), ErrLocked.Error()) {
		t.Errorf("a second process: %v, acknowledged %q: %s", err, out, stderr.Bytes())
	}
	h.mustAppend(s, change("still works"))
}

func waitFor(t *testing.T, condition func() bool) {
	t.Helper()
	for range 10_000 {
		if condition() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("waited in vain")
}
