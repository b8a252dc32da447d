package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const manyPartitions = 12

// roundsEnv is how many rounds of kills there are; a round takes about 15 s, and every other one
// crashes the broker. Without it there are two.
const roundsEnv = "E2E_ROUNDS"

// onceEnv set has the deliveries produce exactly once: then nothing is repeated for readers of
// committed records.
const onceEnv = "E2E_EXACTLY_ONCE"

// librdkafkaEnv set has testdata/librdkafka.py write and read, with a python3 that has
// confluent-kafka, instead of franz-go.
const librdkafkaEnv = "E2E_LIBRDKAFKA"

// TestReplicasAreKilledAndSleep: three ingests and three deliveries share twelve partitions.
// SIGKILL hits them, the buffer and the broker again and again, and one ingest and one delivery
// sleep for longer than the group and the lease wait for them. Nothing is lost, each partition
// arrives in order but for stretches that are repeated, and no committed offset goes back, as it
// would if an ingest committed that had lost the partition.
func TestReplicasAreKilledAndSleep(t *testing.T) {
	random := seeded(t)
	rounds := 2
	if s := os.Getenv(roundsEnv); s != "" {
		var err error
		if rounds, err = strconv.Atoi(s); err != nil {
			t.Fatalf("%s: %v", roundsEnv, err)
		}
	}
	kafka := secondBroker(t)
	if err := kafka.start(); err != nil {
		t.Fatal(err)
	}
	p := newRoute(t, kafka)
	p.rewrite(fmt.Sprintf("%q", stack.kafka.addr()), fmt.Sprintf("%q", kafka.addr()), "lease: 10s", "lease: 5s")
	if os.Getenv(onceEnv) != "" {
		p.rewrite(`topic: "out-%{topic}"}`, `topic: "out-%{topic}", exactly_once: true}`)
	}
	if _, err := kadm.NewClient(newClient(t, kafka)).CreateTopics(t.Context(), manyPartitions, 1, nil, p.topic, p.out); err != nil {
		t.Fatal(err)
	}
	ingests, deliveries := []*service{p.ingest}, []*service{p.kafka}
	for i := range 2 {
		ingests = append(ingests, p.replica(p.ingest, i+2))
		deliveries = append(deliveries, p.replica(p.kafka, i+2))
	}
	all := append(append([]*service{p.buffer}, ingests...), deliveries...)
	for _, s := range all {
		s.start()
	}
	for _, s := range all {
		s.waitReady()
	}
	stopProducing := startNumbering(t, kafka, p.topic)
	watchCommits(t, kafka, p.topic)

	kills := 0
	kill := func(n int, spared ...*service) {
		for range n {
			pause(t, time.Duration(100+random.IntN(1500))*time.Millisecond)
			victim := all[random.IntN(len(all))]
			for slices.Contains(spared, victim) {
				victim = all[random.IntN(len(all))]
			}
			victim.kill()
			kills++
			pause(t, time.Duration(random.IntN(800))*time.Millisecond)
			victim.start()
		}
	}
	for round := range rounds {
		kill(1)
		sleepers := []*service{ingests[random.IntN(3)], deliveries[random.IntN(3)]}
		for _, s := range sleepers {
			s.pause(syscall.SIGSTOP)
		}
		wake := time.Now().Add(12 * time.Second) // the group's session and a lease are over
		restarted := make(chan error, 1)
		if round%2 == 0 {
			go func() { restarted <- errors.Join(kafka.crash(), kafka.start()) }()
		} else {
			restarted <- nil
		}
		kill(3, sleepers...)
		if err := <-restarted; err != nil {
			t.Fatal(err)
		}
		kill(4, sleepers...)
		pause(t, time.Until(wake))
		for _, s := range sleepers {
			s.pause(syscall.SIGCONT)
		}
	}
	t.Logf("%d kills", kills)
	counts := stopProducing()
	total := 0
	for _, n := range counts {
		total += n
	}
	began := time.Now()
	eventually(t, 2*time.Minute, "everything is delivered", func() error { return p.settledTopic(p.topic, int64(total)) })
	t.Logf("%d records; all was delivered %.1f s after the last one", total, time.Since(began).Seconds())
	eventually(t, time.Minute, "all of it is committed", func() error {
		committed, err := kadm.NewClient(newClient(t, kafka)).FetchOffsets(t.Context(), p.topic)
		if err != nil {
			return err
		}
		for i, n := range counts {
			if o, _ := committed.Lookup(p.topic, int32(i)); o.At != int64(n) {
				return fmt.Errorf("partition %d: %d of %d", i, o.At, n)
			}
		}
		return nil
	})
	checkOrder(t, kafka, p.out, counts)
}

