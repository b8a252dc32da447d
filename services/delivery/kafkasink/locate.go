package kafkasink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/segmentio/kafka-go"

	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

// locate asks for partitions and leaders of the topics that something is left for, and has topics
// created that do not exist, by the configuration.
func (s *Sink) locate(ctx context.Context, j *job) error {
	byBroker := s.cfg.MissingTopic == "broker" || s.cfg.MissingTopic == ""
	_, cluster, err := s.transport.Topics(ctx, nil, false)
	if err != nil {
		return fmt.Errorf("ask %s for metadata: %w", s.brokers, err)
	}
	// Before they are asked for, which may create them.
	names, failure := s.refuseLoops(j, cluster, j.unfinished(nil))
	topics, _, err := s.transport.Topics(ctx, names, byBroker)
	if err != nil {
		return fmt.Errorf("ask %s for metadata: %w", s.brokers, err)
	}
	for name, topic := range topics {
		if n, wanted := j.byName[name]; wanted {
			failure = cmp.Or(failure, s.locateTopic(ctx, j, n, &topic))
		}
	}
	return failure
}

func (s *Sink) locateTopic(ctx context.Context, j *job, n int, topic *kafkaclient.TopicMetadata) error {
	switch code := topic.Err; {
	case errors.Is(code, kafka.InvalidTopic):
		j.deadLetterTarget(n, fmt.Sprintf("no target topic: the broker refuses the name %q", topic.Name))
		return nil
	case errors.Is(code, kafka.TopicAuthorizationFailed):
		return s.denied(j, n, fmt.Errorf("metadata of topic %s: %w", topic.Name, code))
	case errors.Is(code, kafka.UnknownTopicOrPartition):
		switch s.cfg.MissingTopic {
		case "create":
			return s.create(ctx, j, n)
		case "wait":
			return fmt.Errorf("topic %s does not exist, or this delivery may not see it (missing_topic: wait): %w", topic.Name, code)
		}
		return fmt.Errorf("topic %s does not exist and the brokers do not create it (auto.create.topics.enable), or not yet; create it: %w", topic.Name, code)
	case code != nil:
		return fmt.Errorf("metadata of topic %s: %w", topic.Name, code)
	case len(topic.Leaders) == 0:
		return fmt.Errorf("metadata of topic %s: it has no partitions: %w", topic.Name, error(kafka.LeaderNotAvailable))
	}
	t := &j.topics[n]
	if shrunk := j.shrunk(t, len(topic.Leaders)); shrunk && j.producer != nil {
		return fmt.Errorf("topic %s was created again with %d partitions: the transaction begins again", topic.Name, len(topic.Leaders))
	} else if shrunk && (topic.ID != t.id || topic.ID == [16]byte{}) {
		s.log.Warn("the target topic has fewer partitions than before, so it was created again; records are spread over those it has",
			"topic", topic.Name, "partitions", len(topic.Leaders))
		j.gather(n)
	}
	if len(t.waiting) > 0 {
		t.id = topic.ID
		j.spread(n, len(topic.Leaders), &s.partitioner, s.robin.Add(1))
	}
	var failure error
	for _, i := range t.groups {
		g := &j.groups[i]
		leader := kafkaclient.Leader{ID: -1, Err: kafka.UnknownTopicOrPartition} // of a partition that the answer leaves out
		if int(g.partition) < len(topic.Leaders) {
			leader = topic.Leaders[g.partition]
		}
		if g.leader = leader.ID; leader.Err != nil && !g.done() {
			failure = cmp.Or(failure, fmt.Errorf("metadata of %s: %w", j.partName(g), leader.Err))
		}
	}
	return failure
}

// shrunk says whether something is left for a partition that the topic does not have.
func (j *job) shrunk(t *target, partitions int) bool {
	return slices.ContainsFunc(t.groups, func(i int) bool { return !j.groups[i].done() && int(j.groups[i].partition) >= partitions })
}

// errCreated is the reason to try again at once.
var errCreated = errors.New("the topic was created just now")

// create creates a target topic. Several deliveries may do so at the same time.
func (s *Sink) create(ctx context.Context, j *job, n int) error {
	name, wanted := j.topics[n].name, s.cfg.NewTopic
	created, err := s.transport.CreateTopic(ctx, name, cmp.Or(wanted.Partitions, -1), cmp.Or(wanted.Replication, -1), s.timing.metadata)
	switch {
	case errors.Is(err, kafka.TopicAuthorizationFailed):
		return s.denied(j, n, err)
	case err != nil:
		return err
	case created:
		s.log.Info("created a target topic", "topic", name, "partitions", wanted.Partitions, "replication", wanted.Replication)
	}
	return fmt.Errorf("topic %s: %w", name, errCreated)
}

// denied deals with what is left for a topic that the delivery may not write to.
func (s *Sink) denied(j *job, target int, cause error) error {
	if s.cfg.OnDenied != "dead_letter" {
		return cause
	}
	j.deadLetterTarget(target, cause.Error())
	return nil
}
