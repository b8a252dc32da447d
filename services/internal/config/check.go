package config

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // images without zoneinfo know the same time zones
)

// checker looks for values that decode and cannot work. What is inside a part is checked before
// the part itself, and references between parts only where both are present.
type checker struct {
	*report
	c *Config
}

func (k checker) check() {
	k.addresses("buffers", k.c.Buffers)
	k.ports("ingest", k.c.Ingest.Listen, k.c.Ingest.HTTP)
	between(k, "ingest.memory", k.c.Ingest.Memory, minServiceMemory, maxMemory)
	for name, s := range k.c.Ingest.Sources {
		k.source("ingest.sources."+name, s)
		k.divided(name, s)
	}
	k.ports("buffer", k.c.Buffer.Listen, k.c.Buffer.HTTP)
	k.dataDir("buffer.data_dir", k.c.Buffer.DataDir)
	for name, q := range k.c.Buffer.Queues {
		k.queue("buffer.queues."+name, q)
	}
	k.shards()
	k.storesOfTheirOwn()
	for name, d := range k.c.Delivery {
		k.delivery("delivery."+name, d)
	}
	k.security()
	k.subscriptionsOfTheirOwn()
	k.withoutEffect()
	k.portsOfOneMachine()
}

func (k checker) source(at string, s *Source) {
	k.addresses(at+".brokers", s.Brokers)
	if k.present(at+".group", s.Group) {
		k.plain(at+".group", s.Group)
	}
	k.access(at, s.TLS, s.SASL)
	k.list(at+".topics", s.Topics, k.topicOrPattern)
	k.start(at+".start", s.Start)
	k.oneOf(at+".isolation", s.Isolation, "read_committed", "read_uncommitted")
	if k.present(at+".queue", s.Queue) && len(k.c.Buffer.Queues) > 0 && k.c.Buffer.Queues[s.Queue] == nil {
		unknown(k, at+".queue", "queue", s.Queue, k.c.Buffer.Queues)
	}
	between(k, at+".batch.records", s.Batch.Records, 1, maxBatchRecords)
	between(k, at+".batch.bytes", s.Batch.Bytes, 1, maxBatchBytes)
	between(k, at+".batch.linger", s.Batch.Linger, 0, time.Minute)
}

// divided finds a topic that two sources of one group read for different queues: the group would
// divide its partitions among them, and neither queue would get all.
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
	between(k, at+".memory.records", q.Memory.Records, minWindowRecords, maxRecords)
	between(k, at+".memory.bytes", q.Memory.Bytes, minWindowBytes, maxMemory)
	between(k, at+".disk.records", q.Disk.Records, 1, maxRecords)
	between(k, at+".disk.bytes", q.Disk.Bytes, minDisk, maxDisk)
	between(k, at+".spill_after", q.SpillAfter, 0, maxWait)
	k.oneOf(at+".commit_after", q.CommitAfter, "safe", "delivered")
	between(k, at+".shards", q.Shards, 1, maxShards)
	between(k, at+".revision", q.Revision, 0, maxRecords)
	between(k, at+".lease", q.Lease, time.Second, maxWait)
	if q.Store.Kafka != nil {
		k.kafkaStore(at, q)
	}
	for name, s := range q.Subscriptions {
		sub := at + ".subscriptions." + name
		k.list(sub+".topics", s.Topics, k.glob)
		k.headers(sub+".headers", s.Headers)
		k.oneOf(sub+".on_full", s.OnFull, "block", "drop_oldest", "defer")
		k.limit(sub+".limit", s.Limit, at+".disk.bytes", q.Disk.Bytes)
	}
	if len(q.Subscriptions) == 0 {
		k.key(at+".subscriptions", "is missing; a queue needs at least one subscription")
	}
}

