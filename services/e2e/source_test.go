package e2e

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/ingest"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// countingBuffer takes everything, and everything is safe at once.
type countingBuffer struct {
	spillwayv1.UnimplementedBufferServiceServer
	life    string // of its data
	mu      sync.Mutex
	records int
	last    map[string]int64 // by partition: where the last batch ended
}

func (b *countingBuffer) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.records
}

// Append implements BufferService.
func (b *countingBuffer) Append(stream spillwayv1.BufferService_AppendServer) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		for _, answer := range b.handle(m) {
			if err := stream.Send(answer); err != nil {
				return err
			}
		}
	}
}

func (b *countingBuffer) handle(m *spillwayv1.AppendRequest) []*spillwayv1.AppendResponse {
	b.mu.Lock()
	defer b.mu.Unlock()
	key := func(s *spillwayv1.SourcePartition) string { return fmt.Sprint(s.Topic, "/", s.Partition) }
	taken := func(s *spillwayv1.SourcePartition, r *spillwayv1.OffsetRange, records int32) []*spillwayv1.AppendResponse {
		b.records += int(records)
		b.last[key(s)] = r.Next
		return []*spillwayv1.AppendResponse{
			{Message: &spillwayv1.AppendResponse_Appended{Appended: &spillwayv1.Appended{Source: s, Range: r}}},
			{Message: &spillwayv1.AppendResponse_Safe{Safe: &spillwayv1.SafeOffset{Source: s, Offset: r.Next}}}}
	}
	switch m := m.Message.(type) {
	case *spillwayv1.AppendRequest_Open:
		return []*spillwayv1.AppendResponse{{Message: &spillwayv1.AppendResponse_Opened{Opened: &spillwayv1.AppendOpened{Life: b.life}}}}
	case *spillwayv1.AppendRequest_Assign:
		next, known := b.last[key(m.Assign.Source)]
		return []*spillwayv1.AppendResponse{{Message: &spillwayv1.AppendResponse_Assigned{Assigned: &spillwayv1.PartitionAssigned{
			Source: m.Assign.Source, Known: known, ResumeOffset: next, SafeOffset: next}}}}
	case *spillwayv1.AppendRequest_Batch:
		return taken(m.Batch.Source, &spillwayv1.OffsetRange{First: m.Batch.FirstOffset, Next: m.Batch.NextOffset}, m.Batch.RecordCount)
	case *spillwayv1.AppendRequest_Settle:
		return taken(m.Settle.Source, m.Settle.Range, 0)
	}
	return nil
}

// runningSource is an ingest with one source in this process.
type runningSource struct {
	*countingBuffer
	metrics *prometheus.Registry
	mu      sync.Mutex
	log     bytes.Buffer
	ready   bool
	reason  string
}

func (r *runningSource) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(b)
}

// lines counts the lines of the log that have all of the parts.
func (r *runningSource) lines(parts ...string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
lines:
	for line := range strings.Lines(r.log.String()) {
		for _, part := range parts {
			if !strings.Contains(line, part) {
				continue lines
			}
		}
		n++
	}
	return n
}

