package kafkasink

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

func newLetters(t *testing.T, cluster *kfake.Cluster) *Letters {
	t.Helper()
	l, err := NewLetters(&config.DeadLetterTopic{Brokers: cluster.ListenAddrs(), Topic: "dead"}, "logs/hdfs", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// TestLetters: a missing topic is created, and a record is there as it was, with the headers of
// Kafka Connect behind its own.
func TestLetters(t *testing.T) {
	cluster := newCluster(t)
	l := newLetters(t, cluster)
	refused, err := l.Write(t.Context(), []delivery.Letter{
		{Source: partition("orders", 7), Offset: 1 << 40, Reason: "no place for it", Record: recordbatch.Record{Key: []byte("k"), Value: nil, TimestampMs: 1_700_000_000_123,
			Headers: []recordbatch.Header{{Name: []byte("own"), Value: []byte("1")}}}},
		{Source: partition("orders", 7), Offset: 5, Reason: "no time", Transform: true, Record: recordbatch.Record{Value: []byte("v"), TimestampMs: 1}},
	})
	if err != nil || refused != 0 {
		t.Fatal(refused, err)
	}
	all := make(map[string]string)
	for _, r := range consume(t, cluster, 2, "dead") {
		var headers []string
		for _, h := range r.Headers {
			headers = append(headers, h.Key+"="+string(h.Value))
		}
		all[string(r.Value)] = strings.Join(headers, " ")
		if r.Value == nil && (string(r.Key) != "k" || r.Timestamp.UnixMilli() != 1_700_000_000_123) || r.Value != nil && r.Key != nil {
			t.Errorf("key %q at %v", r.Key, r.Timestamp)
		}
	}
	const position = "__connect.errors.topic=orders __connect.errors.partition=7 __connect.errors.offset="
	for value, want := range map[string]string{
		"": "own=1 " + position + "1099511627776 __connect.errors.connector.name=logs/hdfs __connect.errors.task.id=0 __connect.errors.stage=TASK_PUT " +
			"__connect.errors.exception.class.name=spillway.DeadLetter __connect.errors.exception.message=no place for it spillway.errors.cluster=source",
		"v": position + "5 __connect.errors.connector.name=logs/hdfs __connect.errors.task.id=0 __connect.errors.stage=TRANSFORMATION " +
			"__connect.errors.exception.class.name=spillway.DeadLetter __connect.errors.exception.message=no time spillway.errors.cluster=source",
	} {
		if all[value] != want {
			t.Errorf("%q has the headers\n%s, want\n%s", value, all[value], want)
		}
	}
}

// TestLettersWait: while Kafka fails it is tried again, and nothing is said to be durable; a
// record that the topic refuses is left out.
func TestLettersWait(t *testing.T) {
	cluster := newCluster(t, kfake.SeedTopics(1, "dead"))
	var failures atomic.Int64
	var code atomic.Int32
	code.Store(int32(kerr.NotEnoughReplicas.Code))
	failures.Store(2)
	cluster.ControlKey(int16(kmsg.Produce), func(request kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if failures.Add(-1) < 0 {
			return nil, nil, false
		}
		response := request.ResponseKind().(*kmsg.ProduceResponse)
		for _, rt := range request.(*kmsg.ProduceRequest).Topics {
			topic := kmsg.NewProduceResponseTopic()
			topic.Topic, topic.TopicID = rt.Topic, rt.TopicID
			for _, rp := range rt.Partitions {
				p := kmsg.NewProduceResponseTopicPartition()
				p.Partition, p.ErrorCode = rp.Partition, int16(code.Load())
				topic.Partitions = append(topic.Partitions, p)
			}
			response.Topics = append(response.Topics, topic)
		}
		return response, nil, true
	})
	l := newLetters(t, cluster)
	letter := delivery.Letter{Source: partition("orders", 7), Reason: "r", Record: recordbatch.Record{Value: []byte("v"), TimestampMs: 1}}
	if refused, err := l.Write(t.Context(), []delivery.Letter{letter}); err != nil || refused != 0 || failures.Load() != -1 {
		t.Fatalf("%v, %d refused, %d failures left", err, refused, failures.Load())
	}

	code.Store(int32(kerr.MessageTooLarge.Code))
	failures.Store(1)
	if refused, err := l.Write(t.Context(), []delivery.Letter{letter}); err != nil || refused != 1 {
		t.Errorf("a record that is too large: %v, %d refused", err, refused)
	}
	// A batch that is refused is taken apart: only the one that is too large is left out.
	failures.Store(2)
	if refused, err := l.Write(t.Context(), []delivery.Letter{letter, letter}); err != nil || refused != 1 {
		t.Errorf("two records: %v, %d refused", err, refused)
	}
	if got := consume(t, cluster, 2, "dead"); len(got) != 2 {
		t.Errorf("%d records are in the topic, want 2", len(got))
	}

	code.Store(int32(kerr.NotEnoughReplicas.Code))
	failures.Store(1 << 40)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := l.Write(ctx, []delivery.Letter{letter}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}
