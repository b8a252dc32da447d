package kafkasink

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/segmentio/kafka-go"
	metadataapi "github.com/segmentio/kafka-go/protocol/metadata"
)

// locate asks for partitions and leaders of the topics that something is left for, and has topics
// created that do not exist, by the configuration.
func (s *Sink) locate(ctx context.Context, j *job) error {
	ctx, cancel := context.WithTimeout(ctx, s.timing.metadata)
	defer cancel()
	byBroker := s.cfg.MissingTopic == "broker" || s.cfg.MissingTopic == ""
	answer, err := s.transport.RoundTrip(ctx, s.addr, &metadataapi.Request{TopicNames: j.unfinished(nil), AllowAutoTopicCreation: byBroker})
	if err != nil {
		return fmt.Errorf("ask %s for metadata: %w", s.addr, err)
	}
	response := answer.(*metadataapi.Response)
	var failure error
	for i := range response.Topics {
		topic := &response.Topics[i]
		if n, wanted := j.byName[topic.Name]; wanted {
			failure = cmp.Or(failure, s.locateTopic(ctx, j, n, response.ClusterID, topic))
		}
	}
	return failure
}

func (s *Sink) locateTopic(ctx context.Context, j *job, n int, cluster string, topic *metadataapi.ResponseTopic) error {
	if !s.cfg.AllowLoop && topic.Name == j.source.topic && cluster == j.source.cluster {
		return fmt.Errorf("topic %s is the one that its records were read from: they would go round for ever; allow_loop: true allows it", topic.Name)
	}
	switch code := kafka.Error(topic.ErrorCode); {
	case code == kafka.InvalidTopic:
		j.deadLetterTarget(n, fmt.Sprintf("no target topic: the broker refuses the name %q", topic.Name))
		return nil
	case code == kafka.TopicAuthorizationFailed:
		return s.denied(j, n, fmt.Errorf("metadata of topic %s: %w", topic.Name, error(code)))
	case code == kafka.UnknownTopicOrPartition:
		switch s.cfg.MissingTopic {
		case "create":
			return s.create(ctx, j, n)
		case "wait":
			return fmt.Errorf("topic %s does not exist, or this delivery may not see it (missing_topic: wait): %w", topic.Name, code)
		}
		return fmt.Errorf("topic %s does not exist and the brokers do not create it (auto.create.topics.enable), or not yet; create it: %w", topic.Name, code)
	case code != 0:
		return fmt.Errorf("metadata of topic %s: %w", topic.Name, error(code))
	case len(topic.Partitions) == 0:
		return fmt.Errorf("metadata of topic %s: it has no partitions: %w", topic.Name, error(kafka.LeaderNotAvailable))
	}
	if len(j.topics[n].waiting) > 0 {
		j.spread(n, len(topic.Partitions), &s.partitioner, s.robin.Add(1))
	}
	var failure error
	for k := range topic.Partitions {
		p := &topic.Partitions[k]
		if int(p.PartitionIndex) >= len(j.topics[n].groups) || j.topics[n].groups[p.PartitionIndex] < 0 {
			continue
		}
		g := &j.groups[j.topics[n].groups[p.PartitionIndex]]
		g.leader = p.LeaderID
		if p.LeaderID < 0 && !g.done() {
			failure = cmp.Or(failure, fmt.Errorf("metadata of %s: %w", j.partName(g), error(cmp.Or(kafka.Error(p.ErrorCode), kafka.LeaderNotAvailable))))
		}
	}
	return failure
}

// errCreated is the reason to try again at once.
var errCreated = errors.New("the topic was created just now")

// create creates a target topic. Several deliveries may do so at the same time.
func (s *Sink) create(ctx context.Context, j *job, n int) error {
	name, wanted := j.topics[n].name, s.cfg.NewTopic
	created, err := s.createTopic(ctx, kafka.TopicConfig{Topic: name, NumPartitions: cmp.Or(wanted.Partitions, -1), ReplicationFactor: cmp.Or(wanted.Replication, -1)})
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

// createTopic makes sure that a topic exists, and says whether it was this call that created it.
func (s *Sink) createTopic(ctx context.Context, topic kafka.TopicConfig) (created bool, err error) {
	client := &kafka.Client{Addr: s.addr, Transport: s.transport, Timeout: s.timing.metadata}
	response, err := client.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{topic}})
	if err == nil {
		err = response.Errors[topic.Topic]
	}
	if err != nil && !errors.Is(err, kafka.TopicAlreadyExists) {
		return false, fmt.Errorf("create topic %s: %w", topic.Topic, err)
	}
	s.refresh()
	return err == nil, nil
}

// denied deals with what is left for a topic that the delivery may not write to.
func (s *Sink) denied(j *job, target int, cause error) error {
	if s.cfg.OnDenied != "dead_letter" {
		return cause
	}
	j.deadLetterTarget(target, cause.Error())
	return nil
}
