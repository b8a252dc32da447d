package kafkaclient

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/compress"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

func produce(t *testing.T, cluster *kfake.Cluster, records ...*kgo.Record) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchMaxBytes(16<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

// TestFetchFromAsksForManyAtOnce: one request brings the records of all partitions of a broker,
// each with its own error, and what they take is reserved while they are held.
func TestFetchFromAsksForManyAtOnce(t *testing.T) {
	const partitions = 300
	cluster := newFake(t, kfake.NumBrokers(1), kfake.SeedTopics(partitions, "many"), kfake.SeedTopics(1, "other"))
	var records []*kgo.Record
	for p := range int32(partitions) {
		records = append(records, &kgo.Record{Topic: "many", Partition: p, Value: fmt.Appendf(nil, "of %d", p)})
	}
	produce(t, cluster, append(records, &kgo.Record{Topic: "other", Value: []byte("other")})...)
	var fetches atomic.Int32
	cluster.ControlKey(kmsg.Fetch.Int16(), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		fetches.Add(1)
		return nil, nil, false
	})
	client := New(cluster.ListenAddrs(), "test", Access{})
	defer client.Close()
	leader, err := client.Leader(t.Context(), "many", 0)
	if err != nil {
		t.Fatal(err)
	}
	request := MultiRequest{Broker: leader, MinBytes: 1, MaxBytes: 10 << 20, MaxWait: time.Second, Partitions: []Want{{"other", 0, 0, 1 << 20}, {"other", 1, 0, 1 << 20}}}
	for p := range partitions {
		request.Partitions = append(request.Partitions, Want{"many", p, 0, 1 << 20})
	}
	request.Partitions[2].Offset = 77 // which there is not
	held, most := int64(0), int64(0)
	request.Reserve = func(_ context.Context, n int64) (func(), error) {
		held += n
		most = max(most, held)
		return func() { held -= n }, nil
	}
	got := make(map[int]string)
	if throttle, err := client.FetchFrom(t.Context(), request, func(i int, f *Fetched, err error) {
		if err != nil {
			got[i] = err.Error()
			return
		}
		next, err := f.Each(func(_ int64, r *recordbatch.Record) error {
			got[i] += string(r.Value)
			return nil
		}, nil)
		if err != nil || next != f.Next || next != 1 || f.HighWatermark != 1 || f.Stable != 1 || f.First != 0 {
			t.Errorf("partition %d: next %d, %+v, %v", i, next, f, err)
		}
	}); err != nil || throttle != 0 {
		t.Fatal(throttle, err)
	}
	if got[0] != "other" || got[1] != kafka.UnknownTopicOrPartition.Error() || got[2] != kafka.OffsetOutOfRange.Error() || got[partitions+1] != fmt.Sprint("of ", partitions-1) || len(got) != partitions+2 {
		t.Errorf("got %d: %q, %q, %q", len(got), got[0], got[1], got[2])
	}
	if n := fetches.Load(); n != 1 {
		t.Errorf("%d requests", n)
	}
	if held != 0 || most < 512 || most > 4<<10 {
		t.Errorf("%d bytes were reserved at most, %d are", most, held)
	}
}

// TestThrottledFetch: brokers that throttle answer at once about no partition.
func TestThrottledFetch(t *testing.T) {
	cluster := newFake(t)
	cluster.ControlKey(kmsg.Fetch.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
		answer := r.ResponseKind().(*kmsg.FetchResponse)
		answer.ThrottleMillis = 30
		return answer, nil, true
	})
	client := New(cluster.ListenAddrs(), "test", Access{})
	defer client.Close()
	leader, err := client.Leader(t.Context(), "t", 0)
	if err != nil {
		t.Fatal(err)
	}
	throttle, err := client.FetchFrom(t.Context(), MultiRequest{Broker: leader, MaxWait: time.Second, Partitions: []Want{{"t", 0, 0, 1000}}},
		func(int, *Fetched, error) { t.Error("there is no part") })
	if throttle != 30*time.Millisecond || err != nil {
		t.Errorf("throttled for %s, %v; want 30ms", throttle, err)
	}
}

