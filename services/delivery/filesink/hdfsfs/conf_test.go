package hdfsfs

import (
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/colinmarc/hdfs/v2"

	"github.com/spillwayio/spillway/services/internal/config"
)

// writeConf makes a directory with a core-site.xml and an hdfs-site.xml of lines "name value".
func writeConf(t *testing.T, core, hdfsSite string) string {
	t.Helper()
	dir := t.TempDir()
	for name, lines := range map[string]string{"core-site.xml": core, "hdfs-site.xml": hdfsSite} {
		var xml strings.Builder
		xml.WriteString("<?xml version=\"1.0\"?>\n<!-- a comment -->\n<configuration>\n")
		for line := range strings.Lines(lines) {
			if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
				xml.WriteString("<property><name>" + name + "</name><value>\n " + value + "\n</value><final>true</final></property>\n")
			}
		}
		xml.WriteString("</configuration>\n")
		if err := os.WriteFile(filepath.Join(dir, name), []byte(xml.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const (
	core = "fs.defaultFS hdfs://prod"
	site = `dfs.nameservices prod,other
		dfs.ha.namenodes.prod nn1, nn2
		host.of.nn2 nn2.example.com
		dfs.namenode.rpc-address.prod.nn1 nn1.example.com:8020
		dfs.namenode.rpc-address.prod.nn2 ${host.of.nn2}:8020
		dfs.ha.namenodes.other nn3
		dfs.namenode.rpc-address.other.nn3 nn3.example.com:8020
		dfs.namenode.rpc-address.lonely nn4.example.com:8020
		dfs.replication 2
		dfs.blocksize 64m
		fs.permissions.umask-mode 077
		dfs.client.use.datanode.hostname false
		dfs.data.transfer.protection privacy, Integrity`
)

func newTestFS(h *config.HDFS) (*FS, error) { return New(h, slog.New(slog.DiscardHandler)) }

func TestNameNodes(t *testing.T) {
	dir := writeConf(t, core, site)
	for _, test := range []struct{ url, dir, env, want string }{
		{"hdfs://nn:8020", "", "", "nn:8020"},
		{"hdfs://nn:8020/", "", dir, "nn:8020"},
		{"hdfs://nn1:8020,nn2:8020", dir, "", "nn1:8020 nn2:8020"},
		{"hdfs://prod", dir, "", "nn1.example.com:8020 nn2.example.com:8020"},
		{"hdfs://prod/", "", dir, "nn1.example.com:8020 nn2.example.com:8020"},
		{"hdfs://other", dir, "/nowhere", "nn3.example.com:8020"},
		{"hdfs://lonely", dir, "", "nn4.example.com:8020"},
		{"hdfs:///", dir, "", "nn1.example.com:8020 nn2.example.com:8020"},
		{"hdfs:///", writeConf(t, "fs.defaultFS hdfs://nn:9000", ""), "", "nn:9000"},
		{"hdfs:///", writeConf(t, "fs.default.name hdfs://nn/", ""), "", "nn:8020"},
	} {
		t.Setenv("HADOOP_CONF_DIR", test.env)
		f, err := newTestFS(&config.HDFS{URL: test.url, ConfDir: test.dir})
		if err != nil {
			t.Errorf("%s: %v", test.url, err)
			continue
		}
		if got := strings.Join(f.cluster.options.Addresses, " "); got != test.want {
			t.Errorf("%s: NameNodes %q, want %q", test.url, got, test.want)
		}
	}
}

// What is wrong is an error with the key or the property in it.
func TestWhatIsRefused(t *testing.T) {
	dir := writeConf(t, core, site)
	kerberos := &config.Kerberos{Principal: "a@B", Keytab: "/none", Krb5Conf: "/none"}
	for _, test := range []struct {
		h    config.HDFS
		want string
	}{
		{config.HDFS{URL: ""}, "want hdfs://namenode:8020"},
		{config.HDFS{URL: "nn:8020"}, "want hdfs://namenode:8020"},
		{config.HDFS{URL: "file:///x"}, "want hdfs://namenode:8020"},
		{config.HDFS{URL: "hdfs://"}, "want hdfs://namenode:8020"},
		{config.HDFS{URL: "hdfs://nn:8020/path"}, "want hdfs://namenode:8020"},
		{config.HDFS{URL: "hdfs://prod"}, "set hdfs.conf_dir or HADOOP_CONF_DIR"},
		{config.HDFS{URL: "hdfs:///"}, "set hdfs.conf_dir or HADOOP_CONF_DIR"},
		{config.HDFS{URL: "hdfs://prd", ConfDir: dir}, `no nameservice "prd"; it has ["other" "prod"]`},
		{config.HDFS{URL: "hdfs://nn:8020", ConfDir: t.TempDir()}, "no core-site.xml or hdfs-site.xml"},
		{config.HDFS{URL: "hdfs:///", ConfDir: writeConf(t, "fs.defaultFS viewfs://x", "")}, `fs.defaultFS is "viewfs://x"`},
		{config.HDFS{URL: "hdfs://x", ConfDir: writeConf(t, "", "dfs.ha.namenodes.x a")}, "dfs.namenode.rpc-address.x.a"},
		{config.HDFS{URL: "hdfs://n:1", ConfDir: writeConf(t, "", "dfs.replication many")}, "dfs.replication"},
		{config.HDFS{URL: "hdfs://n:1", ConfDir: writeConf(t, "", "dfs.blocksize 1000")}, "dfs.blocksize"},
		{config.HDFS{URL: "hdfs://n:1", ConfDir: writeConf(t, "fs.permissions.umask-mode u=rwx,g=rx", "")}, "fs.permissions.umask-mode"},
		{config.HDFS{URL: "hdfs://n:1", ConfDir: writeConf(t, "a ${a}x${a}", "")}, "does not contain itself"},
		{config.HDFS{URL: "hdfs://n:1", ConfDir: writeConf(t, "hadoop.security.authentication kerberos", "")}, "set hdfs.kerberos"},
		{config.HDFS{URL: "hdfs://n:1", Kerberos: kerberos}, "service_principal is missing"},
	} {
		_, err := newTestFS(&test.h)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v; want it to say %q", test.h, err, test.want)
		}
	}
}

// A key comes before Hadoop's files, and these before what is usual.
func TestWhatComesFirst(t *testing.T) {
	dir := writeConf(t, core, site)
	t.Setenv("HADOOP_USER_NAME", "somebody")
	type settings struct {
		user, protection string
		hostnames        bool
		replication      int
		blockSize        int64
		file, dir        os.FileMode
	}
	for _, test := range []struct {
		h    config.HDFS
		want settings
	}{
		{config.HDFS{URL: "hdfs://n:1"}, settings{"somebody", "", true, 0, 0, 0o644, 0o755}},
		{config.HDFS{URL: "hdfs://n:1", User: "me", Umask: "002", Replication: 3, BlockSize: config.MiB}, settings{"me", "", true, 3, 1 << 20, 0o664, 0o775}},
		{config.HDFS{URL: "hdfs://prod", ConfDir: dir}, settings{"somebody", "integrity", false, 2, 64 << 20, 0o600, 0o700}},
		{config.HDFS{URL: "hdfs://prod", ConfDir: dir, Umask: "027", Replication: 1, BlockSize: config.MiB, DataTransferProtection: "privacy"},
			settings{"somebody", "privacy", false, 1, 1 << 20, 0o640, 0o750}},
	} {
		f, err := newTestFS(&test.h)
		if err != nil {
			t.Errorf("%+v: %v", test.h, err)
			continue
		}
		c := f.cluster
		if got := (settings{c.options.User, c.options.DataTransferProtection, c.options.UseDatanodeHostname, c.replication, c.blockSize, c.fileMode, c.dirMode}); got != test.want {
			t.Errorf("%+v:\n got %+v\nwant %+v", test.h, got, test.want)
		}
	}
}

func TestServicePrincipal(t *testing.T) {
	dir := writeConf(t, "hadoop.security.authentication kerberos", "dfs.namenode.kerberos.principal hdfs/_HOST@PROD")
	for _, test := range []struct {
		key, dir, want string
		realms         map[string]string
	}{
		{"", dir, "hdfs/_HOST", map[string]string{"nn1": "PROD", "nn2": "PROD"}},
		{"nn/_HOST", dir, "nn/_HOST", nil},
		{"nn/vip@TEST", "", "nn/vip", map[string]string{"vip": "TEST"}},
	} {
		conf, err := loadConf(test.dir, "")
		if err != nil {
			t.Error(err)
			continue
		}
		options := hdfs.ClientOptions{Addresses: []string{"nn1:8020", "nn2:8020"}}
		realms, err := nameNodeRealms(config.Kerberos{ServicePrincipal: test.key}, &options, conf["dfs.namenode.kerberos.principal"])
		if got := options.KerberosServicePrincipleName; err != nil || got != test.want || !maps.Equal(realms, test.realms) {
			t.Errorf("%q, %q: %q in realms %v, %v; want %+v", test.key, test.dir, got, realms, err, test)
		}
	}
}

func TestTheActiveNameNodeComesFirst(t *testing.T) {
	f, err := newTestFS(&config.HDFS{URL: "hdfs://a:1,b:1,c:1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ active, want string }{{"", "a:1 b:1 c:1"}, {"a:1", "a:1 b:1 c:1"}, {"c:1", "c:1 a:1 b:1"}, {"b:1", "b:1 a:1 c:1"}} {
		f.active = test.active
		if got := strings.Join(f.nameNodes(), " "); got != test.want {
			t.Errorf("%q is active: %s, want %s", test.active, got, test.want)
		}
	}
}
