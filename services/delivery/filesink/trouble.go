package filesink

import (
	"log/slog"
	"sync"
	"time"
)

// trouble is a file system that fails for a while: one line in the log when it begins, one when it
// is over.
type trouble struct {
	log *slog.Logger

	mu       sync.Mutex
	err      error
	since    time.Time
	failures int
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

// Err is the last failure; nil when all is well.
func (t *trouble) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}
