package flume

import (
	"slices"
	"strings"

	"github.com/spillwayio/spillway/services/internal/config"
)

// nearKey returns the key that Flume knows and that name was probably meant to be, or "".
func nearKey(c *Component, name string) string {
	all := knownKeys[c.Kind]
	if slices.Contains(all, name) {
		return ""
	}
	for _, prefix := range []string{"hdfs.", "kafka.", "kafka.consumer."} {
		if slices.Contains(all, prefix+name) {
			return prefix + name
		}
	}
	if rest, found := strings.CutPrefix(name, "kafka."); found && slices.Contains(all, "kafka.consumer."+rest) {
		return "kafka.consumer." + rest
	}
	return config.Nearest(name, all)
}

var knownKeys = map[Kind][]string{
	SourceKind:  {"kafka.bootstrap.servers", "kafka.topics", "kafka.topics.regex", "kafka.consumer.group.id", "batchSize", "batchDurationMillis", "channels", "interceptors", "zookeeperConnect", "groupId", "topic"},
	ChannelKind: {"capacity", "transactionCapacity", "byteCapacity", "checkpointDir", "dataDirs", "keep-alive", "kafka.bootstrap.servers", "kafka.topic", "kafka.consumer.group.id", "parseAsFlumeEvent", "memoryCapacity", "overflowCapacity"},
	SinkKind: {"channel", "serializer", "hdfs.path", "hdfs.filePrefix", "hdfs.fileSuffix", "hdfs.inUsePrefix", "hdfs.inUseSuffix", "hdfs.rollInterval", "hdfs.rollSize", "hdfs.rollCount",
		"hdfs.idleTimeout", "hdfs.batchSize", "hdfs.codeC", "hdfs.fileType", "hdfs.maxOpenFiles", "hdfs.writeFormat", "hdfs.callTimeout", "hdfs.threadsPoolSize", "hdfs.kerberosPrincipal",
		"hdfs.kerberosKeytab", "hdfs.round", "hdfs.roundValue", "hdfs.roundUnit", "hdfs.timeZone", "hdfs.useLocalTimeStamp", "kafka.bootstrap.servers", "kafka.topic", "flumeBatchSize"},
}
