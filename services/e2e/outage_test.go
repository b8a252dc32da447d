package e2e

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// delivered is how many offsets of the topic the subscription has settled.
func (p *pipeline) delivered(subscription string) (int64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	audit, err := spillwayv1.NewBufferAdminServiceClient(p.buffer.conn).Audit(ctx, &spillwayv1.AuditRequest{Name: "c/" + subscription})
	if err != nil {
		return 0, err
	}
	n := int64(0)
	for _, a := range audit.Partitions {
		n += a.AppendedOffset - a.StartOffset - a.PendingOffsets
	}
	return n, nil
}

// goesOn is nil when the subscription has settled at least n offsets.
func (p *pipeline) goesOn(subscription string, n int64) error {
	got, err := p.delivered(subscription)
	if err == nil && got < n {
		err = fmt.Errorf("%s: %d settled, want %d", subscription, got, n)
	}
	return err
}

// TestEachPeerDies: while records flow, HDFS's NameNode, its DataNode, the target Kafka and the
// source Kafka are killed by SIGKILL, one after the other, and come back. No process ends, what
// does not need the dead one goes on, and in the end every record is in HDFS exactly once and in
// the target topic. Nothing may run beside it.
func TestEachPeerDies(t *testing.T) {
	target := secondBroker(t)
	if err := target.start(); err != nil {
		t.Fatal(err)
	}
	p := newPipeline(t, target)
	createTopic(t, stack.kafka, p.topic, nil)
	p.start()
	source := newProducer(t, stack.kafka, p.topic)
	var enough atomic.Bool
	produced := make(chan error, 1)
	go func() {
		var err error
		for err == nil && !enough.Load() && source.written.Load() < 1_000_000 {
			err = source.produce(2_000, 2_000)
		}
		produced <- err
	}()
	hdfs := func(script string, args ...string) func() error {
		return func() error { return hdfsScript(script, args...) }
	}
	for _, peer := range []struct {
		name                string
		die, rise           func() error
		affected, untouched string // subscriptions
	}{
		{"the NameNode", hdfs("hdfs-kill-namenode"), hdfs("hdfs-restart-namenode"), "hdfs", "test"},
		{"the DataNode", hdfs("hdfs-kill-datanode", "1"), hdfs("hdfs-restart-datanode", "1"), "hdfs", "test"},
		{"the target Kafka", target.crash, target.start, "test", "hdfs"},
		{"the source Kafka", stack.kafka.crash, stack.kafka.start, "test", ""},
	} {
		pause(t, time.Second)
		if err := peer.die(); err != nil {
			t.Fatal(err)
		}
		written := source.written.Load()
		t.Logf("killed %s after %d records were produced", peer.name, written)
		pause(t, 2*time.Second)
		if peer.untouched != "" {
			eventually(t, 30*time.Second, peer.untouched+" goes on without "+peer.name, func() error { return p.goesOn(peer.untouched, written+2_000) })
		}
		if err := peer.rise(); err != nil {
			t.Fatal(err)
		}
		back := time.Now()
		eventually(t, time.Minute, peer.affected+" goes on with "+peer.name, func() error { return p.goesOn(peer.affected, written+10_000) })
		t.Logf("%s goes on %.1f s after %s is back", peer.affected, time.Since(back).Seconds(), peer.name)
	}
	enough.Store(true)
	if err := <-produced; err != nil {
		t.Fatal(err)
	}
	n := int(source.written.Load())
	p.awaitRest(n, 3*time.Minute, p.hdfs)
	tallyHDFS(t, p.hdfsDir, n).check(t, "HDFS", false)
	tallyTopic(t, target, p.out, n).check(t, p.out, true)
	for _, s := range p.services() {
		s.waitServing()
	}
	p.stop()
}
