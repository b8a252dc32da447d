package ingest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

func (c *cluster) create(topic string, partitions int32) {
	c.t.Helper()
	r := kmsg.NewPtrCreateTopicsRequest()
	t := kmsg.NewCreateTopicsRequestTopic()
	t.Topic, t.NumPartitions, t.ReplicationFactor = topic, partitions, 1
	r.Topics = append(r.Topics, t)
	if _, err := r.RequestWith(c.t.Context(), c.client); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) configure(key, value string) {
	c.t.Helper()
	r := kmsg.NewPtrIncrementalAlterConfigsRequest()
	r.Resources = []kmsg.IncrementalAlterConfigsRequestResource{{ResourceType: kmsg.ConfigResourceTypeTopic, ResourceName: topic,
		Configs: []kmsg.IncrementalAlterConfigsRequestResourceConfig{{Name: key, Value: &value}}}}
	response, err := r.RequestWith(c.t.Context(), c.client)
	if err != nil || response.Resources[0].ErrorCode != 0 {
		c.t.Fatal(err, response)
	}
}

func (c *cluster) one(topic string, partition int32, value string) {
	c.t.Helper()
	c.produce(&kgo.Record{Topic: topic, Partition: partition, Value: []byte(value)})
}

// has waits for a record in a partition.
func (f *fakeBuffer) has(topic string, partition int, value string) {
	f.t.Helper()
	waitFor(f.t, value+" in "+topic, func() bool {
		return slices.ContainsFunc(f.records(topic)[partition], func(r storedRecord) bool { return string(r.value) == value })
	})
}

func TestPick(t *testing.T) {
	seen := &kafkaclient.Cluster{Topics: map[string]kafkaclient.Topic{
		"a": {Partitions: 1}, "logs-1": {Partitions: 2}, "logs-": {Partitions: 3}, "old-logs-1": {Partitions: 1}, "bad": {Err: errors.New("no leader")}}}
	for _, test := range []struct {
		items, want, missing string
	}{
		{"a", "a", ""},
		{"a b", "a", "b"},
		{"re:logs-.+", "logs-1", ""},
		{"re:logs-|x", "logs-", ""},
		{"a re:logs-.* gone", "a logs- logs-1", "gone"},
		{"re:nothing", "", ""},
	} {
		w, err := newWanted(strings.Fields(test.items))
		if err != nil {
			t.Fatal(err)
		}
		existing, missing, err := w.pick(seen)
		var names []string
		for name, n := range existing {
			names = append(names, name)
			if n != seen.Topics[name].Partitions {
				t.Errorf("%s: %d partitions of %s", test.items, n, name)
			}
		}
		slices.Sort(names)
		if got := strings.Join(names, " "); got != test.want || strings.Join(missing, " ") != test.missing || err != nil {
			t.Errorf("%s: %q, missing %q, %v; want %q, %q", test.items, got, missing, err, test.want, test.missing)
		}
	}
	w, err := newWanted([]string{"bad"})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.pick(seen); err == nil {
		t.Error("a topic with an error passed")
	}
}

func TestMissingTopicIsPickedUp(t *testing.T) {
	kafka, buffer := startKafka(t, 1, topic), startBuffer(t)
	s := kafka.ingest(buffer, topic, "later")
	kafka.produce(numbered(100, 1, 0)...)
	checkOnce(t, buffer, 100)
	if m := s.sources[0].status().MissingTopics; len(m) != 1 || m[0] != "later" {
		t.Errorf("missing topics are %v", m)
	}
	kafka.create("later", 1)
	kafka.one("later", 0, "x")
	buffer.has("later", 0, "x")
}

