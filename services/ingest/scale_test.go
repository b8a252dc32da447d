package ingest

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"google.golang.org/grpc/codes"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/race"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// fetchCounter counts fetches, and the partitions that they name.
type fetchCounter struct{ requests, named, offsets atomic.Int64 }

func (c *cluster) countFetches() *fetchCounter {
	n := new(fetchCounter)
	c.fake.ControlKey(kmsg.Fetch.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		n.requests.Add(1)
		for _, t := range r.(*kmsg.FetchRequest).Topics {
			n.named.Add(int64(len(t.Partitions)))
		}
		return nil, nil, false
	})
	c.fake.ControlKey(kmsg.ListOffsets.Int16(), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		n.offsets.Add(1)
		return nil, nil, false
	})
	return n
}

func (f *fakeBuffer) count() (n int) {
	f.set(func() {
		for _, p := range f.partitions {
			n += len(p.records)
		}
	})
	return n
}

// atEnd counts the partitions of which a fetch has found no record.
func (s *source) atEnd() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.partitions {
		if p.asked.Load() > 0 {
			n++
		}
	}
	return n
}

// TestIdlePartitionsCostNothing has one busy partition beside many that are idle, in few sources
// and in many: no reading waits for the idle ones, and the fetches do not name them over and
// over.
func TestIdlePartitionsCostNothing(t *testing.T) {
	race.Apart(t)
	var alone time.Duration
	for _, test := range []struct{ sources, partitions int }{{1, 1}, {1, 16}, {6, 16}, {1, 1000}} {
		t.Run(fmt.Sprintf("%d sources of %d partitions", test.sources, test.partitions), func(t *testing.T) {
			var topics []string
			for i := range test.sources {
				topics = append(topics, fmt.Sprintf("t%d", i))
			}
			c, b := startKafka(t, int32(test.partitions), topics...), startBuffer(t)
			fetches := c.countFetches()
			sources := make(map[string]*config.Source)
			for i, name := range topics {
				s := c.source(name)
				s.Group, s.Batch = "g"+name, config.Batch{Records: 1000, Bytes: config.MiB, Linger: 50 * time.Millisecond}
				sources[fmt.Sprint("s", i)] = s
			}
			s := c.ingestAll(b, sources)
			waitFor(t, "all partitions to be at their end", func() bool {
				n := 0
				for _, source := range s.sources {
					n += source.atEnd()
				}
				return n == test.sources*test.partitions
			})
			time.Sleep(warmTime) // no partition had records lately
			idleRequests := fetches.requests.Load()
			began := time.Now()
			time.Sleep(2 * time.Second)
			if n, most := fetches.requests.Load()-idleRequests, int64(float64(test.sources)*(3+2*time.Since(began).Seconds())); n > most {
				t.Errorf("%d fetches in %s of no records, want %d at most", n, time.Since(began), most)
			}

			const records = 240
			value := make([]byte, 100_000)
			_, _ = rand.Read(value)
			named := fetches.named.Load()
			began = time.Now()
			for range records / 8 {
				var some []*kgo.Record
				for range 8 {
					some = append(some, &kgo.Record{Topic: "t0", Value: value})
				}
				c.produce(some...)
			}
			waitFor(t, "the records", func() bool { return b.count() == records })
			took := time.Since(began)
			t.Logf("%d MB took %s; %d partitions were named in fetches", records/10, took, fetches.named.Load()-named)
			if alone == 0 {
				alone = took
			} else if most := 6*alone + 3*time.Second; took > most {
				t.Errorf("it took %s, and %s without idle partitions", took, alone)
			}
			// Idle partitions are named at most four times a second, whatever the busy one does.
			if n, most := fetches.named.Load()-named, int64(float64(test.sources*test.partitions)*(4+4*took.Seconds()))+3*records; n > most {
				t.Errorf("%d partitions were named in fetches, want %d at most", n, most)
			}
		})
	}
}

