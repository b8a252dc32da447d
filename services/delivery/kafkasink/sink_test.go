package kafkasink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

var (
	_ delivery.Sink     = (*Sink)(nil)
	_ delivery.Prober   = (*Sink)(nil)
	_ delivery.Troubled = (*Sink)(nil)
	_ io.Closer         = (*Sink)(nil)
)

const (
	troubleBegins = "cannot produce to Kafka; retrying"
	troubleOver   = "recovered: Kafka takes records again"
)

func produceFault(f kfake.Fault) kfake.Fault {
	f.Keys = []kmsg.Key{kmsg.Produce}
	return f
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func TestRecordsArriveUnchanged(t *testing.T) {
	records := []recordbatch.Record{
		{TimestampMs: 1_700_000_000_123, Key: []byte("k"), Value: []byte("v"), Headers: []recordbatch.Header{
			{Name: []byte("b"), Value: []byte("1")}, {Name: []byte("a"), Value: []byte("2")}, {Name: []byte("b"), Value: nil}, {Name: []byte("b"), Value: []byte{}}}},
		{TimestampMs: 1_600_000_000_000, Key: nil, Value: []byte{}},
		{TimestampMs: 0, Key: []byte{}, Value: nil},
		{TimestampMs: 5, Key: []byte{0, 255}, Value: bytes.Repeat([]byte("long "), 50_000)},
	}
	for _, compression := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		t.Run(compression, func(t *testing.T) {
			cluster := newCluster(t, kfake.SeedTopics(1, "t"))
			s := serve(t, cluster, config.Kafka{Compression: compression})
			s.leases <- lease(1, partition("t", 0), 100, records...)
			if err := s.drain(t); err != nil {
				t.Fatal(err)
			}
			got := consume(t, cluster, len(records), "t")
			for i, want := range records {
				g := got[i]
				if g.Timestamp.UnixMilli() != want.TimestampMs || !same(g.Key, want.Key) || !same(g.Value, want.Value) {
					t.Errorf("record %d: timestamp %d, key %v, %d bytes; want %d, %v, %d bytes",
						i, g.Timestamp.UnixMilli(), g.Key, len(g.Value), want.TimestampMs, want.Key, len(want.Value))
				}
				if len(g.Headers) != len(want.Headers) {
					t.Fatalf("record %d has headers %v, want %v", i, g.Headers, want.Headers)
				}
				for k, h := range want.Headers {
					if g.Headers[k].Key != string(h.Name) || !same(g.Headers[k].Value, h.Value) {
						t.Errorf("record %d, header %d is %v, want %v", i, k, g.Headers[k], h)
					}
				}
			}
			if acked := s.acked(); len(acked) != 1 || len(acked[0].DeadLetters) != 0 {
				t.Errorf("acked %v", acked)
			}
		})
	}
}

func TestSettledRecordsAreLeftOut(t *testing.T) {
	cluster := newCluster(t, kfake.SeedTopics(1, "t"))
	s := serve(t, cluster, config.Kafka{})
	l := lease(1, partition("t", 0), 10, values("a", "b", "c")...)
	s.leases <- delivery.NewLease(1, l.Source, 10, 13, 3, l.Payload, offsets(11, 12))
	s.leases <- delivery.NewLease(2, l.Source, 13, 20, 0, nil) // compaction left nothing
	if err := s.drain(t); err != nil {
		t.Fatal(err)
	}
	if got := textsOf(consume(t, cluster, 2, "t"), "t", 0); !slices.Equal(got, []string{"a", "c"}) {
		t.Errorf("produced %q", got)
	}
	if n := len(s.acked()); n != 2 {
		t.Errorf("%d leases are acked, want 2", n)
	}
}

