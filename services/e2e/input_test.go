package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// odd are records of the kinds that producers write, the last one of 10 MiB.
func odd() []*kgo.Record {
	header := func(name string, value []byte) kgo.RecordHeader { return kgo.RecordHeader{Key: name, Value: value} }
	records := []*kgo.Record{
		{},
		{Key: []byte{}, Value: []byte{}},
		{Key: []byte("key alone")},
		{Value: []byte("value alone")},
		{Key: []byte{0, 255, '\n'}, Value: []byte("\x00\xff\r\n"), Headers: []kgo.RecordHeader{header("", nil), header("a\xff", []byte{0})}},
		{Value: []byte("v"), Headers: []kgo.RecordHeader{header("same", []byte("1")), header("other", []byte{}), header("same", []byte("2")), header("same", nil)}},
		{Value: []byte("traced"), Headers: []kgo.RecordHeader{header("traceparent", []byte("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"))}},
	}
	for i := range 300 {
		records = append(records, &kgo.Record{Key: fmt.Append(nil, i%7), Value: value(i)})
	}
	big := bytes.Repeat([]byte("0123456789abcde\n"), 10<<20/16)
	return append(records, &kgo.Record{Key: []byte("big"), Value: big})
}

// TestEveryKindOfRecord: odd records in every compression, in a topic whose timestamps are the
// broker's, in one that was compacted and ends with a transaction that was aborted. What another
// client reads from the source it reads from the target.
func TestEveryKindOfRecord(t *testing.T) {
	t.Parallel()
	p := newRoute(t, stack.kafka)
	p.rewrite(fmt.Sprintf("topics: [%q]", p.topic), fmt.Sprintf("topics: [%q]", "re:"+p.topic+".*"))
	admin := kadm.NewClient(newClient(t, stack.kafka))
	large, size, ratio, appendTime, compact, zero := "20000000", "1048576", "0.01", "LogAppendTime", "compact", "0"
	forever := "-1" // the records are from 2020: Kafka would delete them at its next look
	create := func(name string, configs map[string]*string) string {
		t.Helper()
		for topic, configs := range map[string]map[string]*string{p.topic + name: configs, p.out + name: {"max.message.bytes": &large}} {
			configs["retention.ms"] = &forever
			if configs["segment.bytes"] == nil {
				configs["max.message.bytes"] = &large
			}
			if _, err := admin.CreateTopic(t.Context(), 1, 1, configs, topic); err != nil {
				t.Fatal(err)
			}
		}
		return p.topic + name
	}
	produce := func(topic string, records []*kgo.Record, opts ...kgo.Opt) {
		t.Helper()
		for i, r := range records {
			r.Topic, r.Timestamp = topic, time.UnixMilli(1_600_000_000_000+int64(i)*999)
		}
		if err := newClient(t, stack.kafka, append([]kgo.Opt{kgo.ProducerBatchMaxBytes(20_000_000)}, opts...)...).ProduceSync(t.Context(), records...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	topics := map[string][]*kgo.Record{} // with what each holds when Spillway starts
	for name, codec := range map[string]kgo.CompressionCodec{"-none": kgo.NoCompression(), "-gzip": kgo.GzipCompression(), "-snappy": kgo.SnappyCompression(),
		"-lz4": kgo.Lz4Compression(), "-zstd": kgo.ZstdCompression()} {
		topic := create(name, map[string]*string{})
		topics[topic] = nil
		produce(topic, odd(), kgo.ProducerBatchCompression(codec))
	}
	broker := create("-append-time", map[string]*string{"message.timestamp.type": &appendTime})
	topics[broker] = nil
	produce(broker, odd())

	compacted := create("-compacted", map[string]*string{"cleanup.policy": &compact, "segment.bytes": &size, "min.cleanable.dirty.ratio": &ratio, "delete.retention.ms": &zero})
	topics[compacted] = nil
	for round := range 4 { // each with a producer of its own, whose last batch stays as an empty one
		var records []*kgo.Record
		for i := range 150 {
			records = append(records, &kgo.Record{Key: fmt.Append(nil, i%50), Value: bytes.Repeat([]byte{byte(round)}, 8000)})
		}
		produce(compacted, append(records, &kgo.Record{Key: fmt.Append(nil, round)}), kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerBatchMaxBytes(100_000)) // and a tombstone
	}
	aborted := newClient(t, stack.kafka, kgo.TransactionalID(compacted))
	if err := errors.Join(aborted.BeginTransaction(), aborted.ProduceSync(t.Context(), &kgo.Record{Topic: compacted, Key: []byte("aborted"), Value: []byte("x")}).FirstErr(),
		aborted.EndTransaction(t.Context(), kgo.TryAbort)); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the topic is compacted", func() error {
		if n := len(readCommitted(t, stack.kafka, compacted)); n > 400 {
			return fmt.Errorf("%d records", n)
		}
		return nil
	})

	for topic := range topics {
		topics[topic] = readCommitted(t, stack.kafka, topic)
	}
	p.startRoute()
	eventually(t, time.Minute, "all topics are read to their ends and settled", func() error {
		resp, err := spillwayv1.NewIngestAdminServiceClient(p.ingest.conn).ListPartitions(t.Context(), &spillwayv1.ListPartitionsRequest{})
		if err != nil {
			return err
		}
		if len(resp.Partitions) != len(topics) {
			return fmt.Errorf("%d partitions", len(resp.Partitions))
		}
		for _, x := range resp.Partitions {
			if x.EndOffset == 0 || x.CommittedOffset != x.EndOffset {
				return fmt.Errorf("%v", x)
			}
			if _, pending, err := p.topicState(x.Topic); pending != 0 || err != nil {
				return fmt.Errorf("%s: %d offsets are pending, %v", x.Topic, pending, err)
			}
		}
		return nil
	})
	for topic, before := range topics {
		// Kafka may compact once more meanwhile: what was there at first may arrive, what is there
		// at last must.
		after, got := readCommitted(t, stack.kafka, topic), readCommitted(t, stack.kafka, "out-"+topic)
		t.Logf("%s: %d records, %d at last, %d arrived", topic, len(before), len(after), len(got))
		if len(after) == 0 {
			t.Errorf("%s has no records", topic)
		}
		if err := inOrder(before, got); err != nil {
			t.Errorf("%s: arrived, and is not in the source: %v", topic, err)
		}
		if err := inOrder(got, after); err != nil {
			t.Errorf("%s: has not arrived: %v", topic, err)
		}
		p.checkDeadLetters(topic, 0, "")
	}
}

