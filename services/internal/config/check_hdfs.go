package config

import (
	"regexp"
	"slices"
	"strings"
	"time"
)

func (k checker) hdfs(at string, h *HDFS) {
	k.url(at+".url", h.URL)
	k.cluster(at, h)
	k.path(at+".path", h.Path)
	k.fileTemplate(at+".file_prefix", h.FilePrefix)
	k.fileText(at+".file_suffix", h.FileSuffix)
	k.fileText(at+".in_use_prefix", h.InUsePrefix)
	k.fileText(at+".in_use_suffix", h.InUseSuffix)
	if strings.HasPrefix(h.URL, "hdfs:") {
		k.noColon(at+".path", h.Path)
		k.noColon(at+".file_prefix", h.FilePrefix)
		k.noColon(at+".file_suffix", h.FileSuffix)
		k.noColon(at+".in_use_prefix", h.InUsePrefix)
		k.noColon(at+".in_use_suffix", h.InUseSuffix)
	}
	if h.InUsePrefix == "" && h.InUseSuffix == "" {
		k.key(at+".in_use_suffix", "is empty, and so is in_use_prefix; want one of them, since a file in use must not look final")
	}
	if _, err := time.LoadLocation(h.TimeZone); err != nil {
		k.key(at+".time_zone", "unknown time zone %q; want a name such as UTC or Europe/Berlin", h.TimeZone)
	}
	k.oneOf(at+".sync", h.Sync, "flush", "disk")
	k.oneOf(at+".on_denied", h.OnDenied, "wait", "dead_letter")
	k.oneOf(at+".time_from", h.TimeFrom, "record", "kafka", "local")
	k.rounding(at, h)
	zeroOr(k, at+".roll.interval", h.Roll.Interval, minRoll, maxRoll, "never")
	zeroOr(k, at+".roll.size", h.Roll.Size, 1, maxFile, "never")
	zeroOr(k, at+".roll.count", h.Roll.Count, 1, maxRecords, "never")
	zeroOr(k, at+".roll.idle", h.Roll.Idle, minRoll, maxRoll, "never")
	between(k, at+".max_open_files", h.MaxOpenFiles, 1, maxOpenFiles)
	between(k, at+".commit.bytes", h.Commit.Bytes, minCommit, maxCommit)
	between(k, at+".commit.interval", h.Commit.Interval, time.Millisecond, time.Hour)
	k.nameMarks(at, h)
	k.format(at, h)
	k.success(at+".success_after", h)
}

// success is about directories whose time is over.
func (k checker) success(at string, h *HDFS) {
	between(k, at, h.SuccessAfter, 0, maxRoll)
	if h.SuccessAfter == 0 {
		return
	}
	if h.TimeFrom == "local" {
		k.key(at, "does not go with time_from: local, where no directory is ever complete for its records")
	}
	if _, err := skeleton(h.Path, escapes); err != nil {
		return // said of path
	}
	if _, err := PathTimeUnit(h.Path); err != nil {
		k.key(at, "path %v", err)
	}
}

// unsupported are keys that a user of Flume or Hadoop may look for.
func (h *HDFS) unsupported() map[string]string {
	return map[string]string{
		"proxy_user": "the HDFS client has no proxy users; files belong to user or to kerberos.principal",
		"hsync":      "it is sync: disk here",
	}
}

// octal is a umask.
var octal = regexp.MustCompile(`^0?[0-7]{3}$`)

