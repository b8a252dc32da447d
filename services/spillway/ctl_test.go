package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestOperate does an operator's work on a running pipeline, whose Kafka delivery is held up:
// finds what is behind and why, pauses, moves back, makes, changes and deletes subscriptions.
func TestOperate(t *testing.T) {
	source := kafkaOf(t, kfake.SeedTopics(1, "in"))
	client, err := kgo.NewClient(kgo.SeedBrokers(source...), kgo.DefaultProduceTopic("in"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	dir := t.TempDir()
	file := writeFile(t, "pipeline.yaml", fmt.Sprintf(`
ingest: {listen: '127.0.0.1:0', http: '127.0.0.1:0', sources: {s: {brokers: [%q], group: g, topics: [in, missing], queue: q, batch: {linger: 10ms}}}}
buffer: {listen: '127.0.0.1:0', http: '127.0.0.1:0', data_dir: %q, queues: {q: {subscriptions: {files: {}, kafka: {}}}}}
delivery:
  files: {subscription: q/files, listen: '127.0.0.1:0', http: '127.0.0.1:0', hdfs: {url: %q, path: '/%%{topic}', commit: {interval: 50ms}}}
  kafka: {subscription: q/kafka, listen: '127.0.0.1:0', http: '127.0.0.1:0', kafka: {brokers: [%q], topic: out}}
`, source[0], filepath.Join(dir, "buffer"), "file://"+filepath.Join(dir, "files"), freeAddr(t)))
	c := start(t, "run", "-c", file)
	c.wait("joined the group")
	address := func(part string) string {
		m := regexp.MustCompile(`msg=starting service=` + part + ` .*grpc=(\S+)`).FindStringSubmatch(c.out.String())
		if m == nil {
			t.Fatalf("no address of %s in the log", part)
		}
		return m[1]
	}
	buffer, ingest, files := address("buffer"), address("ingest"), address("delivery delivery=files")
	const records = 100
	for i := range records {
		client.Produce(t.Context(), &kgo.Record{Value: fmt.Append(nil, i)}, nil)
	}
	if err := client.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	delivered := func(n int) {
		t.Helper()
		waitUntil(t, fmt.Sprintf("%d lines are in files", n), func() bool { return len(textBelow(t, filepath.Join(dir, "files"))) >= n })
	}
	delivered(records)

	// has runs a command that must succeed, and looks for a line with these cells in its table.
	has := func(command string, cells ...string) {
		t.Helper()
		var got result
		holds := func() bool {
			got = spillway(t, strings.Fields(command)...)
			return got.status == 0 && slices.ContainsFunc(strings.Split(got.stdout, "\n"), func(line string) bool {
				fields := strings.Fields(line)
				for _, c := range cells {
					i := slices.Index(fields, c)
					if i < 0 {
						return false
					}
					fields = fields[i+1:]
				}
				return true
			})
		}
		for range 50 {
			if holds() {
				return
			}
		}
		t.Errorf("spillway %s: no line with %q in order\n%+v", command, cells, got)
	}
	b := " -b " + buffer
	has("queues"+b, "q", "open", "files,kafka")
	has("queues q"+b, "in", "0", "100")
	has("subscriptions"+b, "q/files", "caught", "up", "0", "0B")
	has("subs q"+b, "q/kafka", "100")
	has("subscriptions show q/kafka"+b, "in", "0", "0", "0", "100", "100")
	has("sessions q/files"+b, "q/files", "yes")
	has("dead-letters q/files"+b, "TOPIC", "REASON")
	has("top"+b, "sources", "from", "(s)")
	has("top --once"+b, "files", "0", "0B", "-")
	has("top"+b, "kafka", "100")
	has("sources -i "+ingest, "s", "q", "g", "missing")
	has("sources partitions s -i "+ingest, "s", "in", "0", "100")
	has("deliveries -d "+files, "files", "q/files", "100")
	has("deliveries files -d "+files, "FILE", "COMMITTED")
	has("deliveries roll -d "+files, "files", "are", "final")

	has("subscriptions pause q/files"+b, "q/files", "paused")
	has("subscriptions"+b, "q/files", "paused")
	has("subscriptions seek q/files --to earliest --confirm q/files"+b, "q/files", "paused")
	has("subscriptions resume q/files"+b, "q/files")
	delivered(2 * records) // the replay
	has("sources pause s -i "+ingest, "s", "paused")
	has("sources resume s -i "+ingest, "s", "q")
	has("deliveries pause -d "+files, "files", "paused")
	has("deliveries resume -d "+files, "files")
	has("subscriptions create q/more --topics i* --start 1h --on-full defer"+b, "q/more")
	has("subscriptions update q/more --on-full drop_oldest --limit 1GiB"+b, "q/more")
	has("subscriptions show q/more"+b, "on", "full:", "drop_oldest")
	has("subscriptions delete q/more --confirm q/more"+b, "q/more", "is", "deleted")

	for _, command := range []string{"queues", "queues q", "subscriptions", "subscriptions show q/files", "sessions", "dead-letters q/files", "top"} {
		got := spillway(t, strings.Fields(command+b+" -o json")...)
		var answer map[string]any
		if err := json.Unmarshal([]byte(got.stdout), &answer); err != nil || got.status != 0 || len(answer) == 0 {
			t.Errorf("spillway %s -o json: %v: %+v", command, err, got)
		}
	}

	for command, want := range map[string]string{
		"subscriptions delete q/kafka":               "to go ahead without being asked: --confirm q/kafka",
		"subscriptions delete q/kafka --confirm q/x": "--confirm q/x is not the name of what is to be changed, q/kafka",
		"subscriptions seek q/kafka --to latest":     "to go ahead without being asked: --confirm q/kafka",
		"subscriptions seek q/kafka --to tomorrow":   "want earliest, latest, a time such as 2026-11-30T12:00:00Z, or how long ago",
		"subscriptions update q/kafka":               "nothing to change",
		"subscriptions show":                         "wants one argument: queue/subscription",
		"dead-letters q/kafka --outcome filtered":    "want dead-lettered, dropped or lost",
		"queues a b": "at most one argument",
		"subscriptions create q/z --on-full never":       "want block, drop_oldest or defer",
		"subscriptions -o yaml":                          "want table or json",
		"subscriptions pause -c " + file + " -b x:1 q/f": "--buffer and --config both say",
	} {
		if got := spillway(t, strings.Fields(command)...); got.status != 2 || !strings.Contains(got.stderr, want) {
			t.Errorf("spillway %s: %+v, want %s", command, got, want)
		}
	}
	for command, want := range map[string]result{
		"q/files":                                     {0, "OK: q/files is caught up", ""},
		"q/kafka --age-critical 1h":                   {0, "OK: q/kafka is ", ""},
		"q/kafka --age-warning 1ms":                   {1, "WARNING: q/kafka is ", ""},
		"q/kafka --age-warning 1h --age-critical 1ms": {2, "CRITICAL: q/kafka is ", ""},
		"q/none --age-critical 1h":                    {3, "UNKNOWN: the buffer at ", ""},
		"q/files -b " + freeAddr(t):                   {3, "UNKNOWN: nothing listens at", ""},
	} {
		args := "check subscription " + command
		if !strings.Contains(args, "-b ") {
			args += b
		}
		if got := spillway(t, strings.Fields(args)...); got.status != want.status || !strings.HasPrefix(got.stdout, want.stdout) || got.stderr != "" {
			t.Errorf("spillway %s: %+v, want %+v", args, got, want)
		}
	}
	for command, want := range map[string]string{
		"subscriptions show q/none" + b: `no such subscription: "none"; the queue has: files, kafka`,
		"queues none" + b:               "there are: q",
		"queues -b " + freeAddr(t):      "nothing listens at",
	} {
		if got := spillway(t, strings.Fields(command)...); got.status != 1 || !strings.Contains(got.stderr, want) {
			t.Errorf("spillway %s: %+v, want %s", command, got, want)
		}
	}
	testTap(t, buffer, func(value string) {
		if err := client.ProduceSync(t.Context(), &kgo.Record{Value: []byte(value), Key: []byte("k")}).FirstErr(); err != nil {
			t.Error(err)
		}
	})
}
