package kafkaclient

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// CreateTopic makes sure that a topic exists, and says whether this call created it. Partitions
// and replication of -1 are the brokers' defaults. Errors have the broker's own words where it
// has any.
func (t *Transport) CreateTopic(ctx context.Context, name string, partitions, replication int, patience time.Duration) (created bool, err error) {
	return t.CreateTopicWith(ctx, name, partitions, replication, nil, patience)
}

// CreateTopicWith is CreateTopic for a topic with settings of its own. One that exists keeps its
// settings.
func (t *Transport) CreateTopicWith(ctx context.Context, name string, partitions, replication int, settings map[string]string, patience time.Duration) (created bool, err error) {
	request := kmsg.NewPtrCreateTopicsRequest()
	request.TimeoutMillis = int32((patience / 2).Milliseconds())
	topic := kmsg.NewCreateTopicsRequestTopic()
	topic.Topic, topic.NumPartitions, topic.ReplicationFactor = name, int32(partitions), int16(replication)
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		c := kmsg.NewCreateTopicsRequestTopicConfig()
		c.Name, c.Value = key, kmsg.StringPtr(settings[key])
		topic.Configs = append(topic.Configs, c)
	}
	request.Topics = append(request.Topics, topic)
	answer, err := t.Controller(ctx, request, patience)
	if err == nil {
		err = fmt.Errorf("%w: the answer does not mention the topic", kafka.Unknown)
		for _, r := range answer.(*kmsg.CreateTopicsResponse).Topics {
			if r.Topic == name {
				err = described(r.ErrorCode, valueOf(r.ErrorMessage))
			}
		}
	}
	if err != nil && !errors.Is(err, kafka.TopicAlreadyExists) {
		return false, fmt.Errorf("create topic %s: %w", name, err)
	}
	t.Stale(name)
	return err == nil, nil
}

func valueOf(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
