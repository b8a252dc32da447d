package ingest

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

// wanted is which topics a source reads.
type wanted struct {
	names    []string
	patterns []*regexp.Regexp
}

func newWanted(items []string) (w wanted, err error) {
	for _, item := range items {
		pattern, is := strings.CutPrefix(item, config.TopicPattern)
		if !is {
			w.names = append(w.names, item)
			continue
		}
		compiled, err := config.CompileTopicPattern(pattern)
		if err != nil {
			return w, fmt.Errorf("topic pattern %q: %w", pattern, err)
		}
		w.patterns = append(w.patterns, compiled)
	}
	return w, nil
}

// pick returns the number of partitions of the topics that are there, and which names are not.
func (w *wanted) pick(cluster *kafkaclient.Cluster) (existing map[string]int, missing []string, err error) {
	existing = make(map[string]int)
	named := make(map[string]bool, len(w.names))
	for _, name := range w.names {
		named[name] = true
	}
	for name, topic := range cluster.Topics {
		if !named[name] && !slices.ContainsFunc(w.patterns, func(p *regexp.Regexp) bool { return p.MatchString(name) }) {
			continue
		}
		if topic.Err != nil {
			return nil, nil, fmt.Errorf("read metadata of topic %s: %w", name, topic.Err)
		}
		if topic.Partitions > 0 {
			existing[name] = topic.Partitions
		}
	}
	for _, name := range w.names {
		if existing[name] == 0 {
			missing = append(missing, name)
		}
	}
	return existing, missing, nil
}

// lookUp learns the cluster's id and the number of partitions of each topic to read.
func (s *source) lookUp(ctx context.Context) (existing map[string]int, err error) {
	var names []string // all topics when patterns pick from them
	if len(s.wanted.patterns) == 0 {
		names = s.wanted.names
	}
	cluster, err := s.client.Cluster(ctx, names...)
	if err != nil {
		return nil, err
	}
	existing, missing, err := s.wanted.pick(cluster)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	news := s.cluster != cluster.ID || !slices.Equal(s.missing, missing)
	s.cluster, s.missing, s.topics = cluster.ID, missing, existing
	if s.begun == nil {
		s.begun = existing
	}
	s.mu.Unlock()
	if news {
		s.log.Info("connected to Kafka", "cluster", cluster.ID, "topics", slices.Sorted(maps.Keys(existing)))
		if len(missing) > 0 {
			s.log.Warn("topics do not exist, or may not be seen; they are read as soon as they are there", "topics", missing)
		}
	}
	return existing, nil
}

// findAdded marks the partitions whose records all came after the group, or this process, began
// to read, and which no instance has got to yet. With start: latest they are read from their
// first record, which is newer than that start. It returns ctx's error when that ends first.
func (s *source) findAdded(ctx context.Context, group *kafkaclient.Group, partitions []*partition) error {
	if s.cfg.Start != "latest" {
		return nil
	}
	s.mu.Lock()
	begun, now := s.begun, s.topics
	s.mu.Unlock()
	unread := make(map[string][]int) // topics with partitions in which nothing is committed
	for _, p := range partitions {
		if p.committed.Load() >= 0 || p.number >= begun[p.topic] || unread[p.topic] != nil {
			continue
		}
		for number := range now[p.topic] {
			unread[p.topic] = append(unread[p.topic], number)
		}
	}
	var committed map[string]map[int]kafkaclient.Committed
	for {
		var err error
		if committed, err = group.Committed(ctx, unread); err == nil {
			break
		}
		if err := s.kafka.Failed(ctx, err); err != nil {
			return err
		}
	}
	s.kafka.Over()
	inGroup := make(map[string]bool) // whether it has committed in a topic
	for topic, of := range committed {
		for _, c := range of {
			inGroup[topic] = inGroup[topic] || c.Offset >= 0
		}
	}
	for _, p := range partitions {
		p.added = p.committed.Load() < 0 && (p.number >= begun[p.topic] || inGroup[p.topic])
	}
	return nil
}

// watch returns when the topics to read, or their partitions, are not what they were, with what
// they are and whether it is other topics; or when ctx ends.
func (s *source) watch(ctx context.Context, was map[string]int) (is map[string]int, otherTopics bool) {
	// The first look is at once: generations may all end sooner than a topicPoll. But where
	// brokers say different things, the group is not to be divided again and again.
	s.mu.Lock()
	agreed := maps.Equal(was, s.topics)
	s.mu.Unlock()
	if !agreed {
		sleep(ctx, heartbeatEvery)
	}
	for ; ; sleep(ctx, topicPoll) {
		if ctx.Err() != nil {
			return was, false
		}
		is, err := s.lookUp(ctx)
		if err != nil || maps.Equal(was, is) {
			continue // the group has its own troubles with a cluster that is away
		}
		s.log.Info("topics changed; joining the group again", "partitions", is, "before", was)
		return is, !slices.Equal(slices.Sorted(maps.Keys(was)), slices.Sorted(maps.Keys(is)))
	}
}
