package e2e

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// TestHDFSKilled: while two replicas of the delivery write, SIGKILL hits the NameNode, the DataNode, the replicas and the
// buffer, again and again. Every record is in HDFS exactly once, and no file stays in use.
func TestHDFSKilled(t *testing.T) {
	const n = 150_000
	random := seeded(t)
	p := newPipeline(t, stack.kafka)
	createTopic(t, stack.kafka, p.topic, nil)
	other := newService(t, p.dir, "delivery-k2", "delivery", "k", "-c", p.config)
	other.env = []string{"SPILLWAY_DELIVERY__K__LISTEN=" + other.grpc, "SPILLWAY_DELIVERY__K__HTTP=" + other.http}
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

// TestOneDirectoryRefuses: a directory over its quota takes nothing. Only the records for it wait; those of the other
// directory go on, also through safe mode. When there is room again, everything is there once.
func TestOneDirectoryRefuses(t *testing.T) {
	const n = 20_000
	p := newPipeline(t, stack.kafka, "%Y-%m-%d", "%{dir}")
	createTopic(t, stack.kafka, p.topic, nil)
	full, free := p.hdfsDir+"/full", p.hdfsDir+"/free"
	hdfsTool(t, "hdfs-dfs", "-mkdir", "-p", full)
	hdfsTool(t, "hdfs-dfsadmin", "-setSpaceQuota", "1k", full)
	p.start()
	client := newClient(t, stack.kafka)
	produce := func(from, n int) {
		t.Helper()
		records := make([]*kgo.Record, n)
		for i := range records {
			dir := "free"
			if (from+i)%partitions < partitions/2 {
				dir = "full"
			}
			records[i] = &kgo.Record{Topic: p.topic, Partition: int32((from + i) % partitions), Value: value(from + i), Headers: []kgo.RecordHeader{{Key: "dir", Value: []byte(dir)}}}
		}
		if err := client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	produce(0, n) // half of the partitions to each
	eventually(t, time.Minute, "the delivery says what is wrong", func() error {
		resp, err := spillwayv1.NewDeliveryAdminServiceClient(p.hdfs.conn).GetDelivery(t.Context(), &spillwayv1.GetDeliveryRequest{})
		if err == nil && !strings.Contains(resp.Delivery.LastError, "QuotaExceeded") {
			err = fmt.Errorf("last error %q", resp.Delivery.LastError)
		}
		return err
	})
	eventually(t, time.Minute, "the other directory goes on", func() error {
		subs, err := p.subscriptions()
		if err == nil && subs["hdfs"].PendingRecords != n/2 {
			err = fmt.Errorf("%d records pending, want %d", subs["hdfs"].PendingRecords, n/2)
		}
		return err
	})
	hdfsTool(t, "hdfs-dfsadmin", "-safemode", "enter")
	pause(t, 3*time.Second)
	hdfsTool(t, "hdfs-dfsadmin", "-safemode", "leave")
	hdfsTool(t, "hdfs-dfsadmin", "-clrSpaceQuota", full)
	p.awaitRest(n, 3*time.Minute, p.hdfs)
	tallyHDFS(t, p.hdfsDir, n).check(t, "HDFS", false)
	for _, dir := range []string{full, free} {
		if files := hdfsFiles(t, dir); len(files) == 0 {
			t.Errorf("nothing in %s", dir)
		}
	}
}
