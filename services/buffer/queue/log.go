package queue

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// maxLogLines bounds how many lines wait for a log that is slow.
const maxLogLines = 1000

// logLines passes log lines on from a goroutine of its own, which ends when there are none. So
// whoever logs with the queue's lock held waits for nobody: a log can be a pipe that nobody
// reads.
type logLines struct {
	mu      sync.Mutex
	waiting []logLine
	dropped int
	last    slog.Handler  // of the newest line that was dropped
	idle    chan struct{} // closed when nothing waits; nil while nobody passes lines on
}

type logLine struct {
	to     slog.Handler
	record slog.Record
}

// logHandler is a slog.Handler that adds to lines.
type logHandler struct {
	to    slog.Handler
	lines *logLines
}

// newLog returns a logger that never blocks, and passes its lines on to log in order.
func newLog(log *slog.Logger) (*slog.Logger, *logLines) {
	lines := &logLines{}
	return slog.New(&logHandler{log.Handler(), lines}), lines
}

// Enabled implements slog.Handler.
func (h *logHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.to.Enabled(ctx, level)
}

// WithAttrs implements slog.Handler.
func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logHandler{h.to.WithAttrs(attrs), h.lines}
}

// WithGroup implements slog.Handler.
func (h *logHandler) WithGroup(name string) slog.Handler {
	return &logHandler{h.to.WithGroup(name), h.lines}
}

// Handle implements slog.Handler. It drops the line when too many wait already.
func (h *logHandler) Handle(_ context.Context, r slog.Record) error {
	l := h.lines
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) == maxLogLines {
		l.dropped++
		l.last = h.to
		return nil
	}
	l.waiting = append(l.waiting, logLine{h.to, r.Clone()})
	if l.idle == nil {
		l.idle = make(chan struct{})
		go l.pass()
	}
	return nil
}

// pass passes lines on until there are none.
func (l *logLines) pass() {
	for {
		l.mu.Lock()
		if len(l.waiting) == 0 && l.dropped == 0 {
			close(l.idle)
			l.idle = nil
			l.mu.Unlock()
			return
		}
		lines, dropped, last := l.waiting, l.dropped, l.last
		l.waiting, l.dropped, l.last = nil, 0, nil
		l.mu.Unlock()
		for _, line := range lines {
			_ = line.to.Handle(context.Background(), line.record) // nobody is left to tell
		}
		if dropped > 0 {
			slog.New(last).Warn("the log was too slow; lines were dropped", "lines", dropped)
		}
	}
}

// flush waits until all lines are passed on, at most for a time.
func (l *logLines) flush(most time.Duration) {
	l.mu.Lock()
	idle := l.idle
	l.mu.Unlock()
	if idle == nil {
		return
	}
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-idle:
	case <-timer.C:
	}
}
