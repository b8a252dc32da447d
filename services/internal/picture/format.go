package picture

import (
	"fmt"
	"strconv"
	"time"
)

// Bytes is a number of bytes for people, as in 1.5GiB.
func Bytes(n int64) string {
	for _, u := range []struct {
		name  string
		shift uint
	}{{"TiB", 40}, {"GiB", 30}, {"MiB", 20}, {"KiB", 10}} {
		if size := int64(1) << u.shift; n >= size {
			return fmt.Sprintf("%.1f%s", float64(n)/float64(size), u.name)
		}
	}
	return fmt.Sprintf("%dB", n)
}

// Count is a number for people in seven characters at most, as in 999,999 or 1.23M.
func Count(n float64) string {
	switch {
	case n > 0 && n < 0.05:
		return "<0.1"
	case n > 0 && n < 9.95 && n != float64(int64(n)):
		return fmt.Sprintf("%.1f", n)
	case n < 999_999.5:
		text := strconv.FormatFloat(n, 'f', 0, 64)
		if len(text) > 3 {
			text = text[:len(text)-3] + "," + text[len(text)-3:]
		}
		return text
	}
	for _, unit := range []string{"M", "G", "T", "P"} {
		switch n /= 1000; {
		case n < 9_995:
			return fmt.Sprintf("%.2f%s", n/1000, unit)
		case n < 99_950:
			return fmt.Sprintf("%.1f%s", n/1000, unit)
		case n < 999_500:
			return fmt.Sprintf("%.0f%s", n/1000, unit)
		}
	}
	return "lots"
}

// Duration is a time for people in two units at most, as in 3m20s or 5d7h.
func Duration(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < time.Second:
		return "<1s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 2*day:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	default:
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	}
}
