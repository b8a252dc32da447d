package ingest

import (
	"fmt"
	"log/slog"
	"maps"
	"net"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/race"
)

// load counts what a fake Kafka is asked, by API key, and how many connections it has.
type load struct {
	connections atomic.Int64
	mu          sync.Mutex
	requests    map[int16]int
}

func (l *load) listen(network, address string) (net.Listener, error) {
	lis, err := net.Listen(network, address)
	return &countingListener{lis, l}, err
}

type countingListener struct {
	net.Listener
	load *load
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.load.connections.Add(1)
		c = &countedConn{Conn: c, load: l.load}
	}
	return c, err
}

type countedConn struct {
	net.Conn
	load *load
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.load.connections.Add(-1) })
	return c.Conn.Close()
}

// take returns the requests since the last call.
func (l *load) take() map[int16]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.requests
	l.requests = make(map[int16]int)
	return was
}

func sum(requests map[int16]int) (n int) {
	for count := range maps.Values(requests) {
		n += count
	}
	return n
}

// used is the memory that is in use after a collection, with stacks.
func used() int64 {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// processorTime is what this process has used.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestTenThousandPartitions reads 10,000 partitions, by one source and by 100. Requests,
// connections, goroutines and memory follow the number of sources and brokers; a partition costs
// a goroutine and some memory; and a record costs what it costs beside no other partition.
func TestTenThousandPartitions(t *testing.T) {
	race.Apart(t)
	const (
		memory = 32 * config.MiB
		busy   = 50_000
		spread = 10 // records for each partition
	)
	var alone time.Duration // processor time of a record of the one partition
	for _, test := range []struct{ sources, partitions int }{{1, 1}, {1, 10_000}, {100, 100}} {
		t.Run(fmt.Sprintf("%d sources of %d partitions", test.sources, test.partitions), func(t *testing.T) {
			var topics []string
			for i := range test.sources {
				topics = append(topics, fmt.Sprintf("t%d", i))
			}
			all := test.sources * test.partitions
			l := &load{requests: make(map[int16]int)}
			fake, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(int32(test.partitions), topics...), kfake.ListenFn(l.listen))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(fake.Close)
			client, err := kgo.NewClient(kgo.SeedBrokers(fake.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.MaxBufferedRecords(1<<20))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(client.Close)
			c, b := &cluster{t, fake, client}, startBuffer(t)
			c.one("t0", 0, "the first")
			fake.Control(func(r kmsg.Request) (kmsg.Response, error, bool) {
				fake.KeepControl()
				l.mu.Lock()
				defer l.mu.Unlock()
				if r.Key() != kmsg.Produce.Int16() {
					l.requests[r.Key()]++
				}
				return nil, nil, false
			})
			sources := make(map[string]*config.Source)
			for i, name := range topics {
				s := c.source(name)
				s.Group, s.Batch = "g"+name, config.Batch{Records: 1000, Bytes: config.MiB, Linger: 50 * time.Millisecond}
				sources[fmt.Sprint("s", i)] = s
			}
			start := func() *instance {
				s, err := New(config.Ingest{Memory: memory, Sources: sources}, []string{b.addr}, Deps{Log: slog.New(slog.DiscardHandler), Instance: "test"})
				if err != nil {
					t.Fatal(err)
				}
				return runInstance(t, s)
			}
			atEnd := func(s *instance) func() bool {
				return func() bool {
					n := 0
					for _, source := range s.sources {
						n += source.atEnd()
					}
					return n == all
				}
			}
			connections, goroutines, heap := l.connections.Load(), runtime.NumGoroutine(), used()
			l.take()
			s := start()
			waitFor(t, "all partitions to be at their end", atEnd(s))
			// Lookups for a whole source at a time, a few of them while others are under way.
			if got := l.take(); got[kmsg.ListOffsets.Int16()] > 10*test.sources+all/200 || got[kmsg.OffsetFetch.Int16()] > 2*test.sources {
				t.Errorf("requests by key until all partitions were at their end: %v", got)
			}

			// Idle.
			time.Sleep(warmTime + time.Second)
			l.take()
			began, before := time.Now(), processorTime()
			time.Sleep(3 * time.Second)
			seconds := time.Since(began).Seconds()
			idle := (processorTime() - before).Seconds() / seconds
			got := l.take()
			if most := int(float64(test.sources) * (3 + 4*seconds)); sum(got) > most {
				t.Errorf("%d requests in %.1f s of no records, want %d at most: %v", sum(got), seconds, most, got)
			}
			if n, most := l.connections.Load()-connections, int64(8*test.sources); n > most {
				t.Errorf("%d connections, want %d at most", n, most)
			}
			// Each connection has two more at the fake, and each stream some at the fake buffer.
			if n, most := runtime.NumGoroutine()-goroutines, all+60*test.sources; n > most {
				t.Errorf("%d goroutines, want %d at most", n, most)
			}
			// The fakes have their part of this, too.
			const perPartition, perSourceBytes = 16 << 10, 1 << 20
			grown, most := used()-heap, int64(memory)+int64(all)*perPartition+int64(test.sources)*perSourceBytes
			if grown > most {
				t.Errorf("%d MiB of memory, want %d MiB at most", grown>>20, most>>20)
			}
			t.Logf("idle: %.1f requests a second, %d connections, %d goroutines, %d KiB, %.3f of a processor",
				float64(sum(got))/seconds, l.connections.Load()-connections, runtime.NumGoroutine()-goroutines, grown>>10, idle)

			// All records in one partition, then all over all of them.
			// They are read when they are there, so that batches are the same whatever the
			// machine does, and only the reading is measured.
			read := func(records []*kgo.Record) (each time.Duration, extra time.Duration) {
				want := b.count() + len(records)
				for _, source := range s.sources {
					source.gate.set(true)
				}
				c.produce(records...)
				began, before := time.Now(), processorTime()
				for _, source := range s.sources {
					source.gate.set(false)
				}
				waitFor(t, "the records", func() bool { return b.count() == want })
				took, resting := processorTime()-before, time.Duration(idle*float64(time.Since(began)))
				return took / time.Duration(len(records)), 2 * resting / time.Duration(len(records))
			}
			value := make([]byte, 200)
			var records []*kgo.Record
			for range busy {
				records = append(records, &kgo.Record{Topic: "t0", Value: value})
			}
			one, extra := read(records)
			if alone == 0 {
				alone = one
			}
			// The fakes have their part of it, too, and garbage of before may be collected now.
			for again := 0; again < 2 && one > 3*alone+extra; again++ {
				one, extra = read(records)
			}
			if one > 3*alone+extra {
				t.Errorf("a record costs %s beside idle partitions, and %s without", one, alone)
			}
			records = records[:0]
			for i := range max(all*spread, busy) {
				records = append(records, &kgo.Record{Topic: topics[i%len(topics)], Partition: int32(i / len(topics) % test.partitions), Value: value})
			}
			everywhere, more := read(records)
			t.Logf("a record costs %s in one partition, and %s spread over all; %s without the others", one, everywhere, alone)
			if everywhere > 20*alone+more { // with batches of 10 records instead of 1000
				t.Errorf("a record costs %s spread over %d partitions, and %s in one", everywhere, all, alone)
			}

			// Again, with records that are known: each partition has one to be compared.
			s.stop()
			l.take()
			s = start()
			waitFor(t, "all partitions to be at their end again", atEnd(s))
			if got := l.take(); got[kmsg.Fetch.Int16()] > 40*test.sources+all/20 || got[kmsg.ListOffsets.Int16()] > all/200 {
				t.Errorf("requests by key until all partitions were at their end again: %v", got)
			}
			if n, want := b.count(), 1+busy+max(all*spread, busy); n != want {
				t.Errorf("%d records, want %d", n, want)
			}
			if most := slices.Max([]int64{0, s.memory[0].held()}); most > int64(memory) {
				t.Errorf("%d bytes are held", most)
			}
		})
	}
}
