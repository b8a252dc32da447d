package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
	"github.com/spillwayio/spillway/services/internal/kafkaclient/kafkaclienttest"
)

// TestMemberComesBack: after an outage of the broker an instance is the member that it was, or
// the group would wait for that one.
func TestMemberComesBack(t *testing.T) {
	kafka, buffer := startKafka(t, 1, topic), startBuffer(t)
	var away atomic.Bool
	var member atomic.Value
	joined := make(chan string, 100)
	gone := errors.New("the broker is away")
	for _, key := range []kmsg.Key{kmsg.Heartbeat, kmsg.FindCoordinator, kmsg.JoinGroup, kmsg.Fetch} {
		kafka.fake.ControlKey(key.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
			kafka.fake.KeepControl()
			if away.Load() {
				return nil, gone, true
			}
			switch r := r.(type) {
			case *kmsg.HeartbeatRequest:
				member.Store(r.MemberID)
			case *kmsg.JoinGroupRequest:
				joined <- r.MemberID
			}
			return nil, nil, false
		})
	}
	s := kafka.ingest(buffer).sources[0]
	waitFor(t, "a heartbeat", func() bool { return member.Load() != nil })
	former := member.Load().(string)
	for len(joined) > 0 {
		<-joined
	}
	away.Store(true)
	waitFor(t, "the outage to be noticed", func() bool { return s.kafka.Err() != nil })
	away.Store(false)
	kafka.one(topic, 0, "after")
	buffer.has(topic, 0, "after")
	for len(joined) > 0 {
		if m := <-joined; m != former {
			t.Errorf("%q joined the group, want %q", m, former)
		}
	}
}

// readiness keeps what a service says of its readiness.
type readiness struct {
	mu     sync.Mutex
	ready  bool
	reason string
}

func (r *readiness) set(ready bool, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ready, r.reason = ready, reason
}

func (r *readiness) get() (bool, string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ready, r.reason
}

// TestSilentBootstrapBroker: the first of two bootstrap brokers accepts connections and never
// answers.
func TestSilentBootstrapBroker(t *testing.T) {
	address, stop, err := kafkaclienttest.Silent()
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	kafka, buffer := startKafka(t, 2, topic), startBuffer(t)
	kafka.produce(numbered(100, 2, 0)...)
	source := kafka.source()
	source.Brokers = append([]string{address}, source.Brokers...)
	var ready readiness
	kafka.ingestWith(buffer, map[string]*config.Source{"s": source}, Deps{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Instance: "test", OnReady: ready.set})
	if is, _ := ready.get(); is {
		t.Error("ready before anything was reached")
	}
	checkOnce(t, buffer, 100)
	waitFor(t, "readiness", func() bool { is, _ := ready.get(); return is })
	waitFor(t, "a commit", func() bool { return kafka.committed(0) == 50 && kafka.committed(1) == 50 })
}

// TestReadyWhenJoined: a source is ready when its group has given it its partitions, and says why
// it is not.
func TestReadyWhenJoined(t *testing.T) {
	kafka, buffer := startKafka(t, 1, topic), startBuffer(t)
	var refuse atomic.Bool
	refuse.Store(true)
	kafka.fake.ControlKey(kmsg.JoinGroup.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
		kafka.fake.KeepControl()
		if !refuse.Load() {
			return nil, nil, false
		}
		answer := r.ResponseKind().(*kmsg.JoinGroupResponse)
		answer.ErrorCode = 30 // not authorized
		return answer, nil, true
	})
	var ready readiness
	s := kafka.ingestWith(buffer, map[string]*config.Source{"s": kafka.source()}, Deps{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Instance: "test", OnReady: ready.set})
	waitFor(t, "the reason", func() bool {
		is, reason := ready.get()
		return !is && strings.Contains(reason, "joining the group g") && strings.Contains(reason, "Authorization")
	})
	refuse.Store(false)
	waitFor(t, "readiness", func() bool { is, _ := ready.get(); return is })
	s.stop()
	if is, _ := ready.get(); is {
		t.Error("ready after the end")
	}
}