// TestRefusedBatchesAreKept: while the queue is full nothing is fetched that was fetched before,
// and what is sent again is little; after that everything is there once.
func TestRefusedBatchesAreKept(t *testing.T) {
	const parts = 8
	c, b := startKafka(t, parts, topic), startBuffer(t)
	fetches := c.countFetches()
	records := func(from int) []*kgo.Record {
		all := numbered(6*parts, parts, from)
		for _, r := range all {
			r.Value = append(r.Value, make([]byte, 50_000)...)
		}
		return all
	}
	s := c.ingest(b)
	c.produce(records(0)...)
	checkOnce(t, b, 6*parts)
	const retry = 300 * time.Millisecond
	b.set(func() { b.refuse = rpc.Error(codes.ResourceExhausted, "QUEUE_FULL", retry, "full") })
	c.produce(records(1000)...)
	source := s.sources[0]
	waitFor(t, "all partitions to be refused", func() bool {
		source.full.mu.Lock()
		defer source.full.mu.Unlock()
		return len(source.full.in) == parts
	})
	before, offsets, began := fetches.named.Load(), fetches.offsets.Load(), time.Now()
	refused := b.refusals()
	time.Sleep(3 * time.Second)
	// What could not be kept, because it would take more than half of the memory, is fetched
	// again seldom.
	if n := fetches.named.Load() - before; n > 3*parts {
		t.Errorf("%d partitions were fetched in 3 s of a full queue", n)
	}
	if n := fetches.offsets.Load() - offsets; n > 0 {
		t.Errorf("%d lookups of offsets", n)
	}
	if n, most := b.refusals()-refused, int(time.Since(began)/retry+2)*parts; n > most || n == 0 {
		t.Errorf("%d batches were sent again, want some and %d at most", n, most)
	}
	if kept := source.memory.kept.Load(); kept == 0 || kept > source.memory.batches.limit/2+300_000 {
		t.Errorf("%d bytes are kept", kept)
	}
	b.set(func() { b.refuse = nil })
	checkOnce(t, b, 12*parts)
	waitFor(t, "the memory to be given back", func() bool { return source.memory.held() == 0 && source.memory.kept.Load() == 0 })
	waitFor(t, "the trouble to be over", func() bool { return source.full.err() == nil })
}

// TestMemoryIsBounded has a buffer that answers nothing: what arrives stops at the configured
// memory, whatever waits in Kafka.
func TestMemoryIsBounded(t *testing.T) {
	c, b := startKafka(t, 40, "busy"), startBuffer(t)
	value := make([]byte, 300_000)
	_, _ = rand.Read(value)
	for i := range int32(200) {
		c.produce(&kgo.Record{Topic: "busy", Partition: i % 40, Value: value})
	}
	stuck := c.source("busy")
	stuck.Queue = "stuck"
	s := c.ingestAll(b, map[string]*config.Source{"s": stuck})
	memory := s.sources[0].memory
	waitFor(t, "the memory to be used up", func() bool { return memory.arrived.pressed() || memory.batches.pressed() })
	fetches := c.countFetches()
	time.Sleep(time.Second)
	for name, part := range map[string]*budget{"arrived": memory.arrived, "unpacked": memory.unpacked, "batches": memory.batches} {
		if held := part.held(); held > part.limit {
			t.Errorf("%s: %d bytes, want %d at most", name, held, part.limit)
		}
	}
	before := fetches.requests.Load()
	time.Sleep(time.Second)
	if n := fetches.requests.Load() - before; n > 40 {
		t.Errorf("%d fetches a second that have no room", n)
	}
	s.stop()
	if held := memory.held(); held != 0 {
		t.Errorf("%d bytes are held after the end", held)
	}
}

// TestHeldPartitionHoldsNoOther: the buffer takes its time with a batch of one partition. The
// others go on, what waits is bounded, and after that everything is there once.
func TestHeldPartitionHoldsNoOther(t *testing.T) {
	const parts, each = 3, 60
	c, b := startKafka(t, parts, topic), startBuffer(t)
	b.held = map[int]bool{0: true}
	records := numbered(each*parts, parts, 0)
	for _, r := range records { // 12 MB a partition, with a memory of 8 MiB
		r.Value = append(r.Value, make([]byte, 200_000)...)
	}
	c.produce(records...)
	s := c.ingest(b).sources[0]
	waitFor(t, "the records of the others, and a batch of the one that is held", func() bool {
		some := false
		b.set(func() { some = b.lateBytes > 0 })
		return some && b.count() == each*(parts-1)
	})
	if n := len(b.records(topic)[0]); n != 0 {
		t.Errorf("%d records of the partition that is held", n)
	}
	b.set(func() {
		if most := int(s.memory.batches.limit/4) + 300_000; b.lateBytes > most {
			t.Errorf("%d bytes were under way for the partition that is held, want %d at most", b.lateBytes, most)
		}
		b.held = nil
	})
	c.produce(numbered(parts, parts, 1000)...) // the others' next request has the held ones answered
	checkOnce(t, b, each*parts+parts)
	waitFor(t, "the memory to be given back", func() bool { return s.memory.held() == 0 })
}

