package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestNameNodeFailover: the active NameNode of two goes on standby, in order, and later dies. The delivery, which knows them
// by the name in Hadoop's files, goes on with the other one; every record is there once, in files as the configuration wants them.
func TestNameNodeFailover(t *testing.T) {
	t.Parallel()
	const n = 60_000
	c := newCluster(t, "HDFS_HA=1")
	p := newPipeline(t, stack.kafka, fmt.Sprintf("url: \"hdfs://%s\", user: hdfs", stack.hdfs),
		fmt.Sprintf("url: \"hdfs://stack\", conf_dir: %q, user: me, replication: 2, block_size: 1MiB, umask: \"077\"", c.file("conf")))
	createTopic(t, stack.kafka, p.topic, nil)
	p.start()
	source := newProducer(t, stack.kafka, p.topic)
	produced := make(chan error, 1)
	go func() { produced <- source.produce(n, 3_000) }()
	steps := []struct {
		script string
		args   []string
	}{
		{"hdfs-haadmin", []string{"-transitionToStandby", "nn1"}},
		{"hdfs-haadmin", []string{"-transitionToActive", "nn2"}},
		{"hdfs-kill-namenode", []string{"2"}},
		{"hdfs-haadmin", []string{"-transitionToActive", "--forceactive", "nn1"}},
		{"hdfs-restart-namenode", []string{"2"}},
	}
	for _, s := range steps {
		pause(t, 2*time.Second)
		if err := c.script(s.script, s.args...); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s %s after %d records", s.script, strings.Join(s.args, " "), source.written.Load())
	}
	if err := <-produced; err != nil {
		t.Fatal(err)
	}
	eventually(t, 3*time.Minute, "everything is delivered", func() error { return p.settled(n, "hdfs") })
	eventually(t, 3*time.Minute, "every file is final", func() error { return errors.Join(noOpenFiles(p.hdfs), p.noOrphans()) })
	c.tally(t, p.hdfsDir, n).check(t, "HDFS", false)
	files := c.files(t, p.hdfsDir)
	for line := range strings.Lines(string(c.tool(t, "hdfs-dfs", append([]string{"-stat", "%r %o %u %a %n"}, files...)...))) {
		if !strings.HasPrefix(line, "2 1048576 me 600 ") {
			t.Errorf("replicas, block size, owner, mode and name: %s", line)
		}
	}
}