// gauge sums up a metric of ingest.
func (r *runningSource) gauge(t testing.TB, name string) (sum float64) {
	t.Helper()
	families, err := r.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "spillway_ingest_"+name {
			for _, m := range f.GetMetric() {
				sum += m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// startSource runs a source until the test ends.
func startSource(t testing.TB, instance string, cfg *config.Source) *runningSource {
	t.Helper()
	r := &runningSource{countingBuffer: &countingBuffer{life: newName("life"), last: make(map[string]int64)}, metrics: prometheus.NewRegistry()}
	log := slog.New(slog.NewTextHandler(r, nil))
	server := rpc.NewServer(slog.New(slog.DiscardHandler))
	spillwayv1.RegisterBufferServiceServer(server.GRPC, r.countingBuffer)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Start, cfg.Queue, cfg.Isolation = "earliest", "q", "read_committed"
	cfg.Batch = config.Batch{Records: 1000, Bytes: config.MiB, Linger: 50 * time.Millisecond}
	s, err := ingest.New(config.Ingest{Memory: 64 * config.MiB, Sources: map[string]*config.Source{"s": cfg}}, []string{lis.Addr().String()},
		ingest.Deps{Log: log, Instance: instance, Registerer: r.metrics, OnReady: func(ready bool, reason string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.ready, r.reason = ready, reason
		}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var g errgroup.Group
	g.Go(func() error { return server.Serve(ctx, lis) })
	g.Go(func() error { return s.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("ready: %t, %s\n%s", r.ready, r.reason, r.log.String())
		}
	})
	return r
}

// arrived is nil when n records are there.
func (r *runningSource) arrived(n int) error {
	if got := r.count(); got != n {
		r.mu.Lock()
		defer r.mu.Unlock()
		return fmt.Errorf("%d records, want %d; ready: %t, %s", got, n, r.ready, r.reason)
	}
	return nil
}

// TestTwoPipelinesInOneGroup: the second one in a group gets no partitions and says why, and the
// first has all.
func TestTwoPipelinesInOneGroup(t *testing.T) {
	t.Parallel()
	topic := newName("rivals")
	createTopic(t, stack.kafka, topic, nil)
	p := newProducer(t, stack.kafka, topic)
	if err := p.produce(1000, 0); err != nil {
		t.Fatal(err)
	}
	source := func() *config.Source {
		return &config.Source{Brokers: []string{stack.kafka.addr()}, Group: topic, Topics: []string{topic}}
	}
	first := startSource(t, "first", source())
	eventually(t, time.Minute, "the records", func() error { return first.arrived(1000) })
	second := startSource(t, "second", source())
	eventually(t, time.Minute, "the second says why it does not read", func() error {
		second.mu.Lock()
		defer second.mu.Unlock()
		if second.ready || !strings.Contains(second.reason, "another pipeline's: its member spillway-first") || !strings.Contains(second.reason, first.life) {
			return fmt.Errorf("ready: %t, %s", second.ready, second.reason)
		}
		return nil
	})
	if err := p.produce(1000, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "all records in one place", func() error { return first.arrived(2000) })
	if n := second.count(); n != 0 || second.lines("level=ERROR", first.life, second.life) == 0 {
		t.Errorf("the second has %d records", n)
	}
}

// TestStoppedBootstrapBroker: the first of two bootstrap brokers is stopped with SIGSTOP, so that
// it accepts connections and never answers.
func TestStoppedBootstrapBroker(t *testing.T) {
	t.Parallel()
	stopped := secondBroker(t)
	if err := stopped.start(); err != nil {
		t.Fatal(err)
	}
	stopped.freeze(t)
	topic := newName("stopped")
	createTopic(t, stack.kafka, topic, nil)
	if err := newProducer(t, stack.kafka, topic).produce(1000, 0); err != nil {
		t.Fatal(err)
	}
	s := startSource(t, topic, &config.Source{Brokers: []string{stopped.addr(), stack.kafka.addr()}, Group: topic, Topics: []string{topic}})
	eventually(t, time.Minute, "the records", func() error { return s.arrived(1000) })
	eventually(t, time.Minute, "the offsets are committed", func() error { return committed(t, topic, 1000) })
}

func newName(of string) string { return fmt.Sprintf("%s-%08x", of, rand.Uint32()) }

// committed is nil when a group has committed so many offsets in all.
func committed(t testing.TB, group string, want int64) error {
	offsets, err := kadm.NewClient(newClient(t, stack.kafka)).FetchOffsets(t.Context(), group)
	if err != nil {
		return err
	}
	sum := int64(0)
	offsets.Each(func(o kadm.OffsetResponse) { sum += o.At })
	if sum != want {
		return fmt.Errorf("%d offsets are committed, want %d", sum, want)
	}
	return nil
}

// TestFetchQuota: the brokers throttle the fetches of the client. It takes its time, no fetch
// fails, the place in the group is kept, and it is said once.
func TestFetchQuota(t *testing.T) {
	t.Parallel()
	topic := newName("quota")
	admin := kadm.NewClient(newClient(t, stack.kafka))
	id := "spillway-" + topic
	const rate = 300_000
	if _, err := admin.AlterClientQuotas(t.Context(), []kadm.AlterClientQuotaEntry{{Entity: kadm.ClientQuotaEntity{{Type: "client-id", Name: &id}},
		Ops: []kadm.AlterClientQuotaOp{{Key: "consumer_byte_rate", Value: rate}}}}); err != nil {
		t.Fatal(err)
	}
	createTopic(t, stack.kafka, topic, nil)
	client := newClient(t, stack.kafka)
	const n = 120
	for i := range n {
		value := make([]byte, 50_000)
		for j := range value {
			value[j] = byte(rand.Uint32())
		}
		client.Produce(t.Context(), &kgo.Record{Topic: topic, Partition: int32(i % partitions), Value: value}, nil)
	}
	if err := client.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := startSource(t, topic, &config.Source{Brokers: []string{stack.kafka.addr()}, Group: topic, Topics: []string{topic}})
	eventually(t, 2*time.Minute, "the records", func() error { return s.arrived(n) })
	if said := s.lines("throttles this client"); said != 1 {
		t.Errorf("it was said %d times that the broker throttles", said)
	}
	for _, trouble := range []string{"cannot", "topics\"", "group divides"} {
		if s.lines(trouble) > 0 {
			t.Errorf("the log has %q", trouble)
		}
	}
	if joined := s.lines("joined the group"); joined != 1 {
		t.Errorf("the group was joined %d times", joined)
	}
}

// TestOpenTransactionIsShown: what an open transaction holds back counts as lag, and its wait is
// shown.
func TestOpenTransactionIsShown(t *testing.T) {
	t.Parallel()
	topic := newName("open")
	createTopic(t, stack.kafka, topic, nil)
	producer := newClient(t, stack.kafka, kgo.TransactionalID(topic))
	write := func(n int) {
		t.Helper()
		for i := range n {
			producer.Produce(t.Context(), &kgo.Record{Topic: topic, Partition: 0, Value: value(i)}, nil)
		}
		if err := producer.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for i, n := range []int{10, 5000} {
		if err := producer.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		write(n)
		if i == 0 {
			if err := producer.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
				t.Fatal(err)
			}
		}
	}
	s := startSource(t, topic, &config.Source{Brokers: []string{stack.kafka.addr()}, Group: topic, Topics: []string{topic}})
	eventually(t, time.Minute, "the wait is shown", func() error {
		if lag, end, stable, wait := s.gauge(t, "lag_records"), s.gauge(t, "end_offset"), s.gauge(t, "stable_offset"), s.gauge(t, "held_back_seconds"); s.count() != 10 ||
			lag != 5000 || end != 5011 || stable != 11 || wait < 1 {
			return fmt.Errorf("%d records, lag %v, end %v, stable %v, for %v s", s.count(), lag, end, stable, wait)
		}
		return nil
	})
	if err := producer.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "all is read", func() error { return s.arrived(5010) })
	eventually(t, time.Minute, "nothing waits", func() error {
		if lag, wait := s.gauge(t, "lag_records"), s.gauge(t, "held_back_seconds"); lag != 0 || wait != 0 {
			return fmt.Errorf("lag %v, for %v s", lag, wait)
		}
		return nil
	})
}

// TestGroupWithAJavaConsumer: Kafka's own consumer is in the same group. Each reads the
// partitions that it was given, and it is said that the group is shared.
func TestGroupWithAJavaConsumer(t *testing.T) {
	t.Parallel()
	topic := newName("java")
	createTopic(t, stack.kafka, topic, nil)
	s := startSource(t, topic, &config.Source{Brokers: []string{stack.kafka.addr()}, Group: topic, Topics: []string{topic}})
	eventually(t, 2*time.Minute, "ingest is in the group", func() error {
		if s.lines("joined the group") == 0 {
			s.mu.Lock()
			defer s.mu.Unlock()
			return fmt.Errorf("it is not: %s", s.reason)
		}
		return nil
	})
	var out, errs safeBuffer
	java := exec.CommandContext(t.Context(), filepath.Join(scripts, "kafka-console-consumer"), "--bootstrap-server", stack.kafka.addr(), "--topic", topic, "--group", topic)
	java.Env = append(os.Environ(), "STACK_RUN="+stack.run)
	java.Stdout, java.Stderr = &out, &errs
	java.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := java.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-java.Process.Pid, syscall.SIGKILL) // the script and its JVM
		_ = java.Wait()
		if t.Failed() {
			t.Logf("the console consumer: %s", errs.String())
		}
	})
	eventually(t, 2*time.Minute, "the group is divided", func() error {
		group, err := kadm.NewClient(newClient(t, stack.kafka)).DescribeGroups(t.Context(), topic)
		if err != nil {
			return err
		}
		with := 0
		for _, m := range group[topic].Members {
			if a, ok := m.Assigned.AsConsumer(); ok && len(a.Topics) == 1 && len(a.Topics[0].Partitions) == partitions/2 {
				with++
			}
		}
		if with != 2 || group[topic].State != "Stable" {
			return fmt.Errorf("%d members with a half, %s", with, group[topic].State)
		}
		return nil
	})
	const n = 4000
	if err := newProducer(t, stack.kafka, topic).produce(n, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "all records on both sides", func() error {
		if here, there := s.count(), strings.Count(out.String(), "\n"); here != n/2 || there != n/2 {
			return fmt.Errorf("%d here, %d in the console consumer; %s", here, there, errs.String())
		}
		return nil
	})
	eventually(t, time.Minute, "it is said", func() error {
		if s.lines("level=WARN", "the group is shared", "console-consumer") != 1 {
			return fmt.Errorf("it is not")
		}
		return nil
	})
}

// safeBuffer is a bytes.Buffer for several goroutines.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
