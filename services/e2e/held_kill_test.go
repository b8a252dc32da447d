package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// killed prepares a pipeline to a cluster with three replicas, and n deliveries to it.
func killed(t *testing.T, c *cluster, n int) (*pipeline, []*service) {
	t.Helper()
	p := newPipeline(t, stack.kafka, stack.hdfs, fmt.Sprintf("127.0.0.1:%d", c.port), "user: hdfs", "user: hdfs, replication: 3, block_size: 8MiB",
		`test: {topics: ["*"]`, `test: {topics: ["none"]`)
	createTopic(t, stack.kafka, p.topic, nil)
	deliveries := []*service{p.hdfs}
	for i := range n - 1 {
		deliveries = append(deliveries, p.replica(p.hdfs, i+2))
	}
	return p, deliveries
}

// produceUntil writes records steadily until it is told to stop; then it returns how many.
func produceUntil(t *testing.T, p *pipeline) (stop func() int) {
	t.Helper()
	source := newProducer(t, stack.kafka, p.topic)
	var end atomic.Bool
	produced := make(chan error, 1)
	go func() {
		var err error
		for !end.Load() && err == nil {
			err = source.produce(500, 0)
			time.Sleep(100 * time.Millisecond)
		}
		produced <- err
	}()
	return func() int {
		end.Store(true)
		if err := <-produced; err != nil {
			t.Fatal(err)
		}
		return int(source.written.Load())
	}
}

// TestHeldFilesSurviveKills: SIGKILL and SIGSTOP hit three deliveries, and SIGKILL the DataNodes
// of an HDFS with three replicas, in random order. Every record is there once, and 30 s after the
// last kill no file is in use.
func TestHeldFilesSurviveKills(t *testing.T) {
	random := seeded(t)
	rounds := 4
	if s := os.Getenv(roundsEnv); s != "" {
		var err error
		if rounds, err = strconv.Atoi(s); err != nil {
			t.Fatalf("%s: %v", roundsEnv, err)
		}
	}
	c := newCluster(t, heldNodes, "HDFS_REPLICATION=3", "HDFS_SITE_EXTRA=dfs.namenode.redundancy.considerLoad=false")
	p, deliveries := killed(t, c, 3)
	for _, s := range append([]*service{p.buffer, p.ingest}, deliveries...) {
		s.start()
	}
	for _, s := range append([]*service{p.buffer, p.ingest}, deliveries...) {
		s.waitReady()
	}
	stop := produceUntil(t, p)
	dataNode := func() {
		node := strconv.Itoa(1 + random.IntN(heldNodes))
		if err := errors.Join(c.script("hdfs-kill-datanode", node), c.script("hdfs-restart-datanode", node)); err != nil {
			t.Fatal(err)
		}
	}
	again := func(s *service) {
		s.kill()
		s.start()
	}
	for round := range rounds {
		pause(t, time.Duration(random.IntN(3000))*time.Millisecond)
		i := random.IntN(len(deliveries))
		a, b := deliveries[i], deliveries[(i+1)%len(deliveries)]
		kind := (round + random.IntN(2)) % 4
		t.Logf("round %d: %s", round, []string{"a delivery is killed", "a DataNode is killed", "a delivery is killed with a DataNode", "a delivery sleeps and another is killed"}[kind])
		switch kind {
		case 0:
			again(a)
		case 1:
			dataNode()
		case 2:
			var both sync.WaitGroup
			both.Go(func() { again(a) })
			dataNode()
			both.Wait()
		case 3:
			a.pause(syscall.SIGSTOP)
			again(b)
			pause(t, time.Duration(random.IntN(12_000))*time.Millisecond)
			a.pause(syscall.SIGCONT)
		}
	}
	last := time.Now()
	n := stop()
	eventually(t, 3*time.Minute, "everything is delivered and final", func() error {
		return errors.Join(p.settled(n, "hdfs"), noOpenFiles(deliveries...), p.noOrphans())
	})
	took := time.Since(last)
	t.Logf("%d records, %d rounds; nothing was in use %.1f s after the last kill", n, rounds, took.Seconds())
	if took > 30*time.Second {
		t.Errorf("files were in use for %.1f s after the last kill", took.Seconds())
	}
	c.tally(t, p.hdfsDir, n).check(t, "HDFS", false)
}

