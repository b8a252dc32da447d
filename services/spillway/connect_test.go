package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// probed runs check --connect on a pipeline, and returns what was found, by part and check.
func probed(t *testing.T, pipeline string, args ...string) (status int, found map[string]finding) {
	t.Helper()
	file := writeFile(t, "pipeline.yaml", pipeline)
	got := spillway(t, append([]string{"check", "--connect", "-c", file, "-o", "json"}, args...)...)
	var answer struct{ Probes []finding }
	if err := json.Unmarshal([]byte(got.stdout), &answer); err != nil {
		t.Fatalf("%v: %+v", err, got)
	}
	found = make(map[string]finding)
	for _, f := range answer.Probes {
		found[f.Part+": "+f.Check] = f
	}
	return got.status, found
}

func expect(t *testing.T, found map[string]finding, probe, result, detail string) {
	t.Helper()
	f, ok := found[probe]
	if !ok || f.Result != result || !strings.Contains(f.Detail, detail) || (f.ToDo == "") != (result == "OK") {
		t.Errorf("%s is %+v, want %s with %q; there are %v", probe, f, result, detail, found)
	}
}

// TestCheckConnect tries a pipeline that works: nothing of it is left behind.
func TestCheckConnect(t *testing.T) {
	source, target := kafkaOf(t, kfake.SeedTopics(2, "orders", "xa", "xb")), kafkaOf(t, kfake.SeedTopics(2, "copy-orders", "copy-xa"))
	dir := t.TempDir()
	pipeline := fmt.Sprintf(`
ingest: {listen: '127.0.0.1:0', http: '127.0.0.1:0', sources: {s: {brokers: [%q], group: g, topics: [orders, 're:x.*'], queue: q}}}
buffer: {listen: '127.0.0.1:0', http: '127.0.0.1:0', data_dir: %q, queues: {q: {disk: {bytes: 256MiB}, subscriptions: {files: {}, kafka: {topics: [orders, 'x*']}}}}}
delivery:
  files: {subscription: q/files, listen: '127.0.0.1:0', http: '127.0.0.1:0', hdfs: {url: %q, path: '/logs/a-%%{topic}/%%Y'}}
  kafka: {subscription: q/kafka, listen: '127.0.0.1:0', http: '127.0.0.1:0', kafka: {brokers: [%q], topic: 'copy-%%{topic}', missing_topic: create}}
`, source[0], filepath.Join(dir, "buffer"), "file://"+filepath.Join(dir, "files"), target[0])
	status, found := probed(t, pipeline)
	if status != 0 {
		t.Errorf("status %d: %v", status, found)
	}
	for probe, detail := range map[string]string{
		"buffer: data_dir " + filepath.Join(dir, "buffer"): "can be made in " + dir,
		"buffer: disk space":                  "the queues may take 256.0MiB",
		"ingest: buffer localhost:7400":       "",
		"ingest.sources.s: topics":            "orders, xa, xb",
		"ingest.sources.s: rights":            "may read",
		"ingest.sources.s: group g":           "may be ",
		"ingest.sources.s: leaders":           "partition 0 of 3 topics",
		"delivery.files: file system":         "answers",
		"delivery.files: probe directory":     "removed in /logs",
		"delivery.files: path of xa":          fmt.Sprintf("/logs/a-xa/%d", time.Now().Year()),
		"delivery.kafka: path of xb":          "copy-xb",
		"delivery.kafka: target topics":       "copy-xb will be created",
		"delivery.kafka: rights":              "may write",
		"delivery.kafka: loops":               "none",
		"delivery.kafka: leaders":             "2 topics",
		"ingest.sources.s: credentials":       "plain text",
		"ingest: listen 127.0.0.1:0":          "free",
		"delivery.kafka: broker " + target[0]: "cluster ",
	} {
		expect(t, found, probe, "OK", detail)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}

	samples := writeFile(t, "samples", `{"topic": "orders", "timestamp": 0}`+"\n"+`{"topic": "other"}`)
	status, found = probed(t, pipeline, "--part", "delivery.files", "--samples", samples)
	expect(t, found, "delivery.files: path of orders", "OK", "/logs/a-orders/1970")
	if status != 0 || len(found) != 7 {
		t.Errorf("status %d: %v", status, found)
	}
	for args, want := range map[string]string{
		"--part delivery.none --connect": `--part "delivery.none": the file has buffer, ingest, ingest.sources.s, delivery.files, delivery.kafka`,
		"--part buffer":                  "--part is for --connect",
		"--connect --timeout 0s":         "want more than 0",
		"--connect --samples nowhere":    "read samples",
	} {
		got := spillway(t, append(strings.Fields("check "+args), "-c", writeFile(t, "pipeline.yaml", pipeline))...)
		if got.status != 2 || !strings.Contains(got.stderr, want) {
			t.Errorf("%s: %+v", args, got)
		}
	}
}

