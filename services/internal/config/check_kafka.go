package config

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

func (k checker) kafka(at string, d *Kafka) {
	k.addresses(at+".brokers", d.Brokers)
	k.access(at, d.TLS, d.SASL)
	k.topicTemplate(at+".topic", d.Topic)
	k.oneOf(at+".partitioner", d.Partitioner, "source", "key", "round_robin", "header")
	switch {
	case d.Partitioner == "header" && d.PartitionHeader == "":
		k.missing(at + ".partition_header")
	case d.Partitioner != "header" && d.PartitionHeader != "":
		k.key(at+".partition_header", "is for partitioner header, not %s", d.Partitioner)
	}
	k.oneOf(at+".compression", d.Compression, "none", "gzip", "snappy", "lz4", "zstd")
	k.oneOf(at+".missing_topic", d.MissingTopic, "broker", "create", "wait")
	k.count(at+".new_topic.partitions", d.NewTopic.Partitions)
	k.count(at+".new_topic.replication", d.NewTopic.Replication)
	k.oneOf(at+".on_rejected", d.OnRejected, "dead_letter", "wait")
	k.oneOf(at+".on_denied", d.OnDenied, "wait", "dead_letter")
	if !d.AllowLoop {
		k.loop(at+".topic", d)
	}
}

// count is a number of at least 1, or -1 for the brokers' default.
func (k checker) count(at string, n int) {
	if n < 1 && n != -1 {
		k.key(at, "is %d; want at least 1, or -1 for the brokers' default", n)
	}
}

// loop finds deliveries to a topic that is read from the same brokers. What a header makes of a topic's
// name, and one cluster under two names, only the delivery sees.
func (k checker) loop(at string, d *Kafka) {
	for _, name := range slices.Sorted(maps.Keys(k.c.Ingest.Sources)) {
		s := k.c.Ingest.Sources[name]
		if !slices.ContainsFunc(s.Brokers, func(b string) bool { return slices.Contains(d.Brokers, b) }) {
			continue
		}
		for _, read := range s.Topics {
			if strings.HasPrefix(read, TopicPattern) {
				continue
			}
			target := strings.ReplaceAll(d.Topic, "%{topic}", read)
			for _, item := range s.Topics {
				if matches(item, target) {
					k.key(at, "%q makes topic %q of topic %q, which source %s reads from the same brokers: records would go round for ever; allow_loop: true allows it", d.Topic, target, read, name)
					return
				}
			}
		}
	}
}

// matches says whether a topic is one of Source.Topics' item.
func matches(item, topic string) bool {
	pattern, is := strings.CutPrefix(item, TopicPattern)
	if !is {
		return item == topic
	}
	compiled, err := CompileTopicPattern(pattern)
	return err == nil && compiled.MatchString(topic)
}

// CompileTopicPattern compiles what follows TopicPattern. It matches whole names.
func CompileTopicPattern(pattern string) (*regexp.Regexp, error) {
	if _, err := regexp.Compile(pattern); err != nil { // not so that ")(" passes
		return nil, err
	}
	return regexp.Compile("^(?:" + pattern + ")$")
}

var topicName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,249}$`)

func (k checker) topicOrPattern(at, topic string) {
	if pattern, is := strings.CutPrefix(topic, TopicPattern); is {
		if _, err := CompileTopicPattern(pattern); err != nil || pattern == "" {
			k.key(at, "bad regular expression %q; want one such as %slogs-.*", pattern, TopicPattern)
		}
		return
	}
	if !topicName.MatchString(topic) || topic == "." || topic == ".." {
		k.key(at, "bad topic name %q: want letters, digits, '.', '_' and '-', at most 249; a pattern begins with %s", topic, TopicPattern)
	}
}

// start is where a source begins.
func (k checker) start(at, start string) {
	if start == "earliest" || start == "latest" {
		return
	}
	if _, err := time.Parse(time.RFC3339, start); err == nil {
		return
	}
	if near := nearest(start, []string{"earliest", "latest"}); near != "" {
		k.key(at, "unknown value %q; did you mean %q?", start, near)
		return
	}
	k.key(at, "unknown value %q; want earliest, latest or a time such as 2026-01-31T00:00:00Z", start)
}

// access is tls and sasl of what connects to brokers.
func (k checker) access(at string, t *TLS, s *SASL) {
	if t != nil && (t.Cert == "") != (t.Key == "") {
		k.key(at+".tls", "has one of cert and key; a client certificate needs both")
	}
	if s == nil {
		return
	}
	at += ".sasl"
	if k.present(at+".mechanism", s.Mechanism) {
		k.oneOf(at+".mechanism", s.Mechanism, "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
	}
	switch {
	case s.Mechanism == "OAUTHBEARER" && s.SecretFile == "":
		k.key(at+".secret_file", "is missing; OAUTHBEARER reads its token from it")
	case s.Mechanism != "OAUTHBEARER" && s.Username == "":
		k.missing(at + ".username")
	case (s.Password == "") == (s.SecretFile == ""):
		k.key(at, "wants one of password and secret_file")
	}
}
