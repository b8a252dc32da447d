package config

import (
	"fmt"
	"strings"
	"testing"
)

// TestLoopsThatTheFileTells refuses deliveries whose records certainly go round, and no others:
// what only the clusters tell is for the deliveries to find out.
func TestLoopsThatTheFileTells(t *testing.T) {
	for _, test := range []struct {
		topics, source, target, topic, wanted string
		loop                                  bool
	}{
		{`"re:.*orders.*"`, "kafka:9092", "kafka:9092", "copy-%{topic}", "*", true},
		{`"re:.*"`, "kafka:9092", "kafka:9092", "copy-%{topic}", "*", true},
		{`"re:(web|orders)-[a-z]+\\.v[0-9]{2}"`, "kafka:9092", "kafka:9092", "%{topic}", "*", true},
		{`"re:.*"`, "localhost:9092", "127.0.0.1:9092", "copy-%{topic}", "*", true},
		{`"re:.*"`, "kafka:9092", "other:9092", "copy-%{topic}", "*", false},
		{`"re:.*"`, "kafka:9092", "kafka:9093", "copy-%{topic}", "*", false},
		{`"re:orders.*"`, "kafka:9092", "kafka:9092", "copy-%{topic}", "*", false},
		{`"re:(copy-)?orders"`, "kafka:9092", "kafka:9092", "copy-%{topic}", "*", false}, // ends after one more copy
		{`"re:.*orders.*"`, "kafka:9092", "kafka:9092", "copy-%{topic}", "orders*", false},
		{`orders`, "127.0.0.1:9092", "localhost:9092", "%{topic}", "*", true},
		{`orders`, "kafka:9092", "kafka:9092", "copy-%{topic}", "*", false},
	} {
		text := fmt.Sprintf(`
buffers: [buffer:7400]
security: {insecure: true}
ingest: {sources: {s: {brokers: [%q], group: g, topics: [%s], queue: q}}}
buffer: {data_dir: /data/spillway, queues: {q: {subscriptions: {copy: {topics: [%q]}}}}}
delivery: {d: {subscription: q/copy, kafka: {brokers: [%q], topic: %q}}}
`, test.source, test.topics, test.wanted, test.target, test.topic)
		_, err := Parse("x.yaml", []byte(text), nil)
		if refused := err != nil; refused != test.loop || refused && !strings.Contains(err.Error(), "go round for ever") {
			t.Errorf("%+v: %v", test, err)
		}
	}
}
