package config

import (
	"maps"
	"path"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // images without zoneinfo know the same time zones
)

// Bounds of a batch. The buffer and gRPC carry a batch as one message, so the bytes leave room below
// rpc.MaxMessageBytes for one record of the largest size.
const (
	maxBatchRecords = 1_000_000
	maxBatchBytes   = 16 * MiB
)

// checker looks for values that decode and cannot work. What is inside a part is checked before the
// part itself, and references between parts only where both are present.
type checker struct {
	*report
	c *Config
}

func (k checker) check() {
	k.addresses("buffers", k.c.Buffers)
	if n := len(k.c.Buffers); n > 1 {
		k.key("buffers", "several buffers (shards) are not supported yet; there are %d", n)
	}
	k.ports("ingest", k.c.Ingest.Listen, k.c.Ingest.HTTP)
	atLeast(k, "ingest.memory", k.c.Ingest.Memory, 1)
	for name, s := range k.c.Ingest.Sources {
		k.source("ingest.sources."+name, s)
		k.divided(name, s)
	}
	k.ports("buffer", k.c.Buffer.Listen, k.c.Buffer.HTTP)
	for name, q := range k.c.Buffer.Queues {
		k.queue("buffer.queues."+name, q)
	}
	for name, d := range k.c.Delivery {
		k.delivery("delivery."+name, d)
	}
	k.subscriptionsOfTheirOwn()
}

func (k checker) source(at string, s *Source) {
	k.addresses(at+".brokers", s.Brokers)
	k.present(at+".group", s.Group)
	k.access(at, s.TLS, s.SASL)
	k.list(at+".topics", s.Topics, k.topicOrPattern)
	k.start(at+".start", s.Start)
	k.oneOf(at+".isolation", s.Isolation, "read_committed", "read_uncommitted")
	if k.present(at+".queue", s.Queue) && len(k.c.Buffer.Queues) > 0 && k.c.Buffer.Queues[s.Queue] == nil {
		unknown(k, at+".queue", "queue", s.Queue, k.c.Buffer.Queues)
	}
	between(k, at+".batch.records", s.Batch.Records, 1, maxBatchRecords)
	between(k, at+".batch.bytes", s.Batch.Bytes, 1, maxBatchBytes)
	atLeast(k, at+".batch.linger", s.Batch.Linger, 0)
}

// divided finds a topic that two sources of one group read for different queues: the group would divide its partitions
// among them, and neither queue would get all.
func (k checker) divided(name string, s *Source) {
	for other, o := range k.c.Ingest.Sources {
		if other >= name || o.Group != s.Group || o.Queue == s.Queue || !slices.ContainsFunc(o.Brokers, func(b string) bool { return slices.Contains(s.Brokers, b) }) {
			continue
		}
		for _, topic := range s.Topics {
			if slices.ContainsFunc(o.Topics, func(item string) bool { return matches(item, topic) || matches(topic, item) }) {
				k.key("ingest.sources."+name+".group", "is %s's, too, which reads %q for queue %s: each queue would get a part of the partitions; give the sources groups of their own, or one queue two subscriptions", other, topic, o.Queue)
				return
			}
		}
	}
}

func (k checker) queue(at string, q *Queue) {
	atLeast(k, at+".memory.records", q.Memory.Records, 1)
	atLeast(k, at+".memory.bytes", q.Memory.Bytes, 1)
	atLeast(k, at+".disk.records", q.Disk.Records, 1)
	atLeast(k, at+".disk.bytes", q.Disk.Bytes, 1)
	atLeast(k, at+".spill_after", q.SpillAfter, 0)
	k.oneOf(at+".commit_after", q.CommitAfter, "safe", "delivered")
	atLeast(k, at+".lease", q.Lease, time.Millisecond)
	for name, s := range q.Subscriptions {
		sub := at + ".subscriptions." + name
		k.list(sub+".topics", s.Topics, k.glob)
		k.oneOf(sub+".on_full", s.OnFull, "block", "drop_oldest", "defer")
	}
	if len(q.Subscriptions) == 0 {
		k.key(at+".subscriptions", "is missing; a queue needs at least one subscription")
	}
}

