package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/grpc"

	"github.com/spillwayio/spillway/services/internal/config"
)

// TestRun runs a whole pipeline in one process, from one embedded Kafka to files and to another
// Kafka, stops it with SIGTERM, and starts it again on the same data.
func TestRun(t *testing.T) {
	source := kafkaOf(t, kfake.SeedTopics(2, "in"))
	target := kafkaOf(t, kfake.SeedTopics(2, "out"))
	client, err := kgo.NewClient(kgo.SeedBrokers(source...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	dir := t.TempDir()
	file := writeFile(t, "pipeline.yaml", fmt.Sprintf(`
ingest: {listen: '127.0.0.1:0', http: '127.0.0.1:0', sources: {s: {brokers: [%q], group: g, topics: [in], queue: q, batch: {linger: 10ms}}}}
buffer: {listen: '127.0.0.1:0', http: '127.0.0.1:0', data_dir: %q, queues: {q: {subscriptions: {files: {}, kafka: {}}}}}
delivery:
  files: {subscription: q/files, listen: '127.0.0.1:0', http: '127.0.0.1:0', hdfs: {url: %q, path: '/%%{topic}', commit: {interval: 50ms}}}
  kafka: {subscription: q/kafka, listen: '127.0.0.1:0', http: '127.0.0.1:0', kafka: {brokers: [%q], topic: out}}
`, source[0], filepath.Join(dir, "buffer"), "file://"+filepath.Join(dir, "files"), target[0]))

	const each = 500
	for round := range 2 {
		c := start(t, "run", "-c", file)
		for _, part := range []string{"buffer", "ingest", "files", "kafka"} {
			switch part {
			case "files", "kafka":
				c.wait("msg=starting service=delivery delivery=" + part)
			default:
				c.wait("msg=starting service=" + part)
			}
		}
		for i := range each {
			client.Produce(t.Context(), &kgo.Record{Topic: "in", Value: fmt.Appendf(nil, "%d", round*each+i)}, nil)
		}
		if err := client.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := (round + 1) * each
		waitUntil(t, "all records are in files", func() bool { return len(textBelow(t, filepath.Join(dir, "files"))) >= want })
		if got := valuesOf(t, target, "out", want); len(got) != want {
			t.Errorf("%d different records in Kafka, want %d", len(got), want)
		}
		c.signal(syscall.SIGTERM)
		if status := c.status(); status != 0 {
			t.Fatalf("it ended with %d", status)
		}
		ends := make(map[string]int)
		for i, line := range strings.Split(c.out.String(), "\n") {
			if strings.Contains(line, "msg=stopped") {
				_, rest, _ := strings.Cut(line, "service=")
				ends[strings.Fields(rest)[0]] = i
			}
		}
		if len(ends) != 3 || ends["ingest"] > ends["delivery"] || ends["delivery"] > ends["buffer"] {
			t.Errorf("the order of their ends is %v, want ingest, delivery, buffer", ends)
		}
	}
	seen := make(map[string]bool)
	for _, line := range textBelow(t, filepath.Join(dir, "files")) {
		if seen[line] {
			t.Errorf("%s is twice in the files", line)
		}
		seen[line] = true
	}
	if len(seen) != 2*each {
		t.Errorf("%d records in the files, want %d", len(seen), 2*each)
	}
}

// TestRunRefuses has pipelines that cannot run in one process.
func TestRunRefuses(t *testing.T) {
	const (
		buffer  = "buffer: {data_dir: /nowhere/x, queues: {q: {subscriptions: {a: {}, b: {}}}}}\n"
		sources = "ingest: {sources: {s: {brokers: ['k:1'], group: g, topics: [t], queue: q}}}\n"
		a       = "  a: {subscription: q/a, kafka: {brokers: ['k:2'], topic: x}}\n"
		b       = "  b: {subscription: q/b, kafka: {brokers: ['k:2'], topic: x}}\n"
	)
	for text, want := range map[string]string{
		buffer:                                   "ingest.sources is missing",
		sources + "delivery:\n" + a:              "buffer.queues is missing",
		buffer + sources:                         "delivery is missing; want at least one delivery",
		buffer + sources + "delivery:\n" + a + b: `delivery.b.http: "localhost:7421" is the same port as delivery.a.http, "localhost:7421", and both are to run in one process`,
	} {
		if got := spillway(t, "run", "-c", writeFile(t, "p.yaml", text)); got.status != 2 || !strings.Contains(got.stderr, want) {
			t.Errorf("%s\n%+v, want %s", text, got, want)
		}
	}
}

// failing is a service that fails when told to.
type failing struct{ fail chan error }

func (f failing) Register(grpc.ServiceRegistrar) {}

func (f failing) Run(ctx context.Context) error {
	select {
	case err := <-f.fail:
		return err
	case <-ctx.Done():
		return nil
	}
}

// TestAPartFails has one part of a pipeline fail: the others drain, in order, and the failure is
// what the command returns.
func TestAPartFails(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	fail := make(chan error, 1)
	local := func(string) (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }
	newPart := func(fail chan error) *process {
		p, err := newProcess(&config.Config{}, log, local, "part", "", "", func(deps) (service, error) { return failing{fail}, nil })
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := wholePipeline{buffer: newPart(nil), ingest: newPart(nil), deliveries: map[string]*process{"delivery d": newPart(fail), "delivery e": newPart(nil)}}
	broken := errors.New("broken")
	fail <- broken
	if err := p.run(t.Context(), log); err == nil || err.Error() != "delivery d: broken" {
		t.Errorf("%v, want the part's error", err)
	}
}

func kafkaOf(t *testing.T, options ...kfake.Opt) []string {
	t.Helper()
	c, err := kfake.NewCluster(append(options, kfake.NumBrokers(1))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c.ListenAddrs()
}

// valuesOf reads n different values of a topic.
func valuesOf(t *testing.T, brokers []string, topic string, n int) map[string]bool {
	t.Helper()
	c, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	values := make(map[string]bool)
	for len(values) < n && ctx.Err() == nil {
		c.PollFetches(ctx).EachRecord(func(r *kgo.Record) { values[string(r.Value)] = true })
	}
	return values
}

// textBelow returns the lines of all files below dir.
func textBelow(t *testing.T, dir string) (lines []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && entry.IsDir() {
			return nil
		}
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) { // it was made final just now
			return nil
		}
		if text := strings.TrimSuffix(string(b), "\n"); text != "" {
			lines = append(lines, strings.Split(text, "\n")...)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// waitUntil waits for something to become true.
func waitUntil(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not after %s: %s", limit, what)
		}
	}
}
