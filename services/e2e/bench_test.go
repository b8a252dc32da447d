package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strconv"
	"testing"
	"time"

	"github.com/colinmarc/hdfs/v2"
	"github.com/segmentio/kafka-go"
	"golang.org/x/sync/errgroup"

	"github.com/spillwayio/spillway/services/internal/kafkaclient"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

var (
	benchRecords = flag.Int("bench.records", 500_000, "records that BenchmarkPipeline delivers in each round")
	benchRounds  = flag.Int("bench.rounds", 2, "rounds of BenchmarkPipeline; the first also warms up the virtual machines of Kafka and HDFS")
)

// BenchmarkPipeline takes records of 200 bytes from a real Kafka to a real HDFS; an operation is
// all of them.
//
//	bare      one process, without any guarantee: fetch as ingest does, append a line, close the file at the end
//	client    the same with kafka-go's Client.Fetch
//	reader    the same with kafka-go's Reader
//	hdfs      Spillway, with HDFS as the only destination
//	two       the same with two instances of the delivery
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
	for i := range *benchRounds {
		round := strconv.Itoa(i + 1)
		b.Run("bare/"+round, func(b *testing.B) { benchBare(b, topic, fetchOwn) })
		b.Run("client/"+round, func(b *testing.B) { benchBare(b, topic, fetchClient) })
		b.Run("reader/"+round, func(b *testing.B) { benchBare(b, topic, fetchReader) })
		b.Run("hdfs/"+round, func(b *testing.B) { benchPipeline(b, topic, stack.kafka, false, 1) })
		b.Run("one/"+round, func(b *testing.B) { benchOneProcess(b, topic) })
		b.Run("two/"+round, func(b *testing.B) { benchPipeline(b, topic, stack.kafka, false, 2) })
		b.Run("both/"+round, func(b *testing.B) { benchPipeline(b, topic, stack.kafka, true, 1) })
		b.Run("outage/"+round, func(b *testing.B) { benchPipeline(b, topic, secondBroker(b), true, 1) })
		b.Run("kafka/"+round, func(b *testing.B) { benchKafka(b, topic) })
		b.Run("once/"+round, func(b *testing.B) {
			benchKafka(b, topic, `topic: "out-%{topic}"}`, `topic: "out-%{topic}", exactly_once: true}`)
		})
	}
}

func benchKafka(b *testing.B, topic string, edit ...string) {
	p := newPipeline(b, stack.kafka, edit...)
	p.rewrite(fmt.Sprintf("topics: [%q]", p.topic), fmt.Sprintf("topics: [%q]", topic), // the group stays its own
		"      memory: {records: 50000, bytes: 64MiB}\n", "",
		`hdfs: {topics: ["*"]`, `hdfs: {topics: ["none"]`, "out-", p.out+"-") // to a topic of this round
	for _, s := range []*service{p.buffer, p.kafka} {
		s.start()
		s.waitReady()
	}
	b.ResetTimer()
	p.ingest.start()
	poll(b, 50*time.Millisecond, 5*time.Minute, "everything is in Kafka", func() error { return p.settled(*benchRecords, "test") })
	b.StopTimer()
	b.ReportMetric(float64(*benchRecords)/b.Elapsed().Seconds(), "records/s")
}

func benchPipeline(b *testing.B, topic string, target broker, second bool, instances int) {
	p := newPipeline(b, target)
	p.rewrite(fmt.Sprintf("topics: [%q]", p.topic), fmt.Sprintf("topics: [%q]", topic), // the group stays its own
		"      memory: {records: 50000, bytes: 64MiB}\n", "", "size: 8MiB", "size: 127MiB") // the window and the files of a test are small
	if !second {
		p.rewrite(`test: {topics: ["*"]`, `test: {topics: ["none"]`)
	}
	running := []*service{p.buffer, p.hdfs}
	for i := range instances - 1 {
		running = append(running, p.replica(p.hdfs, i+2))
	}
	for _, s := range running {
		s.start()
		s.waitReady()
	}
	running = append(running, p.ingest)
	if second {
		running = append(running, p.kafka)
		p.kafka.start()
		if target == stack.kafka {
			p.kafka.waitReady()
		}
	}
	b.ResetTimer()
	p.ingest.start()
	poll(b, 50*time.Millisecond, 5*time.Minute, "everything is in HDFS", func() error { return p.settled(*benchRecords, "hdfs") })
	b.StopTimer()
	b.ReportMetric(float64(*benchRecords)/b.Elapsed().Seconds(), "records/s")
	for _, s := range running {
		_, peak := s.memoryBytes()
		b.ReportMetric(float64(peak>>20), s.name+"-MiB")
	}
	for _, s := range running {
		s.kill()
	}
	removeFiles(b, "/e2e/"+topic)
}

