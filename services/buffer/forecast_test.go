package buffer

import (
	"math"
	"testing"
	"time"
)

// TestTrend has values that rise in steps, as a store does, fall, and stand still.
func TestTrend(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	fill := func(seconds int, value func(second int) float64) *trend {
		var tr trend
		for i := range seconds {
			tr.add(start.Add(time.Duration(i)*time.Second), value(i))
		}
		return &tr
	}
	const mib = 1 << 20
	near := func(got, want float64) bool { return math.Abs(got-want) <= want/10 }

	// 3 MB/s that come in steps of 4 MiB; 600 MiB are left after 30 s.
	steps := fill(30, func(i int) float64 { return math.Floor(float64(i)*3e6/(4*mib)) * 4 * mib })
	if got, want := steps.toRise(steps.last()+600*mib, 15*time.Second), 600*mib/3e6; !near(got, want) {
		t.Errorf("full in %.0f s, want %.0f", got, want)
	}
	// Idle for minutes, then an outage for 15 s: the short window has noticed.
	outage := fill(315, func(i int) float64 { return max(0, float64(i-299)) * 1e6 })
	if got := outage.toRise(outage.last()+100e6, 15*time.Second); !near(got, 100) {
		t.Errorf("15 s after an outage has begun, full in %.0f s, want 100", got)
	}
	// Half a window after it, the forecast is right already, also of a store that grows in steps.
	for _, grows := range []func(seconds float64) float64{func(s float64) float64 { return s * 6e6 }, func(s float64) float64 { return math.Floor(s*6e6/(4*mib)) * 4 * mib }} {
		outage := fill(300, func(i int) float64 { return grows(max(0, float64(i-291))) })
		if got := outage.toRise(outage.last()+600e6, 15*time.Second); !near(got, 100) {
			t.Errorf("8 s after an outage has begun, full in %.0f s, want 100", got)
		}
	}
	// Steps that are far apart are not taken for a faster rise.
	for _, rate := range []float64{6e5, 1e6, 2e6, 4e6} {
		for n := 100; n < 150; n++ {
			steps := fill(n, func(i int) float64 { return math.Floor(float64(i)*rate/(4*mib)) * 4 * mib })
			if late, all := steps.rise(15*time.Second), steps.slope(15*time.Second); late > 1.2*all && late > 1.2*rate {
				t.Errorf("%d samples at %.1f MB/s: the rise is %.1f MB/s, and %.1f over the window", n, rate/1e6, late/1e6, all/1e6)
			}
		}
	}
	if got := outage.toRise(outage.last()+100e6, 5*time.Minute); got < 500 {
		t.Errorf("by the long window, full in %.0f s, want much later", got)
	}
	// A ring that went round.
	long := fill(1000, func(i int) float64 { return float64(5000 - 2*i) })
	if got, want := long.toFall(5*time.Minute), 3002.0/2; !near(got, want) {
		t.Errorf("drained in %.0f s, want %.0f", got, want)
	}
	if n := len(long.samples); n != maxSamples {
		t.Errorf("%d samples are kept, want %d", n, maxSamples)
	}

	flat := fill(60, func(int) float64 { return 7 })
	for name, got := range map[string]float64{"rise": flat.toRise(10, 15*time.Second), "fall": flat.toFall(15 * time.Second)} {
		if !math.IsInf(got, 1) {
			t.Errorf("a value that stands still is to %s in %v s, want +Inf", name, got)
		}
	}
	if got := fill(60, func(int) float64 { return 0 }).toFall(15 * time.Second); got != 0 {
		t.Errorf("an empty backlog is gone in %v s", got)
	}
	if got := flat.toRise(7, 15*time.Second); got != 0 {
		t.Errorf("a full disk is full in %v s", got)
	}
	for name, tr := range map[string]*trend{"no sample": {}, "one": fill(1, func(int) float64 { return 7 }), "5 s": fill(5, func(i int) float64 { return float64(i) })} {
		if got := tr.toRise(10, 15*time.Second); !math.IsNaN(got) {
			t.Errorf("%s: full in %v s, want NaN", name, got)
		}
	}
}
