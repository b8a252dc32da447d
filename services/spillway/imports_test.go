package main

import (
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const (
	module      = "github.com/spillwayio/spillway/"
	servicesDir = module + "services/"
)

// adapters are the libraries that one package of ours, or a few, stand in front of, with those
// packages.
var adapters = map[string][]string{
	"github.com/nutsdb/nutsdb":           {"buffer/store/nutsstore"},
	"github.com/colinmarc/hdfs/v2":       {"delivery/filesink/hdfsfs"},
	"github.com/segmentio/kafka-go":      {"ingest", "internal/kafkaclient", "delivery/kafkasink", "spillway", "buffer/store/kafkastore"},
	"github.com/google/cel-go":           {"buffer"},                                           // filters of taps
	"github.com/twmb/franz-go/pkg/kfake": {"spillway", "internal/kafkaclient/kafkaclienttest"}, // the embedded Kafka of dev
	"github.com/twmb/franz-go/pkg/kmsg":  {"internal/kafkaclient", "internal/kafkaclient/kafkaclienttest", "buffer/store/kafkastore"},
	"github.com/spf13/cobra":             {"spillway"},
	"github.com/bufbuild/protocompile":   {"internal/rpc"},
	"github.com/jcmturner/gokrb5/v8":     {"internal/kerberos", "internal/kafkaclient"},
	"go.yaml.in/yaml/v3":                 {"internal/config", "flume"},
	"go.opentelemetry.io/otel":           {"internal/tracing"},
}

// TestImports holds who may import whom. Tests of a package may import what they like of
// libraries, and of ours what the package may.
func TestImports(t *testing.T) {
	packages := listPackages(t)
	for _, p := range packages {
		name := strings.TrimPrefix(p.ImportPath, servicesDir)
		all := slices.Concat(p.Imports, p.TestImports, p.XTestImports)

		for _, imported := range all {
			other, ours := strings.CutPrefix(imported, servicesDir)
			if !ours {
				continue
			}
			if from, to := serviceOf(name), serviceOf(other); to != "" && to != from && from != "spillway" && from != "e2e" {
				t.Errorf("%s imports %s: services speak gRPC to each other, only spillway and the tests in e2e know several", name, other)
			}
			if name == "buffer/queue" && other != "internal/race" { // which its tests ask
				t.Errorf("%s imports %s: want the standard library only", name, other)
			}
		}
		for _, imported := range p.Imports {
			if name == "buffer/queue" && strings.Contains(strings.Split(imported, "/")[0], ".") {
				t.Errorf("%s imports %s: want the standard library only", name, imported)
			}
			for library, allowed := range adapters {
				if (imported == library || strings.HasPrefix(imported, library+"/")) && !slices.Contains(allowed, name) {
					t.Errorf("%s imports %s: only %s may", name, imported, strings.Join(allowed, ", "))
				}
			}
		}
	}
	// A rule about something that is gone holds nothing.
	for library, allowed := range adapters {
		for _, name := range allowed {
			p, ok := packages[servicesDir+name]
			if !ok {
				t.Errorf("adapters: there is no package %s", name)
				continue
			}
			if !slices.ContainsFunc(p.Imports, func(s string) bool { return s == library || strings.HasPrefix(s, library+"/") }) {
				t.Errorf("adapters: %s does not import %s", name, library)
			}
		}
	}
	if packages[servicesDir+"buffer/queue"].ImportPath == "" {
		t.Error("there is no package buffer/queue")
	}
}

// serviceOf is the service that a package below services/ belongs to, or "".
func serviceOf(name string) string {
	first, _, _ := strings.Cut(name, "/")
	if slices.Contains([]string{"buffer", "ingest", "delivery", "spillway", "e2e"}, first) {
		return first
	}
	return ""
}

// goPackage is what go list says of one.
type goPackage struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

func listPackages(t *testing.T) map[string]goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", servicesDir+"...")
	out, err := cmd.Output()
	if err != nil {
		if exit := new(exec.ExitError); errors.As(err, &exit) {
			t.Fatalf("go list: %v: %s", err, exit.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	packages := make(map[string]goPackage)
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		packages[p.ImportPath] = p
	}
	if len(packages) < 10 {
		t.Fatalf("go list knows only %v", slices.Sorted(maps.Keys(packages)))
	}
	return packages
}
