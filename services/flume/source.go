package flume

import (
	"fmt"
	"slices"
	"strings"
)

const (
	kafkaSourceClass  = "org.apache.flume.source.kafka.KafkaSource"
	kafkaChannelClass = "org.apache.flume.channel.kafka.KafkaChannel"
	kafkaSinkClass    = "org.apache.flume.sink.kafka.KafkaSink"
)

func isKafkaChannel(c *Component) bool { return c.Kind == ChannelKind && c.Type() == kafkaChannelClass }

// foreign says what becomes of a source that does not read Kafka. It stays in Flume; where it
// fills a Kafka channel, Spillway reads that channel's topic.
func (c *converter) foreign(s *Component) {
	read := slices.ContainsFunc(c.agent.channelsOf(s), func(ch *Component) bool { return isKafkaChannel(ch) && c.queued[ch] })
	fate, note := Unsupported, fmt.Sprintf("source type %s: Spillway reads Kafka only; keep this source in Flume, with a Kafka sink or channel, and read that topic here", s.Type())
	switch {
	case read:
		fate, note = Changed, fmt.Sprintf("the source stays in Flume (type %s) and fills the Kafka channel, whose topic Spillway reads: take the channel's sinks out of the agent", s.Type())
	case slices.ContainsFunc(c.agent.channelsOf(s), func(ch *Component) bool { return isKafkaChannel(ch) && len(c.agent.sinksOf(ch)) == 0 }):
		if c.converted {
			fate = Changed
		}
		note = fmt.Sprintf("the source stays in Flume (type %s): it fills a Kafka channel that nothing in the agent reads; import the agent that does, or read its topic", s.Type())
	case c.converted:
		fate, note = Changed, fmt.Sprintf("the source stays in Flume (type %s): Spillway reads Kafka only; what else is in the agent is converted", s.Type())
	case strings.Contains(s.Type(), "."):
		note = fmt.Sprintf("custom source %s: have it write to Kafka, and read that topic here", s.Type())
	}
	for _, k := range s.order {
		s.say(k.name, fate, "%s", note)
	}
}

// source writes a Kafka source, or a Kafka channel that no source fills, into the queue.
func (c *converter) source(s *Component, queue string, g *group) {
	sources := c.root.child("ingest").child("sources")
	name := unused(identifier(s.Name), func(n string) bool {
		return slices.ContainsFunc(sources.children, func(x *node) bool { return x.key == n })
	})
	n := sources.child(name)
	n.comment(fmt.Sprintf("Flume's %s %s", singular(s.Kind), s.Name))
	to := "ingest.sources." + name
	s.say("type", Carried, "%s", to)
	c.brokers(s, n, to)
	c.group(s, n, to)
	if isKafkaChannel(s) {
		c.channelTopic(s, n, to)
	} else {
		c.sourceTopics(s, n, to)
	}
	c.start(s, n, to)
	c.isolation(s, n, to)
	n.text("queue", queue)
	s.say("channels", Carried, "%s.queue: %s", to, queue)
	c.consumerRest(s)
	if !isKafkaChannel(s) {
		c.interceptors(s)
		c.selector(s, g)
	}
}

// bootstrap returns the addresses of a list, with Kafka's port where one has none.
func bootstrap(value string) []string {
	list := splitCommas(value)
	for i, b := range list {
		if !strings.Contains(b, ":") {
			list[i] = b + ":9092"
		}
	}
	var once []string // Kafka's clients take one that is named twice
	for _, b := range list {
		if !slices.Contains(once, b) {
			once = append(once, b)
		}
	}
	return once
}

// brokersKey returns the key with the brokers of a Kafka source or channel. Channels had another
// name for it.
func brokersKey(s *Component) string {
	if isKafkaChannel(s) && !s.has("kafka.bootstrap.servers") {
		return "brokerList"
	}
	return "kafka.bootstrap.servers"
}

