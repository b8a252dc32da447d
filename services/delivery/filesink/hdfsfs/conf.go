package hdfsfs

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/url"
	"os"
	"os/user"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/colinmarc/hdfs/v2"
	"github.com/colinmarc/hdfs/v2/hadoopconf"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/kerberos"
)

// cluster is all that is known of an HDFS before it is connected to.
type cluster struct {
	options     hdfs.ClientOptions // without Kerberos' client and dialers
	login       *kerberos.Login    // nil: no authentication
	replication int                // 0: the NameNode's default
	blockSize   int64              // 0: the NameNode's default
	fileMode    os.FileMode
	dirMode     os.FileMode
	sync        bool          // commits are on the DataNodes' disks
	heartbeat   time.Duration // after which idle DataNodes hear something
	staleAfter  time.Duration // after a DataNode's last heartbeat, the NameNode leaves it out of recoveries
}

// newCluster reads Hadoop's files, where the configuration names or needs them.
func newCluster(h *config.HDFS, log *slog.Logger) (*cluster, error) {
	authority, err := authorityOf(h.URL)
	if err != nil {
		return nil, err
	}
	conf, err := loadConf(h.ConfDir, authority)
	if err != nil {
		return nil, err
	}
	c := &cluster{options: hdfs.ClientOptionsFromConf(conf.library(h))}
	if c.options.Addresses, err = conf.nameNodes(authority); err != nil {
		return nil, fmt.Errorf("find the NameNodes of %s: %w", h.URL, err)
	}
	if h.DataTransferProtection != "" {
		c.options.DataTransferProtection = h.DataTransferProtection
	}
	if err := c.setFileDefaults(h, conf); err != nil {
		return nil, err
	}
	if err := c.setTimes(conf); err != nil {
		return nil, err
	}
	wanted := c.options.KerberosClient != nil
	c.options.KerberosClient = nil
	switch {
	case h.Kerberos != nil:
		if c.login, err = newLogin(*h.Kerberos, &c.options, conf["dfs.namenode.kerberos.principal"], log); err != nil {
			return nil, err
		}
	case wanted:
		return nil, fmt.Errorf("%s has hadoop.security.authentication kerberos: set hdfs.kerberos", conf[confDir])
	default:
		c.options.User, err = userName(h.User)
	}
	return c, err
}

// authorityOf is what stands between hdfs:// and the next slash; url.Parse refuses several hosts
// with ports.
func authorityOf(rawURL string) (string, error) {
	rest, ok := strings.CutPrefix(rawURL, "hdfs://")
	authority, directory, slash := strings.Cut(rest, "/")
	if !ok || directory != "" || authority == "" && !slash {
		return "", fmt.Errorf("HDFS URL %q: want hdfs://namenode:8020, hdfs://nameservice or hdfs:///", rawURL)
	}
	return authority, nil
}

func userName(configured string) (string, error) {
	if configured != "" {
		return configured, nil
	}
	if name := os.Getenv("HADOOP_USER_NAME"); name != "" {
		return name, nil
	}
	current, err := user.Current()
	if err != nil {
		return "", fmt.Errorf("find the user to act as on HDFS; set hdfs.user: %w", err)
	}
	return current.Username, nil
}

