package fstest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spillwayio/spillway/services/delivery/filesink"
)

// ErrInjected is what a faulty file system fails with.
var ErrInjected = errors.New("injected fault")

// Fault is what becomes of one operation.
type Fault int

// None lets it be. Before fails it without effect, After once it has had its effect: the answer
// is lost. Torn, of a commit, fails it when half of the data is written; of anything else it is
// After. Denied is Before, with filesink.ErrDenied. Ended, of a commit, has it succeed, after
// which the file ends by itself. Short, of a Take, has the file first lose what its tail has, as
// where HDFS recovers a torn chunk. Wait, of a Take, is Before with filesink.ErrWait, WaitAfter
// is After with it. Where one does not apply, it is None.
const (
	None Fault = iota
	Before
	After
	Torn
	Denied
	Ended
	Short
	Wait
	WaitAfter
)

// chunkBytes is how much a checksum of HDFS is of.
const chunkBytes = 512

// Faulty passes operations on to FS, but for those that Decide has fail. Safe for concurrent use.
type Faulty struct {
	FS filesink.FS
	// Decide is called once an operation with its name (Create, Commit, Close, Take, Rename,
	// Size, Remove, Probe) and path, one call at a time.
	Decide func(op, path string) Fault
	// Shorten takes the last bytes of a file away, by path and new length; nil: Short is None.
	Shorten func(path string, length int64) error

	mu sync.Mutex
}

func (f *Faulty) do(op, path string, act func(Fault) error) error {
	f.mu.Lock()
	fault := f.Decide(op, path)
	f.mu.Unlock()
	failed := fmt.Errorf("%s %s: %w", op, path, ErrInjected)
	switch fault {
	case Before:
		return failed
	case Denied:
		return fmt.Errorf("%w: %w", filesink.ErrDenied, failed)
	case Wait, WaitAfter:
		if op == "Take" {
			failed = fmt.Errorf("%w: %w", filesink.ErrWait, failed)
			break
		}
		fault = None
	}
	if fault == Wait {
		return failed
	}
	if err := act(fault); err != nil || fault == None || fault == Ended || fault == Short {
		return err
	}
	return failed
}

// Create implements filesink.FS.
func (f *Faulty) Create(ctx context.Context, path string, notify func()) (filesink.File, error) {
	var made filesink.File
	err := f.do("Create", path, func(Fault) (err error) {
		made, err = f.FS.Create(ctx, path, notify)
		return err
	})
	if err != nil {
		if made != nil {
			made.Abandon()
		}
		return nil, err
	}
	return &faultyFile{File: made, fs: f, path: path, notify: notify}, nil
}

// faultyFile keeps a tail as a file on HDFS has one.
type faultyFile struct {
	filesink.File
	fs     *Faulty
	path   string
	notify func()
	length int64
	tail   []byte

	mu    sync.Mutex
	ended error
}

// Commit implements filesink.File.
func (f *faultyFile) Commit(ctx context.Context, data []byte) error {
	if err := f.Err(); err != nil {
		return err
	}
	err := f.fs.do("Commit", f.path, func(fault Fault) error {
		if fault == Torn {
			data = data[:len(data)/2]
		}
		err := f.File.Commit(ctx, data)
		if fault == Ended && err == nil {
			f.end(ErrInjected)
		}
		return err
	})
	if err != nil {
		f.end(err)
		return err
	}
	f.length += int64(len(data))
	all := append(f.tail, data...)
	f.tail = append([]byte(nil), all[int64(len(all))-f.length%chunkBytes:]...)
	return nil
}

// end is what a connection that breaks does.
func (f *faultyFile) end(err error) {
	f.File.Abandon()
	f.mu.Lock()
	f.ended = err
	f.mu.Unlock()
	f.notify()
}

// Close implements filesink.File.
func (f *faultyFile) Close(ctx context.Context) error {
	if err := f.Err(); err != nil {
		return err
	}
	return f.fs.do("Close", f.path, func(Fault) error { return f.File.Close(ctx) })
}

// Tail implements filesink.File.
func (f *faultyFile) Tail() []byte { return f.tail }

// Err implements filesink.File.
func (f *faultyFile) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended != nil {
		return f.ended
	}
	return f.File.Err()
}

// RollAt implements filesink.File.
func (f *faultyFile) RollAt() time.Time { return f.File.RollAt() }

// Take implements filesink.FS.
func (f *Faulty) Take(ctx context.Context, t filesink.Taking) error {
	return f.do("Take", t.From, func(fault Fault) error {
		if fault == Short && f.Shorten != nil {
			if err := f.tear(ctx, t); err != nil {
				return err
			}
		}
		return f.FS.Take(ctx, t)
	})
}

// tear has a file lose its last chunk where that was begun, as it does for its tail, and what was
// mended of it before.
func (f *Faulty) tear(ctx context.Context, t filesink.Taking) error {
	for _, path := range []string{t.Alias, t.From} {
		size, err := f.FS.Size(ctx, path)
		if errors.Is(err, filesink.ErrNotExist) {
			continue
		}
		if whole := t.Length / chunkBytes * chunkBytes; err == nil && size >= t.Length && size > whole {
			err = f.Shorten(path, whole)
		}
		return err
	}
	return nil
}

// Rename implements filesink.FS.
func (f *Faulty) Rename(ctx context.Context, from, to string) error {
	return f.do("Rename", from, func(Fault) error { return f.FS.Rename(ctx, from, to) })
}

// Size implements filesink.FS.
func (f *Faulty) Size(ctx context.Context, path string) (size int64, err error) {
	err = f.do("Size", path, func(Fault) (err error) {
		size, err = f.FS.Size(ctx, path)
		return err
	})
	return size, err
}

// Remove implements filesink.FS.
func (f *Faulty) Remove(ctx context.Context, path string) error {
	return f.do("Remove", path, func(Fault) error { return f.FS.Remove(ctx, path) })
}

// Probe implements filesink.FS.
func (f *Faulty) Probe(ctx context.Context) error {
	return f.do("Probe", "", func(Fault) error { return f.FS.Probe(ctx) })
}

// Close implements filesink.FS.
func (f *Faulty) Close() error { return f.FS.Close() }

// WriteFile makes a file on fs with these commits, and closes it.
func WriteFile(ctx context.Context, fs filesink.FS, path string, commits ...[]byte) error {
	f, err := fs.Create(ctx, path, func() {})
	if err != nil {
		return err
	}
	defer f.Abandon()
	for _, data := range commits {
		if err := f.Commit(ctx, data); err != nil {
			return err
		}
	}
	return f.Close(ctx)
}
