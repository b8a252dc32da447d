package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestNameNodeFailover: the active NameNode of two goes on standby, in order, and later dies. The
// delivery, which knows them by the name in Hadoop's files, goes on with the other one; every
// record is there once, in files as the configuration wants them.
func TestNameNodeFailover(t *testing.T) {
	for _, test := range []struct {
		name  string
		env   []string
		owner string
		login func(c *cluster) string
	}{
		{"simple", nil, "me", func(*cluster) string { return "user: me" }},
		// A ticket is one NameNode's: the delivery must get another one for the other.
		{"kerberos", []string{"HDFS_PROTECTION=privacy", "HDFS_RPC_PROTECTION=privacy"}, "spillway", func(c *cluster) string {
			return fmt.Sprintf("kerberos: {principal: spillway@EXAMPLE.COM, keytab: %q, krb5_conf: %q}", c.file("kdc.keytab"), c.file("krb5.conf"))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, 1, append(test.env, "HDFS_HA=1")...)
			failover(t, c, test.login(c), test.owner)
		})
	}
}

func failover(t *testing.T, c *cluster, login, owner string) {
	const part = 15_000
	p := newPipeline(t, stack.kafka, fmt.Sprintf("url: \"hdfs://%s\", user: hdfs", stack.hdfs),
		fmt.Sprintf("url: \"hdfs://stack\", conf_dir: %q, %s, replication: 2, block_size: 1MiB, umask: \"077\"", c.file("conf"), login))
	createTopic(t, stack.kafka, p.topic, nil)
	p.start()
	source := newProducer(t, stack.kafka, p.topic)
	n := 0
	for _, turn := range []struct {
		what    string
		scripts []string
	}{
		{"with the first NameNode", nil},
		{"with the second one, the first on standby", []string{"hdfs-haadmin -transitionToStandby nn1", "hdfs-haadmin -transitionToActive nn2"}},
		{"with the first one, the second dead", []string{"hdfs-kill-namenode 2", "hdfs-haadmin -transitionToActive --forceactive nn1"}},
	} {
		produced := make(chan error, 1)
		go func() { produced <- source.produce(part, 3_000) }()
		pause(t, time.Second)
		for _, script := range turn.scripts {
			name, args, _ := strings.Cut(script, " ")
			if err := c.script(name, strings.Fields(args)...); err != nil {
				t.Fatal(err)
			}
			t.Logf("%s after %d records", script, source.written.Load())
		}
		if err := <-produced; err != nil {
			t.Fatal(err)
		}
		n += part
		began := time.Now()
		eventually(t, 3*time.Minute, "all is delivered "+turn.what, func() error { return p.settled(n, "hdfs") })
		t.Logf("all is delivered %s, %.1f s later", turn.what, time.Since(began).Seconds())
	}
	eventually(t, 3*time.Minute, "every file is final", func() error { return errors.Join(noOpenFiles(p.hdfs), p.noOrphans()) })
	c.tally(t, p.hdfsDir, n).check(t, "HDFS", false)
	files := c.files(t, p.hdfsDir)
	for line := range strings.Lines(string(c.tool(t, "hdfs-dfs", append([]string{"-stat", "%r %o %u %a %n"}, files...)...))) {
		if !strings.HasPrefix(line, fmt.Sprintf("2 1048576 %s 600 ", owner)) {
			t.Errorf("replicas, block size, owner, mode and name: %s", line)
		}
	}
}
