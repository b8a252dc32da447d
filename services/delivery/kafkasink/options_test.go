package kafkasink

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// waitTrouble waits until the sink says what it is up against.
func (s *served) waitTrouble(t *testing.T, part string) {
	t.Helper()
	until(t, "trouble: "+part, func() bool {
		err := s.Trouble()
		return err != nil && strings.Contains(err.Error(), part)
	})
}

func TestPartitionByHeader(t *testing.T) {
	cluster := newCluster(t, kfake.SeedTopics(4, "t"))
	s := serve(t, cluster, config.Kafka{Partitioner: "header", PartitionHeader: "to"})
	to := func(v string) recordbatch.Record {
		return recordbatch.Record{Key: []byte("the same"), Value: []byte(v), Headers: []recordbatch.Header{{Name: []byte("to"), Value: []byte(v)}}}
	}
	s.leases <- lease(1, partition("t", 5), 0, to("21"), to("foobar"), to("abc"), recordbatch.Record{Key: []byte("abc"), Value: []byte("none")})
	s.wait(t, 1)
	got := consume(t, cluster, 4, "t")
	for p, want := range []string{"21", "none", "foobar", "abc"} { // see TestMurmur2
		if texts := strings.Join(textsOf(got, "t", int32(p)), " "); texts != want {
			t.Errorf("partition %d holds %q, want %q", p, texts, want)
		}
	}
}

func TestProvenance(t *testing.T) {
	cluster := newCluster(t, kfake.SeedTopics(1, "t"))
	s := serve(t, cluster, config.Kafka{Topic: "t", Provenance: true})
	with := recordbatch.Record{Value: []byte("b"), Headers: []recordbatch.Header{{Name: []byte("own"), Value: []byte("1")}}}
	s.leases <- lease(1, partition("orders", 7), 1<<40, recordbatch.Record{Value: []byte("a")}, with)
	s.wait(t, 1)
	for i, r := range consume(t, cluster, 2, "t") {
		var all []string
		for _, h := range r.Headers {
			all = append(all, h.Key+"="+string(h.Value))
		}
		want := []string{"spillway.source.cluster=source", "spillway.source.topic=orders", "spillway.source.partition=7", fmt.Sprintf("spillway.source.offset=%d", 1<<40+i)}
		if i == 1 {
			want = append([]string{"own=1"}, want...)
		}
		if !slices.Equal(all, want) {
			t.Errorf("record %d has headers %q, want %q", i, all, want)
		}
	}
}

func TestMissingTopicIsCreated(t *testing.T) {
	cluster := newCluster(t)
	s := serve(t, cluster, config.Kafka{Topic: "copy-%{topic}", MissingTopic: "create", NewTopic: config.NewTopic{Partitions: 5, Replication: 1}})
	for p := range int32(8) {
		s.leases <- lease(uint64(p+1), partition("new", p), 0, values("a")...)
	}
	s.wait(t, 8)
	if got := textsOf(consume(t, cluster, 8, "copy-new"), "copy-new", 4); len(got) != 1 {
		t.Errorf("partition 4 of 5 holds %q", got)
	}
}

func TestMissingTopicIsWaitedFor(t *testing.T) {
	cluster := newCluster(t, kfake.AllowAutoTopicCreation())
	s := serve(t, cluster, config.Kafka{MissingTopic: "wait"})
	s.leases <- lease(1, partition("new", 0), 0, values("a")...)
	s.waitTrouble(t, "topic new does not exist, or this delivery may not see it")
	if cluster.TopicInfo("new") != nil {
		t.Error("the topic was created")
	}
	if err := cluster.CreateTopic("new", 1, nil); err != nil {
		t.Fatal(err)
	}
	s.wait(t, 1)
}

