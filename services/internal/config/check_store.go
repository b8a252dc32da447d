package config

import (
	"maps"
	"slices"
	"time"
)

// maxStoreTopic leaves room in the name of a topic for .journal and .payload.
const maxStoreTopic = maxKafkaName - len(".journal")

// kafkaStore checks a queue that is kept in Kafka.
func (k checker) kafkaStore(at string, q *Queue) {
	s, inside := q.Store.Kafka, at+".store.kafka"
	k.addresses(inside+".brokers", s.Brokers)
	k.access(inside, s.TLS, s.SASL)
	if k.present(inside+".namespace", s.Namespace) && (!validName.MatchString(s.Namespace) || len(s.Namespace) > maxNameLength) {
		k.key(inside+".namespace", "bad name %q: want letters and digits, with single '-' or '_' between them, at most %d characters", s.Namespace, maxNameLength)
	}
	if s.Topic != "" && (!topicName.MatchString(s.Topic) || len(s.Topic) > maxStoreTopic || s.Topic == "." || s.Topic == "..") {
		k.key(inside+".topic", "bad topic name %q: want letters, digits, '.', '_' and '-', at most %d, as .journal and .payload follow", s.Topic, maxStoreTopic)
	}
	between(k, inside+".replication", s.Replication, 1, maxReplication)
	k.oneOf(inside+".owners", s.Owners, "fixed", "group")
	between(k, inside+".session_timeout", s.SessionTimeout, 6*time.Second, 5*time.Minute) // what brokers take by default, at least
	if q.CommitAfter == "safe" {
		k.key(at+".commit_after", "is safe; want delivered with store.kafka: the source keeps what is not delivered, as the loss of the store's topics must cost no record")
	}
}

// storesOfTheirOwn finds topics that have two queues, and sources that read what a store writes.
func (k checker) storesOfTheirOwn() {
	same := func(a, b []string) bool {
		return slices.ContainsFunc(a, func(x string) bool {
			return slices.ContainsFunc(b, func(y string) bool { return sameBroker(x, y) })
		})
	}
	names := slices.Sorted(maps.Keys(k.c.Buffer.Queues))
	for i, name := range names {
		s := k.c.Buffer.Queues[name].Store.Kafka
		if s == nil || s.Topic == "" {
			continue
		}
		at := "buffer.queues." + name + ".store.kafka.topic"
		for _, other := range names[:i] {
			if o := k.c.Buffer.Queues[other].Store.Kafka; o != nil && o.Topic == s.Topic && same(o.Brokers, s.Brokers) {
				k.key(at, "%q is that of queue %s, too; want one for each", s.Topic, other)
			}
		}
		for _, source := range slices.Sorted(maps.Keys(k.c.Ingest.Sources)) {
			in := k.c.Ingest.Sources[source]
			for j, item := range in.Topics {
				if same(in.Brokers, s.Brokers) && slices.ContainsFunc(s.Topics(), func(t string) bool { return matches(item, t) }) {
					k.key(index("ingest.sources."+source+".topics", j), "%q matches a topic that queue %s is stored in, %s.*: records would go round for ever; want another pattern, or the store on other brokers", item, name, s.Topic)
				}
			}
		}
	}
}

// storeWithoutEffect warns of what is allowed and loses what the store is for.
func (k checker) storeWithoutEffect(at string, s *KafkaStore) {
	k.accessWithoutEffect(at, s.SASL)
	switch s.Replication {
	case 1:
		k.warn(at+".replication", "is 1: a broker that is away stops the shards on it, and with its disk their ledgers are lost; want 3 outside of tests")
	case 2:
		k.warn(at+".replication", "is 2: a broker that is away stops the shards on it, as two replicas must have each write; want 3")
	}
}