// TestSilentCoordinator: a coordinator that answers no heartbeat is looked up again and the group
// joined again; meanwhile the source reads on.
func TestSilentCoordinator(t *testing.T) {
	kafka, buffer := startKafka(t, 1, topic), startBuffer(t)
	var silent atomic.Int32
	var lookups atomic.Int32
	kafka.fake.ControlKey(kmsg.Heartbeat.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
		kafka.fake.KeepControl()
		if silent.Add(-1) < 0 {
			return nil, nil, false
		}
		answer := r.ResponseKind().(*kmsg.HeartbeatResponse)
		answer.ErrorCode = 16 // not the coordinator
		return answer, nil, true
	})
	kafka.fake.ControlKey(kmsg.FindCoordinator.Int16(), func(kmsg.Request) (kmsg.Response, error, bool) {
		kafka.fake.KeepControl()
		lookups.Add(1)
		return nil, nil, false
	})
	s := kafka.ingest(buffer)
	kafka.one(topic, 0, "before")
	buffer.has(topic, 0, "before")
	before := lookups.Load()
	silent.Store(3)
	waitFor(t, "lookups", func() bool { return lookups.Load() >= before+3 })
	kafka.one(topic, 0, "after")
	buffer.has(topic, 0, "after")
	waitFor(t, "the end of the trouble", func() bool { return s.sources[0].kafka.Err() == nil })
}

// TestGroupIsShared: a consumer that is not of Spillway reads its part of the partitions in the
// same group, both go on, and it is said.
func TestGroupIsShared(t *testing.T) {
	kafka, buffer := startKafka(t, 4, topic), startBuffer(t)
	var log logged
	s := kafka.ingestWith(buffer, map[string]*config.Source{"s": kafka.source()}, Deps{Log: log.logger(), Instance: "test"})
	waitFor(t, "all partitions", func() bool { return len(s.sources[0].partitionStatus()) == 4 })
	other, err := kgo.NewClient(kgo.SeedBrokers(kafka.fake.ListenAddrs()...), kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic),
		kgo.Balancers(kgo.RangeBalancer()), kgo.ClientID("reports"), kgo.DisableAutoCommit())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var read atomic.Int32
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			read.Add(int32(other.PollFetches(ctx).NumRecords()))
		}
	})
	waitFor(t, "a part of the partitions", func() bool { return len(s.sources[0].partitionStatus()) == 2 })
	kafka.produce(numbered(40, 4, 0)...)
	waitFor(t, "the records on both sides", func() bool { return buffer.count() == 20 && read.Load() == 20 })
	waitFor(t, "the warning", func() bool { return log.count("level=WARN", "the group is shared", "reports") == 1 })
	if got := s.sources[0].status().ForeignClients; len(got) != 1 || got[0] != "reports" {
		t.Errorf("foreign clients are %q", got)
	}
	cancel()
	wg.Wait()
}

// TestOtherProtocol: a group whose members divide partitions in another way is said to be one.
func TestOtherProtocol(t *testing.T) {
	kafka, buffer := startKafka(t, 4, topic), startBuffer(t)
	other, err := kgo.NewClient(kgo.SeedBrokers(kafka.fake.ListenAddrs()...), kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic),
		kgo.Balancers(kgo.CooperativeStickyBalancer()), kgo.DisableAutoCommit())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	kafka.produce(numbered(4, 4, 0)...)
	if n := other.PollFetches(t.Context()).NumRecords(); n == 0 {
		t.Fatal("the other consumer reads nothing")
	}
	var ready readiness
	kafka.ingestWith(buffer, map[string]*config.Source{"s": kafka.source()}, Deps{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Instance: "test", OnReady: ready.set})
	waitFor(t, "the reason", func() bool {
		is, reason := ready.get()
		return !is && strings.Contains(reason, "cooperative-sticky") && strings.Contains(reason, "group of its own")
	})
}

