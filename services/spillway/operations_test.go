package main

import (
	"bufio"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spillwayio/spillway/services/internal/config"
)

var (
	metricRow  = regexp.MustCompile("^\\| `(spillway_[a-z_]+)` \\| (gauge|counter|histogram) \\|")
	metricType = regexp.MustCompile(`^# TYPE (spillway_[a-z_]+) (gauge|counter|histogram)$`)
)

// TestMetricsAreDocumented compares the table in docs/operations.md with what services export.
func TestMetricsAreDocumented(t *testing.T) {
	documented := make(map[string]string)
	for line := range strings.Lines(readDocument(t, "operations.md")) {
		if m := metricRow.FindStringSubmatch(line); m != nil {
			documented[m[1]] = m[2]
		}
	}

	dir := t.TempDir()
	dev := start(t, "dev", "--rate", "500", "--dir", dir)
	dev.wait("backlog") // partitions are assigned: their metrics are there
	cfg, err := config.Load(filepath.Join(dir, "pipeline.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	exported := make(map[string]string)
	for _, addr := range []string{cfg.Buffer.HTTP, cfg.Ingest.HTTP, cfg.Delivery["files"].HTTP, cfg.Delivery["test"].HTTP} {
		for name, kind := range scrape(t, "http://"+addr+"/metrics") {
			exported[name] = kind
		}
	}

	for name, kind := range exported {
		if documented[name] != kind {
			t.Errorf("%s is a %s; docs/operations.md has %q", name, kind, documented[name])
		}
	}
	for name := range documented {
		if exported[name] == "" {
			t.Errorf("docs/operations.md has %s, which no service exports", name)
		}
	}
}

var (
	link   = regexp.MustCompile(`\]\(([^)#:]*)(?:#([^)]*))?\)`)
	titles = regexp.MustCompile(`(?m)^#+ (.*)$`)
	inNone = regexp.MustCompile(`[^a-z0-9 _-]`)
)

// TestDocumentLinks follows the links between documents.
func TestDocumentLinks(t *testing.T) {
	anchors := func(path string) map[string]bool {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		}
		all := map[string]bool{"": true}
		for _, m := range titles.FindAllStringSubmatch(string(b), -1) {
			all[strings.ReplaceAll(inNone.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")] = true
		}
		return all
	}
	documents, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, document := range append(documents, "../../README.md", "../../ARCHITECTURE.md", "../../deploy/stack/README.md", "../../deploy/docker/README.md") {
		b, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(b), -1) {
			target := filepath.Join(filepath.Dir(document), m[1])
			if m[1] == "" {
				target = document
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %v", document, err)
			} else if !anchors(target)[m[2]] {
				t.Errorf("%s: %s has no title for #%s", document, target, m[2])
			}
		}
	}
}

func scrape(t *testing.T, url string) map[string]string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	types := make(map[string]string)
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		if m := metricType.FindStringSubmatch(lines.Text()); m != nil {
			types[m[1]] = m[2]
		}
	}
	if err := lines.Err(); err != nil || len(types) == 0 {
		t.Fatalf("%s: %d metrics, %v", url, len(types), err)
	}
	return types
}

func readDocument(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../docs", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
