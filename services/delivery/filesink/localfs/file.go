package localfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/spillwayio/spillway/services/internal/failpoint"
)

// file is a filesink.File.
type file struct {
	fs   *FS
	name string

	mu     sync.Mutex
	file   *os.File // nil once it is closed
	length int64
	err    error // why it takes nothing more
}

var errClosed = errors.New("the file is closed")

// Commit implements filesink.File.
func (f *file) Commit(ctx context.Context, data []byte) error {
	return f.use(ctx, "commit", func() error {
		if err := f.append(data); err != nil {
			return err
		}
		return f.unlock()
	})
}

// use does something with the file unless it failed or was closed. An error is the last thing
// that is done.
func (f *file) use(ctx context.Context, what string, do func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	if err := do(); err != nil {
		f.err = wrap(what, f.name, err)
		f.closeLocked()
	}
	return f.err
}

// append writes at the end, under a lock that ends with the file or unlock.
func (f *file) append(data []byte) error {
	if held, err := lock(f.file); err != nil {
		return err
	} else if !held {
		return errors.New("somebody else is at work on the file")
	}
	// Whoever takes the file renames it first and locks it then. One that is no longer here when
	// it is locked has been taken, and is not to be written to.
	info, err := f.here()
	if err != nil {
		return err
	}
	if info.Size() != f.length {
		return fmt.Errorf("it has %d bytes, want %d", info.Size(), f.length)
	}
	if _, err := f.file.WriteAt(data, f.length); err != nil {
		return err
	}
	failpoint.At(failpoint.FSWritten)
	if err := f.file.Sync(); err != nil {
		return err
	}
	f.length += int64(len(data))
	return nil
}

func (f *file) unlock() error { return flock(f.file, syscall.LOCK_UN) }

// here is an error unless the file has its name still.
func (f *file) here() (os.FileInfo, error) {
	info, err := f.file.Stat()
	if err != nil {
		return nil, err
	}
	at, err := f.fs.root.Lstat(f.name)
	if err == nil && !os.SameFile(info, at) {
		err = fmt.Errorf("it was taken: %w", fs.ErrNotExist)
	}
	return info, err
}

// Close implements filesink.File.
func (f *file) Close(ctx context.Context) error {
	err := f.use(ctx, "close", func() error {
		if _, err := f.here(); err != nil {
			return err
		}
		return f.file.Close()
	})
	if err == nil {
		f.mu.Lock()
		f.file, f.err = nil, errClosed
		f.mu.Unlock()
		failpoint.At(failpoint.FSClosed)
	}
	return err
}

// Abandon implements filesink.File.
func (f *file) Abandon() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closeLocked()
	if f.err == nil {
		f.err = errClosed
	}
}

func (f *file) closeLocked() {
	if f.file != nil {
		_ = f.file.Close() // what was committed is synced
		f.file = nil
	}
}

// Tail implements filesink.File.
func (f *file) Tail() []byte { return nil }

// Err implements filesink.File.
func (f *file) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// RollAt implements filesink.File.
func (f *file) RollAt() time.Time { return time.Time{} }

// lock locks the file against other openings of it, in this process and others, until it is
// closed or unlocked. False is: somebody else has it.
func lock(file *os.File) (bool, error) {
	err := flock(file, syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

func flock(file *os.File, how int) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var locking error
	err = conn.Control(func(fd uintptr) {
		for {
			if locking = syscall.Flock(int(fd), how); locking != syscall.EINTR {
				return
			}
		}
	})
	if err == nil && locking != nil {
		err = fmt.Errorf("lock: %w", locking)
	}
	return err
}
