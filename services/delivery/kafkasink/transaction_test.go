package kafkasink

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/internal/config"
)

var once = config.Kafka{Topic: "out", ExactlyOnce: true}

// committed reads all committed records of the topic "out", partition 0, with another client; the
// last is a mark.
func committed(t *testing.T, cluster *kfake.Cluster) []string {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"out": {0: kgo.NewOffset().AtStart()}}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.FetchMaxWait(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	mark := fmt.Sprint("mark ", time.Now().UnixNano())
	if err := client.ProduceSync(ctx, &kgo.Record{Topic: "out", Value: []byte(mark)}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	var texts []string
	for {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("read up to %v, and no mark", texts)
		}
		done := false
		fetches.EachRecord(func(r *kgo.Record) {
			done = done || string(r.Value) == mark
			if !strings.HasPrefix(string(r.Value), "mark") {
				texts = append(texts, string(r.Value))
			}
		})
		if done {
			return texts
		}
	}
}

func wantCommitted(t *testing.T, cluster *kfake.Cluster, want ...string) {
	t.Helper()
	if got := committed(t, cluster); !slices.Equal(got, want) {
		t.Errorf("readers of committed records see %q, want %q", got, want)
	}
}

func outCluster(t *testing.T) *kfake.Cluster {
	return newCluster(t, kfake.NumBrokers(2), kfake.SeedTopics(1, "out"))
}

// TestTransactions has each record once, in order, over many transactions and target partitions.
func TestTransactions(t *testing.T) {
	cluster := newCluster(t, kfake.NumBrokers(3), kfake.SeedTopics(4, "out"))
	s := serve(t, cluster, once)
	for i := range int64(50) {
		for p := range int32(4) {
			s.leases <- lease(uint64(i*4+int64(p)+1), partition("src", p), i*2, values(fmt.Sprint(p, "-", i*2), fmt.Sprint(p, "-", i*2+1))...)
		}
	}
	s.wait(t, 200)
	all := consume(t, cluster, 400, "out")
	for p := range int32(4) {
		texts := textsOf(all, "out", p)
		for i, text := range texts {
			if text != fmt.Sprint(p, "-", i) {
				t.Fatalf("partition %d: record %d is %s", p, i, text)
			}
		}
	}
	if err := s.drain(t); err != nil {
		t.Error(err)
	}
}

// TestProducersStartTogether: with many source partitions, producers are initialized beside each
// other, more than have a slot. Kafka answers none before all have asked.
func TestProducersStartTogether(t *testing.T) {
	const partitions = 3 * slotCount
	cluster := outCluster(t)
	var asked atomic.Int32
	all := make(chan struct{})
	cluster.ControlKey(int16(kmsg.InitProducerID), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if asked.Add(1) == partitions {
			close(all)
		}
		cluster.SleepControl(func() { <-all })
		return nil, nil, false
	})
	s := serve(t, cluster, once)
	for p := range int32(partitions) {
		s.leases <- lease(uint64(p)+1, partition("src", p), 0, values("v")...)
	}
	s.wait(t, partitions)
	if err := s.drain(t); err != nil {
		t.Error(err)
	}
}

// TestCommittedBeforeTheAck has the batches that a session committed and could not ack skipped by
// the next one: another process's, or the same one's.
func TestCommittedBeforeTheAck(t *testing.T) {
	for _, same := range []bool{false, true} {
		t.Run(fmt.Sprintf("same process %v", same), func(t *testing.T) {
			cluster := outCluster(t)
			first := newSession()
			first.refuse = map[uint64]bool{2: true}
			s := serveSession(t, cluster, once, first)
			s.leases <- lease(1, partition("src", 0), 0, values("a", "b")...)
			s.wait(t, 1)
			s.leases <- lease(2, partition("src", 0), 2, values("c", "d")...)
			waitCommitted(t, cluster, 4)
			s.lose(delivery.ErrSessionLost)
			s.cancel()
			_ = s.returned(t)

			next := newSession()
			if same {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := make(chan error, 1)
				go func() { done <- s.Serve(ctx, next) }()
				defer func() { cancel(); <-done }()
			} else {
				serveSession(t, cluster, once, next)
			}
			next.leases <- lease(3, partition("src", 0), 2, values("c", "d")...)
			next.leases <- lease(4, partition("src", 0), 4, values("e")...)
			next.wait(t, 2)
			wantCommitted(t, cluster, "a", "b", "c", "d", "e")

			// A replay that somebody asked for is delivered.
			again := lease(5, partition("src", 0), 2, values("c", "d", "e")...)
			again.Epoch = 7
			next.leases <- again
			next.wait(t, 3)
			wantCommitted(t, cluster, "a", "b", "c", "d", "e", "c", "d", "e")
		})
	}
}

// waitCommitted waits until the target has so many records and a commit marker behind each
// transaction of two.
func waitCommitted(t *testing.T, cluster *kfake.Cluster, records int) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for len(committed(t, cluster)) < records {
		if time.Now().After(deadline) {
			t.Fatalf("%d records are not committed", records)
		}
	}
}

