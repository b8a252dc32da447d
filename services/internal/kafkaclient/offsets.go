package kafkaclient

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	fetchapi "github.com/segmentio/kafka-go/protocol/fetch"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Places in a partition that OffsetWant.At names beside times.
const (
	First int64 = -2 // the first offset that the partition has
	Next  int64 = -1 // the offset that its next record gets
)

// OffsetWant asks where a place in a partition is.
type OffsetWant struct {
	Topic     string
	Partition int
	// At is First, Next, or a time in Unix milliseconds, for the first record that is not older.
	At int64
}

// ListOffsets sends one request to the broker that leads the partitions, each of which may be
// wanted once. It calls got on its own goroutine with the index of a want, and its offset: -1
// when all records are older than the time. Errors of the broker are kafka.Error. A want that got
// is not called for has no part in the answer. ListOffsets returns an error when there was no
// answer.
func (c *Client) ListOffsets(ctx context.Context, broker int32, wants []OffsetWant, got func(i int, offset int64, err error)) error {
	request := kmsg.NewPtrListOffsetsRequest()
	index := make(map[topicNumber]int, len(wants))
	topics := make(map[string]int)
	for i, w := range wants {
		index[topicNumber{w.Topic, w.Partition}] = i
		at, ok := topics[w.Topic]
		if !ok {
			at = len(request.Topics)
			topics[w.Topic] = at
			topic := kmsg.NewListOffsetsRequestTopic()
			topic.Topic = w.Topic
			request.Topics = append(request.Topics, topic)
		}
		p := kmsg.NewListOffsetsRequestTopicPartition()
		p.Partition, p.Timestamp = int32(w.Partition), w.At
		request.Topics[at].Partitions = append(request.Topics[at].Partitions, p)
	}
	const last = 7 // newer ones only add places that nobody asks for here
	answer, err := c.transport.Do(ctx, &toBroker{encoded{Request: capped{request, last}}, broker}, answerTimeout)
	if err != nil {
		return err
	}
	for _, t := range answer.(*encoded).Response.(*kmsg.ListOffsetsResponse).Topics {
		for _, p := range t.Partitions {
			key := topicNumber{t.Topic, int(p.Partition)}
			if i, ok := index[key]; ok {
				delete(index, key)
				got(i, p.Offset, described(p.ErrorCode, ""))
			}
		}
	}
	return nil
}

func brokerOf(cluster protocol.Cluster, id int32) (protocol.Broker, error) {
	if b, ok := cluster.Brokers[id]; ok {
		return b, nil
	}
	return protocol.Broker{}, fetchapi.NewError(kafka.BrokerNotAvailable)
}

// Offsets returns the first offset that the partition has and the one its next record gets.
func (c *Client) Offsets(ctx context.Context, topic string, partition int) (first, next int64, err error) {
	if first, err = c.offset(ctx, topic, partition, First); err == nil {
		next, err = c.offset(ctx, topic, partition, Next)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("list offsets of %s/%d: %w", topic, partition, err)
	}
	return first, next, nil
}

// OffsetAt returns the offset of the first record that is not older than a time, or the one that
// the next record gets when all are older.
func (c *Client) OffsetAt(ctx context.Context, topic string, partition int, at time.Time) (int64, error) {
	offset, err := c.offset(ctx, topic, partition, max(at.UnixMilli(), 0))
	if err == nil && offset < 0 {
		offset, err = c.offset(ctx, topic, partition, Next)
	}
	if err != nil {
		return 0, fmt.Errorf("list offsets of %s/%d at %s: %w", topic, partition, at.Format(time.RFC3339), err)
	}
	return offset, nil
}

func (c *Client) offset(ctx context.Context, topic string, partition int, at int64) (offset int64, err error) {
	leader, err := c.Leader(ctx, topic, partition)
	if err == nil {
		err = errors.New("the broker answers about nothing")
		broken := c.ListOffsets(ctx, leader, []OffsetWant{{topic, partition, at}}, func(_ int, o int64, e error) { offset, err = o, e })
		err = cmp.Or(broken, err)
	}
	if err != nil && IsStale(err) {
		c.Stale(topic)
	}
	return offset, err
}
