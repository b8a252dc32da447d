// Package race tells tests about the race detector, which makes everything many times slower and
// larger.
package race

import "testing"

// Apart, as the first statement of a test, skips it under the race detector and with -short: one
// that measures, or has a single goroutine. `make test-apart` runs all tests that call it, without
// the race detector.
func Apart(t testing.TB) {
	t.Helper()
	if Enabled || testing.Short() {
		t.Skip("it runs apart, without the race detector")
	}
}
