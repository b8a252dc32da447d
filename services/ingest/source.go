package ingest

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/backoff"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
	"github.com/spillwayio/spillway/services/internal/shards"
	"github.com/spillwayio/spillway/services/internal/tracing"
)

// topicPoll is how often topics are looked for, and the number of partitions is compared.
const topicPoll = 5 * time.Second

// source reads the topics of one Kafka cluster as one consumer group into one queue.
type source struct {
	name     string
	cfg      *config.Source
	instance string
	tracer   *tracing.Tracer // may be nil
	memory   *memory
	log      *slog.Logger
	onReady  func(ready bool, reason string)
	access   kafkaclient.Access
	client   *kafkaclient.Client
	// members is the client for requests to the group's coordinator, which must not wait while
	// the broker throttles fetches.
	members *kafkaclient.Client
	wanted  wanted
	lookups *lookups
	gate    gate // closed: paused (pause.go)

	kafka     *backoff.Trouble
	buffer    *backoff.Trouble // before it is known which shards there are
	commits   *backoff.Trouble
	retention *backoff.Trouble // about the watch over it (retention.go)
	looks     sync.Mutex       // one lookAtRetention at a time: tests look as well
	tells     sync.Mutex       // one tellRetention at a time
	full      *troubles
	fetching  *troubles
	strangers *strangers
	undecided undecided
	rivals    rivals

	records, bytes atomic.Int64 // accepted by the buffer
	tellEvery      atomic.Int64 // ms between two messages that a partition has no more records
	refetches      chan struct{}
	leaderCheck    time.Duration // leaderCheck, but in tests

	mu         sync.Mutex
	cluster    string
	missing    []string
	topics     map[string]int // to read, with their partitions, as of the last look
	begun      map[string]int // as of the first look
	partitions []*partition   // of this generation
	fetcher    *fetcher       // of this generation
	running    bool
	owners     []*owner                 // by shard; none before a buffer has told how many there are
	buffers    *shards.Buffers          // once it runs
	pausedHere bool                     // in this instance only
	foreign    []string                 // client ids of members that are not ours
	committed  map[topicPartition]int64 // by this process, last
	compared   map[string]time.Time     // when all brokers were asked for the leaders of a topic
}

func newSource(name string, cfg *config.Source, memory *memory, deps Deps, onReady func(bool, string)) (*source, error) {
	log := deps.Log.With("source", name)
	s := &source{name: name, cfg: cfg, instance: deps.Instance, tracer: deps.Tracer, memory: memory, log: log, onReady: onReady,
		kafka:     backoff.NewTrouble(log, "cannot read from Kafka", "Kafka answers again"),
		buffer:    backoff.NewTrouble(log, "cannot reach the buffer", "the buffer can be reached again"),
		commits:   backoff.NewTrouble(log, "cannot commit offsets", "offsets are committed again"),
		retention: backoff.NewTrouble(log, "cannot compare the oldest unsafe record with the retention", "the oldest unsafe record is compared with the retention again"),
		full:      newTroubles(log, "the buffer refuses records", "the buffer takes records again"),
		fetching:  newTroubles(log, "cannot fetch", "all partitions are fetched again"),
		strangers: &strangers{log: log},
		refetches: make(chan struct{}, maxRefetches), leaderCheck: leaderCheck,
		committed: make(map[topicPartition]int64), compared: make(map[string]time.Time)}
	var err error
	if s.wanted, err = newWanted(cfg.Topics); err != nil {
		return nil, err
	}
	access, err := kafkaclient.NewAccess(cfg.TLS, cfg.SASL, log)
	if err != nil {
		return nil, err
	}
	s.access = access
	s.client = kafkaclient.New(cfg.Brokers, s.clientID(), access)
	s.members = kafkaclient.New(cfg.Brokers, s.clientID(), access)
	s.lookups = newLookups(s.client, memory.arrived)
	return s, nil
}

// clientIDs is how the client ids of all ingests begin.
const clientIDs = "spillway-"

func (s *source) clientID() string { return clientIDs + s.instance }

// run reads until ctx ends.
func (s *source) run(ctx context.Context, buffers *shards.Buffers) {
	defer s.access.Close()
	defer s.client.Close()
	defer s.members.Close()
	defer s.onReady(false, "stopped")
	s.mu.Lock()
	s.buffers = buffers
	s.mu.Unlock()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.lookups.run(ctx) })
	reached := false
	for ctx.Err() == nil {
		topics, err := s.lookUp(ctx)
		if err != nil {
			if ctx.Err() == nil {
				s.onReady(false, err.Error())
				_ = s.kafka.Failed(ctx, err)
			}
			reached = false
			continue
		}
		s.kafka.Over()
		if !reached {
			if err := s.reach(ctx, buffers); err != nil {
				if ctx.Err() == nil {
					s.onReady(false, err.Error())
					_ = s.buffer.Failed(ctx, err)
				}
				continue
			}
			s.buffer.Over()
			reached = true
		}
		if len(topics) == 0 {
			s.onReady(true, "")
			sleep(ctx, topicPoll)
			continue
		}
		if rival := s.consume(ctx, buffers, topics); rival != nil {
			s.yield(ctx, rival)
			reached = false
		}
	}
}

func (s *source) clusterID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cluster
}

// reads is all that the source reads, as of the last look.
func (s *source) reads() *spillwayv1.AppendRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := &spillwayv1.SourceTopics{Source: s.name, Wanted: s.cfg.Topics}
	for topic, partitions := range s.topics {
		m.Topics = append(m.Topics, &spillwayv1.SourceTopic{Topic: topic, Partitions: int32(partitions)})
	}
	return &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Topics{Topics: m}}
}

// state describes the source for people.
func (s *source) state() (state string, err error) {
	s.mu.Lock()
	running, missing, cluster, fetcher := s.running, s.missing, s.cluster, s.fetcher
	s.mu.Unlock()
	for _, of := range []func() error{s.rivals.current, s.kafka.Err, s.bufferErr, s.commits.Err, s.fetching.err} {
		if err = of(); err != nil {
			break
		}
	}
	if err == nil && fetcher != nil {
		err = fetcher.err()
	}
	switch {
	case s.bufferErr() != nil:
		return "waiting for the buffer", err
	case s.kafka.Err() != nil:
		return "waiting for Kafka", err
	case cluster == "":
		return "connecting", err
	case !running && s.rivals.current() != nil:
		return "waiting: the group is another pipeline's", err
	case s.gate.closed():
		return "paused", err
	case s.full.err() != nil:
		return "waiting for room in the buffer", err
	case !running && len(missing) == len(s.cfg.Topics):
		return "waiting for the topics: " + strings.Join(missing, ", "), err
	case !running && len(s.wanted.names) == len(missing) && len(s.wanted.patterns) > 0:
		return "joining the group, or waiting for topics", err
	case !running:
		return "joining the group", err
	}
	if broker, left := s.client.Throttle().Longest(); left > 0 {
		return "running; the broker " + broker + " throttles fetches for " + left.Round(time.Millisecond).String() + " more, because of a quota", err
	}
	return "running", err
}
