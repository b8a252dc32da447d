package main

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/internal/config"
)

func TestParseInterval(t *testing.T) {
	for _, test := range []struct {
		text     string
		duration time.Duration
		want     interval
		problem  string
	}{
		{"", 0, interval{}, ""},
		{"10s..40s", 0, interval{10 * time.Second, 40 * time.Second}, ""},
		{"0s..1m30s", time.Minute, interval{0, 90 * time.Second}, ""},
		{"10s", 0, interval{}, `--break-kafka "10s": want FROM..TO, as in 10s..40s`},
		{"10..40", 0, interval{}, `want FROM..TO, as in 10s..40s: time: missing unit in duration "10"`},
		{"10s..", 0, interval{}, `want FROM..TO, as in 10s..40s: time: invalid duration ""`},
		{"10s..20s..30s", 0, interval{}, "want FROM..TO"},
		{"20s..10s", 0, interval{}, "the end must be after the beginning"},
		{"10s..10s", 0, interval{}, "the end must be after the beginning"},
		{"-1s..10s", 0, interval{}, "the end must be after the beginning"},
		{"60s..70s", time.Minute, interval{}, "begins after the end of --duration 1m0s"},
	} {
		got, err := parseInterval(test.text, test.duration)
		switch {
		case test.problem == "" && (err != nil || got != test.want):
			t.Errorf("%q: %v, %v, want %v", test.text, got, err, test.want)
		case test.problem != "" && (err == nil || !strings.Contains(err.Error(), test.problem)):
			t.Errorf("%q: %v, want %s", test.text, err, test.problem)
		}
	}
}

// TestDevSurvivesAnOutage is the demonstration, shorter: its account must be right, and the
// outage must have been one.
func TestDevSurvivesAnOutage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new %41 #? \"ü")
	got := spillway(t, "dev", "--duration", "6s", "--break-kafka", "1s..4s", "--rate", "1000", "--output", "json", "--dir", dir)
	if got.status != 0 {
		t.Fatalf("dev: %+v", got)
	}
	var a account
	if err := json.Unmarshal([]byte(got.stdout), &a); err != nil {
		t.Fatalf("stdout is not the account alone: %v: %s", err, got.stdout)
	}
	if a.In < 1000 || len(a.Destinations) != 2 || a.Destinations[0].Name != "files" || a.Destinations[1].Name != "test Kafka" {
		t.Fatalf("account: %+v", a)
	}
	for _, b := range a.Destinations {
		if b.Delivered != a.In || b.Lost != 0 || b.Pending != 0 || b.Name == "files" && b.Doubled != 0 {
			t.Errorf("of %d records: %+v", a.In, b)
		}
	}
	log, err := os.ReadFile(filepath.Join(dir, "spillway.log"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(log), "cannot produce to Kafka; retrying") {
		t.Error("no outage is in the log")
	}
	if strings.Contains(string(log), "level=ERROR") {
		t.Errorf("errors in the log:\n%s", log)
	}
}

// TestDevDrainsOnInterrupt has Ctrl-C end the generator, not the records on their way.
func TestDevDrainsOnInterrupt(t *testing.T) {
	dir := t.TempDir()
	dev := start(t, "dev", "--rate", "500", "--dir", dir)
	dev.wait("backlog") // the first line: records flow
	dev.signal(syscall.SIGINT)
	if status := dev.status(); status != 0 {
		t.Errorf("status %d", status)
	}
	out := dev.wait("DESTINATION")
	rows := regexp.MustCompile(`(?m)^ *(files|test Kafka) +(\d+) +(\d+) +0 +0 +0$`).FindAllStringSubmatch(out, -1)
	if len(rows) != 2 || rows[0][2] != rows[0][3] || rows[0][2] == "0" || rows[1][2] != rows[0][2] || rows[1][3] != rows[0][3] {
		t.Errorf("the account is %q", rows)
	}
	if _, err := config.Load(filepath.Join(dir, "pipeline.yaml")); err != nil {
		t.Errorf("the pipeline's file: %v", err)
	}
	var topics []string
	err := filepath.WalkDir(filepath.Join(dir, "files"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		if filepath.Ext(path) != ".log" {
			t.Errorf("a file in use was left: %s", path)
		}
		relative, err := filepath.Rel(filepath.Join(dir, "files"), path)
		topics = append(topics, strings.Split(filepath.ToSlash(relative), "/")[0])
		return err
	})
	slices.Sort(topics)
	if got := slices.Compact(topics); err != nil || !slices.Equal(got, devTopics) {
		t.Errorf("files are of topics %v (%v), want %v", got, err, devTopics)
	}
}
