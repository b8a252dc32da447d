// Package kafkasink produces records to Kafka: at least once, or with exactly_once in
// transactions (transaction.go), and in order per source partition.
//
// What is kept of a record: key, value and header values with null and empty told apart, headers
// with their order and repetitions, the timestamp (unless the target topic sets its own). It is
// produced with acks=all and acked to the buffer after Kafka's answer, so a lost answer or
// session can double records but loses none. Brokers must be 0.11 or later.
//
// Serve's own goroutine hands out work: the leases of one source partition form jobs, one job of
// a partition at a time, in the order they were leased (job.go). A job lives on its own goroutine
// until all its records are produced or dead-lettered (produce.go); while it talks to Kafka it
// holds one of a fixed number of slots, which bound requests and the memory for encoding. A job
// that waits for a destination to come back holds none, so a topic that is away does not keep
// others from going on. Finished leases are acked many at a time, one ack after the other. All
// these goroutines end before Serve returns; the connections end with Close.
//
// Memory beyond the leases: two copies of a request for each slot, and about 150 bytes for each
// record of a job that has begun.
package kafkasink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go/compress"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

const (
	// slotCount bounds the jobs that talk to Kafka at the same time.
	slotCount = 8
	// startCount bounds the producers that are initialized at the same time, with exactly_once.
	startCount = 32
	// maxJobBytes and maxJobRecords bound the leases that go into one job, but for the first; a
	// transaction, which costs about ten requests, takes transactionJobs times as much.
	maxJobBytes     = 1 << 20
	maxJobRecords   = 10_000
	transactionJobs = 4
	// maxAckLeases and maxAckDeadLetters bound what goes into one ack, but for the first lease.
	maxAckLeases      = 1000
	maxAckDeadLetters = 5000
	// maxBatchBytes bounds a batch before compression; brokers refuse more than 1,048,588 by
	// default.
	maxBatchBytes = 1_000_000
)

// Sink is a delivery.Sink. It may serve several sessions at a time, of different shards: they
// share the connections, the slots, and what is known of Kafka.
type Sink struct {
	cfg          config.Kafka
	subscription string // as queue/name
	log          *slog.Logger
	brokers      string // as configured, for messages
	access       kafkaclient.Access
	transport    *kafkaclient.Transport
	topic        template
	perRecord    bool
	partitioner  partitioner
	trouble      trouble
	timing       timing

	allowance *allowance
	// shortTransactions: the brokers refuse patientTimeout.
	shortTransactions atomic.Bool

	slots chan *slot
	// starts has what is initialized.
	starts chan struct{}
	jobs   sync.Pool // of *job, empty
	robin  atomic.Uint32

	mu            sync.Mutex
	limits        map[string]int  // by topic: bytes of a batch, where the broker wants less than maxBatchBytes
	progressThere bool            // the progress topic exists
	toldOf        map[string]bool // ledgers of which it was said that there is progress of others
}

// timing is what tests make shorter.
type timing struct {
	request  time.Duration // for the answer to a request
	metadata time.Duration // for the answer to a metadata request
	retryMin time.Duration
	retryMax time.Duration
	giveUp   time.Duration // while draining: before jobs that only fail are left to other sessions
}

// slot is the permission to talk to Kafka, with the memory for it.
type slot struct {
	encoder encoder
	buffer  []byte
	parts   []part
}

// New prepares a delivery; it connects to nothing. Close it at the end.
func New(cfg *config.Kafka, subscription string, log *slog.Logger) (*Sink, error) {
	access, err := kafkaclient.NewAccess(cfg.TLS, cfg.SASL, log)
	if err != nil {
		return nil, fmt.Errorf("kafka.%w", err)
	}
	s := &Sink{
		cfg:          *cfg,
		subscription: subscription,
		log:          log,
		brokers:      strings.Join(cfg.Brokers, ","),
		access:       access,
		transport:    access.Transport(cfg.Brokers, "spillway"),
		trouble:      trouble{log: log},
		timing:       timing{request: 30 * time.Second, metadata: 15 * time.Second, retryMin: 100 * time.Millisecond, retryMax: 5 * time.Second, giveUp: 800 * time.Millisecond},
		allowance:    newAllowance(),
		slots:        make(chan *slot, slotCount),
		starts:       make(chan struct{}, startCount),
		jobs:         sync.Pool{New: func() any { return newJob() }},
		limits:       make(map[string]int),
		toldOf:       make(map[string]bool),
	}
	if len(cfg.Brokers) == 0 {
		return nil, errors.New("kafka.brokers is empty: name at least one broker as host:port")
	}
	if s.topic, err = parseTemplate(cfg.Topic); err != nil {
		return nil, fmt.Errorf("kafka.topic: %w", err)
	}
	s.perRecord = s.topic.perRecord()
	if s.partitioner, err = parsePartitioner(cfg.Partitioner, cfg.PartitionHeader); err != nil {
		return nil, fmt.Errorf("kafka.partitioner: %w", err)
	}
	compression := compress.None
	if cfg.Compression != "" {
		if err := compression.UnmarshalText([]byte(cfg.Compression)); err != nil {
			return nil, fmt.Errorf("kafka.compression: %w", err)
		}
	}
	for range slotCount {
		s.slots <- &slot{encoder: encoder{compression: compression}}
	}
	return s, nil
}