// setFileDefaults is about what files are created with: what the configuration says, else
// Hadoop's files.
func (c *cluster) setFileDefaults(h *config.HDFS, conf hadoopConf) error {
	c.replication, c.blockSize, c.sync = h.Replication, int64(h.BlockSize), h.Sync == "disk"
	if text := conf["dfs.replication"]; text != "" && c.replication == 0 {
		n, err := strconv.ParseUint(text, 10, 9)
		if err != nil {
			return conf.bad("dfs.replication", text, "a number of replicas")
		}
		c.replication = int(n)
	}
	if text := conf["dfs.blocksize"]; text != "" && c.blockSize == 0 {
		size, err := parseSize(text)
		if err != nil || size%512 != 0 {
			return conf.bad("dfs.blocksize", text, "bytes such as 134217728 or 128m, a multiple of 512")
		}
		c.blockSize = size
	}
	mask, key := h.Umask, "hdfs.umask"
	if mask == "" {
		mask, key = conf["fs.permissions.umask-mode"], "fs.permissions.umask-mode"
	}
	if mask == "" {
		mask = "022"
	}
	bits, err := strconv.ParseUint(mask, 8, 32)
	if err != nil || bits > 0o777 {
		return conf.bad(key, mask, "octal digits such as 022")
	}
	c.fileMode, c.dirMode = 0o666&^os.FileMode(bits), 0o777&^os.FileMode(bits)
	return nil
}

// setTimes is about how soon DataNodes give a silent writer up, and the NameNode a silent
// DataNode.
func (c *cluster) setTimes(conf hadoopConf) error {
	timeout, err := conf.milliseconds("dfs.client.socket-timeout", time.Minute)
	if err != nil {
		return err
	}
	c.heartbeat = heartbeatAfter
	if timeout > 0 {
		c.heartbeat = min(c.heartbeat, max(timeout/3, 100*time.Millisecond))
	}
	c.staleAfter, err = conf.milliseconds("dfs.namenode.stale.datanode.interval", 30*time.Second)
	return err
}

// milliseconds is a property in milliseconds.
func (c hadoopConf) milliseconds(key string, otherwise time.Duration) (time.Duration, error) {
	text := c[key]
	if text == "" {
		return otherwise, nil
	}
	ms, err := strconv.ParseInt(strings.TrimSuffix(text, "ms"), 10, 64)
	if err != nil || ms < 0 || ms > int64(math.MaxInt64/time.Millisecond) {
		return 0, c.bad(key, text, "milliseconds")
	}
	return time.Duration(ms) * time.Millisecond, nil
}

