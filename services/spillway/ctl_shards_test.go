package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/types/known/timestamppb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/picture"
	"github.com/spillwayio/spillway/services/internal/shards"
)

// TestCommandsAskAllBuffers runs two buffers that divide a queue. Commands with the file see and
// change both, and leave out those that do not have a queue; one that is away is named.
func TestCommandsAskAllBuffers(t *testing.T) {
	addresses := []string{freeAddr(t), freeAddr(t)}
	var files []string
	var running []*child
	for shard, address := range addresses {
		file := writeFile(t, "pipeline.yaml", fmt.Sprintf(`
buffers: [%q, %q]
buffer: {listen: %q, http: '127.0.0.1:0', data_dir: %q, shard: %d, queues: {q: {shards: 2, subscriptions: {s: {}}}, own: {subscriptions: {s: {}}}}}
`, addresses[1], addresses[0], address, filepath.Join(t.TempDir(), "data"), shard))
		files = append(files, file)
		c := start(t, "buffer", "-c", file)
		c.wait("queue is open")
		running = append(running, c)
	}
	ask := func(wanted int, args string) result {
		t.Helper()
		got := spillway(t, append(strings.Fields(args), "-c", files[0])...)
		if got.status != wanted {
			t.Errorf("spillway %s: %+v, want status %d", args, got, wanted)
		}
		return got
	}
	lines := func(text, of string) (n int) {
		for line := range strings.Lines(text) {
			if fields := strings.Fields(line); len(fields) > 0 && fields[0] == of {
				n++
			}
		}
		return n
	}
	waitUntil(t, "all queues are open", func() bool { return strings.Count(ask(0, "queues").stdout, " open ") == 3 })
	got := ask(0, "shards").stdout
	for _, want := range []string{"q      0 of 2  " + addresses[0] + "  open", "q      1 of 2  " + addresses[1] + "  open", "own    -       " + addresses[0] + "  open"} {
		if !strings.Contains(got, want) {
			t.Errorf("shards lacks %q:\n%s", want, got)
		}
	}
	if got := ask(0, "shards own").stdout; lines(got, "own") != 1 || lines(got, "q") != 0 {
		t.Errorf("shards of one queue:\n%s", got)
	}
	if got := ask(0, "subscriptions").stdout; lines(got, "q/s") != 1 || lines(got, "own/s") != 1 {
		t.Errorf("subscriptions are not one line each:\n%s", got)
	}
	if got := ask(0, "audit own").stdout; !strings.Contains(got, "SUBSCRIPTION") {
		t.Errorf("audit of a queue of one buffer:\n%s", got)
	}
	ask(0, "subscriptions pause own/s")
	ask(0, "subscriptions pause q/s")
	for _, address := range addresses {
		if got := spillway(t, "subscriptions", "q", "-b", address); !strings.Contains(got.stdout, "paused") {
			t.Errorf("at %s: %+v", address, got)
		}
	}
	if got := ask(1, "subscriptions pause q/other"); !strings.Contains(got.stderr, addresses[0]) || !strings.Contains(got.stderr, addresses[1]) {
		t.Errorf("a subscription that is nowhere: %+v", got)
	}
	ask(0, "check subscription q/s")
	if got := ask(1, "shards move q 0 --to a:1"); !strings.Contains(got.stderr, "fixed by the configuration") {
		t.Errorf("a move where the file says who has what: %+v", got)
	}
	if got := spillway(t, "buffers", "drain", "-b", addresses[0]); got.status != 1 || !strings.Contains(got.stderr, "fixed by the configuration") {
		t.Errorf("a buffer that cannot be drained: %+v", got)
	}
	for args, want := range map[string]string{"shards move q": "want a queue and the number", "shards move q x --to a:1": `shard "x"`, "shards move q 0": "--to", "buffers drain": "names 2 buffers"} {
		if got := ask(2, args); !strings.Contains(got.stderr, want) {
			t.Errorf("%s: %+v, want %q", args, got, want)
		}
	}

	running[1].signal(syscall.SIGTERM)
	running[1].status()
	if got := ask(1, "queues"); !strings.Contains(got.stderr, "nothing listens at "+addresses[1]) {
		t.Errorf("with a buffer that is away: %+v", got)
	}
	if got := ask(1, "shards"); !strings.Contains(got.stdout, "0 of 2") || !strings.Contains(got.stderr, addresses[1]) {
		t.Errorf("with a buffer that is away: %+v", got)
	}
	ask(1, "audit")
	ask(3, "check subscription q/s")
}

// divided is a pipeline whose queue is divided among two buffers. Each of its partitions has a
// record in a file, and a dead letter: some of both are in each shard.
type divided struct {
	file      string // of the pipeline, for those who ask
	addresses []string
	consoles  []string // URLs
	written   string   // directory of the files
	client    *kgo.Client
}