// brokers writes the bootstrap brokers of a consumer and how to get into them.
func (c *converter) brokers(s *Component, n *node, to string) {
	key := brokersKey(s)
	s.say("brokerList", NotNeeded, "kafka.bootstrap.servers counts")
	list := bootstrap(s.value(key))
	switch {
	case len(list) > 0:
		n.list("brokers", list)
		s.say(key, Carried, "%s.brokers", to)
	case len(c.options.Brokers) > 0:
		n.list("brokers", c.options.Brokers, "from --brokers: the file names none")
	default:
		n.list("brokers", []string{"kafka:9092"}, "TODO: the file names no brokers; give them with --brokers")
		at := s.first("zookeeperConnect", "type")
		s.say(at, Unsupported, "no bootstrap brokers are known: import with --brokers HOST:PORT,…")
	}
	if s.has("zookeeperConnect") && (len(list) > 0 || len(c.options.Brokers) > 0) {
		s.say("zookeeperConnect", NotNeeded, "offsets are in Kafka; take over those in ZooKeeper before the switch (docs/flume.md)")
	}
	c.security(s, n, to, "kafka.consumer.")
}

// group writes the consumer group.
func (c *converter) group(s *Component, n *node, to string) {
	keys, others := []string{"kafka.consumer.group.id", "groupId"}, "kafka.group.id"
	if c.release <= 6 {
		keys, others = []string{"groupId", "kafka.group.id"}, "kafka.consumer.group.id"
	}
	key := s.first(keys...)
	s.say(others, Dropped, "Flume %s has no such key; did you mean %s?", c.release, keys[0])
	if key == "" {
		s.say(others, Dropped, "Flume %s has no such key and used the group flume; did you mean %s?", c.release, keys[0])
		n.text("group", "flume", "Flume's default; a group of its own avoids clashes with other agents")
		return
	}
	comment := "the same group: it goes on at the offsets that Flume committed, so stop Flume first"
	if c.release <= 6 {
		comment = "the same group; Flume 1.5 and 1.6 kept its offsets in ZooKeeper: docs/flume.md says how to take them over"
	}
	n.text("group", s.value(key), comment)
	for _, k := range keys {
		s.say(k, NotNeeded, "%s counts", key)
	}
	s.say(key, Carried, "%s.group", to)
	if c.options.Version == "" && key == "kafka.consumer.group.id" && s.has("zookeeperConnect") && !s.has("kafka.bootstrap.servers") {
		s.say(key, Changed, "%s.group, as Flume 1.7 and later read it; 1.5 and 1.6, which zookeeperConnect is of, read as group flume: import with --flume-version 1.6 when one of these ran the file", to)
	}
}

// sourceTopics writes the topics of a Kafka source.
func (c *converter) sourceTopics(s *Component, n *node, to string) {
	switch key := s.first("kafka.topics.regex", "kafka.topics", "topic"); key {
	case "":
		n.list("topics", []string{"unknown"}, "TODO: Flume's source has no topic, and does not start")
		s.say("type", Unsupported, "the source has no topic: Flume refuses to start it; set kafka.topics")
	case "kafka.topics.regex":
		n.list("topics", []string{"re:" + s.value(key)}, "Java's and RE2's regular expressions agree on all but look-around and back references")
		s.say(key, Carried, "%s.topics", to)
		s.say("kafka.topics", NotNeeded, "kafka.topics.regex counts")
		s.say("topic", NotNeeded, "kafka.topics.regex counts")
	default:
		n.list("topics", splitCommas(s.value(key)))
		s.say(key, Carried, "%s.topics", to)
		if key == "kafka.topics" {
			s.say("topic", NotNeeded, "kafka.topics counts")
		}
	}
	if flumeEvents(s) {
		s.say("useFlumeEventFormat", Carried, "transforms of the deliveries: decode: flume_event")
	} else {
		s.say("useFlumeEventFormat", NotNeeded, "records are taken as they are")
	}
	s.say("setTopicHeader", NotNeeded, "%%{topic} is always the topic")
	s.say("topicHeader", Carried, "%%{%s} becomes %%{topic}", s.value("topicHeader"))
	s.say("timestampHeader", Changed, "use time_from in the delivery")
	for _, k := range s.order {
		if h, found := strings.CutPrefix(k.name, "header."); found {
			s.say(k.name, Carried, "%%{%s} becomes %%{%s}, the header of the Kafka record", h, k.entry.Value)
		}
	}
}

// channelTopic writes the topic of a Kafka channel that no source fills.
func (c *converter) channelTopic(s *Component, n *node, to string) {
	key := s.first("kafka.topic", "topic")
	topic := s.value(key)
	if key == "" {
		topic = "flume-channel"
	}
	n.list("topics", []string{topic})
	s.say(key, Carried, "%s.topics", to)
	if flumeEvents(s) {
		s.say("parseAsFlumeEvent", Carried, "transforms of the deliveries: decode: flume_event")
	} else {
		s.say("parseAsFlumeEvent", NotNeeded, "records are taken as they are")
	}
}

