package backoff

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/status"
)

// Trouble is one thing that may fail for a while. It is logged when it begins, when its cause
// changes, and when it is over, with how long it lasted. All methods except Failed may be called
// by any goroutine, Failed by one.
type Trouble struct {
	log       *slog.Logger
	what      string // as in "cannot reach the buffer"
	recovered string // as in "the buffer can be reached again"
	wait      Backoff

	mu       sync.Mutex
	err      error           // nil when all is well
	causes   map[string]bool // that were logged since it began
	since    time.Time
	failures int
}

// NewTrouble names a trouble, as in "cannot reach the buffer", and its end, as in "the buffer can
// be reached again". Delays go from 0.2 to 5 s.
func NewTrouble(log *slog.Logger, what, recovered string) *Trouble {
	return &Trouble{log: log, what: what, recovered: recovered, wait: Backoff{Initial: 200 * time.Millisecond, Max: 5 * time.Second}}
}

// Failed notes a failure and waits before the next attempt. It returns ctx's error when ctx ends
// first.
func (t *Trouble) Failed(ctx context.Context, err error) error {
	t.Note(err)
	return t.wait.Wait(ctx)
}

// Note notes a failure, for a caller that waits by itself.
func (t *Trouble) Note(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		t.since, t.failures = time.Now(), 0
		t.causes = make(map[string]bool)
		t.wait.Reset()
	}
	if cause := causeOf(err); !t.causes[cause] && len(t.causes) < maxCauses {
		t.causes[cause] = true
		t.log.Warn(t.what+"; retrying", "error", err)
	}
	t.err = err
	t.failures++
}

// maxCauses bounds the lines that one trouble logs before it is over.
const maxCauses = 8

// causeOf is what the innermost error says, which has no offsets and addresses in it in most
// cases; the code alone of one that came by gRPC.
func causeOf(err error) string {
	if s, ok := status.FromError(err); ok {
		return s.Code().String()
	}
	for {
		inner := errors.Unwrap(err)
		if joined, ok := err.(interface{ Unwrap() []error }); ok && len(joined.Unwrap()) > 0 {
			inner = joined.Unwrap()[0]
		}
		if inner == nil {
			return err.Error()
		}
		err = inner
	}
}

// Over notes a success.
func (t *Trouble) Over() { t.end("recovered: " + t.recovered) }

// GivenUp notes that what failed is no longer tried, without a success.
func (t *Trouble) GivenUp() { t.end("given up: " + t.what + ", and no longer tried here") }

func (t *Trouble) end(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err == nil {
		return
	}
	t.log.Info(line, "lasted", time.Since(t.since).Round(time.Millisecond), "failures", t.failures)
	t.err = nil
}

// Err is the last failure; nil when all is well.
func (t *Trouble) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}