// parseSize is Hadoop's long with a binary prefix: 134217728, 128m, 1g.
func parseSize(text string) (int64, error) {
	unit := int64(1)
	if i := strings.IndexAny(text, "kKmMgG"); i >= 0 && i == len(text)-1 {
		unit = map[string]int64{"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}[strings.ToLower(text[i:])]
		text = text[:i]
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if unit == 1 {
		n, err = strconv.ParseInt(text, 10, 64)
	}
	if err == nil && n <= 0 {
		err = errors.New("not positive")
	}
	return n * unit, err
}

// hadoopConf is what core-site.xml and hdfs-site.xml say, without variables and white space. It
// is empty where they are not used.
type hadoopConf map[string]string

// confDir is the key of the directory that a hadoopConf was read from, for messages; no property
// is called so.
const confDir = "/"

// loadConf reads dir. Without one it reads $HADOOP_CONF_DIR where the authority is no address.
func loadConf(dir, authority string) (hadoopConf, error) {
	if dir == "" && !strings.Contains(authority, ":") {
		dir = os.Getenv("HADOOP_CONF_DIR")
	}
	if dir == "" {
		return nil, nil
	}
	raw, err := hadoopconf.Load(dir)
	if err == nil && raw == nil {
		err = fmt.Errorf("no core-site.xml or hdfs-site.xml in %s", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("read Hadoop's configuration: %w", err)
	}
	conf := hadoopConf{confDir: dir}
	for name, value := range raw {
		conf[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	return conf, conf.expand()
}

var variable = regexp.MustCompile(`\$\{[^}$\s]+\}`)

// expand replaces ${name} by the property of that name, as often as there is one, within limits
// as Hadoop has them.
func (c hadoopConf) expand() error {
	for name := range c {
		for range 20 {
			before := c[name]
			c[name] = variable.ReplaceAllStringFunc(before, func(v string) string {
				if value, ok := c[v[2:len(v)-1]]; ok {
					return value
				}
				return v
			})
			if c[name] == before {
				break
			}
			if len(c[name]) > 64<<10 {
				return c.bad(name, before, "a value that does not contain itself")
			}
		}
	}
	return nil
}

// bad is an error about a value.
func (c hadoopConf) bad(key, value, want string) error {
	if dir := c[confDir]; dir != "" {
		return fmt.Errorf("%s: %s is %.100q; want %s", dir, key, value, want)
	}
	return fmt.Errorf("%s is %.100q; want %s", key, value, want)
}

// library is what hdfs.ClientOptionsFromConf makes options from: the NameNodes' addresses apart,
// which it takes from all nameservices together. That function alone can tell the library to do
// without SASL on a DataNode's privileged port, as Hadoop's clients do where connections are not
// encrypted.
func (c hadoopConf) library(h *config.HDFS) hadoopconf.HadoopConf {
	get := func(key, otherwise string) string {
		if v := c[key]; v != "" {
			return v
		}
		return otherwise
	}
	conf := hadoopconf.HadoopConf{
		"hadoop.security.authentication":   c["hadoop.security.authentication"],
		"dfs.data.transfer.protection":     least(c["dfs.data.transfer.protection"]),
		"dfs.encrypt.data.transfer":        c["dfs.encrypt.data.transfer"],
		"dfs.client.use.datanode.hostname": get("dfs.client.use.datanode.hostname", "true"),
		"dfs.namenode.kerberos.principal":  c["dfs.namenode.kerberos.principal"],
	}
	if h.DataTransferProtection == hdfs.DataTransferProtectionPrivacy {
		conf["dfs.encrypt.data.transfer"] = "true"
	}
	return conf
}

// least is the least of a list of protections. The library takes the most, and refuses DataNodes
// that offer less first.
func least(list string) string {
	levels := strings.Split(strings.ToLower(list), ",")
	for i := range levels {
		levels[i] = strings.TrimSpace(levels[i])
	}
	slices.Sort(levels) // authentication, integrity, privacy
	return levels[0]
}

// nameNodes are the addresses that the authority of a URL stands for.
func (c hadoopConf) nameNodes(authority string) ([]string, error) {
	if strings.Contains(authority, ":") {
		return strings.Split(authority, ","), nil
	}
	if len(c) == 0 {
		return nil, errors.New("it has no host:port; set hdfs.conf_dir or HADOOP_CONF_DIR for a nameservice")
	}
	if authority == "" {
		text := c["fs.defaultFS"]
		if text == "" {
			text = c["fs.default.name"]
		}
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "hdfs" || u.Host == "" {
			return nil, c.bad("fs.defaultFS", text, "hdfs://nameservice or hdfs://host:port")
		}
		if authority = u.Host; u.Port() != "" {
			return []string{authority}, nil
		}
		if c["dfs.ha.namenodes."+authority] == "" && c["dfs.namenode.rpc-address."+authority] == "" {
			return []string{authority + ":8020"}, nil // no nameservice: a host with Hadoop's default port
		}
	}
	if ids := c["dfs.ha.namenodes."+authority]; ids != "" {
		var addresses []string
		for id := range strings.SplitSeq(ids, ",") {
			key := "dfs.namenode.rpc-address." + authority + "." + strings.TrimSpace(id)
			if !strings.Contains(c[key], ":") {
				return nil, c.bad(key, c[key], "host:port of a NameNode")
			}
			addresses = append(addresses, c[key])
		}
		return addresses, nil
	}
	if address := c["dfs.namenode.rpc-address."+authority]; address != "" {
		return []string{address}, nil
	}
	var known []string
	for key := range c {
		if name, ok := strings.CutPrefix(key, "dfs.ha.namenodes."); ok {
			known = append(known, name)
		}
	}
	slices.Sort(known)
	return nil, fmt.Errorf("%s has no nameservice %q; it has %q", c[confDir], authority, known)
}