// Every source partition keeps its order, whatever fails on the way.
func TestOrderPerSourcePartition(t *testing.T) {
	const partitions, batches, perBatch = 6, 40, 5
	cluster := newCluster(t, kfake.NumBrokers(3), kfake.SeedTopics(partitions, "t"))
	s := serve(t, cluster, config.Kafka{})
	var requests atomic.Int64
	fault := cluster.Fault(produceFault(kfake.Fault{Count: -1, Err: kerr.NotLeaderForPartition,
		When: func(kmsg.Request) bool { return requests.Add(1)%5 == 0 }}))
	id := uint64(0)
	for b := range batches {
		for p := range int32(partitions) {
			id++
			var records []recordbatch.Record
			for i := range perBatch {
				records = append(records, values(fmt.Sprintf("%d/%d", p, b*perBatch+i))...)
			}
			s.leases <- lease(id, partition("t", p), int64(b*perBatch), records...)
		}
	}
	if err := s.drain(t); err != nil {
		t.Fatal(err)
	}
	if fault.Hits() == 0 {
		t.Error("no request failed")
	}
	got := consume(t, cluster, partitions*batches*perBatch, "t")
	for p := range int32(partitions) {
		var want []string
		for i := range batches * perBatch {
			want = append(want, fmt.Sprintf("%d/%d", p, i))
		}
		if texts := textsOf(got, "t", p); !slices.Equal(texts, want) {
			t.Errorf("partition %d holds %d records, in this order: %q", p, len(texts), texts)
		}
	}
	if n := len(s.acked()); n != partitions*batches {
		t.Errorf("%d leases are acked, want %d", n, partitions*batches)
	}
}

func TestOutageAndRecovery(t *testing.T) {
	var g gate
	cluster := newCluster(t, kfake.NumBrokers(2), kfake.SeedTopics(2, "t"), kfake.ListenFn(g.listen))
	s := serve(t, cluster, config.Kafka{})
	s.leases <- lease(1, partition("t", 0), 0, values("a")...)
	s.wait(t, 1)
	g.close()
	s.leases <- lease(2, partition("t", 0), 1, values("b")...)
	s.leases <- lease(3, partition("t", 1), 0, values("x")...)
	s.leases <- lease(4, partition("t", 0), 2, values("c")...)
	until(t, "both partitions fail", func() bool { s.trouble.mu.Lock(); defer s.trouble.mu.Unlock(); return s.trouble.failing == 2 })
	until(t, "several failures", func() bool { s.trouble.mu.Lock(); defer s.trouble.mu.Unlock(); return s.trouble.failures > 10 })
	if s.Trouble() == nil {
		t.Error("no trouble is reported")
	}
	if err := s.Probe(t.Context()); err == nil {
		t.Error("the probe does not see the outage")
	}
	if n := len(s.acked()); n != 1 {
		t.Errorf("%d leases are acked during the outage", n)
	}
	g.open()
	s.wait(t, 4)
	if err := s.drain(t); err != nil {
		t.Fatal(err)
	}
	if err := s.Trouble(); err != nil {
		t.Errorf("trouble after it is over: %v", err)
	}
	if err := s.Probe(t.Context()); err != nil {
		t.Errorf("probe: %v", err)
	}
	if begin, over := s.log.count(troubleBegins), s.log.count(troubleOver); begin != 1 || over != 1 {
		t.Errorf("%d lines for the beginning, %d for the end, want one each", begin, over)
	}
	got := consume(t, cluster, 4, "t")
	if texts := textsOf(got, "t", 0); !slices.Equal(texts, []string{"a", "b", "c"}) {
		t.Errorf("partition 0 holds %q", texts)
	}
}

// What is produced of a job is not produced again when another part of it fails.
func TestOnlyWhatFailedIsProducedAgain(t *testing.T) {
	cluster := newCluster(t, kfake.SeedTopics(2, "good", "bad"))
	s := serve(t, cluster, config.Kafka{Topic: "%{to}"})
	fault := cluster.Fault(produceFault(kfake.Fault{Topic: "bad", Count: 5, Err: kerr.NotEnoughReplicas}))
	to := func(topic, value string) recordbatch.Record {
		return recordbatch.Record{Value: []byte(value), Headers: []recordbatch.Header{{Name: []byte("to"), Value: []byte(topic)}}}
	}
	s.leases <- lease(1, partition("t", 1), 0, to("good", "1"), to("bad", "2"), to("good", "3"), to("bad", "4"))
	if err := s.drain(t); err != nil {
		t.Fatal(err)
	}
	if fault.Hits() != 5 {
		t.Errorf("%d failures, want 5", fault.Hits())
	}
	for topic, want := range map[string][]string{"good": {"1", "3"}, "bad": {"2", "4"}} {
		if got := textsOf(consume(t, cluster, 2, topic), topic, 1); !slices.Equal(got, want) {
			t.Errorf("%s holds %q, want %q", topic, got, want)
		}
	}
}