// Only what is for the topic that may not be written to is held up, or dead-lettered.
func TestDeniedTopic(t *testing.T) {
	to := func(topic, v string) recordbatch.Record {
		return recordbatch.Record{Value: []byte(v), Headers: []recordbatch.Header{{Name: []byte("to"), Value: []byte(topic)}}}
	}
	deny := produceFault(kfake.Fault{Count: -1, Topic: "closed", Err: kerr.TopicAuthorizationFailed})
	records := func() []recordbatch.Record {
		return []recordbatch.Record{to("open", "a"), to("closed", "b"), to("open", "c"), to("closed", "d")}
	}
	t.Run("dead_letter", func(t *testing.T) {
		cluster := newCluster(t, kfake.SeedTopics(1, "open", "closed"))
		cluster.Fault(deny)
		s := serve(t, cluster, config.Kafka{Topic: "%{to}", OnDenied: "dead_letter"})
		s.leases <- lease(1, partition("t", 0), 10, records()...)
		dead := s.wait(t, 1)[0].DeadLetters
		if len(dead) != 2 || dead[0].Offset != 11 || dead[1].Offset != 13 || !strings.Contains(dead[0].Reason, "uthoriz") {
			t.Errorf("dead letters: %v", dead)
		}
		if got := textsOf(consume(t, cluster, 2, "open"), "open", 0); !slices.Equal(got, []string{"a", "c"}) {
			t.Errorf("the other topic has %q", got)
		}
	})
	t.Run("wait", func(t *testing.T) {
		cluster := newCluster(t, kfake.SeedTopics(1, "open", "closed"))
		lift := cluster.Fault(deny)
		s := serve(t, cluster, config.Kafka{Topic: "%{to}"})
		s.leases <- lease(1, partition("t", 0), 10, records()...)
		s.waitTrouble(t, "produce to closed/0")
		if got := textsOf(consume(t, cluster, 2, "open"), "open", 0); !slices.Equal(got, []string{"a", "c"}) {
			t.Errorf("the other topic has %q", got)
		}
		s.leases <- lease(2, partition("t", 1), 0, to("open", "e"))
		s.wait(t, 1)
		lift.Remove()
		if acked := s.wait(t, 2); len(acked[1].DeadLetters) != 0 {
			t.Errorf("dead letters: %v", acked[1].DeadLetters)
		}
		if got := textsOf(consume(t, cluster, 2, "closed"), "closed", 0); !slices.Equal(got, []string{"b", "d"}) {
			t.Errorf("the topic has %q", got)
		}
	})
}

func TestRejectedRecordsWaitWhenTold(t *testing.T) {
	cluster := newCluster(t, kfake.SeedTopics(1, "t"))
	lift := cluster.Fault(produceFault(kfake.Fault{Count: -1, Err: kerr.MessageTooLarge, When: func(r kmsg.Request) bool {
		return len(r.(*kmsg.ProduceRequest).Topics[0].Partitions[0].Records) > 300
	}}))
	s := serve(t, cluster, config.Kafka{OnRejected: "wait"})
	s.leases <- lease(1, partition("t", 0), 0, values("a", strings.Repeat("large ", 100), "c")...)
	s.waitTrouble(t, "on_rejected: wait")
	lift.Remove()
	if acked := s.wait(t, 1); len(acked[0].DeadLetters) != 0 {
		t.Errorf("dead letters: %v", acked[0].DeadLetters)
	}
	if got := textsOf(consume(t, cluster, 3, "t"), "t", 0); len(got) != 3 || got[0] != "a" || got[2] != "c" {
		t.Errorf("the topic has %.50q", got)
	}
}

func TestLoopIsRefused(t *testing.T) {
	cluster := newCluster(t, kfake.ClusterID("same"), kfake.SeedTopics(1, "t", "copy-t"))
	from := func(n int32) *spillwayv1.SourcePartition {
		return &spillwayv1.SourcePartition{Cluster: "same", Topic: "t", Partition: n}
	}
	s := serve(t, cluster, config.Kafka{})
	s.leases <- lease(1, from(0), 0, values("a")...)
	s.waitTrouble(t, "topic t is the one that its records were read from")
	if n := endOffset(cluster, "t", 0); n != 0 {
		t.Errorf("%d records went round", n)
	}
	allowed := serve(t, cluster, config.Kafka{AllowLoop: true})
	allowed.leases <- lease(1, from(0), 0, values("a")...)
	allowed.wait(t, 1)
	renamed := serve(t, cluster, config.Kafka{Topic: "copy-%{topic}"})
	renamed.leases <- lease(1, from(0), 0, values("a")...)
	renamed.wait(t, 1)
}

