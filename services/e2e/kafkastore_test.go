package e2e

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/buffer/store/kafkastore"
	"github.com/spillwayio/spillway/services/buffer/store/storetest"
)

// shardHarness opens stores of one shard.
type shardHarness struct {
	t   *testing.T
	cfg kafkastore.Config
}

func newShard(t *testing.T, brokers []string, replication int, segmentBytes int64) *shardHarness {
	t.Helper()
	return newShards(t, brokers, replication, segmentBytes, 1, false)
}

// newShards is the first of so many shards.
func newShards(t *testing.T, brokers []string, replication int, segmentBytes int64, shards int, fsync bool) *shardHarness {
	t.Helper()
	name := fmt.Sprintf("store-%x", rand.Uint64())
	h := &shardHarness{t, kafkastore.Config{Address: "here:7400", SegmentBytes: segmentBytes, Log: slog.New(slog.DiscardHandler),
		Topics: kafkastore.Topics{Brokers: brokers, ClientID: "e2e", Name: name, Namespace: "e2e", Queue: "q", Shards: shards, Replication: replication, Fsync: fsync}}}
	if _, _, err := kafkastore.Init(t.Context(), h.cfg.Topics, h.cfg.Log); err != nil {
		t.Fatalf("initialize the store: %v", err)
	}
	return h
}

// Open implements storetest.Harness.
func (h *shardHarness) Open(opts queue.StoreOptions) (queue.Store, error) {
	s, err := kafkastore.Open(h.t.Context(), h.cfg, opts)
	if err != nil {
		return nil, err
	}
	h.t.Cleanup(func() { _ = s.Close() })
	return s, nil
}

// Crash implements storetest.Harness. Close sends nothing more, so it is the same.
func (h *shardHarness) Crash(s queue.Store) { _ = s.Close() }

// Settle implements storetest.Harness.
func (h *shardHarness) Settle(s queue.Store) {
	for before, quiet := s.Stats(), 0; quiet < 10; quiet++ {
		s.Release(nil)
		time.Sleep(50 * time.Millisecond)
		if now := s.Stats(); now != before {
			before, quiet = now, 0
		}
	}
}

func TestKafkaStoreConforms(t *testing.T) {
	storetest.Run(t, func(t *testing.T, segmentBytes int64) storetest.Harness {
		return newShard(t, []string{stack.kafka.addr()}, 1, segmentBytes)
	})
}

// startBrokers starts a cluster of brokers that are controllers, too.
func startBrokers(t *testing.T, n int) []broker {
	t.Helper()
	return startBrokersWith(t, n, func(broker) string { return "" })
}

// addressesOf returns where brokers listen.
func addressesOf(brokers []broker) (all []string) {
	for _, b := range brokers {
		all = append(all, b.addr())
	}
	return all
}

