package e2e

import (
	"context"
	"flag"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

var onceSeconds = flag.Int("once.seconds", 25, "how long TestExactlyOnceToKafka breaks things")

// TestExactlyOnceToKafka: three deliveries produce in transactions, while random ones of them,
// the buffer, ingest and the target broker are killed with SIGKILL, or stopped for longer than a
// lease. A reader of committed records sees each record once, in the order of its source
// partition; and once more what is sought back.
func TestExactlyOnceToKafka(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	target := secondBroker(t)
	if err := target.start(); err != nil {
		t.Fatal(err)
	}
	p := newPipeline(t, target, `topic: "out-%{topic}"}`, `topic: "out-%{topic}", exactly_once: true}`)
	createTopic(t, stack.kafka, p.topic, nil)
	replicas := []*service{p.kafka, p.replica(p.kafka, 2), p.replica(p.kafka, 3)}
	p.start()
	for _, r := range replicas[1:] {
		r.start()
	}
	source := newProducer(t, stack.kafka, p.topic)
	began := time.Now()
	until := began.Add(time.Duration(*onceSeconds) * time.Second)
	produced := make(chan error, 1)
	n := *onceSeconds * 5_000
	go func() { produced <- source.produce(n, 5_000) }()
	kills, stops, restarts := 0, 0, 0
	for time.Now().Before(until) {
		pause(t, time.Duration(200+random.IntN(1300))*time.Millisecond)
		switch victim := replicas[random.IntN(3)]; random.IntN(10) {
		case 0:
			kills++
			p.buffer.kill()
			p.buffer.start()
		case 1:
			kills++
			p.ingest.kill()
			p.ingest.start()
		case 2:
			restarts++
			if err := target.crash(); err != nil {
				t.Fatal(err)
			}
			if err := target.start(); err != nil {
				t.Fatal(err)
			}
		case 3:
			stops++
			victim.pause(syscall.SIGSTOP)
			pause(t, 11*time.Second) // a lease is 10 s
			victim.pause(syscall.SIGCONT)
		default:
			kills++
			victim.kill()
			victim.start()
		}
	}
	if err := <-produced; err != nil {
		t.Fatal(err)
	}
	t.Logf("%d records; %d kills, %d stops, %d restarts of the target", n, kills, stops, restarts)
	p.awaitRest(n, 3*time.Minute, p.hdfs)
	checkCommitted(t, target, p.out, n)

	// Sought back, a partition is delivered once more; the others are not.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := spillwayv1.NewBufferAdminServiceClient(p.buffer.conn).SeekSubscription(ctx, &spillwayv1.SeekSubscriptionRequest{Name: "c/test",
		To: &spillwayv1.StartPosition{Offsets: []*spillwayv1.PartitionOffset{{Source: &spillwayv1.SourcePartition{Topic: p.topic, Partition: 1}, Offset: 0}}}})
	if err != nil {
		t.Fatal(err)
	}
	p.awaitRest(n, time.Minute, p.hdfs)
	again := 0
	eachCommitted(t, target, p.out, func(r *kgo.Record) {
		if number, err := numberOf(r.Value); err == nil && number%partitions == 1 {
			again++
		}
	})
	if again != 2*n/partitions {
		t.Errorf("partition 1 has %d records after the replay, want twice %d", again, n/partitions)
	}
}

// checkCommitted checks that readers of committed records see n records once, each partition's in
// order.
func checkCommitted(t testing.TB, b broker, topic string, n int) {
	t.Helper()
	checkCommittedOf(t, b, topic, n, partitions)
}

// checkCommittedOf is about records that came from so many partitions.
func checkCommittedOf(t testing.TB, b broker, topic string, n, over int) {
	t.Helper()
	y := newTally(n)
	last := make(map[int]int)
	disordered := 0
	eachCommitted(t, b, topic, func(r *kgo.Record) {
		y.add(r.Value)
		if number, err := numberOf(r.Value); err == nil {
			if before, seen := last[number%over]; seen && before > number {
				disordered++
			}
			last[number%over] = number
		}
	})
	y.check(t, topic, false)
	if disordered > 0 {
		t.Errorf("%s: %d records come after later ones of their source partition", topic, disordered)
	}
}

// eachCommitted reads all committed records of a topic.
func eachCommitted(t testing.TB, b broker, topic string, each func(*kgo.Record)) {
	t.Helper()
	client := newClient(t, b, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())
	var ends kadm.ListedOffsets
	eventually(t, 30*time.Second, "the broker tells the end offsets", func() (err error) { // it may have been restarted just now
		if ends, err = kadm.NewClient(client).ListCommittedOffsets(t.Context(), topic); err == nil {
			err = ends.Error()
		}
		return err
	})
	left := make(map[int32]int64)
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for len(left) > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			t.Fatalf("read %s: %v; left: %v", topic, err, left)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if !r.Attrs.IsControl() {
				each(r)
			}
			if r.Offset >= left[r.Partition]-1 {
				delete(left, r.Partition)
			}
		})
	}
}