// A pattern finds what is there and what comes; partitions that are added are read, too; a topic
// that is deleted does not disturb the others.
func TestTopicsByPattern(t *testing.T) {
	kafka, buffer := startKafka(t, 1, "logs-a", "other"), startBuffer(t)
	s := kafka.ingest(buffer, "re:logs-.*")
	kafka.one("logs-a", 0, "first")
	kafka.one("other", 0, "not wanted")
	buffer.has("logs-a", 0, "first")

	kafka.create("logs-b", 2)
	kafka.one("logs-b", 1, "new topic")
	buffer.has("logs-b", 1, "new topic")

	more := kmsg.NewPtrCreatePartitionsRequest()
	add := kmsg.NewCreatePartitionsRequestTopic()
	add.Topic, add.Count = "logs-a", 3
	more.Topics = append(more.Topics, add)
	if _, err := more.RequestWith(t.Context(), kafka.client); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the new partition", func() bool {
		kafka.client.ForceMetadataRefresh()
		return kafka.client.ProduceSync(t.Context(), &kgo.Record{Topic: "logs-a", Partition: 2, Value: []byte("new partition")}).FirstErr() == nil
	})
	buffer.has("logs-a", 2, "new partition")

	remove := kmsg.NewPtrDeleteTopicsRequest()
	name := "logs-b"
	remove.TopicNames = append(remove.TopicNames, name)
	remove.Topics = append(remove.Topics, kmsg.DeleteTopicsRequestTopic{Topic: &name})
	if _, err := remove.RequestWith(t.Context(), kafka.client); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the deletion to be seen", func() bool {
		return len(s.sources[0].partitionStatus()) == 3 && s.sources[0].status().State == "running"
	})
	kafka.one("logs-a", 0, "after")
	buffer.has("logs-a", 0, "after")
	if n := len(buffer.records("other")); n != 0 {
		t.Errorf("%d partitions of a topic that is not wanted", n)
	}
}

// TestWatchLooksAtOnce: a change is seen also when each generation ends before the next look
// would be due.
func TestWatchLooksAtOnce(t *testing.T) {
	kafka, buffer := startKafka(t, 2, topic), startBuffer(t)
	s := kafka.ingest(buffer).sources[0]
	ctx, cancel := context.WithTimeout(t.Context(), topicPoll*4/5)
	defer cancel()
	if is, other := s.watch(ctx, map[string]int{topic: 1}); is[topic] != 2 || other {
		t.Errorf("the topics are %v, other ones: %t; want 2 partitions of the same", is, other)
	}
}

func TestStart(t *testing.T) {
	kafka := startKafka(t, 2, topic)
	old, edge := time.UnixMilli(1_700_000_000_000), time.UnixMilli(1_700_000_100_000)
	kafka.produce(&kgo.Record{Topic: topic, Value: []byte("old"), Timestamp: old}, &kgo.Record{Topic: topic, Value: []byte("new"), Timestamp: edge},
		&kgo.Record{Topic: topic, Partition: 1, Value: []byte("old"), Timestamp: old})
	for start, want := range map[string][2]int64{
		"earliest": {0, 0}, "latest": {2, 1}, edge.UTC().Format(time.RFC3339): {1, 1}, "2000-01-01T00:00:00Z": {0, 0}} {
		t.Run(start, func(t *testing.T) {
			buffer := startBuffer(t)
			source := kafka.source()
			source.Start, source.Group = start, "group of "+start
			s := kafka.ingestAll(buffer, map[string]*config.Source{"s": source})
			waitFor(t, "both positions", func() bool {
				at := make(map[int32][2]int64)
				for _, p := range s.sources[0].partitionStatus() {
					at[p.Partition] = [2]int64{p.EndOffset, p.Position}
				}
				return at[0] == [2]int64{2, 2} && at[1] == [2]int64{1, 1}
			})
			for partition, from := range want {
				waitFor(t, "the records", func() bool {
					return len(buffer.records(topic)[partition]) == int([]int64{2, 1}[partition]-from)
				})
			}
			s.stop()
		})
	}
}

