package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// newGroupedPipeline is a pipeline in three shards that are kept in Kafka, with four buffers,
// which divide them by a group: one of them is a spare.
func newGroupedPipeline(t *testing.T, brokers []string, replication int) *pipeline {
	t.Helper()
	namespace := fmt.Sprintf("e2e-%d", time.Now().UnixNano())
	p := newShardedPipeline(t, "commit_after: safe", fmt.Sprintf("commit_after: delivered\n      store: {kafka: {brokers: [%s], namespace: %s, replication: %d, owners: group, session_timeout: 6s}}",
		strings.Join(brokers, ", "), namespace, replication))
	s := newService(t, p.dir, "buffer-3", "buffer", "-c", p.config)
	s.env = []string{"SPILLWAY_BUFFER__LISTEN=" + s.grpc, "SPILLWAY_BUFFER__HTTP=" + s.http, "SPILLWAY_BUFFER__DATA_DIR=" + filepath.Join(p.dir, "data-3")}
	p.others = append(p.others, s)
	p.rewrite("buffers: [", fmt.Sprintf("buffers: [%s, ", s.grpc))
	if out, err := p.ask("store", "init"); err != nil {
		t.Fatalf("store init: %v\n%s", err, out)
	}
	return p
}

// ownerOf is the buffer that has a shard open, or why there is none.
func (p *pipeline) ownerOf(shard int32) (*service, error) {
	var errs []error
	for _, b := range p.buffers() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		list, err := spillwayv1.NewClusterServiceClient(b.conn).ListShards(ctx, &spillwayv1.ListShardsRequest{})
		cancel()
		errs = append(errs, err)
		for _, s := range list.GetShards() {
			if s.Number == shard && s.State == "open" {
				return b, nil
			}
			errs = append(errs, fmt.Errorf("%s: %v", b.name, s))
		}
	}
	return nil, errors.Join(append(errs, fmt.Errorf("nobody has shard %d open", shard))...)
}

// TestBuffersTakeOverByThemselves: of four buffers, three have a shard each. One is killed, and
// the spare has its shard soon after the session timeout; one is stopped, and its shard is
// elsewhere within two; one is told to give its shard away. Everything arrives once.
func TestBuffersTakeOverByThemselves(t *testing.T) {
	const n = 24_000
	p := newGroupedPipeline(t, []string{stack.kafka.addr()}, 1)
	p.start()
	source := newProducer(t, stack.kafka, p.topic)
	produced := make(chan error, 1)
	go func() { produced <- source.produce(n, 1500) }()
	owner := func(shard int32) (b *service) {
		t.Helper()
		eventually(t, 30*time.Second, fmt.Sprintf("shard %d has an owner", shard), func() (err error) {
			b, err = p.ownerOf(shard)
			return err
		})
		return b
	}
	for shard := range int32(shardCount) {
		owner(shard)
	}
	// moves waits until another one than before has a shard.
	moves := func(what string, shard int32, before *service, began time.Time, limit time.Duration) {
		t.Helper()
		var now *service
		poll(t, 5*time.Millisecond, 30*time.Second, fmt.Sprintf("shard %d is elsewhere", shard), func() (err error) {
			if now, err = p.ownerOf(shard); err == nil && now == before {
				err = fmt.Errorf("%s has it still", now.name)
			}
			return err
		})
		took := time.Since(began)
		t.Logf("%s: shard %d went from %s to %s within %v", what, shard, before.name, now.name, took.Round(time.Millisecond))
		if took > limit {
			t.Errorf("%s: it took %v, want %v at most", what, took, limit)
		}
	}
	eventually(t, 30*time.Second, "records flow", func() error {
		if p.settled(0, "hdfs") == nil {
			return errors.New("nothing is appended yet")
		}
		return nil
	})

	killed := owner(1)
	began := time.Now()
	killed.kill()
	moves("killed", 1, killed, began, 10*time.Second) // a busy machine gets two seconds more
	killed.start()
	killed.waitReady() // a spare is ready

	stopped := owner(0)
	began = time.Now()
	ended := stopped.signal(syscall.SIGTERM)
	moves("stopped", 0, stopped, began, 2*time.Second)
	<-ended
	stopped.start()
	stopped.waitReady()

	moved := owner(2)
	began = time.Now()
	if out, err := p.ask("shards", "move", "c", "2", "--to", stopped.grpc); err != nil {
		t.Errorf("move: %v\n%s", err, out)
	}
	moves("moved", 2, moved, began, 3*time.Second) // with the start of the command
	out, err := p.ask("shards")
	if err != nil || !strings.Contains(out, fmt.Sprintf("2 of 3  %s  open", stopped.grpc)) || strings.Count(out, "open") != shardCount {
		t.Errorf("shards: %v\n%s", err, out)
	}
	if err := <-produced; err != nil {
		t.Fatal(err)
	}
	p.awaitRest(n, time.Minute, p.hdfs)
	tallyHDFS(t, p.hdfsDir, n).check(t, "HDFS", false)
	checkCommitted(t, stack.kafka, p.out, n)
}

