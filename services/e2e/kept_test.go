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

	"github.com/twmb/franz-go/pkg/kadm"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// keptPipeline is a pipeline in three shards that are kept in Kafka. Each shard has two machines:
// one has it, the other one is to take over.
type keptPipeline struct {
	*pipeline
	spares [shardCount]*service
}

// newKeptPipeline has the queue kept by brokers, in so many replicas.
func newKeptPipeline(t *testing.T, brokers []string, replication int, edit ...string) *keptPipeline {
	t.Helper()
	namespace := fmt.Sprintf("e2e-%d", time.Now().UnixNano())
	p := &keptPipeline{pipeline: newShardedPipeline(t, append([]string{"commit_after: safe", fmt.Sprintf("commit_after: delivered\n      store: {kafka: {brokers: [%s], namespace: %s, replication: %d}}",
		strings.Join(brokers, ", "), namespace, replication)}, edit...)...)}
	var addresses []string
	for shard := range p.spares {
		s := newService(t, p.dir, fmt.Sprint("spare-", shard), "buffer", "-c", p.config)
		s.env = []string{fmt.Sprint("SPILLWAY_BUFFER__SHARD=", shard), "SPILLWAY_BUFFER__LISTEN=" + s.grpc, "SPILLWAY_BUFFER__HTTP=" + s.http,
			"SPILLWAY_BUFFER__DATA_DIR=" + filepath.Join(p.dir, s.name)}
		p.spares[shard] = s
		addresses = append(addresses, s.grpc)
	}
	p.rewrite("buffers: [", fmt.Sprintf("buffers: [%s, ", strings.Join(addresses, ", ")))
	if out, err := p.ask("store", "init"); err != nil || strings.Count(out, "made") != 1 {
		t.Fatalf("store init: %v\n%s", err, out)
	}
	if out, err := p.ask("store", "check"); err != nil {
		t.Fatalf("store check: %v\n%s", err, out)
	}
	return p
}

// dataOf is the data directory of a buffer.
func dataOf(dir string, b *service) string {
	for _, e := range b.env {
		if d, ok := strings.CutPrefix(e, "SPILLWAY_BUFFER__DATA_DIR="); ok {
			return d
		}
	}
	return filepath.Join(dir, "data")
}

// owner is the machine that has a shard.
func (p *keptPipeline) owner(shard int) **service {
	if shard == 0 {
		return &p.buffer
	}
	return &p.others[shard-1]
}

// takeOver has the other machine of a shard, with an empty disk, take it, and returns the one that
// had it.
func (p *keptPipeline) takeOver(shard int) (former *service) {
	p.t.Helper()
	heir := p.spares[shard]
	heir.kill()
	if err := os.RemoveAll(dataOf(p.dir, heir)); err != nil {
		p.t.Fatal(err)
	}
	owner := p.owner(shard)
	former = *owner
	*owner, p.spares[shard] = heir, former
	heir.start()
	return former
}

// shardAt is what a buffer says of its shard.
func shardAt(b *service) (*spillwayv1.Shard, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	list, err := spillwayv1.NewClusterServiceClient(b.conn).ListShards(ctx, &spillwayv1.ListShardsRequest{})
	if err != nil {
		return nil, err
	}
	if len(list.Shards) != 1 {
		return nil, fmt.Errorf("%s has %v", b.name, list.Shards)
	}
	return list.Shards[0], nil
}

