package e2e

import (
	"errors"
	"flag"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/spillwayio/spillway/services/internal/shards"
)

const shardCount = 3

// newShardedPipeline is a pipeline whose queue three buffers divide, and which produces exactly
// once. Its topic has partitions in each shard.
func newShardedPipeline(t *testing.T, edit ...string) *pipeline {
	t.Helper()
	p := newPipeline(t, stack.kafka)
	cluster, err := kadm.NewClient(newClient(t, stack.kafka)).BrokerMetadata(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	topic := p.topic
	for i := 0; slices.ContainsFunc([]int{0, 1, 2}, func(shard int) bool { return shards.Count(cluster.Cluster, topic, partitions, shard, shardCount) == 0 }); i++ {
		topic = fmt.Sprint(p.topic, "-", i)
	}
	addresses := []string{p.buffer.grpc}
	for shard := 1; shard < shardCount; shard++ {
		b := newService(t, p.dir, fmt.Sprint("buffer-", shard), "buffer", "-c", p.config)
		b.env = []string{fmt.Sprint("SPILLWAY_BUFFER__SHARD=", shard), "SPILLWAY_BUFFER__LISTEN=" + b.grpc, "SPILLWAY_BUFFER__HTTP=" + b.http,
			"SPILLWAY_BUFFER__DATA_DIR=" + filepath.Join(p.dir, fmt.Sprint("data-", shard))}
		p.others = append(p.others, b)
		addresses = append([]string{b.grpc}, addresses...) // in no order
	}
	p.rewrite(append([]string{p.topic, topic, fmt.Sprintf("buffers: [%q]", p.buffer.grpc), fmt.Sprintf("buffers: [%s]", strings.Join(addresses, ", ")),
		"lease: 10s", "lease: 5s\n      shards: 3", `topic: "out-%{topic}"}`, `topic: "out-%{topic}", exactly_once: true}`}, edit...)...)
	p.topic, p.out, p.hdfsDir = topic, "out-"+topic, "/e2e/"+topic
	createTopic(t, stack.kafka, p.topic, nil)
	return p
}

// ask runs a command of an operator on the pipeline's file.
func (p *pipeline) ask(args ...string) (string, error) {
	out, err := exec.Command(binary, append(args, "-c", p.config)...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("spillway %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// TestThreeBuffers: three buffers divide a queue, one ingest feeds them, and deliveries to HDFS
// and, exactly once, to Kafka take from all. While a buffer is dead the partitions of the others
// go on. Everything arrives once, and commands see all shards.
func TestThreeBuffers(t *testing.T) {
	const n = 24_000
	p := newShardedPipeline(t)
	p.start()
	source := newProducer(t, stack.kafka, p.topic)
	produced := make(chan error, 1)
	go func() { produced <- source.produce(n, 10_000) }()
	eventually(t, 30*time.Second, "records flow", func() error {
		if p.settled(0, "hdfs") == nil {
			return errors.New("nothing is appended yet")
		}
		return nil
	})
	dead := p.others[0]
	dead.kill()
	if err := <-produced; err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the other shards have nothing left", func() error {
		for _, b := range []*service{p.buffer, p.others[1]} {
			if err := settledAt(b, n/partitions); err != nil {
				return err
			}
		}
		return nil
	})
	if _, err := p.ask("audit"); err == nil {
		t.Error("an audit without a shard succeeds")
	}
	if err := p.ingest.ready(); err != nil {
		t.Errorf("ingest, which reads the others: %v", err)
	}
	p.ingest.kill()
	p.hdfs.kill()
	p.ingest.start()
	p.hdfs.start()
	dead.start()
	p.awaitRest(n, time.Minute, p.hdfs)
	tallyHDFS(t, p.hdfsDir, n).check(t, "HDFS", false)
	checkCommitted(t, stack.kafka, p.out, n)

	out, err := p.ask("shards")
	for shard, b := range p.buffers() {
		if want := fmt.Sprintf("%d of %d  %s  open", shard, shardCount, b.grpc); err == nil && !strings.Contains(out, want) {
			err = fmt.Errorf("spillway shards has no %q:\n%s", want, out)
		}
	}
	if err != nil {
		t.Error(err)
	}
	out, err = p.ask("audit")
	if lines := strings.Count(out, p.topic); err != nil || lines != 2*partitions {
		t.Errorf("the audit has %d lines of partitions, want %d: %v\n%s", lines, 2*partitions, err, out)
	}
	out, err = p.ask("subscriptions")
	if err != nil || strings.Count(out, "c/hdfs") != 1 || !strings.Contains(out, "caught up") {
		t.Errorf("subscriptions: %v\n%s", err, out)
	}
	if out, err := p.ask("subscriptions", "pause", "c/test"); err != nil || !strings.Contains(out, "paused") {
		t.Errorf("pause: %v\n%s", err, out)
	}
	for _, b := range p.buffers() {
		if subs, err := subscriptionsOf(b); err != nil || !subs["test"].Paused {
			t.Errorf("%s: %v, %v; want it to be paused", b.name, subs["test"], err)
		}
	}
	if _, err := p.ask("subscriptions", "resume", "c/test"); err != nil {
		t.Error(err)
	}
}

// settledAt is nil when a buffer has so many records of each of its partitions, and all of them
// are settled.
func settledAt(b *service, perPartition int64) error {
	audit, err := auditOf(b)
	if err != nil {
		return err
	}
	for _, a := range audit.Partitions {
		if a.AppendedOffset != perPartition || a.PendingOffsets != 0 {
			return fmt.Errorf("%s: %v", b.name, a)
		}
	}
	return nil
}

var shardSeconds = flag.Int("shards.seconds", 40, "how long TestShardsAreKilledAgainAndAgain breaks things")

// TestShardsAreKilledAgainAndAgain: while records flow, SIGKILL hits buffers, ingest and
// deliveries at random. Everything arrives once, the audit has no hole, and a directory gets its
// _SUCCESS only when its records of all shards are in final files.
func TestShardsAreKilledAgainAndAgain(t *testing.T) {
	random := seeded(t)
	p := newShardedPipeline(t, `path: "/e2e/%{topic}/%Y-%m-%d"`, `path: "/e2e/%{topic}/%Y-%m-%d/%H-%M-%S", round: true, round_value: 10, round_unit: second, time_zone: UTC, success_after: 5s`,
		"idle: 2s", "idle: 1m")
	p.start()
	records := &timedRecords{in: make(map[string][]int), marks: make(map[string]bool)}
	client := newClient(t, stack.kafka)
	produced := repeat(50*time.Millisecond, func() error {
		now := time.Now()
		var batch []*kgo.Record
		for i := range 200 {
			batch = append(batch, &kgo.Record{Topic: p.topic, Partition: int32(i % partitions), Value: value(records.note(now)), Timestamp: now})
		}
		return client.ProduceSync(t.Context(), batch...).FirstErr()
	})
	looked := records.watch(t, p.hdfsDir)
	kills := 0
	for until := time.Now().Add(time.Duration(*shardSeconds) * time.Second); time.Now().Before(until); kills++ {
		pause(t, time.Duration(300+random.IntN(2000))*time.Millisecond)
		all := p.services()
		victim := all[random.IntN(len(all))]
		victim.kill()
		pause(t, time.Duration(random.IntN(1500))*time.Millisecond)
		victim.start()
	}
	pause(t, successBuckets)
	if err := produced(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d records, %d kills", records.n, kills)
	eventually(t, 2*time.Minute, "all directories are marked", records.unmarked)
	looked()
	p.awaitRest(records.n, 2*time.Minute, p.hdfs)
	tallyHDFS(t, p.hdfsDir, records.n).check(t, "HDFS", false)
	checkCommittedOnce(t, p, records.n)
	if _, err := p.ask("audit"); err != nil {
		t.Error(err)
	}
}

// checkCommittedOnce checks that the target has each record once. They are spread over partitions
// otherwise than checkCommitted believes.
func checkCommittedOnce(t *testing.T, p *pipeline, n int) {
	t.Helper()
	y := newTally(n)
	eachCommitted(t, stack.kafka, p.out, func(r *kgo.Record) { y.add(r.Value) })
	y.check(t, p.out, false)
}
