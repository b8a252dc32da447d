package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
	"google.golang.org/grpc"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/backoff"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

const (
	commitInterval = time.Second
	// topicPoll is how often topics are looked for, and the number of partitions is compared.
	topicPoll = 5 * time.Second
	// sessionTimeout is after what silence Kafka gives a dead instance's partitions to others.
	sessionTimeout = 10 * time.Second
	// leaveRetry is the pause between attempts to take a former member out of the group.
	leaveRetry = 500 * time.Millisecond
)

// source reads the topics of one Kafka cluster as one consumer group into one queue.
type source struct {
	name     string
	cfg      *config.Source
	instance string
	memory   *budget
	log      *slog.Logger
	onReady  func(ready bool, reason string)
	access   kafkaclient.Access
	client   *kafkaclient.Client
	wanted   wanted
	gate     gate // closed: paused

	kafka   *backoff.Trouble
	buffer  *backoff.Trouble
	commits *backoff.Trouble
	// retention is about the watch over it (retention.go).
	retention *backoff.Trouble

	records, bytes atomic.Int64 // accepted by the buffer

	mu         sync.Mutex
	cluster    string
	missing    []string
	topics     map[string]int // to read, with their partitions, as of the last look
	begun      map[string]int // as of the first look
	partitions []*partition   // of this generation
	running    bool
}

func newSource(name string, cfg *config.Source, memory *budget, deps Deps, onReady func(bool, string)) (*source, error) {
	log := deps.Log.With("source", name)
	s := &source{name: name, cfg: cfg, instance: deps.Instance, memory: memory, log: log, onReady: onReady,
		kafka:  backoff.NewTrouble(log, "no way to Kafka"),
		buffer: backoff.NewTrouble(log, "no way to the buffer"), commits: backoff.NewTrouble(log, "cannot commit offsets"),
		retention: backoff.NewTrouble(log, "cannot compare the oldest unsafe record with the retention")}
	var err error
	if s.wanted, err = newWanted(cfg.Topics); err != nil {
		return nil, err
	}
	if s.access, err = kafkaclient.NewAccess(cfg.TLS, cfg.SASL, log); err != nil {
		return nil, err
	}
	s.client = kafkaclient.New(cfg.Brokers, s.clientID(), s.access)
	return s, nil
}

func (s *source) clientID() string { return "spillway-" + s.instance }

// run reads until ctx ends.
func (s *source) run(ctx context.Context, conn *grpc.ClientConn) {
	defer s.client.Close()
	defer s.onReady(false, "stopped")
	ready := false
	for ctx.Err() == nil {
		topics, err := s.lookUp(ctx)
		if err != nil {
			if ctx.Err() == nil {
				s.onReady(false, err.Error())
				_ = s.kafka.Failed(ctx, err)
			}
			ready = false
			continue
		}
		s.kafka.Over()
		if !ready {
			if err := s.probeBuffer(ctx, conn); err != nil {
				if ctx.Err() == nil {
					s.onReady(false, err.Error())
					_ = s.buffer.Failed(ctx, err)
				}
				continue
			}
			s.buffer.Over()
			s.onReady(true, "")
			ready = true
		}
		if len(topics) == 0 {
			sleep(ctx, topicPoll)
			continue
		}
		s.consume(ctx, conn, topics)
	}
}

func (s *source) clusterID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cluster
}

func (s *source) open() *spillwayv1.AppendOpen {
	return &spillwayv1.AppendOpen{Queue: s.cfg.Queue, Cluster: s.clusterID(), Client: s.instance}
}

// reads is all that the source reads, as of the last look.
func (s *source) reads() *spillwayv1.AppendRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := &spillwayv1.SourceTopics{Source: s.name}
	for topic, partitions := range s.topics {
		m.Topics = append(m.Topics, &spillwayv1.SourceTopic{Topic: topic, Partitions: int32(partitions)})
	}
	return &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Topics{Topics: m}}
}

// probeBuffer returns nil when the buffer accepts a stream.
func (s *source) probeBuffer(ctx context.Context, conn *grpc.ClientConn) error {
	a, err := openAppender(ctx, conn, s.open(), nil, nil)
	if err != nil {
		conn.ResetConnectBackoff() // the waiting is done here
		return err
	}
	a.close()
	return nil
}

// consume is a member of the group for topics until ctx ends or other topics are to be read.
func (s *source) consume(ctx context.Context, conn *grpc.ClientConn, topics map[string]int) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, err := kafka.NewConsumerGroup(kafka.ConsumerGroupConfig{
		ID: s.cfg.Group, Brokers: s.cfg.Brokers, Topics: slices.Sorted(maps.Keys(topics)),
		Dialer:            s.access.Dialer(s.clientID()),
		GroupBalancers:    []kafka.GroupBalancer{kafka.RangeGroupBalancer{}, kafka.RoundRobinGroupBalancer{}},
		HeartbeatInterval: sessionTimeout / 5, SessionTimeout: sessionTimeout, RebalanceTimeout: 3 * sessionTimeout,
		JoinGroupBackoff: time.Second, Timeout: 10 * time.Second, StartOffset: kafka.FirstOffset,
	})
	if err != nil {
		_ = s.kafka.Failed(ctx, fmt.Errorf("join group %s: %w", s.cfg.Group, err))
		return
	}
	// What was seen before joining is what the group's leader divides, or older.
	seen := topics
	member := "" // of the generation before
	var leaving sync.WaitGroup
	for {
		generation, err := group.Next(ctx)
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			s.kafka.Note(fmt.Errorf("join group %s: %w", s.cfg.Group, err)) // the group waits by itself
			if former := member; former != "" && !errors.Is(err, kafka.RebalanceInProgress) {
				member = ""
				leaving.Go(func() { s.leave(ctx, former) })
			}
			continue
		}
		s.kafka.Over()
		member = generation.MemberID
		// kafka-go's own watcher ends a generation as soon as it begins when a topic is gone. A
		// generation ends with the first function that was started in it, and the next one begins after
		// all have returned.
		generation.Start(func(ctx context.Context) {
			var other bool
			if seen, other = s.watch(ctx, seen); other {
				cancel()
			}
		})
		generation.Start(func(ctx context.Context) { s.generation(ctx, conn, generation) })
	}
	// Close ends the generation, waits for it, and leaves the group.
	if err := group.Close(); err != nil {
		s.log.Warn("leaving the group failed", "error", err)
	}
	leaving.Wait()
}

