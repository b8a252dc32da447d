package kafkaclient

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/spillwayio/spillway/services/internal/kafkaclient/kafkaclienttest"
)

// silent is a broker that accepts connections and never answers.
func silent(t *testing.T) string {
	t.Helper()
	address, stop, err := kafkaclienttest.Silent()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return address
}

// stranger is a service that is no broker, on a port of its own.
func stranger(t *testing.T, says string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte(says))
			_ = c.Close()
		}
	}()
	return l.Addr().String()
}

// TestSilentBootstrapBroker has the next address tried after one that does not answer, for
// requests of this package and for kafka-go's consumer groups, and first from then on.
func TestSilentBootstrapBroker(t *testing.T) {
	for name, first := range map[string]func(*testing.T) string{
		"silent":       silent,
		"a web server": func(t *testing.T) string { return stranger(t, "HTTP/1.1 400 Bad Request\r\n\r\n") },
		"hangs up":     func(t *testing.T) string { return stranger(t, "") },
		"speaks":       func(t *testing.T) string { return stranger(t, "\x00\x00\x00\x0212") },
	} {
		t.Run(name, func(t *testing.T) {
			cluster := newFake(t)
			brokers := []string{first(t), cluster.ListenAddrs()[0]}
			access := Access{greet: time.Second}
			client := New(brokers, "test", access)
			defer client.Close()
			for range 3 {
				if _, err := client.Cluster(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if _, _, err := client.Offsets(t.Context(), "t", 0); err != nil {
				t.Error(err)
			}
			group := NewGroup(client, GroupConfig{Group: "g"})
			if _, err := group.Committed(t.Context(), map[string][]int{"t": {0}}); !errors.Is(err, kafka.GroupIdNotFound) {
				t.Error(err)
			}
			if _, err := access.Dialer("test").DialContext(t.Context(), "tcp", brokers[0]); err == nil {
				t.Error("the group's dialer takes it for a broker")
			}
			conn, err := access.Dialer("test").DialContext(t.Context(), "tcp", brokers[1])
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.ReadPartitions("t"); err != nil {
				t.Error(err)
			}
			_ = conn.Close()
		})
	}
}

// TestNoAnswerIsBounded has an error within the time for the answer when no broker answers any
// more, and ends with ctx.
func TestNoAnswerIsBounded(t *testing.T) {
	cluster := newFake(t)
	transport := Access{}.Transport(cluster.ListenAddrs(), "test")
	defer transport.CloseIdleConnections()
	if _, _, err := transport.Topics(t.Context(), []string{"t"}, false); err != nil {
		t.Fatal(err)
	}
	cluster.ControlKey(int16(kmsg.OffsetFetch), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		return nil, nil, true
	})
	_, err := transport.Client(50*time.Millisecond).OffsetFetch(t.Context(), &kafka.OffsetFetchRequest{GroupID: "g", Topics: map[string][]int{"t": {0}}})
	if err == nil || !strings.Contains(err.Error(), "no answer within 50ms") {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := transport.Client(time.Hour).OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: "g", Topics: map[string][]int{"t": {0}}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// records keeps log lines as "LEVEL message".
type lines struct {
	slog.Handler
	mu  sync.Mutex
	all []string
}

func (l *lines) Enabled(context.Context, slog.Level) bool { return true }

func (l *lines) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, r.Level.String()+" "+r.Message)
	return nil
}

// TestThrottleIsObeyed has no request sent to a broker that mutes this client, on any connection,
// and none taken for lost whose time for an answer is shorter than the mute. One line says so.
func TestThrottleIsObeyed(t *testing.T) {
	quota := &kafkaclienttest.Quota{Throttle: func(key int16, _ int) time.Duration {
		if key == int16(kmsg.Metadata) || key == int16(kmsg.ListOffsets) || key == int16(kmsg.OffsetFetch) || key == int16(kmsg.FindCoordinator) {
			return 100 * time.Millisecond
		}
		return 0
	}}
	cluster := newFake(t, kfake.ListenFn(quota.Listen))
	log := &lines{Handler: slog.DiscardHandler}
	transport := Access{log: slog.New(log)}.Transport(cluster.ListenAddrs(), "test")
	defer transport.CloseIdleConnections()
	client := transport.Client(20 * time.Millisecond * slowness)
	ask := func() {
		_, err := client.ListOffsets(t.Context(), &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{"t": {kafka.FirstOffsetOf(0)}}})
		if err == nil {
			_, err = client.OffsetFetch(t.Context(), &kafka.OffsetFetchRequest{GroupID: "g", Topics: map[string][]int{"t": {0}}})
		}
		if err != nil {
			t.Error(err)
		}
	}
	ask()
	ask()
	if early := quota.Early(); early > 0 || quota.Named() < 5 {
		t.Errorf("%d of %d requests came while the broker muted this client", early, quota.Named())
	}
	var wg sync.WaitGroup // those that are under way when an answer names the throttle time are early, and no more
	for range 3 {
		wg.Go(ask)
	}
	wg.Wait()
	log.mu.Lock()
	defer log.mu.Unlock()
	if len(log.all) != 1 || !strings.HasPrefix(log.all[0], "WARN the broker throttles this client") {
		t.Errorf("the log says %q", log.all)
	}
}

// slowness leaves room for machines that are busy.
const slowness = 200

