package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.yaml.in/yaml/v3"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// agentBeside is an agent of Flume 1.11 that routes by a header to four sinks: text, text with
// gzip, SequenceFiles, and containers of Avro events.
const agentBeside = `
a.sources = s
a.channels = c1 c2 c3 c4
a.sinks = k1 k2 k3 k4
a.sources.s.type = org.apache.flume.source.kafka.KafkaSource
a.sources.s.channels = c1 c2 c3 c4
a.sources.s.kafka.bootstrap.servers = %[2]s
a.sources.s.kafka.topics = %[1]s
a.sources.s.kafka.consumer.group.id = %[1]s-flume
a.sources.s.kafka.consumer.auto.offset.reset = earliest
a.sources.s.header.type = kind
a.sources.s.selector.type = multiplexing
a.sources.s.selector.header = type
a.sources.s.selector.mapping.audit = c1
a.sources.s.selector.mapping.click = c2
a.sources.s.selector.mapping.both = c1 c3
a.sources.s.selector.default = c4
`

const sinkBeside = `
a.channels.c%[1]d.type = memory
a.channels.c%[1]d.capacity = 100000
a.channels.c%[1]d.transactionCapacity = 10000
a.sinks.k%[1]d.type = hdfs
a.sinks.k%[1]d.channel = c%[1]d
a.sinks.k%[1]d.hdfs.path = hdfs://%[2]s/e2e/%[3]s/k%[1]d/%%{topic}/%%Y-%%m-%%d/%%H-%%M
a.sinks.k%[1]d.hdfs.filePrefix = part-%%{partition}
a.sinks.k%[1]d.hdfs.timeZone = Europe/Berlin
a.sinks.k%[1]d.hdfs.round = true
a.sinks.k%[1]d.hdfs.roundValue = 20
a.sinks.k%[1]d.hdfs.roundUnit = minute
a.sinks.k%[1]d.hdfs.rollInterval = 600
a.sinks.k%[1]d.hdfs.rollSize = 0
a.sinks.k%[1]d.hdfs.rollCount = 0
a.sinks.k%[1]d.hdfs.batchSize = 1000
`

var formatsBeside = []string{
	"hdfs.fileType = DataStream",
	"hdfs.fileType = CompressedStream\na.sinks.k2.hdfs.codeC = gzip",
	"hdfs.writeFormat = Text",
	"hdfs.fileType = DataStream\na.sinks.k4.serializer = avro_event",
}

