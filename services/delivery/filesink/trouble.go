package filesink

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"
)

// maxDeniedDirs bounds how many directories are remembered that take nothing, deniedFor how long
// after the last try: it may be another instance that tries, and succeeds.
const (
	maxDeniedDirs = 1000
	deniedFor     = 5 * time.Minute
	// suspectTries and suspectAfter are how often and for how long no file can be begun in a
	// directory, while others take files, before it counts as denied. Both are high: a cluster
	// that fails at random must not look like it. Tries between which nothing took files do not
	// count, nor does the time between them: that is how an outage looks.
	suspectTries = 10
	suspectAfter = time.Minute
)

// trouble is a file system that fails for a while, as a whole or for some directories: one line
// in the log when it begins, one when it is over.
type trouble struct {
	log *slog.Logger

	mu       sync.Mutex
	err      error
	since    time.Time
	failures int
	dirs     map[string]*deniedDir
	suspects map[string]*suspect // by directory
	wrote    time.Time           // when a directory took something last
}

// suspect is a directory where no file can be begun, with errors that do not say whose fault it
// is.
type suspect struct {
	since, last time.Time // of the tries
	tries       int       // that count, and
	span        time.Duration
}

// deniedDir is a directory that takes nothing.
type deniedDir struct {
	err         error
	since, last time.Time
	failures    int
}

func (t *trouble) failed(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		t.since, t.failures = time.Now(), 0
		t.log.Warn("files cannot be written; retrying", "error", err)
	}
	t.err = err
	t.failures++
}

// over notes that the file system works, and says whether it did not before.
func (t *trouble) over() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		return false
	}
	t.log.Info("files can be written again", "failures", t.failures, "after", time.Since(t.since).Round(time.Millisecond))
	t.err = nil
	return true
}

// denied notes that a directory takes nothing.
func (t *trouble) denied(dir, rule string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	d := t.dirs[dir]
	if d == nil {
		t.forgetOldLocked(now)
		if len(t.dirs) >= maxDeniedDirs {
			return
		}
		d = &deniedDir{since: now}
		if t.dirs == nil {
			t.dirs = make(map[string]*deniedDir)
		}
		t.dirs[dir] = d
		t.log.Warn("a directory takes no files", "directory", dir, "on_denied", rule, "error", err)
	}
	d.err, d.last = err, now
	d.failures++
}

// refused notes that a file could not be begun in dir, or one that was begun not be removed. It
// returns err, or ErrDenied with err in it when the directory is at fault: no file system has a
// complete list of the names it refuses, so what goes on for long while others take files counts
// as denied, too.
func (t *trouble) refused(dir string, err error) error {
	if errors.Is(err, ErrDenied) || errors.Is(err, ErrExist) {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	s := t.suspects[dir]
	if s == nil {
		maps.DeleteFunc(t.suspects, func(_ string, s *suspect) bool { return now.Sub(s.last) > deniedFor })
		if len(t.suspects) >= maxDeniedDirs {
			return err
		}
		s = &suspect{since: now}
		if t.suspects == nil {
			t.suspects = make(map[string]*suspect)
		}
		t.suspects[dir] = s
	}
	if t.wrote.After(s.last) && !s.last.IsZero() {
		s.tries++
		s.span += now.Sub(s.last)
	}
	s.last = now
	if s.tries < suspectTries || s.span < suspectAfter {
		return err
	}
	return fmt.Errorf("%w: %d attempts to begin a file failed in %s, while other directories took files: %w", ErrDenied, s.tries, s.span.Round(time.Second), err)
}

// suspected says whether files cannot be begun in dir, and others can.
func (t *trouble) suspected(dir string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.suspects[dir]
	return s != nil && t.wrote.After(s.since)
}

// allowed notes that a directory took something.
func (t *trouble) allowed(dir string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wrote = time.Now()
	delete(t.suspects, dir)
	if d := t.dirs[dir]; d != nil {
		t.log.Info("a directory takes files again", "directory", dir, "failures", d.failures, "after", time.Since(d.since).Round(time.Millisecond))
		delete(t.dirs, dir)
	}
}

func (t *trouble) forgetOldLocked(now time.Time) {
	maps.DeleteFunc(t.dirs, func(_ string, d *deniedDir) bool { return now.Sub(d.last) > deniedFor })
}

// Err is the last failure, or what a directory was denied with; nil when all is well.
func (t *trouble) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err != nil {
		return t.err
	}
	t.forgetOldLocked(time.Now())
	var last *deniedDir
	for _, d := range t.dirs {
		if last == nil || d.last.After(last.last) {
			last = d
		}
	}
	if last == nil {
		return nil
	}
	return last.err
}
