package filesink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"time"
)

// A file that cannot be finished (it was removed, a block of it is lost, nobody can read its
// entry) must not hold back the time of all directories for ever. So after a while it is
// released: first its directory gets an _INCOMPLETE, which keeps every session from marking it as
// complete, then the entry holds back nothing any more. The file is tried further on. When it is
// finished, the _INCOMPLETE goes.

const (
	incompleteName = "_INCOMPLETE"
	// stuckAfter is how long a file may fail to be finished before it is released, while the file
	// system works otherwise. One that is missing, denied or unreadable is released at once.
	stuckAfter = 5 * time.Minute
	// probeEvery is how often the file system is asked whether it works, while files fail.
	probeEvery = 10 * time.Second
)

// hold is what an entry holds back, also one that a newer version wrote.
type hold struct {
	Final string `json:"final"`
	DueMs int64  `json:"due"`
}

// hold returns what the file holds back. Nothing is known of an entry that is no JSON: its Final
// is "".
func (o *orphan) hold() hold {
	h := hold{o.entry.Final, o.entry.DueMs}
	if o.raw != nil && (json.Unmarshal(o.raw, &h) != nil || !absolute(h.Final)) {
		return hold{DueMs: 1}
	}
	return h
}

// dir returns the directory of the file, and "" when it is unknown.
func (o *orphan) dir() string {
	if final := o.hold().Final; final != "" {
		return path.Dir(final)
	}
	return ""
}

// stuck releases a file that failed with err, when it is time for that, and returns err.
func (a *adopter) stuck(ctx context.Context, o *orphan, err error) error {
	answers := a.answersFor(ctx)
	hopeless := o.raw != nil || errors.Is(err, errMissing) || errors.Is(err, ErrDenied) ||
		o.attempts > 0 && min(answers, time.Since(o.failing)) >= stuckAfter
	if !hopeless || o.hold().DueMs == 0 {
		return err
	}
	if failed := a.release(ctx, o); failed != nil {
		return fmt.Errorf("%w (and it holds back _SUCCESS: %w)", err, failed)
	}
	return err
}

// answersFor is for how long the file system has answered, as far as it was asked. When it was
// away as a whole, nothing is wrong with a file that it did not finish.
func (a *adopter) answersFor(ctx context.Context) time.Duration {
	a.mu.Lock()
	due := time.Since(a.probed) >= probeEvery
	if due {
		a.probed = time.Now()
	}
	a.mu.Unlock()
	if due {
		err := a.v.sink.fs.Probe(ctx)
		a.mu.Lock()
		if err != nil {
			a.answers = time.Time{}
		} else if a.answers.IsZero() {
			a.answers = time.Now()
		}
		a.mu.Unlock()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.answers.IsZero() {
		return 0
	}
	return time.Since(a.answers)
}

// release marks the directory of o as incomplete, again where somebody removed the mark, and has
// the entry hold back nothing.
func (a *adopter) release(ctx context.Context, o *orphan) error {
	dir, marked := o.dir(), false
	if dir != "" {
		err := a.mark(ctx, o, path.Join(dir, incompleteName))
		if err != nil && !errors.Is(err, ErrExist) && !errors.Is(err, ErrDenied) { // where it is denied, so is _SUCCESS
			return err
		}
		a.mu.Lock()
		if err == nil {
			a.marked[dir] = true
		}
		marked = a.marked[dir]
		a.mu.Unlock()
	}
	if err := a.v.alive(ctx); err != nil {
		return err
	}
	if !o.entry.Released || marked && !o.entry.Marked {
		next := o.entry
		next.Released, next.Marked = true, next.Marked || marked
		if err := a.put(ctx, o, next); err != nil {
			return err
		}
	}
	return nil
}

// mark makes the mark of an incomplete directory. That it is about to is put in the entry before,
// as an error, or a crash, may come when it is made. It fails with ErrExist where another made
// it.
func (a *adopter) mark(ctx context.Context, o *orphan, path string) error {
	if !o.entry.Marked && o.raw == nil {
		_, err := a.v.sink.fs.Size(ctx, path)
		if err == nil {
			return ErrExist
		}
		if !errors.Is(err, ErrNotExist) {
			return err
		}
		next := o.entry
		next.Marked = true
		if err := a.put(ctx, o, next); err != nil {
			return err
		}
	}
	if err := a.v.alive(ctx); err != nil {
		return err
	}
	err := a.v.sink.touch(ctx, path)
	if errors.Is(err, ErrExist) && o.entry.Marked {
		return nil
	}
	return err
}

// unmark removes the mark of the directory of a file that is finished, if it is ours and no other
// file needs it.
func (a *adopter) unmark(ctx context.Context, o *orphan) error {
	if !o.entry.Marked {
		return nil
	}
	dir := o.dir()
	a.mu.Lock()
	others := a.released[dir] > 1 || a.released[dir] == 1 && !o.entry.Released
	a.mu.Unlock()
	if others {
		return nil
	}
	if err := a.v.sink.fs.Remove(ctx, path.Join(dir, incompleteName)); err != nil && !errors.Is(err, ErrDenied) {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.marked, dir)
	return nil
}

// noteLocked counts the released files of a directory.
func (a *adopter) noteLocked(o *orphan, was, is entry) {
	dir := o.dir()
	switch {
	case is.Released && !was.Released:
		a.released[dir]++
	case was.Released && !is.Released:
		if a.released[dir]--; a.released[dir] == 0 {
			delete(a.released, dir)
		}
	}
	if is.Marked {
		a.marked[dir] = true
	}
}

// files lists the files that are not finished, with what is in their way.
func (a *adopter) files() []openFile {
	a.mu.Lock()
	defer a.mu.Unlock()
	files := make([]openFile, 0, len(a.all))
	for _, o := range a.all {
		f := openFile{key: o.key, inUse: o.entry.InUse, final: o.entry.Final, bytes: o.entry.Committed, records: o.entry.Records, failing: o.failing}
		if o.raw != nil {
			f.inUse, f.final = "unknown, as its entry cannot be read: "+o.key, o.hold().Final
		}
		if o.err != nil {
			f.trouble = o.err.Error()
		}
		files = append(files, f)
	}
	return files
}

// Err returns why a file that should be final is not, when one is stuck.
func (a *adopter) Err() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var oldest *orphan
	n := 0
	for _, o := range a.all {
		if o.err == nil || !o.entry.Released && time.Since(o.failing) < stuckAfter && !errors.Is(o.err, errMissing) {
			continue
		}
		n++
		if oldest == nil || o.failing.Before(oldest.failing) {
			oldest = o
		}
	}
	if oldest == nil {
		return nil
	}
	return fmt.Errorf("%d files cannot be finished (ListOpenFiles names them), the oldest being %s: %w", n, oldest.entry.InUse, oldest.err)
}
