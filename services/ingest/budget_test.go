package ingest

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(100, nil)
		if err := b.acquire(t.Context(), nil, 150); err != nil {
			t.Fatal("an overdraft of an unused budget must pass:", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := b.acquire(ctx, nil, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("acquire of a budget that is used up: %v", err)
		}
		done := make(chan error, 1)
		go func() { done <- b.acquire(t.Context(), nil, 60) }()
		synctest.Wait()
		b.change(-120)
		if err := <-done; err != nil || b.held() != 90 {
			t.Errorf("acquire: %v, %d used", err, b.held())
		}
	})
}

func TestBudgetIsGivenInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBudget(100, nil)
		b.change(100)
		served := make(chan string, 3)
		wait := func(ctx context.Context, name string, n int64) {
			go func() {
				if b.acquire(ctx, nil, n) == nil {
					served <- name
				}
			}()
			synctest.Wait()
		}
		ctx, cancel := context.WithCancel(t.Context())
		wait(t.Context(), "large", 80)
		wait(ctx, "gone", 1)
		wait(t.Context(), "small", 10)
		b.change(-50) // not enough for the first
		synctest.Wait()
		if b.try(1) || len(served) > 0 {
			t.Errorf("the large one was passed, by %d others or by a try", len(served))
		}
		cancel()
		synctest.Wait()
		b.change(-40)
		synctest.Wait()
		if len(served) != 2 || b.held() != 100 {
			t.Errorf("%d were served, %d bytes used; want large and small, 100", len(served), b.held())
		}
	})
}