// TestFlumeBesideSpillway runs a real Flume 1.11 and the imported pipeline on the same topic, and
// compares what both wrote: the same directories with the same content. Then some of Flume's
// files go, and the comparison names what is missing, with offsets.
func TestFlumeBesideSpillway(t *testing.T) {
	const n = 20_000
	dir := t.TempDir()
	name := fmt.Sprintf("beside-%d", time.Now().UnixNano())
	always := "-1" // the records are old
	createTopic(t, stack.kafka, name, map[string]*string{"retention.ms": &always})
	counts := produceBeside(t, name, n)

	agent := fmt.Sprintf(agentBeside, name, stack.kafka.addr())
	for i, format := range formatsBeside {
		agent += fmt.Sprintf(sinkBeside, i+1, stack.hdfs, name+"/flume") + fmt.Sprintf("a.sinks.k%d.%s\n", i+1, format)
	}
	conf, imported := filepath.Join(dir, "flume.conf"), filepath.Join(dir, "imported.yaml")
	if err := os.WriteFile(conf, []byte(agent), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(binary, "import-flume", conf, "--flume-version", "1.11", "-o", imported).CombinedOutput(); err != nil {
		t.Fatalf("import-flume: %v\n%s", err, out)
	}
	drained := make(chan error, 1)
	go func() { drained <- runFlume(t.Context(), dir, conf, counts) }()

	// The pipeline writes to directories of its own, beside manifests of all that it writes.
	manifests := filepath.Join(dir, "manifests")
	file := shadowed(t, dir, imported, name, manifests)
	all := startShadowed(t, dir, file)
	buffers := spillwayv1.NewBufferAdminServiceClient(all["buffer"].conn)
	total := 0
	for _, c := range counts {
		total += 2 * c // to HDFS and to manifests
	}
	eventually(t, 3*time.Minute, "the pipeline delivers everything", func() error {
		list, err := buffers.ListSubscriptions(t.Context(), &spillwayv1.ListSubscriptionsRequest{})
		if err != nil {
			return err
		}
		delivered, pending := int64(0), int64(0)
		for _, s := range list.Subscriptions {
			delivered += s.DeliveredRecords
			pending += s.PendingRecords
		}
		if delivered != int64(total) || pending > 0 {
			return fmt.Errorf("%d records are delivered, %d pending; want %d", delivered, pending, total)
		}
		return nil
	})
	audit, err := exec.Command(binary, "audit", "--buffer", all["buffer"].grpc).CombinedOutput()
	if err != nil || !strings.Contains(strings.ToLower(string(audit)), "filtered") {
		t.Errorf("the audit does not show what was filtered: %v\n%s", err, audit)
	}
	for _, s := range slices.Sorted(maps.Keys(all)) {
		if s != "buffer" {
			all[s].stop() // makes files final
		}
	}
	all["buffer"].stop()
	if err := <-drained; err != nil {
		t.Fatalf("Flume: %v", err)
	}

	compare := func(k int, whose string) (status int, out string) {
		t.Helper()
		cmd := exec.Command(binary, "compare", filepath.Join(manifests, fmt.Sprintf("k%d", k)), fmt.Sprintf("hdfs://%s/e2e/%s/%s/k%d", stack.hdfs, name, whose, k),
			"--below", fmt.Sprintf("/e2e/%s/pipeline/k%d", name, k), "--all")
		cmd.Env = append(os.Environ(), "HADOOP_USER_NAME=hdfs")
		text, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode(), string(text)
	}
	for k := 1; k <= 4; k++ {
		for _, whose := range []string{"flume", "pipeline"} {
			status, out := compare(k, whose)
			if status != 0 || !strings.Contains(out, "7 directories are equal, 0 differ, 0 are in use;") {
				t.Errorf("sink k%d, %s: status %d\n%s", k, whose, status, out)
			}
		}
	}
	if t.Failed() {
		return
	}
	takeOver(t, imported, name)

	// Flume loses a file.
	client := hdfsClient(t)
	lost := fmt.Sprintf("/e2e/%s/flume/k1/%s", name, name)
	for range 2 { // the first day, its first directory
		items, err := client.ReadDir(lost)
		if err != nil {
			t.Fatal(err)
		}
		lost += "/" + items[0].Name()
	}
	items, err := client.ReadDir(lost)
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Remove(lost + "/" + items[0].Name()); err != nil {
		t.Fatal(err)
	}
	partition, _, _ := strings.Cut(strings.TrimPrefix(items[0].Name(), "part-"), ".")
	status, out := compare(1, "flume")
	if status != 1 || !strings.Contains(out, "6 directories are equal, 1 differ") || !strings.Contains(out, "missing there: "+name+"/"+partition+" offsets ") {
		t.Errorf("without %s: status %d\n%s", items[0].Name(), status, out)
	}
}

// takeOver starts the pipeline as it was imported, with the group of Flume, which has stopped: it
// reads what comes from now on, and nothing of what Flume has read, although start is earliest.
func takeOver(t *testing.T, imported, topic string) {
	t.Helper()
	const n = 70
	dir := t.TempDir()
	buffer, ingest := newService(t, dir, "buffer", "buffer", "-c", imported), newService(t, dir, "ingest", "ingest", "-c", imported)
	for _, s := range []*service{buffer, ingest} {
		s.env = []string{"SPILLWAY_BUFFERS=" + buffer.grpc, "SPILLWAY_BUFFER__DATA_DIR=" + filepath.Join(dir, "data"),
			"SPILLWAY_BUFFER__LISTEN=" + buffer.grpc, "SPILLWAY_BUFFER__HTTP=" + buffer.http, "SPILLWAY_INGEST__LISTEN=" + ingest.grpc, "SPILLWAY_INGEST__HTTP=" + ingest.http}
		s.start()
	}
	for _, s := range []*service{buffer, ingest} {
		s.waitReady()
	}
	if err := newProducer(t, stack.kafka, topic).produce(n, 0); err != nil {
		t.Fatal(err)
	}
	buffers := spillwayv1.NewBufferAdminServiceClient(buffer.conn)
	pending := func() (all []int64, err error) {
		list, err := buffers.ListSubscriptions(t.Context(), &spillwayv1.ListSubscriptionsRequest{})
		for _, s := range list.GetSubscriptions() {
			all = append(all, s.PendingRecords)
		}
		return all, err
	}
	eventually(t, time.Minute, "the new records are read", func() error {
		all, err := pending()
		if err == nil && (len(all) != 4 || slices.Min(all) < n) {
			err = fmt.Errorf("pending are %v", all)
		}
		return err
	})
	for range 5 { // nothing else comes
		pause(t, 200*time.Millisecond)
		if all, err := pending(); err != nil || slices.Max(all) != n {
			t.Errorf("pending are %v, %v; want %d each", all, err, n)
		}
	}
	_, counters, err := buffer.get("/metrics/flume")
	if err != nil || !strings.Contains(counters, `"CHANNEL.c1":{`) || !strings.Contains(counters, fmt.Sprintf(`"ChannelSize":"%d"`, n)) {
		t.Errorf("/metrics/flume: %v\n%s", err, counters)
	}
	ingest.stop()
	buffer.stop()
}

// produceBeside writes records of several kinds over two hours and a bit, and returns how many
// each of the four sinks is to get.
func produceBeside(t *testing.T, topic string, n int) [4]int {
	t.Helper()
	client := newClient(t, stack.kafka)
	begin := time.Date(2026, 3, 14, 22, 30, 0, 0, time.UTC) // before midnight in Berlin
	var counts [4]int
	var records []*kgo.Record
	for i := range n {
		r := &kgo.Record{Topic: topic, Partition: int32(i % partitions), Value: value(i), Timestamp: begin.Add(time.Duration(i) * 2 * time.Hour / time.Duration(n))}
		switch i % 97 {
		case 0:
			r.Value = nil // Flume 1.11 takes a record without a value for an empty one
		case 1:
			r.Value = []byte(fmt.Sprintf("line %d\nand another\n", i))
		}
		if r.Value == nil {
			r.Value = []byte{}
		}
		switch i % 7 {
		case 0, 1:
			r.Headers = []kgo.RecordHeader{{Key: "kind", Value: []byte("audit")}}
			counts[0]++
		case 2:
			r.Headers = []kgo.RecordHeader{{Key: "other", Value: []byte("click")}, {Key: "kind", Value: []byte("click")}}
			counts[1]++
		case 3:
			r.Headers = []kgo.RecordHeader{{Key: "kind", Value: []byte("both")}}
			counts[0]++
			counts[2]++
		case 4:
			r.Headers = []kgo.RecordHeader{{Key: "kind", Value: []byte("unknown")}}
			counts[3]++
		case 5:
			r.Headers = []kgo.RecordHeader{{Key: "other", Value: []byte("audit")}}
			counts[3]++
		default:
			counts[3]++
		}
		if records = append(records, r); len(records) == 1000 || i == n-1 {
			if err := client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
				t.Fatal(err)
			}
			records = nil
		}
	}
	return counts
}