func TestLeaderMoves(t *testing.T) {
	cluster := newCluster(t, kfake.NumBrokers(3), kfake.SeedTopics(1, "t"))
	s := serve(t, cluster, config.Kafka{})
	for i := range 6 {
		if err := cluster.MoveTopicPartition("t", 0, int32(i%3)); err != nil {
			t.Fatal(err)
		}
		s.leases <- lease(uint64(i+1), partition("t", 0), int64(i), values(fmt.Sprint(i))...)
		s.wait(t, i+1)
	}
	if got := textsOf(consume(t, cluster, 6, "t"), "t", 0); !slices.Equal(got, []string{"0", "1", "2", "3", "4", "5"}) {
		t.Errorf("the topic holds %q", got)
	}
}

// A request without an answer is given up and sent again; here the first had no effect.
func TestRequestWithoutAnAnswer(t *testing.T) {
	cluster := newCluster(t, kfake.SeedTopics(1, "t"))
	s := serve(t, cluster, config.Kafka{})
	s.timing.request = 200 * time.Millisecond // before the first lease
	cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) { return nil, nil, true })
	s.leases <- lease(1, partition("t", 0), 0, values("a")...)
	s.wait(t, 1)
	if got := textsOf(consume(t, cluster, 1, "t"), "t", 0); !slices.Equal(got, []string{"a"}) {
		t.Errorf("the topic holds %q", got)
	}
	if s.log.count(troubleBegins) != 1 {
		t.Error("the failure was not logged")
	}
}

func TestTooLarge(t *testing.T) {
	cluster := newCluster(t)
	limit := "20000"
	if err := cluster.CreateTopic("t", 1, map[string]string{"max.message.bytes": limit}); err != nil {
		t.Fatal(err)
	}
	s := serve(t, cluster, config.Kafka{})
	var records []recordbatch.Record
	var want []string
	for i := range 300 { // 300 kB, and two that are too large alone
		size := 1000
		if i == 77 || i == 200 {
			size = 30_000
		}
		value := fmt.Sprintf("%03d", i) + strings.Repeat("x", size)
		records = append(records, values(value)...)
		if size == 1000 {
			want = append(want, value)
		}
	}
	s.leases <- lease(1, partition("t", 0), 1000, records...)
	acked := s.wait(t, 1)
	if got := textsOf(consume(t, cluster, len(want), "t"), "t", 0); !slices.Equal(got, want) {
		t.Errorf("%d records arrived in another order or number, want %d", len(got), len(want))
	}
	if n := endOffset(cluster, "t", 0); n != 298 {
		t.Errorf("%d records were written, want 298", n)
	}
	dead := acked[0].DeadLetters
	if len(dead) != 2 || dead[0].Offset != 1077 || dead[1].Offset != 1200 {
		t.Fatalf("dead letters: %v", dead)
	}
	if r := dead[0].Reason; !strings.Contains(r, "t/0 refuses the record of 30003 bytes") || !strings.Contains(r, "Message Size Too Large") {
		t.Errorf("reason: %s", r)
	}

	// What was learned spares the next batch from being refused.
	refused := cluster.Fault(produceFault(kfake.Fault{Observe: true, Count: -1}))
	s.leases <- lease(2, partition("t", 0), 1300, records[:75]...)
	s.wait(t, 2)
	if n := refused.Hits(); n > 10 {
		t.Errorf("75 records took %d requests", n)
	}
	if s.Trouble() != nil || s.log.count(troubleBegins) != 0 {
		t.Error("large records are trouble")
	}
}

