package config

import (
	"maps"
	"path"
	"slices"
	"strings"
)

// withoutEffect warns about options that do nothing beside others, and about settings that work
// badly together. They are no problems: a file may share them by anchors, and a file of the
// version before must be read.
func (k checker) withoutEffect() {
	for name, s := range k.c.Ingest.Sources {
		k.accessWithoutEffect("ingest.sources."+name, s.SASL)
		k.batchesOf("ingest.sources."+name, s)
	}
	k.topicsOfQueues()
	for name, q := range k.c.Buffer.Queues {
		if q.Store.Kafka != nil {
			k.storeWithoutEffect("buffer.queues."+name+".store.kafka", q.Store.Kafka)
		} else {
			k.hasNoEffect("needs store.kafka; without it the file counts whenever it has changed", "buffer.queues."+name+".revision")
		}
		if at := "buffer.queues." + name; q.Disk.Records < q.Memory.Records && k.written(at+".memory.records") {
			k.warn(at+".memory.records", "is %d, and disk.records, which counts all that is pending, is %d: the latter is reached first", q.Memory.Records, q.Disk.Records)
		}
	}
	for name, d := range k.c.Delivery {
		at := "delivery." + name
		if d.HDFS != nil {
			k.filesWithoutEffect(at+".hdfs", d.HDFS)
			k.commitsOf(at, d)
		}
		if d.Kafka != nil {
			k.accessWithoutEffect(at+".kafka", d.Kafka.SASL)
			if d.Kafka.MissingTopic != "create" {
				k.hasNoEffect("needs missing_topic: create", at+".kafka.new_topic.partitions", at+".kafka.new_topic.replication")
			}
		}
	}
}

func (k checker) written(at string) bool {
	_, written := k.places[at]
	return written
}

// hasNoEffect warns of those keys that were written.
func (k checker) hasNoEffect(because string, keys ...string) {
	for _, at := range keys {
		if k.written(at) {
			k.warn(at, "has no effect: it %s", because)
		}
	}
}

func (k checker) accessWithoutEffect(at string, s *SASL) {
	if s == nil {
		return
	}
	at += ".sasl"
	if place, written := k.places[at+".password"]; written && place.variable == "" && s.Password != "" {
		k.warn(at+".password", "is a secret in the file; want secret_file, or the variable %s", variableOf(at+".password"))
	}
	switch s.Mechanism {
	case "OAUTHBEARER":
		k.hasNoEffect("is not for OAUTHBEARER, whose token names the user", at+".username")
	case "GSSAPI":
		k.hasNoEffect("is not for GSSAPI, whose principal is the user", at+".username")
	}
	if s.Mechanism != "GSSAPI" {
		k.hasNoEffect("is for mechanism GSSAPI", at+".principal", at+".keytab", at+".krb5_conf", at+".service_name")
	}
}

// batchesOf compares a source's batches with the memory that they pass through.
func (k checker) batchesOf(at string, s *Source) {
	queues := make(map[string]bool)
	for _, other := range k.c.Ingest.Sources {
		queues[other.Queue] = true
	}
	if part := k.c.Ingest.Memory / ByteSize(max(len(queues), 1)); part < 2*s.Batch.Bytes {
		k.warn(at+".batch.bytes", "is %s, and a queue's part of ingest.memory is %s: less than two batches, so that fetching waits for the buffer", s.Batch.Bytes, part)
	}
	if q := k.c.Buffer.Queues[s.Queue]; q != nil && q.Memory.Bytes < 2*s.Batch.Bytes {
		k.warn(at+".batch.bytes", "is %s, and the window of queue %s has %s: less than two batches, so that each waits for the disk", s.Batch.Bytes, s.Queue, q.Memory.Bytes)
	}
}

// topicsOfQueues warns of topics that are read for nobody, and of subscriptions that want topics
// that nobody reads. It can tell only where topics are named.
func (k checker) topicsOfQueues() {
	for name, q := range k.c.Buffer.Queues {
		var read []string
		patterns := false
		for _, s := range k.c.Ingest.Sources {
			if s.Queue == name {
				read = append(read, s.Topics...)
				patterns = patterns || slices.ContainsFunc(s.Topics, func(t string) bool { return strings.HasPrefix(t, TopicPattern) })
			}
		}
		if len(read) == 0 || patterns {
			continue
		}
		for sub, s := range q.Subscriptions {
			for i, glob := range s.Topics {
				if !slices.ContainsFunc(read, func(t string) bool { return matchesGlob(glob, t) }) {
					k.warn(index("buffer.queues."+name+".subscriptions."+sub+".topics", i), "%q matches no topic that is read for the queue: %s", glob, strings.Join(read, ", "))
				}
			}
		}
	}
}

