package kafkasink

import (
	"fmt"
	"sync"
	"time"
)

const (
	// wantedMute is how long a broker should mute this client at most for one request that
	// exceeds a quota.
	wantedMute = 3 * time.Second
	// firstAllowance is the size of the first requests. They are small because the quota is not
	// known yet: a broker before Kafka 2.0 delays its answer by the throttle time, which must not
	// look like an answer that is lost.
	firstAllowance = 128 << 10
	minAllowance   = 16 << 10
	maxAllowance   = 16 << 20
)

// allowance is how many bytes, before compression, one request to a broker, or one transaction,
// may have. It grows while the brokers' answers name no throttle time, and shrinks to what keeps
// these times short.
type allowance struct {
	mu    sync.Mutex
	bytes int
	worst time.Duration // the longest throttle time of late
}

func newAllowance() *allowance { return &allowance{bytes: firstAllowance} }

// now returns the allowance.
func (a *allowance) now() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bytes
}

// longest returns the longest throttle time of late.
func (a *allowance) longest() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.worst
}

// heard takes in the throttle time of an answer to a request of a size.
func (a *allowance) heard(size int, throttled time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.worst = max(throttled, a.worst-a.worst/8)
	switch {
	case throttled > wantedMute:
		a.bytes = max(minAllowance, min(a.bytes, int(float64(size)*float64(wantedMute)/float64(throttled))))
	case size < a.bytes/2: // tells nothing about larger ones
	case throttled == 0:
		a.bytes = min(2*a.bytes, maxAllowance)
	case throttled < wantedMute/2:
		a.bytes = min(a.bytes+a.bytes/8, maxAllowance)
	}
}

// mutedError is no failure: the brokers that something is left for mute this client, for so long.
type mutedError struct{ left time.Duration }

func (m *mutedError) Error() string {
	return fmt.Sprintf("the brokers throttle this client for %s more", m.left.Round(time.Millisecond))
}