// TestAnotherMachineTakesOver: one destination is away, and while records flow a buffer is killed
// and its disk lost. Another machine takes its shard from Kafka. Then the source deletes its
// records, and the first machine comes back, with nothing, and takes the shard from the second,
// which goes on until it is told, and stays out of it then. Everything arrives once, also at the
// destination that comes back last.
func TestAnotherMachineTakesOver(t *testing.T) {
	const n = 24_000
	p := newKeptPipeline(t, []string{stack.kafka.addr()}, 1)
	p.start()
	p.kafka.kill()
	source := newProducer(t, stack.kafka, p.topic)
	produced := make(chan error, 1)
	go func() { produced <- source.produce(n/2, 6_000) }()
	eventually(t, 30*time.Second, "shard 1 has records", func() error {
		audit, err := auditOf(*p.owner(1))
		for _, a := range audit.GetPartitions() {
			if a.AppendedOffset > 0 {
				return nil
			}
		}
		return errors.Join(err, errors.New("nothing is appended yet"))
	})
	before, err := shardAt(*p.owner(1))
	if err != nil {
		t.Fatal(err)
	}
	(*p.owner(1)).kill()
	began := time.Now()
	p.takeOver(1)
	heir := *p.owner(1)
	poll(t, 5*time.Millisecond, 30*time.Second, "another machine has the shard", heir.ready)
	t.Logf("another machine has the shard after %v", time.Since(began).Round(time.Millisecond))
	after, err := shardAt(heir)
	if err != nil || after.Life != before.Life || after.Epoch <= before.Epoch {
		t.Errorf("the shard is %v, %v; before it was %v", after, err, before)
	}
	if err := <-produced; err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "one destination has everything", func() error { return p.settled(n/2, "hdfs") })
	eventually(t, time.Minute, "what the other one lacks is stored", func() error { return p.stored("test", n/2) })
	emptyTopic(t, p.topic)

	p.takeOver(1)
	eventually(t, 30*time.Second, "the first machine has the shard again", (*p.owner(1)).ready)
	p.kafka.start()
	if err := source.produce(n/2, 0); err != nil {
		t.Fatal(err)
	}
	p.awaitRest(n, time.Minute, p.hdfs)
	tallyHDFS(t, p.hdfsDir, n).check(t, "HDFS", false)
	checkCommitted(t, stack.kafka, p.out, n)
	code, body, err := heir.get("/readyz")
	if err != nil || code != 503 || !strings.Contains(body, "fenced: ") {
		t.Errorf("the second machine says %d %q, %v; want that it is fenced", code, body, err)
	}
	if s, err := shardAt(heir); err != nil || !strings.HasPrefix(s.State, "fenced: ") {
		t.Errorf("the second machine lists %v, %v", s, err)
	}
	heir.stop() // a fenced buffer drains as any other
}

// TestSourceForgetsWhatIsDeferred: a destination is away, and most of its backlog is left to the
// source by its policy. When half of the time for which the source keeps records is over, they are
// stored. Then the source deletes them, and all buffers are lost with their disks. Everything
// arrives once.
func TestSourceForgetsWhatIsDeferred(t *testing.T) {
	const n, keeps = 24_000, 40 * time.Second
	p := newKeptPipeline(t, []string{stack.kafka.addr()}, 1, `test: {topics: ["*"], on_full: block}`, `test: {topics: ["*"], on_full: defer, limit: 64KiB}`)
	admin := kadm.NewClient(newClient(t, stack.kafka))
	if _, err := admin.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Name: "retention.ms", Value: kadm.StringPtr(fmt.Sprint(keeps.Milliseconds()))}}, p.topic); err != nil {
		t.Fatal(err)
	}
	p.start()
	p.kafka.kill()
	if err := newProducer(t, stack.kafka, p.topic).produce(n, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "one destination has everything", func() error { return p.settled(n, "hdfs") })
	deferred := int64(0)
	for _, b := range p.buffers() {
		subs, err := subscriptionsOf(b)
		if err != nil {
			t.Fatal(err)
		}
		deferred += subs["test"].DeferredOffsets
	}
	if deferred < n/4 {
		t.Fatalf("%d offsets are deferred: that is no test", deferred)
	}
	began := time.Now()
	eventually(t, 2*time.Minute, "what is deferred is stored", func() error { return p.stored("test", n) })
	t.Logf("%d deferred offsets were stored after %v; the source keeps them for %v", deferred, time.Since(began).Round(time.Second), keeps)
	emptyTopic(t, p.topic)
	for shard := range p.spares {
		(*p.owner(shard)).kill()
		p.takeOver(shard)
	}
	p.kafka.start()
	p.awaitRest(n, time.Minute, p.hdfs)
	tallyHDFS(t, p.hdfsDir, n).check(t, "HDFS", false)
	checkCommitted(t, stack.kafka, p.out, n)
}