// The broker refuses a whole batch for one record in it.
func TestInvalidRecord(t *testing.T) {
	for _, refusal := range []*kerr.Error{kerr.InvalidRecord, kerr.InvalidTimestamp} {
		t.Run(refusal.Message, func(t *testing.T) {
			cluster := newCluster(t, kfake.SeedTopics(1, "t"))
			s := serve(t, cluster, config.Kafka{})
			cluster.Fault(produceFault(kfake.Fault{Count: -1, Err: refusal, When: func(r kmsg.Request) bool {
				return bytes.Contains(r.(*kmsg.ProduceRequest).Topics[0].Partitions[0].Records, []byte("bad"))
			}}))
			var texts, want []string
			for i := range 100 {
				text := fmt.Sprint("v", i)
				if i == 0 || i == 50 || i == 51 || i == 99 {
					text = fmt.Sprint("bad", i)
				} else {
					want = append(want, text)
				}
				texts = append(texts, text)
			}
			s.leases <- lease(1, partition("t", 0), 0, values(texts...)...)
			acked := s.wait(t, 1)
			if got := textsOf(consume(t, cluster, len(want), "t"), "t", 0); !slices.Equal(got, want) {
				t.Errorf("the topic holds %q", got)
			}
			var dead []int64
			for _, d := range acked[0].DeadLetters {
				for offset := d.Offset; offset < nextOf(&d); offset++ {
					dead = append(dead, offset)
				}
			}
			if !slices.Equal(dead, []int64{0, 50, 51, 99}) {
				t.Errorf("dead letters at %v", dead)
			}
		})
	}
}

func TestTopicsAreCreated(t *testing.T) {
	cluster := newCluster(t, kfake.AllowAutoTopicCreation(), kfake.DefaultNumPartitions(3))
	s := serve(t, cluster, config.Kafka{Topic: "copy-%{topic}"})
	s.leases <- lease(1, partition("new", 4), 0, values("a")...)
	s.wait(t, 1)
	if got := textsOf(consume(t, cluster, 1, "copy-new"), "copy-new", 1); !slices.Equal(got, []string{"a"}) {
		t.Errorf("partition 4 mod 3 holds %q", got)
	}
}

// A topic that nobody creates holds up what is for it, and nothing else.
func TestUnknownTopic(t *testing.T) {
	cluster := newCluster(t, kfake.SeedTopics(1, "there"))
	s := serve(t, cluster, config.Kafka{})
	for p := range int32(2 * slotCount) {
		s.leases <- lease(uint64(100+p), partition("missing", p), 0, values("later")...)
	}
	until(t, "all of them fail", func() bool { s.trouble.mu.Lock(); defer s.trouble.mu.Unlock(); return s.trouble.failing == 2*slotCount })
	s.leases <- lease(1, partition("there", 0), 0, values("now")...)
	if acked := s.wait(t, 1); acked[0].Lease.ID != 1 {
		t.Errorf("lease %d is acked", acked[0].Lease.ID)
	}
	if err := s.Trouble(); err == nil || !strings.Contains(err.Error(), "topic missing does not exist and the brokers do not create it") {
		t.Errorf("trouble: %v", err)
	}
	if err := cluster.CreateTopic("missing", 1, nil); err != nil {
		t.Fatal(err)
	}
	s.wait(t, 1+2*slotCount)
	if n := endOffset(cluster, "missing", 0); n != 2*slotCount {
		t.Errorf("%d records are there, want %d", n, 2*slotCount)
	}
}

func TestRecordsWithoutATopicAreDeadLetters(t *testing.T) {
	cluster := newCluster(t, kfake.SeedTopics(1, "ok"))
	s := serve(t, cluster, config.Kafka{Topic: "%{to}"})
	to := func(topic string) recordbatch.Record {
		return recordbatch.Record{Value: []byte("v"), Headers: []recordbatch.Header{{Name: []byte("to"), Value: []byte(topic)}}}
	}
	s.leases <- lease(1, partition("t", 0), 7, to("not ok"), to("ok"), recordbatch.Record{Value: []byte("v")})
	acked := s.wait(t, 1)
	dead := acked[0].DeadLetters
	if len(dead) != 2 || dead[0].Offset != 7 || dead[1].Offset != 9 || dead[1].Reason != `no target topic: the record has no header "to"` {
		t.Errorf("dead letters: %v", dead)
	}
	if n := endOffset(cluster, "ok", 0); n != 1 {
		t.Errorf("%d records were produced, want 1", n)
	}
}

