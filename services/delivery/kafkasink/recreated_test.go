package kafkasink

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// deleteTopic deletes a topic as an operator does.
func deleteTopic(t *testing.T, cluster *kfake.Cluster, name string) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	r := kmsg.NewPtrDeleteTopicsRequest()
	topic := kmsg.NewDeleteTopicsRequestTopic()
	topic.Topic = kmsg.StringPtr(name)
	r.Topics, r.TopicNames, r.TimeoutMillis = append(r.Topics, topic), []string{name}, 10_000
	response, err := r.RequestWith(t.Context(), client)
	if err == nil {
		err = kerr.ErrorForCode(response.Topics[0].ErrorCode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestTargetIsCreatedAgainWithFewerPartitions has records that were spread over partitions that
// are gone spread anew.
func TestTargetIsCreatedAgainWithFewerPartitions(t *testing.T) {
	for _, exactlyOnce := range []bool{false, true} {
		t.Run(fmt.Sprintf("exactly_once %v", exactlyOnce), func(t *testing.T) {
			cluster := newCluster(t, kfake.NumBrokers(2), kfake.SeedTopics(4, "out"))
			refusal := cluster.Fault(produceFault(kfake.Fault{Count: -1, Err: kerr.NotEnoughReplicas}))
			s := serve(t, cluster, config.Kafka{Topic: "out", Partitioner: "key", MissingTopic: "wait", ExactlyOnce: exactlyOnce})
			const records = 40
			for p := range int32(4) {
				var batch []recordbatch.Record
				for i := range records {
					key := fmt.Sprint(p, "-", i%10)
					batch = append(batch, recordbatch.Record{Key: []byte(key), Value: fmt.Appendf(nil, "%s/%03d", key, i)})
				}
				s.leases <- lease(uint64(p+1), partition("src", p), 0, batch...)
			}
			if err := refusal.Wait(t.Context(), 8); err != nil {
				t.Fatal(err)
			}
			deleteTopic(t, cluster, "out")
			refusal.Remove()
			s.waitTrouble(t, "out does not exist")
			if err := cluster.CreateTopic("out", 2, nil); err != nil {
				t.Fatal(err)
			}
			s.wait(t, 4)
			last := make(map[string]string)
			for _, r := range consume(t, cluster, 4*records, "out") {
				key := string(r.Key)
				if last[key] >= string(r.Value) {
					t.Errorf("%s comes after %s", r.Value, last[key])
				}
				last[key] = string(r.Value)
			}
			if len(last) != 40 {
				t.Errorf("%d keys arrived, want 40", len(last))
			}
		})
	}
}

// metadataWithout answers metadata requests without what leaveOut takes away.
func metadataWithout(cluster *kfake.Cluster, asked chan<- struct{}, leaveOut func(*kmsg.MetadataResponse)) {
	_, port, _ := strings.Cut(cluster.ListenAddrs()[0], ":")
	var number int32
	_, _ = fmt.Sscan(port, &number)
	cluster.ControlKey(int16(kmsg.Metadata), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		select {
		case asked <- struct{}{}:
		default:
		}
		answer := r.ResponseKind().(*kmsg.MetadataResponse)
		answer.ClusterID = kmsg.StringPtr("c")
		answer.Brokers = []kmsg.MetadataResponseBroker{{NodeID: 0, Host: "127.0.0.1", Port: number}}
		topic := kmsg.NewMetadataResponseTopic()
		topic.Topic = kmsg.StringPtr("t")
		for p := range int32(4) {
			partition := kmsg.NewMetadataResponseTopicPartition()
			partition.Partition = p
			topic.Partitions = append(topic.Partitions, partition)
		}
		answer.Topics = append(answer.Topics, topic)
		leaveOut(answer)
		return answer, nil, true
	})
}

// TestMetadataThatLeavesOut: an answer without the topic, or without a partition, is trouble that
// is told, and is asked again with pauses.
func TestMetadataThatLeavesOut(t *testing.T) {
	for name, leaveOut := range map[string]func(*kmsg.MetadataResponse){
		"the topic":      func(r *kmsg.MetadataResponse) { r.Topics = nil },
		"all partitions": func(r *kmsg.MetadataResponse) { r.Topics[0].Partitions = nil },
		"the partition": func(r *kmsg.MetadataResponse) {
			r.Topics[0].Partitions = append(r.Topics[0].Partitions[:1:1], r.Topics[0].Partitions[2:]...)
		},
		"the leader": func(r *kmsg.MetadataResponse) { r.Topics[0].Partitions[1].Leader = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			cluster := newCluster(t, kfake.NumBrokers(1), kfake.SeedTopics(4, "t"))
			asked := make(chan struct{}, 1_000_000)
			metadataWithout(cluster, asked, leaveOut)
			s := serve(t, cluster, config.Kafka{MissingTopic: "wait"})
			s.timing.retryMax = 20 * time.Millisecond
			s.timing.giveUp = 50 * time.Millisecond
			s.leases <- lease(1, partition("t", 1), 0, values("a")...)
			until(t, "trouble", func() bool { return s.Trouble() != nil })
			turns := len(asked)
			until(t, "five more", func() bool { return len(asked) >= turns+5 })
			// While it drains, what only fails is given up soon.
			if err := s.drain(t); err == nil || !strings.Contains(err.Error(), "given up while draining") {
				t.Errorf("Serve returned %v", err)
			}
			s.trouble.mu.Lock()
			failures := s.trouble.failures
			s.trouble.mu.Unlock()
			if n := len(asked); n > 3*failures+10 {
				t.Errorf("%d requests for %d failures that were paused for", n, failures)
			}
			if n := endOffset(cluster, "t", 1); n != 0 {
				t.Errorf("%d records are there", n)
			}
		})
	}
}
