package config

import (
	"maps"
	"net"
	"net/netip"
	"path"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"time"
)

func (k checker) kafka(at, subscription string, d *Kafka) {
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
	k.count(at+".new_topic.partitions", d.NewTopic.Partitions, maxPartitions)
	k.count(at+".new_topic.replication", d.NewTopic.Replication, maxReplication)
	k.oneOf(at+".on_rejected", d.OnRejected, "dead_letter", "wait")
	k.oneOf(at+".on_denied", d.OnDenied, "wait", "dead_letter")
	if !d.AllowLoop {
		k.loop(at+".topic", subscription, d)
	}
}

func (k checker) deadLetterTopic(at, subscription string, d *DeadLetterTopic) {
	k.addresses(at+".brokers", d.Brokers)
	k.access(at, d.TLS, d.SASL)
	if k.present(at+".topic", d.Topic) && !topicName.MatchString(d.Topic) {
		k.key(at+".topic", "malformed %q: want the name of a topic", d.Topic)
	}
	queue, _, _ := strings.Cut(subscription, "/")
	for _, name := range slices.Sorted(maps.Keys(k.c.Ingest.Sources)) {
		s := k.c.Ingest.Sources[name]
		same := slices.ContainsFunc(s.Brokers, func(b string) bool {
			return slices.ContainsFunc(d.Brokers, func(o string) bool { return sameBroker(b, o) })
		})
		if same && s.Queue == queue && slices.ContainsFunc(s.Topics, func(item string) bool { return matches(item, d.Topic) }) && k.wants(subscription, d.Topic) {
			k.key(at+".topic", "%q is read by source %s from the same brokers, and comes back to this delivery: dead letters would go round for ever", d.Topic, name)
			return
		}
	}
}

// count is a number from 1 on, or -1 for the brokers' default.
func (k checker) count(at string, n, most int) {
	if n != -1 && (n < 1 || n > most) {
		k.key(at, "is %d; want 1 to %d, or -1 for the brokers' default", n, most)
	}
}

// loop finds deliveries to a topic that is read from the same brokers. What a header makes of a
// topic's name, and one cluster under two names, only the delivery sees.
func (k checker) loop(at, subscription string, d *Kafka) {
	queue, _, _ := strings.Cut(subscription, "/")
	for _, name := range slices.Sorted(maps.Keys(k.c.Ingest.Sources)) {
		s := k.c.Ingest.Sources[name]
		if !slices.ContainsFunc(s.Brokers, func(b string) bool {
			return slices.ContainsFunc(d.Brokers, func(o string) bool { return sameBroker(b, o) })
		}) {
			continue
		}
		for _, read := range s.Topics {
			pattern, is := strings.CutPrefix(read, TopicPattern)
			if is {
				if read = example(pattern); read == "" || s.Queue != queue {
					continue
				}
			}
			copyOf := func(of string) string { return strings.ReplaceAll(d.Topic, "%{topic}", of) }
			target := copyOf(read)
			comes := func(topic string) bool {
				return slices.ContainsFunc(s.Topics, func(item string) bool { return matches(item, topic) })
			}
			// What a pattern stands for comes back again and again, and to this very
			// subscription, or it is none of its records.
			if !comes(target) || is && !(comes(copyOf(target)) && k.wants(subscription, target)) {
				continue
			}
			k.key(at, "%q makes topic %q of topic %q, which source %s reads from the same brokers: records would go round for ever; allow_loop: true allows it", d.Topic, target, read, name)
			return
		}
	}
}

// wants says whether a subscription of "queue/subscription" wants a topic, as far as the file
// tells.
func (k checker) wants(subscription, topic string) bool {
	queue, name, _ := strings.Cut(subscription, "/")
	q := k.c.Buffer.Queues[queue]
	if q == nil || q.Subscriptions[name] == nil || len(q.Subscriptions[name].Topics) == 0 {
		return true
	}
	return slices.ContainsFunc(q.Subscriptions[name].Topics, func(glob string) bool {
		ok, _ := path.Match(glob, topic)
		return ok
	})
}

