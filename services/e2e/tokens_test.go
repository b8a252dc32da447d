package e2e

import (
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/internal/config"
)

// TestBlockTokens: tokens and keys of blocks live for a minute. A file that is open for longer
// goes on, also over the end of its block, and one of a dead writer is taken.
func TestBlockTokens(t *testing.T) {
	t.Parallel()
	c := newCluster(t, heldNodes, "HDFS_PROTECTION=privacy", "HDFS_REPLICATION=3",
		"HDFS_SITE_EXTRA=dfs.block.access.token.lifetime=1\ndfs.block.access.key.update.interval=1\ndfs.encrypt.data.transfer=true")
	h := &held{cluster: c, t: t}
	h.fs = secureFS(t, c, config.HDFS{Replication: heldNodes, BlockSize: config.MiB, DataTransferProtection: "privacy",
		Kerberos: &config.Kerberos{Principal: "spillway", Keytab: c.file("kdc.keytab"), Krb5Conf: c.file("krb5.conf")}})
	h.do("hdfs-dfs", "-mkdir", "-p", "/held")
	h.do("hdfs-dfs", "-chmod", "777", "/held")
	f, dead := h.open(h.fs, "tokens"), h.open(h.fs, "tokens-dead")
	dead.mustCommit(3 << 20)
	for range 16 {
		f.mustCommit(1001)
		pause(t, 10*time.Second)
	}
	f.mustCommit(3 << 20)
	f.mustCommit(7)
	if err := f.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.check(f.path + ".tmp")
	dead.take(time.Minute)
}
