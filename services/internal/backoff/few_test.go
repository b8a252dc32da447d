package backoff

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f Few
		for minute := range 3 {
			lines, more := 0, 0
			for range 1000 {
				f.Tell(func(is bool) {
					if is {
						more++
					} else {
						lines++
					}
				})
			}
			if lines != fewLines || more != 1 {
				t.Errorf("in minute %d: %d lines, and %d times that there is more", minute, lines, more)
			}
			time.Sleep(fewEvery + time.Second)
		}
	})
}