// Ordering implements delivery.Sink.
func (s *Sink) Ordering() spillwayv1.Ordering { return spillwayv1.Ordering_ORDERING_PARTITION }

// Trouble implements delivery.Troubled.
func (s *Sink) Trouble() error {
	if err := s.trouble.last(); err != nil {
		return err
	}
	if broker, left := s.transport.Throttle().Longest(); left > 0 {
		return fmt.Errorf("the broker %s throttles this client because a quota is exceeded, for %s more", broker, left.Round(time.Millisecond))
	}
	return nil
}

// Target implements delivery.Targeted.
func (s *Sink) Target(ctx context.Context) (cluster, topic string, err error) {
	_, cluster, err = s.transport.Topics(ctx, nil, false)
	return cluster, s.cfg.Topic, err
}

// Metrics implements delivery.Metered.
func (s *Sink) Metrics() []prometheus.Collector {
	return []prometheus.Collector{kafkaclient.NewThrottleCollector("spillway_delivery", s.transport.Throttle()), s.access.Metrics("spillway_delivery_")}
}

// Close closes the connections. No session may be served any more.
func (s *Sink) Close() error {
	s.transport.CloseIdleConnections()
	s.access.Close()
	return nil
}

// sourceKey is a source partition.
type sourceKey struct {
	cluster, topic string
	partition      int32
	incarnation    uint32
}

func keyOf(p *spillwayv1.SourcePartition) sourceKey {
	return sourceKey{p.GetCluster(), p.GetTopic(), p.GetPartition(), p.GetIncarnation()}
}

// source is a source partition with leases that are not produced yet.
type source struct {
	waiting []*delivery.Lease
	busy    bool // a job of it is under way, or with exactly_once its ack
	unacked int  // with exactly_once: leases of the last job
}

// serving is one Serve. Its own goroutine alone touches the fields that are no channels.
type serving struct {
	sink    *Sink
	session delivery.Session
	wg      sync.WaitGroup
	loops   loops

	sources map[sourceKey]*source
	// producers are those of exactly_once. Another session of this process may have had the
	// partition, and still be at work on it, so none is taken over from there.
	producers map[sourceKey]*producer
	active    map[*job]bool // under way
	finished  chan *job
	toAck     []delivery.AckedLease
	acking    bool
	acked     chan ackResult
}

// ackResult is the answer to an ack.
type ackResult struct {
	leases   []delivery.AckedLease
	accepted []bool
	err      error
}

// Serve implements delivery.Sink.
func (s *Sink) Serve(ctx context.Context, session delivery.Session) error {
	ctx, cancel := context.WithCancel(ctx)
	v := &serving{
		sink: s, session: session,
		sources:   make(map[sourceKey]*source),
		producers: make(map[sourceKey]*producer),
		active:    make(map[*job]bool),
		finished:  make(chan *job), acked: make(chan ackResult),
	}
	err := v.run(ctx)
	cancel()
	v.wg.Wait()
	if lost := session.Err(); lost != nil {
		return lost
	}
	return err
}

