package filesink

import (
	"context"
	"sync"
)

// opened are the files that a session has open. It lets go of all of them when the session is
// lost: whoever inherits them must not meet their writer.
type opened struct {
	fs      FS
	changed chan struct{} // has room for one: the state of a file changed by itself

	mu    sync.Mutex
	files map[File]struct{}
	ended bool
}

func newOpened(fs FS) *opened {
	return &opened{fs: fs, changed: make(chan struct{}, 1), files: make(map[File]struct{})}
}

func (o *opened) create(ctx context.Context, path string) (File, error) {
	f, err := o.fs.Create(ctx, path, o.notify)
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	ended := o.ended
	if !ended {
		o.files[f] = struct{}{}
	}
	o.mu.Unlock()
	if ended {
		f.Abandon()
		return nil, errLetGo
	}
	return f, nil
}

func (o *opened) notify() {
	select {
	case o.changed <- struct{}{}:
	default:
	}
}

func (o *opened) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.files)
}

// letGo abandons f, unless it is closed.
func (o *opened) letGo(f File) {
	if f == nil {
		return
	}
	o.mu.Lock()
	delete(o.files, f)
	o.mu.Unlock()
	f.Abandon()
}

// end lets go of all files, and of those that are still being created.
func (o *opened) end() {
	o.mu.Lock()
	files := o.files
	o.files, o.ended = nil, true
	o.mu.Unlock()
	for f := range files {
		f.Abandon()
	}
}