// TestOffsetsAreResetByOthers: what the group has in Kafka is not what Spillway committed. It is
// said, and nothing is lost or doubled.
func TestOffsetsAreResetByOthers(t *testing.T) {
	for _, to := range []int64{3, 40} {
		kafka, buffer := startKafka(t, 1, topic), startBuffer(t)
		kafka.produce(numbered(10, 1, 0)...)
		first := kafka.ingest(buffer)
		checkOnce(t, buffer, 10)
		waitFor(t, "a commit", func() bool { return kafka.committed(0) == 10 })
		first.stop()
		var quiet logged
		second := kafka.ingestWith(buffer, map[string]*config.Source{"s": kafka.source()}, Deps{Log: quiet.logger(), Instance: "test"})
		kafka.produce(numbered(40, 1, 10)...)
		checkOnce(t, buffer, 50)
		second.stop()
		if n := quiet.count("changed by somebody else"); n != 0 {
			t.Errorf("%d warnings about Spillway's own offset", n)
		}
		if told := buffer.told(); told == nil || *told != 10 {
			t.Errorf("the buffer was told of %v, want what Spillway has committed", told)
		}
		kafka.commit(to)
		var log logged
		kafka.ingestWith(buffer, map[string]*config.Source{"s": kafka.source()}, Deps{Log: log.logger(), Instance: "test"})
		kafka.produce(numbered(10, 1, 50)...)
		checkOnce(t, buffer, 60)
		waitFor(t, "the safe offset", func() bool { return kafka.committed(0) == 60 })
		if n := log.count("level=WARN", "changed by somebody else", fmt.Sprint("committed_by_others=", to), "safe=50", "SeekSubscription"); n != 1 {
			t.Errorf("reset to %d: %d warnings", to, n)
		}
		if told := buffer.told(); told != nil {
			t.Errorf("the buffer was told of %d, which somebody else has committed", *told)
		}
	}
}

// TestOffsetsAreResetMeanwhile: the same while the group's member is at work. It is said, and
// Spillway's offset is committed again, though it has not risen.
func TestOffsetsAreResetMeanwhile(t *testing.T) {
	for _, to := range []int64{3, 40, -1} {
		kafka, buffer := startKafka(t, 1, topic), startBuffer(t)
		kafka.produce(numbered(10, 1, 0)...)
		var log logged
		s := kafka.ingestWith(buffer, map[string]*config.Source{"s": kafka.source()}, Deps{Log: log.logger(), Instance: "test"}).sources[0]
		checkOnce(t, buffer, 10)
		waitFor(t, "a commit", func() bool { return kafka.committed(0) == 10 })
		s.mu.Lock()
		partitions := s.partitions
		s.mu.Unlock()
		waitFor(t, "the commit to be answered", func() bool { return partitions[0].committed.Load() == 10 })
		group := kafkaclient.NewGroup(s.members, kafkaclient.GroupConfig{Group: group})
		assignment := &kafkaclient.Assignment{Partitions: map[string][]int{topic: {0}}}
		s.lookAtCommits(t.Context(), group, assignment, partitions)
		if n := log.count("changed by somebody else"); n != 0 {
			t.Errorf("%d warnings about Spillway's own offset", n)
		}
		commits := make(chan int64, 8)
		kafka.fake.ControlKey(kmsg.OffsetCommit.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
			kafka.fake.KeepControl()
			commits <- r.(*kmsg.OffsetCommitRequest).Topics[0].Partitions[0].Offset
			return nil, nil, false
		})
		kafka.fake.ControlKey(kmsg.OffsetFetch.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
			answer := r.ResponseKind().(*kmsg.OffsetFetchResponse)
			at, p := kmsg.NewOffsetFetchResponseTopic(), kmsg.NewOffsetFetchResponseTopicPartition()
			at.Topic, p.Offset = topic, to
			at.Partitions = append(at.Partitions, p)
			answer.Topics = append(answer.Topics, at)
			return answer, nil, true
		})
		s.lookAtCommits(t.Context(), group, assignment, partitions)
		if n := log.count("level=WARN", "changed by somebody else", fmt.Sprint("committed_by_others=", to), "safe=10"); n != 1 {
			t.Errorf("reset to %d: %d warnings", to, n)
		}
		select {
		case offset := <-commits:
			if offset != 10 {
				t.Errorf("committed %d, want the safe offset", offset)
			}
		case <-time.After(40 * time.Second):
			t.Error("the safe offset is not committed again")
		}
	}
}

