package backoff

import (
	"sync"
	"time"
)

// Few bounds the lines of a log that say the same of many things: there are fewLines a minute, and
// one more. The zero value is ready to use, by any number of goroutines.
type Few struct {
	mu    sync.Mutex
	since time.Time
	said  int
}

const (
	fewLines = 8
	fewEvery = time.Minute
)

// Tell calls say, one call at a time, unless it has said enough. With more it is the last call for
// a while, and about all that follow.
func (f *Few) Tell(say func(more bool)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.since) > fewEvery {
		f.since, f.said = time.Now(), 0
	}
	if f.said++; f.said <= fewLines+1 {
		say(f.said > fewLines)
	}
}
