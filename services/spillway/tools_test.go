package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/spillwayio/spillway/services/internal/config"
)

const pipeline = `buffers: [buffer:7400]
ingest:
  sources:
    logs: {brokers: ["kafka:9092", "kafka2:9092"], group: g, topics: [orders, web], queue: q}
buffer:
  data_dir: /var/lib/spillway
  queues:
    q: {subscriptions: {files: {}, copy: {topics: ["orders*"]}}}
delivery:
  files:
    subscription: q/files
    hdfs: {url: "hdfs://namenode:8020/", path: "/logs/%{topic}"}
  copy:
    subscription: q/copy
    kafka: {brokers: ["other:9092"], topic: "copy-%{topic}"}
security: {insecure: true}
`

var trailingBlanks = regexp.MustCompile(`(?m) +$`)

func TestCheck(t *testing.T) {
	file := writeFile(t, "pipeline.yaml", pipeline)
	got := spillway(t, "check", "-c", file)
	want := `KIND          NAME     FROM                                  TO
source        logs     orders,web of kafka:9092,kafka2:9092  q
subscription  q/copy   orders*
subscription  q/files  *
delivery      copy     q/copy                                copy-%{topic} of other:9092
delivery      files    q/files                               hdfs://namenode:8020/logs/%{topic}
`
	if got.status != 0 || trailingBlanks.ReplaceAllString(got.stdout, "") != want || got.stderr != "" {
		t.Errorf("check: %+v, want\n%s", got, want)
	}

	got = spillway(t, "check", "--config", file, "--output", "json")
	var answer struct {
		File  string
		Parts []part
	}
	if err := json.Unmarshal([]byte(got.stdout), &answer); err != nil || got.status != 0 {
		t.Fatalf("check: %v, %+v", err, got)
	}
	if answer.File != file || len(answer.Parts) != 5 || answer.Parts[0] != (part{"source", "logs", "orders,web of kafka:9092,kafka2:9092", "q"}) {
		t.Errorf("check: %+v", answer)
	}

	t.Setenv("SPILLWAY_DELIVERY__COPY__KAFKA__TOPIC", "other-%{topic}")
	if got := spillway(t, "check", "-c", file); !strings.Contains(got.stdout, "other-%{topic} of other:9092") {
		t.Errorf("check knows no variable: %+v", got)
	}
}

// TestWrongConfiguration has the file, the line and the key said by every command that reads it.
func TestWrongConfiguration(t *testing.T) {
	unknown := writeFile(t, "pipeline.yaml", strings.Replace(pipeline, "data_dir", "datadir", 1))
	want := "spillway: " + unknown + `:6: unknown key "datadir" in buffer; did you mean "data_dir"?` + "\n"
	for _, command := range []string{"check", "buffer", "ingest", "delivery files"} {
		got := spillway(t, append(strings.Fields(command), "-c", unknown)...)
		if got.status != 2 || got.stderr != want || got.stdout != "" {
			t.Errorf("%s: %+v, want %s", command, got, want)
		}
	}

	two := writeFile(t, "pipeline.yaml", strings.NewReplacer("group: g", "group: ''", "q/files", "p/files").Replace(pipeline))
	got := spillway(t, "check", "-c", two)
	want = "spillway: the configuration has 2 problems\n" +
		two + ":4: ingest.sources.logs.group: is empty; want the name of a consumer group\n" +
		two + `:11: delivery.files.subscription: no queue is named "p"; there is q` + "\n"
	if got.status != 2 || got.stderr != want {
		t.Errorf("check: %+v, want %s", got, want)
	}

	for name, test := range map[string]struct{ content, command, want string }{
		"nothing at all": {"", "check", "describes no source, no queue and no delivery"},
		"no data_dir":    {strings.Replace(pipeline, "data_dir: /var/lib/spillway", "listen: :7400", 1), "check", "buffer.data_dir is missing"},
		"no queue":       {"buffers: [localhost:1]", "buffer", "buffer.queues is missing"},
		"no source":      {"buffers: [localhost:1]", "ingest", "ingest.sources is missing"},
		"no delivery":    {"buffers: [localhost:1]", "delivery x", "delivery is missing"},
	} {
		file := writeFile(t, "pipeline.yaml", test.content)
		if got := spillway(t, append(strings.Fields(test.command), "-c", file)...); got.status != 2 || !strings.Contains(got.stderr, test.want) {
			t.Errorf("%s: %+v, want %s", name, got, test.want)
		}
	}
}

// TestCheckWarns says what has no effect, and does not call it wrong. A service says the same of
// its own part.
func TestCheckWarns(t *testing.T) {
	file := writeFile(t, "pipeline.yaml", strings.Replace(pipeline, `path: "/logs/%{topic}"`, `path: "/logs/%{topic}", round_unit: hour`, 1))
	want := file + ":12: delivery.files.hdfs.round_unit: has no effect: it needs round: true"
	if got := spillway(t, "check", "-c", file); got.status != 0 || got.stderr != "warning: "+want+"\n" {
		t.Errorf("check: %+v, want %s", got, want)
	}
	made := writeFile(t, "pipeline.yaml", strings.Replace(pipeline, "q/files", "q/fils", 1)) // a slip, or made at run time
	said := `:11: delivery.files.subscription: no subscription of queue q in this file is named "fils", so that the delivery waits until CreateSubscription makes it, if it has not; did you mean "files"?`
	if got := spillway(t, "check", "-c", made); got.status != 0 || got.stderr != "warning: "+made+said+"\n" {
		t.Errorf("check: %+v, want %s", got, said)
	}
	var answer struct{ Warnings []string }
	got := spillway(t, "check", "-c", file, "-o", "json")
	if err := json.Unmarshal([]byte(got.stdout), &answer); err != nil || len(answer.Warnings) != 1 || answer.Warnings[0] != want || got.stderr != "" {
		t.Errorf("check: %v, %+v", err, got)
	}
	c := start(t, "delivery", "files", "-c", file)
	c.wait("has no effect: it needs round: true")
}

// TestSinksTakeWhatCheckPasses compares the bound of names in the configuration with what a
// delivery can work with.
func TestSinksTakeWhatCheckPasses(t *testing.T) {
	for n := 90; n < 140; n++ {
		for _, compression := range []string{"none", "gzip", "snappy"} {
			text := fmt.Sprintf("delivery: {d: {subscription: q/s, hdfs: {url: 'file://%s', path: /x, file_suffix: .%s, compression: %s}}}", t.TempDir(), strings.Repeat("x", n), compression)
			cfg, err := config.Parse("f.yaml", []byte(text), nil)
			if err != nil {
				continue
			}
			if _, err := newSink(cfg.Delivery["d"], slog.New(slog.DiscardHandler)); err != nil {
				t.Errorf("a file_suffix of %d bytes with compression %s passes check, and the delivery says: %v", n+1, compression, err)
			}
		}
	}
}

func TestHealth(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, "queue q: opening")
			return
		}
		fmt.Fprintln(w, "ready")
	}))
	defer server.Close()
	t.Setenv("http_proxy", "http://127.0.0.1:1") // is not for neighbours
	if got := spillway(t, "health", server.URL+"/readyz"); got.status != 0 || got.stdout != "ready\n" {
		t.Errorf("ready: %+v", got)
	}
	want := "spillway: " + server.URL + "/x: 503 Service Unavailable: queue q: opening\n"
	if got := spillway(t, "health", server.URL+"/x"); got.status != 1 || got.stderr != want || got.stdout != "" {
		t.Errorf("not ready: %+v, want %s", got, want)
	}
}