// TestFetchWaitsForItsThrottle: a fetch of one partition has an answer although the first one was
// throttled.
func TestFetchWaitsForItsThrottle(t *testing.T) {
	cluster := newFake(t)
	produce(t, cluster, &kgo.Record{Topic: "t", Value: []byte("a")})
	cluster.ControlKey(kmsg.Fetch.Int16(), func(r kmsg.Request) (kmsg.Response, error, bool) {
		answer := r.ResponseKind().(*kmsg.FetchResponse)
		answer.ThrottleMillis = 30
		return answer, nil, true
	})
	client := New(cluster.ListenAddrs(), "test", Access{})
	defer client.Close()
	f, err := client.Fetch(t.Context(), Request{Topic: "t", MinBytes: 1, MaxBytes: 1000, MaxWait: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Release()
	if f.HighWatermark != 1 {
		t.Errorf("%+v", f)
	}
}

// liar is a connection to a broker that answers a fetch with bytes of its own.
type liar struct {
	io.Reader
	deadline time.Time
}

func (l *liar) Write(b []byte) (int, error)    { return len(b), nil }
func (l *liar) SetDeadline(at time.Time) error { l.deadline = at; return nil }

// TestLengthsAreNotBelieved: memory grows with what comes.
func TestLengthsAreNotBelieved(t *testing.T) {
	be := binary.BigEndian
	part := func(size uint32, rest ...byte) []byte {
		b := be.AppendUint32(nil, 1<<30)      // the answer
		b = be.AppendUint32(b, 5)             // correlation
		b = be.AppendUint32(b, 0)             // throttle
		b = append(b, 0, 0, 0, 0, 0, 0)       // error, session
		b = append(b, 0, 0, 0, 1, 0, 1, 't')  // topics
		b = append(b, 0, 0, 0, 1, 0, 0, 0, 0) // partitions
		b = append(b, 0, 0)                   // error
		b = append(b, make([]byte, 3*8)...)   // offsets
		b = append(b, 255, 255, 255, 255)     // aborted
		b = append(b, 255, 255, 255, 255)     // replica
		b = be.AppendUint32(b, size)          // records
		return append(b, rest...)
	}
	for name, b := range map[string][]byte{
		"an answer of 1 GiB":        be.AppendUint32(nil, 1<<30),
		"an answer of -1":           be.AppendUint32(nil, 1<<32-1),
		"records of 1 GiB":          part(1 << 30),
		"records of 100 MiB":        part(100<<20, make([]byte, 100)...),
		"an HTTP server":            []byte("HTTP/1.1 400 Bad Request\r\n"),
		"many aborted transactions": slices.Replace(part(0), 59, 63, 0x7f, 0xff, 0xff, 0xff),
	} {
		var err error
		bytes := allocated(func() {
			f := &fetch{ctx: t.Context(), request: &MultiRequest{MaxWait: time.Second, Partitions: []Want{{"t", 0, 0, 1000}}}, correlation: 5, version: 11,
				buffers: &bufferPool{}, got: func(int, *Fetched, error) { t.Errorf("%s: a part", name) }}
			_, err = f.RawExchange(&liar{Reader: bytesReader(b)})
		})
		if err == nil || bytes > 2<<20 {
			t.Errorf("%s: %v, %d bytes allocated", name, err, bytes)
		}
	}
}

func bytesReader(b []byte) io.Reader { return io.LimitReader(&repeat{b: b}, int64(len(b))) }

// repeat reads b once.
type repeat struct{ b []byte }

func (r *repeat) Read(b []byte) (int, error) {
	n := copy(b, r.b)
	r.b = r.b[n:]
	return n, nil
}

// TestOversizedBatchIsPassed: a batch above all bounds is stepped over without being read into
// memory.
func TestOversizedBatchIsPassed(t *testing.T) {
	head := make([]byte, headerBytes)
	binary.BigEndian.PutUint64(head, 10)
	const size = 200 << 20
	binary.BigEndian.PutUint32(head[8:], size-frameBytes)
	head[magicAt] = 2
	binary.BigEndian.PutUint32(head[23:], 4)
	f := &Fetched{position: 12}
	a := &answer{reader: io.MultiReader(bytesReader(head), io.LimitReader(zeroReader{}, size)), fetch: &fetch{ctx: t.Context()}, left: size}
	if bytes := allocated(func() {
		if err := a.records(f, size); err != nil || a.left != 0 {
			t.Error(err, a.left)
		}
	}); bytes > 1<<20 {
		t.Errorf("%d bytes allocated", bytes)
	}
	if f.end() != 15 {
		t.Errorf("goes on at %d", f.end())
	}
	if got, next, err := read(f); fmt.Sprint(got) != "[[12,15) is bad]" || next != 15 || err != nil {
		t.Errorf("got %q, then %d, %v", got, next, err)
	}
}

type zeroReader struct{}

func (zeroReader) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// TestFetchEndsWithItsContext: also when the broker never answers, and when the memory for what
// comes is never there; nothing is handed over after that.
func TestFetchEndsWithItsContext(t *testing.T) {
	cluster := newFake(t)
	produce(t, cluster, &kgo.Record{Topic: "t", Value: []byte("a")})
	client := New(cluster.ListenAddrs(), "test", Access{})
	defer client.Close()
	leader, err := client.Leader(t.Context(), "t", 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, offset := range map[string]int64{"no records": 1, "no memory": 0} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		began := time.Now()
		_, err := client.FetchFrom(ctx, MultiRequest{Broker: leader, MinBytes: 1, MaxBytes: 1000, MaxWait: time.Minute, Partitions: []Want{{"t", 0, offset, 1000}},
			Reserve: func(ctx context.Context, _ int64) (func(), error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}}, func(int, *Fetched, error) { t.Error("there is no part") })
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 30*time.Second {
			t.Errorf("%s: %v after %s", name, err, time.Since(began))
		}
		cancel()
	}
}

// FuzzAnswer reads any answer to a fetch.
func FuzzAnswer(f *testing.F) {
	set := encode(f, compress.None, 1, text("a"))
	f.Add([]byte{0, 0, 0, 1, 0, 1, 't', 0, 0, 0, 1}, set)
	f.Fuzz(func(t *testing.T, b, set []byte) {
		all := binary.BigEndian.AppendUint32(nil, uint32(len(b)+len(set)+14))
		all = append(all, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
		all = append(append(all, b...), set...)
		x := &fetch{ctx: t.Context(), request: &MultiRequest{Partitions: []Want{{"t", 0, 0, 1000}}}, correlation: 5, version: 11, buffers: &bufferPool{},
			got: func(_ int, f *Fetched, err error) {
				if err == nil {
					_, _, _ = read(f)
				}
			}}
		if bytes := allocated(func() { _, _ = x.RawExchange(&liar{Reader: bytesReader(all)}) }); bytes > 64<<20 {
			t.Errorf("%d bytes allocated for %d", bytes, len(all))
		}
	})
}
