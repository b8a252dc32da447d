package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/timestamppb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// TestAdmin: every method of the admin API does what it says on a running pipeline, and all of it
// can be found by reflection.
func TestAdmin(t *testing.T) {
	const n = 8_000
	p := newPipeline(t, stack.kafka, "idle: 2s", "idle: 10m")
	createTopic(t, stack.kafka, p.topic, nil)
	p.start()
	for s, want := range map[*service][]string{
		p.buffer: {"spillway.v1.BufferService", "spillway.v1.BufferAdminService"}, p.ingest: {"spillway.v1.IngestAdminService"},
		p.hdfs: {"spillway.v1.DeliveryAdminService"}, p.kafka: {"spillway.v1.DeliveryAdminService"},
	} {
		checkReflection(t, s, want)
		checkHTTP(t, s)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	buffer := spillwayv1.NewBufferAdminServiceClient(p.buffer.conn)
	ingest := spillwayv1.NewIngestAdminServiceClient(p.ingest.conn)
	delivery := spillwayv1.NewDeliveryAdminServiceClient(p.hdfs.conn)
	source := newProducer(t, stack.kafka, p.topic)
	produce := func(n int) {
		t.Helper()
		if err := source.produce(n, 0); err != nil {
			t.Fatal(err)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	// A paused subscription is leased nothing, and its records can be looked at.
	paused, err := buffer.PauseSubscription(ctx, &spillwayv1.PauseSubscriptionRequest{Name: "c/test"})
	if err != nil || !paused.Subscription.Paused {
		t.Fatalf("%v, %v", paused, err)
	}
	produce(n)
	eventually(t, time.Minute, "HDFS has everything", func() error { return p.settled(n, "hdfs") })
	peeked, err := buffer.PeekRecords(ctx, &spillwayv1.PeekRecordsRequest{Subscription: "c/test", Limit: 7})
	must(err)
	if len(peeked.Records) != 7 {
		t.Fatalf("%d records peeked, want 7", len(peeked.Records))
	}
	for _, r := range peeked.Records {
		if _, err := numberOf(r.Record.Value); err != nil || r.Source.Topic != p.topic {
			t.Errorf("peeked %v: %v", r, err)
		}
	}
	sub, err := buffer.GetSubscription(ctx, &spillwayv1.GetSubscriptionRequest{Name: "c/test"})
	must(err)
	if s := sub.Subscription; s.PendingRecords != n || s.LeasedBatches != 0 || len(sub.Partitions) != partitions {
		t.Errorf("paused, with a backlog of %d: %v", n, sub)
	}
	_, err = buffer.ResumeSubscription(ctx, &spillwayv1.ResumeSubscriptionRequest{Name: "c/test"})
	must(err)
	eventually(t, time.Minute, "the target has everything", func() error { return p.settled(n, "test") })

	queues, err := buffer.ListQueues(ctx, &spillwayv1.ListQueuesRequest{})
	must(err)
	if len(queues.Queues) != 1 || queues.Queues[0].State != "open" || queues.Queues[0].AppendedRecords != n || queues.Queues[0].PendingRecords != 0 {
		t.Errorf("queues: %v", queues)
	}
	queue, err := buffer.GetQueue(ctx, &spillwayv1.GetQueueRequest{Name: "c"})
	must(err)
	if len(queue.Partitions) != partitions {
		t.Errorf("queue: %v", queue)
	}
	sessions, err := buffer.ListSessions(ctx, &spillwayv1.ListSessionsRequest{})
	must(err)
	if len(sessions.Sessions) != 2 || !sessions.Sessions[0].Live || !sessions.Sessions[1].Live {
		t.Errorf("sessions: %v", sessions)
	}

	// Files roll when they are asked to: idleness would take ten minutes.
	open, err := delivery.ListOpenFiles(ctx, &spillwayv1.ListOpenFilesRequest{})
	must(err)
	records := int64(0)
	for _, f := range open.Files {
		records += f.Records
	}
	if records != n {
		t.Errorf("%d records in files in use, want %d: %v", records, n, open)
	}
	rolled, err := delivery.RollFiles(ctx, &spillwayv1.RollFilesRequest{})
	must(err)
	if len(rolled.FinalPaths) != len(open.Files) {
		t.Errorf("rolled %v of %v", rolled, open)
	}
	must(noOpenFiles(p.hdfs))
	tallyHDFS(t, p.hdfsDir, n).check(t, "HDFS", false)

	// A paused source reads nothing, a paused delivery writes nothing.
	sources, err := ingest.ListSources(ctx, &spillwayv1.ListSourcesRequest{})
	must(err)
	if s := sources.Sources; len(s) != 1 || s[0].State != "running" || s[0].Partitions != partitions || s[0].Records != n || s[0].LastError != "" {
		t.Errorf("sources: %v", sources)
	}
	_, err = ingest.PauseSource(ctx, &spillwayv1.PauseSourceRequest{Name: "s"})
	must(err)
	pausedDelivery, err := delivery.PauseDelivery(ctx, &spillwayv1.PauseDeliveryRequest{})
	if err != nil || !pausedDelivery.Delivery.Paused {
		t.Fatalf("%v, %v", pausedDelivery, err)
	}
	pause(t, 2*time.Second) // a fetch may be under way
	later := time.Now()
	produce(1000)
	pause(t, 2*time.Second)
	if err := p.settled(n, "hdfs", "test"); err != nil {
		t.Errorf("read although it is paused: %v", err)
	}
	_, err = ingest.ResumeSource(ctx, &spillwayv1.ResumeSourceRequest{Name: "s"})
	must(err)
	eventually(t, time.Minute, "the target goes on", func() error { return p.settled(n+1000, "test") })
	if err := p.settled(n+1000, "hdfs"); err == nil {
		t.Error("delivered although it is paused")
	}
	_, err = delivery.ResumeDelivery(ctx, &spillwayv1.ResumeDeliveryRequest{})
	must(err)
	eventually(t, time.Minute, "HDFS goes on", func() error { return p.settled(n+1000, "hdfs") })
	state, err := delivery.GetDelivery(ctx, &spillwayv1.GetDeliveryRequest{})
	must(err)
	if d := state.Delivery; d.Name != "k" || d.Kind != "hdfs" || d.State != "running" || d.Records != n+1000 || d.SessionId == 0 {
		t.Errorf("delivery: %v", d)
	}
	eventually(t, 30*time.Second, "all of it is committed to Kafka", p.committedAll)

	// A subscription that is created now and goes back to the beginning gets everything,
	// refetched.
	_, err = buffer.CreateSubscription(ctx, &spillwayv1.CreateSubscriptionRequest{Name: "c/replay", Start: &spillwayv1.StartPosition{
		Place: &spillwayv1.StartPosition_Latest_{Latest: &spillwayv1.StartPosition_Latest{}}}})
	must(err)
	var back []*spillwayv1.PartitionOffset
	for i := range int32(partitions) {
		back = append(back, &spillwayv1.PartitionOffset{Source: &spillwayv1.SourcePartition{Topic: p.topic, Partition: i}})
	}
	_, err = buffer.SeekSubscription(ctx, &spillwayv1.SeekSubscriptionRequest{Name: "c/replay", To: &spillwayv1.StartPosition{Offsets: back}})
	must(err)
	eventually(t, time.Minute, "everything is refetched", func() error {
		s, err := buffer.GetSubscription(ctx, &spillwayv1.GetSubscriptionRequest{Name: "c/replay"})
		if err == nil && (s.Subscription.DeferredOffsets > 0 || s.Subscription.PendingRecords != n+1000) {
			err = fmt.Errorf("%d deferred, %d pending", s.Subscription.DeferredOffsets, s.Subscription.PendingRecords)
		}
		return err
	})
	// What was produced after the pause is what a seek to that time leaves.
	_, err = buffer.SeekSubscription(ctx, &spillwayv1.SeekSubscriptionRequest{Name: "c/replay", To: &spillwayv1.StartPosition{
		Place: &spillwayv1.StartPosition_Time{Time: timestamppb.New(later)}}})
	must(err)
	replay, err := buffer.GetSubscription(ctx, &spillwayv1.GetSubscriptionRequest{Name: "c/replay"})
	must(err)
	if s := replay.Subscription; s.PendingRecords+s.DeferredOffsets != 1000 {
		t.Errorf("%d records held and %d deferred after a seek to %s, want 1000 in all", s.PendingRecords, s.DeferredOffsets, later)
	}
	_, err = buffer.DeleteSubscription(ctx, &spillwayv1.DeleteSubscriptionRequest{Name: "c/replay"})
	must(err)
	if _, err = buffer.DeleteSubscription(ctx, &spillwayv1.DeleteSubscriptionRequest{Name: "c/hdfs"}); err == nil {
		t.Error("a subscription of the configuration file was deleted")
	}
}

// serving is the answer of grpc.health.v1.
func (s *service) serving() (grpc_health_v1.HealthCheckResponse_ServingStatus, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	resp, err := grpc_health_v1.NewHealthClient(s.conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	return resp.GetStatus(), err
}

// waitServing waits until /readyz and grpc.health.v1 agree that it serves.
func (s *service) waitServing() {
	s.t.Helper()
	s.waitReady()
	eventually(s.t, 10*time.Second, s.name+" is SERVING", func() error {
		status, err := s.serving()
		if err == nil && status != grpc_health_v1.HealthCheckResponse_SERVING {
			err = fmt.Errorf("health is %s", status)
		}
		return err
	})
}

// checkWaitsFor fails unless the service lives, is not ready, and names the address that it waits
// for.
func (s *service) checkWaitsFor(addr string) {
	s.t.Helper()
	eventually(s.t, 30*time.Second, s.name+" says that it waits for "+addr, func() error {
		code, body, err := s.get("/readyz")
		if err == nil && (code != 503 || !strings.Contains(body, addr)) {
			err = fmt.Errorf("%d %s", code, body)
		}
		return err
	})
	if status, err := s.serving(); err != nil || status != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		s.t.Errorf("%s: health is %s, %v, want NOT_SERVING", s.name, status, err)
	}
	if code, _, err := s.get("/healthz"); err != nil || code != 200 {
		s.t.Errorf("%s/healthz: %d, %v: a service that waits lives", s.name, code, err)
	}
}

func checkHTTP(t testing.TB, s *service) {
	t.Helper()
	if status, err := s.serving(); err != nil || status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("%s: health is %s, %v", s.name, status, err)
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if code, body, err := s.get(path); err != nil || code != 200 {
			t.Errorf("%s%s: %d %s %v", s.name, path, code, body, err)
		}
	}
	_, body, err := s.get("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Errorf("%s: metrics: %v", s.name, err)
	}
	ours := 0
	for name := range families {
		if strings.HasPrefix(name, "spillway_") {
			ours++
		}
	}
	if ours == 0 {
		t.Errorf("%s: no metric of its own among %d", s.name, len(families))
	}
}

// TestPeersThatAreAway: every service starts without the others, says what it waits for, and
// serves when they come. A topic that does not exist is named, and read when it appears.
func TestPeersThatAreAway(t *testing.T) {
	t.Parallel()
	const n = 2_000
	target := secondBroker(t)
	kafka, hdfs := newLatePeer(t, stack.kafka.addr()), newLatePeer(t, stack.hdfs)
	p := newPipeline(t, target, fmt.Sprintf("brokers: [%q], group", kafka.target), fmt.Sprintf("brokers: [%q], group", kafka.addr), hdfs.target, hdfs.addr)
	for _, s := range []*service{p.ingest, p.hdfs, p.kafka} {
		s.start()
	}
	p.ingest.checkWaitsFor(kafka.addr)
	p.hdfs.checkWaitsFor(hdfs.addr)
	p.kafka.checkWaitsFor(target.addr())
	kafka.open(t)
	hdfs.open(t)
	p.ingest.checkWaitsFor(p.buffer.grpc)
	p.hdfs.checkWaitsFor(p.buffer.grpc)
	p.buffer.start()
	for _, s := range []*service{p.buffer, p.ingest, p.hdfs} {
		s.waitServing()
	}
	p.kafka.checkWaitsFor(target.addr())
	if err := target.start(); err != nil {
		t.Fatal(err)
	}
	p.kafka.waitServing()

	eventually(t, 30*time.Second, "the missing topic is named", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		resp, err := spillwayv1.NewIngestAdminServiceClient(p.ingest.conn).ListSources(ctx, &spillwayv1.ListSourcesRequest{})
		if err == nil && !slices.Equal(resp.Sources[0].MissingTopics, []string{p.topic}) {
			err = fmt.Errorf("missing topics: %v", resp.Sources[0].MissingTopics)
		}
		return err
	})
	createTopic(t, stack.kafka, p.topic, nil)
	if err := newProducer(t, stack.kafka, p.topic).produce(n, 0); err != nil {
		t.Fatal(err)
	}
	p.awaitRest(n, time.Minute, p.hdfs)
	tallyHDFS(t, p.hdfsDir, n).check(t, "HDFS", false)
	tallyTopic(t, target, p.out, n).check(t, p.out, false)
}

// TestOddRecords: what Kafka can carry arrives in Kafka as it was: null and empty keys and
// values, binary headers, names that repeat, a value of 16 MiB. What is larger is dead-lettered
// with its position, and the rest flows.
func TestOddRecords(t *testing.T) {
	t.Parallel()
	p := newPipeline(t, stack.kafka, `"*"`, `"odd*", "testodd*"`)
	large, forever := "41943040", "-1" // the records are from 2020: Kafka would delete them at its next look
	configs := map[string]*string{"max.message.bytes": &large, "retention.ms": &forever}
	createTopic(t, stack.kafka, p.topic, configs)
	createTopic(t, stack.kafka, p.out, configs)
	at := time.UnixMilli(1_600_000_000_123)
	big := slices.Repeat([]byte("0123456789abcdef"), 1<<20)
	records := []*kgo.Record{
		{Key: nil, Value: nil},
		{Key: []byte{}, Value: []byte{}},
		{Key: []byte{0, 255, 10}, Value: []byte("line\nfeed \x00 and \xff")},
		{Key: []byte("k"), Value: []byte("v"), Headers: []kgo.RecordHeader{{Key: "h", Value: []byte{1, 0, 2}}, {Key: "h", Value: nil}, {Key: "", Value: []byte{}}, {Key: "traceparent", Value: []byte("00-1-2-01")}}},
		{Key: []byte("big"), Value: big[:16<<20-8]},
		{Key: []byte("too big"), Value: append(slices.Clone(big), big...)},
		{Key: []byte("after"), Value: []byte("the end")},
	}
	client := newClient(t, stack.kafka, kgo.ProducerBatchMaxBytes(40<<20))
	for i, r := range records {
		r.Topic, r.Partition, r.Timestamp = p.topic, 0, at.Add(time.Duration(i)*time.Second)
	}
	if err := client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	p.start()
	eventually(t, time.Minute, "everything is settled", func() error { return p.settled(len(records), "hdfs", "test") })

	var got []*kgo.Record
	readTopic(t, stack.kafka, p.out, func(r *kgo.Record) { got = append(got, r) })
	want := slices.Delete(slices.Clone(records), 5, 6)
	if len(got) != len(want) {
		t.Fatalf("%d records arrived, want %d", len(got), len(want))
	}
	for i, r := range got {
		if err := sameRecord(want[i], r); err != nil {
			t.Errorf("record %d: %v", i, err)
		}
	}
	// Text in HDFS is the values, each with a line feed; a null one is empty.
	eventually(t, 30*time.Second, "all files are final", func() error { return noOpenFiles(p.hdfs) })
	var text []byte
	for _, r := range want {
		text = append(append(text, r.Value...), '\n')
	}
	files := hdfsFiles(t, p.hdfsDir)
	if content := hdfsTool(t, "hdfs-dfs", append([]string{"-cat"}, files...)...); !bytes.Equal(content, text) {
		t.Errorf("%v have %d bytes, want the %d of the values", files, len(content), len(text))
	}
	for _, sub := range []string{"c/hdfs", "c/test"} {
		list, err := spillwayv1.NewBufferAdminServiceClient(p.buffer.conn).ListUndelivered(t.Context(), &spillwayv1.ListUndeliveredRequest{Subscription: sub})
		if err != nil {
			t.Fatal(err)
		}
		if r := list.Ranges; len(r) != 1 || r[0].Range.First != 5 || r[0].Range.Next != 6 || r[0].Outcome != spillwayv1.Outcome_OUTCOME_DEAD_LETTERED || r[0].Source.Topic != p.topic {
			t.Errorf("%s: undelivered %v, want offset 5 as a dead letter", sub, r)
		}
	}
}

func sameRecord(want, got *kgo.Record) error {
	var errs []error
	if string(want.Key) != string(got.Key) || (want.Key == nil) != (got.Key == nil) {
		errs = append(errs, fmt.Errorf("key %q, want %q", got.Key, want.Key))
	}
	if string(want.Value) != string(got.Value) || (want.Value == nil) != (got.Value == nil) {
		errs = append(errs, fmt.Errorf("value of %d bytes, null %t, want %d, %t", len(got.Value), got.Value == nil, len(want.Value), want.Value == nil))
	}
	if !want.Timestamp.Equal(got.Timestamp) {
		errs = append(errs, fmt.Errorf("timestamp %s, want %s", got.Timestamp, want.Timestamp))
	}
	same := slices.EqualFunc(want.Headers, got.Headers, func(a, b kgo.RecordHeader) bool {
		return a.Key == b.Key && string(a.Value) == string(b.Value) && (a.Value == nil) == (b.Value == nil)
	})
	if !same {
		errs = append(errs, fmt.Errorf("headers %v, want %v", got.Headers, want.Headers))
	}
	return errors.Join(errs...)
}