func (k checker) delivery(at string, d *Delivery) {
	k.ports(at, d.Listen, d.HTTP)
	k.subscription(at+".subscription", d.Subscription)
	k.oneOf(at+".ordering", d.Ordering, "partition", "none")
	atLeast(k, at+".memory", d.Memory, 1)
	if d.HDFS != nil {
		k.hdfs(at+".hdfs", d.HDFS)
		k.parquet(at, d)
	}
	if d.Kafka != nil {
		k.kafka(at+".kafka", d.Kafka)
	}
	switch {
	case d.HDFS != nil && d.Kafka != nil:
		k.key(at, "has two destinations, hdfs and kafka; want one")
	case d.HDFS == nil && d.Kafka == nil:
		k.key(at, "has no destination; want hdfs or kafka")
	}
}

// subscriptionsOfTheirOwn is what deliveries need: those that share one get a part of the records each.
func (k checker) subscriptionsOfTheirOwn() {
	taken := make(map[string]string)
	for _, name := range slices.Sorted(maps.Keys(k.c.Delivery)) {
		subscription := k.c.Delivery[name].Subscription
		if other, ok := taken[subscription]; ok && subscription != "" {
			k.key("delivery."+name+".subscription", "%q is that of delivery %s, too; each needs one of its own to get all records", subscription, other)
		}
		taken[subscription] = name
	}
}

func (k checker) subscription(at, full string) {
	if !k.present(at, full) {
		return
	}
	queue, subscription, ok := strings.Cut(full, "/")
	if !ok || !validName.MatchString(queue) || !validName.MatchString(subscription) {
		k.key(at, "malformed %q: want queue/subscription", full)
		return
	}
	if len(k.c.Buffer.Queues) == 0 {
		return
	}
	q := k.c.Buffer.Queues[queue]
	if q == nil {
		unknown(k, at, "queue", queue, k.c.Buffer.Queues)
		return
	}
	if q.Subscriptions[subscription] == nil {
		unknown(k, at, "subscription of queue "+queue, subscription, q.Subscriptions)
	}
}

// present says whether a value that must be there is.
func (k checker) present(at, value string) bool {
	if value == "" {
		k.missing(at)
	}
	return value != ""
}

// missing adds that a value that must be there is not, or is there and empty.
func (k checker) missing(at string) {
	if _, written := k.places[at]; written {
		k.key(at, "is empty")
		return
	}
	k.key(at, "is missing")
}

func (k checker) oneOf(at, value string, allowed ...string) {
	if slices.Contains(allowed, value) {
		return
	}
	if near := nearest(value, allowed); near != "" {
		k.key(at, "unknown value %q; did you mean %q?", value, near)
		return
	}
	k.key(at, "unknown value %q; want %s", value, alternatives(allowed))
}

func unknown[T any](k checker, at, what, name string, known map[string]T) {
	names := slices.Sorted(maps.Keys(known))
	if near := nearest(name, names); near != "" {
		k.key(at, "no %s is named %q; did you mean %q?", what, name, near)
		return
	}
	k.key(at, "no %s is named %q; there is %s", what, name, strings.Join(names, ", "))
}

// list checks that there are items, each one once, and each of them with check.
func (k checker) list(at string, items []string, check func(at, item string)) {
	if len(items) == 0 {
		k.missing(at)
	}
	for i, item := range items {
		check(index(at, i), item)
		if first := slices.Index(items, item); first < i {
			k.key(index(at, i), "%q is there twice", item)
		}
	}
}

func (k checker) glob(at, glob string) {
	if _, err := path.Match(glob, ""); err != nil || glob == "" {
		k.key(at, "bad glob %q: want a pattern such as orders-* or *", glob)
	}
}

// number is any of the types of numbers in a Config.
type number interface {
	~int | ~int64
}

func atLeast[N number](k checker, at string, value, least N) {
	if value < least {
		k.key(at, "is %v; want at least %v", value, least)
	}
}

func between[N number](k checker, at string, value, least, most N) {
	if value < least || value > most {
		k.key(at, "is %v; want %v to %v", value, least, most)
	}
}
