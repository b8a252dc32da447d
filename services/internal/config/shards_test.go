package config

import (
	"fmt"
	"strings"
	"testing"
)

// TestShards takes a file that three buffers share, each with the shard that its environment says;
// but not for a pipeline in one process, which has one buffer.
func TestShards(t *testing.T) {
	t.Run("more than buffers", func(t *testing.T) {
		const file = `
buffers: [a:7400, b:7400]
security: {insecure: true}
buffer: {queues: {q: {shards: 6, commit_after: delivered, store: {kafka: {brokers: ["k:1"], namespace: n, owners: %s}}, subscriptions: {x: {}}}}}
`
		if _, err := Parse("spillway.yaml", fmt.Appendf(nil, file, "group"), nil); err != nil {
			t.Errorf("in a group: %v", err)
		}
		if _, err := Parse("spillway.yaml", fmt.Appendf(nil, file, "fixed"), nil); err == nil || !strings.Contains(err.Error(), "want one for each shard, or store.kafka.owners: group") {
			t.Errorf("fixed: %v", err)
		}
	})
	const file = `
buffers: [a:7400, b:7400, c:7400]
security: {insecure: true}
ingest: {sources: {s: {brokers: ["k:1"], group: g, topics: [t], queue: q}}}
buffer: {data_dir: /var/lib/spillway, queues: {q: {shards: 3, subscriptions: {x: {}}}, own: {subscriptions: {x: {}}}}}
delivery: {d: {subscription: q/x, listen: ":7420", http: ":7421", kafka: {brokers: ["o:1"], topic: "copy-%{topic}"}}}
`
	for shard := range 3 {
		c, err := Parse("spillway.yaml", []byte(file), []string{fmt.Sprint("SPILLWAY_BUFFER__SHARD=", shard)})
		if err != nil {
			t.Fatal(err)
		}
		if c.Buffer.Shard != shard || c.Buffer.Queues["q"].Shards != 3 || c.Buffer.Queues["own"].Shards != 1 || len(c.Buffers) != 3 {
			t.Errorf("%+v", c.Buffer)
		}
		if err := c.ForBuffer(); err != nil {
			t.Error(err)
		}
		if err := c.ForOneProcess(); err == nil || !strings.Contains(err.Error(), "buffer.queues.q.shards is 3, and one process has one buffer") {
			t.Errorf("in one process: %v", err)
		}
	}
}