// TestMuteLongerThanPatience: what waits for a broker that mutes this client does not run out of
// its time for the answer.
func TestMuteLongerThanPatience(t *testing.T) {
	cluster := newFake(t)
	transport := Access{}.Transport(cluster.ListenAddrs(), "test")
	defer transport.CloseIdleConnections()
	if _, _, err := transport.Topics(t.Context(), []string{"t"}, false); err != nil {
		t.Fatal(err)
	}
	for _, address := range cluster.ListenAddrs() {
		transport.throttle.Note(address, 300*time.Millisecond)
	}
	began := time.Now()
	err := transport.seeds[0].transport.throttle.Wait(t.Context(), transport.seeds[0].address)
	if err != nil || time.Since(began) < 200*time.Millisecond {
		t.Errorf("waited for %s, %v", time.Since(began), err)
	}
	transport.throttle.Note(transport.seeds[0].address, time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, _, err := transport.topics(ctx, []string{"t"}, false, 0)
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestMetadataIsShared: what many ask for at the same time takes a few requests, and what is
// known takes none.
func TestMetadataIsShared(t *testing.T) {
	const topics = 200
	var names []string
	for i := range topics {
		names = append(names, fmt.Sprint("topic-", i))
	}
	cluster := newFake(t, kfake.SeedTopics(3, names...))
	transport := Access{}.Transport(cluster.ListenAddrs(), "test")
	defer transport.CloseIdleConnections()
	var asked atomic.Int32
	release := make(chan struct{})
	cluster.ControlKey(int16(kmsg.Metadata), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		asked.Add(1)
		<-release
		return nil, nil, false
	})
	var wg sync.WaitGroup
	for _, name := range names {
		wg.Go(func() {
			all, id, err := transport.Topics(t.Context(), []string{name}, false)
			if err != nil || id == "" || len(all[name].Leaders) != 3 || all[name].ID == [16]byte{} {
				t.Errorf("%s: %v, cluster %q, %v", name, all[name], id, err)
			}
		})
	}
	waits := func() int {
		transport.mu.Lock()
		defer transport.mu.Unlock()
		return len(transport.catalog.wanted)
	}
	for deadline := time.Now().Add(time.Minute); asked.Load() == 0 || waits() < topics-1; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d wait", waits(), topics-1)
		}
	}
	close(release)
	wg.Wait()
	if n := asked.Load(); n != 2 {
		t.Errorf("%d topics took %d requests at the same time, want 2", topics, n)
	}
	if _, _, err := transport.Topics(t.Context(), names, false); err != nil || asked.Load() != 2 {
		t.Errorf("what is known was asked for again: %d requests, %v", asked.Load(), err)
	}
	transport.Stale(names[0])
	if _, _, err := transport.Topics(t.Context(), names, false); err != nil || asked.Load() != 3 {
		t.Errorf("what is stale took %d requests, %v", asked.Load()-2, err)
	}
	for range 2 { // what is not there is looked for each time
		all, _, err := transport.Topics(t.Context(), []string{"none"}, false)
		if err != nil || !errors.Is(all["none"].Err, kafka.UnknownTopicOrPartition) {
			t.Errorf("%v, %v", all["none"], err)
		}
	}
	if asked.Load() != 5 || cluster.TopicInfo("none") != nil {
		t.Errorf("%d requests; the topic was created: %v", asked.Load(), cluster.TopicInfo("none") != nil)
	}
}

// TestMetadataThatLeavesOut has a topic and a partition that the answer leaves out described as
// unknown.
func TestMetadataThatLeavesOut(t *testing.T) {
	cluster := newFake(t, kfake.SeedTopics(3, "whole"))
	transport := Access{}.Transport(cluster.ListenAddrs(), "test")
	defer transport.CloseIdleConnections()
	_, port, err := splitAddress(cluster.ListenAddrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	cluster.ControlKey(int16(kmsg.Metadata), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		answer := r.ResponseKind().(*kmsg.MetadataResponse)
		answer.Brokers = []kmsg.MetadataResponseBroker{{NodeID: 0, Host: "127.0.0.1", Port: int32(port)}}
		answer.ClusterID = kmsg.StringPtr("c")
		topic := kmsg.NewMetadataResponseTopic()
		topic.Topic = kmsg.StringPtr("whole")
		for _, p := range []int32{0, 2} {
			partition := kmsg.NewMetadataResponseTopicPartition()
			partition.Partition = p
			topic.Partitions = append(topic.Partitions, partition)
		}
		answer.Topics = append(answer.Topics, topic)
		return answer, nil, true
	})
	all, _, err := transport.Topics(t.Context(), []string{"whole", "left out"}, false)
	if err != nil {
		t.Fatal(err)
	}
	leaders := all["whole"].Leaders
	if len(leaders) != 3 || leaders[0].Err != nil || leaders[2].Err != nil || !errors.Is(leaders[1].Err, kafka.UnknownTopicOrPartition) || leaders[1].ID >= 0 {
		t.Errorf("leaders %v", leaders)
	}
	if !errors.Is(all["left out"].Err, kafka.UnknownTopicOrPartition) {
		t.Errorf("the topic that is left out: %v", all["left out"])
	}
}

// TestRequestsAreTimed: each request counts once, by its name.
func TestRequestsAreTimed(t *testing.T) {
	access, err := NewAccess(nil, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	client := New(newFake(t).ListenAddrs(), "test", access)
	defer client.Close()
	for range 3 {
		if _, _, err := client.Offsets(t.Context(), "t", 0); err != nil {
			t.Fatal(err)
		}
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(access.Metrics("spillway_test_"))
	families, err := registry.Gather()
	if err != nil || len(families) != 1 || families[0].GetName() != "spillway_test_kafka_request_seconds" {
		t.Fatalf("metrics are %v, %v", families, err)
	}
	for _, m := range families[0].Metric {
		if m.Label[0].GetValue() == "ListOffsets" && m.Histogram.GetSampleCount() == 6 { // first and end, each time
			return
		}
	}
	t.Errorf("metrics are %v, want 6 ListOffsets", families[0].Metric)
}
