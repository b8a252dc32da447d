package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestBuffersWithDifferentFiles: of four buffers that divide a queue by a group, each is started
// again and again with the newer or the older file of a rolling change, and shards go from one to
// the other, also by SIGKILL, while a subscription is moved and changed. The older file, in which
// a delivery wants nothing, never counts, no shard is refused, and everything arrives once.
func TestBuffersWithDifferentFiles(t *testing.T) {
	const n, restarts = 24_000, 12
	random := seeded(t)
	p := newGroupedPipeline(t, []string{stack.kafka.addr()}, 1)
	older := filepath.Join(p.dir, "older.yaml")
	text, err := os.ReadFile(p.config)
	if err != nil {
		t.Fatal(err)
	}
	const hdfs, revision = `hdfs: {topics: ["*"], on_full: block}`, "commit_after: delivered"
	file := func(path, number, subscriptions string) {
		t.Helper()
		edited := strings.NewReplacer(hdfs, subscriptions, revision, revision+"\n      revision: "+number).Replace(string(text))
		if !strings.Contains(edited, subscriptions) || !strings.Contains(edited, "revision: "+number) {
			t.Fatalf("the pipeline has no %q or no %q", hdfs, revision)
		}
		if err := os.WriteFile(path, []byte(edited), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file(p.config, "2", hdfs+"\n        idle: {topics: [\"*\"], required: false, on_full: defer, limit: 64KiB}")
	file(older, "1", "hdfs: {topics: [\"nothing*\"], on_full: block}\n        idle: {topics: [\"*\"], on_full: block, limit: 128KiB}")
	p.start()
	source := newProducer(t, stack.kafka, p.topic)
	produced := make(chan error, 1)
	go func() { produced <- source.produce(n, 600) }()
	// have waits until each shard has an owner, and looks at what all of them say of
	// subscriptions.
	have := func() {
		t.Helper()
		for shard := range int32(shardCount) {
			eventually(t, time.Minute, fmt.Sprintf("shard %d goes by the newer file", shard), func() error {
				b, err := p.ownerOf(shard)
				if err != nil {
					return err
				}
				subs, err := subscriptionsOf(b)
				if err != nil {
					return err
				}
				h, idle := subs["hdfs"], subs["idle"]
				if h == nil || idle == nil { // it has gone elsewhere just now
					return fmt.Errorf("%s has %v", b.name, subs)
				}
				if strings.Join(h.Topics, " ") != "*" || idle.Required {
					t.Fatalf("shard %d at %s: %v, %v", shard, b.name, h, idle)
				}
				return nil
			})
		}
	}
	have()
	for i := range restarts {
		b := p.buffers()[random.IntN(len(p.buffers()))]
		b.args = []string{"buffer", "-c", []string{p.config, older}[i%2]}
		if random.IntN(3) == 0 {
			b.kill()
		} else {
			b.stop()
		}
		b.start()
		have()
		command := [][]string{{"subscriptions", "seek", "c/idle", "--to", "earliest", "--confirm", "c/idle"},
			{"subscriptions", "seek", "c/idle", "--to", "latest", "--confirm", "c/idle"},
			{"subscriptions", "update", "c/idle", "--limit", fmt.Sprint(1+random.IntN(8), "MiB")}}[random.IntN(3)]
		eventually(t, time.Minute, strings.Join(command, " "), func() error {
			_, err := p.ask(command...)
			return err
		})
		have()
	}
	if err := <-produced; err != nil {
		t.Fatal(err)
	}
	p.awaitRest(n, 2*time.Minute, p.hdfs)
	eventually(t, time.Minute, "every file is final in HDFS", func() error { // a shard between two owners tells of no files
		if ls := string(stack.cluster.tool(t, "hdfs-dfs", "-ls", "-R", p.hdfsDir)); strings.Contains(ls, ".tmp") {
			return fmt.Errorf("files are in use:\n%s", ls)
		}
		return nil
	})
	tallyHDFS(t, p.hdfsDir, n).check(t, "HDFS", false)
	checkCommitted(t, stack.kafka, p.out, n)
}