func matchesGlob(glob, topic string) bool {
	ok, err := path.Match(glob, topic)
	return ok && err == nil
}

func (k checker) filesWithoutEffect(at string, h *HDFS) {
	if strings.HasPrefix(h.URL, "file:") {
		k.hasNoEffect("is for hdfs:// only", at+".user")
	}
	if !h.Round {
		k.hasNoEffect("needs round: true", at+".round_value", at+".round_unit")
	}
	if h.Serializer != "sequence_file" {
		k.hasNoEffect("is for serializer sequence_file", at+".sequence_value")
	}
	if h.Serializer != "avro" {
		k.hasNoEffect("is for serializer avro", at+".avro_schema")
	}
	if h.Serializer != "text" && h.Serializer != "header_and_text" {
		k.hasNoEffect("is for serializers text and header_and_text", at+".append_newline")
	}
	if h.Serializer == "parquet" {
		k.hasNoEffect("is not for serializer parquet, whose files are written in one piece", at+".commit.interval")
	}
	if !hasTime(h.Path) && !hasTime(h.FilePrefix) && h.SuccessAfter == 0 {
		k.hasNoEffect("needs an escape of a time in path or file_prefix", at+".time_zone", at+".time_from", at+".round")
	}
	if h.Roll == (Roll{}) {
		k.warn(at+".roll", "has no bound: files become final only when the delivery stops, or max_open_files is reached")
	}
}

// hasTime says whether a template depends on the time. What it cannot read is blamed elsewhere.
func hasTime(template string) bool {
	for rest := template; ; {
		_, escape, found := strings.Cut(rest, "%")
		if !found {
			return false
		}
		size, err := escapeSize(escape, escapes)
		if err != nil || escape[0] != '{' && escape[0] != '[' && escape[0] != '%' {
			return true
		}
		rest = escape[size:]
	}
}

// commitsOf compares what a commit collects with what may be leased meanwhile.
func (k checker) commitsOf(at string, d *Delivery) {
	if d.HDFS.Serializer != "parquet" && d.Memory < 2*d.HDFS.Commit.Bytes {
		k.warn(at+".memory", "is %s, less than twice hdfs.commit.bytes, %s: nothing is collected while a commit is written; three times is best", d.Memory, d.HDFS.Commit.Bytes)
	}
}

// portsOfOneMachine warns of two services that cannot run on one machine. On machines or in
// containers of their own they may well have the same ports, which are most often the defaults.
func (k checker) portsOfOneMachine() {
	k.c.eachSamePort(func(a, b servicePort) {
		if k.written(a.key) || k.written(b.key) {
			k.warn(a.key, "%q is the same port as %s, %q: the two cannot run on one machine", a.address, b.key, b.address)
		}
	})
}

// servicePort is an address that a service listens on, and the key that says so.
type servicePort struct{ key, address string }

// eachSamePort calls found for each two services of the file that have the same port.
func (c *Config) eachSamePort(found func(a, b servicePort)) {
	var all []servicePort
	if len(c.Ingest.Sources) > 0 {
		all = append(all, servicePort{"ingest.listen", c.Ingest.Listen}, servicePort{"ingest.http", c.Ingest.HTTP})
	}
	if len(c.Buffer.Queues) > 0 {
		all = append(all, servicePort{"buffer.listen", c.Buffer.Listen}, servicePort{"buffer.http", c.Buffer.HTTP})
	}
	for _, name := range slices.Sorted(maps.Keys(c.Delivery)) {
		all = append(all, servicePort{"delivery." + name + ".listen", c.Delivery[name].Listen}, servicePort{"delivery." + name + ".http", c.Delivery[name].HTTP})
	}
	for i, a := range all {
		for _, b := range all[:i] {
			partA, _ := cutLast(a.key)
			if partB, _ := cutLast(b.key); partA != partB && samePort(a.address, b.address) {
				found(a, b)
			}
		}
	}
}

func cutLast(at string) (part, key string) {
	i := strings.LastIndexByte(at, '.')
	return at[:max(i, 0)], at[i+1:]
}
