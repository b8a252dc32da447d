package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/internal/config"
)

// BenchmarkHeld is what files in use cost, on an HDFS with three DataNodes and replicas:
//
//	steady    200 directories at 2,000 records/s: the NameNode's own count of requests from clients
//	commit    a commit of ten records of 200 bytes to each of 200 files, as the sink makes it
//	crash     200, 500 and 1,000 files of a delivery that is killed: how long after its heir's start they are final
//	default   10,000 records/s to one directory: from the Kafka timestamp to settled, the middle record
//	20ms      the same with commit.interval: 20ms
//
//	go test -run '^$' -bench Held -benchtime 1x ./services/e2e
func BenchmarkHeld(b *testing.B) {
	c := newCluster(b, heldNodes, "HDFS_REPLICATION=3")
	at := []string{stack.hdfs, fmt.Sprintf("127.0.0.1:%d", c.port), "linger: 50ms", "linger: 5ms", `test: {topics: ["*"]`, `test: {topics: ["none"]`}
	b.Run("steady", func(b *testing.B) { benchDirectories(b, c, at, 200, false) })
	b.Run("commit", func(b *testing.B) { benchCommit(b, c) })
	for _, n := range []int{200, 500, 1000} {
		b.Run(fmt.Sprintf("crash/%d", n), func(b *testing.B) { benchDirectories(b, c, at, n, true) })
	}
	b.Run("default", func(b *testing.B) { benchLatency(b, at) })
	b.Run("20ms", func(b *testing.B) {
		benchLatency(b, append(at, "roll: {interval: 1h", "commit: {interval: 20ms}, roll: {interval: 1h"))
	})
}

func benchDirectories(b *testing.B, c *cluster, at []string, directories int, crash bool) {
	// So many open blocks of the default size, twice, would reserve all of a small disk.
	p := newPipeline(b, stack.kafka, append(at, "%Y-%m-%d", "%{dir}", "idle: 2s", "idle: 1m",
		"user: hdfs", "user: hdfs, max_open_files: 2000, block_size: 8MiB")...)
	createTopic(b, stack.kafka, p.topic, nil)
	client := newClient(b, stack.kafka)
	for _, s := range []*service{p.buffer, p.ingest, p.hdfs} {
		s.start()
		s.waitReady()
	}
	stop, produced := make(chan struct{}), make(chan error, 1)
	go func() { // ten records a directory and second
		n := 0
		for tick := time.NewTicker(100 * time.Millisecond); ; {
			select {
			case <-stop:
				produced <- nil
				return
			case <-tick.C:
			}
			records := make([]*kgo.Record, directories)
			for i := range records {
				records[i] = &kgo.Record{Topic: p.topic, Partition: int32(n % partitions), Value: value(n), Headers: []kgo.RecordHeader{{Key: "dir", Value: fmt.Appendf(nil, "d%03d", i)}}}
				n++
			}
			if err := client.ProduceSync(context.Background(), records...).FirstErr(); err != nil {
				produced <- err
				return
			}
		}
	}()
	eventually(b, 2*time.Minute, "all directories have a file", func() error {
		files, err := openFiles(p.hdfs)
		if err == nil && len(files) < directories {
			err = fmt.Errorf("%d have", len(files))
		}
		return err
	})
	time.Sleep(5 * time.Second)
	b.ResetTimer()
	if crash {
		p.hdfs.kill()
		close(stop)
		if err := <-produced; err != nil {
			b.Fatal(err)
		}
		left := len(inUse(b, c, p.hdfsDir))
		began := time.Now()
		p.hdfs.start()
		poll(b, 100*time.Millisecond, 3*time.Minute, "the files of the dead one are final", p.adoptedAll)
		b.ReportMetric(time.Since(began).Seconds(), "s-to-final")
		b.ReportMetric(float64(left), "files")
		p.hdfs.kill()
		return
	}
	before, was := clientRequests(b, c), time.Now()
	time.Sleep(time.Minute)
	after := clientRequests(b, c)
	for method, n := range after {
		if n -= before[method]; n > 0 {
			b.Logf("%s: %.2f/s", method, float64(n)/time.Since(was).Seconds())
		}
		after[method] = n
	}
	total := int64(0)
	for _, n := range after {
		total += n
	}
	b.ReportMetric(float64(total)/time.Since(was).Seconds(), "NameNode-requests/s")
	close(stop)
	if err := <-produced; err != nil {
		b.Fatal(err)
	}
	p.hdfs.stop()
}

func benchCommit(b *testing.B, c *cluster) {
	const files, rounds = 200, 20
	fs := newFS(b, config.HDFS{URL: fmt.Sprintf("hdfs://127.0.0.1:%d", c.port), User: "hdfs", Replication: heldNodes, BlockSize: 8 * config.MiB})
	open := make([]filesink.File, files)
	each := func(do func(i int) error) {
		b.Helper()
		var g errgroup.Group
		g.SetLimit(8) // filesink's parallel
		for i := range open {
			g.Go(func() error { return do(i) })
		}
		if err := g.Wait(); err != nil {
			b.Fatal(err)
		}
	}
	data := bytes.Repeat([]byte("x"), 10*200)
	commit := func(i int) error { return open[i].Commit(b.Context(), data) }
	each(func(i int) (err error) {
		open[i], err = fs.Create(b.Context(), fmt.Sprintf("/commit/%d/file", i), func() {})
		return err
	})
	each(commit) // a block for each
	var took []time.Duration
	b.ResetTimer()
	for range rounds {
		began := time.Now()
		each(commit)
		took = append(took, time.Since(began))
	}
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[rounds/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[rounds-1].Microseconds())/1000, "max-ms")
	each(func(i int) error { return open[i].Close(b.Context()) })
}

