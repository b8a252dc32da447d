package ingest

import (
	"context"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
	"google.golang.org/grpc/codes"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// TestRefetch: what the buffer asks for is read again beside the group, exactly that range, over
// a refusal.
func TestRefetch(t *testing.T) {
	k, b := startKafka(t, 1, topic), startBuffer(t)
	k.produce(numbered(1000, 1, 0)...)
	b.refetch = &spillwayv1.Refetch{Id: 7, Source: &spillwayv1.SourcePartition{Topic: topic}, Range: &spillwayv1.OffsetRange{First: 250, Next: 617}}
	b.refuseOnce = rpc.Error(codes.ResourceExhausted, "QUEUE_FULL", retryDefault, "full")
	k.ingest(b)
	checkOnce(t, b, 1000)
	waitFor(t, "the refetched range", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.refetched.records) >= 617-250
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.refetched.records); n != 617-250 {
		t.Fatalf("%d records, want %d", n, 617-250)
	}
	seen := make(map[int64]bool)
	for _, r := range b.refetched.records {
		if r.offset < 250 || r.offset >= 617 || seen[r.offset] {
			t.Fatalf("offset %d was not asked for, or came twice", r.offset)
		}
		seen[r.offset] = true
	}
}

// TestRefetchOfWhatKafkaNoLongerHas: it is settled as lost, and the rest is read.
func TestRefetchOfWhatKafkaNoLongerHas(t *testing.T) {
	k, b := startKafka(t, 1, topic), startBuffer(t)
	k.produce(numbered(100, 1, 0)...)
	k.deleteBefore(40)
	b.refetch = &spillwayv1.Refetch{Id: 7, Source: &spillwayv1.SourcePartition{Topic: topic}, Range: &spillwayv1.OffsetRange{First: 10, Next: 60}}
	k.ingest(b)
	waitFor(t, "the refetched range", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.refetched.next == 60
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.refetched.settled; len(s) != 1 || s[0].Range.First != 10 || s[0].Range.Next != 40 || s[0].Outcome != spillwayv1.Outcome_OUTCOME_LOST {
		t.Fatalf("settled %v, want [10,40) as lost", s)
	}
	if r := b.refetched.records; len(r) != 20 || r[0].offset != 40 {
		t.Fatalf("%d records, want 20 from 40 on", len(r))
	}
}

// deleteBefore deletes the records of partition 0 below an offset.
func (c *cluster) deleteBefore(offset int64) {
	c.t.Helper()
	r := kmsg.NewPtrDeleteRecordsRequest()
	r.TimeoutMillis = 5000
	r.Topics = []kmsg.DeleteRecordsRequestTopic{{Topic: topic, Partitions: []kmsg.DeleteRecordsRequestTopicPartition{{Partition: 0, Offset: offset}}}}
	if _, err := r.RequestWith(c.t.Context(), c.client); err != nil {
		c.t.Fatal(err)
	}
}

// TestRefetchesOfGoneTopics hold up no others, however many they are.
func TestRefetchesOfGoneTopics(t *testing.T) {
	k, b := startKafka(t, 1, topic), startBuffer(t)
	k.produce(numbered(100, 1, 0)...)
	for i := range 3 * maxRefetches {
		b.refetches = append(b.refetches, &spillwayv1.Refetch{Id: uint64(100 + i), Source: &spillwayv1.SourcePartition{Topic: "gone", Partition: int32(i)}, Range: &spillwayv1.OffsetRange{First: 0, Next: 10}})
	}
	s := k.ingest(b).sources[0]
	checkOnce(t, b, 100)
	waitFor(t, "the trouble with the topic that is gone", func() bool { return s.fetching.err() != nil })
	b.set(func() {
		b.refetch = &spillwayv1.Refetch{Id: 7, Source: &spillwayv1.SourcePartition{Topic: topic}, Range: &spillwayv1.OffsetRange{First: 10, Next: 60}}
		b.breakAfter = 1
	})
	k.one(topic, 0, "more") // the stream breaks, and all is asked for again, the gone ones first
	waitFor(t, "the refetched range", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.refetched.next == 60
	})
	if s.fetching.err() == nil {
		t.Error("nothing is said of the topic that is gone")
	}
}

// TestRefetchIsAskedForAnew: the buffer has given up the range before, so that nobody goes on
// trying it.
func TestRefetchIsAskedForAnew(t *testing.T) {
	a := &appender{refetches: make(map[uint64]*partition), newest: make(map[topicPartition]*partition)}
	add := func(id uint64, number int) context.Context {
		ctx, cancel := context.WithCancel(t.Context())
		if !a.addRefetch(&partition{topicPartition: topicPartition{topic, number}, refetching: id, quit: cancel}) {
			t.Errorf("refetch %d is not new", id)
		}
		return ctx
	}
	former, other := add(1, 0), add(2, 1)
	latter := add(3, 0)
	if former.Err() == nil || other.Err() != nil || latter.Err() != nil {
		t.Errorf("the former ended with %v, that of another partition %v, the latter %v", former.Err(), other.Err(), latter.Err())
	}
}
