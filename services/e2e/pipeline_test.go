package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// pipeline is the four processes between a topic, a directory in HDFS and another topic.
type pipeline struct {
	t          testing.TB
	dir        string
	config     string
	topic, out string
	hdfsDir    string
	target     broker
	buffer     *service
	others     []*service // the buffers of the queue's other shards
	ingest     *service
	hdfs       *service // delivery k
	kafka      *service // delivery t
}

// pipelineConfig is DESIGN §7's file, with ports and places of this test.
const pipelineConfig = `buffers: [%[1]q]
ingest:
  listen: %[2]q
  http: %[3]q
  sources:
    s: {brokers: [%[4]q], group: %[5]q, topics: [%[5]q], start: earliest, queue: c, batch: {records: 1000, bytes: 1MiB, linger: 50ms}}
buffer:
  listen: %[1]q
  http: %[6]q
  data_dir: %[7]q
  queues:
    c:
      memory: {records: 50000, bytes: 64MiB}
      disk: {records: 100000000, bytes: 10GiB}
      spill_after: 1s
      commit_after: safe
      lease: 10s
      subscriptions:
        hdfs: {topics: ["*"], on_full: block}
        test: {topics: ["*"], on_full: %[14]s}
delivery:
  k:
    subscription: c/hdfs
    listen: %[8]q
    http: %[9]q
    hdfs: {url: "hdfs://%[10]s", user: hdfs, path: "/e2e/%%{topic}/%%Y-%%m-%%d", file_prefix: "%%H", file_suffix: .log, roll: {interval: 1h, size: 8MiB, idle: 2s}, serializer: text}
  t:
    subscription: c/test
    listen: %[11]q
    http: %[12]q
    kafka: {brokers: [%[13]q], topic: "out-%%{topic}"}
`

