package kafkasink

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/spillwayio/spillway/services/internal/config"
)

// TestLeaderIsCutOff: a broker that is cut off from the others says that it leads a partition, and
// cannot replicate what it is sent. The records go to the new leader, of which the others know.
func TestLeaderIsCutOff(t *testing.T) {
	const former, latter = 0, 1
	for _, code := range []int16{7, 19} { // timed out, not enough replicas
		cluster := newCluster(t, kfake.NumBrokers(2), kfake.SeedTopics(1, "t"))
		if err := cluster.MoveTopicPartition("t", 0, former); err != nil {
			t.Fatal(err)
		}
		client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		request := kmsg.NewPtrMetadataRequest()
		name := kmsg.NewMetadataRequestTopic()
		name.Topic = kmsg.StringPtr("t")
		request.Topics = append(request.Topics, name)
		known, err := client.Broker(former).Request(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		cluster.ControlKey(kmsg.Metadata.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
			cluster.KeepControl()
			answer := *known.(*kmsg.MetadataResponse)
			answer.SetVersion(r.GetVersion())
			return &answer, nil, cluster.CurrentNode() == former
		})
		cluster.ControlKey(kmsg.Produce.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
			cluster.KeepControl()
			answer := r.ResponseKind().(*kmsg.ProduceResponse)
			for _, asked := range r.(*kmsg.ProduceRequest).Topics {
				topic := kmsg.NewProduceResponseTopic()
				topic.Topic, topic.TopicID = asked.Topic, asked.TopicID
				for _, p := range asked.Partitions {
					failed := kmsg.NewProduceResponseTopicPartition()
					failed.Partition, failed.ErrorCode = p.Partition, code
					topic.Partitions = append(topic.Partitions, failed)
				}
				answer.Topics = append(answer.Topics, topic)
			}
			return answer, nil, cluster.CurrentNode() == former
		})
		if err := cluster.MoveTopicPartition("t", 0, latter); err != nil {
			t.Fatal(err)
		}
		s := serve(t, cluster, config.Kafka{Brokers: cluster.ListenAddrs()[:1]})
		s.leases <- lease(1, partition("t", 0), 0, values("a", "b")...)
		s.wait(t, 1)
		if n := endOffset(cluster, "t", 0); n != 2 {
			t.Errorf("the new leader has %d records, want 2", n)
		}
		if err := s.drain(t); err != nil {
			t.Error(err)
		}
	}
}
