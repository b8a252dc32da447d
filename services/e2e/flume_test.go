package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// agentOfMission is the configuration of the agent whose outage Spillway exists for, addresses
// aside, with an interceptor that leaves out every record whose number ends with 7.
const agentOfMission = `
tier1.sources  = s s1
tier1.channels = c
tier1.sinks    = k

tier1.channels.c.type = SPILLABLEMEMORY
tier1.channels.c.memoryCapacity = 10000
tier1.channels.c.overflowCapacity = 100000000
tier1.channels.c.byteCapacity = 800000
tier1.channels.c.checkpointDir = /mnt/flume/checkpoint
tier1.channels.c.dataDirs = /mnt/flume/data

tier1.sources.s.type = org.apache.flume.source.kafka.KafkaSource
tier1.sources.s.zookeeperConnect = zookeeper:2181
tier1.sources.s.groupId = %[1]s-group1
tier1.sources.s.topic = %[1]s-origin
tier1.sources.s.batchSize = 1000
tier1.sources.s.channels = c
tier1.sources.s1.type = org.apache.flume.source.kafka.KafkaSource
tier1.sources.s1.zookeeperConnect = zookeeper:2181
tier1.sources.s1.groupId = %[1]s-groupTest
tier1.sources.s1.topic = %[1]s-test
tier1.sources.s1.batchSize = 1000
tier1.sources.s1.channels = c
tier1.sources.s1.interceptors = f
tier1.sources.s1.interceptors.f.type = regex_filter
tier1.sources.s1.interceptors.f.regex = ^\\d{7}7
tier1.sources.s1.interceptors.f.excludeEvents = true
tier1.sinks.k.type = hdfs
tier1.sinks.k.channel = c
tier1.sinks.k.hdfs.path = hdfs://%[2]s/e2e/flume/%%{topic}/%%Y-%%m-%%d
tier1.sinks.k.hdfs.round = true
tier1.sinks.k.hdfs.filePrefix=%%H
tier1.sinks.k.hdfs.fileSuffix =.log
tier1.sinks.k.hdfs.rollInterval=3600
tier1.sinks.k.hdfs.rollSize=133169152
tier1.sinks.k.hdfs.rollCount=0
tier1.sinks.k.hdfs.writeFormat=Text
tier1.sinks.k.hdfs.fileType=DataStream
tier1.sinks.k.hdfs.batchSize=100000
tier1.sinks.k.hdfs.serializer=avro_event
tier1.sinks.k.hdfs.threadsPoolSize=5
tier1.sinks.k.hdfs.idleTimeout=30
`

// TestFlumeAgentImports imports an agent of Flume 1.6 and runs the pipeline as it is written:
// both topics arrive in HDFS once, below the directories that Flume would have made, without what
// the interceptor drops.
func TestFlumeAgentImports(t *testing.T) {
	t.Parallel()
	const n = 20_000
	dir := t.TempDir()
	name := fmt.Sprintf("flume-%d", time.Now().UnixNano())
	agent, config := filepath.Join(dir, "flume.conf"), filepath.Join(dir, "spillway.yaml")
	if err := os.WriteFile(agent, fmt.Appendf(nil, agentOfMission, name, stack.hdfs), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(binary, "import-flume", agent, "--brokers", stack.kafka.addr(), "-o", config).CombinedOutput(); err != nil {
		t.Fatalf("import-flume: %v\n%s", err, out)
	}
	buffer := newService(t, dir, "buffer", "buffer", "-c", config)
	ingest := newService(t, dir, "ingest", "ingest", "-c", config)
	all := []*service{buffer, ingest}
	deliveries := map[string]*service{"k": nil, "k-2": nil} // a source with interceptors has a queue of its own
	for d := range deliveries {
		deliveries[d] = newService(t, dir, "delivery-"+d, "delivery", d, "-c", config)
		all = append(all, deliveries[d])
	}
	places := []string{"SPILLWAY_BUFFERS=" + buffer.grpc, "SPILLWAY_BUFFER__DATA_DIR=" + filepath.Join(dir, "data"),
		"SPILLWAY_BUFFER__LISTEN=" + buffer.grpc, "SPILLWAY_BUFFER__HTTP=" + buffer.http,
		"SPILLWAY_INGEST__LISTEN=" + ingest.grpc, "SPILLWAY_INGEST__HTTP=" + ingest.http}
	for d, s := range deliveries {
		key := "SPILLWAY_DELIVERY__" + strings.ToUpper(strings.ReplaceAll(d, "-", "_"))
		places = append(places, key+"__LISTEN="+s.grpc, key+"__HTTP="+s.http, key+"__HDFS__USER=hdfs")
	}
	for _, topic := range []string{name + "-origin", name + "-test"} {
		createTopic(t, stack.kafka, topic, nil)
	}
	for _, s := range all {
		s.env = places
		s.start()
	}
	for _, s := range all {
		s.waitReady()
	}
	admin := spillwayv1.NewIngestAdminServiceClient(ingest.conn)
	eventually(t, time.Minute, "all partitions are read", func() error { // Flume's start is latest
		for _, source := range []string{"s", "s1"} {
			list, err := admin.ListPartitions(t.Context(), &spillwayv1.ListPartitionsRequest{Source: source})
			if err != nil {
				return err
			}
			if len(list.Partitions) != partitions {
				return fmt.Errorf("%s reads %d partitions", source, len(list.Partitions))
			}
			for _, p := range list.Partitions {
				if p.Position < 0 {
					return fmt.Errorf("%v has no position", p)
				}
			}
		}
		return nil
	})
	kept := 0
	for i := range n {
		if !strings.HasSuffix(strings.SplitN(string(value(i)), " ", 2)[0], "7") {
			kept++
		}
	}
	for _, topic := range []string{name + "-origin", name + "-test"} {
		if err := newProducer(t, stack.kafka, topic).produce(n, 0); err != nil {
			t.Fatal(err)
		}
	}
	buffers := spillwayv1.NewBufferAdminServiceClient(buffer.conn)
	eventually(t, 2*time.Minute, "everything is settled", func() error {
		list, err := buffers.ListSubscriptions(t.Context(), &spillwayv1.ListSubscriptionsRequest{})
		if err != nil {
			return err
		}
		delivered, pending := int64(0), int64(0)
		for _, s := range list.Subscriptions {
			delivered += s.DeliveredRecords
			pending += s.PendingRecords
		}
		if delivered < int64(n+kept) || pending > 0 {
			return fmt.Errorf("%d records are delivered, %d pending; want %d", delivered, pending, n+kept)
		}
		return nil
	})
	for _, s := range []*service{ingest, deliveries["k"], deliveries["k-2"], buffer} {
		s.stop()
	}
	tallyHDFS(t, "/e2e/flume/"+name+"-origin", n).check(t, "the topic without an interceptor", false)
	y := tallyHDFS(t, "/e2e/flume/"+name+"-test", n)
	if y.distinct != kept || y.doubled > 0 {
		t.Errorf("%d records behind the interceptor, %d doubled; want %d", y.distinct, y.doubled, kept)
	}
}