func TestMalformedPayload(t *testing.T) {
	cluster := newCluster(t, kfake.SeedTopics(1, "t"))
	s := serve(t, cluster, config.Kafka{})
	good := lease(1, partition("t", 0), 0, values("a", "b")...)
	s.leases <- delivery.NewLease(1, good.Source, 0, 2, 2, good.Payload[:len(good.Payload)-1])
	s.leases <- lease(2, partition("t", 0), 2, values("c")...)
	if err := s.drain(t); err != nil {
		t.Fatal(err)
	}
	acked := s.acked()
	if len(acked) != 2 || len(acked[0].DeadLetters) != 1 || acked[0].DeadLetters[0].Offset != 0 || acked[0].DeadLetters[0].Next != 2 || !strings.Contains(acked[0].DeadLetters[0].Reason, "malformed") {
		t.Errorf("acked %v", acked)
	}
	if got := textsOf(consume(t, cluster, 1, "t"), "t", 0); !slices.Equal(got, []string{"c"}) {
		t.Errorf("produced %q", got)
	}
}

func TestPartitioners(t *testing.T) {
	key := func(k string) recordbatch.Record { return recordbatch.Record{Key: []byte(k), Value: []byte(k)} }
	none := recordbatch.Record{Value: []byte("none")}
	for _, c := range []struct {
		name string
		want [4]string // by partition
	}{
		{"source", [4]string{"", "21 foobar abc none", "", ""}},
		// murmur2 & 0x7fffffff mod 4: see TestMurmur2
		{"key", [4]string{"21", "none", "foobar", "abc"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cluster := newCluster(t, kfake.NumBrokers(2), kfake.SeedTopics(4, "t"))
			s := serve(t, cluster, config.Kafka{Partitioner: c.name})
			s.leases <- lease(1, partition("t", 5), 0, key("21"), key("foobar"), key("abc"), none)
			s.wait(t, 1)
			got := consume(t, cluster, 4, "t")
			for p, want := range c.want {
				if texts := strings.Join(textsOf(got, "t", int32(p)), " "); texts != want {
					t.Errorf("partition %d holds %q, want %q", p, texts, want)
				}
			}
		})
	}
	t.Run("round_robin", func(t *testing.T) {
		cluster := newCluster(t, kfake.SeedTopics(4, "t"))
		s := serve(t, cluster, config.Kafka{Partitioner: "round_robin"})
		for i := range 8 {
			s.leases <- lease(uint64(i+1), partition("t", 0), int64(i), none)
			s.wait(t, i+1)
		}
		for p := range int32(4) {
			if n := endOffset(cluster, "t", p); n != 2 {
				t.Errorf("partition %d has %d records, want 2", p, n)
			}
		}
	})
}

func TestRevokedLeaseIsDropped(t *testing.T) {
	cluster := newCluster(t, kfake.SeedTopics(1, "t"))
	session := newSession()
	session.refuse = map[uint64]bool{2: true}
	session.hold = make(chan struct{})
	s := serveSession(t, cluster, config.Kafka{}, session)
	for id := range uint64(3) {
		s.leases <- lease(id+1, partition("t", int32(id)), 0, values("x")...)
	}
	until(t, "all are produced", func() bool { return endOffset(cluster, "t", 0) == 3 })
	close(session.hold)
	if err := s.drain(t); err != nil {
		t.Fatal(err)
	}
	var ids []uint64
	for _, a := range s.acked() {
		ids = append(ids, a.Lease.ID)
	}
	slices.Sort(ids)
	if !slices.Equal(ids, []uint64{1, 3}) {
		t.Errorf("acked %v, want all but the refused one", ids)
	}
}

func TestAcksAreGrouped(t *testing.T) {
	cluster := newCluster(t, kfake.SeedTopics(1, "t"))
	session := newSession()
	session.hold = make(chan struct{})
	s := serveSession(t, cluster, config.Kafka{}, session)
	const n = 20
	for i := range n {
		s.leases <- lease(uint64(i+1), partition("t", int32(i)), 0, values("x")...)
	}
	until(t, "all are produced", func() bool { return endOffset(cluster, "t", 0) == n && len(s.slots) == slotCount })
	close(session.hold)
	s.wait(t, n)
	session.mu.Lock()
	defer session.mu.Unlock()
	if len(session.acks) > n/2 { // some may be on their way to the goroutine that acks
		t.Errorf("%d leases took %d acks while one was under way", n, len(session.acks))
	}
}

