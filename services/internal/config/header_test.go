package config

import (
	"fmt"
	"strings"
	"testing"
)

// TestHeaderFilters names what is wrong with a filter.
func TestHeaderFilters(t *testing.T) {
	const file = "buffer:\n  data_dir: /x\n  queues:\n    q:\n      subscriptions:\n        s:\n          headers:\n            - %s\n"
	many := "{name: a, in: [" + strings.Repeat("x, ", 1001) + "]}"
	for filter, want := range map[string]string{
		`{name: type, in: [a, b]}`:           "",
		`{name: type, not_in: [""]}`:         "",
		`{in: [a]}`:                          "headers[0].name: is missing",
		`{name: type}`:                       "want either in or not_in",
		`{name: type, in: [a], not_in: [b]}`: "want either in or not_in",
		`{name: type, in: [a, a]}`:           `"a" is there twice`,
		`{name: type, equals: a}`:            "equals",
		many:                                 "has 1001 values; want at most 1000",
		`{name: ` + strings.Repeat("x", 257) + `, in: [a]}`:                             "has 257 bytes; want at most 256",
		"{name: a, in: [b]}" + strings.Repeat("\n            - {name: a, in: [b]}", 16): "has 17 conditions; want at most 16",
	} {
		_, err := Parse("f.yaml", fmt.Appendf(nil, file, filter), nil)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%.80s: %v, want %q", filter, err, want)
		}
	}
}
