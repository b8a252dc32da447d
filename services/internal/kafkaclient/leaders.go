package kafkaclient

import (
	"context"
	"fmt"

	"github.com/segmentio/kafka-go"
)

// Leaders returns the leaders of the topics' partitions. What was heard within half a minute is
// not asked for again, unless it was an error or is Stale.
func (c *Client) Leaders(ctx context.Context, topics []string) (map[string]TopicMetadata, error) {
	all, _, err := c.transport.Topics(ctx, topics, false)
	return all, err
}

// Leader returns the id of a partition's leader.
func (c *Client) Leader(ctx context.Context, topic string, partition int) (int32, error) {
	return c.transport.leader(ctx, topic, partition)
}

func (t *Transport) leader(ctx context.Context, topic string, partition int) (int32, error) {
	all, _, err := t.Topics(ctx, []string{topic}, false)
	if err != nil {
		return -1, err
	}
	m := all[topic]
	switch {
	case m.Err != nil:
		return -1, fmt.Errorf("read metadata of topic %s: %w", topic, m.Err)
	case partition < 0 || partition >= len(m.Leaders):
		return -1, kafka.UnknownTopicOrPartition
	}
	return m.Leaders[partition].ID, m.Leaders[partition].Err
}

// Stale has what is known of topics asked for again on its next use.
func (c *Client) Stale(topics ...string) { c.transport.Stale(topics...) }

// Compare has newer leaders of topics found that only other brokers know of than those that are
// asked as a rule.
func (c *Client) Compare(ctx context.Context, topics []string) error {
	return c.transport.Compare(ctx, topics)
}

// CompareAll is Compare with all brokers that answer soon.
func (c *Client) CompareAll(ctx context.Context, topic string) {
	c.transport.CompareAll(ctx, []string{topic})
}