// startNumbering writes "PARTITION NUMBER" to each partition until it is told to stop; then it
// returns how many each has got.
func startNumbering(t *testing.T, b broker, topic string) (stop func() []int) {
	t.Helper()
	if os.Getenv(librdkafkaEnv) != "" {
		cmd := exec.Command("python3", "testdata/librdkafka.py", "produce", b.addr(), topic, strconv.Itoa(manyPartitions))
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		stdin, err := cmd.StdinPipe()
		if err := errors.Join(err, cmd.Start()); err != nil {
			t.Fatal(err)
		}
		return func() (counts []int) {
			if err := errors.Join(stdin.Close(), cmd.Wait()); err != nil {
				t.Fatalf("librdkafka: %v", err)
			}
			for _, field := range strings.Fields(out.String()) {
				n, err := strconv.Atoi(field)
				if err != nil {
					t.Fatal(err)
				}
				counts = append(counts, n)
			}
			return counts
		}
	}
	client := newClient(t, b)
	ended, done := make(chan struct{}), make(chan error, 1)
	n := 0
	go func() {
		for {
			select {
			case <-ended:
				done <- nil
				return
			case <-time.After(50 * time.Millisecond):
			}
			var records []*kgo.Record
			for i := range 100 {
				for partition := range int32(manyPartitions) {
					records = append(records, &kgo.Record{Topic: topic, Partition: partition, Value: fmt.Appendf(nil, "%d %d", partition, n+i)})
				}
			}
			if err := client.ProduceSync(context.WithoutCancel(t.Context()), records...).FirstErr(); err != nil {
				done <- err
				return
			}
			n += 100
		}
	}()
	return func() (counts []int) {
		close(ended)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		for range manyPartitions {
			counts = append(counts, n)
		}
		return counts
	}
}

// watchCommits fails the test when an offset that the group of that name has committed goes back.
// It ends with the test.
func watchCommits(t *testing.T, b broker, group string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	t.Cleanup(func() { cancel(); <-done })
	admin := kadm.NewClient(newClient(t, b))
	go func() {
		defer close(done)
		seen := make(map[int32]int64)
		for ctx.Err() == nil {
			committed, err := admin.FetchOffsets(ctx, group)
			if err == nil { // else the broker is away
				committed.Each(func(o kadm.OffsetResponse) {
					if o.Err == nil && o.At < seen[o.Partition] {
						t.Errorf("what is committed for partition %d went back from %d to %d", o.Partition, seen[o.Partition], o.At)
					}
					seen[o.Partition] = max(seen[o.Partition], o.At)
				})
			}
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
}

// checkOrder says that the partitions of a topic have the numbers from 0 on, each for the first
// time right after the one before it has been there.
func checkOrder(t *testing.T, b broker, topic string, counts []int) {
	t.Helper()
	next := make([]int, len(counts))
	last := make([]int, len(counts))
	repeated, stretches, strange := 0, 0, 0
	check := func(value string) {
		var partition, number int
		if _, err := fmt.Sscanf(value, "%d %d", &partition, &number); err != nil || partition < 0 || partition >= len(counts) {
			t.Fatalf("no record was written like %q", value)
		}
		switch {
		case number == next[partition]:
			next[partition]++
		case number < next[partition]:
			repeated++
			if number != last[partition]+1 {
				stretches++
			}
		default:
			if strange++; strange < 5 {
				t.Errorf("partition %d has number %d before %d", partition, number, next[partition])
			}
		}
		last[partition] = number
	}
	if os.Getenv(librdkafkaEnv) != "" {
		out, err := exec.Command("python3", "testdata/librdkafka.py", "consume", b.addr(), topic).Output()
		if err != nil {
			t.Fatalf("librdkafka: %v", err)
		}
		for line := range strings.Lines(string(out)) {
			check(line)
		}
	} else {
		eachCommitted(t, b, topic, func(r *kgo.Record) {
			if want := fmt.Sprintf("%d ", r.Partition); !strings.HasPrefix(string(r.Value), want) {
				t.Errorf("partition %d has %q", r.Partition, r.Value)
			}
			check(string(r.Value))
		})
	}
	for i, n := range counts {
		if next[i] != n {
			t.Errorf("partition %d: %d of %d records arrived in order", i, next[i], n)
		}
	}
	t.Logf("%d records repeated in %d stretches", repeated, stretches)
	if repeated > 0 && os.Getenv(onceEnv) != "" {
		t.Errorf("%d records are repeated", repeated)
	}
}
