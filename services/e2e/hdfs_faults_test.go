package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// TestReplicatedHDFS: an HDFS with three replicas, whose DataNodes report blocks late, so that
// files are not complete when they are closed. While records flow, one DataNode is killed and
// stays dead until the NameNode goes on without it, comes back and is given copies of what is
// being written, and another one dies; then the NameNode is away for more than a minute, and HDFS
// is full. Nothing is lost, nothing doubled, and no file stays in use. Commits to other files,
// more than a delivery needs, go on all the while, and whatever was committed is there in the
// end.
func TestReplicatedHDFS(t *testing.T) {
	t.Parallel()
	const datanodes = 3
	random := seeded(t)
	hdfs := newCluster(t, datanodes, "HDFS_REPLICATION=3", "HDFS_SITE_EXTRA=dfs.blockreport.incremental.intervalMsec=700\ndfs.namenode.redundancy.interval.seconds=1")
	commitsReachAll(t, hdfs, datanodes)
	p := newPipeline(t, stack.kafka, stack.hdfs, fmt.Sprintf("127.0.0.1:%d", hdfs.port), "user: hdfs", "user: hdfs, replication: 3")
	createTopic(t, stack.kafka, p.topic, nil)
	p.start()
	writers := startWriters(t, hdfs, 6, datanodes)
	source := newProducer(t, stack.kafka, p.topic)
	var stop atomic.Bool
	produced := make(chan error, 1)
	go func() {
		var err error
		for !stop.Load() && err == nil {
			err = source.produce(1000, 0)
			select {
			case <-time.After(300 * time.Millisecond):
			case <-t.Context().Done():
			}
		}
		produced <- err
	}()
	goesOn := func(after string) {
		t.Helper()
		began := time.Now()
		n := source.written.Load()
		eventually(t, 2*time.Minute, "records arrive after "+after, func() error { return p.goesOn("hdfs", n) })
		t.Logf("caught up %.1f s after %s", time.Since(began).Seconds(), after)
	}
	do := func(script string, args ...string) {
		t.Helper()
		if err := hdfs.script(script, args...); err != nil {
			t.Fatal(err)
		}
	}
	restartAll := func() {
		t.Helper()
		var wg sync.WaitGroup
		for i := range datanodes {
			wg.Go(func() {
				if err := hdfs.script("hdfs-restart-datanode", strconv.Itoa(i+1)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}

	goesOn("the start")
	first := random.IntN(datanodes)
	victim, next := strconv.Itoa(first+1), strconv.Itoa((first+1)%datanodes+1)
	pause(t, time.Duration(random.IntN(1000))*time.Millisecond)
	do("hdfs-kill-datanode", victim)
	goesOn("DataNode " + victim + " was killed")
	hdfs.awaitDataNodes(t, datanodes-1)
	goesOn("it was given up")
	do("hdfs-restart-datanode", victim)
	hdfs.awaitDataNodes(t, datanodes)
	pause(t, time.Duration(random.IntN(3000))*time.Millisecond)
	do("hdfs-kill-datanode", next)
	goesOn("it came back and DataNode " + next + " was killed")
	do("hdfs-restart-datanode", next)

	do("hdfs-kill-namenode")
	pause(t, 62*time.Second)
	do("hdfs-restart-namenode")
	goesOn("a minute without NameNode")

	env := hdfs.env
	hdfs.env = append(env[:len(env):len(env)], "HDFS_SITE_EXTRA=dfs.datanode.du.reserved=1000000000000000")
	restartAll()
	eventually(t, time.Minute, "the delivery says that HDFS is full", func() error {
		resp, err := spillwayv1.NewDeliveryAdminServiceClient(p.hdfs.conn).GetDelivery(t.Context(), &spillwayv1.GetDeliveryRequest{})
		if err == nil && !strings.Contains(resp.Delivery.LastError, "could only be written to 0 of the 1") {
			err = fmt.Errorf("last error %q", resp.Delivery.LastError)
		}
		return err
	})
	pause(t, 5*time.Second)
	hdfs.env = env
	restartAll()
	goesOn("HDFS was full")

	stop.Store(true)
	if err := <-produced; err != nil {
		t.Fatal(err)
	}
	n := int(source.written.Load())
	p.awaitRest(n, 3*time.Minute, p.hdfs)
	hdfs.tally(t, p.hdfsDir, n).check(t, "HDFS", false)
	writers.check(t, hdfs)
	log, err := os.ReadFile(hdfs.file("namenode.log"))
	if err != nil {
		t.Fatal(err)
	}
	if times := strings.Count(string(log), "is COMMITTED but not COMPLETE"); times == 0 {
		t.Error("no file was closed before it was complete")
	} else {
		t.Logf("%d times a file was not complete when it was closed", times)
	}
}
