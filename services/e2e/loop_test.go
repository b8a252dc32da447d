package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// TestEndlessCopiesAreRefused: a source by pattern, and a delivery whose copies it would read, to
// the same cluster by another address: no copy is made. And two deliveries that copy there and
// back between two clusters: no record comes back.
func TestEndlessCopiesAreRefused(t *testing.T) {
	t.Parallel()
	refused := func(d *service) func() error {
		return func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			r, err := spillwayv1.NewDeliveryAdminServiceClient(d.conn).GetDelivery(ctx, &spillwayv1.GetDeliveryRequest{})
			if err != nil {
				return err
			}
			if text := r.String(); !strings.Contains(text, "go round for ever") {
				return fmt.Errorf("the delivery says %s", text)
			}
			return nil
		}
	}
	ends := func(b broker, topics ...string) int64 {
		t.Helper()
		all, err := kadm.NewClient(newClient(t, b)).ListEndOffsets(t.Context(), topics...)
		if err != nil {
			t.Fatal(err)
		}
		n := int64(0)
		all.Each(func(o kadm.ListedOffset) {
			if o.Err == nil {
				n += o.Offset
			}
		})
		return n
	}
	t.Run("pattern", func(t *testing.T) {
		t.Parallel()
		p := newPipeline(t, stack.kafka)
		p.rewrite(fmt.Sprintf("topics: [%q]", p.topic), fmt.Sprintf("topics: [%q]", "re:.*"+p.topic+".*"),
			fmt.Sprintf("kafka: {brokers: [%q], topic: ", stack.kafka.addr()), fmt.Sprintf("kafka: {brokers: [%q], missing_topic: create, topic: ", alias(t, stack.kafka)))
		createTopic(t, stack.kafka, p.topic, nil)
		p.start()
		if err := newProducer(t, stack.kafka, p.topic).produce(1000, 0); err != nil {
			t.Fatal(err)
		}
		eventually(t, time.Minute, "the delivery refuses", refused(p.kafka))
		eventually(t, time.Minute, "HDFS has the records", func() error { return p.settled(1000, "hdfs") })
		topics, err := kadm.NewClient(newClient(t, stack.kafka)).ListTopics(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range topics.Names() {
			if strings.Contains(name, "out-"+p.topic) {
				t.Errorf("the topic %s was created", name)
			}
		}
		p.kafka.stop() // which does not wait for what cannot be delivered
	})
	t.Run("there and back", func(t *testing.T) {
		t.Parallel()
		other := secondBroker(t)
		if err := other.start(); err != nil {
			t.Fatal(err)
		}
		p := newPipeline(t, other, fmt.Sprintf("kafka: {brokers: [%q]", other.addr()), fmt.Sprintf("kafka: {brokers: [%q]", alias(t, other)))
		// The delivery to HDFS becomes the one that copies back, of a queue that reads the other
		// cluster.
		p.rewrite("\nbuffer:", fmt.Sprintf("\n    back: {brokers: [%q], group: %q, topics: [%q], start: earliest, queue: back}\nbuffer:", other.addr(), p.topic, p.topic),
			"  queues:\n", "  queues:\n    back: {subscriptions: {all: {}}}\n", "c/hdfs", "back/all", `topic: "out-%{topic}"`, `topic: "%{topic}"`)
		config, err := os.ReadFile(p.config)
		if err != nil {
			t.Fatal(err)
		}
		sink := regexp.MustCompile(`(?m)^    hdfs: \{url.*$`)
		config = sink.ReplaceAll(config, fmt.Appendf(nil, `    kafka: {brokers: [%q], topic: "%%{topic}"}`, alias(t, stack.kafka)))
		if err := os.WriteFile(p.config, config, 0o644); err != nil {
			t.Fatal(err)
		}
		createTopic(t, stack.kafka, p.topic, nil)
		createTopic(t, other, p.topic, nil)
		p.start()
		eventually(t, time.Minute, "both sources read", func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			r, err := spillwayv1.NewIngestAdminServiceClient(p.ingest.conn).ListSources(ctx, &spillwayv1.ListSourcesRequest{})
			if err == nil && strings.Count(r.String(), `"running"`) != 2 {
				err = fmt.Errorf("sources: %s", r)
			}
			return err
		})
		if err := newClient(t, stack.kafka).ProduceSync(t.Context(), &kgo.Record{Topic: p.topic, Value: value(0)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		eventually(t, time.Minute, "a delivery refuses", refused(p.kafka))
		if n := ends(stack.kafka, p.topic); n != 1 {
			t.Errorf("the topic has %d records, want the one that was written", n)
		}
		if n := ends(other, p.topic); n != 0 {
			t.Errorf("the other cluster's topic has %d records", n)
		}
	})
}

// alias is another address by which a broker is reached, and which a configuration cannot tell to
// be the same: what is sent there goes to the broker.
func alias(t testing.TB, b broker) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer from.Close()
				to, err := net.Dial("tcp", b.addr())
				if err != nil {
					return
				}
				defer to.Close()
				go func() { _, _ = io.Copy(to, from); _ = to.Close() }()
				_, _ = io.Copy(from, to)
			}()
		}
	}()
	return l.Addr().String()
}