// startBrokersWith starts them with more lines of configuration, which begin with a new one.
func startBrokersWith(t *testing.T, n int, more func(broker) string) []broker {
	t.Helper()
	t.Setenv("KAFKA_CLUSTER_ID", strings.Repeat("s", 22))
	t.Setenv("KAFKA_HEAP", "-Xms128m -Xmx384m")
	all := make([]broker, n)
	var voters []string
	for i := range all {
		var err error
		if all[i], err = newBroker(stack.run); err != nil {
			t.Fatal(err)
		}
		voters = append(voters, fmt.Sprintf("%d@127.0.0.1:%d", i+1, all[i].port+controllerPort))
	}
	var wg sync.WaitGroup
	for i := range all {
		all[i].more = fmt.Sprintf("node.id=%d\ncontroller.quorum.voters=%s", i+1, strings.Join(voters, ",")) + more(all[i])
		t.Cleanup(func() {
			if err := all[i].wipe(); err != nil {
				t.Errorf("stop broker %d: %v", i+1, err)
			}
		})
		wg.Go(func() {
			if err := all[i].start(); err != nil {
				t.Errorf("start broker %d: %v", i+1, err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return all
}

const controllerPort = 20000 // its distance, as kafka-start has it

// numbers is an owner whose ledger is the numbers that count.
type numbers struct {
	store *kafkastore.Store
	have  []string
}

func openNumbers(t *testing.T, cfg kafkastore.Config) (*numbers, time.Duration) {
	t.Helper()
	n := &numbers{}
	began := time.Now()
	var err error
	n.store, err = kafkastore.Open(t.Context(), cfg, queue.StoreOptions{
		Recover: func(r queue.Recovered) error {
			switch r.Kind {
			case queue.SnapshotEntry:
				n.have = strings.Fields(string(r.Meta))
			case queue.ChangeEntry:
				n.have = append(n.have, string(r.Meta))
			}
			return nil
		},
		Snapshot: func() queue.Snapshot {
			s := queue.WholeSnapshot(strings.Join(n.have, " "))
			return &s
		},
		Damage: func(d string) { t.Errorf("damage: %s", d) },
	})
	if err != nil {
		t.Fatalf("take over: %v", err)
	}
	t.Cleanup(func() { _ = n.store.Close() })
	return n, time.Since(began)
}

func (n *numbers) append(name string) error {
	// About what an ack takes.
	_, err := n.store.Append([]queue.Entry{{Kind: queue.ChangeEntry, Meta: []byte(name)}})
	if err == nil {
		n.have = append(n.have, name)
	}
	return err
}

// TestKafkaStoreLosesNothing has owners take a shard from each other on three brokers, and from
// one that goes on, while brokers are killed. What was answered is found by each later owner,
// once, and in order.
func TestKafkaStoreLosesNothing(t *testing.T) {
	brokers := startBrokers(t, 3)
	addrs := addressesOf(brokers)
	h := newShard(t, addrs, 3, 64<<10)
	owner, _ := openNumbers(t, h.cfg)

	const calm = 300
	var took []time.Duration
	for i := range calm {
		began := time.Now()
		if err := owner.append(fmt.Sprintf("calm%d", i)); err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	t.Logf("an ack on 3 replicas: p50 %v, p99 %v", took[calm/2].Round(time.Microsecond), took[calm*99/100].Round(time.Microsecond))

	var answered []string
	answered = append(answered, owner.have...)
	check := func(n *numbers) {
		t.Helper()
		at := 0
		for _, name := range n.have {
			if at < len(answered) && answered[at] == name {
				at++
			}
		}
		if at < len(answered) {
			t.Fatalf("%s was answered, and the next owner has it not, or not in order", answered[at])
		}
		if unique := slices.Compact(slices.Sorted(slices.Values(n.have))); len(unique) != len(n.have) {
			t.Fatalf("%d of %d numbers count twice", len(n.have)-len(unique), len(n.have))
		}
		answered = slices.Clone(n.have) // what it found counts for ever
	}
	const rounds = 4
	longest := time.Duration(0)
	for round := range rounds {
		stop, done := make(chan struct{}), make(chan error, 1)
		go func() { // goes on when it is owner no more
			for i := 0; ; i++ {
				began := time.Now()
				err := owner.append(fmt.Sprintf("r%d.%d", round, i))
				longest = max(longest, time.Since(began))
				if err != nil {
					done <- err
					return
				}
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
			}
		}()
		var killed sync.WaitGroup
		if round%2 == 1 {
			b := brokers[round/2%len(brokers)]
			killed.Go(func() {
				if err := errors.Join(b.crash(), b.start()); err != nil {
					t.Errorf("kill a broker: %v", err)
				}
			})
		}
		time.Sleep(3 * time.Second)
		next, took := openNumbers(t, h.cfg) // as long as a new leader takes, when one was killed
		var err error
		select {
		case err = <-done:
		case <-time.After(time.Minute):
			t.Fatal("the former owner goes on for a minute")
		}
		close(stop)
		if !errors.Is(err, kafkastore.ErrFenced) {
			t.Fatalf("the former owner: %v, want %v", err, kafkastore.ErrFenced)
		}
		answered = owner.have
		check(next)
		t.Logf("round %d: taken over within %v; %d numbers", round, took.Round(time.Millisecond), len(answered))
		owner = next
		killed.Wait()
	}
	t.Logf("the longest append took %v", longest.Round(time.Millisecond))
	last, _ := openNumbers(t, h.cfg)
	check(last)
}