// commit commits an offset of partition 0 as an operator does.
func (c *cluster) commit(offset int64) {
	c.t.Helper()
	offsets := make(kadm.Offsets)
	offsets.AddOffset(topic, 0, offset, -1)
	if err := kadm.NewClient(c.client).CommitAllOffsets(c.t.Context(), group, offsets); err != nil {
		c.t.Fatal(err)
	}
}

// TestSafeOffsetsOnlyRise within an assignment, whatever the buffer says.
func TestSafeOffsetsOnlyRise(t *testing.T) {
	p := &partition{}
	p.safe.Store(10)
	for _, test := range []struct{ said, want int64 }{{12, 12}, {5, 12}, {0, 12}, {13, 13}} {
		if p.onSafe(test.said); p.safe.Load() != test.want {
			t.Errorf("after %d it is %d, want %d", test.said, p.safe.Load(), test.want)
		}
	}
}

// TestCommitFailsForOnePartition: the offsets of the others count.
func TestCommitFailsForOnePartition(t *testing.T) {
	kafka, buffer := startKafka(t, 2, topic), startBuffer(t)
	var refuse atomic.Bool
	refuse.Store(true)
	kafka.fake.ControlKey(kmsg.OffsetCommit.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
		kafka.fake.KeepControl()
		request := r.(*kmsg.OffsetCommitRequest)
		if !refuse.Load() {
			return nil, nil, false
		}
		answer := request.ResponseKind().(*kmsg.OffsetCommitResponse)
		for _, t := range request.Topics {
			a := kmsg.NewOffsetCommitResponseTopic()
			a.Topic = t.Topic
			for _, p := range t.Partitions {
				b := kmsg.NewOffsetCommitResponseTopicPartition()
				if b.Partition = p.Partition; p.Partition == 1 {
					b.ErrorCode = 29 // not authorized
				}
				a.Partitions = append(a.Partitions, b)
			}
			answer.Topics = append(answer.Topics, a)
		}
		return answer, nil, true
	})
	kafka.produce(numbered(20, 2, 0)...)
	s := kafka.ingest(buffer).sources[0]
	waitFor(t, "one commit, and one that fails", func() bool {
		got := s.partitionStatus()
		return len(got) == 2 && got[0].CommittedOffset == 10 && got[1].CommittedOffset == 0 && s.commits.Err() != nil
	})
	refuse.Store(false)
	waitFor(t, "the other commit", func() bool { return s.partitionStatus()[1].CommittedOffset == 10 && s.commits.Err() == nil })
}