// stored is nil when a subscription has so many records pending, and all of them are in stores.
func (p *keptPipeline) stored(subscription string, records int64) error {
	pending := int64(0)
	for _, b := range p.buffers() {
		subs, err := subscriptionsOf(b)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		q, err := spillwayv1.NewBufferAdminServiceClient(b.conn).GetQueue(ctx, &spillwayv1.GetQueueRequest{Name: "c"})
		cancel()
		if err != nil {
			return err
		}
		if s := subs[subscription]; s.DeferredOffsets > 0 || q.Queue.MemoryRecords > 0 {
			return fmt.Errorf("%s has %d records in memory, and lacks %d", b.name, q.Queue.MemoryRecords, s.DeferredOffsets)
		}
		pending += subs[subscription].PendingRecords
	}
	if pending != records {
		return fmt.Errorf("%d records are pending, want %d", pending, records)
	}
	return nil
}

// emptyTopic deletes all records that a topic has.
func emptyTopic(t testing.TB, topic string) {
	t.Helper()
	admin := kadm.NewClient(newClient(t, stack.kafka))
	ends, err := admin.ListEndOffsets(t.Context(), topic)
	if err == nil {
		var deleted kadm.DeleteRecordsResponses
		deleted, err = admin.DeleteRecords(t.Context(), ends.Offsets())
		err = errors.Join(err, deleted.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
}

var keptSeconds = flag.Int("kept.seconds", 60, "how long TestKeptInKafkaLosesNothing breaks things")

// TestKeptInKafkaLosesNothing: three brokers keep the queue in three replicas. Machines of buffers
// are lost, or stopped while another takes over and then go on; ingest, deliveries and brokers are
// killed, all at random. Everything arrives once, and the audit has no hole.
func TestKeptInKafkaLosesNothing(t *testing.T) {
	random := seeded(t)
	brokers := startBrokers(t, 3)
	addresses := addressesOf(brokers)
	p := newKeptPipeline(t, addresses, 3)
	p.start()
	n := *keptSeconds * 2000 / partitions * partitions
	source := newProducer(t, stack.kafka, p.topic)
	produced := make(chan error, 1)
	go func() { produced <- source.produce(n, 2000) }()
	counts := make(map[string]int)
	var away sync.WaitGroup // a broker, one at a time
	var mending sync.Mutex
	for until := time.Now().Add(time.Duration(*keptSeconds) * time.Second); time.Now().Before(until); {
		pause(t, time.Duration(500+random.IntN(2500))*time.Millisecond)
		shard := random.IntN(shardCount)
		switch random.IntN(5) {
		case 0, 1:
			counts["lost machines"]++
			(*p.owner(shard)).kill()
			pause(t, time.Duration(random.IntN(1000))*time.Millisecond)
			p.takeOver(shard)
		case 2:
			if (*p.owner(shard)).ready() != nil {
				continue // one that is still opening would take the shard back when it goes on
			}
			counts["stopped machines"]++
			(*p.owner(shard)).signal(syscall.SIGSTOP)
			former := p.takeOver(shard)
			pause(t, time.Duration(1000+random.IntN(3000))*time.Millisecond)
			former.signal(syscall.SIGCONT)
		case 3:
			counts["killed clients"]++
			victim := []*service{p.ingest, p.hdfs, p.kafka}[random.IntN(3)]
			victim.kill()
			victim.start()
		case 4:
			if !mending.TryLock() {
				continue
			}
			counts["killed brokers"]++
			b := brokers[random.IntN(len(brokers))]
			away.Go(func() {
				defer mending.Unlock()
				if err := errors.Join(b.crash(), b.start()); err != nil {
					t.Errorf("kill a broker: %v", err)
				}
			})
		}
	}
	away.Wait()
	if err := <-produced; err != nil {
		t.Fatal(err)
	}
	for shard := range p.spares {
		owner := *p.owner(shard)
		eventually(t, time.Minute, owner.name+" has its shard", func() error {
			code, body, err := owner.get("/readyz")
			if err == nil && code != 200 {
				err = errors.New(body)
			}
			if err == nil || !strings.Contains(body, "fenced: ") {
				return err
			}
			// What a dead process had sent came late. Somebody has to start the owner again.
			counts["fenced by the dead"]++
			owner.kill()
			owner.start()
			return err
		})
	}
	t.Logf("%d records; %v", n, counts)
	p.awaitRest(n, 3*time.Minute, p.hdfs)
	tallyHDFS(t, p.hdfsDir, n).check(t, "HDFS", false)
	checkCommitted(t, stack.kafka, p.out, n)
}
