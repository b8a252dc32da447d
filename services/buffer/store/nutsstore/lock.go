package nutsstore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// ErrLocked means that another store, in this process or another, has the directory open.
var ErrLocked = errors.New("store is in use")

// lockDir takes the directory's lock until the file is closed or the process ends. It does not
// wait.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := takeLock(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	// The pid is for the message above; the lock holds without it.
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
	}
	return f, nil
}

// takeLock takes the lock of an open file, and does not wait for it.
func takeLock(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		holder, _ := io.ReadAll(io.LimitReader(f, 32)) // only to tell
		return fmt.Errorf("%w: process %s has %s open; a data directory is one buffer's, so buffers cannot be scaled, and another one needs another directory", ErrLocked, holder, f.Name())
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return nil
}