// TestFencedZombie has a session that slept find that another did its work: of another process,
// or of the same one, as when a shard is taken from a buffer that still leases it.
func TestFencedZombie(t *testing.T) {
	for _, same := range []bool{false, true} {
		t.Run(fmt.Sprintf("same process %v", same), func(t *testing.T) { testFencedZombie(t, same) })
	}
}

func testFencedZombie(t *testing.T, same bool) {
	cluster := outCluster(t)
	zombie := newSession()
	z := serveSession(t, cluster, once, zombie)
	zombie.leases <- lease(1, partition("src", 0), 0, values("a")...)
	zombie.wait(t, 1)

	// While the zombie sleeps, another is leased the next two batches, one after the other, and
	// acks them.
	other := newSession()
	if same {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- z.Serve(ctx, other) }()
		defer func() { cancel(); <-done }()
	} else {
		serveSession(t, cluster, once, other)
	}
	other.leases <- lease(2, partition("src", 0), 1, values("b")...)
	other.wait(t, 1)
	other.leases <- lease(3, partition("src", 0), 2, values("c")...)
	other.wait(t, 2)

	// It wakes with a lease of the first of them. What it learns from the buffer is behind the
	// answer to an ack.
	stale := lease(4, partition("src", 0), 1, values("b")...)
	zombie.onAck = func() { stale.Revoke() }
	zombie.leases <- stale
	eventually(t, func() bool { return zombie.empty() >= 1 })
	if err := z.drain(t); err != nil {
		t.Error(err)
	}
	if acked := zombie.acked(); len(acked) != 1 {
		t.Errorf("the zombie acked %d leases", len(acked))
	}
	other.leases <- lease(5, partition("src", 0), 3, values("d")...)
	other.wait(t, 3)
	wantCommitted(t, cluster, "a", "b", "c", "d")
}

func eventually(t *testing.T, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain")
		}
	}
}

// TestTransactionErrors fails each request of a transaction once, before or after it took effect.
func TestTransactionErrors(t *testing.T) {
	for name, key := range map[string]kmsg.Key{"init": kmsg.InitProducerID, "add partitions": kmsg.AddPartitionsToTxn, "add offsets": kmsg.AddOffsetsToTxn,
		"commit offsets": kmsg.TxnOffsetCommit, "end": kmsg.EndTxn, "read progress": kmsg.OffsetFetch, "produce": kmsg.Produce} {
		t.Run(name, func(t *testing.T) {
			cluster := outCluster(t)
			s := serve(t, cluster, once)
			s.leases <- lease(1, partition("src", 0), 0, values("a", "b")...)
			s.wait(t, 1)
			if key == kmsg.InitProducerID || key == kmsg.OffsetFetch { // so that it needs them
				fence(t, cluster)
			}
			failed := 0
			cluster.ControlKey(int16(key), func(kmsg.Request) (kmsg.Response, error, bool) {
				failed++
				return nil, errors.New("the connection breaks"), true
			})
			s.leases <- lease(2, partition("src", 0), 2, values("c", "d")...)
			s.leases <- lease(3, partition("src", 0), 4, values("e")...)
			s.wait(t, 3)
			if failed == 0 {
				t.Error("nothing failed")
			}
			wantCommitted(t, cluster, "a", "b", "c", "d", "e")
		})
	}
}

// TestCommitInDoubt has the answer to a commit lost: it is in effect, and nothing is produced
// twice.
func TestCommitInDoubt(t *testing.T) {
	cluster := outCluster(t)
	s := serve(t, cluster, once)
	s.leases <- lease(1, partition("src", 0), 0, values("a")...)
	s.wait(t, 1)
	lost := false
	cluster.ControlKey(int16(kmsg.EndTxn), func(r kmsg.Request) (kmsg.Response, error, bool) {
		if lost {
			return nil, nil, false
		}
		lost = true
		// The commit happens by another connection; this one breaks.
		end := *r.(*kmsg.EndTxnRequest)
		go func() {
			client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...))
			if err == nil {
				_, _ = end.RequestWith(context.Background(), client)
				client.Close()
			}
		}()
		return nil, errors.New("the answer is lost"), true
	})
	s.leases <- lease(2, partition("src", 0), 1, values("b", "c")...)
	s.leases <- lease(3, partition("src", 0), 3, values("d")...)
	s.wait(t, 3)
	wantCommitted(t, cluster, "a", "b", "c", "d")
}

// fence initializes the producer of src/0 as another delivery would.
func fence(t *testing.T, cluster *kfake.Cluster) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	r := kmsg.NewPtrInitProducerIDRequest()
	id := "spillway/q/s/source/src/0"
	r.TransactionalID, r.TransactionTimeoutMillis, r.ProducerID, r.ProducerEpoch = &id, 60000, -1, -1
	response, err := r.RequestWith(t.Context(), client)
	if err == nil {
		err = kerr.ErrorForCode(response.ErrorCode)
	}
	if err != nil {
		t.Fatalf("fence: %v", err)
	}
}