// TestLatestSkipsNothingThatCameLater: with start: latest, what is produced while ingest is down
// is read, also in a partition that had no record yet when it began, and in one that was added
// meanwhile.
func TestLatestSkipsNothingThatCameLater(t *testing.T) {
	kafka, buffer := startKafka(t, 2, topic), startBuffer(t)
	kafka.one(topic, 0, "old")
	source := kafka.source()
	source.Start = "latest"
	s := kafka.ingestAll(buffer, map[string]*config.Source{"s": source})
	waitFor(t, "the starts to be committed", func() bool { return kafka.committed(0) == 1 && kafka.committed(1) == 0 })
	s.stop()
	kafka.one(topic, 0, "meanwhile")
	kafka.one(topic, 1, "first")
	more := kmsg.NewPtrCreatePartitionsRequest()
	add := kmsg.NewCreatePartitionsRequestTopic()
	add.Topic, add.Count = topic, 3
	more.Topics = append(more.Topics, add)
	if _, err := more.RequestWith(t.Context(), kafka.client); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the new partition", func() bool {
		kafka.client.ForceMetadataRefresh()
		return kafka.client.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Partition: 2, Value: []byte("added")}).FirstErr() == nil
	})
	kafka.ingestAll(buffer, map[string]*config.Source{"s": source})
	buffer.has(topic, 0, "meanwhile")
	buffer.has(topic, 1, "first")
	buffer.has(topic, 2, "added")
	if n := len(buffer.records(topic)[0]); n != 1 {
		t.Errorf("%d records of the first partition, want the one that came after the start", n)
	}
}

func TestTwoClustersInOneIngest(t *testing.T) {
	one, two, buffer := startKafka(t, 1, "in"), startKafka(t, 1, "in2"), startBuffer(t)
	one.one("in", 0, "from one")
	two.one("in2", 0, "from two")
	one.ingestAll(buffer, map[string]*config.Source{"s": one.source("in"), "t": two.source("in2")})
	buffer.has("in", 0, "from one")
	buffer.has("in2", 0, "from two")
}

// TestQueuesShareNoMemory: a queue that takes nothing holds back no other's sources.
func TestQueuesShareNoMemory(t *testing.T) {
	kafka, buffer := startKafka(t, 10, "busy", "quiet"), startBuffer(t)
	for i := range int32(40) {
		kafka.produce(&kgo.Record{Topic: "busy", Partition: i % 10, Value: make([]byte, 900<<10)})
	}
	stuck, other := kafka.source("busy"), kafka.source("quiet")
	stuck.Queue, other.Group = "stuck", "other"
	s := kafka.ingestAll(buffer, map[string]*config.Source{"a": stuck, "b": other})
	memory := s.sources[0].memory
	waitFor(t, "the memory to be used up", func() bool { return memory.arrived.pressed() || memory.batches.pressed() })
	kafka.one("quiet", 3, "for the other queue")
	buffer.has("quiet", 3, "for the other queue")
}

// The buffer forgot the partition; the group knows how far it was. What Kafka deleted since is
// lost, and said to be.
func TestRetentionOvertakesTheCommittedOffset(t *testing.T) {
	kafka, buffer := startKafka(t, 1, topic), startBuffer(t)
	kafka.produce(numbered(10, 1, 0)...)
	first := kafka.ingest(buffer)
	checkOnce(t, buffer, 10)
	waitFor(t, "the group to know of the records", func() bool { return kafka.committed(0) == 10 })
	first.stop()
	kafka.produce(numbered(10, 1, 10)...)
	kafka.deleteBefore(15)
	empty := startBuffer(t)
	kafka.ingest(empty)
	checkOnce(t, empty, 5)
	if got := empty.settled(topic, 0); len(got) != 1 || !strings.HasPrefix(got[0], "[10,15) OUTCOME_LOST: Kafka deleted") {
		t.Errorf("settled: %q", got)
	}
}