// sameBroker says whether two addresses are one: this host has several names.
func sameBroker(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil {
		return a == b
	}
	return portA == portB && (hostA == hostB || isLoopback(hostA) && isLoopback(hostB))
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// example is a topic that a pattern matches; "" when none was found, or one that is no name of a
// topic.
func example(pattern string) string {
	parsed, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return ""
	}
	name := shortest(parsed.Simplify())
	if name == "" { // as of .*
		name = "a"
	}
	if compiled, err := CompileTopicPattern(pattern); err != nil || !compiled.MatchString(name) || !topicName.MatchString(name) {
		return ""
	}
	return name
}

// shortest is about the shortest text that an expression matches.
func shortest(e *syntax.Regexp) string {
	var b strings.Builder
	switch e.Op {
	case syntax.OpLiteral:
		for _, r := range e.Rune {
			b.WriteRune(r)
		}
	case syntax.OpCharClass:
		for _, want := range []rune{'a', 'A', '0', '-', '_', '.'} {
			for i := 0; i+1 < len(e.Rune); i += 2 {
				if e.Rune[i] <= want && want <= e.Rune[i+1] {
					return string(want)
				}
			}
		}
		if len(e.Rune) > 0 {
			b.WriteRune(e.Rune[0])
		}
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		b.WriteByte('a')
	case syntax.OpCapture, syntax.OpPlus:
		b.WriteString(shortest(e.Sub[0]))
	case syntax.OpRepeat:
		b.WriteString(strings.Repeat(shortest(e.Sub[0]), e.Min))
	case syntax.OpConcat:
		for _, sub := range e.Sub {
			b.WriteString(shortest(sub))
		}
	case syntax.OpAlternate:
		b.WriteString(shortest(e.Sub[0]))
	}
	return b.String()
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

// internalTopics are those that brokers keep for themselves.
var internalTopics = map[string]bool{"__consumer_offsets": true, "__transaction_state": true, "__share_group_state": true}

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
	if internalTopics[topic] {
		k.key(at, "%q is a topic of Kafka's own, which is not read: want a topic with records of producers", topic)
	}
}

// start is where a source begins.
func (k checker) start(at, start string) {
	if start == "earliest" || start == "latest" {
		return
	}
	if when, err := time.Parse(time.RFC3339, start); err == nil {
		if when.Before(time.UnixMilli(0)) {
			k.key(at, "is %s; want a time since 1970, where Kafka's timestamps begin", start)
		}
		return
	}
	if near := Nearest(start, []string{"earliest", "latest"}); near != "" {
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
		k.oneOf(at+".mechanism", s.Mechanism, "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "GSSAPI")
	}
	if s.Mechanism == "GSSAPI" {
		k.gssapi(at, s)
		return
	}
	switch {
	case s.Mechanism == "OAUTHBEARER" && s.SecretFile == "":
		k.key(at+".secret_file", "is missing; want the file that OAUTHBEARER reads its token from")
	case s.Mechanism != "OAUTHBEARER" && s.Username == "":
		k.missing(at + ".username")
	case (s.Password == "") == (s.SecretFile == ""):
		k.key(at, "wants one of password and secret_file")
	}
}

// gssapi logs in with a keytab.
func (k checker) gssapi(at string, s *SASL) {
	if k.present(at+".principal", s.Principal) && !principal.MatchString(s.Principal) {
		k.key(at+".principal", "malformed %q: want name@REALM or name/host@REALM", s.Principal)
	}
	k.present(at+".keytab", s.Keytab)
	k.present(at+".krb5_conf", s.Krb5Conf)
	if k.present(at+".service_name", s.ServiceName) && !serviceName.MatchString(s.ServiceName) {
		k.key(at+".service_name", "malformed %q: want the first part of the brokers' principals, such as kafka", s.ServiceName)
	}
	if s.Password != "" || s.SecretFile != "" {
		k.key(at, "has a password, and GSSAPI logs in with keytab; want it without password and secret_file")
	}
}

var serviceName = regexp.MustCompile(`^[^/@\s]+$`)
