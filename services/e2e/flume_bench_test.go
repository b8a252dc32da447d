package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// interceptorOfMission is what agentOfMission has beside the mission's own file.
var interceptorOfMission = regexp.MustCompile(`(?m)^tier1\.sources\.s1\.interceptors.*\n`)

// BenchmarkImported takes records of 200 bytes from a real Kafka to a real HDFS, in turn with the
// pipeline that import-flume makes of the mission's agent, and with Spillway's own configuration;
// an operation is all of them.
//
//	go test -run '^$' -bench Imported -benchtime 1x ./services/e2e -bench.records 2000000 -bench.rounds 3
func BenchmarkImported(b *testing.B) {
	topic := fmt.Sprintf("imported-%d", time.Now().UnixNano())
	createTopic(b, stack.kafka, topic+"-origin", nil)
	createTopic(b, stack.kafka, topic+"-test", nil)
	if err := newProducer(b, stack.kafka, topic+"-origin").produce(*benchRecords, 0); err != nil {
		b.Fatal(err)
	}
	for i := range *benchRounds {
		round := strconv.Itoa(i + 1)
		b.Run("own/"+round, func(b *testing.B) { benchPipeline(b, topic+"-origin", stack.kafka, false, 1) })
		b.Run("imported/"+round, func(b *testing.B) { benchImported(b, topic) })
	}
}

func benchImported(b *testing.B, topic string) {
	dir := b.TempDir()
	agent, config := filepath.Join(dir, "flume.conf"), filepath.Join(dir, "spillway.yaml")
	text := interceptorOfMission.ReplaceAllString(fmt.Sprintf(agentOfMission, topic, stack.hdfs), "")
	if err := os.WriteFile(agent, []byte(text), 0o644); err != nil {
		b.Fatal(err)
	}
	if out, err := exec.Command(binary, "import-flume", agent, "--brokers", stack.kafka.addr(), "-o", config).CombinedOutput(); err != nil {
		b.Fatalf("import-flume: %v\n%s", err, out)
	}
	buffer := newService(b, dir, "buffer", "buffer", "-c", config)
	ingest := newService(b, dir, "ingest", "ingest", "-c", config)
	hdfs := newService(b, dir, "delivery", "delivery", "k", "-c", config)
	round := fmt.Sprintf("%s-%d", topic, time.Now().UnixNano())
	places := []string{"SPILLWAY_BUFFERS=" + buffer.grpc, "SPILLWAY_BUFFER__DATA_DIR=" + filepath.Join(dir, "data"),
		"SPILLWAY_BUFFER__LISTEN=" + buffer.grpc, "SPILLWAY_BUFFER__HTTP=" + buffer.http,
		"SPILLWAY_INGEST__LISTEN=" + ingest.grpc, "SPILLWAY_INGEST__HTTP=" + ingest.http,
		"SPILLWAY_DELIVERY__K__LISTEN=" + hdfs.grpc, "SPILLWAY_DELIVERY__K__HTTP=" + hdfs.http, "SPILLWAY_DELIVERY__K__HDFS__USER=hdfs",
		// The topic is full, and each round reads all of it.
		"SPILLWAY_INGEST__SOURCES__S__START=earliest", "SPILLWAY_INGEST__SOURCES__S__GROUP=" + round}
	for _, s := range []*service{buffer, hdfs, ingest} {
		s.env = places
	}
	for _, s := range []*service{buffer, hdfs} {
		s.start()
		s.waitReady()
	}
	buffers := spillwayv1.NewBufferAdminServiceClient(buffer.conn)
	b.ResetTimer()
	ingest.start()
	poll(b, 50*time.Millisecond, 5*time.Minute, "everything is in HDFS", func() error {
		s, err := buffers.GetSubscription(context.Background(), &spillwayv1.GetSubscriptionRequest{Name: "c/c"})
		if err != nil {
			return err
		}
		if s.Subscription.DeliveredRecords < int64(*benchRecords) {
			return fmt.Errorf("%d records are delivered", s.Subscription.DeliveredRecords)
		}
		return nil
	})
	b.StopTimer()
	b.ReportMetric(float64(*benchRecords)/b.Elapsed().Seconds(), "records/s")
	for _, s := range []*service{buffer, hdfs, ingest} {
		s.kill()
	}
	removeFiles(b, "/e2e/flume/"+strings.TrimSuffix(topic, "/")+"-origin")
}
