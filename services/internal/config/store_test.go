package config

import (
	"slices"
	"strings"
	"testing"
)

// TestKafkaStore reads queues that are kept in Kafka, whose buffer needs no directory.
func TestKafkaStore(t *testing.T) {
	const file = `
buffers: [a:7400, b:7400]
security: {insecure: true}
buffer:
  queues:
    logs:
      shards: 2
      commit_after: delivered
      store: {kafka: {brokers: ["k:9092"], namespace: prod, tls: {}, sasl: {mechanism: PLAIN, username: u, secret_file: /s}}}
      subscriptions: {x: {}}
    named:
      commit_after: delivered
      store: {kafka: {brokers: ["k:9092"], namespace: prod, topic: spill, replication: 1}}
      subscriptions: {x: {}}
`
	c, err := Parse("spillway.yaml", []byte(file), []string{"SPILLWAY_BUFFER__QUEUES__NAMED__STORE__KAFKA__NAMESPACE=test"})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.ForBuffer(); err != nil {
		t.Error(err)
	}
	logs, named := c.Buffer.Queues["logs"].Store.Kafka, c.Buffer.Queues["named"].Store.Kafka
	if !slices.Equal(logs.Topics(), []string{"spillway.prod.logs.journal", "spillway.prod.logs.payload"}) || logs.Replication != 3 || logs.TLS == nil || logs.SASL.Username != "u" {
		t.Errorf("logs is kept in %+v", logs)
	}
	if named.Topic != "spill" || named.Namespace != "test" || named.Replication != 1 {
		t.Errorf("named is kept in %+v", named)
	}
	if w := c.Warnings(); len(w) != 1 || !strings.Contains(w[0].Message, "named.store.kafka.replication: is 1") {
		t.Errorf("warnings are %v", w)
	}
	c.Buffer.Queues["local"] = &Queue{}
	if err := c.ForBuffer(); err == nil || !strings.Contains(err.Error(), "buffer.data_dir is missing") {
		t.Errorf("with a queue on disk: %v", err)
	}
	if text, err := c.Effective(); err != nil || !strings.Contains(string(text), "topic: spillway.prod.logs") || strings.Contains(string(text), "store: {}") {
		t.Errorf("in force is, %v\n%s", err, text)
	}
}
