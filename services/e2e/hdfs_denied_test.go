package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// TestDirectoriesAreDenied: one directory is over its quota, and another may not be written to.
// Records for them are in every batch. The others arrive all the same, also those that come later
// and through safe mode; when there is room and permission again, everything is there once.
// Nothing may run beside it.
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

// TestNamesThatHDFSRefuses: header values make names that HDFS can never have, each for a reason
// of its own. Records with them are dead-lettered with HDFS's words; the others, from the same
// batches, arrive meanwhile.
func TestNamesThatHDFSRefuses(t *testing.T) {
	const n = 3000
	p := newPipeline(t, stack.kafka, `path: "/e2e/%{topic}/%Y-%m-%d"`, `on_denied: dead_letter, path: "/%{first}/%{topic}/%{dir}/%{sub}`+strings.Repeat("/%{long}", 40)+`"`)
	createTopic(t, stack.kafka, p.topic, nil)
	hdfsTool(t, "hdfs-dfs", "-mkdir", "-p", p.hdfsDir)
	hdfsTool(t, "hdfs-dfs", "-touchz", p.hdfsDir+"/file")
	hdfsTool(t, "hdfs-dfsadmin", "-allowSnapshot", p.hdfsDir)
	hdfsTool(t, "hdfs-dfs", "-createSnapshot", p.hdfsDir, "s1")
	names := []struct{ first, dir, sub, long string }{
		{"e2e", "free", "x", "x"},
		{"e2e", ".snapshot", "x", "x"},
		{"e2e", ".snapshot", "s1", "x"}, // which there is
		{"e2e", "deep", ".snapshot", "x"},
		{".reserved", "x", "x", "x"},
		{"e2e", "file", "x", "x"}, // a file is in the way
		{"e2e", "long", "x", strings.Repeat("x", 200)},
	}
	services := []*service{p.buffer, p.ingest, p.hdfs}
	for _, s := range services {
		s.start()
	}
	for _, s := range services {
		s.waitReady()
	}
	records := make([]*kgo.Record, n)
	good := 0
	for i := range records {
		name := names[i%len(names)]
		if i%len(names) == 0 {
			good++
		}
		records[i] = &kgo.Record{Topic: p.topic, Partition: int32(i % partitions), Value: value(i), Headers: []kgo.RecordHeader{
			{Key: "first", Value: []byte(name.first)}, {Key: "dir", Value: []byte(name.dir)}, {Key: "sub", Value: []byte(name.sub)}, {Key: "long", Value: []byte(name.long)}}}
	}
	if err := newClient(t, stack.kafka).ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	eventually(t, 2*time.Minute, "all is delivered or dead-lettered", func() error {
		subs, err := p.subscriptions()
		if err != nil {
			return err
		}
		if s := subs["hdfs"]; s.PendingRecords > 0 || s.DeadLetteredRecords != int64(n-good) {
			return fmt.Errorf("%d records are pending, %d dead-lettered", s.PendingRecords, s.DeadLetteredRecords)
		}
		return nil
	})
	t.Logf("after %.1f s", time.Since(began).Seconds())
	eventually(t, time.Minute, "every file is final", func() error { return noOpenFiles(p.hdfs) })
	hdfsTool(t, "hdfs-dfs", "-rm", p.hdfsDir+"/file") // it is no record's
	y := tallyHDFS(t, p.hdfsDir, n)
	if y.distinct != good || y.doubled > 0 || len(y.strange) > 0 {
		t.Errorf("%d records are in files, %d twice, %v; want %d", y.distinct, y.doubled, y.strange, good)
	}
	letters, err := spillwayv1.NewBufferAdminServiceClient(p.buffer.conn).ListUndelivered(t.Context(), &spillwayv1.ListUndeliveredRequest{Subscription: "c/hdfs", PageSize: 1000})
	if err != nil {
		t.Fatal(err)
	}
	reasons := make(map[string]bool)
	for _, u := range letters.Ranges {
		_, reason, _ := strings.Cut(u.Reason, p.topic)
		reasons[reason[:min(len(reason), 60)]] = true
	}
	t.Logf("reasons: %v", slices.Sorted(maps.Keys(reasons)))
	hdfsTool(t, "hdfs-dfs", "-deleteSnapshot", p.hdfsDir, "s1")
	hdfsTool(t, "hdfs-dfsadmin", "-disallowSnapshot", p.hdfsDir)
}
