package filesink

import (
	"log/slog"
	"maps"
	"sync"
	"time"
)

// maxDeniedDirs bounds how many directories are remembered that take nothing, deniedFor how long after the last
// try: it may be another instance that tries, and succeeds.
const (
	maxDeniedDirs = 1000
	deniedFor     = 5 * time.Minute
)

// trouble is a file system that fails for a while, as a whole or for some directories: one line in the log when it
// begins, one when it is over.
type trouble struct {
	log *slog.Logger

	mu       sync.Mutex
	err      error
	since    time.Time
	failures int
	dirs     map[string]*deniedDir
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

func (t *trouble) over() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		return
	}
	t.log.Info("files can be written again", "failures", t.failures, "after", time.Since(t.since).Round(time.Millisecond))
	t.err = nil
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

// allowed notes that a directory took something.
func (t *trouble) allowed(dir string) {
	t.mu.Lock()
	defer t.mu.Unlock()
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
