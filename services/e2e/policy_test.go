package e2e

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// TestASleeperWakes: a delivery is stopped with SIGSTOP for longer than its leases while it
// writes, and wakes up when another replica has delivered its batches. What it then does to its
// files does not count.
func TestASleeperWakes(t *testing.T) {
	t.Parallel()
	const n = 60_000
	p := newPipeline(t, stack.kafka)
	createTopic(t, stack.kafka, p.topic, nil)
	other := p.replica(p.hdfs, 2)
	p.start()
	other.start()
	other.waitReady()
	source := newProducer(t, stack.kafka, p.topic)
	produced := make(chan error, 1)
	go func() { produced <- source.produce(n, 5_000) }()
	eventually(t, 30*time.Second, "it has files in use", func() error {
		if noOpenFiles(p.hdfs) == nil {
			return fmt.Errorf("none")
		}
		return nil
	})
	for range 2 {
		p.hdfs.pause(syscall.SIGSTOP)
		pause(t, 13*time.Second) // a lease is 10 s
		p.hdfs.pause(syscall.SIGCONT)
		pause(t, time.Second)
	}
	if err := <-produced; err != nil {
		t.Fatal(err)
	}
	p.awaitRest(n, 3*time.Minute, p.hdfs, other)
	tallyHDFS(t, p.hdfsDir, n).check(t, "HDFS", false)
	tallyTopic(t, stack.kafka, p.out, n).check(t, p.out, true)
}

// pause sends SIGSTOP or SIGCONT.
func (s *service) pause(sig syscall.Signal) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.running.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// TestDropOldest: the target is dead and its subscription may keep 5 MiB. The oldest batches are
// dropped and named, HDFS gets everything, and what was kept arrives when the target is back.
func TestDropOldest(t *testing.T) {
	t.Parallel()
	const n = 100_000
	target := secondBroker(t)
	p := newPipeline(t, target, `test: {topics: ["*"], on_full: block}`, `test: {topics: ["*"], on_full: drop_oldest, limit: 5MiB, required: false}`)
	createTopic(t, stack.kafka, p.topic, nil)
	p.start0(t)
	if err := newProducer(t, stack.kafka, p.topic).produce(n, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "HDFS has everything", func() error { return p.settled(n, "hdfs") })
	list, err := spillwayv1.NewBufferAdminServiceClient(p.buffer.conn).ListUndelivered(t.Context(), &spillwayv1.ListUndeliveredRequest{Subscription: "c/test", PageSize: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	dropped := int64(0)
	for _, r := range list.Ranges {
		if r.Outcome != spillwayv1.Outcome_OUTCOME_DROPPED || r.Reason == "" {
			t.Errorf("undelivered: %v", r)
		}
		dropped += r.Range.Next - r.Range.First
	}
	if subs, err := p.subscriptions(); err != nil || subs["test"].DroppedOffsets != dropped || subs["test"].PendingBytes > 5<<20 || dropped == 0 {
		t.Errorf("%d offsets dropped by the list: %v, %v", dropped, subs["test"], err)
	}
	if err := target.start(); err != nil {
		t.Fatal(err)
	}
	p.awaitRest(n, 2*time.Minute, p.hdfs)
	tallyHDFS(t, p.hdfsDir, n).check(t, "HDFS", false)
	y := tallyTopic(t, target, p.out, n)
	t.Logf("%d offsets dropped, %d records arrived, %d doubled", dropped, y.distinct, y.doubled)
	if int64(y.distinct) != n-dropped {
		t.Errorf("%d records arrived, want the %d that were not dropped", y.distinct, n-dropped)
	}
}

// TestDefer: the same with a subscription that defers, and a SIGKILL of the buffer: what it did
// not keep is refetched from Kafka, and everything arrives.
func TestDefer(t *testing.T) {
	t.Parallel()
	const n = 100_000
	target := secondBroker(t)
	p := newPipeline(t, target, `test: {topics: ["*"], on_full: block}`, `test: {topics: ["*"], on_full: defer, limit: 5MiB}`)
	createTopic(t, stack.kafka, p.topic, nil)
	p.start0(t)
	if err := newProducer(t, stack.kafka, p.topic).produce(n, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "HDFS has everything", func() error { return p.settled(n, "hdfs") })
	subs, err := p.subscriptions()
	if err != nil || subs["test"].DeferredOffsets == 0 || subs["test"].PendingBytes > 6<<20 {
		t.Errorf("%v, %v", subs["test"], err)
	}
	t.Logf("%d offsets deferred, %d bytes kept", subs["test"].DeferredOffsets, subs["test"].PendingBytes)
	p.buffer.kill()
	p.buffer.start()
	p.buffer.waitReady()
	if err := target.start(); err != nil {
		t.Fatal(err)
	}
	p.awaitRest(n, 2*time.Minute, p.hdfs)
	tallyHDFS(t, p.hdfsDir, n).check(t, "HDFS", false)
	tallyTopic(t, target, p.out, n).check(t, p.out, true)
}