var groupedSeconds = flag.Int("grouped.seconds", 60, "how long TestAGroupLosesNothing breaks things")

// TestAGroupLosesNothing: three brokers keep the queue, and a group of four buffers divides it.
// Buffers are killed with their disks, stopped with SIGTERM, and put to sleep, brokers and clients
// are killed, all at random; nobody says who has what. Everything arrives once, the audit has no
// hole, and in the end each shard has one owner.
func TestAGroupLosesNothing(t *testing.T) {
	random := seeded(t)
	brokers := startBrokers(t, 3)
	addresses := addressesOf(brokers)
	p := newGroupedPipeline(t, addresses, 3)
	p.start()
	n := *groupedSeconds * 2000 / partitions * partitions
	source := newProducer(t, stack.kafka, p.topic)
	produced := make(chan error, 1)
	go func() { produced <- source.produce(n, 2000) }()
	counts := make(map[string]int)
	var away sync.WaitGroup // a broker, one at a time
	var mending sync.Mutex
	for until := time.Now().Add(time.Duration(*groupedSeconds) * time.Second); time.Now().Before(until); {
		pause(t, time.Duration(1000+random.IntN(6000))*time.Millisecond)
		b := p.buffers()[random.IntN(len(p.buffers()))]
		switch random.IntN(6) {
		case 0, 1:
			counts["lost machines"]++
			b.kill()
			if err := os.RemoveAll(dataOf(p.dir, b)); err != nil {
				t.Fatal(err)
			}
			pause(t, time.Duration(random.IntN(3000))*time.Millisecond)
			b.start()
		case 2:
			counts["restarts"]++
			b.stop()
			b.start()
		case 3:
			counts["sleeping machines"]++
			b.signal(syscall.SIGSTOP)
			pause(t, time.Duration(1000+random.IntN(12_000))*time.Millisecond)
			b.signal(syscall.SIGCONT)
		case 4:
			counts["killed clients"]++
			victim := []*service{p.ingest, p.hdfs, p.kafka}[random.IntN(3)]
			victim.kill()
			victim.start()
		case 5:
			if !mending.TryLock() {
				continue
			}
			counts["killed brokers"]++
			broker := brokers[random.IntN(len(brokers))]
			away.Go(func() {
				defer mending.Unlock()
				if err := errors.Join(broker.crash(), broker.start()); err != nil {
					t.Errorf("kill a broker: %v", err)
				}
			})
		}
	}
	away.Wait()
	if err := <-produced; err != nil {
		t.Fatal(err)
	}
	t.Logf("%d records; %v", n, counts)
	for shard := range int32(shardCount) {
		eventually(t, time.Minute, fmt.Sprintf("shard %d has an owner", shard), func() error {
			_, err := p.ownerOf(shard)
			return err
		})
	}
	p.awaitRest(n, 3*time.Minute, p.hdfs)
	tallyHDFS(t, p.hdfsDir, n).check(t, "HDFS", false)
	checkCommitted(t, stack.kafka, p.out, n)
}
