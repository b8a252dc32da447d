package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/spillwayio/spillway/services/internal/kafkaclient/kafkaclienttest"
)

// TestAcceptDoubles: the journal of a queue is deleted. What is given up is said, nothing is done
// without a confirmation, and the new topics are of another life.
func TestAcceptDoubles(t *testing.T) {
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, "in"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	kafkaclienttest.KeepSettings(c)
	client, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...), kgo.DefaultProduceTopic("in"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for range 10 {
		if err := client.ProduceSync(t.Context(), &kgo.Record{Partition: 1, Value: []byte("v")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	var offsets kadm.Offsets
	offsets.AddOffset("in", 1, 4, -1)
	if err := kadm.NewClient(client).CommitAllOffsets(t.Context(), "g", offsets); err != nil {
		t.Fatal(err)
	}
	pipeline := func(queue string) string {
		return writeFile(t, "pipeline.yaml", fmt.Sprintf(`
buffers: ['127.0.0.1:1', '127.0.0.1:2']
security: {insecure: true}
ingest:
  listen: '127.0.0.1:0'
  http: '127.0.0.1:0'
  sources: {s: {brokers: [%[1]q], group: g, topics: [in], queue: %[2]s}}
buffer:
  listen: '127.0.0.1:0'
  http: '127.0.0.1:0'
  queues:
    %[2]s: {shards: 2, commit_after: delivered, subscriptions: {a: {}, b: {required: false}}, store: {kafka: {brokers: [%[1]q], namespace: n, topic: kept, replication: 1}}}
delivery:
  archive: {listen: '127.0.0.1:0', http: '127.0.0.1:0', subscription: %[2]s/a, hdfs: {url: "file://%[3]s", path: /logs}}
`, c.ListenAddrs()[0], queue, t.TempDir()))
	}
	file := pipeline("q")
	ran := func(status int, want string, args ...string) result {
		t.Helper()
		got := spillway(t, append([]string{"store"}, args...)...)
		if got.status != status || !strings.Contains(got.stdout+got.stderr, want) {
			t.Fatalf("store %v: %+v, want status %d and %q", args, got, status, want)
		}
		return got
	}
	lifeOf := func() string {
		t.Helper()
		var made struct{ Stores []madeStore }
		if err := json.Unmarshal([]byte(ran(0, "q", "init", "-c", file, "-o", "json").stdout), &made); err != nil || len(made.Stores) != 1 {
			t.Fatal(err)
		}
		return made.Stores[0].Life
	}
	accept := []string{"init", "-c", file, "--accept-doubles", "q"}
	first := lifeOf()
	ran(1, "the topics of the queue are whole", append(accept, "--confirm", "q")...)
	ran(1, `they belong to queue "q"`, "init", "-c", pipeline("other"), "--accept-doubles", "other", "--confirm", "other")
	ran(2, "no queue of that name", "init", "-c", file, "--accept-doubles", "x")

	for _, lose := range []func() error{
		func() error { return c.DeleteTopic("kept.journal") },
		func() error { return c.DeleteTopic("kept.payload") },
		func() error { // and somebody's metadata request makes it again
			if err := c.DeleteTopic("kept.journal"); err != nil {
				return err
			}
			return c.CreateTopic("kept.journal", 1, nil)
		},
	} {
		if err := lose(); err != nil {
			t.Fatal(err)
		}
		got := ran(2, "--confirm q", accept...)
		for _, want := range []string{"kept.", "in     1          4          0      10   0", "in     0          -          0      0    0", "do not come again: b", "no heir any more: archive"} {
			if !strings.Contains(got.stdout, want) {
				t.Errorf("it lacks %q:\n%s", want, got.stdout)
			}
		}
		ran(1, "FAILED", "check", "-c", file)
		got = ran(0, "files recover archive", append(accept, "--confirm", "q")...)
		life := lifeOf()
		if life == first || !strings.Contains(got.stdout, life) {
			t.Errorf("the life is %s, and it was %s: %s", life, first, got.stdout)
		}
		first = life
		ran(0, life, "check", "-c", file)
	}
	// It is in the journal.
	reader, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"kept.journal": {0: kgo.NewOffset().At(0)}}))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for found := false; !found; {
		reader.PollFetches(t.Context()).EachRecord(func(r *kgo.Record) {
			found = found || strings.Contains(string(r.Value), `"given_up":[`) && strings.Contains(string(r.Value), `\"committed\":4`)
		})
	}
}
