package buffer

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
)

// mount mounts what the test unmounts at the latest at its end.
func mount(t *testing.T, source, target, kind string, flags uintptr) error {
	t.Helper()
	err := syscall.Mount(source, target, kind, flags, "")
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		t.Skipf("NOT TESTED, what a buffer does whose data_dir is unmounted: mounting wants root with CAP_SYS_ADMIN: %v", err)
	}
	if err == nil {
		t.Cleanup(func() { _ = syscall.Unmount(target, syscall.MNT_DETACH) })
	}
	return err
}

// TestDataDirectoryIsUnmounted unmounts the directory under a running buffer as umount -l does,
// and mounts it again.
func TestDataDirectoryIsUnmounted(t *testing.T) {
	for _, idle := range []bool{true, false} {
		disk, dir := t.TempDir(), t.TempDir()
		again := func() error { return mount(t, disk, dir, "", syscall.MS_BIND) }
		if err := again(); err != nil {
			t.Fatal(err)
		}
		loseDirectory(t, dir, idle, func() error { return syscall.Unmount(dir, syscall.MNT_DETACH) }, again)
	}
}

// TestAnotherDiskIsMounted: where an empty file system takes the directory's place, the queue does
// not begin anew by itself. That is told, and a restart is the way out.
func TestAnotherDiskIsMounted(t *testing.T) {
	dir := t.TempDir()
	empty := func() {
		if err := mount(t, "tmpfs", dir, "tmpfs", 0); err != nil {
			t.Fatal(err)
		}
	}
	empty()
	var log lines
	r := start(t, dir, func(_ *config.Queue, deps *Deps) { deps.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	in := r.appendStream()
	r.appended(in, batch("t", 0, 10, "v"))
	if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	empty()
	r.awaitReady(false)
	log.await(t, "removed, replaced or unmounted")
	time.Sleep(time.Second / 2) // it is opened again and again
	if _, err := os.Stat(filepath.Join(dir, "c")); !os.IsNotExist(err) {
		t.Errorf("the queue began anew on another disk: %v", err)
	}
	r.stop()
	r = start(t, dir, nil)
	if a := r.appended(r.appendStream(), batch("t", 10, 20, "v")); a.Status.GetCode() != int32(codes.OK) {
		t.Errorf("after a restart: %v", a)
	}
	if s, err := spillwayv1.NewBufferAdminServiceClient(r.conn).GetSubscription(t.Context(), &spillwayv1.GetSubscriptionRequest{Name: "c/all"}); err != nil || s.Subscription.PendingRecords != 10 {
		t.Errorf("%v, %v", s, err)
	}
}