// TestOpenTransaction: what waits for the decision of a transaction counts as lag, and is shown.
func TestOpenTransaction(t *testing.T) {
	kafka, buffer := startKafka(t, 1, topic), startBuffer(t)
	kafka.produce(numbered(10, 1, 0)...)
	producer, err := kgo.NewClient(kgo.SeedBrokers(kafka.fake.ListenAddrs()...), kgo.TransactionalID("tx"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	if err := producer.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := producer.ProduceSync(t.Context(), numbered(50, 1, 100)...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	before := time.Now().Add(-time.Second).UnixMilli()
	source := kafka.source()
	source.Isolation = "read_committed"
	var log logged
	s := kafka.ingestWith(buffer, map[string]*config.Source{"s": source}, Deps{Log: log.logger(), Instance: "test"}).sources[0]
	waitFor(t, "the wait to be shown", func() bool {
		got := s.partitionStatus()
		return len(got) == 1 && got[0].EndOffset == 60 && got[0].StableOffset == 10 && got[0].Position == 10 && got[0].Lag == 50 && got[0].HeldBackSinceMs >= before
	})
	p := s.partitions[0]
	p.undecided.Store(time.Now().Add(-2 * longUndecided).UnixMilli())
	s.lookAtTransactions(s.partitions)
	s.lookAtTransactions(s.partitions)
	if n := log.count("level=WARN", "open transaction", "offsets=50", "from_offset=10"); n != 1 {
		t.Errorf("%d warnings", n)
	}
	if err := producer.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	checkOnce(t, buffer, 60)
	waitFor(t, "the end of the wait", func() bool {
		got := s.partitionStatus()[0]
		return got.HeldBackSinceMs == 0 && got.Lag == 0 && got.StableOffset == got.EndOffset
	})
}

// TestThrottledFetches: a quota on fetches slows them down and fails nothing, and the group is
// not lost meanwhile.
func TestThrottledFetches(t *testing.T) {
	quota := &kafkaclienttest.Quota{Throttle: func(key int16, _ int) time.Duration {
		if key == kmsg.Fetch.Int16() {
			return 150 * time.Millisecond
		}
		return 0
	}}
	fake, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, topic), kfake.ListenFn(quota.Listen))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	client, err := kgo.NewClient(kgo.SeedBrokers(fake.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	kafka, buffer := &cluster{t, fake, client}, startBuffer(t)
	var log logged
	s := kafka.ingestWith(buffer, map[string]*config.Source{"s": kafka.source()}, Deps{Log: log.logger(), Instance: "test"})
	for i := range 5 { // each takes a fetch at least
		kafka.produce(numbered(100, 2, 100*i)...)
		checkOnce(t, buffer, 100*(i+1))
	}
	if n := log.count("throttles this client"); n != 1 {
		t.Errorf("it was said %d times", n)
	}
	if n := log.count("cannot fetch"); n != 0 || quota.Named() < 2 {
		t.Errorf("%d failures, %d answers were throttled", n, quota.Named())
	}
	s.stop()
}

// TestDividedWithoutATopic: the broker that the group's leader asks what to divide leaves a topic
// out, as one does that has just started. Its partitions are divided as soon as they are seen.
func TestDividedWithoutATopic(t *testing.T) {
	kafka, buffer := startKafka(t, 2, topic, "other"), startBuffer(t)
	var hides, over atomic.Bool
	kafka.fake.ControlKey(kmsg.JoinGroup.Int16(), func(kmsg.Request) (kmsg.Response, error, bool) {
		kafka.fake.KeepControl()
		hides.Store(!over.Load())
		return nil, nil, false
	})
	kafka.fake.ControlKey(kmsg.SyncGroup.Int16(), func(kmsg.Request) (kmsg.Response, error, bool) {
		kafka.fake.KeepControl()
		hides.Store(false)
		over.Store(true)
		return nil, nil, false
	})
	host, port, err := net.SplitHostPort(kafka.fake.ListenAddrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	id := "fake"
	kafka.fake.ControlKey(kmsg.Metadata.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
		kafka.fake.KeepControl()
		if !hides.Load() {
			return nil, nil, false
		}
		answer := r.ResponseKind().(*kmsg.MetadataResponse)
		answer.ClusterID = &id
		answer.Brokers = []kmsg.MetadataResponseBroker{{Host: host, Port: int32(number)}}
		for _, asked := range r.(*kmsg.MetadataRequest).Topics {
			one := kmsg.NewMetadataResponseTopic()
			one.Topic, one.ErrorCode = asked.Topic, 3 // it does not know the topic
			answer.Topics = append(answer.Topics, one)
		}
		return answer, nil, true
	})
	s := kafka.ingest(buffer, topic, "other")
	kafka.produce(numbered(20, 2, 0)...)
	checkOnce(t, buffer, 20)
	kafka.one("other", 1, "of the other")
	buffer.has("other", 1, "of the other")
	if n := len(s.sources[0].partitionStatus()); n != 4 {
		t.Errorf("%d partitions are read", n)
	}
}