func (k checker) delivery(at string, d *Delivery) {
	k.ports(at, d.Listen, d.HTTP)
	k.subscription(at+".subscription", d.Subscription)
	k.oneOf(at+".ordering", d.Ordering, "partition", "none")
	between(k, at+".memory", d.Memory, minServiceMemory, maxMemory)
	k.transforms(at+".transforms", d.Transforms)
	if d.HDFS != nil {
		k.hdfs(at+".hdfs", d.HDFS)
		k.parquet(at, d)
	}
	if d.Kafka != nil {
		k.kafka(at+".kafka", d.Subscription, d.Kafka)
	}
	if d.Manifest != nil {
		k.manifest(at+".manifest", d.Manifest)
	}
	if d.DeadLetterTopic != nil {
		k.deadLetterTopic(at+".dead_letter_topic", d.Subscription, d.DeadLetterTopic)
	}
	var destinations []string
	for name, there := range map[string]bool{"hdfs": d.HDFS != nil, "kafka": d.Kafka != nil, "manifest": d.Manifest != nil} {
		if there {
			destinations = append(destinations, name)
		}
	}
	slices.Sort(destinations)
	switch len(destinations) {
	case 0:
		k.key(at, "has no destination; want hdfs, kafka or manifest")
	case 2:
		k.key(at, "has two destinations, %s and %s; want one", destinations[0], destinations[1])
	case 3:
		k.key(at, "has three destinations, hdfs, kafka and manifest; want one")
	}
}

// subscriptionsOfTheirOwn is what deliveries need: those that share one get a part of the records
// each.
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
	if q.Subscriptions[subscription] == nil { // it may have been made at run time
		hint := "there is " + strings.Join(slices.Sorted(maps.Keys(q.Subscriptions)), ", ")
		if near := Nearest(subscription, slices.Sorted(maps.Keys(q.Subscriptions))); near != "" {
			hint = fmt.Sprintf("did you mean %q?", near)
		}
		k.warn(at, "no subscription of queue %s in this file is named %q, so that the delivery waits until CreateSubscription makes it, if it has not; %s", queue, subscription, hint)
	}
}

// present says whether a value that must be there is.
func (k checker) present(at, value string) bool {
	if value == "" {
		k.missing(at)
	}
	return value != ""
}

// wants says what a key must have that has no default.
var wants = map[string]string{
	"buffers": "the address of the buffer, such as [localhost:7400]", "brokers": "addresses of brokers, such as [kafka:9092]",
	"topics": "names such as [orders, web]", "group": "the name of a consumer group", "queue": "the name of a queue",
	"subscription": "queue/subscription", "data_dir": "a directory such as /var/lib/spillway", "url": "hdfs://namenode:8020 or file:///directory",
	"like": "the name of a delivery with hdfs", "avro_schema": "a file with the schema of the values, in JSON", "path": "a directory such as /logs/%{topic}/%Y-%m-%d", "topic": "a template such as %{topic}", "keytab": "the file with the principal's keys",
	"krb5_conf": "a file such as /etc/krb5.conf", "principal": "name@REALM", "mechanism": "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER or GSSAPI",
	"cert": "the file of a certificate (PEM)", "key": "the file of the certificate's key (PEM)", "file": "a file with one token a line", "roles": "roles such as [read]",
	"name": "a name", "issuer": "the iss of its tokens", "audience": "the aud that tokens must have, such as spillway", "name_claim": "a claim such as sub", "roles_claim": "a claim such as roles",
	"username": "the name of the user", "namespace": "a name of this pipeline, such as prod, which no other one on these brokers has", "service_name": "the first part of the brokers' principals, such as kafka", "partition_header": "the name of the header that has the partition",
}

// missing adds that a value that must be there is not, or is there and empty.
func (k checker) missing(at string) {
	is := "is missing"
	if _, written := k.places[at]; written {
		is = "is empty"
	}
	if want := wants[at[strings.LastIndexByte(at, '.')+1:]]; want != "" {
		is += "; want " + want
	}
	k.key(at, "%s", is)
}

func (k checker) oneOf(at, value string, allowed ...string) {
	if slices.Contains(allowed, value) {
		return
	}
	if near := Nearest(value, allowed); near != "" {
		k.key(at, "unknown value %q; did you mean %q?", value, near)
		return
	}
	k.key(at, "unknown value %q; want %s", value, alternatives(allowed))
}

func unknown[T any](k checker, at, what, name string, known map[string]T) {
	names := slices.Sorted(maps.Keys(known))
	if near := Nearest(name, names); near != "" {
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
			k.key(index(at, i), "%q is there twice; want it once", item)
		}
	}
}

func (k checker) glob(at, glob string) {
	if _, err := path.Match(glob, ""); err != nil || glob == "" {
		k.key(at, "bad glob %q: want a pattern such as orders-* or *", glob)
	}
}
