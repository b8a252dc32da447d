package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestSteer steers a running pipeline as an operator does: raises the bound of the disk, looks at
// a dead letter and has it delivered once more, and replays an hour.
func TestSteer(t *testing.T) {
	source := kafkaOf(t, kfake.SeedTopics(1, "in"))
	client, err := kgo.NewClient(kgo.SeedBrokers(source...), kgo.DefaultProduceTopic("in"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	dir := t.TempDir()
	file := writeFile(t, "pipeline.yaml", fmt.Sprintf(`
ingest: {listen: '127.0.0.1:0', http: '127.0.0.1:0', sources: {s: {brokers: [%q], group: g, topics: [in], queue: q, batch: {linger: 10ms}}}}
buffer: {listen: '127.0.0.1:0', http: '127.0.0.1:0', data_dir: %q, queues: {q: {subscriptions: {files: {}}}}}
delivery:
  files: {subscription: q/files, listen: '127.0.0.1:0', http: '127.0.0.1:0', hdfs: {url: %q, path: '/%%{topic}', commit: {interval: 50ms}},
    transforms: [{set_time: {from: "json:at", unit: seconds}}]}
`, source[0], filepath.Join(dir, "buffer"), "file://"+filepath.Join(dir, "files")))
	c := start(t, "run", "-c", file)
	c.wait("joined the group")
	m := regexp.MustCompile(`msg=starting service=buffer .*grpc=(\S+)`).FindStringSubmatch(c.out.String())
	if m == nil {
		t.Fatal("no address of the buffer in the log")
	}
	// The same, with the address that the buffer has got.
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	at := writeFile(t, "at.yaml", fmt.Sprintf("buffers: [%q]\n%s", m[1], text))
	const records = 10
	for i := range records {
		value := fmt.Sprintf(`{"at":%d}`, 1_700_000_000+i)
		if i == 3 {
			value = "nonsense"
		}
		client.Produce(t.Context(), &kgo.Record{Key: []byte("k"), Value: []byte(value), Headers: []kgo.RecordHeader{{Key: "from", Value: []byte("a\x1bb")}}}, nil)
	}
	if err := client.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	delivered := func(n int) {
		t.Helper()
		waitUntil(t, fmt.Sprintf("%d lines are in files", n), func() bool { return len(textBelow(t, filepath.Join(dir, "files"))) >= n })
	}
	delivered(records - 1)

	run := func(command string) result { return spillway(t, append(strings.Fields(command), "-b", m[1])...) }
	// prints runs a command until it prints lines with these words.
	prints := func(command string, lines ...string) {
		t.Helper()
		var got result
		waitUntil(t, "spillway "+command, func() bool {
			got = run(command)
			all := strings.Split(got.stdout, "\n")
			for i := range all {
				all[i] = strings.Join(strings.Fields(all[i]), " ")
			}
			return got.status == 0 && !slices.ContainsFunc(lines, func(want string) bool {
				return !slices.ContainsFunc(all, func(line string) bool { return strings.Contains(line, want) })
			})
		})
	}
	prints("queues update q --disk-bytes 300MiB --disk-records 5000", "300.0MiB", "the file says disk.bytes: 100GiB", "disk.records: 100000000")
	prints("queues", "300.0MiB")
	if got := spillway(t, "config", "diff", "-c", at); got.status != 1 || got.stdout != "buffer.queues.q.disk.bytes: the file says 100GiB, the buffer has 300MiB\nbuffer.queues.q.disk.records: the file says 100000000, the buffer has 5000\n" {
		t.Errorf("config diff: %+v", got)
	}
	if got := spillway(t, "config", "show", "-c", file); got.status != 0 || !strings.Contains(got.stdout, "bytes: 100GiB\n") {
		t.Errorf("config show: %+v", got)
	}

	prints("dead-letters q/files", "in 0 3 4 1 dead-lettered yes")
	prints("dead-letters show q/files in/0/3", "reason: ", "record: in/0/3", "key: k", `header: from = "a\x1bb"`, "value: nonsense")
	prints("dead-letters redrive q/files in/0/3", "1 offsets of q/files are delivered once more")
	prints("dead-letters q/files", "in 0 3 4 1 dead-lettered yes") // it is nonsense still
	prints("dead-letters forget q/files --all --confirm q/files", "1 offsets of q/files are forgotten")

	prints("replay q/files --last 1h --rate 0.5x --dry-run", "in 0 0 10 10 0 0", "10 records are delivered once more, which takes 2h0m0s")
	prints("replay status q/files", "q/files was never replayed")
	prints("replay q/files --last 1h --rate 1000/s --confirm q/files", "10 records are delivered once more", "it goes on over restarts")
	delivered(2 * (records - 1))
	prints("replay status q/files", "over, 10 records")
	prints("subscriptions show q/files", "replay: over, 10 records")
	prints("dead-letters q/files", "in 0 3 4 1 dead-lettered yes")
	prints("replay q/files --last 1h --rate 0.001/s --confirm q/files", "records are delivered once more")
	prints("replay cancel q/files", "cancelled")
	prints("replay status q/files", "ago, of 10 records") // what was with the delivery is finished

	for command, want := range map[string]string{
		"queues update q":                                "nothing to change",
		"queues update q --disk-bytes much":              "disk-bytes",
		"dead-letters show q/files in":                   "want TOPIC/PARTITION/OFFSET",
		"dead-letters show q/files":                      "wants two arguments",
		"dead-letters redrive q/files":                   "which ones?",
		"dead-letters redrive q/files --all in/0/3":      "want one of them",
		"dead-letters redrive q/files --since never":     "--since",
		"dead-letters forget q/files --all":              "to go ahead without being asked: --confirm q/files",
		"replay q/files":                                 "from when?",
		"replay q/files --last 1h --from 2h":             "both say from when",
		"replay q/files --last 1h --rate slow":           "--rate",
		"replay q/files --from noon":                     "--from",
		"replay q/files --last 1h":                       "records of q/files are to be delivered once more",
		"replay q/files --last 1h --rate 2x --confirm x": "--confirm x is not the name",
	} {
		if got := run(command); got.status != 2 || !strings.Contains(got.stderr, want) {
			t.Errorf("spillway %s: %+v, want %s", command, got, want)
		}
	}
	for command, want := range map[string]string{
		"queues update q --disk-bytes 1MiB":    "want 256MiB to",
		"dead-letters show q/files in/0/4":     "there is no copy of offset 4 of in/0",
		"dead-letters redrive q/files in/0/99": "nothing undelivered",
		"replay cancel q/files":                "no replay is under way",
	} {
		if got := run(command); got.status != 1 || !strings.Contains(got.stderr, want) {
			t.Errorf("spillway %s: %+v, want %s", command, got, want)
		}
	}
}