// TestRefusedRecordsInTransactions has records that the broker refuses dead-lettered, and the
// others delivered once.
func TestRefusedRecordsInTransactions(t *testing.T) {
	cluster := newCluster(t, kfake.NumBrokers(1), kfake.SeedTopics(1, "out"), kfake.BrokerConfigs(map[string]string{"message.max.bytes": "2000"}))
	s := serve(t, cluster, once)
	s.leases <- lease(1, partition("src", 0), 0, values("a", strings.Repeat("x", 5000), "b")...)
	s.leases <- lease(2, partition("src", 0), 3, values("c")...)
	acked := s.wait(t, 2)
	if d := acked[0].DeadLetters; len(d) != 1 || d[0].Offset != 1 {
		t.Errorf("dead letters %v", d)
	}
	wantCommitted(t, cluster, "a", "b", "c")
}

// TestRevokedBeforeItsTransaction goes on with what is leased after it.
func TestRevokedBeforeItsTransaction(t *testing.T) {
	cluster := outCluster(t)
	s := serve(t, cluster, once)
	s.leases <- lease(1, partition("src", 0), 0, values("a")...)
	s.wait(t, 1)
	gone := lease(2, partition("src", 0), 1, values("b")...)
	gone.Revoke()
	s.leases <- gone
	s.leases <- lease(3, partition("src", 0), 1, values("b")...)
	s.wait(t, 2)
	wantCommitted(t, cluster, "a", "b")
}

func TestProgress(t *testing.T) {
	p := progress{ledger: "l", epoch: 5, targets: map[string]bool{"b": true, "a": true}, ranges: []span{{10, 20}, {30, 31}, {100, 1000}}}
	text, err := p.encode()
	if text != "1 5/l/a,b 10:10 10:1 69:900" || err != nil {
		t.Errorf("encoded as %q, %v", text, err)
	}
	got, err := decodeProgress(text)
	if err != nil || got.epoch != 5 || got.ledger != "l" || !got.targets["a"] || !got.targets["b"] || len(got.targets) != 2 || !slices.Equal(got.ranges, p.ranges) {
		t.Errorf("decoded as %v, %v", got, err)
	}
	for offset, want := range map[int64]bool{9: false, 10: true, 19: true, 20: false, 30: true, 31: false, 999: true, 1000: false} {
		if got.has(offset) != want {
			t.Errorf("has(%d) is %v", offset, !want)
		}
	}
	got.remove(15, 200)
	if want := []span{{10, 15}, {200, 1000}}; !slices.Equal(got.ranges, want) {
		t.Errorf("%v are left, want %v", got.ranges, want)
	}
	if got.remove(0, 1000); len(got.targets) != 0 {
		t.Errorf("the targets of nothing are %v", got.targets)
	}
	var many progress
	for i := range int64(3000) {
		many.ranges = append(many.ranges, span{i * 2, i*2 + 1})
	}
	if _, err := many.encode(); !errors.Is(err, errCrowded) {
		t.Errorf("many ranges: %v", err)
	}
	full := progress{ledger: strings.Repeat("l", 36), epoch: math.MaxInt64, targets: map[string]bool{}}
	for i := range int64(2*maxPieces + maxPieces) {
		full.ranges = append(full.ranges, span{1e12 + i*2000, 1e12 + i*2000 + 1000})
	}
	for i := range 3 * maxTargets {
		full.targets[markOf("topic", [16]byte{byte(i), byte(i >> 8)})] = true
	}
	if text, err := full.encode(); err != nil {
		t.Errorf("as much as one transaction adds to a crowded progress: %v", err)
	} else if len(text) > maxProgressBytes {
		t.Errorf("%d bytes", len(text))
	}
	// The version before wrote no proof, which leaves everything unproven.
	if old, err := decodeProgress("1 5 10:10"); err != nil || old.ledger != "" || len(old.targets) != 0 || !old.has(10) {
		t.Errorf("the text of the version before: %v, %v", old, err)
	}
	for _, bad := range []string{"", "1", "2 0", "1 x", "1 0 5", "1 0 5:0", "1 0 -5:3", "hello world", "1 0/x 5:1"} {
		if _, err := decodeProgress(bad); err == nil {
			t.Errorf("%q is progress", bad)
		}
	}
}

// FuzzProgress reads any text.
func FuzzProgress(f *testing.F) {
	f.Add("1 5 10:10 10:1 69:900")
	f.Add("1 5/ledger/a,b 10:10 10:1 69:900")
	f.Add("1 0 9223372036854775807:9223372036854775807")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := decodeProgress(text)
		if err != nil {
			return
		}
		for _, r := range p.ranges {
			if r.first < 0 || r.next <= r.first {
				t.Errorf("%q has the range %v", text, r)
			}
		}
	})
}
