//go:build !linux

package queue

import "time"

var began = time.Now()

func threadTime() time.Duration { return time.Since(began) }

// timed is how long f takes.
func timed(f func()) time.Duration {
	before := threadTime()
	f()
	return threadTime() - before
}