func (v *serving) run(ctx context.Context) error {
	leases := v.session.Leases()
	var drain <-chan time.Time
	for leases != nil || len(v.sources) > 0 || len(v.toAck) > 0 || v.acking {
		select {
		case l, open := <-leases:
			switch {
			case open:
				v.add(ctx, l)
			case v.session.Err() != nil:
				return v.session.Err()
			default:
				leases = nil
				ticker := time.NewTicker(v.sink.timing.giveUp)
				defer ticker.Stop()
				drain = ticker.C
			}
		case <-drain:
			if v.hopeless() {
				return fmt.Errorf("given up while draining: %w", v.sink.trouble.last())
			}
		case j := <-v.finished:
			v.finish(ctx, j)
		case r := <-v.acked:
			if r.err != nil {
				return r.err
			}
			v.acking = false
			v.ack(ctx)
			if v.sink.cfg.ExactlyOnce {
				v.settled(ctx, &r)
			}
		case a := <-v.session.Adoptions():
			v.sink.log.Warn("the subscription has state of a delivery to files; it is left alone", "session", a.SessionID, "entries", len(a.Entries))
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// hopeless says whether all that is left are jobs that keep failing.
func (v *serving) hopeless() bool {
	if len(v.active) == 0 || len(v.toAck) > 0 || v.acking || v.sink.trouble.last() == nil {
		return false
	}
	for j := range v.active {
		if !j.failing.Load() {
			return false
		}
	}
	return true
}

// add takes in a lease.
func (v *serving) add(ctx context.Context, l *delivery.Lease) {
	key := keyOf(l.Source)
	src := v.sources[key]
	if src == nil {
		src = &source{}
		v.sources[key] = src
	}
	src.waiting = append(src.waiting, l)
	v.begin(ctx, key, src)
}

// begin starts the next job of a source partition, unless one is under way.
func (v *serving) begin(ctx context.Context, key sourceKey, src *source) {
	if src.busy {
		return
	}
	if len(src.waiting) == 0 {
		delete(v.sources, key)
		return
	}
	j := v.sink.jobs.Get().(*job)
	j.source, j.session, j.loops, j.allowLoop = key, v.session, &v.loops, v.sink.cfg.AllowLoop
	bytes, records, times := 0, 0, 1
	if v.sink.cfg.ExactlyOnce {
		j.producer, times = v.producer(key), transactionJobs
	}
	for _, l := range src.waiting {
		bytes, records = bytes+len(l.Payload), records+l.RecordCount
		if len(j.leases) > 0 && (bytes > times*maxJobBytes || records > times*maxJobRecords || l.Epoch != j.leases[0].Epoch) {
			break
		}
		j.leases = append(j.leases, l)
	}
	taken := len(j.leases)
	left := copy(src.waiting, src.waiting[taken:])
	clear(src.waiting[left:])
	src.waiting = src.waiting[:left]
	src.busy = true
	v.active[j] = true
	v.wg.Go(func() {
		if v.sink.deliver(ctx, j) != nil {
			return // ctx ended
		}
		select {
		case v.finished <- j:
		case <-ctx.Done():
		}
	})
}

// finish takes a finished job's leases to be acked, and goes on with its source partition.
func (v *serving) finish(ctx context.Context, j *job) {
	delete(v.active, j)
	before := len(v.toAck)
	v.toAck = j.appendAcked(v.toAck)
	key := j.source
	j.reset()
	v.sink.jobs.Put(j)
	src := v.sources[key]
	if v.sink.cfg.ExactlyOnce {
		src.unacked = len(v.toAck) - before
	}
	v.ack(ctx)
	if src.unacked == 0 {
		src.busy = false
		v.begin(ctx, key, src)
	}
}

// settled goes on, with exactly_once, with the source partitions of which all is acked.
func (v *serving) settled(ctx context.Context, r *ackResult) {
	for i, l := range r.leases {
		key := keyOf(l.Lease.Source)
		if r.accepted[i] {
			v.producer(key).progress.remove(l.Lease.First, l.Lease.Next)
		}
		src := v.sources[key]
		if src.unacked--; src.unacked == 0 {
			src.busy = false
			v.begin(ctx, key, src)
		}
	}
}

// ack acks what is finished, unless an ack is under way.
func (v *serving) ack(ctx context.Context) {
	if v.acking || len(v.toAck) == 0 {
		return
	}
	n, deadLetters := 0, 0
	for n < min(len(v.toAck), maxAckLeases) {
		deadLetters += len(v.toAck[n].DeadLetters)
		if n > 0 && deadLetters > maxAckDeadLetters {
			break
		}
		n++
	}
	leases := v.toAck[:n:n]
	v.toAck = v.toAck[n:]
	v.acking = true
	v.wg.Go(func() {
		r := ackResult{leases: leases}
		r.accepted, r.err = v.ackAll(ctx, leases)
		select {
		case v.acked <- r:
		case <-ctx.Done():
		}
	})
}

// ackAll acks leases. When one of them is no longer held all are refused, so then each goes on
// its own. What is refused is leased again.
func (v *serving) ackAll(ctx context.Context, leases []delivery.AckedLease) (accepted []bool, err error) {
	accepted = make([]bool, len(leases))
	err = v.session.Ack(ctx, &delivery.Ack{Leases: leases})
	if !errors.Is(err, delivery.ErrRefused) {
		for i := range accepted {
			accepted[i] = err == nil
		}
		return accepted, err
	}
	refused := 0
	for i := range leases {
		if len(leases) > 1 && !leases[i].Lease.Revoked() {
			err = v.session.Ack(ctx, &delivery.Ack{Leases: leases[i : i+1]})
			if accepted[i] = err == nil; accepted[i] {
				continue
			}
			if !errors.Is(err, delivery.ErrRefused) {
				return nil, err
			}
		}
		refused++
	}
	if !v.sink.cfg.ExactlyOnce {
		v.sink.log.Warn("the buffer took back batches that were already produced; they will be produced twice", "batches", refused)
	}
	return accepted, nil
}