// TestLargeCompressedBatches: batches come through that are larger than the memory for what
// arrives, and decompress to more than the memory for that, from two partitions and for two
// queues at a time.
func TestLargeCompressedBatches(t *testing.T) {
	c, b := startKafka(t, 2, topic), startBuffer(t)
	c.configure("max.message.bytes", "20000000")
	producer, err := kgo.NewClient(kgo.SeedBrokers(c.fake.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerBatchMaxBytes(64<<20), kgo.ProducerBatchCompression(kgo.ZstdCompression()), kgo.ProducerLinger(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	records := numbered(120, 2, 0)
	for _, r := range records { // 6 MB a partition; they have 2 and 0.5 MiB
		noise := make([]byte, 100_000)
		_, _ = rand.Read(noise)
		r.Value = append(r.Value, noise...)
	}
	if err := producer.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	first, second := c.source(), c.source()
	second.Group, second.Queue = "other", "other"
	s := c.ingestAll(b, map[string]*config.Source{"a": first, "b": second})
	waitFor(t, "all records", func() bool { return s.sources[0].records.Load()+s.sources[1].records.Load() >= 120 && b.count() == 120 })
	waitFor(t, "the memory to be given back", func() bool { return s.sources[0].memory.held()+s.sources[1].memory.held() == 0 })
}

// TestBombsAreDeadLettered: a batch that declares what it must not is dead-lettered once, and
// what comes after it is read.
func TestBombsAreDeadLettered(t *testing.T) {
	c, b := startKafka(t, 1, topic), startBuffer(t)
	var bomb []byte // zstd: runs of 128 KiB, in all 1 GiB
	bomb = append(bomb, 0x28, 0xb5, 0x2f, 0xfd, 0, 10<<3)
	for i := range 8 << 10 {
		const run, size = 1, 128 << 10
		h := uint32(size<<3 | run<<1)
		if i == 8<<10-1 {
			h |= 1
		}
		bomb = append(bomb, byte(h), byte(h>>8), byte(h>>16), 0)
	}
	snappy := append(binary.AppendUvarint(nil, 1<<31-1), 0, 0) // declares 2 GiB
	c.one(topic, 0, "first")
	fetched := make(map[int64]bool)
	c.fake.ControlKey(kmsg.Fetch.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		request := r.(*kmsg.FetchRequest)
		offset := request.Topics[0].Partitions[0].FetchOffset
		var set []byte
		switch offset {
		case 0:
			return nil, nil, false
		case 1:
			set = append(sealed(2, 1, 5, snappy), sealed(4, 6, 4, bomb)...)
		default:
			offset = 10
		}
		fetched[offset] = true
		answer := request.ResponseKind().(*kmsg.FetchResponse)
		at, ap := kmsg.NewFetchResponseTopic(), kmsg.NewFetchResponseTopicPartition()
		at.Topic, at.TopicID = request.Topics[0].Topic, request.Topics[0].TopicID
		ap.HighWatermark, ap.LastStableOffset, ap.RecordBatches = 10, 10, set
		at.Partitions = append(at.Partitions, ap)
		answer.Topics = append(answer.Topics, at)
		return answer, nil, true
	})
	s := c.ingest(b).sources[0]
	waitFor(t, "both bombs to be settled", func() bool { return len(b.settled(topic, 0)) == 2 })
	for i, want := range []string{"[1,6) OUTCOME_DEAD_LETTERED: record batch at offset 1 cannot be opened", "[6,10) OUTCOME_DEAD_LETTERED: record batch at offset 6 cannot be opened"} {
		if got := b.settled(topic, 0)[i]; !strings.HasPrefix(got, want) {
			t.Errorf("settled: %s", got)
		}
	}
	waitFor(t, "the memory to be given back", func() bool { return s.memory.held() == 0 })
}

// sealed is a record batch of version 2 around what is compressed.
func sealed(codec byte, base int64, records int, body []byte) []byte {
	const header = 61
	b := append(make([]byte, header), body...)
	binary.BigEndian.PutUint64(b, uint64(base))
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-12))
	b[16], b[22] = 2, codec
	binary.BigEndian.PutUint32(b[23:], uint32(records-1))
	binary.BigEndian.PutUint64(b[43:], ^uint64(0))
	binary.BigEndian.PutUint32(b[57:], uint32(records))
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// TestManyPartitionsAreAssigned: 1,000 partitions begin within the deadline of a wait, and their
// lookups of offsets are few for each.
func TestManyPartitionsAreAssigned(t *testing.T) {
	const parts = 1000
	c, b := startKafka(t, parts, topic), startBuffer(t)
	fetches := c.countFetches()
	for i := range 100 {
		c.one(topic, int32(i*10), "x")
	}
	began := time.Now()
	s, err := New(config.Ingest{Memory: 8 * config.MiB, Sources: map[string]*config.Source{"s": c.source()}}, []string{b.addr},
		Deps{Log: slog.New(slog.DiscardHandler), Instance: "test"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	waitFor(t, "the records", func() bool { return b.count() == 100 })
	t.Logf("%d partitions took %s", parts, time.Since(began))
	if n := fetches.offsets.Load(); n > parts/20 { // of those that ask while a request is under way
		t.Errorf("%d lookups of offsets for %d partitions", n, parts)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