// sessions is how many live ones the subscription has.
func (p *pipeline) sessions() (live int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	resp, err := spillwayv1.NewBufferAdminServiceClient(p.buffer.conn).ListSessions(ctx, &spillwayv1.ListSessionsRequest{Subscription: "c/hdfs"})
	for _, s := range resp.GetSessions() {
		if s.Live {
			live++
		}
	}
	return live, err
}

// relay is a link between a service and a port that can be cut: nothing arrives any more in
// either direction, and no side is told.
type relay struct {
	lis net.Listener

	mu   sync.Mutex
	open chan struct{} // closed while the link works
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{lis: lis}
	r.part()
	r.mend()
	t.Cleanup(func() { _ = lis.Close() })
	go func() {
		for {
			in, err := lis.Accept()
			if err != nil {
				return
			}
			go func() {
				<-r.works()
				out, err := net.Dial("tcp", to)
				if err != nil {
					_ = in.Close()
					return
				}
				go r.copy(out, in)
				r.copy(in, out)
			}()
		}
	}()
	return r
}

func (r *relay) works() chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.open
}

func (r *relay) copy(to, from net.Conn) {
	defer func() { _, _ = to.Close(), from.Close() }()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		<-r.works()
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (r *relay) part() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open = make(chan struct{})
}

func (r *relay) mend() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.open)
}

// TestDeliveryIsCutOff: the link between a busy delivery and the buffer is cut, that to HDFS is
// not. It lets go of its files before the buffer gives them to another, which finishes them; when
// the link is back it goes on.
func TestDeliveryIsCutOff(t *testing.T) {
	t.Parallel()
	c := newCluster(t, heldNodes, "HDFS_REPLICATION=3")
	p, deliveries := killed(t, c, 2)
	link := newRelay(t, p.buffer.grpc)
	for _, s := range []*service{p.buffer, p.ingest, deliveries[1]} {
		s.start()
		s.waitReady()
	}
	text, err := os.ReadFile(p.config)
	if err != nil {
		t.Fatal(err)
	}
	p.rewrite(fmt.Sprintf("buffers: [%q]", p.buffer.grpc), fmt.Sprintf("buffers: [%q]", link.lis.Addr().String()))
	p.hdfs.start()
	p.hdfs.waitReady()
	if err := os.WriteFile(p.config, text, 0o644); err != nil {
		t.Fatal(err)
	}
	stop := produceUntil(t, p)
	eventually(t, time.Minute, "both have files in use", func() error {
		if noOpenFiles(p.hdfs) == nil || noOpenFiles(deliveries[1]) == nil {
			return errors.New("one has none")
		}
		return nil
	})
	link.part()
	began := time.Now()
	eventually(t, 30*time.Second, "it lets go of its files", func() error {
		if noOpenFiles(p.hdfs) != nil {
			return errors.New("it has files")
		}
		return nil
	})
	letGo := time.Since(began)
	eventually(t, time.Minute, "the buffer gives them to the other one", func() error {
		if sessions, err := p.sessions(); err != nil || sessions != 1 {
			return fmt.Errorf("%d sessions live, %v", sessions, err)
		}
		return nil
	})
	given := time.Since(began)
	t.Logf("it let go after %.1f s, the buffer gave its files away after %.1f s", letGo.Seconds(), given.Seconds())
	if given < letGo {
		t.Error("the heir could meet a busy writer")
	}
	link.mend()
	eventually(t, time.Minute, "it is back", func() error {
		if sessions, err := p.sessions(); err != nil || sessions != 2 {
			return fmt.Errorf("%d sessions live, %v", sessions, err)
		}
		return nil
	})
	n := stop()
	eventually(t, time.Minute, "everything is delivered and final", func() error {
		return errors.Join(p.settled(n, "hdfs"), noOpenFiles(deliveries...), p.noOrphans())
	})
	c.tally(t, p.hdfsDir, n).check(t, "HDFS", false)
}
