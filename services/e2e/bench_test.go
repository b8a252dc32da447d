package e2e

import (
	"context"
	"flag"
	"fmt"
	"testing"
	"time"

	"github.com/colinmarc/hdfs/v2"
	"golang.org/x/sync/errgroup"

	"github.com/spillwayio/spillway/services/internal/kafkaclient"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

var benchRecords = flag.Int("bench.records", 500_000, "records that BenchmarkPipeline delivers in each round")

// BenchmarkPipeline takes records of 200 bytes from a real Kafka to a real HDFS; an operation is all of them.
//
//	bare      the same libraries in one process, without any guarantee: fetch, append a line, close the file at the end
//	hdfs      Spillway, with HDFS as the only destination
//	both      Spillway, to HDFS and to a topic of the same Kafka; the rate is HDFS's
//	outage    the same with the second Kafka dead: what is meant for it spills to disk
//	kafka     Spillway, to a topic of the same Kafka only
//	once      the same with exactly_once
//
//	go test -run '^$' -bench Pipeline -benchtime 1x ./services/e2e -bench.records 1000000
func BenchmarkPipeline(b *testing.B) {
	topic := fmt.Sprintf("bench-%d", time.Now().UnixNano())
	createTopic(b, stack.kafka, topic, nil)
	source := newProducer(b, stack.kafka, topic)
	if err := source.produce(*benchRecords, 0); err != nil {
		b.Fatal(err)
	}
	for _, round := range []string{"1", "2"} {
		b.Run("bare/"+round, func(b *testing.B) { benchBare(b, topic) })
		b.Run("hdfs/"+round, func(b *testing.B) { benchPipeline(b, topic, stack.kafka, false) })
		b.Run("both/"+round, func(b *testing.B) { benchPipeline(b, topic, stack.kafka, true) })
		b.Run("outage/"+round, func(b *testing.B) { benchPipeline(b, topic, secondBroker(b), true) })
		b.Run("kafka/"+round, func(b *testing.B) { benchKafka(b, topic) })
		b.Run("once/"+round, func(b *testing.B) {
			benchKafka(b, topic, `topic: "out-%{topic}"}`, `topic: "out-%{topic}", exactly_once: true}`)
		})
	}
}

func benchKafka(b *testing.B, topic string, edit ...string) {
	p := newPipeline(b, stack.kafka, edit...)
	p.rewrite(fmt.Sprintf("topics: [%q]", p.topic), fmt.Sprintf("topics: [%q]", topic), // the group stays its own
		`hdfs: {topics: ["*"]`, `hdfs: {topics: ["none"]`, "out-", p.out+"-") // to a topic of this round
	for _, s := range []*service{p.buffer, p.kafka} {
		s.start()
		s.waitReady()
	}
	b.ResetTimer()
	p.ingest.start()
	eventually(b, 5*time.Minute, "everything is in Kafka", func() error { return p.settled(*benchRecords, "test") })
	b.StopTimer()
	b.ReportMetric(float64(*benchRecords)/b.Elapsed().Seconds(), "records/s")
}

func benchPipeline(b *testing.B, topic string, target broker, second bool) {
	p := newPipeline(b, target)
	p.rewrite(fmt.Sprintf("topics: [%q]", p.topic), fmt.Sprintf("topics: [%q]", topic)) // the group stays its own
	if !second {
		p.rewrite(`test: {topics: ["*"]`, `test: {topics: ["none"]`)
	}
	for _, s := range []*service{p.buffer, p.hdfs} {
		s.start()
		s.waitReady()
	}
	if second {
		p.kafka.start()
		if target == stack.kafka {
			p.kafka.waitReady()
		}
	}
	b.ResetTimer()
	p.ingest.start()
	eventually(b, 5*time.Minute, "everything is in HDFS", func() error { return p.settled(*benchRecords, "hdfs") })
	b.StopTimer()
	b.ReportMetric(float64(*benchRecords)/b.Elapsed().Seconds(), "records/s")
	for _, s := range p.services() {
		if s == p.kafka && !second {
			continue
		}
		_, peak := s.memoryBytes()
		b.ReportMetric(float64(peak>>20), s.name+"-MiB")
	}
}

// benchBare is what the libraries give: a fetch loop and a file for every partition.
func benchBare(b *testing.B, topic string) {
	client := kafkaclient.New([]string{stack.kafka.addr()}, "bare", kafkaclient.Access{})
	defer client.Close()
	files, err := hdfs.NewClient(hdfs.ClientOptions{Addresses: []string{stack.hdfs}, User: "hdfs"})
	if err != nil {
		b.Fatal(err)
	}
	defer files.Close()
	dir := fmt.Sprintf("/bare/%d", time.Now().UnixNano())
	if err := files.MkdirAll(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	var g errgroup.Group
	for partition := range partitions {
		g.Go(func() error {
			return bareLoop(context.Background(), client, files, topic, partition, fmt.Sprintf("%s/%d", dir, partition))
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(*benchRecords)/b.Elapsed().Seconds(), "records/s")
}

func bareLoop(ctx context.Context, client *kafkaclient.Client, files *hdfs.Client, topic string, partition int, path string) error {
	at, end, err := client.Offsets(ctx, topic, partition)
	if err != nil {
		return err
	}
	w, err := files.Create(path)
	if err != nil {
		return err
	}
	var buf []byte
	for at < end {
		fetched, err := client.Fetch(ctx, kafkaclient.Request{Topic: topic, Partition: partition, Offset: at, MinBytes: 1, MaxBytes: 2 << 20, MaxWait: time.Second})
		if err != nil {
			return err
		}
		buf = buf[:0]
		at, err = fetched.Each(func(_ int64, r *recordbatch.Record) error {
			buf = append(append(buf, r.Value...), '\n')
			return nil
		}, nil)
		if err != nil {
			return err
		}
		if _, err := w.Write(buf); err != nil {
			return err
		}
	}
	for err = w.Close(); hdfs.IsErrReplicating(err); err = w.Close() {
		time.Sleep(10 * time.Millisecond)
	}
	return err
}