// leave takes the member out of the group that this instance was. After an error kafka-go joins as another one. It says
// goodbye before, but not when there is no way to the broker; then the former one is waited for until its session is over.
func (s *source) leave(ctx context.Context, former string) {
	for ctx.Err() == nil && s.client.LeaveGroup(ctx, s.cfg.Group, former) != nil {
		sleep(ctx, leaveRetry)
	}
}

// generation reads the partitions that the group gave this instance, until it takes them away.
func (s *source) generation(ctx context.Context, conn *grpc.ClientConn, g *kafka.Generation) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	partitions := s.assign(g)
	if s.findAdded(ctx, partitions) != nil {
		return
	}
	s.setPartitions(partitions, true)
	defer s.setPartitions(nil, false)
	s.log.Info("joined the group", "group", s.cfg.Group, "generation", g.ID, "partitions", fmt.Sprint(partitions))

	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			sleep(ctx, commitInterval)
			s.commit(g, partitions)
		}
	})
	wg.Go(func() { s.watchRetention(ctx, partitions) })
	for ctx.Err() == nil {
		if err := s.read(ctx, conn, partitions); ctx.Err() == nil {
			_ = s.buffer.Failed(ctx, err)
			conn.ResetConnectBackoff()
		}
	}
	wg.Wait()
}

// assign makes the partitions of a generation.
func (s *source) assign(g *kafka.Generation) []*partition {
	n := 0
	for _, assigned := range g.Assignments {
		n += len(assigned)
	}
	// Half of the memory for fetches of all partitions at once, within what makes fetches worth while.
	fetchBytes := int(min(max(s.memory.limit/2/int64(max(n, 1)), 64<<10), 2<<20))
	var partitions []*partition
	for _, topic := range slices.Sorted(maps.Keys(g.Assignments)) {
		for _, assigned := range g.Assignments[topic] {
			partitions = append(partitions, newPartition(s, topicPartition{topic, assigned.ID}, assigned.Offset, fetchBytes))
		}
	}
	return partitions
}

func (s *source) setPartitions(partitions []*partition, running bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.partitions, s.running = partitions, running
}

// read reads all partitions over one stream to the buffer, and returns why that broke.
func (s *source) read(ctx context.Context, conn *grpc.ClientConn, partitions []*partition) error {
	a, err := openAppender(ctx, conn, s.open(), s, partitions)
	if err != nil {
		return err
	}
	s.buffer.Over()
	_ = a.send(s.reads()) // a broken stream tells below
	var wg sync.WaitGroup
	for _, p := range partitions {
		wg.Go(func() { p.run(a) })
	}
	<-a.ctx.Done()
	err = context.Cause(a.ctx)
	a.close()
	wg.Wait()
	return err
}

// commit tells Kafka the safe offsets that rose.
func (s *source) commit(g *kafka.Generation, partitions []*partition) {
	offsets := make(map[string]map[int]int64)
	for _, p := range partitions {
		if safe := p.safe.Load(); safe >= 0 && safe != p.committed.Load() {
			if offsets[p.topic] == nil {
				offsets[p.topic] = make(map[int]int64)
			}
			offsets[p.topic][p.number] = safe
		}
	}
	if len(offsets) == 0 {
		return
	}
	if err := g.CommitOffsets(offsets); err != nil {
		s.commits.Note(err)
		return
	}
	s.commits.Over()
	for _, p := range partitions {
		if safe, ok := offsets[p.topic][p.number]; ok {
			p.committed.Store(safe)
		}
	}
}

// state describes the source for people.
func (s *source) state() (state string, err error) {
	s.mu.Lock()
	running, partitions, missing, cluster := s.running, s.partitions, s.missing, s.cluster
	s.mu.Unlock()
	for _, t := range []*backoff.Trouble{s.kafka, s.buffer, s.commits} {
		if err = t.Err(); err != nil {
			break
		}
	}
	full := false
	for _, p := range partitions {
		full = full || p.full.Err() != nil
		if err == nil {
			if err = p.fetching.Err(); err != nil {
				err = fmt.Errorf("%s: %w", p, err)
			}
		}
	}
	switch {
	case s.buffer.Err() != nil:
		return "waiting for the buffer", err
	case s.kafka.Err() != nil:
		return "waiting for Kafka", err
	case cluster == "":
		return "connecting", err
	case s.gate.closed():
		return "paused", err
	case full:
		return "waiting for room in the buffer", err
	case !running && len(missing) == len(s.cfg.Topics):
		return "waiting for the topics: " + strings.Join(missing, ", "), err
	case !running && len(s.wanted.names) == len(missing) && len(s.wanted.patterns) > 0:
		return "joining the group, or waiting for topics", err
	case !running:
		return "joining the group", err
	}
	return "running", err
}