const dividedPartitions = 16

func newDivided(t *testing.T) *divided {
	t.Helper()
	source := kafkaOf(t, kfake.SeedTopics(dividedPartitions, "in"))
	client, err := kgo.NewClient(kgo.SeedBrokers(source...), kgo.DefaultProduceTopic("in"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	dir := t.TempDir()
	d := &divided{client: client, addresses: []string{freeAddr(t), freeAddr(t)}, written: filepath.Join(dir, "files")}
	for shard, address := range d.addresses {
		d.file = writeFile(t, "pipeline.yaml", fmt.Sprintf(`
buffers: [%q, %q]
ingest: {listen: '127.0.0.1:0', http: '127.0.0.1:0', sources: {s: {brokers: [%q], group: g, topics: [in], queue: q, batch: {linger: 10ms}}}}
buffer: {listen: %q, http: '127.0.0.1:0', data_dir: %q, shard: %d, queues: {q: {shards: 2, subscriptions: {files: {}}}}}
delivery:
  files: {subscription: q/files, listen: '127.0.0.1:0', http: '127.0.0.1:0', hdfs: {url: %q, path: '/%%{topic}', commit: {interval: 50ms}},
    transforms: [{set_time: {from: "json:at", unit: seconds}}]}
`, d.addresses[0], d.addresses[1], source[0], address, filepath.Join(dir, fmt.Sprint("buffer-", shard)), shard, "file://"+d.written))
		c := start(t, "buffer", "-c", d.file)
		c.wait("queue is open")
		d.consoles = append(d.consoles, "http://"+regexp.MustCompile(`msg=starting service=buffer .* http=(\S+)`).FindStringSubmatch(c.out.String())[1]+"/console/")
	}
	start(t, "ingest", "-c", d.file).wait("joined the group")
	start(t, "delivery", "files", "-c", d.file).wait("msg=ready")
	d.produce(t, `{"at":1700000000}`)
	d.produce(t, "nonsense")
	d.delivered(t, dividedPartitions)
	return d
}

// produce puts a record into each partition.
func (d *divided) produce(t *testing.T, value string) {
	t.Helper()
	for p := range int32(dividedPartitions) {
		d.client.Produce(t.Context(), &kgo.Record{Partition: p, Value: []byte(value)}, nil)
	}
	if err := d.client.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// delivered waits until so many lines are in files.
func (d *divided) delivered(t *testing.T, n int) {
	t.Helper()
	waitUntil(t, fmt.Sprintf("%d lines are in files", n), func() bool { return len(textBelow(t, d.written)) >= n })
}

// TestSteerAllBuffers steers a pipeline whose queue is divided among two buffers, as TestSteer
// does one with one buffer: dead letters and replays are of both, and top shows them in one
// picture.
func TestSteerAllBuffers(t *testing.T) {
	t.Parallel()
	const partitions = dividedPartitions
	d := newDivided(t)
	file, addresses := d.file, d.addresses
	delivered := func(n int) { d.delivered(t, n) }
	run := func(command string) result { return spillway(t, append(strings.Fields(command), "-c", file)...) }
	prints := func(command string, patterns ...string) {
		t.Helper()
		var got result
		waitUntil(t, "spillway "+command, func() bool {
			got = run(command)
			return got.status == 0 && !slices.ContainsFunc(patterns, func(p string) bool { return !regexp.MustCompile(p).MatchString(got.stdout) })
		})
	}
	dead := func(n int) string {
		return fmt.Sprintf(`(?s)^(?:TOPIC[^\n]*\n)(?:in [^\n]* dead-lettered [^\n]*\n){%d}$`, n)
	}
	prints("dead-letters q/files", dead(partitions))
	for p := range partitions { // whichever buffer has it
		prints(fmt.Sprintf("dead-letters show q/files in/%d/1", p), "value: +nonsense")
	}
	prints("dead-letters redrive q/files in/3/1", "1 offsets of q/files are delivered once more")
	prints("dead-letters q/files", dead(partitions)) // it is nonsense still
	prints("dead-letters redrive q/files --all", fmt.Sprintf("%d offsets of q/files are delivered once more", partitions))
	prints("dead-letters q/files", dead(partitions))
	if got := run("dead-letters redrive q/files in/0/99"); got.status != 1 || !strings.Contains(got.stderr, "nothing undelivered") {
		t.Errorf("redrive of nothing: %+v", got)
	}
	if got := run("dead-letters show q/files in/0/99"); got.status != 1 || !strings.Contains(got.stderr, "there is no copy") {
		t.Errorf("show of nothing: %+v", got)
	}

	prints("replay q/files --last 1h --rate 0.5x --dry-run", fmt.Sprintf("(?m)^%d records are delivered once more, which takes 2h0m0s", 2*partitions))
	prints("replay status q/files", "q/files was never replayed")
	if got := run("replay cancel q/files"); got.status != 1 || !strings.Contains(got.stderr, "no replay is under way") {
		t.Errorf("cancel of nothing: %+v", got)
	}
	prints("replay q/files --last 1h --rate 1000/s --confirm q/files", fmt.Sprintf("(?m)^%d records are delivered once more", 2*partitions))
	delivered(2 * partitions)
	prints("replay status q/files", fmt.Sprintf("over, %d records", 2*partitions))
	prints("replay q/files --last 1h --rate 0.001/s --confirm q/files", "records are delivered once more")
	prints("replay cancel q/files", "cancelled")
	prints("replay status q/files", fmt.Sprintf("ago, of %d records", 2*partitions))
	prints("dead-letters q/files", dead(partitions))
	prints("dead-letters forget q/files --all --confirm q/files", fmt.Sprintf("%d offsets of q/files are forgotten", partitions))

	// A tap of both shows what comes into each partition.
	tapped := make(chan result, 1)
	go func() { tapped <- run(fmt.Sprintf("tap q --rate 10000 --limit %d", 2*partitions)) }()
	var got result
	waitUntil(t, "the tap has its records", func() bool {
		d.produce(t, `{"at":1700000001}`)
		select {
		case got = <-tapped:
			return true
		default:
			return false
		}
	})
	for p := range partitions {
		if !strings.Contains(got.stdout, fmt.Sprintf("in/%d@", p)) {
			t.Errorf("the tap of both buffers shows nothing of partition %d: %+v", p, got)
		}
	}

	prints("queues update q --disk-bytes 300MiB", `(?s)q +0 of 2 .*300.0MiB.*q +1 of 2 .*300.0MiB.*the file says disk.bytes: 100GiB`)
	prints("top --once", `(?s)  disk .* of 600.0MiB.*  shard 0 +`+addresses[0]+` .*  shard 1 +`+addresses[1])
	var p picture.Picture
	if got := run("top -o json"); got.status != 0 || json.Unmarshal([]byte(got.stdout), &p) != nil || len(p.Queues) != 1 || len(p.Queues[0].Shards) != 2 ||
		p.Queues[0].Disk.Limit != 600<<20 || len(p.Queues[0].Ingests) != 1 || len(p.Queues[0].Subscriptions) != 1 || p.Queues[0].Subscriptions[0].Delivered < 2*partitions {
		t.Errorf("top of both: %+v", got)
	}
}

// TestAddReplay adds the parts of one replay, and leaves out the part of an older one.
func TestAddReplay(t *testing.T) {
	at := func(minute int) *timestamppb.Timestamp {
		return timestamppb.New(time.Date(2026, 11, 30, 8, minute, 0, 0, time.UTC))
	}
	replay := func(from, began int, offsets, left int64, cancelled int) *spillwayv1.Replay {
		r := &spillwayv1.Replay{From: at(from), To: at(59), BeganAt: at(began), Offsets: offsets, LeftOffsets: left, OffsetsPerSecond: 2}
		if cancelled > 0 {
			r.CancelledAt = at(cancelled)
		}
		return r
	}
	for name, test := range map[string]struct {
		parts         []*spillwayv1.Replay
		offsets, left int64
		cancelled     bool
	}{
		"one":                    {[]*spillwayv1.Replay{nil, replay(0, 1, 10, 5, 0), nil}, 10, 5, false},
		"two parts":              {[]*spillwayv1.Replay{replay(0, 1, 10, 5, 0), replay(0, 1, 20, 0, 0)}, 30, 5, false},
		"another, which is old":  {[]*spillwayv1.Replay{replay(0, 1, 10, 5, 0), replay(3, 2, 20, 1, 0), replay(0, 1, 7, 7, 0)}, 20, 1, false},
		"cancelled":              {[]*spillwayv1.Replay{replay(0, 1, 10, 5, 3), replay(0, 1, 20, 4, 4)}, 30, 9, true},
		"over, and cancelled":    {[]*spillwayv1.Replay{replay(0, 1, 10, 0, 0), replay(0, 1, 20, 4, 4)}, 30, 4, true},
		"cancelled at one alone": {[]*spillwayv1.Replay{replay(0, 1, 10, 5, 3), replay(0, 1, 20, 4, 0), replay(0, 1, 1, 1, 3)}, 31, 10, false},
	} {
		var sum *spillwayv1.Replay
		for _, r := range test.parts {
			sum = shards.AddReplay(sum, r)
		}
		if sum.Offsets != test.offsets || sum.LeftOffsets != test.left || (sum.CancelledAt != nil) != test.cancelled {
			t.Errorf("%s: %v", name, sum)
		}
	}
}