func TestRetentionIsWatched(t *testing.T) {
	kafka, buffer := startKafka(t, 1, topic), startBuffer(t)
	kafka.produce(&kgo.Record{Topic: topic, Value: []byte("old"), Timestamp: time.Now().Add(-6 * 24 * time.Hour)})
	s := kafka.ingest(buffer)
	waitFor(t, "the record to be safe", func() bool { return kafka.committed(0) == 1 })
	p := s.sources[0].partitions[0]
	if err := s.sources[0].lookAtRetention(t.Context(), s.sources[0].partitions); err != nil {
		t.Fatal(err)
	}
	week := (7 * 24 * time.Hour).Milliseconds()
	if got := s.sources[0].partitionStatus()[0]; got.OldestUnsafeMs != 0 || got.RetentionMs != week || p.thin {
		t.Errorf("all is safe: %v, thin %v", got, p.thin)
	}
	p.safe.Store(0)
	if err := s.sources[0].lookAtRetention(t.Context(), s.sources[0].partitions); err != nil {
		t.Fatal(err)
	}
	if got := s.sources[0].partitionStatus()[0]; got.OldestUnsafeMs < week*6/7 || !p.thin {
		t.Errorf("6 of 7 days: %v, thin %v", got, p.thin)
	}
}

// TestOldIsTold: a buffer that wants to know hears what Kafka may delete soon, when that changes:
// what is needed and in the older half of the time that Kafka keeps records, or of the bytes, and
// all of a compacted topic.
func TestOldIsTold(t *testing.T) {
	kafka := startKafka(t, 1, topic)
	records := numbered(20, 1, 0)
	for i, r := range records { // 6 of 7 days, and 2
		r.Timestamp = time.Now().Add(-time.Duration(6-i/10*4) * 24 * time.Hour)
	}
	kafka.produce(records...)
	start := func(wants bool) (*source, *fakeBuffer, func()) {
		t.Helper()
		buffer := startBuffer(t)
		buffer.wants = wants
		s := kafka.ingest(buffer)
		waitFor(t, "the records to be safe", func() bool {
			status := s.sources[0].partitionStatus()
			return len(status) == 1 && status[0].SafeOffset == 20
		})
		return s.sources[0], buffer, s.stop
	}
	source, buffer, stop := start(true)
	p := source.partitions[0]
	look := func() (last *spillwayv1.SourceRetention, n int) {
		t.Helper()
		if err := source.lookAtRetention(t.Context(), source.partitions); err != nil {
			t.Fatal(err)
		}
		source.tellRetention(t.Context(), source.partitions)
		buffer.set(func() {
			if n = len(buffer.retention); n > 0 {
				last = buffer.retention[n-1]
			}
		})
		return last, n
	}
	told := func(want int64) {
		t.Helper()
		waitFor(t, fmt.Sprint("the buffer to hear that offsets are old before ", want), func() bool {
			last, _ := look()
			return last != nil && last.OldOffset == want && last.EndOffset == 20
		})
	}
	told(0)
	p.safe.Store(0)
	told(10)
	_, before := look()
	if _, n := look(); n != before {
		t.Errorf("the buffer was told %d times, want %d: nothing has changed", n, before)
	}
	p.safe.Store(20)
	told(0)
	kafka.deleteBefore(4)
	kafka.configure("retention.bytes", "1000000")
	told(12)
	kafka.configure("retention.bytes", "-1")
	told(0)
	kafka.configure("cleanup.policy", "compact")
	told(20)
	stop()

	source, buffer, stop = start(false)
	if _, n := look(); n != 0 {
		t.Errorf("a buffer that does not want to know was told %d times", n)
	}
	stop()
}