func TestDrainFinishesWhatIsHeld(t *testing.T) {
	cluster := newCluster(t, kfake.SeedTopics(1, "t"))
	s := serve(t, cluster, config.Kafka{})
	fault := cluster.Fault(produceFault(kfake.Fault{Count: -1, Err: kerr.NotEnoughReplicas}))
	for i := range 10 {
		s.leases <- lease(uint64(i+1), partition("t", 0), int64(i), values(fmt.Sprint(i))...)
	}
	if err := fault.Wait(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	close(s.leases)
	fault.Remove()
	if err := s.returned(t); err != nil {
		t.Fatal(err)
	}
	if n := len(s.acked()); n != 10 {
		t.Errorf("%d leases are acked, want 10", n)
	}
}

func TestDrainEndsWithItsContext(t *testing.T) {
	cluster := newCluster(t, kfake.SeedTopics(1, "t"))
	s := serve(t, cluster, config.Kafka{})
	fault := cluster.Fault(produceFault(kfake.Fault{Count: -1, Err: kerr.NotEnoughReplicas}))
	s.leases <- lease(1, partition("t", 0), 0, values("a")...)
	if err := fault.Wait(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	close(s.leases)
	s.cancel()
	if err := s.returned(t); !errors.Is(err, context.Canceled) {
		t.Errorf("Serve returned %v", err)
	}
	if s.Trouble() != nil || s.log.count(troubleOver) != 0 {
		t.Error("trouble outlives its session, or is said to be over")
	}
}

func TestSessionLost(t *testing.T) {
	cluster := newCluster(t, kfake.SeedTopics(1, "t"))
	s := serve(t, cluster, config.Kafka{})
	hang := make(chan struct{})
	cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		close(hang)
		return nil, nil, true // never answered
	})
	s.leases <- lease(1, partition("t", 0), 0, values("a")...)
	<-hang
	lost := fmt.Errorf("%w: gone", delivery.ErrSessionLost)
	s.lose(lost)
	if err := s.returned(t); !errors.Is(err, delivery.ErrSessionLost) {
		t.Errorf("Serve returned %v", err)
	}
	if n := len(s.acked()); n != 0 {
		t.Errorf("%d leases are acked", n)
	}
}

func TestNewRefuses(t *testing.T) {
	good := config.Kafka{Brokers: []string{"a:9092"}, Topic: "t", Partitioner: "source", Compression: "none"}
	for key, change := range map[string]func(*config.Kafka){
		"brokers":     func(c *config.Kafka) { c.Brokers = nil },
		"topic":       func(c *config.Kafka) { c.Topic = "%{" },
		"partitioner": func(c *config.Kafka) { c.Partitioner = "sticky" },
		"compression": func(c *config.Kafka) { c.Compression = "brotli" },
	} {
		cfg := good
		change(&cfg)
		if _, err := New(&cfg, "q/s", slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "kafka."+key) {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// BenchmarkServe measures leases of 1,000 records of 500 bytes, of four source partitions. The
// cluster keeps nothing: it would keep it in memory.
func BenchmarkServe(b *testing.B) {
	const partitions = 4
	cluster := newCluster(b, kfake.SeedTopics(partitions, "t"), kfake.BlackholeProduce())
	sink, err := New(&config.Kafka{Brokers: cluster.ListenAddrs(), Topic: "%{topic}"}, "q/s", slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer sink.Close()
	var records []recordbatch.Record
	for range 1000 {
		records = append(records, recordbatch.Record{TimestampMs: 1, Key: []byte("key"), Value: bytes.Repeat([]byte("x"), 500)})
	}
	session := newSession()
	session.leases = make(chan *delivery.Lease, 16)
	done := make(chan error, 1)
	go func() { done <- sink.Serve(context.Background(), session) }()
	payload := lease(1, partition("t", 0), 0, records...).Payload
	b.SetBytes(int64(len(payload)))
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N { // not Loop: what counts is when the last is acked
		session.leases <- delivery.NewLease(uint64(i+1), partition("t", int32(i%partitions)), int64(i)*1000, int64(i+1)*1000, 1000, payload)
	}
	close(session.leases)
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
