package ingest

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// findAll has an ingest look up a time in partitions, and returns the answers.
func findAll(t *testing.T, kafka *cluster, at time.Time, sources ...*spillwayv1.SourcePartition) []*spillwayv1.FoundOffset {
	t.Helper()
	buffer := startBuffer(t)
	for i, source := range sources {
		buffer.finds = append(buffer.finds, &spillwayv1.FindOffset{Id: uint64(i), Source: source, TimestampMs: at.UnixMilli()})
	}
	kafka.ingest(buffer)
	found := make([]*spillwayv1.FoundOffset, len(sources))
	waitFor(t, "all answers", func() bool {
		n := 0
		buffer.set(func() {
			for id, f := range buffer.found {
				found[id] = f
				n++
			}
		})
		return n == len(found)
	})
	return found
}

// TestFindOffset: a time is looked up, and of what is not there the buffer hears that.
func TestFindOffset(t *testing.T) {
	kafka := startKafka(t, 1, topic)
	begin := time.UnixMilli(1_700_000_000_000)
	for i := range 10 {
		kafka.produce(&kgo.Record{Topic: topic, Timestamp: begin.Add(time.Duration(i) * time.Second), Value: []byte("v")})
	}
	found := findAll(t, kafka, begin.Add(4*time.Second), &spillwayv1.SourcePartition{Topic: topic}, &spillwayv1.SourcePartition{Topic: "gone"},
		&spillwayv1.SourcePartition{Topic: topic, Partition: 7})
	for i, want := range []*spillwayv1.FoundOffset{{Offset: 4}, {Gone: true}, {Gone: true}} {
		if got := found[i]; got.Offset != want.Offset || got.Gone != want.Gone || (got.Error == "") == want.Gone {
			t.Errorf("question %d: %v", i, got)
		}
	}
}

// TestOffsetIsNotFound: when Kafka refuses to tell, the buffer hears why at once.
func TestOffsetIsNotFound(t *testing.T) {
	kafka := startKafka(t, 1, topic)
	kafka.fake.ControlKey(kmsg.ListOffsets.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
		kafka.fake.KeepControl()
		byTime := false
		answer := r.ResponseKind().(*kmsg.ListOffsetsResponse)
		for _, asked := range r.(*kmsg.ListOffsetsRequest).Topics {
			topic := kmsg.NewListOffsetsResponseTopic()
			topic.Topic = asked.Topic
			for _, p := range asked.Partitions {
				byTime = byTime || p.Timestamp > 0
				refused := kmsg.NewListOffsetsResponseTopicPartition()
				refused.Partition, refused.ErrorCode = p.Partition, 29 // not authorized
				topic.Partitions = append(topic.Partitions, refused)
			}
			answer.Topics = append(answer.Topics, topic)
		}
		return answer, nil, byTime
	})
	got := findAll(t, kafka, time.UnixMilli(1_700_000_000_000), &spillwayv1.SourcePartition{Topic: topic})[0]
	if got.Gone || got.Error == "" {
		t.Errorf("it is answered %v", got)
	}
}
