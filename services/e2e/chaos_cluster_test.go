package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/shards"
)

const (
	chaosShards     = 6
	chaosPartitions = 12 // of the topic
	chaosBuffers    = 3
	chaosSession    = 6 * time.Second
)

// chaosCluster is a pipeline whose queue three buffers divide in shards, which three brokers keep.
// Each link between a buffer and a broker, and between a client and a buffer, is a relay.
type chaosCluster struct {
	*pipeline
	of       int // how many shards
	brokers  []broker
	journal  [chaosBuffers][]*relay // by buffer and broker
	upstream [chaosBuffers]*relay   // of the ingest
	hdfsEnd  [chaosBuffers]*relay   // of the delivery to HDFS
	kafkaEnd [chaosBuffers]*relay   // of the one to Kafka
}

// own gives a service a file of its own, which differs from the pipeline's.
func (p *pipeline) own(s *service, edit ...string) {
	p.t.Helper()
	text, err := os.ReadFile(p.config)
	if err != nil {
		p.t.Fatal(err)
	}
	file := filepath.Join(p.dir, s.name+".yaml")
	if err := os.WriteFile(file, []byte(strings.NewReplacer(edit...).Replace(string(text))), 0o644); err != nil {
		p.t.Fatal(err)
	}
	s.args[slices.Index(s.args, p.config)] = file
}

// address is where a relay takes connections.
func (r *relay) address() string { return r.lis.Addr().String() }

// newChaosCluster has so many shards, of which so many have no partition of the topic.
func newChaosCluster(t *testing.T, of, empty int, edit ...string) *chaosCluster {
	t.Helper()
	c := &chaosCluster{of: of}
	// A broker has a listener for each buffer, which it advertises at the relay of the two.
	c.brokers = startBrokersWith(t, 3, func(b broker) string {
		listeners := []string{"PLAINTEXT://" + b.addr(), fmt.Sprintf("CONTROLLER://127.0.0.1:%d", b.port+controllerPort)}
		advertised, protocols := []string{"PLAINTEXT://" + b.addr()}, []string{"PLAINTEXT:PLAINTEXT", "CONTROLLER:PLAINTEXT"}
		for i := range chaosBuffers {
			at := freeAddr(t)
			link := newRelay(t, at)
			c.journal[i] = append(c.journal[i], link)
			name := fmt.Sprint("BUFFER", i)
			listeners, advertised, protocols = append(listeners, name+"://"+at), append(advertised, name+"://"+link.address()), append(protocols, name+":PLAINTEXT")
		}
		return fmt.Sprintf("\nlisteners=%s\nadvertised.listeners=%s\nlistener.security.protocol.map=%s", strings.Join(listeners, ","), strings.Join(advertised, ","), strings.Join(protocols, ","))
	})

	p := newPipeline(t, stack.kafka)
	c.pipeline = p
	cluster, err := kadm.NewClient(newClient(t, stack.kafka)).BrokerMetadata(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	topic := p.topic
	without := func() (n int) {
		for shard := range of {
			if shards.Count(cluster.Cluster, topic, chaosPartitions, shard, of) == 0 {
				n++
			}
		}
		return n
	}
	for i := 0; without() != empty; i++ {
		topic = fmt.Sprint(p.topic, "-", i)
	}
	for i := 1; i < chaosBuffers; i++ {
		p.others = append(p.others, newService(t, p.dir, fmt.Sprint("buffer-", i), "buffer", "-c", p.config))
	}
	var addresses []string
	for i, b := range p.buffers() {
		b.env = []string{"SPILLWAY_BUFFER__LISTEN=" + b.grpc, "SPILLWAY_BUFFER__HTTP=" + b.http, "SPILLWAY_BUFFER__DATA_DIR=" + filepath.Join(p.dir, fmt.Sprint("data-", i))}
		addresses = append(addresses, b.grpc)
		c.upstream[i], c.hdfsEnd[i], c.kafkaEnd[i] = newRelay(t, b.grpc), newRelay(t, b.grpc), newRelay(t, b.grpc)
	}
	store := "JOURNAL"
	all := fmt.Sprintf("buffers: [%s]", strings.Join(addresses, ", "))
	p.rewrite(append([]string{p.topic, topic, fmt.Sprintf("buffers: [%q]", p.buffer.grpc), all, "lease: 10s", fmt.Sprint("lease: 5s\n      shards: ", of),
		`topic: "out-%{topic}"}`, `topic: "out-%{topic}", exactly_once: true}`,
		"commit_after: safe", fmt.Sprintf("commit_after: delivered\n      store: {kafka: {brokers: [%s], namespace: e2e-%d, replication: 3, owners: group, session_timeout: %s}}", store, time.Now().UnixNano(), chaosSession)}, edit...)...)
	p.topic, p.out, p.hdfsDir = topic, "out-"+topic, "/e2e/"+topic
	if _, err := kadm.NewClient(newClient(t, stack.kafka)).CreateTopic(t.Context(), chaosPartitions, 1, nil, p.topic); err != nil {
		t.Fatal(err)
	}
	join := func(all []*relay) string {
		var text []string
		for _, r := range all {
			text = append(text, r.address())
		}
		return strings.Join(text, ", ")
	}
	for i, b := range p.buffers() {
		p.own(b, store, join(c.journal[i]))
	}
	for s, ends := range map[*service][]*relay{p.ingest: c.upstream[:], p.hdfs: c.hdfsEnd[:], p.kafka: c.kafkaEnd[:]} {
		p.own(s, all, fmt.Sprintf("buffers: [%s]", join(ends)), store, c.brokers[0].addr())
	}
	p.rewrite(store, c.brokers[0].addr())
	if out, err := p.ask("store", "init"); err != nil {
		t.Fatalf("store init: %v\n%s", err, out)
	}
	return c
}

// owned counts the shards that each buffer has open, and says which are nobody's.
func (c *chaosCluster) owned() (counts [chaosBuffers]int, missing []int) {
	var answers [chaosBuffers][]*spillwayv1.Shard
	var wg sync.WaitGroup
	for i, b := range c.buffers() {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			defer cancel()
			list, _ := spillwayv1.NewClusterServiceClient(b.conn).ListShards(ctx, &spillwayv1.ListShardsRequest{})
			answers[i] = list.GetShards()
		})
	}
	wg.Wait()
	for shard := range int32(c.of) {
		has := false
		for i, all := range answers {
			if slices.ContainsFunc(all, func(s *spillwayv1.Shard) bool { return s.Number == shard && s.State == "open" }) {
				counts[i]++
				has = true
			}
		}
		if !has {
			missing = append(missing, int(shard))
		}
	}
	return counts, missing
}

