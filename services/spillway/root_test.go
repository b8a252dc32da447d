package main

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestWrongUse has what is wrong with a command line said, with exit status 2, before anything is
// started.
func TestWrongUse(t *testing.T) {
	file := writeFile(t, "pipeline.yaml", pipeline)
	for _, test := range []struct{ args, want string }{
		{"nonsense", `unknown command "nonsense"; see spillway --help`},
		{"bufer", `unknown command "bufer"; did you mean buffer or buffers?`},
		{"--nonsense", "unknown flag: --nonsense; see spillway --help"},
		{"buffer", "want --config FILE"},
		{"ingest", "want --config FILE"},
		{"delivery files", "want --config FILE"},
		{"check", "want --config FILE"},
		{"buffer --confg x", "unknown flag: --confg; see spillway buffer --help"},
		{"buffer extra", `spillway buffer takes no argument, and "extra" is one`},
		{"buffer -c " + file + " --log-level loud", `--log-level "loud": want debug, info, warn or error`},
		{"buffer -c " + file + " --log-format xml", `--log-format "xml": want text or json`},
		{"buffer -c nowhere.yaml", "read configuration: open nowhere.yaml: no such file or directory"},
		{"delivery", "want one argument: the name of a delivery"},
		{"delivery a b", "want one argument: the name of a delivery"},
		{"delivery fils -c " + file, `no delivery "fils"; did you mean "files"?`},
		{"delivery other -c " + file, `no delivery "other"; there is copy, files`},
		{"check -o xml -c " + file, `--output "xml": want table or json`},
		{"health", "want one argument: a URL"},
		{"health localhost:7401", `"localhost:7401": want a URL, as in http://localhost:7401/readyz`},
		{"health http:///readyz", "want a URL"},
		{"health http://localhost:1 --timeout soon", `invalid argument "soon"`},
		{"generate", "--topics: want names of topics"},
		{"generate --topics a, --count 1", "--topics: want names of topics"},
		{"generate --topics a --size 24", "--size 24: want 25 to 16777216"},
		{"generate --topics a --partitions 0", "--partitions 0: want 1 to 100000"},
		{"generate --topics a --partitions 2000000000", "want 1 to 100000"},
		{"generate --topics a --size 2000000000", "want 25 to 16777216"},
		{"generate --topics a --brokers=", "--brokers: want addresses of brokers"},
		{"generate --topics a --brokers localhost", `--brokers "localhost": want host:port`},
		{"generate --topics a/b", `--topics "a/b": want letters`},
		{"audit --buffer localhost", `--buffer "localhost": want host:port`},
		{"audit --buffer localhost:99999", `--buffer "localhost:99999": want host:port`},
		{"audit --timeout -1s", "--timeout -1s: want more than 0"},
		{"sources --timeout 0s", "--timeout 0s: want more than 0"},
		{"deliveries --delivery nowhere", `--delivery "nowhere": want host:port`},
		{"health --timeout 0s http://localhost:1", "--timeout 0s: want more than 0"},
		{"generate --topics a --rate -1", "--rate -1: want 0 or more"},
		{"generate --topics a --count -1", "--count -1: want 0 or more"},
		{"dev --rate 0", "--rate 0: want 1 or more"},
		{"dev --duration -1s", "--duration -1s: want 0 or more"},
		{"dev --duration 10", `invalid argument "10" for "--duration"`},
		{"dev --break-kafka 5s", `--break-kafka "5s": want FROM..TO`},
		{"dev --output xml", `--output "xml": want table or json`},
		{"dev --dir .", "--dir . is not empty"},
		{"audit a b", "wants at most one argument"},
		{"audit --output xml", `--output "xml": want table or json`},
		{"import-flume", "want one argument: Flume's file"},
		{"import-flume nowhere.conf", "read Flume's file: open nowhere.conf: no such file"},
		{"import-flume nowhere.conf --flume-version 2", `--flume-version "2": want 1.5 to 1.11`},
		{"completion", "want one argument, the shell: bash, zsh or fish"},
		{"completion tcsh", "want one argument, the shell: bash, zsh or fish"},
		{"context set prod", "nothing to set"},
		{"context set prod --buffer x", `contexts.prod.buffer: malformed address "x"`},
		{"context use nowhere", `no context "nowhere"`},
		{"queues --context nowhere", `no context "nowhere"`},
		{"queues --context x -c " + file, "--context and --config both say where the buffer is"},
		{"doctor", "want the services: --config FILE"},
		{"doctor -b nowhere", `"nowhere": want host:port`},
		{"store init", "want --config FILE"},
		{"store init -c " + file, "no queue of the file is kept in Kafka"},
		{"store check -c " + file, "no queue of the file is kept in Kafka"},
		{"store check -o xml -c " + file, `--output "xml": want table or json`},
		{"store init --timeout 0s -c " + file, "--timeout 0s: want more than 0"},
		{"reload", "want the services: --config FILE"},
		{"reload nowhere", `"nowhere": want host:port`},
		{"reload -c " + file + " --context x", "--context and --config both say where the services are"},
		{"version 2", `spillway version takes no argument, and "2" is one`},
	} {
		got := spillway(t, strings.Fields(test.args)...)
		if got.status != 2 || !strings.HasPrefix(got.stderr, "spillway: ") || !strings.Contains(got.stderr, test.want) || got.stdout != "" {
			t.Errorf("spillway %s: %+v; want status 2 and %q", test.args, got, test.want)
		}
	}
}