// adoptedAll is nil when the heir has finished all files that were not its own.
func (p *pipeline) adoptedAll() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	sessions, err := spillwayv1.NewBufferAdminServiceClient(p.buffer.conn).ListSessions(ctx, &spillwayv1.ListSessionsRequest{Subscription: "c/hdfs"})
	if err != nil {
		return err
	}
	entries, live := int64(0), false
	for _, s := range sessions.Sessions {
		if live = live || s.Live; !s.Live && s.StateEntries > 0 {
			return fmt.Errorf("session %d has %d files and no heir", s.Id, s.StateEntries)
		}
		entries += int64(s.StateEntries)
	}
	if !live {
		return errors.New("there is no session")
	}
	files, err := openFiles(p.hdfs)
	if err != nil {
		return err
	}
	own := int64(0)
	for _, f := range files {
		if f.OpenedAt == nil {
			return fmt.Errorf("%s is not final", f.FinalPath)
		}
		own++
	}
	if entries > own { // the heir has not heard of them yet
		return fmt.Errorf("%d files are in use, %d of them the heir's own", entries, own)
	}
	return nil
}

// openFiles are all that a delivery lists.
func openFiles(s *service) (files []*spillwayv1.OpenFile, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for request := (&spillwayv1.ListOpenFilesRequest{PageSize: 1000}); ; {
		resp, err := spillwayv1.NewDeliveryAdminServiceClient(s.conn).ListOpenFiles(ctx, request)
		if err != nil {
			return nil, err
		}
		files = append(files, resp.Files...)
		if request.PageToken = resp.NextPageToken; request.PageToken == "" {
			return files, nil
		}
	}
}

// inUse lists the files that are not final.
func inUse(b *testing.B, c *cluster, dir string) []string {
	client := hdfsClientAt(b, fmt.Sprintf("127.0.0.1:%d", c.port))
	var found []string
	dirs, err := client.ReadDir(dir)
	for _, d := range dirs {
		files, readErr := client.ReadDir(dir + "/" + d.Name())
		err = errors.Join(err, readErr)
		for _, f := range files {
			if strings.HasSuffix(f.Name(), ".tmp") {
				found = append(found, f.Name())
			}
		}
	}
	if err != nil {
		b.Fatal(err)
	}
	return found
}

// clientRequests is how often the NameNode was asked what, but by DataNodes.
func clientRequests(b *testing.B, c *cluster) map[string]int64 {
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/jmx?qry=Hadoop:service=NameNode,name=RpcDetailedActivityForPort%d", c.port+10000, c.port))
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct{ Beans []map[string]any }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || len(answer.Beans) != 1 {
		b.Fatalf("%d beans, %v", len(answer.Beans), err)
	}
	requests := make(map[string]int64)
	for name, v := range answer.Beans[0] {
		method, ok := strings.CutSuffix(name, "NumOps")
		if n, isNumber := v.(float64); ok && isNumber && !strings.HasPrefix(method, "Overall") && !slices.Contains([]string{"SendHeartbeat", "BlockReport", "BlockReceivedAndDeleted", "RegisterDatanode", "VersionRequest", "CommitBlockSynchronization", "CacheReport"}, method) {
			requests[method] = int64(n)
		}
	}
	return requests
}

func benchLatency(b *testing.B, at []string) {
	const perSecond, seconds, chunk = 10_000, 20, 100
	p := newPipeline(b, stack.kafka, at...)
	createTopic(b, stack.kafka, p.topic, nil)
	client := newClient(b, stack.kafka, kgo.ProducerLinger(0))
	for _, s := range []*service{p.buffer, p.ingest, p.hdfs} {
		s.start()
		s.waitReady()
	}
	b.ResetTimer()
	var written []time.Time // of chunks
	began := time.Now()
	produced := make(chan error, 1)
	writing := make(chan time.Time, perSecond*seconds/chunk)
	go func() {
		defer close(writing)
		for n := 0; n < perSecond*seconds; n += chunk {
			time.Sleep(time.Until(began.Add(time.Duration(n) * time.Second / perSecond)))
			records := make([]*kgo.Record, chunk)
			now := time.Now()
			for i := range records {
				records[i] = &kgo.Record{Topic: p.topic, Partition: int32(n / chunk % partitions), Value: value(n + i), Timestamp: now}
			}
			writing <- now
			if err := client.ProduceSync(context.Background(), records...).FirstErr(); err != nil {
				produced <- err
				return
			}
		}
		produced <- nil
	}()
	var latencies []time.Duration
	for done := int64(0); done < perSecond*seconds; {
		n, err := p.delivered("hdfs")
		now := time.Now()
		if err != nil {
			continue
		}
		for len(written) < cap(writing) && int64(len(written)*chunk) < n {
			written = append(written, <-writing)
		}
		for ; done+chunk <= n; done += chunk {
			latencies = append(latencies, now.Sub(written[done/chunk]))
		}
		time.Sleep(2 * time.Millisecond)
		if now.Sub(began) > 2*time.Minute {
			b.Fatalf("%d of %d records are there", done, perSecond*seconds)
		}
	}
	if err := <-produced; err != nil {
		b.Fatal(err)
	}
	slices.Sort(latencies)
	b.ReportMetric(float64(latencies[len(latencies)/2].Milliseconds()), "p50-ms")
	b.ReportMetric(float64(latencies[len(latencies)*99/100].Milliseconds()), "p99-ms")
	p.hdfs.stop()
}
