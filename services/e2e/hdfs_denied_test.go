package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// TestDirectoriesAreDenied: one directory is over its quota, and another may not be written to. Records for them are in
// every batch. The others arrive all the same, also those that come later and through safe mode; when there is room and
// permission again, everything is there once. Nothing may run beside it.
func TestDirectoriesAreDenied(t *testing.T) {
	const n = 40_000
	p := newPipeline(t, stack.kafka, "%Y-%m-%d", "%{dir}", "user: hdfs", "user: flume")
	createTopic(t, stack.kafka, p.topic, nil)
	full, closed, free := p.hdfsDir+"/full", p.hdfsDir+"/closed", p.hdfsDir+"/free"
	hdfsTool(t, "hdfs-dfs", "-mkdir", "-p", full, closed, free)
	hdfsTool(t, "hdfs-dfs", "-chown", "flume", full, free)
	hdfsTool(t, "hdfs-dfs", "-chmod", "700", closed)
	hdfsTool(t, "hdfs-dfsadmin", "-setSpaceQuota", "1k", full)
	p.start()
	client := newClient(t, stack.kafka)
	produce := func(from, n int) {
		t.Helper()
		records := make([]*kgo.Record, n)
		for i := range records {
			dir := []string{"free", "full", "free", "closed"}[(from+i)/partitions%4]
			records[i] = &kgo.Record{Topic: p.topic, Partition: int32((from + i) % partitions), Value: value(from + i), Headers: []kgo.RecordHeader{{Key: "dir", Value: []byte(dir)}}}
		}
		if err := client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	goOn := func(want int64) {
		t.Helper()
		began := time.Now()
		eventually(t, time.Minute, "the other directory goes on", func() error {
			got, err := p.delivered("hdfs")
			if err == nil && got != want {
				err = fmt.Errorf("%d records delivered, want %d", got, want)
			}
			return err
		})
		t.Logf("%d records of the open directory were there after %.1f s", want, time.Since(began).Seconds())
	}
	produce(0, n/2)
	eventually(t, time.Minute, "the delivery says what is wrong", func() error {
		resp, err := spillwayv1.NewDeliveryAdminServiceClient(p.hdfs.conn).GetDelivery(t.Context(), &spillwayv1.GetDeliveryRequest{})
		if err == nil && !strings.Contains(resp.Delivery.LastError, "denied") {
			err = fmt.Errorf("last error %q", resp.Delivery.LastError)
		}
		return err
	})
	goOn(n / 4)
	hdfsTool(t, "hdfs-dfsadmin", "-safemode", "enter")
	produce(n/2, n/2)
	pause(t, 3*time.Second)
	hdfsTool(t, "hdfs-dfsadmin", "-safemode", "leave")
	goOn(n / 2)
	p.hdfs.kill()
	p.hdfs.start()
	hdfsTool(t, "hdfs-dfsadmin", "-clrSpaceQuota", full)
	hdfsTool(t, "hdfs-dfs", "-chown", "flume", closed)
	p.awaitRest(n, 3*time.Minute, p.hdfs)
	tallyHDFS(t, p.hdfsDir, n).check(t, "HDFS", false)
	for _, dir := range []string{full, closed, free} {
		if files := hdfsFiles(t, dir); len(files) == 0 {
			t.Errorf("nothing in %s", dir)
		}
	}
}
