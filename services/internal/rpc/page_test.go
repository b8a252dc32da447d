package rpc

import (
	"fmt"
	"testing"
)

// TestPagesOfVeryMany: a page costs one key for each item, not one for each comparison, and all
// items are there once.
func TestPagesOfVeryMany(t *testing.T) {
	const n, size = 10_000, 1000
	all := make([]int, n)
	for i := range all {
		all[i] = (i * 7919) % n
	}
	keys, pages, seen := 0, 0, 0
	key := func(i int) string { keys++; return fmt.Sprintf("%05d", i) }
	for token := ""; ; {
		page, next, err := Page(all, key, size, 0, token)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range page {
			if i != seen {
				t.Fatalf("%d where %d is next", i, seen)
			}
			seen++
		}
		pages++
		if token = next; token == "" {
			break
		}
	}
	if seen != n || pages != n/size || keys != n*pages {
		t.Errorf("%d items on %d pages took %d keys", seen, pages, keys)
	}
}
