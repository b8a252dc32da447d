package telemetry

import (
	"io"
	"sync"
	"time"
)

// maxWaitingBytes bounds the lines that wait for a writer that is slow.
const maxWaitingBytes = 1 << 20

// Lines passes what is written to it on to another writer, from a goroutine of its own, which
// ends when there is nothing left. It never blocks: stderr can be a pipe that nobody reads.
// Beyond 1 MiB, it drops what is written, and counts that.
type Lines struct {
	to io.Writer

	mu      sync.Mutex
	waiting [][]byte // one for each Write
	bytes   int      // of waiting
	dropped int
	tell    func(dropped int) // writes to to how many were dropped; may be nil
	idle    chan struct{}     // closed when nothing waits; nil while nothing is passed on
}

// NewLines returns Lines that pass on to w, which nobody else should write to.
func NewLines(w io.Writer) *Lines { return &Lines{to: w} }

// Write takes over a line, or several, as a whole. It keeps a copy, and never fails.
func (l *Lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bytes+len(p) > maxWaitingBytes && l.bytes > 0 {
		l.dropped++
		return len(p), nil
	}
	l.waiting = append(l.waiting, append([]byte(nil), p...))
	l.bytes += len(p)
	if l.idle == nil {
		l.idle = make(chan struct{})
		go l.pass()
	}
	return len(p), nil
}

// pass passes on until there is nothing left. What is being written counts as waiting.
func (l *Lines) pass() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.waiting) > 0 {
		line := l.waiting[0]
		l.mu.Unlock()
		_, _ = l.to.Write(line) // nobody is left to tell
		l.mu.Lock()
		l.waiting[0] = nil
		l.waiting = l.waiting[1:]
		l.bytes -= len(line)
		if dropped := l.dropped; len(l.waiting) == 0 && dropped > 0 && l.tell != nil {
			l.dropped = 0
			l.mu.Unlock()
			l.tell(dropped)
			l.mu.Lock()
		}
	}
	close(l.idle)
	l.idle = nil
}

// Flush waits until all is passed on, but no longer than most, and says whether it is.
func (l *Lines) Flush(most time.Duration) bool {
	l.mu.Lock()
	idle := l.idle
	l.mu.Unlock()
	if idle == nil {
		return true
	}
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-idle:
		return true
	case <-timer.C:
		return false
	}
}