// TestMayWait: the buffer holds back nothing that Kafka may delete soon.
func TestMayWait(t *testing.T) {
	for _, test := range []struct {
		name   string
		keeps  *kafkaclient.Retention
		behind int64
		age    time.Duration
		want   bool
	}{
		{"unknown", nil, 0, 0, false},
		{"for ever", &kafkaclient.Retention{}, 900, 9 * time.Minute, true},
		{"a week", &kafkaclient.Retention{After: 7 * 24 * time.Hour}, 900, 9 * time.Minute, true},
		{"five minutes", &kafkaclient.Retention{After: 5 * time.Minute}, 900, time.Minute, false},
		{"five minutes, fresh", &kafkaclient.Retention{After: 5 * time.Minute}, 900, 10 * time.Second, true},
		{"bytes", &kafkaclient.Retention{Bounded: true}, 900, 0, false},
		{"bytes, near the end", &kafkaclient.Retention{Bounded: true}, 100, 0, true},
	} {
		p := &partition{}
		p.retention.Store(test.keeps)
		p.first.Store(1000)
		p.end.Store(2000)
		if got := p.mayWait(2000-test.behind, time.Now().Add(-test.age).UnixMilli()); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

// TestMayWaitIsTold looks up whether a topic deletes by size, and tells the buffer with each
// batch. The records of a case come to Kafka as one batch, and full batches alone go to the
// buffer, so that no clock matters.
func TestMayWaitIsTold(t *testing.T) {
	kafka, buffer := startKafka(t, 1, topic), startBuffer(t)
	source := kafka.source()
	source.Batch.Linger = time.Hour
	s := kafka.ingestAll(buffer, map[string]*config.Source{"s": source})
	client, err := kgo.NewClient(kgo.SeedBrokers(kafka.fake.ListenAddrs()...), kgo.ManualFlushing(), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	waitFor(t, "the group", func() bool { return len(s.sources[0].partitionStatus()) == 1 })
	for i, test := range []struct {
		bytes string
		want  []bool // of the batches
	}{{"-1", []bool{true, true, true}}, {"1000000", []bool{false, false, true}}} {
		kafka.configure("retention.bytes", test.bytes)
		if err := s.sources[0].lookAtRetention(t.Context(), s.sources[0].partitions); err != nil {
			t.Fatal(err)
		}
		for _, r := range numbered(300, 1, 300*i) {
			client.Produce(t.Context(), r, nil)
		}
		if err := client.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		checkOnce(t, buffer, 300*(i+1))
		var got []bool
		buffer.set(func() {
			for n := range int64(3) {
				got = append(got, buffer.mayWait[int64(300*i)+100*(n+1)])
			}
		})
		if !slices.Equal(got, test.want) {
			t.Errorf("retention.bytes %s: the buffer may hold back the batches: %v, want %v", test.bytes, got, test.want)
		}
	}
}

// TestAgeOf: a record without a timestamp is of no age that Kafka would delete it for, and one of
// a time to come is new.
func TestAgeOf(t *testing.T) {
	for ms, want := range map[int64]time.Duration{-1: 0, math.MaxInt64: 0, time.Now().Add(-time.Hour).UnixMilli(): time.Hour} {
		if got := ageOf(ms).Round(time.Minute); got != want {
			t.Errorf("a record of %d is %s old, want %s", ms, got, want)
		}
	}
}

// TestCaughtUpAfterTheClockWasSetBack: the buffer is told again that there is no more.
func TestCaughtUpAfterTheClockWasSetBack(t *testing.T) {
	p := &partition{source: &source{}}
	p.source.tellEvery.Store(1000)
	p.told.Store(time.Now().AddDate(10, 0, 0).UnixMilli())
	if !p.learn(&kafkaclient.Fetched{}, time.Now()) {
		t.Error("it waits for ten years")
	}
	p.told.Store(time.Now().UnixMilli())
	if p.learn(&kafkaclient.Fetched{}, time.Now().Add(10*time.Millisecond)) {
		t.Error("it is told again at once")
	}
}

// TestBrokerSaysNothing: a broker that answers fetches at once, and about no partition, is asked
// again after a while, and it is said.
func TestBrokerSaysNothing(t *testing.T) {
	kafka, buffer := startKafka(t, 1, topic), startBuffer(t)
	var mute atomic.Bool
	var fetches atomic.Int32
	mute.Store(true)
	kafka.fake.ControlKey(kmsg.Fetch.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
		kafka.fake.KeepControl()
		fetches.Add(1)
		return r.ResponseKind(), nil, mute.Load()
	})
	kafka.produce(numbered(10, 1, 0)...)
	s := kafka.ingest(buffer)
	waitFor(t, "the error", func() bool {
		return strings.Contains(s.sources[0].status().LastError, errUnanswered.Error()) && fetches.Load() > 3
	})
	if n := fetches.Load(); n > 100 {
		t.Errorf("%d fetches were sent", n)
	}
	mute.Store(false)
	checkOnce(t, buffer, 10)
}