// newPipeline prepares the processes; it starts none. Edit changes the configuration's text.
func newPipeline(t testing.TB, target broker, edit ...string) *pipeline {
	t.Helper()
	dir := t.TempDir()
	p := &pipeline{t: t, dir: dir, config: filepath.Join(dir, "pipeline.yaml"), target: target}
	p.topic = fmt.Sprintf("%s-%d", strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-")), time.Now().UnixNano())
	p.out = "out-" + p.topic
	p.hdfsDir = "/e2e/" + p.topic
	p.buffer = newService(t, dir, "buffer", "buffer", "-c", p.config)
	p.ingest = newService(t, dir, "ingest", "ingest", "-c", p.config)
	p.hdfs = newService(t, dir, "delivery-k", "delivery", "k", "-c", p.config)
	p.kafka = newService(t, dir, "delivery-t", "delivery", "t", "-c", p.config)
	text := fmt.Sprintf(pipelineConfig, p.buffer.grpc, p.ingest.grpc, p.ingest.http, stack.kafka.addr(), p.topic, p.buffer.http, filepath.Join(dir, "data"),
		p.hdfs.grpc, p.hdfs.http, stack.hdfs, p.kafka.grpc, p.kafka.http, target.addr(), "block")
	if err := os.WriteFile(p.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	p.rewrite(edit...)
	return p
}

// rewrite replaces texts of the configuration: old, new, old, new...
func (p *pipeline) rewrite(edit ...string) {
	p.t.Helper()
	text, err := os.ReadFile(p.config)
	if err == nil {
		err = os.WriteFile(p.config, []byte(strings.NewReplacer(edit...).Replace(string(text))), 0o644)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *pipeline) buffers() []*service { return append([]*service{p.buffer}, p.others...) }

func (p *pipeline) services() []*service { return append(p.buffers(), p.ingest, p.hdfs, p.kafka) }

func (p *pipeline) start() {
	p.t.Helper()
	for _, s := range p.services() {
		s.start()
	}
	for _, s := range p.services() {
		s.waitReady()
	}
}

// stop ends all in the order of the records' way. Each must drain.
func (p *pipeline) stop() {
	p.t.Helper()
	for _, s := range append([]*service{p.ingest, p.hdfs, p.kafka}, p.buffers()...) {
		s.stop()
	}
}

// subscriptions asks the buffer, by name without the queue.
func (p *pipeline) subscriptions() (map[string]*spillwayv1.Subscription, error) {
	return subscriptionsOf(p.buffer)
}

func subscriptionsOf(buffer *service) (map[string]*spillwayv1.Subscription, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	resp, err := spillwayv1.NewBufferAdminServiceClient(buffer.conn).ListSubscriptions(ctx, &spillwayv1.ListSubscriptionsRequest{})
	if err != nil {
		return nil, err
	}
	all := make(map[string]*spillwayv1.Subscription)
	for _, s := range resp.Subscriptions {
		_, name, _ := strings.Cut(s.Name, "/")
		all[name] = s
	}
	return all, nil
}

// settled is nil when the buffers have taken n records of the topic and the subscriptions have
// settled all of them.
func (p *pipeline) settled(n int, subscriptions ...string) error {
	audit := &spillwayv1.AuditResponse{}
	for _, b := range p.buffers() {
		of, err := auditOf(b)
		if rpc.Reason(err) == "NOT_OWNER" {
			continue // a spare
		}
		if err != nil {
			return err
		}
		audit.Partitions = append(audit.Partitions, of.Partitions...)
	}
	for _, name := range subscriptions {
		offsets, pending := int64(0), int64(0)
		for _, a := range audit.Partitions {
			if a.HoleOffsets > 0 {
				p.t.Errorf("the audit found holes: %v", a)
			}
			if a.Subscription == "c/"+name {
				offsets += a.AppendedOffset - a.StartOffset
				pending += a.PendingOffsets
			}
		}
		if offsets != int64(n) || pending != 0 {
			return fmt.Errorf("%s: %d of %d records appended, %d of them pending", name, offsets, n, pending)
		}
	}
	return nil
}

// auditOf asks a buffer for its account.
func auditOf(b *service) (*spillwayv1.AuditResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return spillwayv1.NewBufferAdminServiceClient(b.conn).Audit(ctx, &spillwayv1.AuditRequest{})
}

// noOpenFiles is nil when every file of the instances is final.
func noOpenFiles(instances ...*service) error {
	for _, s := range instances {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		resp, err := spillwayv1.NewDeliveryAdminServiceClient(s.conn).ListOpenFiles(ctx, &spillwayv1.ListOpenFilesRequest{})
		cancel()
		if err != nil {
			return err
		}
		if n := len(resp.Files); n > 0 {
			return fmt.Errorf("%s has %d files in use", s.name, n)
		}
	}
	return nil
}

// noOrphans is nil when no dead session's files wait to be adopted.
func (p *pipeline) noOrphans() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, b := range p.buffers() {
		resp, err := spillwayv1.NewBufferAdminServiceClient(b.conn).ListSessions(ctx, &spillwayv1.ListSessionsRequest{Subscription: "c/hdfs"})
		if rpc.Reason(err) == "NOT_OWNER" {
			continue // a spare
		}
		if err != nil {
			return err
		}
		for _, s := range resp.Sessions {
			if s.StateEntries > 0 {
				return fmt.Errorf("session %d (live: %t) has %d files that are not final", s.Id, s.Live, s.StateEntries)
			}
		}
	}
	return nil
}

// awaitRest waits until n records are settled everywhere and every file is final.
func (p *pipeline) awaitRest(n int, timeout time.Duration, instances ...*service) {
	p.t.Helper()
	eventually(p.t, timeout, "everything is delivered", func() error { return p.settled(n, "hdfs", "test") })
	eventually(p.t, timeout, "every file is final", func() error { return errors.Join(noOpenFiles(instances...), p.noOrphans()) })
}

const manyRecords = 200_000

// TestEverythingArrivesOnce: nothing fails, so that every record is in HDFS and in the target
// topic once.
func TestEverythingArrivesOnce(t *testing.T) {
	p := newPipeline(t, stack.kafka)
	createTopic(t, stack.kafka, p.topic, nil)
	source := newProducer(t, stack.kafka, p.topic)
	if err := source.produce(manyRecords, 0); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	p.start()
	eventually(t, 2*time.Minute, "everything is delivered", func() error { return p.settled(manyRecords, "hdfs", "test") })
	took := time.Since(began)
	t.Logf("%d records delivered to both %.1f s after the start of the processes: %.0f records/s", manyRecords, took.Seconds(), manyRecords/took.Seconds())
	p.awaitRest(manyRecords, time.Minute, p.hdfs)
	for s, payload := range map[*service]int64{p.buffer: 64, p.ingest: 64, p.hdfs: 32, p.kafka: 32} {
		_, peak := s.memoryBytes()
		t.Logf("%s: at most %d MiB resident", s.name, peak>>20)
		if limit := payload + 256; peak>>20 > limit {
			t.Errorf("%s was %d MiB resident, want at most its %d of payload and 256", s.name, peak>>20, payload)
		}
	}
	tallyHDFS(t, p.hdfsDir, manyRecords).check(t, "HDFS", false)
	tallyTopic(t, stack.kafka, p.out, manyRecords).check(t, p.out, false)
	eventually(t, 30*time.Second, "all of it is committed to Kafka", p.committedAll)
	p.stop()
	tallyHDFS(t, p.hdfsDir, manyRecords).check(t, "HDFS after the stop", false)
}

// committedAll is nil when every partition's end is committed in the group.
func (p *pipeline) committedAll() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	resp, err := spillwayv1.NewIngestAdminServiceClient(p.ingest.conn).ListPartitions(ctx, &spillwayv1.ListPartitionsRequest{})
	if err != nil {
		return err
	}
	if len(resp.Partitions) != partitions {
		return fmt.Errorf("%d partitions, want %d", len(resp.Partitions), partitions)
	}
	for _, x := range resp.Partitions {
		if x.EndOffset == 0 || x.CommittedOffset != x.EndOffset || x.SafeOffset != x.EndOffset || x.Position != x.EndOffset || x.Lag != 0 {
			return fmt.Errorf("partition %d: %v", x.Partition, x)
		}
	}
	return nil
}

// seeded is the random source of a test; E2E_SEED repeats it.
func seeded(t testing.TB) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("E2E_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("E2E_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("E2E_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// TestEachProcessKilled: SIGKILL hits each of the processes while records flow. Nothing is lost,
// and in HDFS nothing is doubled. The target topic may have doubles: at least once is the promise
// there.
func TestEachProcessKilled(t *testing.T) {
	random := seeded(t)
	p := newPipeline(t, stack.kafka)
	createTopic(t, stack.kafka, p.topic, nil)
	p.start()
	source := newProducer(t, stack.kafka, p.topic)
	produced := make(chan error, 1)
	go func() { produced <- source.produce(manyRecords, 10_000) }()
	for _, i := range random.Perm(4) {
		pause(t, time.Second+time.Duration(random.IntN(2000))*time.Millisecond)
		victim := p.services()[i]
		victim.kill()
		t.Logf("killed %s after %d records were produced", victim.name, source.written.Load())
		pause(t, time.Duration(random.IntN(1000))*time.Millisecond)
		victim.start()
	}
	if n := source.written.Load(); n == manyRecords {
		t.Error("all records had been produced before the last kill")
	}
	if err := <-produced; err != nil {
		t.Fatal(err)
	}
	p.awaitRest(manyRecords, 3*time.Minute, p.hdfs)
	tallyHDFS(t, p.hdfsDir, manyRecords).check(t, "HDFS", false)
	tallyTopic(t, stack.kafka, p.out, manyRecords).check(t, p.out, true)
	p.stop()
}

// TestAReplicaAdopts: of two deliveries one is killed and stays dead; the other one finishes its
// files.
func TestAReplicaAdopts(t *testing.T) {
	t.Parallel()
	const n = 60_000
	p := newPipeline(t, stack.kafka)
	createTopic(t, stack.kafka, p.topic, nil)
	other := p.replica(p.hdfs, 2)
	p.start()
	other.start()
	other.waitReady()
	source := newProducer(t, stack.kafka, p.topic)
	produced := make(chan error, 1)
	go func() { produced <- source.produce(n, 10_000) }()
	eventually(t, 30*time.Second, "both have files in use", func() error {
		if noOpenFiles(p.hdfs) == nil || noOpenFiles(other) == nil {
			return errors.New("one has none")
		}
		return nil
	})
	p.hdfs.kill()
	if err := <-produced; err != nil {
		t.Fatal(err)
	}
	p.awaitRest(n, 3*time.Minute, other)
	tallyHDFS(t, p.hdfsDir, n).check(t, "HDFS", false)
	tallyTopic(t, stack.kafka, p.out, n).check(t, p.out, true)
}

// TestTargetKafkaDies: while the second Kafka is dead, HDFS gets its records as before and the
// buffer's memory stays in bounds, also over a SIGKILL of the buffer; when the broker is back,
// everything arrives there, too.
func TestTargetKafkaDies(t *testing.T) {
	target := secondBroker(t)
	p := newPipeline(t, target)
	createTopic(t, stack.kafka, p.topic, nil)
	p.start0(t)
	source := newProducer(t, stack.kafka, p.topic)
	if err := source.produce(manyRecords, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Minute, "HDFS has everything", func() error { return p.settled(manyRecords, "hdfs") })
	subs, err := p.subscriptions()
	if err != nil {
		t.Fatal(err)
	}
	if n := subs["test"].PendingRecords; n != manyRecords {
		t.Errorf("%d records pending for the dead broker, want %d", n, manyRecords)
	}
	_, peak := p.buffer.memoryBytes()
	t.Logf("the buffer has a backlog of %d records and was at most %d MiB resident", manyRecords, peak>>20)
	if limit := int64(64+256) << 20; peak > limit {
		t.Errorf("the buffer was %d MiB resident, want at most %d", peak>>20, limit>>20)
	}
	p.buffer.kill()
	p.buffer.start()
	p.buffer.waitReady()
	if err := target.start(); err != nil {
		t.Fatal(err)
	}
	p.awaitRest(manyRecords, 3*time.Minute, p.hdfs)
	tallyHDFS(t, p.hdfsDir, manyRecords).check(t, "HDFS", false)
	tallyTopic(t, target, p.out, manyRecords).check(t, p.out, true)
}

// start0 is start with a target that is away: its delivery cannot be ready, and says why.
func (p *pipeline) start0(t testing.TB) {
	t.Helper()
	for _, s := range p.services() {
		s.start()
	}
	for _, s := range []*service{p.buffer, p.ingest, p.hdfs} {
		s.waitReady()
	}
	if err := p.kafka.ready(); err == nil {
		t.Error("the delivery to a dead broker says that it is ready")
	}
}
