package main

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// TestDoctor collects from a pipeline that has canaries wherever secrets and records are: in the
// file, in the environment, in a token, in records that are delivered, pending and dead letters.
func TestDoctor(t *testing.T) {
	const canary = "canary-0123456789abcdefghijk"
	source := kafkaOf(t, kfake.SeedTopics(1, "in"), kfake.EnableSASL(), kfake.Superuser("PLAIN", "u", canary))
	client, err := kgo.NewClient(kgo.SeedBrokers(source...), kgo.DefaultProduceTopic("in"), kgo.SASL(plain.Auth{User: "u", Pass: canary}.AsMechanism()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	dir := t.TempDir()
	token := writeFile(t, "token", canary+"\n")
	grpcPort, httpPort := freeAddr(t), freeAddr(t)
	file := writeFile(t, "pipeline.yaml", fmt.Sprintf(`
buffers: [%q]
ingest: {listen: %q, http: %q, sources: {s: {brokers: [%q], sasl: {mechanism: PLAIN, username: u, password: %s}, group: g, topics: [in], queue: q, batch: {linger: 10ms}}}}
buffer: {listen: %[1]q, http: %[6]q, data_dir: %[7]q, queues: {q: {subscriptions: {files: {}, dead: {}, stuck: {}}}}}
delivery:
  files: {subscription: q/files, listen: %q, http: %q, hdfs: {url: %q, path: '/%%{topic}', commit: {interval: 50ms}}}
  dead: {subscription: q/dead, listen: %q, http: %q, kafka: {brokers: [%[4]q], sasl: {mechanism: PLAIN, username: u, password: x}, topic: 'out%%{h}'}}
security: {tokens: [{name: me, file: %[13]q, roles: ['*']}], client: {token_file: %[13]q}}
`, grpcPort, freeAddr(t), freeAddr(t), source[0], canary, httpPort, filepath.Join(dir, "buffer"), freeAddr(t), freeAddr(t), "file://"+filepath.Join(dir, "files"), freeAddr(t), freeAddr(t), token))
	t.Setenv("SPILLWAY_DELIVERY__DEAD__KAFKA__SASL__PASSWORD", canary)
	c := start(t, "run", "-c", file)
	c.wait("joined the group")
	for range 10 { // their names of topics are no names of topics
		client.Produce(t.Context(), &kgo.Record{Key: []byte(canary), Value: []byte(canary), Headers: []kgo.RecordHeader{{Key: "h", Value: []byte("/" + canary)}}}, nil)
	}
	if err := client.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "records are in files, and dead letters", func() bool {
		got := spillway(t, "dead-letters", "q/dead", "-c", file)
		return len(textBelow(t, filepath.Join(dir, "files"))) == 10 && strings.Contains(got.stdout, "dead-lettered")
	})

	out := filepath.Join(dir, "doctor.tar.gz")
	got := spillway(t, "doctor", "-c", file, "--out", out)
	if got.status != 0 || got.stderr != "" || !strings.HasPrefix(got.stdout, out+": ") {
		t.Fatalf("doctor: %+v", got)
	}
	if info, err := os.Stat(out); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	files := readArchive(t, out)
	for name, text := range files {
		if strings.Contains(text, canary) || strings.Contains(text, "Y2FuYXJ5") /* in base64 */ {
			t.Errorf("%s has the canary", name)
		}
		if strings.HasSuffix(name, ".json") && !json.Valid([]byte(text)) {
			t.Errorf("%s is no JSON: %s", name, text)
		}
	}
	buffer := "buffer-" + fileName(grpcPort) + "/"
	for name, want := range map[string]string{
		"build.txt": "github.com/spillwayio/spillway", "config.yaml": "password: (secret)", "errors.txt": "",
		buffer + "ListQueues.json": `"disk_bytes"`, buffer + "GetSubscription/q-dead.json": `"pending_records"`, buffer + "ListUndelivered/q-dead.json": "OUTCOME_DEAD_LETTERED",
		buffer + "Audit.json": `"holes"`, fileName(httpPort) + "/metrics.txt": "spillway_build_info", fileName(httpPort) + "/readyz.txt": "ready",
		fileName(httpPort) + "/goroutines.txt": "goroutine profile: total",
	} {
		want = strings.NewReplacer("disk_bytes", "diskBytes", "pending_records", "pendingRecords", "holes", "holeOffsets").Replace(want)
		if text, ok := files["spillway-doctor/"+name]; !ok || !strings.Contains(text, want) {
			t.Errorf("%s lacks %q: %.300s", name, want, text)
		}
	}
	if len(files) < 30 || strings.TrimSpace(files["spillway-doctor/errors.txt"]) != "" {
		t.Errorf("%d files, %s", len(files), files["spillway-doctor/errors.txt"])
	}

	// What is away is named, and what is there is in it. An archive is never written over.
	out2 := filepath.Join(dir, "other.tar.gz")
	nowhere := freeAddr(t)
	got = spillway(t, "doctor", "-b", grpcPort, "--token-file", token, "--http", "http://"+nowhere, "--out", out2)
	if got.status != 0 || !strings.Contains(got.stderr, "not in it: http://"+nowhere+"/metrics: nothing listens there") || len(readArchive(t, out2)) < 10 {
		t.Errorf("doctor: %+v", got)
	}
	if got := spillway(t, "doctor", "-b", grpcPort, "--out", out2); got.status != 1 || !strings.Contains(got.stderr, "exists") {
		t.Errorf("doctor over an archive: %+v", got)
	}
	if got := spillway(t, "doctor", "-b", nowhere, "--out", filepath.Join(dir, "none")); got.status != 1 || !strings.Contains(got.stderr, "no service answered") {
		t.Errorf("doctor of nothing: %+v", got)
	}
	if _, err := os.Stat(filepath.Join(dir, "none")); err == nil {
		t.Error("an archive without an answer is left")
	}
}

func readArchive(t *testing.T, name string) map[string]string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]string)
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(b)
	}
}

// TestDoctorAsksAll: every RPC that lists or shows is in the archive, or shows records.
func TestDoctorAsksAll(t *testing.T) {
	records := []string{"PeekRecords"}
	asked := make(map[string]bool)
	for _, calls := range collected {
		for _, c := range calls {
			asked[c.service+"/"+c.method] = true
		}
	}
	for _, name := range []protoreflect.FullName{"BufferAdminService", "IngestAdminService", "DeliveryAdminService"} {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName("spillway.v1." + name)
		if err != nil {
			t.Fatal(err)
		}
		methods := d.(protoreflect.ServiceDescriptor).Methods()
		for i := range methods.Len() {
			m := string(methods.Get(i).Name())
			call := string(name) + "/" + m
			shows := strings.HasPrefix(m, "List") || strings.HasPrefix(m, "Get") || m == "Audit"
			if shows != asked[call] && !slices.Contains(records, m) {
				t.Errorf("%s: asked %t, want %t", call, asked[call], shows)
			}
			delete(asked, call)
		}
	}
	if len(asked) > 0 {
		t.Errorf("there are no calls %v", asked)
	}
}
