// Package backoff spaces out attempts at something that keeps failing, and bounds what the log says
// of it.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff yields delays that double from Initial to Max, each drawn between half and the whole of
// its step, so that many clients that failed together do not come back together. Not for
// concurrent use.
type Backoff struct {
	Initial time.Duration // must be positive
	Max     time.Duration // bounds every delay; below Initial it is Initial

	step time.Duration // of the last delay; 0 before the first
}

// Next returns how long to wait before the next attempt.
func (b *Backoff) Next() time.Duration {
	limit := max(b.Initial, b.Max)
	switch {
	case b.step == 0:
		b.step = b.Initial
	case b.step > limit/2:
		b.step = limit
	default:
		b.step *= 2
	}
	half := b.step / 2
	return b.step - half + rand.N(half+1)
}

// Reset begins again at Initial; call it after a success.
func (b *Backoff) Reset() { b.step = 0 }

// Wait waits for the next delay. It returns ctx's error as soon as ctx ends, else nil.
func (b *Backoff) Wait(ctx context.Context) error {
	timer := time.NewTimer(b.Next())
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
