package main

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
)

// testTap taps queue q of a running buffer while produce puts records into topic in.
func testTap(t *testing.T, buffer string, produce func(value string)) {
	t.Helper()
	// tap runs the command while there are records, for as long as it takes.
	tap := func(args ...string) result {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		done := make(chan result, 1)
		go func() {
			var stdout, stderr bytes.Buffer
			status := execute(ctx, append([]string{"tap", "q", "-b", buffer}, args...), &stdout, &stderr)
			done <- result{status, stdout.String(), stderr.String()}
		}()
		for {
			produce(`{"n": 1}`)
			produce("\x1b[2J")
			select {
			case r := <-done:
				return r
			default:
			}
		}
	}
	got := tap("--filter", "json.n == 1.0 && key == 'k'", "--limit", "2")
	lines := strings.Split(got.stdout, "\n")
	if got.status != 0 || len(lines) != 3 || !strings.HasPrefix(lines[0], "in/0@") || !strings.HasSuffix(lines[0], ` k {"n": 1}`) || !strings.Contains(got.stderr, " match") {
		t.Errorf("tap: %+v", got)
	}
	got = tap("--filter", `!value.startsWith("{")`, "--limit", "1")
	if got.status != 0 || !strings.HasSuffix(got.stdout, ` k \x1b[2J`+"\n") {
		t.Errorf("tap of what a terminal would obey: %+v", got)
	}
	got = tap("--limit", "1", "-o", "json")
	var record tappedRecord
	if err := json.Unmarshal([]byte(got.stdout), &record); err != nil || record.Topic != "in" || record.Value == nil || record.Key == nil {
		t.Errorf("tap -o json: %v, %+v", err, got)
	}
	if got := tap("--for", "50ms", "--filter", "json.other == 1"); got.status != 0 || !strings.Contains(got.stderr, " records seen, 0 match") {
		t.Errorf("tap for a while: %+v", got)
	}
	for args, want := range map[string]string{"--filter x": "undeclared reference to 'x'", "--sample -1": "sample -1: want 1", "--topics [": "is no glob"} {
		if got := spillway(t, append([]string{"tap", "q", "-b", buffer}, strings.Fields(args)...)...); got.status != 1 || !strings.Contains(got.stderr, want) {
			t.Errorf("tap %s: %+v, want %s", args, got, want)
		}
	}
}
