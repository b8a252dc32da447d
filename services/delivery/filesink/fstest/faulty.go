package fstest

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/spillwayio/spillway/services/delivery/filesink"
)

// ErrInjected is what a faulty file system fails with.
var ErrInjected = errors.New("injected fault")

// Fault is what becomes of one operation.
type Fault int

// None lets it be. Before fails it without effect, After once it has had its effect. Torn, of a write,
// fails it when half of the data is written; of anything else it is After. Denied is Before, with
// filesink.ErrDenied. Ended, of a write to a file that has something, is Before, with filesink.ErrEnded; of anything else it is None.
const (
	None Fault = iota
	Before
	After
	Torn
	Denied
	Ended
)

// Faulty passes operations on to FS, but for those that Decide has fail. Safe for concurrent use.
type Faulty struct {
	FS filesink.FS
	// Decide is called once an operation with its name (Write, Take, Rename, Size, Remove, Probe)
	// and path, one call at a time.
	Decide func(op, path string) Fault

	mu sync.Mutex
}

func (f *Faulty) do(op, path string, act func() error) error {
	f.mu.Lock()
	fault := f.Decide(op, path)
	f.mu.Unlock()
	failed := fmt.Errorf("%s %s: %w", op, path, ErrInjected)
	switch fault {
	case Before:
		return failed
	case Denied:
		return fmt.Errorf("%w: %w", filesink.ErrDenied, failed)
	case Ended:
		fault = None
	}
	if err := act(); err != nil || fault == None {
		return err
	}
	return failed
}

// Write implements filesink.FS.
func (f *Faulty) Write(ctx context.Context, path string, length int64, data []byte) error {
	f.mu.Lock()
	fault := f.Decide("Write", path)
	f.mu.Unlock()
	failed := fmt.Errorf("write %s: %w", path, ErrInjected)
	switch fault {
	case Before:
		return failed
	case Denied:
		return fmt.Errorf("%w: %w", filesink.ErrDenied, failed)
	case Ended:
		if length > 0 {
			return fmt.Errorf("%w: %w", filesink.ErrEnded, failed)
		}
		fault = None
	case Torn:
		data = data[:len(data)/2]
	}
	if err := f.FS.Write(ctx, path, length, data); err != nil || fault == None {
		return err
	}
	return failed
}

// Take implements filesink.FS.
func (f *Faulty) Take(ctx context.Context, from, alias string, length int64) error {
	return f.do("Take", from, func() error { return f.FS.Take(ctx, from, alias, length) })
}

// Rename implements filesink.FS.
func (f *Faulty) Rename(ctx context.Context, from, to string) error {
	return f.do("Rename", from, func() error { return f.FS.Rename(ctx, from, to) })
}

// Size implements filesink.FS.
func (f *Faulty) Size(ctx context.Context, path string) (size int64, err error) {
	err = f.do("Size", path, func() (err error) {
		size, err = f.FS.Size(ctx, path)
		return err
	})
	return size, err
}

// Remove implements filesink.FS.
func (f *Faulty) Remove(ctx context.Context, path string) error {
	return f.do("Remove", path, func() error { return f.FS.Remove(ctx, path) })
}

// Probe implements filesink.FS.
func (f *Faulty) Probe(ctx context.Context) error {
	return f.do("Probe", "", func() error { return f.FS.Probe(ctx) })
}

// Close implements filesink.FS.
func (f *Faulty) Close() error { return f.FS.Close() }
