package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/spillwayio/spillway/services/buffer"
	"github.com/spillwayio/spillway/services/internal/kafkaclient/kafkaclienttest"
)

// TestStore makes the topics of a queue, twice, and tries them, before and after a setting of them
// was changed.
func TestStore(t *testing.T) {
	c, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	settings := kafkaclienttest.KeepSettings(c)
	pipeline := func(queue, more string) string {
		return writeFile(t, "pipeline.yaml", fmt.Sprintf(`
buffers: [a:7400, b:7400]
security: {insecure: true}
buffer:
  listen: '127.0.0.1:0'
  http: '127.0.0.1:0'
  queues:
    %s: {shards: 2, commit_after: delivered, subscriptions: {s: {}}, store: {kafka: {brokers: [%q], namespace: n, replication: 1%s}}}
`, queue, c.ListenAddrs()[0], more))
	}
	file := pipeline("q", "")
	check := func(file string, status int, wants map[string]string) {
		t.Helper()
		got := spillway(t, "store", "check", "-c", file, "-o", "json")
		var answer struct{ Probes []finding }
		if err := json.Unmarshal([]byte(got.stdout), &answer); err != nil || got.status != status {
			t.Fatalf("%v: %+v, want status %d", err, got, status)
		}
		found := make(map[string]finding)
		for _, f := range answer.Probes {
			found[f.Check] = f
		}
		for probe, want := range wants {
			result, detail, _ := strings.Cut(want, ": ")
			expect(t, found, probe, result, detail)
		}
	}
	check(file, 1, map[string]string{"topics": "FAILED: topic spillway.n.q.journal does not exist"})

	var first struct{ Stores []madeStore }
	for i := range 2 {
		got := spillway(t, "store", "init", "-c", file, "-o", "json")
		var made struct{ Stores []madeStore }
		if err := json.Unmarshal([]byte(got.stdout), &made); err != nil || got.status != 0 || len(made.Stores) != 1 {
			t.Fatalf("%v: %+v", err, got)
		}
		s := made.Stores[0]
		if i == 0 {
			first = made
		}
		if s.Queue != "q" || s.Shards != 2 || s.Made != (i == 0) || s.Life == "" || s.Life != first.Stores[0].Life || s.Topics[1] != "spillway.n.q.payload" {
			t.Errorf("init %d: %+v", i, s)
		}
	}
	if got := spillway(t, "store", "init", "-c", file); got.status != 0 || !strings.Contains(got.stdout, "was there") || !strings.Contains(got.stdout, first.Stores[0].Life) {
		t.Errorf("init: %+v", got)
	}
	good := map[string]string{"topics": "OK: spillway.n.q.payload", "identity": "OK: 2 shards, life " + first.Stores[0].Life, "write": "OK: each partition", "delete": "OK: each partition"}
	check(file, 0, good)
	if got := spillway(t, "store", "check", "-c", file); got.status != 0 || !strings.Contains(got.stdout, "buffer.queues.q.store") {
		t.Errorf("check: %+v", got)
	}
	if got := spillway(t, "check", "--connect", "--part", "buffer", "-c", file); got.status != 0 || !strings.Contains(got.stdout, first.Stores[0].Life) || strings.Contains(got.stdout, "data_dir") {
		t.Errorf("check --connect: %+v", got)
	}

	other := pipeline("other", ", topic: spillway.n.q")
	if got := spillway(t, "store", "init", "-c", other); got.status != 1 || !strings.Contains(got.stderr, `they belong to queue "q" of namespace "n", not to queue "other"`) {
		t.Errorf("init of another queue: %+v", got)
	}
	check(other, 1, map[string]string{"identity": `FAILED: they belong to queue "q"`})
	settings["spillway.n.q.journal"]["retention.ms"] = "1000"
	check(file, 1, map[string]string{"topics": "FAILED: topic spillway.n.q.journal has retention.ms=1000; it must be -1"})
	settings["spillway.n.q.journal"]["retention.ms"] = "-1"
	c.ControlKey(int16(kmsg.DeleteRecords), func(r kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		answer := r.ResponseKind().(*kmsg.DeleteRecordsResponse)
		for _, topic := range r.(*kmsg.DeleteRecordsRequest).Topics {
			denied := kmsg.NewDeleteRecordsResponseTopic()
			denied.Topic = topic.Topic
			for _, p := range topic.Partitions {
				part := kmsg.NewDeleteRecordsResponseTopicPartition()
				part.Partition, part.ErrorCode = p.Partition, 29 // TOPIC_AUTHORIZATION_FAILED
				denied.Partitions = append(denied.Partitions, part)
			}
			answer.Topics = append(answer.Topics, denied)
		}
		return answer, nil, true
	})
	good["delete"] = "FAILED: the store needs Delete on the topic"
	check(file, 1, good)
}

// TestStoreMoves moves a queue to Kafka and back.
func TestStoreMoves(t *testing.T) {
	c, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	kafkaclienttest.KeepSettings(c)
	dir := t.TempDir()
	const text = `
buffers: ['127.0.0.1:1']
security: {insecure: true}
buffer:
  listen: '127.0.0.1:0'
  http: '127.0.0.1:0'
  data_dir: %s
  queues:
    q: {commit_after: delivered, subscriptions: {s: {}}%s}
`
	before := writeFile(t, "before.yaml", fmt.Sprintf(text, dir, ""))
	file := writeFile(t, "after.yaml", fmt.Sprintf(text, dir, fmt.Sprintf(", store: {kafka: {brokers: [%q], namespace: n, replication: 1}}", c.ListenAddrs()[0])))
	opens := func(file string) (reason string) {
		t.Helper()
		cfg, err := loadConfig(file)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		s, err := buffer.New(cfg.Buffer, buffer.Deps{Log: slog.New(slog.DiscardHandler), OnReady: func(ready bool, why string) {
			if ready || strings.Contains(why, "recovering") {
				reason = why
				cancel()
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Run(ctx); err != nil {
			t.Fatal(err)
		}
		return reason
	}
	ran := func(status int, want string, args ...string) {
		t.Helper()
		got := spillway(t, append([]string{"store"}, append(args, "-c", file)...)...)
		if got.status != status || !strings.Contains(got.stdout+got.stderr, want) {
			t.Fatalf("store %v: %+v, want status %d and %q", args, got, status, want)
		}
	}
	ran(1, "there is nothing to move", "import", "q")
	if why := opens(before); why != "" {
		t.Fatal(why)
	}
	if why := opens(file); !strings.Contains(why, "spillway store import q") {
		t.Errorf("Kafka before the move: %s", why)
	}
	ran(1, "spillway.n.q.journal does not exist", "import", "q")
	ran(0, "made", "init")
	ran(0, `"result":"would be moved"`, "import", "q", "--dry-run", "-o", "json")
	ran(0, "moved", "import", "q")
	if why := opens(before); !strings.Contains(why, "spillway store export q") {
		t.Errorf("the directory after the move: %s", why)
	}
	if why := opens(file); why != "" {
		t.Error(why)
	}
	ran(0, "would be moved", "export", "q", "--dry-run")
	ran(0, "moved", "export", "q")
	if why := opens(before); why != "" {
		t.Error(why)
	}
	ran(2, "wants one argument: a queue", "import")
	ran(2, `no queue "x"; there is q`, "export", "x")
}
