package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/spillwayio/spillway/services/internal/config"
)

// disks are the directories of DataNodes on file systems of their own, whose power can be cut.
type disks struct {
	t      *testing.T
	images map[string]string // by mount point
}

// newDisks mounts an ext4 for each DataNode of a cluster that is not started yet. It skips the
// test where that is not allowed.
func newDisks(t *testing.T, c *cluster, n int) *disks {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("NOT RUN: needs root, to mount file systems")
	}
	d := &disks{t: t, images: make(map[string]string)}
	for i := range n {
		dir, image := c.file(fmt.Sprintf("data%d", i+1)), filepath.Join(t.TempDir(), "image")
		for _, args := range [][]string{{"mkdir", "-p", dir}, {"truncate", "-s", "3G", image}, {"mkfs.ext4", "-q", "-F", image}} {
			d.run(args...)
		}
		if err := d.mount(dir, image); err != nil {
			t.Skipf("NOT RUN: cannot mount a file system: %v", err)
		}
		d.images[dir] = image
	}
	return d
}

func (d *disks) run(args ...string) {
	d.t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		d.t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

// mount has the kernel write nothing out by itself for minutes.
func (d *disks) mount(dir, image string) error {
	out, err := exec.Command("mount", "-o", "loop,commit=300", image, dir).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return err
}

// detach unmounts all, also when they are in use.
func (d *disks) detach() {
	for dir := range d.images {
		_ = syscall.Unmount(dir, syscall.MNT_DETACH) // it may be unmounted
	}
}

// cut has the file systems do what a power cut does: what was not written to the device is gone.
// It is ext4's own way to test that (EXT4_IOC_SHUTDOWN without flushing the journal).
func (d *disks) cut() {
	d.t.Helper()
	const shutdown, noFlush = 0x8004587d, 2
	var wg sync.WaitGroup
	for dir := range d.images {
		wg.Go(func() {
			f, err := os.Open(dir)
			if err != nil {
				d.t.Error(err)
				return
			}
			defer f.Close()
			flags := uint32(noFlush)
			if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), shutdown, uintptr(unsafe.Pointer(&flags))); errno != 0 {
				d.t.Errorf("cut %s off: %v", dir, errno)
			}
		})
	}
	wg.Wait()
}

// back mounts all again after a cut. Nobody may use them.
func (d *disks) back() {
	d.t.Helper()
	for dir, image := range d.images {
		eventually(d.t, 30*time.Second, "the file system is unmounted", func() error { return syscall.Unmount(dir, 0) })
		if err := d.mount(dir, image); err != nil {
			d.t.Fatal(err)
		}
	}
}

// TestPowerCut: the power of all DataNodes is cut at once, again and again, while small commits
// go on. With sync: disk all that was committed is there in the end; with flush it is not, which
// shows that what was not synced is really gone.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	port, err := hdfsPorts(heldNodes)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{run: stack.run, port: port, env: []string{"HDFS_REPLICATION=3", "HDFS_PERMISSIONS=false"}}
	d := newDisks(t, c, heldNodes)
	t.Cleanup(func() {
		d.detach() // else their files could not be removed
		if err := c.script("hdfs-stop", "--wipe"); err != nil {
			t.Errorf("stop the HDFS of the test: %v", err)
		}
	})
	if err := c.script("hdfs-start", strconv.Itoa(heldNodes), strconv.Itoa(port)); err != nil {
		t.Fatal(err)
	}
	h := &held{cluster: c, t: t}
	h.fs = h.view(nil)
	random := seeded(t)
	powerCut := func(f *heldFile, n int) {
		t.Helper()
		f.mustCommit(n)
		ended := make(chan error, 1)
		go func() { ended <- f.untilItFails(n) }()
		pause(t, time.Duration(200+random.IntN(800))*time.Millisecond)
		d.cut()
		h.signalNodes(syscall.SIGKILL, allNodes()...)
		err := <-ended
		t.Logf("%d bytes were committed; %v", len(f.committed), err)
		f.Abandon()
		d.back()
		h.restartNodes(allNodes()...)
	}
	f := h.open(h.fs, "flush")
	powerCut(f, 300)
	err = takeWithin(t, h.fs, f.taking(time.Now()), 20*time.Second)
	t.Logf("with sync: flush: %v", err)
	if err == nil || !strings.Contains(err.Error(), "fewer than") {
		t.Error("with sync: flush nothing was lost: this test shows nothing")
	}
	for i, n := range []int{300, 511, 70_001} {
		f := h.open(h.view(func(c *config.HDFS) { c.Sync = "disk" }), fmt.Sprintf("disk-%d", i))
		powerCut(f, n)
		f.take(3 * time.Minute)
	}
}
