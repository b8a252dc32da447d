package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const observe = "../../deploy/observe"

var (
	series   = regexp.MustCompile(`spillway_[a-z_]+`)
	metrics  = regexp.MustCompile("`(spillway_[a-z_]+)`")
	anchorOf = regexp.MustCompile(`docs/runbooks\.md#([a-z0-9-]+)$`)
)

type alertRule struct {
	Alert, Expr string
	Annotations struct {
		Summary string
		Runbook string `yaml:"runbook_url"`
	}
}

func alertRules(t *testing.T) (rules []alertRule) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(observe, "rules.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Groups []struct{ Rules []alertRule } }
	if err := yaml.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		rules = append(rules, g.Rules...)
	}
	return rules
}

// TestAlerts holds together the alerts, the metrics and the runbooks: every alert is about
// metrics that exist and has an entry, and every entry has an alert.
func TestAlerts(t *testing.T) {
	exported := make(map[string]bool)
	for _, m := range metrics.FindAllStringSubmatch(readDocument(t, "operations.md"), -1) {
		exported[m[1]] = true
	}
	var entries, alerts []string
	for line := range strings.Lines(readDocument(t, "runbooks.md")) {
		if name, ok := strings.CutPrefix(line, "## "); ok {
			entries = append(entries, strings.TrimSpace(name))
		}
	}
	for _, rule := range alertRules(t) {
		alerts = append(alerts, rule.Alert)
		names := series.FindAllString(rule.Expr, -1)
		if len(names) == 0 || rule.Annotations.Summary == "" {
			t.Errorf("%s is about no metric of Spillway, or has no summary", rule.Alert)
		}
		for _, name := range names {
			if !exported[name] {
				t.Errorf("%s: docs/operations.md has no metric %s", rule.Alert, name)
			}
		}
		if m := anchorOf.FindStringSubmatch(rule.Annotations.Runbook); m == nil || m[1] != strings.ToLower(rule.Alert) {
			t.Errorf("%s: its runbook is %s", rule.Alert, rule.Annotations.Runbook)
		}
	}
	if !slices.Equal(alerts, entries) {
		t.Errorf("alerts are %q, and docs/runbooks.md has %q", alerts, entries)
	}
}

// panel is a panel of the dashboard.
type panel struct {
	ID      int
	Type    string
	Title   string
	GridPos struct{ X, Y, W, H int }
	Targets []struct {
		RefID, Expr, LegendFormat string
		Datasource                struct{ UID string }
	}
}

func dashboard(t *testing.T) (panels []panel) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(observe, "grafana/spillway.json"))
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		UID    string
		Panels []panel
	}
	if err := json.Unmarshal(b, &d); err != nil || d.UID == "" || len(d.Panels) == 0 {
		t.Fatalf("the dashboard has the uid %q, %d panels, %v", d.UID, len(d.Panels), err)
	}
	return d.Panels
}

// TestDashboard holds together the dashboard, the metrics and the alerts: every panel is about
// metrics that exist, its expressions are PromQL, and what an alert is about is in a panel.
func TestDashboard(t *testing.T) {
	documented := make(map[string]bool) // with the names that a histogram's series have
	for line := range strings.Lines(readDocument(t, "operations.md")) {
		if m := metricRow.FindStringSubmatch(line); m != nil {
			documented[m[1]] = m[2] != "histogram"
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				documented[m[1]+suffix] = m[2] == "histogram"
			}
		}
	}
	shown, ids := make(map[string]bool), make(map[int]bool)
	rules := "groups: [{name: panels, rules: [\n"
	for i, p := range dashboard(t) {
		if p.Title == "" || ids[p.ID] || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %d has no title, the id of another, or does not fit", i)
		}
		ids[p.ID] = true
		if (len(p.Targets) == 0) != (p.Type == "row") {
			t.Errorf("%s has %d expressions", p.Title, len(p.Targets))
		}
		for _, target := range p.Targets {
			if target.Datasource.UID != "${datasource}" || target.RefID == "" {
				t.Errorf("%s: an expression is not of the chosen Prometheus, or has no name", p.Title)
			}
			for _, name := range series.FindAllString(target.Expr, -1) {
				shown[name] = true
				if !documented[name] {
					t.Errorf("%s: docs/operations.md has no series %s", p.Title, name)
				}
			}
			expr := strings.NewReplacer("$__rate_interval", "1m", "$job", ".*").Replace(target.Expr)
			rules += fmt.Sprintf("{record: panel%d_%s, expr: %q},\n", p.ID, target.RefID, expr)
		}
	}
	for _, rule := range alertRules(t) {
		for _, name := range series.FindAllString(rule.Expr, -1) {
			if !shown[name] {
				t.Errorf("%s is about %s, which no panel shows", rule.Alert, name)
			}
		}
	}
	file := filepath.Join(t.TempDir(), "panels.yaml")
	if err := os.WriteFile(file, []byte(rules+"]}]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	promtool(t, ".", "check", "rules", file)
	promtool(t, observe, "check", "config", "prometheus.yaml")
}

// TestAlertRules has promtool evaluate the rules over made-up series. It needs promtool, of
// Debian's package prometheus; CI has it.
func TestAlertRules(t *testing.T) {
	promtool(t, observe, "check", "rules", "rules.yaml")
	promtool(t, observe, "test", "rules", "rules_test.yaml")
}

// promtool runs promtool in a directory.
func promtool(t *testing.T, dir string, args ...string) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("CI must have promtool: apt-get install prometheus")
		}
		t.Skip("NOT RUN: promtool is not here; on Debian: apt-get install prometheus")
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}