// runFlume runs the agent until each sink has written what it is to write, and stops it.
func runFlume(ctx context.Context, dir, conf string, counts [4]int) error {
	port, err := freeBase(15000, 22900, 0)
	if err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(dir, "flume.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	_, hdfs, _ := strings.Cut(stack.hdfs, ":")
	cmd := exec.Command(filepath.Join(scripts, "flume-agent"), conf, "a", strconv.Itoa(port))
	cmd.Env = append(os.Environ(), "STACK_RUN="+stack.run, "HDFS_PORT="+hdfs)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	failed := func(err error) error {
		_ = cmd.Process.Kill()
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("%w; the end of its log:\n%s", err, text[max(0, len(text)-3000):])
	}
	for deadline := time.Now().Add(4 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		select {
		case err := <-ended:
			return failed(fmt.Errorf("it ended: %w", err))
		case <-ctx.Done():
			return failed(ctx.Err())
		default:
		}
		written, err := flumeCounters(port)
		if err == nil && written == counts {
			break
		}
		if time.Now().After(deadline) {
			return failed(fmt.Errorf("it wrote %v of %v: %w", written, counts, err))
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-ended: // its status after SIGTERM is 143
		return nil
	case <-time.After(time.Minute):
		return failed(fmt.Errorf("it did not end a minute after SIGTERM"))
	}
}

func flumeCounters(port int) (written [4]int, err error) {
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
	if err != nil {
		return written, err
	}
	defer resp.Body.Close()
	var counters map[string]map[string]string
	if err := json.NewDecoder(resp.Body).Decode(&counters); err != nil {
		return written, err
	}
	for i := range written {
		if written[i], err = strconv.Atoi(counters[fmt.Sprintf("SINK.k%d", i+1)]["EventDrainSuccessCount"]); err != nil {
			return written, err
		}
	}
	return written, nil
}

// shadowed writes the imported pipeline with directories of its own and a manifest for each of its
// deliveries.
func shadowed(t *testing.T, dir, imported, name, manifests string) string {
	t.Helper()
	text, err := os.ReadFile(imported)
	if err != nil {
		t.Fatal(err)
	}
	var pipeline struct {
		Ingest   map[string]any `yaml:"ingest"`
		Buffers  []string       `yaml:"buffers"`
		Buffer   map[string]any `yaml:"buffer"`
		Delivery map[string]map[string]any
	}
	moved := strings.ReplaceAll(string(text), name+"/flume/", name+"/pipeline/")
	if err := yaml.Unmarshal([]byte(strings.ReplaceAll(moved, name+"-flume", name+"-pipeline")), &pipeline); err != nil {
		t.Fatal(err)
	}
	pipeline.Buffers = []string{freeAddr(t)}
	pipeline.Buffer["data_dir"] = filepath.Join(dir, "data")
	queues := pipeline.Buffer["queues"].(map[string]any)
	subscriptions := queues[slices.Sorted(maps.Keys(queues))[0]].(map[string]any)["subscriptions"].(map[string]any)
	for _, k := range slices.Sorted(maps.Keys(pipeline.Delivery)) {
		d := pipeline.Delivery[k]
		d["hdfs"].(map[string]any)["user"] = "hdfs"
		queue, subscription, _ := strings.Cut(d["subscription"].(string), "/")
		subscriptions[subscription+"-shadow"] = subscriptions[subscription]
		pipeline.Delivery[k+"-shadow"] = map[string]any{"subscription": queue + "/" + subscription + "-shadow",
			"manifest": map[string]any{"like": k, "url": "file://" + filepath.Join(manifests, k)}}
	}
	out, err := yaml.Marshal(pipeline)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "pipeline.yaml")
	if err := os.WriteFile(file, out, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// startShadowed starts all services of the pipeline on ports of their own.
func startShadowed(t *testing.T, dir, file string) map[string]*service {
	t.Helper()
	all := map[string]*service{"buffer": newService(t, dir, "buffer", "buffer", "-c", file), "ingest": newService(t, dir, "ingest", "ingest", "-c", file)}
	places := []string{"SPILLWAY_BUFFERS=" + all["buffer"].grpc}
	for k := 1; k <= 4; k++ {
		for _, d := range []string{fmt.Sprintf("k%d", k), fmt.Sprintf("k%d-shadow", k)} {
			all[d] = newService(t, dir, "delivery-"+d, "delivery", d, "-c", file)
		}
	}
	for name, s := range all {
		key := "SPILLWAY_DELIVERY__" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		if name == "buffer" || name == "ingest" {
			key = "SPILLWAY_" + strings.ToUpper(name)
		}
		places = append(places, key+"__LISTEN="+s.grpc, key+"__HTTP="+s.http)
	}
	for _, s := range all {
		s.env = places
		s.start()
	}
	for _, s := range all {
		s.waitReady()
	}
	return all
}