// TestFailure is exit status 1.
func TestFailure(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"health http://127.0.0.1:1/readyz", "connection refused"},
		{"generate --topics a --brokers 127.0.0.1:1", "connection refused"},
		{"dev --dir /dev/null/x", "--dir: mkdir /dev/null: not a directory"},
	} {
		got := spillway(t, strings.Fields(test.args)...)
		if got.status != 1 || !strings.Contains(got.stderr, test.want) || got.stdout != "" {
			t.Errorf("spillway %s: %+v; want status 1 and %q", test.args, got, test.want)
		}
	}
}

func TestFlagsFromEnvironment(t *testing.T) {
	t.Setenv("SPILLWAY_CONFIG", writeFile(t, "pipeline.yaml", pipeline))
	if got := spillway(t, "check"); got.status != 0 {
		t.Errorf("check: %+v", got)
	}
	t.Setenv("SPILLWAY_LOG_LEVEL", "loud")
	if got := spillway(t, "buffer"); got.status != 2 || !strings.Contains(got.stderr, `--log-level "loud"`) {
		t.Errorf("buffer: %+v", got)
	}
}

func TestVersion(t *testing.T) {
	for _, args := range []string{"version", "--version"} {
		if got := spillway(t, args); got.status != 0 || !strings.HasPrefix(got.stdout, "spillway ") || !strings.Contains(got.stdout, " (go1.") {
			t.Errorf("%s: %+v", args, got)
		}
	}
}

// TestSBOM names the modules of the program, with versions and sums, and is the same each time.
func TestSBOM(t *testing.T) {
	got := spillway(t, "version", "--sbom")
	var b bom
	if err := json.Unmarshal([]byte(got.stdout), &b); err != nil || got.status != 0 || b.Format != "CycloneDX" || b.Metadata.Component.Name != "github.com/spillwayio/spillway" {
		t.Fatalf("%v: %+v", err, got)
	}
	names := make(map[string]bomComponent)
	for _, c := range b.Components {
		names[c.Name] = c
		if c.Version == "" || c.PURL != "pkg:golang/"+c.Name+"@"+c.Version || c.Name != "std" && len(c.Properties) != 1 {
			t.Errorf("%+v", c)
		}
	}
	for _, name := range []string{"std", "google.golang.org/grpc", "github.com/nutsdb/nutsdb"} {
		if _, ok := names[name]; !ok {
			t.Errorf("%s is not in it", name)
		}
	}
	if again := spillway(t, "version", "--sbom"); again.stdout != got.stdout {
		t.Error("it is another one the second time")
	}
}

// TestHelp has every command explain itself.
func TestHelp(t *testing.T) {
	for _, command := range append(newRoot().Commands(), newRoot()) {
		args := append(strings.Fields(command.CommandPath())[1:], "--help")
		got := spillway(t, args...)
		if got.status != 0 || got.stderr != "" || !strings.Contains(got.stdout, "Usage:") {
			t.Errorf("spillway %s: %+v", args, got)
		}
		if command.Short == "" || command.HasAvailableFlags() && command.Parent() != nil && (command.Long == "" || command.Example == "") {
			t.Errorf("%s does not explain itself", command.CommandPath())
		}
		for line := range strings.Lines(command.Long + "\n" + command.Example) {
			if len([]rune(line)) > 130 {
				t.Errorf("%s: a line too long for a terminal: %s", command.CommandPath(), line)
			}
		}
	}
	if got := spillway(t); got.status != 0 || got.stdout != spillway(t, "--help").stdout {
		t.Errorf("without arguments: %+v", got)
	}
	var names []string
	for _, command := range newRoot().Commands() {
		names = append(names, command.Name())
	}
	if got, want := strings.Join(names, " "), "audit buffer buffers certificates check compare completion config context dead-letters deliveries delivery dev doctor files generate health import-flume ingest inspect queues reload replay run sessions shards sources store subscriptions tap top version"; got != want {
		t.Errorf("commands are %s, want %s", got, want)
	}
}
