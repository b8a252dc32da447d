package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spillwayio/spillway/services/flume"
	"github.com/spillwayio/spillway/services/internal/config"
)

const agentFile = `a.sources = s
a.channels = c
a.sinks = k
a.sources.s.type = org.apache.flume.source.kafka.KafkaSource
a.sources.s.channels = c
a.sources.s.zookeeperConnect = zk:2181
a.sources.s.topic = t
a.channels.c.type = memory
a.sinks.k.type = hdfs
a.sinks.k.channel = c
a.sinks.k.hdfs.path = hdfs://namenode:8020/logs
a.sinks.k.hdfs.fileType = DataStream
a.sinks.k.hdfs.batchSize = 500
a.channels.c.transactionCapacity = 100
`

// TestImportFlume runs the command: a pipeline on stdout that check accepts, a report on stderr,
// and the exit status.
func TestImportFlume(t *testing.T) {
	file := writeFile(t, "flume.conf", agentFile)
	out := filepath.Join(t.TempDir(), "spillway.yaml")

	got := spillway(t, "import-flume", file, "--brokers", "kafka:9092")
	if _, err := config.Parse("out", []byte(got.stdout), nil); got.status != 0 || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	if !strings.Contains(got.stderr, "13    a.sinks.k.hdfs.batchSize = 500") || !strings.Contains(got.stderr, "1 changed in meaning") {
		t.Errorf("the report:\n%s", got.stderr)
	}
	if got := spillway(t, "import-flume", file, "--brokers", "kafka:9092", "--strict"); got.status != 1 || !strings.Contains(got.stderr, "1 changed in meaning (--strict)") {
		t.Errorf("--strict: %+v", got)
	}
	if got := spillway(t, "import-flume", file); got.status != 1 || !strings.Contains(got.stderr, "import with --brokers") {
		t.Errorf("without brokers: %+v", got)
	}

	got = spillway(t, "import-flume", file, "--brokers", "kafka:9092", "-o", out, "--output", "json")
	var report flume.Report
	if err := json.Unmarshal([]byte(got.stderr), &report); err != nil || got.status != 0 || got.stdout != "" || len(report.Entries) != 14 {
		t.Errorf("%+v: %v, %d keys", got, err, len(report.Entries))
	}
	if check := spillway(t, "check", "-c", out); check.status != 0 {
		t.Errorf("check: %+v", check)
	}
	if got := spillway(t, "import-flume", file, "--brokers", "kafka:9092", "-o", out); got.status != 2 || !strings.Contains(got.stderr, "file exists") {
		t.Errorf("a file that is there: %+v", got)
	}
	dead := writeFile(t, "dead.conf", "a.sources = s\na.sources.s.type = exec\n")
	nothing := filepath.Join(t.TempDir(), "nothing.yaml")
	got = spillway(t, "import-flume", dead, "-o", nothing)
	if _, err := os.Stat(nothing); got.status != 1 || err == nil || !strings.Contains(got.stderr, "no pipeline is written") || !strings.Contains(got.stderr, "2     a.sources.s.type = exec") {
		t.Errorf("an agent of which Flume starts nothing: %+v", got)
	}
	if text, err := os.ReadFile(out); err != nil || !strings.Contains(string(text), "subscription: c/c") {
		t.Errorf("%s, %v", text, err)
	}
}
