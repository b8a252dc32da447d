package kafkaclient

import (
	"context"
	"math"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Rights is what a client may do with a topic.
type Rights struct {
	// Known is false when the brokers do not tell: those before Kafka 2.3.
	Known                        bool
	Read, Write, DescribeConfigs bool
	Err                          error // why nothing is known of the topic, such as that it may not be seen
}

// Rights asks what this client may do with topics. It creates none.
func (c *Client) Rights(ctx context.Context, topics []string, patience time.Duration) (map[string]Rights, error) {
	request := metadataRequest(topics, false)
	request.IncludeTopicAuthorizedOperations = true
	answer, err := c.transport.Ask(ctx, request, patience)
	if err != nil {
		return nil, err
	}
	all := make(map[string]Rights)
	for _, t := range answer.(*kmsg.MetadataResponse).Topics {
		if t.Topic == nil {
			continue
		}
		has := func(op kmsg.ACLOperation) bool { return t.AuthorizedOperations&(1<<op) != 0 }
		all[*t.Topic] = Rights{Known: t.AuthorizedOperations != math.MinInt32, Err: described(t.ErrorCode, ""),
			Read: has(kmsg.ACLOperationRead), Write: has(kmsg.ACLOperationWrite), DescribeConfigs: has(kmsg.ACLOperationDescribeConfigs)}
	}
	return all, nil
}
