package kafkastore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/spillwayio/spillway/services/internal/kafkaclient"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

const (
	// produceTimeout is for one request, without the time for which a broker throttles. A request
	// that is sent again too early may be stored twice, which costs space only.
	produceTimeout = 30 * time.Second
	// brokerTimeout is the part of it for which the leader waits for its followers.
	brokerTimeout = 24 * time.Second
	askTimeout    = 15 * time.Second
)

// record is one record of a topic.
type record struct{ key, value []byte }

// partitionLog is one partition of a topic. Its methods try once.
type partitionLog interface {
	// produce stores records in one batch, all or none, on all replicas in sync. It returns the
	// offset of the first. After most errors it may be stored, and may still be later; errDefinite
	// means that it never will. ErrReplaced means that it would be in another topic.
	produce(ctx context.Context, records []record) (base int64, err error)
	// read calls yield with some of the records from an offset on and returns where the next call
	// goes on: the same offset when there are none. Slices are valid within yield only. errTrimmed
	// means that the log begins later.
	read(ctx context.Context, from int64, yield func(offset int64, r record) error) (next int64, err error)
	// bounds returns the first offset, and the one that the next record gets.
	bounds(ctx context.Context) (first, next int64, err error)
	// trim deletes the records before an offset.
	trim(ctx context.Context, before int64) error
	close()
}

// errDefinite is wrapped by errors of produce after which the records are not there and never will
// be.
var errDefinite = errors.New("the broker refuses it")

// kafkaLog is a partition of a real topic.
type kafkaLog struct {
	client    *kafkaclient.Client
	topic     string
	id        [16]byte // of the topic; zero when the brokers do not tell
	partition int
	maxBytes  int // of a fetch
	buffer    []byte
}

func (l *kafkaLog) close() { l.client.Close() }

func (l *kafkaLog) name() string { return fmt.Sprintf("%s/%d", l.topic, l.partition) }

func (l *kafkaLog) produce(ctx context.Context, records []record) (int64, error) {
	l.buffer = appendBatch(l.buffer[:0], records)
	request := kmsg.NewPtrProduceRequest()
	request.Acks, request.TimeoutMillis = -1, int32(brokerTimeout.Milliseconds())
	part := kmsg.NewProduceRequestTopicPartition()
	part.Partition, part.Records = int32(l.partition), l.buffer
	topic := kmsg.NewProduceRequestTopic()
	// From version 13 on, Kafka goes by the id: nothing gets into a topic that was created later.
	topic.Topic, topic.TopicID, topic.Partitions = l.topic, l.id, []kmsg.ProduceRequestTopicPartition{part}
	request.Topics = []kmsg.ProduceRequestTopic{topic}
	answer, err := l.client.Transport().AskLeader(ctx, l.topic, l.partition, request, produceTimeout)
	if cap(l.buffer) > 4<<20 {
		l.buffer = nil
	}
	if err != nil {
		return 0, fmt.Errorf("produce to %s: %w", l.name(), err)
	}
	for _, t := range answer.(*kmsg.ProduceResponse).Topics {
		for _, p := range t.Partitions {
			if p.Partition != int32(l.partition) {
				continue
			}
			if p.ErrorCode != 0 {
				return 0, l.refused(ctx, p.ErrorCode, p.ErrorMessage)
			}
			return p.BaseOffset, nil
		}
	}
	return 0, fmt.Errorf("produce to %s: the answer does not mention it", l.name())
}

// refused says what an error code of produce means.
func (l *kafkaLog) refused(ctx context.Context, code int16, message *string) error {
	err := kerr.ErrorForCode(code)
	l.client.Stale(l.topic)
	if message != nil && *message != "" {
		err = fmt.Errorf("%w: %s", err, *message)
	}
	err = fmt.Errorf("produce to %s: %w", l.name(), err)
	switch {
	case errors.Is(err, kerr.UnknownTopicID), errors.Is(err, kerr.InconsistentTopicID), errors.Is(err, kerr.UnknownTopicOrPartition):
		return errors.Join(l.same(ctx), err) // it may just not be known to the broker yet
	case errors.Is(err, kerr.MessageTooLarge), errors.Is(err, kerr.RecordListTooLarge), errors.Is(err, kerr.TopicAuthorizationFailed),
		errors.Is(err, kerr.InvalidTopicException), errors.Is(err, kerr.InvalidRecord), errors.Is(err, kerr.PolicyViolation),
		errors.Is(err, kerr.UnsupportedForMessageFormat), errors.Is(err, kerr.InvalidTimestamp):
		return fmt.Errorf("%w: %w", errDefinite, err)
	}
	return err
}

// same returns ErrReplaced when there is another topic under the name. That there is none, or that
// nobody answers, is no error.
func (l *kafkaLog) same(ctx context.Context) error {
	l.client.Stale(l.topic)
	all, err := l.client.Leaders(ctx, []string{l.topic})
	if t := all[l.topic]; err == nil && t.Err == nil && t.ID != l.id {
		return fmt.Errorf("%w: topic %s has the id %x instead of %x", ErrReplaced, l.topic, t.ID, l.id)
	}
	return nil
}

func (l *kafkaLog) read(ctx context.Context, from int64, yield func(int64, record) error) (int64, error) {
	got, err := l.client.Fetch(ctx, kafkaclient.Request{Topic: l.topic, Partition: l.partition, Offset: from,
		MinBytes: 1, MaxBytes: l.maxBytes, MaxWait: 500 * time.Millisecond})
	if errors.Is(err, kafka.OffsetOutOfRange) {
		first, next, e := l.bounds(ctx)
		switch {
		case e != nil:
			return from, e
		case from < first, from > next:
			return from, fmt.Errorf("%w: it has offsets from %d up to %d: %w", errTrimmed, first, next, err)
		case from == next:
			return from, nil
		}
	}
	if err != nil {
		return from, err
	}
	return got.Each(func(offset int64, r *recordbatch.Record) error { return yield(offset, record{r.Key, r.Value}) }, nil)
}

func (l *kafkaLog) bounds(ctx context.Context) (first, next int64, err error) {
	return l.client.Offsets(ctx, l.topic, l.partition)
}

func (l *kafkaLog) trim(ctx context.Context, before int64) error {
	request := kmsg.NewPtrDeleteRecordsRequest()
	request.TimeoutMillis = int32(askTimeout.Milliseconds()) / 2
	part := kmsg.NewDeleteRecordsRequestTopicPartition()
	part.Partition, part.Offset = int32(l.partition), before
	topic := kmsg.NewDeleteRecordsRequestTopic()
	topic.Topic, topic.Partitions = l.topic, []kmsg.DeleteRecordsRequestTopicPartition{part}
	request.Topics = append(request.Topics, topic)
	answer, err := l.client.Transport().AskLeader(ctx, l.topic, l.partition, request, askTimeout)
	if err == nil {
		err = errors.New("the answer does not mention it")
		for _, t := range answer.(*kmsg.DeleteRecordsResponse).Topics {
			for _, p := range t.Partitions {
				err = kerr.ErrorForCode(p.ErrorCode)
			}
		}
	}
	if errors.Is(err, kerr.OffsetOutOfRange) {
		return nil // it begins later, or a leader does not know yet that all replicas have it
	}
	if err != nil {
		l.client.Stale(l.topic)
		if errors.Is(err, kerr.TopicAuthorizationFailed) {
			err = fmt.Errorf("%w: %w (the store needs Delete on the topic)", errDefinite, err)
		}
		return fmt.Errorf("delete records of %s before %d: %w", l.name(), before, err)
	}
	return nil
}