// inOrder returns an error that describes the first of some that all does not hold in that order.
func inOrder(all, some []*kgo.Record) error {
	for i, r := range some {
		var err error
		for err = errors.New("no record is left"); err != nil && len(all) > 0; all = all[1:] {
			err = sameRecord(r, all[0])
		}
		if err != nil {
			return fmt.Errorf("record %d of %d: %w", i, len(some), err)
		}
	}
	return nil
}

// readCommitted is what eachCommitted yields.
func readCommitted(t testing.TB, b broker, topic string) (all []*kgo.Record) {
	t.Helper()
	eachCommitted(t, b, topic, func(r *kgo.Record) { all = append(all, r) })
	return all
}

// TestTopicChangesWhileItIsRead: partitions are added while ingest runs; later Kafka deletes
// records that ingest, which is down, has not read. The new partitions are read from their first
// record on, and what was deleted is lost by name.
func TestTopicChangesWhileItIsRead(t *testing.T) {
	t.Parallel()
	const n, more, gone = 4_000, 2, 100
	p := newRoute(t, stack.kafka)
	p.rewrite("start: earliest", "start: latest")
	createTopic(t, stack.kafka, p.topic, nil)
	admin := kadm.NewClient(newClient(t, stack.kafka))
	p.startRoute()
	eventually(t, 30*time.Second, "it is in the group", func() error { return p.holds(partitions) })
	if err := newProducer(t, stack.kafka, p.topic).produce(n, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the first partitions are delivered", func() error { return p.settledTopic(p.topic, n) })
	if added, err := admin.CreatePartitions(t.Context(), more, p.topic); errors.Join(err, added.Error()) != nil {
		t.Fatal(err, added.Error())
	}
	eventually(t, 30*time.Second, "the broker tells of the new partitions", func() error {
		topics, err := admin.ListTopics(t.Context(), p.topic)
		if n := len(topics[p.topic].Partitions); err == nil && n != partitions+more {
			err = fmt.Errorf("%d partitions", n)
		}
		return err
	})
	written := n
	toNew := func(records int) {
		t.Helper()
		var all []*kgo.Record
		for i := range records {
			all = append(all, &kgo.Record{Topic: p.topic, Partition: int32(partitions + i%more), Value: value(written)})
			written++
		}
		if err := newClient(t, stack.kafka).ProduceSync(t.Context(), all...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	toNew(1000)
	eventually(t, 30*time.Second, "the new partitions are delivered", func() error { return p.settledTopic(p.topic, int64(written)) })
	eventually(t, 30*time.Second, "all of it is committed", func() error { return p.holds(partitions + more) })

	p.ingest.stop()
	before := int64(written-n) / more // in each of the new partitions
	toNew(1000)
	at := kadm.Offsets{}
	at.Add(kadm.Offset{Topic: p.topic, Partition: partitions, At: before + gone})
	if deleted, err := admin.DeleteRecords(t.Context(), at); errors.Join(err, deleted.Error()) != nil {
		t.Fatal(err, deleted.Error())
	}
	p.ingest.start()
	eventually(t, 30*time.Second, "the rest is settled", func() error { return p.settledTopic(p.topic, int64(written)) })
	audit, err := spillwayv1.NewBufferAdminServiceClient(p.buffer.conn).Audit(t.Context(), &spillwayv1.AuditRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range audit.Partitions {
		if want := map[bool]int64{true: gone}[a.Source.Partition == partitions]; a.Outcomes["lost"] != want {
			t.Errorf("partition %d: %d offsets are lost by the audit, want %d", a.Source.Partition, a.Outcomes["lost"], want)
		}
	}
	if u := p.undelivered(p.topic); len(u) != 1 || u[0].Outcome != spillwayv1.Outcome_OUTCOME_LOST || u[0].Range.First != before || u[0].Range.Next != before+gone || u[0].Source.Partition != partitions {
		t.Errorf("undelivered: %v, want offsets %d to %d of partition %d lost", u, before, before+gone-1, partitions)
	}
	y := tallyTopic(t, stack.kafka, p.out, written)
	if y.distinct != written-gone || len(y.strange) > 0 {
		t.Errorf("%d records arrived, want all but %d: %s", y.distinct, gone, y.missing())
	}
}

// holds is nil when ingest has that many partitions, and has committed where it is in each of
// them.
func (p *pipeline) holds(partitions int) error {
	resp, err := spillwayv1.NewIngestAdminServiceClient(p.ingest.conn).ListPartitions(p.t.Context(), &spillwayv1.ListPartitionsRequest{})
	if err != nil {
		return err
	}
	for _, x := range resp.Partitions {
		if x.Position < 0 || x.CommittedOffset != x.Position {
			return fmt.Errorf("partition %d: %v", x.Partition, x)
		}
	}
	if len(resp.Partitions) != partitions {
		return fmt.Errorf("%d partitions", len(resp.Partitions))
	}
	return nil
}
