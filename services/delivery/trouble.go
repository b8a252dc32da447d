package delivery

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spillwayio/spillway/services/internal/backoff"
)

// trouble is one thing that may fail for a while: it is logged when it begins, when its cause
// changes, and when it is over.
type trouble struct {
	log  *slog.Logger
	what string // as in "cannot reach the buffer"
	wait backoff.Backoff

	mu       sync.Mutex
	err      error // nil when all is well
	code     codes.Code
	since    time.Time
	failures int
}

func newTrouble(log *slog.Logger, what string) *trouble {
	return &trouble{log: log, what: what, wait: backoff.Backoff{Initial: 200 * time.Millisecond, Max: 5 * time.Second}}
}

// failed notes a failure and waits before the next attempt. It returns ctx's error when ctx ends first.
func (t *trouble) failed(ctx context.Context, err error) error {
	t.mu.Lock()
	code := status.Code(err)
	if t.err == nil || code != t.code {
		t.log.Warn(t.what+"; retrying", "error", err)
	}
	if t.err == nil {
		t.since, t.failures = time.Now(), 0
		t.wait.Reset()
	}
	t.err, t.code = err, code
	t.failures++
	t.mu.Unlock()
	return t.wait.Wait(ctx)
}

// over notes a success.
func (t *trouble) over() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		return
	}
	t.log.Info("over: "+t.what, "failures", t.failures, "after", time.Since(t.since).Round(time.Millisecond))
	t.err = nil
}

// Err is the last failure; nil when all is well.
func (t *trouble) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}
