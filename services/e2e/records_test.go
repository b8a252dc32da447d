package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	partitions = 4
	recordSize = 200
)

// value is the content of record n: its number, and filling that depends on it.
func value(n int) []byte {
	b := fmt.Appendf(make([]byte, 0, recordSize), "%08d ", n)
	for i := len(b); i < recordSize; i++ {
		b = append(b, byte('a'+(n+i)%26))
	}
	return b
}

// numberOf is the number of a record, or an error when it is not the one that was written.
func numberOf(b []byte) (int, error) {
	first, _, _ := bytes.Cut(b, []byte(" "))
	n, err := strconv.Atoi(string(first))
	if err != nil || !bytes.Equal(b, value(n)) {
		return 0, fmt.Errorf("no record was written like %.40q (%d bytes)", b, len(b))
	}
	return n, nil
}

// newClient is a client of a broker; it is closed with the test.
func newClient(t testing.TB, b broker, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	// A broker under load tells of a topic some seconds after it was created.
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(b.addr()), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.UnknownTopicRetries(50)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func createTopic(t testing.TB, b broker, topic string, configs map[string]*string) {
	t.Helper()
	if _, err := kadm.NewClient(newClient(t, b)).CreateTopic(t.Context(), partitions, 1, configs, topic); err != nil {
		t.Fatalf("create topic %s: %v", topic, err)
	}
}

// producer writes numbered records over all partitions of a topic.
type producer struct {
	t       testing.TB
	client  *kgo.Client
	topic   string
	over    int // partitions
	written atomic.Int64
}

func newProducer(t testing.TB, b broker, topic string) *producer {
	t.Helper()
	return &producer{t: t, topic: topic, over: partitions, client: newClient(t, b, kgo.ProducerBatchCompression(kgo.Lz4Compression()))}
}

// produce writes the next n records, at most perSecond a second (0: as fast as it goes), and
// returns when Kafka has them all.
func (p *producer) produce(n, perSecond int) error {
	const chunk = 1000
	start := time.Now()
	for done := 0; done < n; done += chunk {
		if perSecond > 0 {
			due := start.Add(time.Duration(done) * time.Second / time.Duration(perSecond))
			select {
			case <-time.After(time.Until(due)):
			case <-p.t.Context().Done():
				return p.t.Context().Err()
			}
		}
		from := int(p.written.Load())
		records := make([]*kgo.Record, 0, chunk)
		for i := from; i < from+min(chunk, n-done); i++ {
			records = append(records, &kgo.Record{Topic: p.topic, Partition: int32(i % p.over), Value: value(i)})
		}
		if err := p.client.ProduceSync(context.WithoutCancel(p.t.Context()), records...).FirstErr(); err != nil {
			return fmt.Errorf("produce: %w", err)
		}
		p.written.Add(int64(len(records)))
	}
	return nil
}

// tally counts what arrived.
type tally struct {
	seen              []bool
	distinct, doubled int
	strange           []error // the first few
}

func newTally(n int) *tally { return &tally{seen: make([]bool, n)} }

func (y *tally) add(b []byte) {
	n, err := numberOf(b)
	switch {
	case err != nil || n >= len(y.seen):
		if len(y.strange) < 5 {
			y.strange = append(y.strange, fmt.Errorf("record %d: %w", n, err))
		}
	case y.seen[n]:
		y.doubled++
	default:
		y.seen[n] = true
		y.distinct++
	}
}

// missing is how many are missing and the first of them.
func (y *tally) missing() string {
	var first []string
	n := 0
	for i, seen := range y.seen {
		if !seen {
			if n++; len(first) < 10 {
				first = append(first, strconv.Itoa(i))
			}
		}
	}
	return fmt.Sprintf("%d missing: %s", n, strings.Join(first, " "))
}

// check fails when something is missing or strange, or doubled where that is not allowed.
func (y *tally) check(t testing.TB, where string, doubled bool) {
	t.Helper()
	t.Logf("%s: %d of %d records, %d doubled", where, y.distinct, len(y.seen), y.doubled)
	if y.distinct != len(y.seen) {
		t.Errorf("%s: %s", where, y.missing())
	}
	if y.doubled > 0 && !doubled {
		t.Errorf("%s: %d records are doubled", where, y.doubled)
	}
	if err := errors.Join(y.strange...); err != nil {
		t.Errorf("%s: %v", where, err)
	}
}

// readTopic reads all of a topic. It is empty when there is no such topic.
func readTopic(t testing.TB, b broker, topic string, each func(*kgo.Record)) {
	t.Helper()
	client := newClient(t, b, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	ends, err := kadm.NewClient(client).ListEndOffsets(t.Context(), topic)
	if err != nil {
		t.Fatalf("end offsets of %s: %v", topic, err)
	}
	left := 0
	at := make(map[int32]int64)
	ends.Each(func(o kadm.ListedOffset) {
		if o.Err == nil && o.Offset > 0 {
			at[o.Partition] = o.Offset
			left++
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for left > 0 {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			t.Fatalf("read %s: %v", topic, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			each(r)
			if r.Offset == at[r.Partition]-1 {
				left--
			}
		})
	}
}

func tallyTopic(t testing.TB, b broker, topic string, n int) *tally {
	t.Helper()
	y := newTally(n)
	readTopic(t, b, topic, func(r *kgo.Record) { y.add(r.Value) })
	return y
}