// cluster is what of HDFS is not about the files' names and content.
func (k checker) cluster(at string, h *HDFS) {
	if strings.HasPrefix(h.URL, "file:") {
		for key, isSet := range map[string]bool{
			"conf_dir": h.ConfDir != "", "kerberos": h.Kerberos != nil, "data_transfer_protection": h.DataTransferProtection != "",
			"replication": h.Replication != 0, "block_size": h.BlockSize != 0, "umask": h.Umask != "",
		} {
			if isSet {
				k.key(join(at, key), "is for hdfs:// only; leave it out for %s", h.URL)
			}
		}
		return
	}
	between(k, at+".replication", h.Replication, 0, maxHDFSReplicas)
	between(k, at+".block_size", h.BlockSize, 0, maxMemory)
	if h.BlockSize%512 != 0 || h.BlockSize > 0 && h.BlockSize < MiB {
		k.key(at+".block_size", "is %v; want at least 1MiB, and a multiple of 512 bytes, which HDFS has checksums of", h.BlockSize)
	}
	if h.Umask != "" && !octal.MatchString(h.Umask) {
		k.key(at+".umask", "bad umask %q: want octal digits such as 022 or 077", h.Umask)
	}
	if h.DataTransferProtection != "" {
		k.oneOf(at+".data_transfer_protection", h.DataTransferProtection, "authentication", "integrity", "privacy")
	}
	if h.Kerberos == nil {
		return
	}
	if h.User != "" {
		k.key(at+".user", "does not go with kerberos, where the user is the principal's: the HDFS client has no proxy users")
	}
	at += ".kerberos"
	k.present(at+".keytab", h.Kerberos.Keytab)
	k.present(at+".krb5_conf", h.Kerberos.Krb5Conf)
	if k.present(at+".principal", h.Kerberos.Principal) && !principal.MatchString(h.Kerberos.Principal) {
		k.key(at+".principal", "malformed %q: want name@REALM or name/host@REALM", h.Kerberos.Principal)
	}
	if s := h.Kerberos.ServicePrincipal; s != "" && !servicePrincipal.MatchString(s) {
		k.key(at+".service_principal", "malformed %q: want nn/_HOST@REALM or nn/host@REALM", s)
	}
}

var (
	principal        = regexp.MustCompile(`^[^/@\s]+(/[^/@\s]+)?(@[^/@\s]+)?$`)
	servicePrincipal = regexp.MustCompile(`^[^/@\s]+/[^/@\s]+(@[^/@\s]+)?$`)
)

// notHDFS are schemes of Hadoop's, with the reason why they are refused.
var notHDFS = map[string]string{
	"viewfs":   "the HDFS client has no mount tables; want the hdfs:// of the NameNode that path is mounted from",
	"webhdfs":  "files are written by NameNode RPC; want hdfs://",
	"swebhdfs": "files are written by NameNode RPC; want hdfs://, with kerberos and data_transfer_protection: privacy for encryption",
}

// url is hdfs://host:port[,host:port...], hdfs://nameservice, hdfs:/// or file:///directory.
func (k checker) url(at, url string) {
	if !k.present(at, url) {
		return
	}
	scheme, rest, ok := strings.Cut(url, "://")
	if reason := notHDFS[scheme]; ok && reason != "" {
		k.key(at, "%s:// is not supported: %s", scheme, reason)
		return
	}
	if !ok || scheme != "hdfs" && scheme != "file" {
		k.key(at, "malformed URL %q: want hdfs://namenode:8020 or file:///directory", url)
		return
	}
	authority, directory := rest, ""
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		authority, directory = rest[:i], rest[i:]
	}
	switch {
	case slices.Contains(strings.Split(directory, "/"), ".."):
		k.key(at, "has '..' in its directory %q; want an absolute path without it", directory)
	case scheme == "hdfs" && strings.Trim(directory, "/") != "":
		k.key(at, "has a directory, %q; want it in path", directory)
	case scheme == "hdfs":
		k.nameNodes(at, authority, directory)
	case authority != "" || directory == "":
		k.key(at, "malformed URL %q: want an absolute directory, file:///directory", url)
	}
}

// nameNodes are host:port with commas between several, or the name of a nameservice, which has no
// port. Nothing before a slash is what fs.defaultFS says.
func (k checker) nameNodes(at, authority, directory string) {
	if nameservice.MatchString(authority) || authority == "" && directory == "/" {
		return
	}
	for nameNode := range strings.SplitSeq(authority, ",") {
		if host, port, ok := splitAddress(nameNode); !ok || host == "" || port == 0 {
			k.key(at, "malformed NameNode %q: want hdfs://host:port, with commas between several, or hdfs://nameservice", nameNode)
		}
	}
}

var nameservice = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)