// open waits until each shard is somebody's.
func (c *chaosCluster) open(t *testing.T, what string, limit time.Duration) {
	t.Helper()
	poll(t, 20*time.Millisecond, limit, what, func() error {
		if counts, missing := c.owned(); len(missing) > 0 {
			return fmt.Errorf("nobody has the shards %v; the buffers have %v", missing, counts)
		}
		return nil
	})
}

// watcher measures for how long shards are nobody's.
type watcher struct {
	c  *chaosCluster
	mu sync.Mutex
	// since is when a shard was last somebody's; worst is the longest time that one was nobody's
	// since the last reset.
	since []time.Time
	worst time.Duration
}

func newWatcher(c *chaosCluster) *watcher {
	return &watcher{c: c, since: slices.Repeat([]time.Time{time.Now()}, c.of)}
}

func (w *watcher) run(ctx context.Context) {
	for ctx.Err() == nil {
		asked := time.Now()
		_, missing := w.c.owned()
		w.mu.Lock()
		for shard := range w.since {
			if slices.Contains(missing, shard) {
				w.worst = max(w.worst, time.Since(w.since[shard]))
			} else {
				w.since[shard] = asked
			}
		}
		w.mu.Unlock()
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// reset returns the longest time that a shard was nobody's, and begins anew.
func (w *watcher) reset() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer func() { w.worst = 0 }()
	return w.worst
}

// fault is something that happens to a buffer, or to a broker of that number. What it does is over
// when do returns; limit is for how long a shard may be nobody's by it, when it has lasted so
// long.
type fault struct {
	name  string
	limit func(lasted time.Duration) time.Duration
	do    func(victim int)
}

// TestClusterChaos: three brokers keep a queue in six shards, two each at three buffers, which
// take them over from each other. At random, and two at once now and then, buffers are killed,
// with their disks and without, stopped, and put to sleep, brokers are killed, and links are cut
// between one buffer and one broker, and between a client and a buffer. No shard is nobody's for
// longer than the faults explain, everything arrives once at both destinations, and the audit has
// no hole.
func TestClusterChaos(t *testing.T) {
	random := seeded(t)
	rounds := 12
	if s := os.Getenv(roundsEnv); s != "" {
		var err error
		if rounds, err = strconv.Atoi(s); err != nil {
			t.Fatalf("%s: %v", roundsEnv, err)
		}
		rounds *= 3 // a round of others takes three times as long
	}
	c := newChaosCluster(t, chaosShards, 0)
	c.start()
	open := func(what string, limit time.Duration) {
		t.Helper()
		c.open(t, what, limit)
	}
	open("all shards are open", time.Minute)
	c.even(t)
	source := newProducer(t, stack.kafka, c.topic)
	source.over = chaosPartitions
	produced := repeat(0, func() error {
		return source.produce(3000, 1500)
	})
	eventually(t, 30*time.Second, "records flow", func() error {
		if c.settled(0, "hdfs") == nil {
			return errors.New("nothing is appended yet")
		}
		return nil
	})
	watched, done := context.WithCancel(t.Context())
	w := newWatcher(c)
	var watching sync.WaitGroup
	watching.Go(func() { w.run(watched) })
	defer watching.Wait()
	defer done()

	// Two each, and three each when one is dead.
	dead := c.buffers()[random.IntN(chaosBuffers)]
	dead.kill()
	open("the others have what the dead one had", 30*time.Second)
	counts, _ := c.owned()
	took := w.reset()
	t.Logf("of %d shards two each, and when %s is killed %v; the longest time that one was nobody's is %v", chaosShards, dead.name, counts, took.Round(time.Millisecond))
	for i, b := range c.buffers() {
		if want := map[bool]int{true: 0, false: chaosShards / (chaosBuffers - 1)}[b == dead]; counts[i] != want {
			t.Errorf("%s has %d shards when %s is dead, want %d", b.name, counts[i], dead.name, want)
		}
	}
	dead.start()
	dead.waitReady()

	const (
		second  = 2 * time.Second // what a planned move takes, and a takeover beside the session timeout
		machine = 5 * time.Second // what the machine of the tests adds when it is busy
	)
	takeover := func(time.Duration) time.Duration { return chaosSession + second }
	nothing := func(time.Duration) time.Duration { return 0 }
	wait := func(least, most int) { pause(t, time.Duration(least+random.IntN(most-least))*time.Millisecond) }
	cut := func(r *relay, most int) {
		r.part()
		wait(500, most)
		r.mend()
	}
	buffer := func(i int) *service { return c.buffers()[i] }
	faults := []fault{
		{"killed", takeover, func(i int) {
			buffer(i).kill()
			wait(0, 9000)
			buffer(i).start()
		}},
		{"killed, with its disk", takeover, func(i int) {
			buffer(i).kill()
			if err := os.RemoveAll(dataOf(c.dir, buffer(i))); err != nil {
				t.Error(err)
			}
			wait(0, 9000)
			buffer(i).start()
		}},
		{"asleep", takeover, func(i int) {
			buffer(i).signal(syscall.SIGSTOP)
			wait(500, 12_000)
			buffer(i).signal(syscall.SIGCONT)
		}},
		{"stopped", func(time.Duration) time.Duration { return second }, func(i int) {
			buffer(i).stop()
			buffer(i).start()
		}},
		// It may be the group's: nobody takes over until another one is.
		{"a broker killed", func(lasted time.Duration) time.Duration { return lasted + second }, func(i int) {
			if err := errors.Join(c.brokers[i].crash(), c.brokers[i].start()); err != nil {
				t.Errorf("kill a broker: %v", err)
			}
		}},
		// Cut off from one broker, which may be that of the group: its shards are others' then.
		{"cut off from a broker", func(lasted time.Duration) time.Duration { return lasted + second }, func(i int) { cut(c.journal[i][random.IntN(len(c.brokers))], 25_000) }},
		{"ingest cut off", nothing, func(i int) { cut(c.upstream[i], 10_000) }},
		{"a delivery cut off", nothing, func(i int) { cut([]*relay{c.hdfsEnd[i], c.kafkaEnd[i]}[random.IntN(2)], 10_000) }},
	}
	type figure struct {
		times       int
		worst, most time.Duration // nobody's, and what was allowed then
	}
	figures := make(map[string]*figure)
	for range rounds {
		chosen := []int{random.IntN(len(faults))}
		if random.IntN(3) == 0 {
			chosen = append(chosen, random.IntN(len(faults)))
		}
		victim := random.IntN(chaosBuffers)
		w.reset()
		limit, names := time.Duration(0), []string{}
		var wg sync.WaitGroup
		var mu sync.Mutex
		for n, at := range chosen {
			f, i := faults[at], (victim+n)%chaosBuffers // of two buffers, and at most one broker
			if n > 0 && strings.Contains(f.name, "broker") {
				continue
			}
			names = append(names, f.name)
			wg.Go(func() {
				began := time.Now()
				f.do(i)
				mu.Lock()
				defer mu.Unlock()
				limit += f.limit(time.Since(began))
			})
		}
		wg.Wait()
		open("all shards are open again after "+strings.Join(names, " and "), 2*time.Minute)
		for _, b := range c.buffers() {
			eventually(t, time.Minute, b.name+" is ready", b.ready)
		}
		name := strings.Join(names, " and ")
		worst := w.reset()
		f := figures[names[0]]
		if len(names) > 1 {
			f = figures["two at once"]
			names = []string{"two at once"}
		}
		if f == nil {
			f = &figure{}
			figures[names[0]] = f
		}
		f.times++
		f.worst, f.most = max(f.worst, worst), max(f.most, limit)
		counts, _ := c.owned()
		t.Logf("%s (%s): a shard was nobody's for %v, the faults explain %v; the buffers have %v", name, buffer(victim).name, worst.Round(time.Millisecond), limit.Round(time.Millisecond), counts)
		if worst > limit+machine {
			t.Errorf("%s: a shard was nobody's for %v, want %v at most", name, worst, limit)
		}
		wait(500, 3000)
	}
	if err := produced(); err != nil {
		t.Fatal(err)
	}
	n := int(source.written.Load())
	for name, f := range figures {
		t.Logf("%-24s %3d times, nobody's for at most %v", name, f.times, f.worst.Round(time.Millisecond))
	}
	c.awaitRest(n, 5*time.Minute, c.hdfs)
	tallyHDFS(t, c.hdfsDir, n).check(t, "HDFS", false)
	checkCommittedOf(t, stack.kafka, c.out, n, chaosPartitions)
	t.Logf("%d records arrived once at both destinations", n)
	var peaks []string
	for _, b := range c.buffers() {
		_, peak := b.memoryBytes()
		peaks = append(peaks, fmt.Sprintf("%d MiB", peak>>20))
		if limit := int64(64 + 256); peak>>20 > limit {
			t.Errorf("%s was %d MiB resident, want at most %d", b.name, peak>>20, limit)
		}
	}
	t.Logf("buffers were resident at most %v since their last start", peaks)
}

// even moves shards until no buffer has more than another and one.
func (c *chaosCluster) even(t *testing.T) {
	t.Helper()
	eventually(t, 2*time.Minute, "each buffer has as many shards", func() error {
		counts, missing := c.owned()
		if len(missing) > 0 {
			return fmt.Errorf("nobody has %v", missing)
		}
		from, to := 0, 0
		for i, n := range counts {
			if n > counts[from] {
				from = i
			}
			if n < counts[to] {
				to = i
			}
		}
		if counts[from]-counts[to] <= 1 {
			return nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		list, err := spillwayv1.NewClusterServiceClient(c.buffers()[from].conn).ListShards(ctx, &spillwayv1.ListShardsRequest{})
		if err != nil {
			return err
		}
		shard := list.Shards[len(list.Shards)-1].Number
		if out, err := c.ask("shards", "move", "c", fmt.Sprint(shard), "--to", c.buffers()[to].grpc); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return fmt.Errorf("the buffers have %v; shard %d was moved", counts, shard)
	})
}
