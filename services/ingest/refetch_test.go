package ingest

import (
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
