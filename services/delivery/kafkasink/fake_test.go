package kafkasink

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeSession hands out the leases that the test puts in, and keeps what is acked.
type fakeSession struct {
	leases chan *delivery.Lease
	id     uint64
	ledger string
	flows  *spillwayv1.Flows

	mu      sync.Mutex
	err     error
	acks    []*delivery.Ack
	refuse  map[uint64]bool // leases of which acks are refused
	refused int             // acks
	hold    chan struct{}   // acks wait until it is closed; may be nil
	changed chan struct{}   // has room for one: an ack came
	onAck   func()          // called before an ack is answered; may be nil
}

// sessions have been made so far.
var sessions atomic.Uint64

func newSession() *fakeSession {
	return &fakeSession{id: sessions.Add(1), ledger: "ledger", leases: make(chan *delivery.Lease, 1000), changed: make(chan struct{}, 1)}
}

func (f *fakeSession) ID() uint64                            { return f.id }
func (f *fakeSession) LedgerID() string                      { return f.ledger }
func (f *fakeSession) Sessions() int                         { return 1 }
func (f *fakeSession) Leases() <-chan *delivery.Lease        { return f.leases }
func (f *fakeSession) Adoptions() <-chan *delivery.Adoption  { return nil }
func (f *fakeSession) Watermarks() <-chan delivery.Watermark { return nil }
func (f *fakeSession) Nack(*delivery.Lease, time.Duration, error) {
	panic("the sink gives nothing back")
}

func (f *fakeSession) Flows() *spillwayv1.Flows { return f.flows }

func (f *fakeSession) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *fakeSession) Ack(_ context.Context, ack *delivery.Ack) error {
	if f.hold != nil {
		<-f.hold
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	if f.onAck != nil {
		f.onAck()
	}
	for _, l := range ack.Leases {
		if f.refuse[l.Lease.ID] {
			f.refused++
			return delivery.ErrRefused
		}
	}
	f.acks = append(f.acks, ack)
	select {
	case f.changed <- struct{}{}:
	default:
	}
	return nil
}

// acked are the leases acked as a whole so far, in order.
func (f *fakeSession) acked() []delivery.AckedLease {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []delivery.AckedLease
	for _, a := range f.acks {
		for _, l := range a.Leases {
			if len(l.Only) == 0 {
				all = append(all, l)
			}
		}
	}
	return all
}

// partly is what was acked of leases that were kept.
func (f *fakeSession) partly() []*spillwayv1.OffsetRange {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []*spillwayv1.OffsetRange
	for _, a := range f.acks {
		for _, l := range a.Leases {
			all = append(all, l.Only...)
		}
	}
	slices.SortFunc(all, func(a, b *spillwayv1.OffsetRange) int { return cmp.Compare(a.First, b.First) })
	return all
}

// refusals are the acks that were refused.
func (f *fakeSession) refusals() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refused
}

// empty is how many acks without leases were answered.
func (f *fakeSession) empty() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, a := range f.acks {
		if len(a.Leases) == 0 {
			n++
		}
	}
	return n
}

// wait returns when n leases are acked.
func (f *fakeSession) wait(t *testing.T, n int) []delivery.AckedLease {
	t.Helper()
	timeout := time.After(2 * time.Minute)
	for {
		if acked := f.acked(); len(acked) >= n {
			return acked
		}
		select {
		case <-f.changed:
		case <-timeout:
			t.Fatalf("%d leases are acked, want %d", len(f.acked()), n)
		}
	}
}

// lose ends the session as a broken stream does; ctx's end is the caller's.
func (f *fakeSession) lose(err error) {
	f.mu.Lock()
	f.err = err
	f.mu.Unlock()
	close(f.leases)
}

// logLines collects log messages.
type logLines struct {
	slog.Handler
	mu    sync.Mutex
	lines []string
}

func newLog() (*slog.Logger, *logLines) {
	l := &logLines{Handler: slog.DiscardHandler}
	return slog.New(l), l
}

func (l *logLines) Enabled(context.Context, slog.Level) bool { return true }
func (l *logLines) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, r.Message)
	return nil
}

func (l *logLines) count(line string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, have := range l.lines {
		if have == line {
			n++
		}
	}
	return n
}

// served is a sink at work on a session.
type served struct {
	*Sink
	*fakeSession
	log    *logLines
	cancel context.CancelFunc
	done   chan error
}

// serve makes a sink and has it serve a session. Brokers is cfg's, or the cluster's.
func serve(t *testing.T, cluster *kfake.Cluster, cfg config.Kafka) *served {
	t.Helper()
	return serveSession(t, cluster, cfg, newSession())
}