// TestBrokersReasonIsTold has what the broker says of a topic that it does not create in the
// trouble, and in dead letters.
func TestBrokersReasonIsTold(t *testing.T) {
	const words = "topics need an owner: ask data-platform@example.com"
	for _, code := range []*kerr.Error{kerr.PolicyViolation, kerr.TopicAuthorizationFailed, kerr.InvalidReplicationFactor} {
		cluster := newCluster(t)
		cluster.ControlKey(int16(kmsg.CreateTopics), func(r kmsg.Request) (kmsg.Response, error, bool) {
			cluster.KeepControl()
			answer := r.ResponseKind().(*kmsg.CreateTopicsResponse)
			topic := kmsg.NewCreateTopicsResponseTopic()
			topic.Topic, topic.ErrorCode, topic.ErrorMessage = "new", code.Code, kmsg.StringPtr(words)
			answer.Topics = append(answer.Topics, topic)
			return answer, nil, true
		})
		s := serve(t, cluster, config.Kafka{MissingTopic: "create"})
		s.leases <- lease(1, partition("new", 0), 0, values("a")...)
		s.waitTrouble(t, words)
		if code == kerr.TopicAuthorizationFailed {
			dead := serve(t, cluster, config.Kafka{MissingTopic: "create", OnDenied: "dead_letter"})
			dead.leases <- lease(1, partition("new", 0), 0, values("a")...)
			if d := dead.wait(t, 1)[0].DeadLetters; len(d) != 1 || !strings.Contains(d[0].Reason, words) {
				t.Errorf("dead letters %v", d)
			}
		}
	}
}

// TestReasonOfARecordIsTold has what the broker says of a record that it refuses.
func TestReasonOfARecordIsTold(t *testing.T) {
	const words = "the value is no JSON"
	cluster := newCluster(t, kfake.SeedTopics(1, "t"))
	cluster.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		request := r.(*kmsg.ProduceRequest)
		answer := r.ResponseKind().(*kmsg.ProduceResponse)
		topic := kmsg.NewProduceResponseTopic()
		topic.Topic = request.Topics[0].Topic
		p := kmsg.NewProduceResponseTopicPartition()
		p.ErrorCode = kerr.InvalidRecord.Code
		record := kmsg.NewProduceResponseTopicPartitionErrorRecord()
		record.ErrorMessage = kmsg.StringPtr(words)
		p.ErrorRecords = append(p.ErrorRecords, record)
		topic.Partitions = append(topic.Partitions, p)
		answer.Topics = append(answer.Topics, topic)
		return answer, nil, true
	})
	s := serve(t, cluster, config.Kafka{})
	s.leases <- lease(1, partition("t", 0), 0, values("a")...)
	if d := s.wait(t, 1)[0].DeadLetters; len(d) != 1 || !strings.Contains(d[0].Reason, words) {
		t.Errorf("dead letters %v", d)
	}
}

// TestDeadLettersAreRuns has the records of a denied topic dead-lettered as ranges.
func TestDeadLettersAreRuns(t *testing.T) {
	cluster := newCluster(t, kfake.SeedTopics(1, "closed", "open"))
	cluster.Fault(produceFault(kfake.Fault{Count: -1, Topic: "closed", Err: kerr.TopicAuthorizationFailed}))
	for _, exactlyOnce := range []bool{false, true} {
		s := serve(t, cluster, config.Kafka{Topic: "%{to}", OnDenied: "dead_letter", ExactlyOnce: exactlyOnce})
		var records []recordbatch.Record
		for i := range 20_000 {
			to := "closed"
			if i == 7000 {
				to = "open"
			}
			records = append(records, recordbatch.Record{Value: []byte("v"), Headers: []recordbatch.Header{{Name: []byte("to"), Value: []byte(to)}}})
		}
		s.leases <- lease(1, partition("t", 0), 10, records...)
		dead := s.wait(t, 1)[0].DeadLetters
		if len(dead) != 2 || dead[0].Offset != 10 || dead[0].Next != 7010 || dead[1].Offset != 7011 || dead[1].Next != 20_010 {
			t.Errorf("exactly_once %v: %d dead letters: %.300v", exactlyOnce, len(dead), dead)
		}
	}
	if n := len(consume(t, cluster, 2, "open")); n != 2 {
		t.Errorf("%d records arrived, want 2", n)
	}
}
