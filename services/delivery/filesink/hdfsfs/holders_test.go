package hdfsfs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillwayio/spillway/services/delivery/filesink"
)

// An append waits for replicas that are not reported yet, and goes to none that the block was not written to.
func TestHoldersAwait(t *testing.T) {
	answers := func(all ...string) func() ([]string, error) {
		return func() ([]string, error) {
			now := all[0]
			if len(all) > 1 {
				all = all[1:]
			}
			return strings.Fields(now), nil
		}
	}
	for _, c := range []struct {
		name   string
		ask    func() ([]string, error)
		want   string // "" is nil
		within time.Duration
	}{
		{"all", answers("b a c"), "", 0},
		{"late", answers("", "a", "a b", "a b c"), "", 100 * time.Millisecond},
		{"gone", answers("a b"), "written to 3 DataNodes, and the NameNode names 2 of them and 0 others", reportPatience + time.Second},
		{"copied", answers("a b c d"), "names 3 of them and 1 others", 0},
		{"moved", answers("a b d"), "names 2 of them and 1 others", 0},
		{"copied meanwhile", answers("a b", "a b d", "a b c"), "names 2 of them and 1 others", 100 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				err := newHolders().await(t.Context(), held{dataNodes: []string{"a", "b", "c"}}, c.ask)
				if (err == nil) != (c.want == "") || err != nil && (!errors.Is(err, filesink.ErrEnded) || !strings.Contains(err.Error(), c.want)) {
					t.Errorf("await: %v, want %q", err, c.want)
				}
				if took := time.Since(began); took > c.within {
					t.Errorf("it took %s, want %s at most", took, c.within)
				}
			})
		})
	}
}

// What waiting for one file showed to be in vain is not waited for with each.
func TestHoldersAwaitInVainOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHolders()
		began := time.Now()
		for range 100 {
			err := h.await(t.Context(), held{dataNodes: []string{"a", "b"}}, func() ([]string, error) { return []string{"a"}, nil })
			if !errors.Is(err, filesink.ErrEnded) {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took > 2*reportPatience {
			t.Errorf("100 files took %s", took)
		}
	})
}

func TestHoldersAwaitFails(t *testing.T) {
	h, last := newHolders(), held{dataNodes: []string{"a", "b"}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.await(ctx, last, func() ([]string, error) { return []string{"a"}, nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("after the context's end: %v", err)
	}
	broken := errors.New("no NameNode")
	if err := h.await(t.Context(), last, func() ([]string, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("without a NameNode: %v", err)
	}
}

func TestHoldersAreBounded(t *testing.T) {
	h := newHolders()
	for i := range maxHeld + 10 {
		h.set(fmt.Sprint("/", i), held{})
	}
	if n := len(h.byFile); n != maxHeld {
		t.Errorf("%d files are remembered, want %d", n, maxHeld)
	}
	last := fmt.Sprint("/", maxHeld+9)
	if _, ok := h.get(last); !ok {
		t.Error("the newest file is not")
	}
	h.forget(last)
	if _, ok := h.get(last); ok {
		t.Error("a file is remembered that was to be forgotten")
	}
}