// start writes where a new group begins.
func (c *converter) start(s *Component, n *node, to string) {
	key, other := "kafka.consumer.auto.offset.reset", "kafka.auto.offset.reset"
	if c.release <= 6 {
		key, other = other, key
	}
	s.say(other, Dropped, "Flume %s has no such key and ignores it; did you mean %s?", c.release, key)
	if !s.has(key) && isKafkaChannel(s) {
		key = "readSmallestOffset"
	} else {
		s.say("readSmallestOffset", NotNeeded, "%s counts", key)
	}
	value := strings.ToLower(s.value(key))
	if value == "earliest" || value == "smallest" || value == "true" {
		n.text("start", "earliest")
	} else {
		n.text("start", "latest", "Kafka's default, which Flume kept; earliest reads what is there when the group is new")
	}
	switch {
	case slices.Contains([]string{"earliest", "latest", "true", "false"}, value) || c.release <= 6 && (value == "smallest" || value == "largest"):
		s.say(key, Carried, "%s.start", to)
	default:
		s.say(key, Changed, "%s.start: Flume's consumer fails with the value %s; here a new group begins as the pipeline says", to, s.value(key))
	}
}

func (c *converter) isolation(s *Component, n *node, to string) {
	const key = "kafka.consumer.isolation.level"
	if s.has(key) {
		n.text("isolation", s.value(key))
		s.say(key, Carried, "%s.isolation", to)
		return
	}
	n.text("isolation", "read_uncommitted", "Kafka's default, which Flume kept; read_committed leaves out the records of aborted transactions")
}

// consumerRest says of the other keys of a consumer that nothing here needs them.
func (c *converter) consumerRest(s *Component) {
	for name, note := range map[string]string{
		"batchSize":                          "batches are ingest.sources.NAME.batch; the default suits",
		"batchDurationMillis":                "batches are ingest.sources.NAME.batch; the default suits",
		"backoffSleepIncrement":              "waits are chosen by the service",
		"maxBackoffSleep":                    "waits are chosen by the service",
		"migrateZookeeperOffsets":            "take over the offsets in ZooKeeper before the switch (docs/flume.md)",
		"kafka.consumer.timeout.ms":          "it has had no effect since Flume 1.7",
		"kafka.consumer.enable.auto.commit":  "offsets are committed when records are safe",
		"kafka.auto.commit.enable":           "offsets are committed when records are safe",
		"kafka.consumer.key.deserializer":    "records are bytes",
		"kafka.consumer.value.deserializer":  "records are bytes",
		"kafka.consumer.max.poll.records":    "batches are bounded by ingest.sources.NAME.batch",
		"kafka.consumer.session.timeout.ms":  "chosen by the service",
		"kafka.consumer.request.timeout.ms":  "chosen by the service",
		"kafka.consumer.fetch.max.wait.ms":   "chosen by the service",
		"kafka.consumer.fetch.min.bytes":     "chosen by the service",
		"kafka.pollTimeout":                  "chosen by the service",
		"pollTimeout":                        "chosen by the service",
		"kafka.consumer.interceptor.classes": "",
	} {
		if note == "" {
			s.say(name, Unsupported, "Kafka's consumer interceptors are Java classes: do their work in a consumer before Spillway, or leave it out")
			continue
		}
		s.say(name, NotNeeded, "%s", note)
	}
	for _, k := range s.order {
		if !k.used && (strings.HasPrefix(k.name, "kafka.consumer.") || strings.HasPrefix(k.name, "kafka.producer.")) {
			s.say(k.name, NotNeeded, "a setting of Java's Kafka client; Spillway's has its own")
		}
	}
}

// routes reports whether a source needs a queue of its own: it sends events to different
// channels, or changes them.
func (c *converter) routes(s *Component) bool {
	t := strings.ToLower(s.value("selector.type"))
	return t != "" && t != "replicating" || s.has("interceptors") || flumeEvents(s)
}

func splitCommas(s string) []string {
	var all []string
	for part := range strings.SplitSeq(s, ",") {
		if part = trim(part); part != "" {
			all = append(all, part)
		}
	}
	return all
}
