package ingest

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// recreate deletes the topic and creates it again.
func (c *cluster) recreate(partitions int32) {
	c.t.Helper()
	r := kmsg.NewPtrDeleteTopicsRequest()
	name := topic
	one := kmsg.NewDeleteTopicsRequestTopic()
	one.Topic = &name
	r.Topics, r.TopicNames = append(r.Topics, one), append(r.TopicNames, topic)
	response, err := r.RequestWith(c.t.Context(), c.client)
	if err != nil || response.Topics[0].ErrorCode != 0 {
		c.t.Fatalf("delete topic: %v, %v", response, err)
	}
	c.create(topic, partitions)
	c.client.PurgeTopicsFromClient(topic) // or it goes on with its sequence numbers
}

func (f *fakeBuffer) awaitLife(life uint32) {
	f.t.Helper()
	waitFor(f.t, fmt.Sprintf("records of incarnation %d", life), func() (there bool) {
		tp := topicPartition{topic, 0}
		f.set(func() { there = f.lives[tp] == life && f.partitions[tp] != nil && len(f.partitions[tp].records) > 0 })
		return there
	})
}

// TestTopicIsCreatedAgain has all records of the new topic read, whether it is shorter or longer
// than the one that was read, and whether ingest runs at the time.
func TestTopicIsCreatedAgain(t *testing.T) {
	for _, n := range []int{40, 180} {
		for _, running := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d records, running %v", n, running), func(t *testing.T) {
				c, b := startKafka(t, 1, topic), startBuffer(t)
				c.produce(numbered(100, 1, 0)...)
				i := c.ingest(b)
				checkOnce(t, b, 100)
				waitFor(t, "a commit", func() bool { return c.committed(0) == 100 })
				if !running {
					i.stop()
				}
				c.recreate(1)
				c.produce(numbered(n, 1, 1000)...)
				if !running {
					c.ingest(b)
				}
				b.awaitLife(1)
				checkOnce(t, b, n)
				waitFor(t, "a commit", func() bool { return c.committed(0) == int64(n) })
				b.set(func() {
					p := b.partitions[topicPartition{topic, 0}]
					if p.start != 0 || string(p.records[0].value) != "record 1000" {
						t.Errorf("it begins at %d with %s", p.start, p.records[0].value)
					}
				})
				c.recreate(1) // once more
				c.produce(numbered(300, 1, 5000)...)
				b.awaitLife(2)
				checkOnce(t, b, 300)
			})
		}
	}
}

// TestPartitionLosesItsEnd has a topic with the first records of the one that was read, and
// others after those, as after an unclean leader election: only the others are read.
func TestPartitionLosesItsEnd(t *testing.T) {
	for _, others := range []int{5, 300} { // it ends before what was read, or after
		for _, running := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d others, running %v", others, running), func(t *testing.T) {
				c, b := startKafka(t, 1, topic), startBuffer(t)
				at := time.Now().Add(-time.Hour)
				records := func(n, from int) []*kgo.Record {
					all := numbered(n, 1, from)
					for i := range all {
						all[i].Timestamp = at.Add(time.Duration(from+i) * time.Millisecond)
					}
					return all
				}
				i := c.ingest(b)
				for chunk := range 4 { // the buffer knows a record of each
					c.produce(records(20, chunk*20)...)
					checkOnce(t, b, (chunk+1)*20)
				}
				if !running {
					i.stop()
				}
				c.recreate(1)
				c.produce(append(records(60, 0), records(others, 1000)...)...)
				if !running {
					c.ingest(b)
				}
				b.awaitLife(1)
				checkOnce(t, b, others)
				b.set(func() {
					if p := b.partitions[topicPartition{topic, 0}]; p.start != 60 || string(p.records[0].value) != "record 1000" {
						t.Errorf("it begins at %d with %s", p.start, p.records[0].value)
					}
				})
			})
		}
	}
}

// TestRefetchFromAnotherTopic takes no record of the topic that was created again.
func TestRefetchFromAnotherTopic(t *testing.T) {
	c, b := startKafka(t, 1, topic), startBuffer(t)
	c.produce(numbered(100, 1, 0)...)
	b.refetch = &spillwayv1.Refetch{Id: 7, Source: &spillwayv1.SourcePartition{Topic: topic}, Range: &spillwayv1.OffsetRange{First: 10, Next: 60},
		KnownRecords: []*spillwayv1.Fingerprint{{Offset: 70, TimestampMs: 5}}}
	c.ingest(b)
	waitFor(t, "the answer", func() bool {
		answered := false
		b.set(func() { answered = b.refetched.next == 60 })
		return answered
	})
	b.set(func() {
		if s := b.refetched.settled; len(b.refetched.records) > 0 || len(s) != 1 || s[0].Outcome != spillwayv1.Outcome_OUTCOME_LOST || !strings.Contains(s[0].Reason, "created again") {
			t.Errorf("got %d records and %v", len(b.refetched.records), s)
		}
	})
}

// TestNewLeaderLags: a broker that has just become leader shows an end below what was read, for a
// while. That does not make another topic of it.
func TestNewLeaderLags(t *testing.T) {
	c, b := startKafka(t, 1, topic), startBuffer(t)
	c.produce(numbered(100, 1, 0)...)
	var lags atomic.Bool
	var peeks, refusals atomic.Int32
	c.fake.ControlKey(kmsg.Fetch.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		asked := r.(*kmsg.FetchRequest).Topics[0].Partitions[0]
		if !lags.Load() {
			return nil, nil, false
		}
		answer := r.ResponseKind().(*kmsg.FetchResponse)
		p := kmsg.NewFetchResponseTopicPartition()
		p.HighWatermark, p.LastStableOffset = 90, 90
		if asked.FetchOffset >= 100 {
			p.ErrorCode = 6 // it is no longer the leader, say
		} else {
			peeks.Add(1)
		}
		one := kmsg.NewFetchResponseTopic()
		one.Topic, one.Partitions = topic, append(one.Partitions, p)
		answer.Topics = append(answer.Topics, one)
		return answer, nil, true
	})
	c.fake.ControlKey(kmsg.ListOffsets.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		if !lags.Load() {
			return nil, nil, false
		}
		refusals.Add(1)
		p := kmsg.NewListOffsetsResponseTopicPartition()
		p.ErrorCode = 78 // the end is not known yet
		one := kmsg.NewListOffsetsResponseTopic()
		one.Topic, one.Partitions = topic, append(one.Partitions, p)
		answer := r.ResponseKind().(*kmsg.ListOffsetsResponse)
		answer.Topics = append(answer.Topics, one)
		return answer, nil, true
	})
	c.ingest(b)
	checkOnce(t, b, 100)
	lags.Store(true)
	waitFor(t, "a look at a known record, and the question for the end", func() bool { return peeks.Load() > 1 && refusals.Load() > 1 })
	lags.Store(false)
	c.produce(numbered(10, 1, 100)...)
	checkOnce(t, b, 110)
	b.set(func() {
		if life := b.lives[topicPartition{topic, 0}]; life != 0 {
			t.Errorf("it is incarnation %d now", life)
		}
	})
}
