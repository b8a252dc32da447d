package ingest

import (
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/spillwayio/spillway/services/internal/config"
)

// The broker that leads the topic's partition until it is cut off, and the one that does then.
const formerLeader, newLeader = 0, 1

// cutOff is a cluster of two brokers. Once it is isolated, the former leader answers as the one
// that it was, with what it had then.
type cutOff struct {
	*cluster
	isolated atomic.Bool
}

func startCutOff(t *testing.T) *cutOff {
	t.Helper()
	fake, err := kfake.NewCluster(kfake.NumBrokers(2), kfake.SeedTopics(1, topic))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	if err := fake.MoveTopicPartition(topic, 0, formerLeader); err != nil {
		t.Fatal(err)
	}
	c := &cutOff{cluster: &cluster{t, fake, clientOf(t, fake, formerLeader)}}
	c.one(topic, 0, "before")
	const end = 1
	request := kmsg.NewPtrMetadataRequest()
	name := kmsg.NewMetadataRequestTopic()
	name.Topic = kmsg.StringPtr(topic)
	request.Topics = append(request.Topics, name)
	known, err := c.client.Broker(formerLeader).Request(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	c.instead(kmsg.Metadata, func(r kmsg.Request) kmsg.Response {
		answer := *known.(*kmsg.MetadataResponse)
		answer.SetVersion(r.GetVersion())
		return &answer
	})
	c.instead(kmsg.Fetch, func(r kmsg.Request) kmsg.Response {
		time.Sleep(10 * time.Millisecond)
		answer := r.ResponseKind().(*kmsg.FetchResponse)
		for _, asked := range r.(*kmsg.FetchRequest).Topics {
			topic := kmsg.NewFetchResponseTopic()
			topic.Topic, topic.TopicID = asked.Topic, asked.TopicID
			for _, p := range asked.Partitions {
				nothing := kmsg.NewFetchResponseTopicPartition()
				nothing.Partition, nothing.HighWatermark, nothing.LastStableOffset = p.Partition, end, end
				if p.FetchOffset > end {
					nothing.ErrorCode = 1 // out of range
				}
				topic.Partitions = append(topic.Partitions, nothing)
			}
			answer.Topics = append(answer.Topics, topic)
		}
		return answer
	})
	c.instead(kmsg.ListOffsets, func(r kmsg.Request) kmsg.Response {
		answer := r.ResponseKind().(*kmsg.ListOffsetsResponse)
		for _, asked := range r.(*kmsg.ListOffsetsRequest).Topics {
			topic := kmsg.NewListOffsetsResponseTopic()
			topic.Topic = asked.Topic
			for _, p := range asked.Partitions {
				place := kmsg.NewListOffsetsResponseTopicPartition()
				place.Partition = p.Partition
				if p.Timestamp == -1 {
					place.Offset = end
				} else {
					place.Offset = 0
				}
				topic.Partitions = append(topic.Partitions, place)
			}
			answer.Topics = append(answer.Topics, topic)
		}
		return answer
	})
	return c
}

// instead answers requests to the former leader once that is isolated.
func (c *cutOff) instead(key kmsg.Key, answer func(kmsg.Request) kmsg.Response) {
	c.fake.ControlKey(key.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		if !c.isolated.Load() || c.fake.CurrentNode() != formerLeader {
			return nil, nil, false
		}
		return answer(r), nil, true
	})
}

// isolate cuts the former leader off, and has what is produced from now on go to the new one.
func (c *cutOff) isolate() {
	c.t.Helper()
	c.isolated.Store(true)
	time.Sleep(idleWait + 100*time.Millisecond) // a fetch that waits at the former leader is answered
	if err := c.fake.MoveTopicPartition(topic, 0, newLeader); err != nil {
		c.t.Fatal(err)
	}
	c.client = clientOf(c.t, c.fake, newLeader)
}

// clientOf is a client that hears of leaders from one broker.
func clientOf(t *testing.T, fake *kfake.Cluster, broker int) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(fake.ListenAddrs()[broker]), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MetadataMinAge(10*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// ingestFrom runs an ingest that knows of one broker.
func (c *cutOff) ingestFrom(b *fakeBuffer, broker int) *instance {
	c.t.Helper()
	source := c.source()
	source.Brokers = c.fake.ListenAddrs()[broker : broker+1]
	s, err := New(config.Ingest{Memory: 8 * config.MiB, Sources: map[string]*config.Source{"s": source}}, []string{b.addr},
		Deps{Log: slog.New(slog.NewTextHandler(c.t.Output(), nil)), Instance: "test"})
	if err != nil {
		c.t.Fatal(err)
	}
	s.sources[0].leaderCheck = 100 * time.Millisecond
	return runInstance(c.t, s)
}

// TestLeaderIsCutOff: a broker that is cut off from the others goes on answering as the leader
// that it was, and tells everybody that it leads. What is produced to the new leader is read from
// there.
func TestLeaderIsCutOff(t *testing.T) {
	kafka, buffer := startCutOff(t), startBuffer(t)
	kafka.ingestFrom(buffer, formerLeader)
	buffer.has(topic, 0, "before")
	kafka.isolate()
	kafka.one(topic, 0, "after")
	buffer.has(topic, 0, "after")
}

// TestCutOffLeaderHasLostNothing: what such a broker does not have is not taken for lost, and what
// was read is not read again.
func TestCutOffLeaderHasLostNothing(t *testing.T) {
	kafka, buffer := startCutOff(t), startBuffer(t)
	kafka.isolate()
	kafka.one(topic, 0, "more")
	kafka.one(topic, 0, "and more")
	first := kafka.ingestFrom(buffer, newLeader)
	buffer.has(topic, 0, "and more")
	first.stop()
	kafka.one(topic, 0, "after")
	kafka.ingestFrom(buffer, formerLeader)
	buffer.has(topic, 0, "after")
	checkOnce(t, buffer, 4)
	buffer.set(func() {
		if life := buffer.lives[topicPartition{topic, 0}]; life != 0 {
			t.Errorf("the topic counts as created again: it is incarnation %d", life)
		}
	})
}