// TestCheckConnectFails finds each of the usual faults, within the time that was given.
func TestCheckConnectFails(t *testing.T) {
	operation := func(resource kmsg.ACLResourceType, name string, op kmsg.ACLOperation) kfake.ACL {
		return kfake.ACL{Resource: resource, Name: name, Pattern: kmsg.ACLResourcePatternTypeLiteral, Operation: op, Allow: true}
	}
	cluster, err := kfake.NewCluster(kfake.NumBrokers(2), kfake.SeedTopics(1, "in", "hidden", "out"), kfake.EnableSASL(), kfake.EnableACLs(), kfake.User("PLAIN", "u", "pw",
		operation(kmsg.ACLResourceTypeTopic, "in", kmsg.ACLOperationDescribe), operation(kmsg.ACLResourceTypeTopic, "out", kmsg.ACLOperationRead)))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	source := cluster.ListenAddrs()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts connections, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	dir := t.TempDir()
	blocked := writeFile(t, "file", "")
	login := "sasl: {mechanism: PLAIN, username: u, password: pw}"
	pipeline := fmt.Sprintf(`
buffers: ['nowhere.invalid:7400']
security: {insecure: true}
ingest:
  listen: '127.0.0.1:0'
  http: %q
  sources:
    s: {brokers: [%q], %s, group: g, topics: [in, hidden, missing], queue: q}
    wrong: {brokers: [%[2]q], sasl: {mechanism: PLAIN, username: u, password: other}, group: h, topics: [in], queue: q}
    silent: {brokers: [%[1]q, %[4]q], group: i, topics: [in], queue: q}
buffer: {listen: '127.0.0.1:0', http: '127.0.0.1:0', data_dir: %[5]q, queues: {q: {subscriptions: {files: {}, hdfs: {}, out: {}, loop: {topics: [in]}}}}}
delivery:
  files: {subscription: q/files, listen: '127.0.0.1:0', http: '127.0.0.1:0', hdfs: {url: %[6]q, path: '/%%{topic}'}}
  hdfs: {subscription: q/hdfs, listen: '127.0.0.1:0', http: '127.0.0.1:0', hdfs: {url: 'hdfs://%[1]s', path: '/%%{topic}'}}
  out: {subscription: q/out, listen: '127.0.0.1:0', http: '127.0.0.1:0', kafka: {brokers: [%[2]q], %[3]s, topic: out}}
  loop: {subscription: q/loop, listen: '127.0.0.1:0', http: '127.0.0.1:0', kafka: {brokers: [%[7]q], %[3]s, topic: in}}
`, silent.Addr(), source[0], login, freeAddr(t), filepath.Join(blocked, "buffer"), "file://"+blocked, source[1])
	began := time.Now()
	status, found := probed(t, pipeline, "--timeout", "2s")
	if took := time.Since(began); status != 1 || took > time.Minute {
		t.Errorf("status %d after %s", status, took)
	}
	for probe, want := range map[string][2]string{
		"ingest: http " + silent.Addr().String():                  {"FAILED", "address already in use"},
		"ingest: buffer nowhere.invalid:7400":                     {"FAILED", "nowhere.invalid"},
		"ingest.sources.s: topics":                                {"FAILED", "there are no topics hidden, missing"},
		"ingest.sources.s: rights":                                {"FAILED", "may not read in"},
		"ingest.sources.s: group g":                               {"FAILED", "Group Authorization Failed"},
		"ingest.sources.wrong: broker " + source[0]:               {"FAILED", "log in at "},
		"ingest.sources.silent: broker " + silent.Addr().String(): {"FAILED", ""},
		"buffer: data_dir " + filepath.Join(blocked, "buffer"):    {"FAILED", "not a directory"},
		"delivery.files: settings file://" + blocked:              {"FAILED", "not a directory"},
		"delivery.hdfs: file system":                              {"FAILED", "no answer within 2s"},
		"delivery.out: rights":                                    {"FAILED", "may not write to out"},
		"delivery.loop: loops":                                    {"FAILED", "topic in is the one that its records were read from"},
		"delivery.hdfs: path of in":                               {"OK", "/in"},
	} {
		expect(t, found, probe, want[0], want[1])
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
	got := spillway(t, "check", "--connect", "-c", writeFile(t, "pipeline.yaml", pipeline), "--part", "buffer")
	if got.status != 1 || !strings.Contains(got.stdout, "FAILED  buffer  data_dir") || !strings.Contains(got.stdout, "\n  Give the service's user a directory") ||
		!strings.Contains(got.stderr, "1 of 3 probes failed") {
		t.Errorf("as a table: %+v", got)
	}
}

// TestFixedDir is where the probe directory is made.
func TestFixedDir(t *testing.T) {
	for template, want := range map[string]string{"/logs/%{topic}": "/logs", "/logs/x-%{topic}": "/logs", "/%Y": "/", "logs": "/logs", "": "/", "/a/b/": "/a/b"} {
		if got := fixedDir(template); got != want {
			t.Errorf("%q: %q, want %q", template, got, want)
		}
	}
}
