package flume

import (
	"fmt"
	"slices"
)

// kafkaSink writes a delivery to Kafka. Prefix is what settings of the producer begin with.
func (c *converter) kafkaSink(g *group, s *Component, n *node, to, prefix string) {
	key := s.first("kafka.bootstrap.servers", "brokerList")
	list := bootstrap(s.value(key))
	switch {
	case len(list) > 0:
		n.list("brokers", list)
		s.say(key, Carried, "%s.brokers", to)
	case len(c.options.Brokers) > 0:
		n.list("brokers", c.options.Brokers, "from --brokers: the file names none")
	default:
		n.list("brokers", []string{"kafka:9092"}, "TODO: the file names no brokers")
		s.say("type", Unsupported, "the sink has no kafka.bootstrap.servers: Flume refuses to start it; import with --brokers HOST:PORT,…")
	}
	if key == "kafka.bootstrap.servers" {
		s.say("brokerList", NotNeeded, "kafka.bootstrap.servers counts")
	}
	c.security(s, n, to, prefix)
	c.targetTopic(g, s, n, to)
	s.say("useFlumeEventFormat", Carried, "transforms of the delivery: encode: flume_event, when it is true")
	if s.has("partitionIdHeader") {
		n.text("partitioner", "header")
		n.text("partition_header", s.value("partitionIdHeader"))
		s.say("partitionIdHeader", Changed, "the partition is chosen by a hash of the header, not by its number")
	} else {
		n.text("partitioner", "key", "as Java's producer, which Flume uses; source keeps the source partition")
	}
	s.say("defaultPartitionId", Changed, "records without a header go by the source partition")
	if k := prefix + "compression.type"; s.has(k) {
		n.text("compression", s.value(k))
		s.say(k, Carried, "%s.compression", to)
	}
	acks := s.first(prefix+"acks", "requiredAcks")
	if v := s.value(acks); v == "all" || v == "-1" {
		s.say(acks, Carried, "always all")
	} else {
		s.say(acks, Changed, "always all: a record counts when all in-sync replicas have it")
	}
	if acks != "requiredAcks" {
		s.say("requiredAcks", NotNeeded, "%s counts", acks)
	}
	if s.has("kafka.topic") {
		s.say("topic", NotNeeded, "kafka.topic counts")
	}
	for _, name := range []string{"batchSize", "flumeBatchSize", "kafka.flumeBatchSize", "kafka.batchSize", prefix + "linger.ms", prefix + "batch.size"} {
		s.say(name, NotNeeded, "batches are chosen by the delivery")
	}
	s.say("allowTopicOverride", Carried, "%s.topic", to)
	s.say("topicHeader", Carried, "%s.topic", to)
}

// targetTopic writes the topic. With allowTopicOverride, which is the default, the event's header
// topic comes before the sink's own, and a Kafka source sets that header.
func (c *converter) targetTopic(g *group, s *Component, n *node, to string) {
	key := s.first("kafka.topic", "topic")
	topic := s.value(key)
	if key == "" {
		topic = "default-flume-topic"
	}
	s.say(key, Carried, "%s.topic", to)
	header := s.value("topicHeader")
	if header == "" {
		header = "topic"
	}
	template := c.template(g, s, key, topic, "")
	if !s.flag("allowTopicOverride", true) || s.Kind == ChannelKind {
		n.text("topic", template)
		return
	}
	override, unknown := c.header(g, header)
	if unknown {
		n.text("topic", template)
		return
	}
	if override == "%{topic}" && c.sameBrokers(g, s) {
		n.text("topic", template, "Flume would write records back to the topic they come from, since allowTopicOverride is true and the source sets the header topic")
		s.say(key, Changed, "Flume wrote to the source's topic, round and round (allowTopicOverride); here records go to %s", topic)
		return
	}
	n.text("topic", override, fmt.Sprintf("the header %s comes before kafka.topic (%s), since allowTopicOverride is true", header, topic))
	if key != "" {
		s.say(key, Changed, "Flume does not use it, as a Kafka source sets the header %s and allowTopicOverride is true; write topic: %s if it is what you meant", header, topic)
	}
}

// sameBrokers reports whether a sink writes to brokers that a source of the group reads.
func (c *converter) sameBrokers(g *group, s *Component) bool {
	target := splitCommas(s.value(s.first("kafka.bootstrap.servers", "brokerList")))
	for _, source := range g.sources {
		for _, b := range splitCommas(source.value(brokersKey(source))) {
			if slices.Contains(target, b) {
				return true
			}
		}
		if !source.has(brokersKey(source)) && slices.ContainsFunc(target, func(b string) bool { return slices.Contains(c.options.Brokers, b) }) {
			return true
		}
	}
	return false
}

// kafkaChannelAsSink writes a delivery for a Kafka channel that no sink empties: the topic is what
// others read.
func (c *converter) kafkaChannelAsSink(g *group, ch *Component, subscription string) {
	n, name := c.delivery(g, ch, subscription)
	to := "delivery." + name + ".kafka"
	k := n.child("kafka")
	if !ch.has("kafka.topic") && !ch.has("topic") {
		k.text("topic", "flume-channel", "Flume's default")
	}
	c.kafkaSink(g, ch, k, to, "kafka.producer.")
	ch.say("parseAsFlumeEvent", Carried, "transforms of the delivery: encode: flume_event, unless it is false")
}
