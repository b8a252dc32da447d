package filesink

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/internal/config"
)

// TestTimeOver: the time of a directory is over when records begin to go to another.
func TestTimeOver(t *testing.T) {
	for _, test := range []struct {
		path     string
		value    int64
		unit     string
		at, over string // RFC 3339; at in Berlin
	}{
		{"/%Y", 0, "", "2026-03-05T07:08:09Z", "2026-12-31T23:00:00Z"},
		{"/%Y/%m", 0, "", "2026-12-05T07:08:09Z", "2026-12-31T23:00:00Z"},
		{"/%Y-%m-%d", 0, "", "2026-03-05T07:08:09.5Z", "2026-03-05T23:00:00Z"},
		{"/%y/%j", 0, "", "2026-03-05T23:00:00Z", "2026-03-06T23:00:00Z"},
		{"/%Y-%m-%d", 0, "", "2026-03-29T00:30:00Z", "2026-03-29T22:00:00Z"}, // a day of 23 hours
		{"/%D/%H", 0, "", "2026-03-29T00:59:59Z", "2026-03-29T01:00:00Z"},    // 01:59:59, then 03:00
		{"/%D/%H", 0, "", "2026-10-25T00:30:00Z", "2026-10-25T02:00:00Z"},    // 02:30, which comes twice
		{"/%D/%H", 0, "", "2026-10-25T01:30:00Z", "2026-10-25T02:00:00Z"},
		{"/%D/%H%M", 0, "", "2026-10-25T00:30:30Z", "2026-10-25T01:31:00Z"}, // 02:30:30, and 02:30 an hour later
		{"/%D/%H%M", 0, "", "2026-10-25T01:30:30Z", "2026-10-25T01:31:00Z"},
		{"/%D/%H%M", 10, "minute", "2026-10-25T00:35:00Z", "2026-10-25T01:40:00Z"},
		{"/%D/%H%M/%z", 0, "", "2026-10-25T00:30:30Z", "2026-10-25T00:31:00Z"},
		{"/%D/%H%M", 0, "", "2026-10-24T23:59:30Z", "2026-10-25T00:00:00Z"}, // 01:59:30, which comes once
		{"/%D/%H%M", 0, "", "2026-03-29T00:59:30Z", "2026-03-29T01:00:00Z"},
		{"/%D/%I%p", 0, "", "2026-03-05T07:08:09Z", "2026-03-05T08:00:00Z"},
		{"/%D/%H/%M", 0, "", "2026-03-05T07:08:09Z", "2026-03-05T07:09:00Z"},
		{"/%D/%H/%M", 10, "minute", "2026-03-05T07:08:09Z", "2026-03-05T07:10:00Z"},
		{"/%D/%H", 6, "hour", "2026-03-05T07:08:09Z", "2026-03-05T11:00:00Z"},
		{"/%s", 30, "second", "2026-03-05T07:08:09Z", "2026-03-05T07:08:30Z"},
		{"/%{topic}/%c", 0, "", "2026-03-05T07:08:09Z", "2026-03-05T07:08:10Z"},
	} {
		cfg := &config.HDFS{URL: "hdfs://h:1", Path: test.path, InUseSuffix: ".tmp", TimeZone: "Europe/Berlin", SuccessAfter: time.Minute,
			Round: test.value > 0, RoundValue: test.value, RoundUnit: test.unit}
		l, err := newLayout(cfg, "", testHost)
		if err != nil {
			t.Fatal(err)
		}
		at, err := time.Parse(time.RFC3339, test.at)
		if err != nil {
			t.Fatal(err)
		}
		if over := time.UnixMilli(l.timeOver(at.UnixMilli())).UTC().Format(time.RFC3339); over != test.over {
			t.Errorf("%s rounded to %d %s: the time of %s is over at %s, want %s", test.path, test.value, test.unit, test.at, over, test.over)
		}
	}
}

// TestManyDirectoriesWait: directories that wait for their mark leave room for files, and those of
// wrong times for the others.
func TestManyDirectoriesWait(t *testing.T) {
	var log bytes.Buffer
	v := &serving{sink: &Sink{log: slog.New(slog.NewTextHandler(&log, nil))}}
	m := newCompleter(v)
	begin := func(dir string, ms int64) (taken bool) {
		c, err := m.begin(&delivery.Ack{}, &file{bucket: &bucket{dir: dir}, entry: entry{DueMs: ms}})
		if err != nil {
			t.Fatal(err)
		}
		if c != nil {
			m.add(c)
		}
		return c != nil
	}
	soon := time.Now().Add(time.Hour).UnixMilli()
	count := func(ms int64) (n int) {
		for i := range maxCompletions + 10 {
			if begin(fmt.Sprintf("/%d/%d", ms, i), ms) {
				n++
			}
		}
		return n
	}
	if n := count(1000 * soon); n != maxCompletions/2 { // microseconds, taken for milliseconds
		t.Errorf("%d directories wait for a time far ahead", n)
	}
	if n := count(soon); n != maxCompletions/2 {
		t.Errorf("beside them %d of the next hour wait", n)
	}
	if lines := strings.Count(log.String(), "level=WARN"); lines != 1 || !strings.Contains(log.String(), "no _SUCCESS") {
		t.Errorf("%d lines: %.500s", lines, log.String())
	}
}
