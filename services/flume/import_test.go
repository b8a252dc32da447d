package flume

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spillwayio/spillway/services/internal/config"
)

// importCases are configurations with what their import must have. Want are lines of the pipeline
// or, with "FATE key", the fate of a key.
var importCases = []struct {
	name, file string
	options    Options
	want       []string
	not        []string
	clean      bool // nothing is unsupported
}{
	{
		name: "spillable with two sources", clean: true,
		options: Options{Brokers: []string{"kafka:9092"}},
		file: sourceOfKafka("s", "c", "zookeeperConnect = zk:2181", "groupId = g1", "topic = t1") + sourceOfKafka("s1", "c", "zookeeperConnect = zk:2181", "topic = t2") + `
a.sources = s s1
a.channels = c
a.sinks = k
a.channels.c.type = SPILLABLEMEMORY
a.channels.c.overflowCapacity = 5000
a.sinks.k.type = hdfs
a.sinks.k.channel = c
a.sinks.k.hdfs.path = hdfs://nn:8020/logs/%{topic}/%Y-%m-%d
a.sinks.k.hdfs.fileType = DataStream
a.sinks.k.hdfs.serializer = avro_event
`,
		want: []string{"records: 5000", "group: g1", "group: flume", "start: latest", "topics: [t1]", "url: hdfs://nn:8020", `path: "/logs/%{topic}/%Y-%m-%d"`,
			"file_prefix: FlumeData", "interval: 30s", "size: 1024", "count: 10", "idle: 0s", "serializer: text", "time_from: local", "dropped by Flume a.sinks.k.hdfs.serializer"},
	},
	{
		name: "1.11 takes Kafka's time", clean: true, options: Options{Version: "1.11"},
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k1,k2:9093", "kafka.topics = x, y") + sinkToHDFS("c"),
		want: []string{"time_from: kafka", "brokers: [k1:9092, k2:9093]", `topics: [x, "y"]`},
	},
	{
		name: "defaults of Flume write sequence files", clean: true,
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics.regex = log.*") + strings.Replace(sinkToHDFS("c"), "a.sinks.k.hdfs.fileType = DataStream\n", "", 1),
		want: []string{"serializer: sequence_file", `topics: ["re:log.*"]`},
	},
	{
		name: "interceptors with a constant take the place of the header", clean: true,
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t", "interceptors = i h ts", "interceptors.i.type = static", "interceptors.i.key = dc", "interceptors.i.value = 50%",
			"interceptors.h.type = host", "interceptors.ts.type = timestamp") + sinkToHDFS("c", "hdfs.filePrefix = %{dc}-%{host}"),
		want: []string{`file_prefix: "50%%-%[IP]"`, "time_from: local"},
	},
	{
		name: "several channels copy, optional ones do not hold back", clean: true,
		file: `a.channels = c d
a.channels.d.type = file
a.sources.s.selector.optional = d
a.sinks = k l
a.sinks.l.type = org.apache.flume.sink.kafka.KafkaSink
a.sinks.l.channel = d
a.sinks.l.kafka.bootstrap.servers = other:9092
a.sinks.l.kafka.topic = copy
a.sinks.l.allowTopicOverride = false
a.sinks.l.kafka.producer.acks = all
` + strings.NewReplacer("a.channels = c\n", "", "a.sinks = k\n", "").Replace(sourceOfKafka("s", "c d", "kafka.bootstrap.servers = k:9092", "kafka.topics = t")+sinkToHDFS("c")),
		want: []string{"required: false", "on_full: drop_oldest", "topic: copy", "subscription: c/d", `listen: "localhost:7422"`, "partitioner: key"},
	},
	{
		name: "multiplexing on the topic", clean: true,
		file: `a.channels = c d
a.channels.d.type = memory
a.sinks = k l
a.sources.s.selector.type = multiplexing
a.sources.s.selector.header = topic
a.sources.s.selector.mapping.x = c
a.sources.s.selector.default = d
a.sinks.l.type = hdfs
a.sinks.l.channel = d
a.sinks.l.hdfs.path = hdfs://nn:8020/rest
a.sinks.l.hdfs.fileType = DataStream
` + strings.NewReplacer("a.channels = c\n", "", "a.sinks = k\n", "").Replace(sourceOfKafka("s", "c d", "kafka.bootstrap.servers = k:9092", "kafka.topics = x,y")+sinkToHDFS("c")),
		want: []string{"topics: [x]", "topics: [\"y\"]"},
	},
	{
		name: "multiplexing on a header of the record", clean: true,
		file: twoChannels("kafka.bootstrap.servers = k:9092", "kafka.topics = t", "header.type = kind", "selector.type = multiplexing", "selector.header = type",
			"selector.mapping.a.b = c", "selector.mapping.x = c d", "selector.default = d"),
		want: []string{`- {name: "kind", in: ["a.b", "x"]}`, `- {name: "kind", not_in: ["a.b"]}`},
	},
	{
		name: "multiplexing on a header of an interceptor", clean: true,
		file: twoChannels("kafka.bootstrap.servers = k:9092", "kafka.topics = t", "interceptors = x", "interceptors.x.type = regex_extractor", "interceptors.x.regex = ^(\\\\w+)", "interceptors.x.serializers = s1",
			"interceptors.x.serializers.s1.name = type", "selector.type = multiplexing", "selector.header = type", "selector.mapping.a|b = c", "selector.default = d"),
		want: []string{`- keep: {from: "header:type", regex: "^(?:a\\|b)$"}`, `- drop: {from: "header:type", regex: "^(?:a\\|b)$"}`},
	},
	{
		name: "multiplexing on a header that is always the same", clean: true,
		file: twoChannels("kafka.bootstrap.servers = k:9092", "kafka.topics = t", "interceptors = x", "interceptors.x.type = static", "interceptors.x.key = dc", "interceptors.x.value = fra",
			"selector.type = multiplexing", "selector.header = dc", "selector.mapping.fra = c", "selector.mapping.ams = d"),
		want: []string{"is always fra: channel d gets nothing"},
	},
	{
		name: "multiplexing with an optional channel", clean: true,
		file: twoChannels("kafka.bootstrap.servers = k:9092", "kafka.topics = t", "header.h = h", "selector.type = multiplexing", "selector.header = h", "selector.mapping.a = c", "selector.optional.a = d"),
		want: []string{"required: false", `- {name: "h", in: ["a"]}`},
	},
	{
		name: "topics of an expression", clean: true,
		file: twoChannels("kafka.bootstrap.servers = k:9092", "kafka.topics.regex = t.*", "selector.type = multiplexing", "selector.header = topic", "selector.mapping.t1 = c", "selector.mapping.t2 = d"),
		want: []string{"topics: [t1]", "topics: [t2]"},
	},
	{
		name: "topics of an expression with a default",
		file: twoChannels("kafka.bootstrap.servers = k:9092", "kafka.topics.regex = t.*", "selector.type = multiplexing", "selector.header = topic", "selector.mapping.t1 = c", "selector.default = d"),
		want: []string{"not supported a.sources.s.selector.default"},
	},
	{
		name: "different sinks on one channel compete", clean: true,
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t") + sinkToHDFS("c") + "a.sinks = k l\na.sinks.l.type = hdfs\na.sinks.l.channel = c\na.sinks.l.hdfs.path = hdfs://nn:8020/other\na.sinks.l.hdfs.fileType = DataStream\n",
		want: []string{"compete for the events of channel c", "subscription: c/c\n", "subscription: c/c-l\n"},
	},
	{
		name: "a standby", clean: true,
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t") + sinkToHDFS("c") + "a.sinks = k l\na.sinks.l.type = hdfs\na.sinks.l.channel = c\na.sinks.l.hdfs.path = hdfs://nn:8020/first\na.sinks.l.hdfs.fileType = DataStream\n" +
			"a.sinkgroups = g\na.sinkgroups.g.sinks = k l\na.sinkgroups.g.processor.type = failover\na.sinkgroups.g.processor.priority.k = 5\na.sinkgroups.g.processor.priority.l = 10\n",
		want: []string{"sink k is the standby of l", "path: /first"},
	},
	{
		name: "sinks that divide events on purpose",
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t") + sinkToHDFS("c") + "a.sinks = k l\na.sinks.l.type = hdfs\na.sinks.l.channel = c\na.sinks.l.hdfs.path = hdfs://nn:8020/other\na.sinks.l.hdfs.fileType = DataStream\n" +
			"a.sinkgroups = g\na.sinkgroups.g.sinks = k l\na.sinkgroups.g.processor.type = load_balance\n",
		want: []string{"not supported a.sinks.l.hdfs.path"},
	},
	{
		name: "a Kafka channel is a source", clean: true,
		file: `a.channels = c
a.sinks = k
a.channels.c.type = org.apache.flume.channel.kafka.KafkaChannel
a.channels.c.kafka.bootstrap.servers = k:9092
a.channels.c.kafka.topic = chan
a.channels.c.parseAsFlumeEvent = false
` + strings.NewReplacer("a.channels = c\n", "", "a.channels.c.type = memory\n", "").Replace(sinkToHDFS("c")),
		want: []string{"topics: [chan]", "group: flume", "time_from: kafka", "in Flume each event fails"},
	},
	{
		name: "a Kafka channel of Flume's events",
		file: `a.channels = c
a.sinks = k
a.channels.c.type = org.apache.flume.channel.kafka.KafkaChannel
a.channels.c.kafka.bootstrap.servers = k:9092
` + strings.NewReplacer("a.channels = c\n", "", "a.channels.c.type = memory\n", "").Replace(sinkToHDFS("c")),
		want: []string{"topics: [flume-channel]", "- decode: flume_event", "time_from: record"}, clean: true,
	},
	{
		name: "dangling components are dropped as Flume drops them", clean: true,
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t") + sinkToHDFS("c") + `
a.sinks.lost.type = hdfs
a.sinks.lost.channel = c
a.sources.gone.type = exec
a.channel = c
hdfs.path = /x
novalue =
`,
		want: []string{"dropped by Flume a.sinks.lost.type", "dropped by Flume a.sources.gone.type", "dropped by Flume hdfs.path", "dropped by Flume novalue", "dropped by Flume a.channel"},
	},
	{
		name: "the last of two values counts", clean: true,
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = first") + "a.sources.s.kafka.topics = last\n" + sinkToHDFS("c"),
		want: []string{"topics: [last]", "dropped by Flume a.sources.s.kafka.topics"},
	},
	{
		name: "custom classes are named",
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t", "interceptors = i", "interceptors.i.type = com.example.Mine$Builder") + sinkToHDFS("c", "serializer = com.example.Ser$Builder"),
		want: []string{"not supported a.sources.s.interceptors.i.type", "not supported a.sinks.k.serializer"},
	},
	{
		name: "a foreign source leaves its sink without records",
		file: "a.sources = s\na.sources.s.type = exec\na.sources.s.command = tail -F x\na.sources.s.channels = c\n" + sinkToHDFS("c"),
		want: []string{"not supported a.sources.s.command", "not supported a.sinks.k.type"},
	},
	{
		name: "templates and placeholders are named, never guessed",
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = {{ brokers }}", "kafka.topics = <your-topic>") + sinkToHDFS("c"),
		want: []string{"render the template first"},
	},
	{
		name: "secrets are in no report",
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t", "kafka.consumer.security.protocol = SASL_SSL", "kafka.consumer.sasl.mechanism = PLAIN",
			`kafka.consumer.sasl.jaas.config = org.apache.kafka.common.security.plain.PlainLoginModule required username="bob" password="sesame";`,
			"kafka.consumer.ssl.truststore.location = /x.jks", "kafka.consumer.ssl.truststore.password = sesame") + sinkToHDFS("c"),
		want: []string{"mechanism: PLAIN", "username: bob", "secret_file:", "ca: /etc/spillway/ca.pem"},
		not:  []string{"sesame"}, clean: true,
	},
	{
		name: "interceptors become transforms", clean: true,
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t", "interceptors = f r x d", "interceptors.f.type = regex_filter", "interceptors.f.regex = ^DEBUG", "interceptors.f.excludeEvents = true",
			"interceptors.r.type = search_replace", "interceptors.r.searchPattern = (\\\\w+)@x", "interceptors.r.replaceString = $1y", "interceptors.x.type = regex_extractor", "interceptors.x.regex = (a)(b)",
			"interceptors.x.serializers = s1 s2", "interceptors.x.serializers.s1.name = one", "interceptors.x.serializers.s2.name = two", "interceptors.d.type = remove_header", "interceptors.d.fromList = p, q") + sinkToHDFS("c"),
		want: []string{`- drop: {regex: "^DEBUG"}`, `with: "${1}y"`, `name: "two", regex: "(a)(b)", group: 2`, `remove_header: {name: "q"}`},
	},
	{
		name: "an expression that only Java has",
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t", "interceptors = f", "interceptors.f.type = regex_filter", "interceptors.f.regex = (?!x)y") + sinkToHDFS("c"),
		want: []string{"not supported a.sources.s.interceptors.f.regex"},
	},
	{
		name: "codecs", clean: true,
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t") + strings.Replace(sinkToHDFS("c", "hdfs.codeC = org.apache.hadoop.io.compress.BZip2Codec"), "DataStream", "CompressedStream", 1),
		want: []string{"compression: bzip2"},
	},
	{
		name: "lzop becomes gzip", clean: true,
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t") + strings.Replace(sinkToHDFS("c", "hdfs.codeC = lzop"), "DataStream", "CompressedStream", 1),
		want: []string{"changed a.sinks.k.hdfs.codeC", "compression: gzip"},
	},
	{
		name: "a foreign source stays in Flume and fills a Kafka channel", clean: true,
		file: "a.channels = c\na.channels.c.type = org.apache.flume.channel.kafka.KafkaChannel\na.channels.c.kafka.bootstrap.servers = k:9092\na.sources = s\na.sources.s.type = avro\na.sources.s.channels = c\n" +
			strings.NewReplacer("a.channels = c\n", "", "a.channels.c.type = memory\n", "").Replace(sinkToHDFS("c")),
		want: []string{"changed a.sources.s.type", "topics: [flume-channel]", "decode: flume_event"},
	},
	{
		name: "foreign parts beside others stay in Flume", clean: true,
		file: strings.Replace(twoChannels("kafka.bootstrap.servers = k:9092", "kafka.topics = t"), "a.sinks.l.type = hdfs", "a.sinks.l.type = logger", 1),
		want: []string{"changed a.sinks.l.type"}, not: []string{"Flume's channel d"},
	},
	{
		name: "a custom interceptor that sets the time", clean: true,
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k,k:9092", "kafka.topics = t", "interceptors = i", "interceptors.i.type = com.example.TimeStampInterceptor$Builder") + sinkToHDFS("c"),
		want: []string{"changed a.sources.s.interceptors.i.type", "time_from: kafka", "brokers: [k:9092]\n"},
	},
	{
		name: "Kerberos to Kafka", clean: true,
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t", "kafka.consumer.security.protocol = SASL_PLAINTEXT", "kafka.consumer.sasl.mechanism = GSSAPI", "kafka.consumer.sasl.kerberos.service.name = broker",
			`kafka.consumer.sasl.jaas.config = com.sun.security.auth.module.Krb5LoginModule required useKeyTab=true keyTab="/etc/flume.keytab" principal="flume/h@R";`) + sinkToHDFS("c"),
		want: []string{"mechanism: GSSAPI", "principal: \"flume/h@R\"", "keytab: /etc/flume.keytab", "service_name: broker", "carried over a.sources.s.kafka.consumer.sasl.jaas.config"},
	},
	{
		name: "Kerberos to Kafka, by a JAAS file", clean: true,
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t", "kafka.consumer.security.protocol = SASL_SSL", "kafka.consumer.sasl.kerberos.service.name = kafka") + sinkToHDFS("c"),
		want: []string{"mechanism: GSSAPI", "TODO: the principal", "changed a.sources.s.kafka.consumer.security.protocol"}, not: []string{"service_name:"},
	},
	{
		name: "keys of a Kafka channel and of old and new sinks are known", clean: true,
		file: "a.channels = c d\na.channels.c.type = org.apache.flume.channel.kafka.KafkaChannel\na.channels.c.kafka.bootstrap.servers = k:9092\na.channels.c.defaultPartitionId = 1\na.channels.c.partitionIdHeader = p\na.channels.c.timeout = 100\n" +
			"a.channels.c.parseAsFlumeEvent = false\na.sinks = q\na.sinks.q.type = org.apache.flume.sink.kafka.KafkaSink\na.sinks.q.channel = c\na.sinks.q.kafka.bootstrap.servers = o:9092\na.sinks.q.kafka.topic = t\na.sinks.q.topic = u\n" +
			"a.sinks.q.requiredAcks = 1\na.sinks.q.kafka.producer.acks = all\n",
		want: []string{"topic: t\n", "not needed a.channels.c.timeout", "not needed a.sinks.q.topic", "not needed a.sinks.q.requiredAcks"}, not: []string{"no such key"},
	},
	{
		name: "only foreign sinks",
		file: strings.Replace(sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t")+sinkToHDFS("c"), "type = hdfs", "type = hive", 1),
		want: []string{"not supported a.sources.s.type", "not supported a.sinks.k.type", "no pipeline is written"}, not: []string{"ingest:"},
	},
	{
		name: "Avro of a schema", clean: true,
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t", "interceptors = i", "interceptors.i.type = static", "interceptors.i.key = flume.avro.schema.url", "interceptors.i.value = file:///etc/flume/x.avsc") +
			sinkToHDFS("c", "serializer = org.apache.flume.sink.hdfs.AvroEventSerializer$Builder", "serializer.compressionCodec = snappy"),
		want: []string{"serializer: avro\n", "avro_schema: /etc/flume/x.avsc", "compression: snappy", "carried over a.sinks.k.serializer"},
	},
	{
		name: "Avro of a schema elsewhere", clean: true,
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t") + sinkToHDFS("c", "serializer = org.apache.flume.sink.hdfs.AvroEventSerializer$Builder", "serializer.schemaURL = hdfs://nn/x.avsc", "unknown = 7"),
		want: []string{"avro_schema: /etc/spillway/k.avsc", "save hdfs://nn/x.avsc", "dropped by Flume a.sinks.k.unknown"},
	},
	{
		name: "a batch above the transaction capacity", clean: true,
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t") + sinkToHDFS("c", "hdfs.batchSize = 1000") + "a.channels.c.transactionCapacity = 100\n",
		want: []string{"changed a.sinks.k.hdfs.batchSize"},
	},
	{
		name: "typing errors", clean: true,
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t", "kafka.group.id = mine") + sinkToHDFS("c") + "a.channels.c.transactioncapacity = 5\na.sinks.k.rollInterval = 7\n",
		want: []string{"dropped by Flume a.sources.s.kafka.group.id", "dropped by Flume a.channels.c.transactioncapacity", "dropped by Flume a.sinks.k.rollInterval"},
	},
	{
		name: "keys that only a template engine could complete are in the report, expressions are none",
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t", "interceptors = f", "interceptors.f.type = regex_filter", "interceptors.f.regex = (?P<level>x)<br>") +
			sinkToHDFS("c", "hdfs.rollSize = {{ size }}", "hdfs.password = {{ secret }}") + "a.${x}.y = z\n",
		want: []string{"not supported a.sinks.k.hdfs.rollSize", "not supported a.${x}.y", "carried over a.sources.s.interceptors.f.regex", "hdfs.password = ***"},
	},
	{
		name: "keys of other agents are in the report", clean: true, options: Options{Agent: "a"},
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t") + sinkToHDFS("c") + "b.sources = s\nb.sources.s.type = exec\nb.odd = x\n",
		want: []string{"not needed b.sources", "not needed b.sources.s.type", "not needed b.odd", "import that with --agent b"},
	},
	{
		name: "an agent of which Flume starts nothing, for want of channels",
		file: sourceOfKafka("s", "c") + "a.channels = c\na.channels.c.capacity = 5\n",
		want: []string{"no channel that Flume would run", "dropped by Flume a.channels.c.capacity", "it has no type", "dropped by Flume a.sources.s.type", "dropped by Flume a.sources\n"},
	},
	{
		name: "an agent of which Flume starts nothing, for want of sources and sinks",
		file: "a.channels = c\na.channels.c.type = memory\n",
		want: []string{"neither a source nor a sink", "dropped by Flume a.channels.c.type"}, not: []string{"no such key"},
	},
	{
		name: "a reference that nothing resolves",
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t", "kafka.consumer.group.id = ${filter['g']}") + sinkToHDFS("c", "hdfs.filePrefix = ${P}"),
		want: []string{"not supported a.sinks.k.hdfs.filePrefix", "${P} is not set", "not supported a.sources.s.kafka.consumer.group.id", "no variable of the environment"},
	},
	{
		name: "white space is Java's, and secrets of text that is no key of Flume's are not shown", clean: true,
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t") + sinkToHDFS("c", "hdfs.filePrefix = p\u3000") + "\u00a0 = x\npassword=\"sesame\";\n",
		want: []string{"file_prefix: \"p\u3000\"", "dropped by Flume \u00a0\n"}, not: []string{"sesame"},
	},
	{
		name: "numbers that Java does not read",
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t") + sinkToHDFS("c", "hdfs.rollInterval = 300 # five minutes", "hdfs.rollSize = 128MB", "hdfs.rollCount = +7"),
		want: []string{"not supported a.sinks.k.hdfs.rollInterval", "interval: 30s", "not supported a.sinks.k.hdfs.rollSize", "size: 1024\n", "carried over a.sinks.k.hdfs.rollCount", "count: 7\n"},
	},
	{
		name: "booleans are Java's", clean: true,
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t", "useFlumeEventFormat = TRUE") + sinkToHDFS("c", "hdfs.useLocalTimeStamp = True", "hdfs.round = yes", "hdfs.roundValue = 10"),
		want: []string{"decode: flume_event", "time_from: local", "not needed a.sinks.k.hdfs.roundValue"}, not: []string{"round: true"},
	},
	{
		name: "a unit that Flume does not round to", clean: true,
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t") + sinkToHDFS("c", "hdfs.round = true", "hdfs.roundUnit = day"),
		want: []string{"changed a.sinks.k.hdfs.roundUnit"}, not: []string{"round: true"},
	},
	{
		name: "a codec that Flume refuses, and none where it wants one", clean: true,
		file: strings.Replace(strings.Replace(twoChannels("kafka.bootstrap.servers = k:9092", "kafka.topics = t"), "a.sinks.k.hdfs.fileType = DataStream", "a.sinks.k.hdfs.fileType = DataStream\na.sinks.k.hdfs.codeC = gzip", 1),
			"a.sinks.l.hdfs.fileType = DataStream", "a.sinks.l.hdfs.fileType = CompressedStream", 1),
		want: []string{"changed a.sinks.k.hdfs.codeC", "changed a.sinks.l.hdfs.fileType"}, not: []string{"compression:"},
	},
	{
		name: "keys of another release have no effect", clean: true,
		file: sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t", "kafka.auto.offset.reset = earliest", "kafka.group.id = g") + sinkToHDFS("c"),
		want: []string{"start: latest", "group: flume", "dropped by Flume a.sources.s.kafka.auto.offset.reset", "did you mean kafka.consumer.auto.offset.reset?"},
	},
	{
		name: "keys of Flume 1.6", clean: true, options: Options{Brokers: []string{"k:9092"}},
		file: sourceOfKafka("s", "c", "zookeeperConnect = z:2181", "topic = t", "kafka.auto.offset.reset = smallest", "kafka.group.id = g") + sinkToHDFS("c"),
		want: []string{"agent a of Flume 1.6", "start: earliest", "group: g\n", "carried over a.sources.s.kafka.auto.offset.reset", "carried over a.sources.s.kafka.group.id"},
	},
	{
		name: "zookeeperConnect beside keys of 1.7 is for the offsets there", clean: true,
		file: sourceOfKafka("s", "c", "zookeeperConnect = z:2181", "kafka.bootstrap.servers = k:9092", "kafka.topics = t", "kafka.consumer.group.id = g", "kafka.consumer.auto.offset.reset = none") + sinkToHDFS("c"),
		want: []string{"agent a of Flume 1.9", "the same group: it goes on", "start: latest", "changed a.sources.s.kafka.consumer.auto.offset.reset"},
	},
	{
		name: "a group that only 1.7 and later read", clean: true, options: Options{Brokers: []string{"k:9092"}},
		file: sourceOfKafka("s", "c", "zookeeperConnect = z:2181", "topic = t", "kafka.consumer.group.id = g") + sinkToHDFS("c"),
		want: []string{"group: g\n", "changed a.sources.s.kafka.consumer.group.id"},
	},
	{
		name: "a Kafka channel in the spelling of 1.6", clean: true, options: Options{Brokers: []string{"other:9092"}},
		file: "a.channels = c\na.channels.c.type = org.apache.flume.channel.kafka.KafkaChannel\na.channels.c.brokerList = k:9092\na.channels.c.topic = chan\n" +
			strings.NewReplacer("a.channels = c\n", "", "a.channels.c.type = memory\n", "").Replace(sinkToHDFS("c")),
		want: []string{"brokers: [k:9092]", "topics: [chan]", "carried over a.channels.c.brokerList", "carried over a.channels.c.topic"}, not: []string{"other:9092"},
	},
	{
		name: "a Kafka channel that nothing in the agent reads stays in Flume", clean: true,
		file: twoChannels("kafka.bootstrap.servers = k:9092", "kafka.topics = t") + "a.channels = c d e m\na.sources = s x\na.sources.x.type = avro\na.sources.x.channels = e m\n" +
			"a.channels.e.type = org.apache.flume.channel.kafka.KafkaChannel\na.channels.e.kafka.topic = e\na.channels.m.type = memory\n",
		want: []string{"changed a.sources.x.type", "it fills a Kafka channel that nothing in the agent reads", "not needed a.channels.e.kafka.topic", "not needed a.channels.m.type"}, not: []string{"topics: [e]"},
	},
	{
		name: "a ConfigMap", clean: true,
		file: "apiVersion: v1\nkind: ConfigMap\ndata:\n  flume.conf: |\n" + indent(sourceOfKafka("s", "c", "kafka.bootstrap.servers = k:9092", "kafka.topics = t")+sinkToHDFS("c")),
		want: []string{"topics: [t]"},
	},
}

// twoChannels is a source that fills channels c and d, each with a sink to HDFS.
func twoChannels(keys ...string) string {
	text := sourceOfKafka("s", "c d", keys...) + sinkToHDFS("c") + "a.channels.d.type = memory\na.sinks.l.type = hdfs\na.sinks.l.channel = d\na.sinks.l.hdfs.path = hdfs://nn:8020/d\na.sinks.l.hdfs.fileType = DataStream\n"
	return strings.NewReplacer("a.channels = c\n", "a.channels = c d\n", "a.sinks = k\n", "a.sinks = k l\n").Replace(text)
}

func sourceOfKafka(name, channels string, keys ...string) string {
	text := fmt.Sprintf("a.sources = %[1]s\na.sources.%[1]s.type = org.apache.flume.source.kafka.KafkaSource\na.sources.%[1]s.channels = %[2]s\n", name, channels)
	for _, k := range keys {
		text += "a.sources." + name + "." + k + "\n"
	}
	return text
}

func sinkToHDFS(channel string, keys ...string) string {
	text := strings.ReplaceAll(`a.channels = CH
a.channels.CH.type = memory
a.sinks = k
a.sinks.k.type = hdfs
a.sinks.k.channel = CH
a.sinks.k.hdfs.path = hdfs://nn:8020/logs/%Y
a.sinks.k.hdfs.fileType = DataStream
`, "CH", channel)
	for _, k := range keys {
		text += "a.sinks.k." + k + "\n"
	}
	return text
}

func indent(s string) string { return "    " + strings.ReplaceAll(s, "\n", "\n    ") + "\n" }

func TestImport(t *testing.T) {
	for _, test := range importCases {
		t.Run(test.name, func(t *testing.T) {
			r, err := Import([]byte(test.file), test.options)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := config.Parse("spillway.yaml", []byte(r.YAML), nil); r.YAML != "" && err != nil {
				t.Errorf("spillway check refuses it: %v", err)
			}
			var report strings.Builder
			if err := r.Report.WriteTable(&report); err != nil {
				t.Fatal(err)
			}
			all := r.YAML + report.String()
			for _, e := range r.Report.Entries {
				all += fmt.Sprintf("%s %s\n", e.Fate, e.Key)
			}
			for _, want := range test.want {
				if !strings.Contains(all, want) {
					t.Errorf("%q is missing", want)
				}
			}
			for _, not := range test.not {
				if strings.Contains(all, not) {
					t.Errorf("%q is there", not)
				}
			}
			if n := r.Report.Count(Unsupported); (n == 0) != test.clean {
				t.Errorf("%d keys are not supported", n)
			}
			checkEveryLine(t, test.file, r.Report)
			if t.Failed() {
				t.Logf("%s\n%s", r.YAML, report.String())
			}
		})
	}
}

// checkEveryLine fails when a property of the file is not in the report, in a case without a
// template.
func checkEveryLine(t *testing.T, file string, r *Report) {
	t.Helper()
	document, err := ReadDocument([]byte(file))
	if err != nil {
		t.Fatal(err)
	}
	lines := make(map[int]int)
	for _, e := range r.Entries {
		lines[e.Line]++
	}
	for _, p := range document.Properties {
		if lines[p.Line] != 1 {
			t.Errorf("line %d, %s, is %d times in the report", p.Line, p.Key, lines[p.Line])
		}
	}
}

func TestImportRefuses(t *testing.T) {
	two := strings.ReplaceAll(sourceOfKafka("s", "c")+sinkToHDFS("c"), "a.", "b.") + sourceOfKafka("s", "c") + sinkToHDFS("c")
	for name, test := range map[string]struct {
		file  string
		agent string
		want  string
	}{
		"nothing":        {"", "", "no agent in the file"},
		"another format": {"<xml/>", "", "no agent in the file"},
		"two agents":     {two, "", "choose one with --agent (a, b)"},
		"another agent":  {two, "c", `no agent "c" in the file; there is a, b`},
		"a template":     {"\na${x.y}.sources = s\n", "", "line 2: ${x.y} is not Flume's syntax: render the template first"},
		"no file inside": {"kind: ConfigMap\ndata:\n  x: y\n", "", "holds no Flume configuration"},
	} {
		if _, err := Import([]byte(test.file), Options{Agent: test.agent}); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// TestEnvironment puts variables into the place of their names.
func TestEnvironment(t *testing.T) {
	file := sourceOfKafka("s", "c", "kafka.bootstrap.servers = ${env:BROKERS}", "kafka.topics = ${TOPIC}") + sinkToHDFS("c")
	lookup := func(name string) (string, bool) { return "k:9092", name == "BROKERS" }
	r, err := Import([]byte(file), Options{LookupEnv: lookup})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(r.YAML, "brokers: [k:9092]") || r.Report.Count(Unsupported) == 0 {
		t.Errorf("%s\n%+v", r.YAML, r.Report)
	}
}

// TestCorpus imports the files of a directory, for a look at many: FLUME_CORPUS names it.
func TestCorpus(t *testing.T) {
	dir := os.Getenv("FLUME_CORPUS")
	if dir == "" {
		return
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		r, err := Import(data, Options{Brokers: []string{"kafka:9092"}})
		if err != nil {
			t.Logf("%s: %v", f, err)
			continue
		}
		t.Logf("%s: %d not supported", f, r.Report.Count(Unsupported))
	}
}
