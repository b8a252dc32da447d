package ingest

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const group, topic = "g", "in"

type cluster struct {
	t      *testing.T
	fake   *kfake.Cluster
	client *kgo.Client
}

func startKafka(t *testing.T, partitions int32, topics ...string) *cluster {
	t.Helper()
	fake, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(partitions, topics...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	client, err := kgo.NewClient(kgo.SeedBrokers(fake.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchMaxBytes(64<<20))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return &cluster{t, fake, client}
}

func (c *cluster) produce(records ...*kgo.Record) {
	c.t.Helper()
	if err := c.client.ProduceSync(c.t.Context(), records...).FirstErr(); err != nil {
		c.t.Fatal(err)
	}
}

// numbered makes n records over the partitions, the value of each unique.
func numbered(n, partitions, from int) []*kgo.Record {
	all := make([]*kgo.Record, n)
	for i := range all {
		all[i] = &kgo.Record{Topic: topic, Partition: int32(i % partitions), Value: fmt.Appendf(nil, "record %d", from+i)}
	}
	return all
}

func (c *cluster) committed(partition int32) int64 {
	c.t.Helper()
	r := kmsg.NewPtrOffsetFetchRequest()
	r.Group = group
	response, err := r.RequestWith(c.t.Context(), c.client)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, t := range response.Topics {
		for _, p := range t.Partitions {
			if t.Topic == topic && p.Partition == partition {
				return p.Offset
			}
		}
	}
	return -1
}

type instance struct {
	*Service
	stop func()
}

func (c *cluster) source(topics ...string) *config.Source {
	if len(topics) == 0 {
		topics = []string{topic}
	}
	return &config.Source{Brokers: c.fake.ListenAddrs(), Group: group, Topics: topics, Start: "earliest", Queue: "q",
		Batch: config.Batch{Records: 100, Bytes: config.MiB, Linger: 20 * time.Millisecond}}
}

func (c *cluster) ingest(b *fakeBuffer, topics ...string) *instance {
	c.t.Helper()
	return c.ingestAll(b, map[string]*config.Source{"s": c.source(topics...)})
}

func (c *cluster) ingestAll(b *fakeBuffer, sources map[string]*config.Source) *instance {
	c.t.Helper()
	return c.ingestWith(b, sources, Deps{Log: slog.New(slog.NewTextHandler(c.t.Output(), nil)), Instance: "test"})
}

func (c *cluster) ingestWith(b *fakeBuffer, sources map[string]*config.Source, deps Deps) *instance {
	c.t.Helper()
	cfg := config.Ingest{Memory: 8 * config.MiB, Sources: sources}
	s, err := New(cfg, []string{b.addr}, deps)
	if err != nil {
		c.t.Fatal(err)
	}
	return runInstance(c.t, s)
}

// runInstance runs an ingest until stop, or the end of the test.
func runInstance(t *testing.T, s *Service) *instance {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return &instance{s, stop}
}

// checkOnce waits for n records and checks that each is there once, and in its partition's order.
func checkOnce(t *testing.T, b *fakeBuffer, n int) {
	t.Helper()
	waitFor(t, fmt.Sprintf("%d records", n), func() bool {
		count := 0
		for _, p := range b.records(topic) {
			count += len(p)
		}
		return count >= n
	})
	seen := make(map[string]bool)
	for number, p := range b.records(topic) {
		last := int64(-1)
		for _, r := range p {
			if seen[string(r.value)] {
				t.Errorf("%s is there twice", r.value)
			}
			seen[string(r.value)] = true
			if r.offset <= last {
				t.Errorf("partition %d: offset %d after %d", number, r.offset, last)
			}
			last = r.offset
		}
	}
	if len(seen) != n {
		t.Errorf("%d different records, want %d", len(seen), n)
	}
}

func TestEveryRecordOnceAndCommitted(t *testing.T) {
	kafka, buffer := startKafka(t, 4, topic), startBuffer(t)
	kafka.produce(numbered(10_000, 4, 0)...)
	first := kafka.ingest(buffer)
	checkOnce(t, buffer, 10_000)
	waitFor(t, "commit", func() bool { return kafka.committed(3) == 2500 })
	first.stop()
	kafka.produce(numbered(5_000, 4, 10_000)...)
	second := kafka.ingest(buffer)
	checkOnce(t, buffer, 15_000)
	second.stop()
	for p := range int32(4) {
		if got := kafka.committed(p); got != 3750 {
			t.Errorf("committed offset of partition %d is %d after the end, want 3750", p, got)
		}
	}
}

func TestRecordsAreUnchanged(t *testing.T) {
	kafka, buffer := startKafka(t, 1, topic), startBuffer(t)
	at := time.UnixMilli(1_700_000_000_123)
	kafka.produce(
		&kgo.Record{Topic: topic, Key: nil, Value: nil, Timestamp: at},
		&kgo.Record{Topic: topic, Key: []byte{}, Value: []byte{}, Timestamp: at},
		&kgo.Record{Topic: topic, Key: []byte{0, 255}, Value: []byte("v\n\x00"), Timestamp: at.Add(time.Hour),
			Headers: []kgo.RecordHeader{{Key: "a\xff", Value: []byte{1, 0}}, {Key: "", Value: nil}, {Key: "a\xff", Value: []byte{}}}})
	kafka.ingest(buffer)
	waitFor(t, "3 records", func() bool { return len(buffer.records(topic)[0]) == 3 })
	r := buffer.records(topic)[0]
	if r[0].key != nil || r[0].value != nil || r[0].timestamp != at.UnixMilli() {
		t.Errorf("nulls became %+v", r[0])
	}
	if r[1].key == nil || r[1].value == nil || len(r[1].key)+len(r[1].value) != 0 {
		t.Errorf("empty became %+v", r[1])
	}
	if string(r[2].key) != "\x00\xff" || string(r[2].value) != "v\n\x00" || r[2].timestamp != at.Add(time.Hour).UnixMilli() {
		t.Errorf("binary became %+v", r[2])
	}
	h := r[2].headers
	if len(h) != 3 || string(h[0].Name) != "a\xff" || string(h[0].Value) != "\x01\x00" || len(h[1].Name) != 0 || h[1].Value != nil || h[2].Value == nil {
		t.Errorf("headers became %+v", h)
	}
}

func TestRefusalAndBrokenStream(t *testing.T) {
	kafka, buffer := startKafka(t, 2, topic), startBuffer(t)
	s := kafka.ingest(buffer)
	kafka.produce(numbered(2_000, 2, 0)...)
	checkOnce(t, buffer, 2_000)

	buffer.set(func() {
		buffer.refuse = rpc.Error(codes.ResourceExhausted, "QUEUE_FULL", 50*time.Millisecond, "the queue is full")
	})
	kafka.produce(numbered(20_000, 2, 2_000)...)
	waitFor(t, "the source to say so", func() bool { return s.sources[0].status().State == "waiting for room in the buffer" })
	buffer.set(func() { buffer.refuse = nil })
	checkOnce(t, buffer, 22_000)
	waitFor(t, "the source to recover", func() bool { return s.sources[0].status().State == "running" })

	buffer.set(func() { buffer.breakAfter = 7 })
	kafka.produce(numbered(20_000, 2, 22_000)...)
	checkOnce(t, buffer, 42_000)
	buffer.set(func() {
		if buffer.streams < 2 {
			t.Error("the stream was not broken")
		}
	})
	waitFor(t, "the memory to be given back at rest", func() bool { return s.sources[0].memory.held() == 0 })
	s.stop()
	if used := s.sources[0].memory.held() + s.sources[0].memory.kept.Load(); used != 0 {
		t.Errorf("%d bytes of the budget are held after the end", used)
	}
}

func TestHugeRecordIsDeadLettered(t *testing.T) {
	kafka, buffer := startKafka(t, 1, topic), startBuffer(t)
	kafka.produce(numbered(1, 1, 0)...)
	kafka.produce(&kgo.Record{Topic: topic, Value: make([]byte, recordbatch.MaxRecordBytes+1)})
	kafka.produce(&kgo.Record{Topic: topic, Value: make([]byte, recordbatch.MaxRecordBytes)})
	kafka.produce(numbered(1, 1, 1)...)
	kafka.ingest(buffer)
	checkOnce(t, buffer, 3)
	if got := buffer.settled(topic, 0); len(got) != 1 || got[0] != "[1,2) OUTCOME_DEAD_LETTERED: record of 16777217 bytes is larger than 16777216" {
		t.Errorf("settled: %q", got)
	}
}

func TestDeletedRecordsAreLost(t *testing.T) {
	kafka, buffer := startKafka(t, 1, topic), startBuffer(t)
	kafka.produce(numbered(10, 1, 0)...)
	first := kafka.ingest(buffer)
	checkOnce(t, buffer, 10)
	first.stop()
	kafka.produce(numbered(10, 1, 10)...)
	kafka.deleteBefore(15)
	kafka.ingest(buffer)
	checkOnce(t, buffer, 15)
	if got := buffer.settled(topic, 0); len(got) != 1 || !strings.HasPrefix(got[0], "[10,15) OUTCOME_LOST: Kafka deleted") {
		t.Errorf("settled: %q", got)
	}
}

// TestRecordsAreDeletedUnderTheReader: an operator's DeleteRecords takes what is read next, all of
// it or a part; and what the buffer asks for again. All of it is settled as lost.
func TestRecordsAreDeletedUnderTheReader(t *testing.T) {
	for _, until := range []int64{15, 20} {
		kafka, buffer := startKafka(t, 1, topic), startBuffer(t)
		kafka.produce(numbered(10, 1, 0)...)
		s := kafka.ingest(buffer)
		checkOnce(t, buffer, 10)
		a := &admin{s: s.Service}
		if _, err := a.PauseSource(t.Context(), &spillwayv1.PauseSourceRequest{Name: "s"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(idleWait + 200*time.Millisecond) // a fetch that is out may bring something
		kafka.produce(numbered(10, 1, 10)...)
		kafka.deleteBefore(until)
		if _, err := a.ResumeSource(t.Context(), &spillwayv1.ResumeSourceRequest{Name: "s"}); err != nil {
			t.Fatal(err)
		}
		kafka.produce(numbered(10, 1, 20)...)
		checkOnce(t, buffer, int(30-until+10))
		if got := buffer.settled(topic, 0); len(got) != 1 || !strings.HasPrefix(got[0], fmt.Sprintf("[10,%d) OUTCOME_LOST: Kafka deleted", until)) {
			t.Errorf("settled: %q", got)
		}
		waitFor(t, "the end to be safe", func() bool { return kafka.committed(0) == 30 })
	}
}

func TestAbortedTransactionsAreLeftOut(t *testing.T) {
	kafka, buffer := startKafka(t, 1, topic), startBuffer(t)
	producer, err := kgo.NewClient(kgo.SeedBrokers(kafka.fake.ListenAddrs()...), kgo.TransactionalID("tx"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	for i, commit := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort, kgo.TryCommit, kgo.TryAbort} {
		if err := producer.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := producer.ProduceSync(t.Context(), numbered(5, 1, 5*i)...).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := producer.EndTransaction(t.Context(), commit); err != nil {
			t.Fatal(err)
		}
	}
	s := kafka.ingest(buffer)
	checkOnce(t, buffer, 10)
	for _, r := range buffer.records(topic)[0] {
		var n int
		if _, err := fmt.Sscanf(string(r.value), "record %d", &n); err != nil || n/5%2 == 1 {
			t.Errorf("%s was aborted", r.value)
		}
	}
	waitFor(t, "the last marker", func() bool { return s.sources[0].partitionStatus()[0].Position == 24 && kafka.committed(0) == 24 })
}

// TestPauseIsKept has the buffer keep a pause: an instance that starts later holds, and one that
// was not asked goes on when the source is resumed at another.
func TestPauseIsKept(t *testing.T) {
	kafka, buffer := startKafka(t, 1, topic), startBuffer(t)
	buffer.set(func() { buffer.keeps = true })
	first := kafka.ingest(buffer)
	kafka.produce(numbered(10, 1, 0)...)
	checkOnce(t, buffer, 10)
	got, err := (&admin{s: first.Service}).PauseSource(t.Context(), &spillwayv1.PauseSourceRequest{Name: "s"})
	if err != nil || !got.Kept || !got.Source.Paused {
		t.Fatalf("%v, %v", got, err)
	}
	first.stop()
	second := kafka.ingest(buffer)
	waitFor(t, "the pause", func() bool { return second.sources[0].status().State == "paused" })
	kafka.produce(numbered(10, 1, 10)...)
	time.Sleep(300 * time.Millisecond)
	if n := len(buffer.records(topic)[0]); n > 10 {
		t.Errorf("%d records arrived while paused", n-10)
	}
	buffer.pause(&spillwayv1.PauseSourceEverywhere{Source: "other", Paused: true})
	buffer.pause(&spillwayv1.PauseSourceEverywhere{Source: "s"}) // as another instance asks
	checkOnce(t, buffer, 20)
	if s := second.sources[0].status(); s.Paused {
		t.Errorf("%v", s)
	}
	buffer.set(func() { buffer.keeps = false })
}

func TestPauseAndAdmin(t *testing.T) {
	kafka, buffer := startKafka(t, 1, topic), startBuffer(t)
	s := kafka.ingest(buffer)
	kafka.produce(numbered(10, 1, 0)...)
	checkOnce(t, buffer, 10)
	a := &admin{s: s.Service}
	if _, err := a.PauseSource(t.Context(), &spillwayv1.PauseSourceRequest{Name: "s"}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(idleWait + 200*time.Millisecond) // a fetch that is out may bring something
	kafka.produce(numbered(10, 1, 10)...)
	time.Sleep(300 * time.Millisecond)
	if n := len(buffer.records(topic)[0]); n > 10 {
		t.Errorf("%d records arrived while paused", n-10)
	}
	list, err := a.ListSources(t.Context(), &spillwayv1.ListSourcesRequest{})
	if err != nil || len(list.Sources) != 1 || list.Sources[0].State != "paused" || !list.Sources[0].Paused || list.Sources[0].Records != 10 {
		t.Errorf("sources: %v, %v", list, err)
	}
	if _, err := a.ResumeSource(t.Context(), &spillwayv1.ResumeSourceRequest{Name: "s"}); err != nil {
		t.Fatal(err)
	}
	checkOnce(t, buffer, 20)
	partitions, err := a.ListPartitions(t.Context(), &spillwayv1.ListPartitionsRequest{Source: "s"})
	if err != nil || len(partitions.Partitions) != 1 || partitions.Partitions[0].Position != 20 {
		t.Errorf("partitions: %v, %v", partitions, err)
	}
	if _, err := a.ListPartitions(t.Context(), &spillwayv1.ListPartitionsRequest{Source: "x"}); err == nil || !strings.Contains(err.Error(), "there are: s") {
		t.Errorf("a source that is not there: %v", err)
	}
}
