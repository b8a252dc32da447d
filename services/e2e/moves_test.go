package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/failpoint"
)

// keepIn says where the queue is kept from now on.
func (p *pipeline) keepIn(kafka bool, namespace string) {
	p.t.Helper()
	dir := "commit_after: delivered\n      lease: 10s"
	topics := fmt.Sprintf("commit_after: delivered\n      store: {kafka: {brokers: [%s], namespace: %s, replication: 1}}\n      lease: 10s", stack.kafka.addr(), namespace)
	if kafka {
		p.rewrite("commit_after: safe\n      lease: 10s", topics, dir, topics)
	} else {
		p.rewrite(topics, dir)
	}
}

// killed runs a command that is killed at a failpoint, unless it does not come there.
func (p *pipeline) killed(point string, args ...string) {
	p.t.Helper()
	cmd := exec.Command(binary, append(args, "-c", p.config)...)
	cmd.Env = append(os.Environ(), failpoint.Variable+"="+point)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() >= 0 || err != nil && exit == nil {
		p.t.Fatalf("spillway %v, killed at %s: %v: %s", args, point, err, out)
	}
	p.t.Logf("spillway %s, to be killed at %s: %v", strings.Join(args, " "), point, err)
}

// TestAQueueMovesWithItsBacklog: one destination is away, the buffer is killed in the midst of
// files, and the source loses its records. The queue moves to Kafka, which is killed at each step.
// Both destinations go on, one goes away again, and with a new backlog, which the source loses,
// too, the queue moves back, killed at each step. Everything arrives once, in files and in
// transactions.
func TestAQueueMovesWithItsBacklog(t *testing.T) {
	const n = 60_000
	p := newPipeline(t, stack.kafka, `topic: "out-%{topic}"}`, `topic: "out-%{topic}", exactly_once: true}`)
	createTopic(t, stack.kafka, p.topic, nil)
	namespace := fmt.Sprintf("e2e-%d", time.Now().UnixNano())
	source := newProducer(t, stack.kafka, p.topic)
	p.start()
	p.kafka.kill()
	if err := source.produce(n/3, 10_000); err != nil {
		t.Fatal(err)
	}
	stored := &keptPipeline{pipeline: p}
	eventually(t, time.Minute, "the backlog is stored", func() error { return stored.stored("test", n/3) })
	p.buffer.kill()
	emptyTopic(t, p.topic)

	p.keepIn(true, namespace)
	if out, err := p.ask("store", "init"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	steps := []string{failpoint.MoveCopying, failpoint.MoveCopied, failpoint.MoveMarked, failpoint.MoveLedger, failpoint.MoveDone}
	move := func(command string) {
		t.Helper()
		began := time.Now()
		for _, step := range steps {
			p.killed(step, "store", command, "c")
		}
		out, err := p.ask("store", command, "c")
		if err != nil && !strings.Contains(err.Error(), "there is nothing to move") { // it ended before its last step
			t.Fatal(err)
		}
		t.Logf("store %s, killed %d times, after %v: %s", command, len(steps), time.Since(began).Round(time.Millisecond), out)
	}
	move("import")
	p.buffer.start()
	p.buffer.waitReady()
	p.kafka.start()
	eventually(t, time.Minute, "the backlog is delivered", func() error { return p.settled(n/3, "hdfs", "test") })
	p.kafka.kill()
	if err := source.produce(n/3, 10_000); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the next backlog is stored", func() error { return stored.stored("test", n/3) })
	p.buffer.kill()
	emptyTopic(t, p.topic)

	move("export")
	p.keepIn(false, namespace)
	p.buffer.start()
	p.buffer.waitReady()
	p.kafka.start()
	if err := source.produce(n/3, 0); err != nil {
		t.Fatal(err)
	}
	p.awaitRest(n, 2*time.Minute, p.hdfs)
	tallyHDFS(t, p.hdfsDir, n).check(t, "HDFS", false)
	checkCommitted(t, stack.kafka, p.out, n)
}

// TestWithoutTheLedger: a delivery to HDFS is killed with files in use, and the journal of its
// queue is deleted. The buffer refuses, the loss is accepted, and the files are recovered, once
// nobody holds their leases. Nothing is lost; what was delivered and not committed comes twice, as
// another destination was away.
func TestWithoutTheLedger(t *testing.T) {
	const n = 30_000
	p := newPipeline(t, stack.kafka, "idle: 2s", "idle: 1h")
	createTopic(t, stack.kafka, p.topic, nil)
	namespace := fmt.Sprintf("e2e-%d", time.Now().UnixNano())
	p.keepIn(true, namespace)
	if out, err := p.ask("store", "init"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	source := newProducer(t, stack.kafka, p.topic)
	p.start()
	p.kafka.kill() // so that nothing is committed
	if err := source.produce(n/2, 10_000); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "half is delivered", func() error { return p.settled(n/2, "hdfs") })
	p.hdfs.kill()
	p.buffer.kill()
	p.ingest.kill()
	admin := kadm.NewClient(newClient(t, stack.kafka))
	journal := "spillway." + namespace + ".c.journal"
	if r, err := admin.DeleteTopics(t.Context(), journal); err != nil || r[journal].Err != nil {
		t.Fatal(err, r)
	}
	p.buffer.start()
	eventually(t, time.Minute, "the buffer refuses", func() error {
		_, body, err := p.buffer.get("/readyz")
		if err == nil && !strings.Contains(body, journal+" does not exist") {
			err = errors.New(body)
		}
		return err
	})
	p.buffer.kill()
	out, err := p.ask("store", "init", "--accept-doubles", "c")
	if err == nil || !strings.Contains(out, journal+" does not exist") || !strings.Contains(out, "no heir any more: k") {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err = p.ask("store", "init", "--accept-doubles", "c", "--confirm", "c"); err != nil {
		t.Fatal(err)
	}
	t.Log(out)
	p.buffer.start()
	p.buffer.waitReady()
	eventually(t, 3*time.Minute, "the files in use are final", func() error {
		out, err := p.ask("files", "recover", "k", "--path", p.hdfsDir, "--confirm", "k")
		t.Log(out)
		if err == nil && strings.Contains(out, ".tmp") && strings.Contains(out, "left:") {
			err = errors.New("somebody holds their leases")
		}
		return err
	})
	for _, s := range []*service{p.ingest, p.hdfs, p.kafka} {
		s.start()
	}
	if err := source.produce(n/2, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the rest is delivered", func() error {
		return p.committedAll()
	})
	if _, err := spillwayv1.NewDeliveryAdminServiceClient(p.hdfs.conn).RollFiles(t.Context(), &spillwayv1.RollFilesRequest{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "every file is final", func() error { return noOpenFiles(p.hdfs) })
	y := tallyHDFS(t, p.hdfsDir, n)
	y.check(t, "HDFS", true)
	if y.doubled != n/2 {
		t.Errorf("%d records are doubled, want the %d that were delivered and not committed", y.doubled, n/2)
	}
	tallyTopic(t, stack.kafka, p.out, n).check(t, p.out, false)
}