func serveSession(t *testing.T, cluster *kfake.Cluster, cfg config.Kafka, session *fakeSession) *served {
	t.Helper()
	if cfg.Brokers == nil {
		cfg.Brokers = cluster.ListenAddrs()
	}
	if cfg.Topic == "" {
		cfg.Topic = "%{topic}"
	}
	logger, lines := newLog()
	sink, err := New(&cfg, "q/s", logger)
	if err != nil {
		t.Fatal(err)
	}
	sink.timing = timing{request: 5 * time.Second, metadata: 5 * time.Second, retryMin: 5 * time.Millisecond, retryMax: 50 * time.Millisecond, giveUp: time.Minute}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("trouble: %v", sink.Trouble())
		}
	})
	s := &served{Sink: sink, fakeSession: session, log: lines, cancel: cancel, done: make(chan error, 1)}
	go func() { s.done <- sink.Serve(ctx, s.fakeSession) }()
	t.Cleanup(func() {
		cancel()
		select {
		case <-s.done:
		case <-time.After(10 * time.Second):
			t.Error("Serve did not return")
		}
		if err := sink.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

// drain lets the session drain and returns what Serve does.
func (s *served) drain(t *testing.T) error {
	t.Helper()
	close(s.leases)
	return s.returned(t)
}

func (s *served) returned(t *testing.T) error {
	t.Helper()
	select {
	case err := <-s.done:
		s.done <- err // for the cleanup
		return err
	case <-time.After(2 * time.Minute):
		t.Fatal("Serve did not return")
		return nil
	}
}

func newCluster(t testing.TB, opts ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	cluster, err := kfake.NewCluster(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	return cluster
}

func partition(topic string, n int32) *spillwayv1.SourcePartition {
	return &spillwayv1.SourcePartition{Cluster: "source", Topic: topic, Partition: n}
}

// lease is a batch of records at first, first+1, ...
func lease(id uint64, source *spillwayv1.SourcePartition, first int64, records ...recordbatch.Record) *delivery.Lease {
	var payload []byte
	for i := range records {
		records[i].OffsetDelta = int64(i)
		payload = recordbatch.AppendRecord(payload, &records[i])
	}
	return delivery.NewLease(id, source, first, first+int64(len(records)), len(records), payload)
}

func values(vs ...string) []recordbatch.Record {
	records := make([]recordbatch.Record, len(vs))
	for i, v := range vs {
		records[i] = recordbatch.Record{Value: []byte(v), TimestampMs: 1}
	}
	return records
}

// consume reads n records of topics from the beginning.
func consume(t *testing.T, cluster *kfake.Cluster, n int, topics ...string) []*kgo.Record {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.ConsumeTopics(topics...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var all []*kgo.Record
	for len(all) < n {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("read %d records of %v, want %d", len(all), topics, n)
		}
		fetches.EachRecord(func(r *kgo.Record) { all = append(all, r) })
	}
	return all
}

// textsOf are the values in the order of their offsets.
func textsOf(records []*kgo.Record, topic string, partition int32) []string {
	var texts []string
	for _, r := range records {
		if r.Topic == topic && r.Partition == partition {
			texts = append(texts, string(r.Value))
		}
	}
	return texts
}

// endOffset is the number of records ever written to a partition.
func endOffset(cluster *kfake.Cluster, topic string, partition int32) int64 {
	if info := cluster.PartitionInfo(topic, partition); info != nil {
		return info.HighWatermark
	}
	return 0
}

// gate is the listeners of a cluster that can go away: it then breaks all connections and accepts
// none.
type gate struct {
	mu    sync.Mutex
	shut  bool
	conns []net.Conn
}

func (g *gate) listen(network, address string) (net.Listener, error) {
	l, err := net.Listen(network, address)
	return &gatedListener{l, g}, err
}

type gatedListener struct {
	net.Listener
	gate *gate
}

func (l *gatedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		l.gate.mu.Lock()
		shut := l.gate.shut
		if shut {
			c.Close()
		} else {
			l.gate.conns = append(l.gate.conns, c)
		}
		l.gate.mu.Unlock()
		if !shut {
			return c, nil
		}
	}
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = true
	for _, c := range g.conns {
		c.Close()
	}
	g.conns = nil
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = false
}

func offsets(first, next int64) *spillwayv1.OffsetRange {
	return &spillwayv1.OffsetRange{First: first, Next: next}
}

// committedOf reads the committed records of topics of one partition, until there are n and each
// topic was read to its end.
func committedOf(t *testing.T, cluster *kfake.Cluster, topics []string, n int) []*kgo.Record {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.ConsumeTopics(topics...), kgo.KeepControlRecords(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	left := make(map[string]int64)
	for _, topic := range topics {
		if end := endOffset(cluster, topic, 0); end > 0 {
			left[topic] = end
		}
	}
	var all []*kgo.Record
	for len(left) > 0 || len(all) < n {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("read %d records, want %d; left: %v", len(all), n, left)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if !r.Attrs.IsControl() {
				all = append(all, r)
			}
			if r.Offset >= left[r.Topic]-1 {
				delete(left, r.Topic)
			}
		})
	}
	return all
}
