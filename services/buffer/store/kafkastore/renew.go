package kafkastore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

// ErrWhole means that nothing of a queue's topics is lost.
var ErrWhole = errors.New("the topics of the queue are whole")

// Lost says what of a queue's topics is lost, such that no buffer can open the queue any more. It
// fails with ErrWhole when nothing is, and refuses topics of others, and those of which it cannot
// find out, by name.
func Lost(ctx context.Context, t Topics, log *slog.Logger) (lost []string, err error) {
	c := t.client()
	defer c.Close()
	lost, err = t.lost(ctx, c, log)
	if err == nil && len(lost) == 0 {
		err = ErrWhole
	}
	return lost, err
}

func (t *Topics) lost(ctx context.Context, c *kafkaclient.Client, log *slog.Logger) (lost []string, err error) {
	topics, err := t.there(ctx, c)
	if err != nil {
		return nil, err
	}
	ids := make(map[string][16]byte)
	for _, name := range []string{t.journal(), t.payload()} {
		topic, ok := topics[name]
		if !ok {
			lost = append(lost, fmt.Sprintf("topic %s does not exist", name))
			continue
		}
		ids[name] = topic.ID
	}
	journals := min(len(topics[t.journal()].Leaders), t.Shards)
	for shard := range journals {
		journal, _ := t.logs(c, ids, shard)
		id, err := firstIdentity(ctx, journal, log)
		if err == nil && id != nil {
			err = id.check(t.identity(ids, shard))
		}
		switch {
		case errors.Is(err, errForeign), errors.Is(err, ErrVersion):
			return nil, fmt.Errorf("%s: %w", journal.name(), err)
		case errors.Is(err, ErrIdentity), errors.Is(err, ErrReplaced), errors.Is(err, ErrGap):
			lost = append(lost, fmt.Sprintf("%s: %v", journal.name(), err))
		case err != nil:
			return nil, fmt.Errorf("%s: %w", journal.name(), err)
		case id == nil:
			lost = append(lost, fmt.Sprintf("%s is empty", journal.name()))
		}
	}
	if len(lost) > 0 {
		return lost, nil
	}
	for shard := range t.Shards {
		_, err := Look(ctx, Config{Topics: *t, Shard: shard, Log: log}, queue.StoreOptions{Recover: func(queue.Recovered) error { return nil }})
		switch {
		case errors.Is(err, ErrGap), errors.Is(err, ErrShifted), errors.Is(err, ErrReplaced), errors.Is(err, errEntry):
			lost = append(lost, err.Error())
		case err != nil:
			return nil, err
		}
	}
	return lost, nil
}

// there are those of the topics that exist.
func (t *Topics) there(ctx context.Context, c *kafkaclient.Client) (map[string]kafkaclient.TopicMetadata, error) {
	names := []string{t.journal(), t.payload()}
	c.Stale(names...)
	topics, err := c.Leaders(ctx, names)
	if err != nil {
		return nil, fmt.Errorf("describe the topics: %w", err)
	}
	for name, topic := range topics {
		switch {
		case topic.Err == nil:
		case errors.Is(topic.Err, kafka.UnknownTopicOrPartition):
			delete(topics, name)
		default:
			return nil, fmt.Errorf("describe topic %s: %w", name, topic.Err)
		}
	}
	return topics, nil
}

// Renew deletes the topics of a queue that is lost (Lost), makes new ones, and writes into them
// what was given up, for people. The queue has a new life then: what was kept elsewhere of the one
// before means nothing.
func Renew(ctx context.Context, t Topics, givenUp []string, log *slog.Logger) (life string, err error) {
	c := t.client()
	defer c.Close()
	topics, err := t.there(ctx, c)
	if err != nil {
		return "", err
	}
	for name := range topics {
		if err := deleteTopic(ctx, c, name); err != nil {
			return "", err
		}
	}
	_, err = keepTrying(ctx, log, "wait until the old topics are deleted", func() (int64, error) {
		topics, err := t.there(ctx, c)
		if err == nil && len(topics) > 0 {
			err = errors.New("they are still there")
		}
		return 0, err
	})
	if err != nil {
		return "", err
	}
	if life, _, err = Init(ctx, t, log); err != nil {
		return "", err
	}
	return life, t.note(ctx, givenUp, log)
}

func deleteTopic(ctx context.Context, c *kafkaclient.Client, name string) error {
	request := kmsg.NewPtrDeleteTopicsRequest()
	request.TimeoutMillis = int32(askTimeout.Milliseconds())
	request.TopicNames = []string{name}
	topic := kmsg.NewDeleteTopicsRequestTopic()
	topic.Topic = &name
	request.Topics = []kmsg.DeleteTopicsRequestTopic{topic}
	answer, err := c.Transport().Controller(ctx, request, 2*askTimeout)
	if err == nil {
		for _, r := range answer.(*kmsg.DeleteTopicsResponse).Topics {
			if err = kerr.ErrorForCode(r.ErrorCode); errors.Is(err, kerr.UnknownTopicOrPartition) {
				err = nil
			}
		}
	}
	if err != nil {
		return fmt.Errorf("delete topic %s: %w", name, err)
	}
	return nil
}

// noted is an identity with what was given up for it, which stores pass over.
type noted struct {
	Identity
	GivenUp []string  `json:"given_up"`
	At      time.Time `json:"at"`
}

// note writes what was given up into the journal of the first shard, where it stays until that is
// trimmed.
func (t *Topics) note(ctx context.Context, lines []string, log *slog.Logger) error {
	const atOnce = 1000 // lines in a record
	in := NewInspector(*t, log)
	defer in.Close()
	if err := in.Settings(ctx); err != nil {
		return err
	}
	if _, err := in.Life(ctx); err != nil {
		return err
	}
	journal, _ := t.logs(in.client, in.ids, 0)
	for ; len(lines) > 0; lines = lines[min(atOnce, len(lines)):] {
		body, err := json.Marshal(noted{*in.found[0], lines[:min(atOnce, len(lines))], time.Now()})
		if err != nil {
			return err
		}
		f := frame{kind: identityFrame, flags: firstFlag | lastFlag, epoch: -1, value: appendEntry(nil, identityEntry, nil, body)}
		_, err = keepTrying(ctx, log, "write what was given up", func() (int64, error) { return journal.produce(ctx, []record{{f.key(), f.value}}) })
		if err != nil {
			return err
		}
	}
	return nil
}
