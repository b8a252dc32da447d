package backoff

import (
	"context"
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"
)

func TestNextStaysBetweenHalfAndWholeOfItsStep(t *testing.T) {
	const rounds = 200
	b := Backoff{Initial: 100 * time.Millisecond, Max: time.Second}
	for range rounds {
		b.Reset()
		for i, step := range []time.Duration{100, 200, 400, 800, 1000, 1000} {
			step *= time.Millisecond
			if d := b.Next(); d < step/2 || d > step {
				t.Fatalf("delay %d is %v, want %v to %v", i, d, step/2, step)
			}
		}
	}
}

func TestNextIsJittered(t *testing.T) {
	b := Backoff{Initial: time.Hour, Max: time.Hour}
	seen := map[time.Duration]bool{}
	for range 20 {
		seen[b.Next()] = true
	}
	if len(seen) < 10 {
		t.Errorf("20 delays have only %d values", len(seen))
	}
}

func TestNextDoesNotOverflow(t *testing.T) {
	b := Backoff{Initial: time.Nanosecond, Max: math.MaxInt64}
	for i := range 100 {
		if d := b.Next(); d < 0 {
			t.Fatalf("delay %d is %v", i, d)
		}
	}
}

func TestMaxBelowInitialIsInitial(t *testing.T) {
	b := Backoff{Initial: time.Second}
	for range 5 {
		if d := b.Next(); d < time.Second/2 || d > time.Second {
			t.Errorf("delay is %v", d)
		}
	}
}

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := Backoff{Initial: time.Minute, Max: time.Hour}
		start := time.Now()
		if err := b.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(start); waited < 30*time.Second || waited > time.Minute {
			t.Errorf("waited %v, want 30s to 1m", waited)
		}
	})
}

func TestWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := Backoff{Initial: time.Hour, Max: time.Hour}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		if err := b.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error is %v", err)
		}
		if waited := time.Since(start); waited != time.Second {
			t.Errorf("waited %v, want 1s", waited)
		}
	})
}