// benchOneProcess is benchPipeline with all in one process, whose start is in the time as well.
func benchOneProcess(b *testing.B, topic string) {
	p := newPipeline(b, stack.kafka)
	p.rewrite(fmt.Sprintf("topics: [%q]", p.topic), fmt.Sprintf("topics: [%q]", topic),
		"      memory: {records: 50000, bytes: 64MiB}\n", "", "size: 8MiB", "size: 127MiB", `test: {topics: ["*"]`, `test: {topics: ["none"]`)
	all := newService(b, p.dir, "run", "run", "-c", p.config)
	b.ResetTimer()
	all.start()
	poll(b, 50*time.Millisecond, 5*time.Minute, "everything is in HDFS", func() error { return p.settled(*benchRecords, "hdfs") })
	b.StopTimer()
	b.ReportMetric(float64(*benchRecords)/b.Elapsed().Seconds(), "records/s")
	_, peak := all.memoryBytes()
	b.ReportMetric(float64(peak>>20), "run-MiB")
	all.kill()
	removeFiles(b, "/e2e/"+topic)
}

// removeFiles spares the next round the writing of what lies in the page cache.
func removeFiles(b *testing.B, dir string) {
	if err := hdfsClient(b).RemoveAll(dir); err != nil {
		b.Fatal(err)
	}
	time.Sleep(5 * time.Second) // the DataNode hears of it with a heartbeat
}

// benchBare is what the libraries give: a fetch loop and a file for every partition.
func benchBare(b *testing.B, topic string, fetch fetch) {
	client := kafkaclient.New([]string{stack.kafka.addr()}, "bare", kafkaclient.Access{})
	defer client.Close()
	files := hdfsClient(b)
	dir := fmt.Sprintf("/bare/%d", time.Now().UnixNano())
	if err := files.MkdirAll(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	var g errgroup.Group
	for partition := range partitions {
		g.Go(func() error {
			return bareLoop(context.Background(), client, files, fetch, topic, partition, fmt.Sprintf("%s/%d", dir, partition))
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	b.ReportMetric(float64(*benchRecords)/b.Elapsed().Seconds(), "records/s")
	removeFiles(b, dir)
}

// fetch calls yield with the values of a partition from one offset up to another.
type fetch func(ctx context.Context, topic string, partition int, at, end int64, yield func(value []byte) error) error

func bareLoop(ctx context.Context, client *kafkaclient.Client, files *hdfs.Client, fetch fetch, topic string, partition int, path string) error {
	at, end, err := client.Offsets(ctx, topic, partition)
	if err != nil {
		return err
	}
	w, err := files.Create(path)
	if err != nil {
		return err
	}
	buf := bufio.NewWriterSize(w, 2<<20)
	err = fetch(ctx, topic, partition, at, end, func(value []byte) error {
		_, err := buf.Write(value)
		return errors.Join(err, buf.WriteByte('\n'))
	})
	if err := errors.Join(err, buf.Flush()); err != nil {
		return err
	}
	for err = w.Close(); hdfs.IsErrReplicating(err); err = w.Close() {
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

// fetchOwn fetches as ingest does, below kafka-go's readers of records.
func fetchOwn(ctx context.Context, topic string, partition int, at, end int64, yield func([]byte) error) error {
	client := kafkaclient.New([]string{stack.kafka.addr()}, "bare", kafkaclient.Access{})
	defer client.Close()
	for at < end {
		fetched, err := client.Fetch(ctx, kafkaclient.Request{Topic: topic, Partition: partition, Offset: at, MinBytes: 1, MaxBytes: 2 << 20, MaxWait: time.Second})
		if err != nil {
			return err
		}
		if at, err = fetched.Each(func(_ int64, r *recordbatch.Record) error { return yield(r.Value) }, nil); err != nil {
			return err
		}
	}
	return nil
}

// fetchClient is kafka-go's Client.Fetch.
func fetchClient(ctx context.Context, topic string, partition int, at, end int64, yield func([]byte) error) error {
	client := &kafka.Client{Addr: kafka.TCP(stack.kafka.addr()), Timeout: 30 * time.Second}
	var value bytes.Buffer
	return clientFetch(ctx, client, topic, partition, at, end, func(r *kafka.Record) error {
		value.Reset()
		if _, err := value.ReadFrom(r.Value); err != nil {
			return err
		}
		return errors.Join(r.Value.Close(), yield(value.Bytes()))
	})
}

// clientFetch calls each with the records of a partition from one offset up to another, as
// kafka-go's Client.Fetch has them.
func clientFetch(ctx context.Context, client *kafka.Client, topic string, partition int, at, end int64, each func(*kafka.Record) error) error {
	for at < end {
		answer, err := client.Fetch(ctx, &kafka.FetchRequest{Topic: topic, Partition: partition, Offset: at,
			MinBytes: 1, MaxBytes: 2 << 20, MaxWait: time.Second, IsolationLevel: kafka.ReadCommitted})
		if err == nil {
			err = answer.Error
		}
		if err != nil {
			return err
		}
		for {
			r, err := answer.Records.ReadRecord()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			if err := each(r); err != nil {
				return err
			}
			at = r.Offset + 1
		}
	}
	return nil
}

// fetchReader is kafka-go's Reader, which most of its users have.
func fetchReader(ctx context.Context, topic string, partition int, at, end int64, yield func([]byte) error) error {
	r := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{stack.kafka.addr()}, Topic: topic, Partition: partition, MinBytes: 1, MaxBytes: 2 << 20, QueueCapacity: 10_000})
	defer r.Close()
	err := r.SetOffset(at)
	for err == nil && at < end {
		var m kafka.Message
		if m, err = r.ReadMessage(ctx); err == nil {
			at, err = m.Offset+1, yield(m.Value)
		}
	}
	return err
}
