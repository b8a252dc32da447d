package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/spillwayio/spillway/services/delivery/manifest"
)

// TestCompare runs the command: the table, the JSON, and the exit status.
func TestCompare(t *testing.T) {
	here, there := t.TempDir(), t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	entries := func(dir string, first int64, values ...string) {
		t.Helper()
		var b []byte
		for i, v := range values {
			b = manifest.AppendEntry(b, "orders", 2, first+int64(i), 1_800_000_000_000, []byte(v))
		}
		e, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		write(filepath.Join(here, "user/flume", dir, "manifest.1-1.zst"), string(e.EncodeAll(b, nil)))
	}
	entries("a", 0, "1", "2")
	write(filepath.Join(there, "a", "FlumeData.1"), "2\n1\n")

	if got := spillway(t, "compare", here, there); got.status != 2 || !strings.Contains(got.stderr, "--below") {
		t.Errorf("without --below: %+v", got)
	}
	if got := spillway(t, "compare", here); got.status != 2 || !strings.Contains(got.stderr, "want two arguments") {
		t.Errorf("one argument: %+v", got)
	}
	if got := spillway(t, "compare", here, filepath.Join(there, "none"), "--below", "/user/flume"); got.status != 2 {
		t.Errorf("no directory: %+v", got)
	}
	if got := spillway(t, "compare", here, there, "--below", "/nothing"); got.status != 1 || !strings.Contains(got.stderr, "1 of 1 directories differ") {
		t.Errorf("nothing here: %+v", got)
	}
	got := spillway(t, "compare", here, there, "--below", "/user/flume")
	if got.status != 0 || got.stdout != "1 directories are equal, 0 differ, 0 are in use; 2 lines are equal, 0 are missing there, 0 are missing here, 0 are doubled there\n" {
		t.Errorf("equal: %+v", got)
	}

	entries("b", 10, "x", "y", "z")
	write(filepath.Join(there, "b", "FlumeData.2"), "x\nx\nother\n")
	write(filepath.Join(there, "c", "FlumeData.3.tmp"), "x\n")
	got = spillway(t, "compare", here, there, "--below", "/user/flume")
	for _, want := range []string{"differs /b", "in use /c", "missing there: orders/2 offsets 11 to 12", "of the hour of 2027-01-15T08Z: 2 of 3 records", "missing here: FlumeData.2 line 3", "doubled there: 1 lines"} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("%q is missing in\n%s", want, got.stdout)
		}
	}
	if got.status != 1 || !strings.Contains(got.stderr, "1 of 2 directories differ") || strings.Contains(got.stdout, "equal /a") {
		t.Errorf("differs: %+v", got)
	}
	if got := spillway(t, "compare", here, there, "--below", "/user/flume", "--all"); !strings.Contains(got.stdout, "equal /a") {
		t.Errorf("--all:\n%s", got.stdout)
	}

	got = spillway(t, "compare", here, there, "--below", "/user/flume", "--output", "json")
	lines := strings.Split(strings.TrimSpace(got.stdout), "\n")
	var b manifest.Directory
	var end struct{ Total comparisonTotal }
	if len(lines) != 4 || json.Unmarshal([]byte(lines[1]), &b) != nil || json.Unmarshal([]byte(lines[3]), &end) != nil {
		t.Fatalf("JSON:\n%s", got.stdout)
	}
	if b.Path != "/b" || b.Missing[0].Next != 13 || end.Total.Differ != 1 || end.Total.InUse != 1 || got.status != 1 {
		t.Errorf("JSON: %+v, %+v", b, end)
	}
}

// TestComparePaths puts made-up and given records through Flume's rules and the pipeline's.
func TestComparePaths(t *testing.T) {
	file := writeFile(t, "flume.conf", strings.Replace(agentFile, "hdfs://namenode:8020/logs", "hdfs://namenode:8020/logs/%{topic}/%Y-%m-%d/%H%M", 1)+`
a.sinks.k.hdfs.timeZone = Europe/Berlin
a.sinks.k.hdfs.round = true
a.sinks.k.hdfs.roundValue = 15
a.sinks.k.hdfs.roundUnit = minute
a.sources.s.interceptors = x f
a.sources.s.interceptors.x.type = regex_extractor
a.sources.s.interceptors.x.regex = user=(\\w+)
a.sources.s.interceptors.x.serializers = u
a.sources.s.interceptors.x.serializers.u.name = user
a.sources.s.interceptors.f.type = regex_filter
a.sources.s.interceptors.f.regex = ^#
a.sources.s.interceptors.f.excludeEvents = true
`)
	got := spillway(t, "compare", "--paths", file, "--flume-version", "1.11")
	if got.status != 0 || strings.Count(got.stdout, "\nsame ") != 8 || !strings.Contains(got.stdout, "/logs/t/2026-03-29/0300") {
		t.Errorf("made-up samples: %+v", got)
	}
	samples := writeFile(t, "samples", `{"topic": "t", "timestamp": 1772323200000, "value": "user=ann"}
{"topic": "t", "timestamp": 1772323200000, "value": "# left out"}
{"topic": "other", "timestamp": 0}
`)
	got = spillway(t, "compare", "--paths", file, "--samples", samples, "--flume-version", "1.11", "--output", "json")
	var one placed
	if err := json.Unmarshal([]byte(got.stdout), &one); err != nil || got.status != 0 || !one.Same || one.Flume != "/logs/t/2026-03-01/0100" {
		t.Errorf("%+v: %v", got, err)
	}
	pipeline := filepath.Join(t.TempDir(), "spillway.yaml")
	if got := spillway(t, "import-flume", file, "--brokers", "k:1", "-o", pipeline); got.status != 0 {
		t.Fatalf("%+v", got)
	}
	text, err := os.ReadFile(pipeline)
	if err != nil {
		t.Fatal(err)
	}
	changed := writeFile(t, "moved.yaml", strings.Replace(string(text), "/logs/", "/elsewhere/", 1))
	if got = spillway(t, "compare", "--paths", file, "--samples", samples, "-c", changed); got.status != 1 || !strings.Contains(got.stderr, "1 of 1 samples go to different directories") {
		t.Errorf("another path: %+v", got)
	}
	if got = spillway(t, "compare", "--paths", file, "--samples", writeFile(t, "bad", `{"topics": 1}`)); got.status != 2 || !strings.Contains(got.stderr, "sample 1") {
		t.Errorf("a bad sample: %+v", got)
	}
}
