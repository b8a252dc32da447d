package e2e

import (
	"sync"
	"testing"
	"time"
)

// TestHDFSKilled: while two replicas of the delivery write, SIGKILL hits the NameNode, the
// DataNode, the replicas and the buffer, again and again. Every record is in HDFS exactly once,
// and no file stays in use.
func TestHDFSKilled(t *testing.T) {
	const n = 150_000
	random := seeded(t)
	p := newPipeline(t, stack.kafka)
	createTopic(t, stack.kafka, p.topic, nil)
	other := p.replica(p.hdfs, 2)
	p.start()
	other.start()
	other.waitReady()
	source := newProducer(t, stack.kafka, p.topic)
	produced := make(chan error, 1)
	go func() { produced <- source.produce(n, 4_000) }()

	// Every script brings its victim back itself; the services do so here.
	datanode := func() error {
		if err := hdfsScript("hdfs-kill-datanode", "1"); err != nil {
			return err
		}
		return hdfsScript("hdfs-restart-datanode", "1")
	}
	namenode := func() error {
		if err := hdfsScript("hdfs-kill-namenode"); err != nil {
			return err
		}
		return hdfsScript("hdfs-restart-namenode")
	}
	again := func(victims ...*service) func() error {
		return func() error {
			var wg sync.WaitGroup
			for _, s := range victims {
				wg.Go(func() {
					s.kill()
					s.start()
				})
			}
			wg.Wait()
			return nil
		}
	}
	faults := []struct {
		name string
		do   func() error
	}{{"NameNode", namenode}, {"DataNode", datanode}, {"delivery", again(p.hdfs)}, {"the other delivery", again(other)},
		{"both deliveries", again(p.hdfs, other)}, {"buffer", again(p.buffer)}, {"NameNode", namenode}}
	for _, i := range random.Perm(len(faults)) {
		pause(t, time.Duration(500+random.IntN(2000))*time.Millisecond)
		t.Logf("killing %s after %d records", faults[i].name, source.written.Load())
		if err := faults[i].do(); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-produced; err != nil {
		t.Fatal(err)
	}
	p.awaitRest(n, 5*time.Minute, p.hdfs, other)
	tallyHDFS(t, p.hdfsDir, n).check(t, "HDFS", false)
	tallyTopic(t, stack.kafka, p.out, n).check(t, p.out, true)
}
