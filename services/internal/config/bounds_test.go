package config

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// everything has each key's part once.
const everything = `
buffers: [b:7400]
security:
  insecure: true
  tls: {cert: /c, key: /k, ca: /ca}
  oidc: {issuer: "https://i", audience: a, jwks_file: /j}
  client: {token_file: /t}
ingest:
  sources:
    s:
      brokers: [k:1]
      group: g
      topics: [t]
      queue: q
      tls: {ca: /ca, cert: /c, key: /k}
      sasl: {mechanism: PLAIN, username: u, secret_file: /s}
buffer:
  data_dir: /var/lib/spillway
  queues:
    q: {subscriptions: {x: {}, y: {}}}
    kept:
      commit_after: delivered
      store: {kafka: {brokers: [s:1], namespace: n, tls: {ca: /ca, cert: /c, key: /k}, sasl: {mechanism: PLAIN, username: u, secret_file: /s}}}
      subscriptions: {x: {}}
delivery:
  f:
    subscription: q/x
    listen: ":7420"
    http: ":7421"
    hdfs: {url: "hdfs://n:8020", path: "/logs/%Y-%m-%d", kerberos: {keytab: /k, principal: u@R}}
  k:
    subscription: q/y
    listen: ":7422"
    http: ":7423"
    kafka: {brokers: [o:1], partitioner: header, partition_header: p, topic: "copy-%{topic}", tls: {}, sasl: {mechanism: PLAIN, username: u, secret_file: /s}}
    dead_letter_topic: {brokers: [o:1], topic: dead, tls: {}, sasl: {mechanism: PLAIN, username: u, secret_file: /s}}
`

// manifested is what everything lacks: a manifest forbids some formats of the delivery that it
// stands for.
var manifested = strings.Replace(everything, "y: {}}", "y: {}, m: {}}", 1) + `  m:
    subscription: q/m
    listen: ":7424"
    http: ":7425"
    manifest: {}
`

// names are what stands in everything for NAME.
var names = strings.NewReplacer("ingest.sources.NAME", "ingest.sources.s", "buffer.queues.NAME.subscriptions.NAME", "buffer.queues.q.subscriptions.x",
	"buffer.queues.NAME.store", "buffer.queues.kept.store", "buffer.queues.NAME", "buffer.queues.q", "delivery.NAME.kafka", "delivery.k.kafka", "delivery.NAME.manifest", "delivery.m.manifest", "delivery.NAME.dead_letter_topic", "delivery.k.dead_letter_topic", "delivery.NAME", "delivery.f")

// extremes are values at both ends of what a key takes, and beyond. Values are separated by
// blanks; a comma separates those of a list, and _ is a blank, ^ is a line feed, empty is
// nothing.
var extremes = map[string]struct{ good, bad string }{
	"buffers":       {"b:1 [::1]:65535 localhost:7400 a:1,b:1", "empty b b: b:0 b:65536 :7400 a_b:1 a:1,a:1 http://b:7400"},
	"ingest.listen": {":0 :7410 127.0.0.1:1 [::]:65535 localhost:0", "empty 7410 :65536 :-1 :x [::1]:7411 :7411"},
	"ingest.http":   {":0 :7411 127.0.0.1:1", "empty 7411 :7410 0.0.0.0:7410 [::]:7410 127.0.0.1:7410 localhost:7410 some-host:7410 0:7410x"},
	"ingest.memory": {"1MiB 64MiB 1TiB", "0 1B 512KiB 1025GiB 9223372036854775807 8388608TiB -1 1.5GiB 64 MiB_x lots empty"},

	"ingest.sources.NAME.brokers":           {"k:1 k:1,l:2 10.0.0.1:9092 [fe80::1%eth0]:9092", "empty k k:0 :9092 k:1,k:1 k:1,l"},
	"ingest.sources.NAME.tls.ca":            {"/ca empty", ""},
	"ingest.sources.NAME.tls.cert":          {"/c", "empty"},
	"ingest.sources.NAME.tls.key":           {"/k", "empty"},
	"ingest.sources.NAME.tls.server_name":   {"kafka empty", ""},
	"ingest.sources.NAME.sasl.mechanism":    {"PLAIN SCRAM-SHA-256 SCRAM-SHA-512 OAUTHBEARER", "empty plain KERBEROS GSSAPI"},
	"ingest.sources.NAME.sasl.username":     {"u", "empty"},
	"ingest.sources.NAME.sasl.password":     {"empty", "both"},
	"ingest.sources.NAME.sasl.secret_file":  {"/s", "empty"},
	"ingest.sources.NAME.sasl.principal":    {"empty", ""}, // without GSSAPI; TestGSSAPI has it
	"ingest.sources.NAME.sasl.keytab":       {"/k empty", ""},
	"ingest.sources.NAME.sasl.krb5_conf":    {"/k empty", ""},
	"ingest.sources.NAME.sasl.service_name": {"kafka empty", ""},
	"ingest.sources.NAME.group":             {"g a.b/c long255", "empty _g g_ a^b long256"},
	"ingest.sources.NAME.topics":            {"t t,u re:.* long249", "empty t,t a/b . .. re: re:( long250 ü __consumer_offsets"},
	"ingest.sources.NAME.start":             {"earliest latest 1970-01-01T00:00:00Z 2026-01-31T00:00:00+01:00 9999-12-31T23:59:59Z", "empty first 1969-12-31T23:59:59.999Z 2026-01-31 0 -1"},
	"ingest.sources.NAME.isolation":         {"read_committed read_uncommitted", "empty committed"},
	"ingest.sources.NAME.queue":             {"q", "empty r q/x"},
	"ingest.sources.NAME.batch.records":     {"1 1000 1000000", "0 -1 1000001 9223372036854775807 9223372036854775808 1e3 1_000 empty"},
	"ingest.sources.NAME.batch.bytes":       {"1 1MiB 16MiB", "0 17MiB 16777217 -1 empty"},
	"ingest.sources.NAME.batch.linger":      {"0 0s 50ms 1m", "-1ns 61s 9999999h 50 empty 2562047h47m16.854775807s"},

	"buffer.listen":    {":0 :7400", "empty :7401 0.0.0.0:7401 7400"},
	"buffer.http":      {":0 :7401 10.0.0.1:7401", "empty :7400 0.0.0.0:7400 [::]:7400 10.0.0.1:7400"},
	"buffer.advertise": {"empty a:7400 10.0.0.1:1", ":7400 a a:0 a:65536"},
	"buffer.data_dir":  {"/var/lib/spillway data ./data", "empty / // /. /var/.. /a^b"},

	"buffer.queues.NAME.memory.records": {"100 1000000 1000000000000000", "0 -1 1 99 1000000000000001 9223372036854775807 99999999999999999999 empty"},
	"buffer.queues.NAME.memory.bytes":   {"64KiB 128MiB 1TiB", "0 1 65535 2TiB 9223372036854775807 empty"},
	"buffer.queues.NAME.disk.records":   {"1 1000000000000000", "0 -1 1000000000000001 9223372036854775807 empty"},
	"buffer.queues.NAME.disk.bytes":     {"256MiB 100GiB 1024TiB", "0 1 2MiB 255MiB 1025TiB 9223372036854775807 8388608TiB empty"},
	"buffer.queues.NAME.spill_after":    {"0 0s 1s 24h", "-1s 25h 9999999h forever empty"},
	"buffer.queues.NAME.commit_after":   {"safe delivered", "empty saved"},
	"buffer.shard":                      {"0", "-1 1 256 empty"}, // with one shard; TestShards has more
	"buffer.queues.NAME.shards":         {"1", "0 -1 2 257 empty"},
	"buffer.queues.NAME.revision":       {"0 1 20261130 1000000000000000", "-1 1000000000000001 1.5 empty"},
	"buffer.queues.NAME.lease":          {"1s 30s 24h", "0 1ms 999ms -1s 25h 2562047h 9999999h empty"},

	"buffer.queues.NAME.store.kafka.brokers":           {"s:1 s:1,t:2", "empty s s:0 s:1,s:1"},
	"buffer.queues.NAME.store.kafka.tls.ca":            {"/ca empty", ""},
	"buffer.queues.NAME.store.kafka.tls.cert":          {"/c", "empty"},
	"buffer.queues.NAME.store.kafka.tls.key":           {"/k", "empty"},
	"buffer.queues.NAME.store.kafka.tls.server_name":   {"kafka empty", ""},
	"buffer.queues.NAME.store.kafka.sasl.mechanism":    {"PLAIN SCRAM-SHA-256", "empty plain"},
	"buffer.queues.NAME.store.kafka.sasl.username":     {"u", "empty"},
	"buffer.queues.NAME.store.kafka.sasl.password":     {"empty", "both"},
	"buffer.queues.NAME.store.kafka.sasl.secret_file":  {"/s", "empty"},
	"buffer.queues.NAME.store.kafka.sasl.principal":    {"empty", ""}, // without GSSAPI; TestGSSAPI has it
	"buffer.queues.NAME.store.kafka.sasl.keytab":       {"/k empty", ""},
	"buffer.queues.NAME.store.kafka.sasl.krb5_conf":    {"/k empty", ""},
	"buffer.queues.NAME.store.kafka.sasl.service_name": {"kafka empty", ""},
	"buffer.queues.NAME.store.kafka.namespace":         {"n prod-1", "empty a/b a..b -a ü long121"},
	"buffer.queues.NAME.store.kafka.topic":             {"empty t a.b-c", "a/b . .. ü long249 long250"},
	"buffer.queues.NAME.store.kafka.replication":       {"1 3 32767", "0 -1 32768 empty"},
	"buffer.queues.NAME.store.kafka.owners":            {"fixed group", "empty Group"},
	"buffer.queues.NAME.store.kafka.session_timeout":   {"6s 10s 5m", "0 5s 5999ms 301s empty"},

	"buffer.queues.NAME.subscriptions.NAME.topics":   {"* t a*,b? [a-z]*", "empty [a- *,*"},
	"buffer.queues.NAME.subscriptions.NAME.on_full":  {"block drop_oldest defer", "empty drop"},
	"buffer.queues.NAME.subscriptions.NAME.limit":    {"0 64KiB 100GiB", "1 65535 101GiB 9223372036854775807 -1 empty"},
	"buffer.queues.NAME.subscriptions.NAME.required": {"true false", "empty yes 1 True"},

	"delivery.NAME.listen":       {":0 :7420", "empty :7421 7420"},
	"delivery.NAME.http":         {":0 :7421", "empty :7420 [::]:7420"},
	"delivery.NAME.subscription": {"q/x q/z", "empty q x q/ /x q/x/y r/x q/y q/../x"},
	"delivery.NAME.ordering":     {"partition none empty", "strict"},
	"delivery.NAME.memory":       {"1MiB 48MiB 1TiB", "0 1B 1023KiB 2TiB 9223372036854775807 empty"},

	"delivery.NAME.transforms":                      {"empty", "x keep"}, // of their keys there are tests of their own
	"buffer.queues.NAME.subscriptions.NAME.headers": {"empty", "x keep"}, // likewise

	"delivery.NAME.hdfs.url":                        {"hdfs://n:8020 hdfs://a:1,b:2 hdfs://ns hdfs:///", "empty n:8020 hdfs:// hdfs://n:0 hdfs://n:8020/x viewfs://a s3://b file://x file:///x"},
	"delivery.NAME.hdfs.conf_dir":                   {"/etc/hadoop empty", ""},
	"delivery.NAME.hdfs.user":                       {"empty", "u"},
	"delivery.NAME.hdfs.kerberos.principal":         {"u@R u/h@R u/_HOST", "empty @R u@ a_b"},
	"delivery.NAME.hdfs.kerberos.keytab":            {"/k", "empty"},
	"delivery.NAME.hdfs.kerberos.krb5_conf":         {"/k", "empty"},
	"delivery.NAME.hdfs.kerberos.service_principal": {"nn/_HOST@R empty", "nn nn@R"},
	"delivery.NAME.hdfs.data_transfer_protection":   {"authentication integrity privacy empty", "private"},
	"delivery.NAME.hdfs.replication":                {"0 1 512", "-1 513 9223372036854775807 empty"},
	"delivery.NAME.hdfs.block_size":                 {"0 1MiB 128MiB 1TiB", "1 512 1048577 2TiB empty"},
	"delivery.NAME.hdfs.umask":                      {"022 0077 empty", "8 22 01777 u=rwx"},
	"delivery.NAME.hdfs.path":                       {"/ /logs /logs/%{topic}/%Y", "empty logs /a/ /a//b /a/../b /a/./b /a/%Q /a/% /a/%{ /a/%{} /a:b /a^b /long5000"},
	"delivery.NAME.hdfs.file_prefix":                {"empty a %H", "a/b a:b % %Q a^b long256"},
	"delivery.NAME.hdfs.file_suffix":                {"empty .log long121", "a/b a:b a^b long122 long256"},
	"delivery.NAME.hdfs.in_use_prefix":              {"empty _ long121", "a/b a:b a^b long122"},
	"delivery.NAME.hdfs.in_use_suffix":              {".tmp long125", "empty a/b a:b a^b long126"},
	"delivery.NAME.hdfs.time_zone":                  {"UTC Europe/Berlin empty", "Mars ../etc/passwd"},
	"delivery.NAME.hdfs.time_from":                  {"record kafka local", "empty header"},
	"delivery.NAME.hdfs.round":                      {"true false", "empty yes"},
	"delivery.NAME.hdfs.round_value":                {"1 60", "0 -1 61 9223372036854775808 empty"},
	"delivery.NAME.hdfs.round_unit":                 {"second minute hour", "empty day"},
	"delivery.NAME.hdfs.roll.interval":              {"0 100ms 1h 8784h", "-1s 1ns 99ms 8785h 9999999h empty"},
	"delivery.NAME.hdfs.roll.size":                  {"0 1 1024TiB", "-1 1025TiB 9223372036854775807 empty"},
	"delivery.NAME.hdfs.roll.count":                 {"0 1 1000000000000000", "-1 1000000000000001 9223372036854775808 empty"},
	"delivery.NAME.hdfs.roll.idle":                  {"0 100ms 8784h", "-1s 1ns 8785h 9999999h empty"},
	"delivery.NAME.hdfs.max_open_files":             {"1 500 10000", "0 -1 10001 empty"},
	"delivery.NAME.hdfs.commit.bytes":               {"64KiB 4GiB", "0 1 65535 5GiB empty"},
	"delivery.NAME.hdfs.commit.interval":            {"1ms 1h", "0 -1s 1ns 61m 9999999h empty"},
	"delivery.NAME.hdfs.serializer":                 {"text json", "empty txt"},
	"delivery.NAME.hdfs.compression":                {"none gzip", "empty deflate gz"},
	"delivery.NAME.hdfs.sequence_value":             {"bytes text", "empty utf8"},
	"delivery.NAME.hdfs.avro_schema":                {"/etc/x.avsc empty", ""},
	"delivery.NAME.hdfs.append_newline":             {"true false", "empty no"},
	"delivery.NAME.hdfs.sync":                       {"flush disk", "empty fsync"},
	"delivery.NAME.hdfs.on_denied":                  {"wait dead_letter", "empty drop"},
	"delivery.NAME.hdfs.success_after":              {"0 1ms 8784h", "-1s 8785h 2562047h 9999999h empty"},

	"delivery.NAME.manifest.like": {"f empty", "none k m"},
	"delivery.NAME.manifest.url":  {"file:///x hdfs://n:8020", "empty x viewfs://x file://x"},

	"security.tls.cert":           {"/c", "empty"},
	"security.tls.key":            {"/k", "empty"},
	"security.tls.ca":             {"/ca empty", ""},
	"security.tls.client_auth":    {"none request require", "empty maybe"},
	"security.tokens":             {"empty", "x"}, // of their keys there are tests of their own
	"security.oidc.issuer":        {"https://i", "empty"},
	"security.oidc.audience":      {"a", "empty"},
	"security.oidc.jwks_file":     {"/j", "empty"},
	"security.oidc.jwks_url":      {"empty", "https://both http://i"},
	"security.oidc.ca":            {"/ca empty", ""},
	"security.oidc.name_claim":    {"sub email", "empty"},
	"security.oidc.roles_claim":   {"roles realm_access.roles", "empty"},
	"security.identities":         {"empty", "x"},
	"security.client.token_file":  {"/t empty", ""},
	"security.client.ca":          {"/ca empty", ""},
	"security.client.cert":        {"empty", "/c"},
	"security.client.key":         {"empty", "/k"},
	"security.client.server_name": {"buffer empty", ""},
	"security.insecure":           {"true false", "empty yes"},
	"security.limits.connections": {"1 512", "0 -1 513 empty"},
	"security.limits.streams":     {"1 1024", "0 1025 empty"},
	"security.limits.sessions":    {"1 1024", "0 1025 empty"},
	"security.limits.bytes":       {"32MiB 1TiB", "0 31MiB 2TiB empty"},

	"delivery.NAME.dead_letter_topic.brokers":           {"o:1 o:1,p:2", "empty o o:0 o:1,o:1"},
	"delivery.NAME.dead_letter_topic.tls.ca":            {"/ca empty", ""},
	"delivery.NAME.dead_letter_topic.tls.cert":          {"empty", "/c"},
	"delivery.NAME.dead_letter_topic.tls.key":           {"empty", "/k"},
	"delivery.NAME.dead_letter_topic.tls.server_name":   {"kafka empty", ""},
	"delivery.NAME.dead_letter_topic.sasl.mechanism":    {"PLAIN SCRAM-SHA-256", "empty plain"},
	"delivery.NAME.dead_letter_topic.sasl.username":     {"u", "empty"},
	"delivery.NAME.dead_letter_topic.sasl.password":     {"empty", "both"},
	"delivery.NAME.dead_letter_topic.sasl.secret_file":  {"/s", "empty"},
	"delivery.NAME.dead_letter_topic.sasl.principal":    {"empty", ""}, // without GSSAPI; TestGSSAPI has it
	"delivery.NAME.dead_letter_topic.sasl.keytab":       {"/k empty", ""},
	"delivery.NAME.dead_letter_topic.sasl.krb5_conf":    {"/k empty", ""},
	"delivery.NAME.dead_letter_topic.sasl.service_name": {"kafka empty", ""},
	"delivery.NAME.dead_letter_topic.topic":             {"dead long249", "empty a/b %{topic} long250"},

	"delivery.NAME.kafka.brokers":               {"o:1 o:1,p:2", "empty o o:0 o:1,o:1"},
	"delivery.NAME.kafka.tls.ca":                {"/ca empty", ""},
	"delivery.NAME.kafka.tls.cert":              {"empty", "/c"},
	"delivery.NAME.kafka.tls.key":               {"empty", "/k"},
	"delivery.NAME.kafka.tls.server_name":       {"kafka empty", ""},
	"delivery.NAME.kafka.sasl.mechanism":        {"PLAIN SCRAM-SHA-256", "empty plain"},
	"delivery.NAME.kafka.sasl.username":         {"u", "empty"},
	"delivery.NAME.kafka.sasl.password":         {"empty", "both"},
	"delivery.NAME.kafka.sasl.secret_file":      {"/s", "empty"},
	"delivery.NAME.kafka.sasl.principal":        {"empty", ""}, // without GSSAPI; TestGSSAPI has it
	"delivery.NAME.kafka.sasl.keytab":           {"/k empty", ""},
	"delivery.NAME.kafka.sasl.krb5_conf":        {"/k empty", ""},
	"delivery.NAME.kafka.sasl.service_name":     {"kafka empty", ""},
	"delivery.NAME.kafka.topic":                 {"%{topic} copy-%{topic} long249", "empty a_b % %{ %{} %Y a/b long250"},
	"delivery.NAME.kafka.partitioner":           {"header", "empty random source"},
	"delivery.NAME.kafka.partition_header":      {"p", "empty"},
	"delivery.NAME.kafka.compression":           {"none zstd", "empty gz"},
	"delivery.NAME.kafka.missing_topic":         {"broker create wait", "empty ignore"},
	"delivery.NAME.kafka.new_topic.partitions":  {"-1 1 100000", "0 -2 100001 9223372036854775807 empty"},
	"delivery.NAME.kafka.new_topic.replication": {"-1 1 32767", "0 -2 32768 empty"},
	"delivery.NAME.kafka.on_rejected":           {"dead_letter wait", "empty drop"},
	"delivery.NAME.kafka.on_denied":             {"dead_letter wait", "empty drop"},
	"delivery.NAME.kafka.allow_loop":            {"true false", "empty yes"},
	"delivery.NAME.kafka.exactly_once":          {"true false", "empty yes"},
	"delivery.NAME.kafka.provenance":            {"true false", "empty yes"},
}

// TestExtremes sets each key of the document to values at both ends of what it takes. What is
// refused is named by its key, with what is right.
func TestExtremes(t *testing.T) {
	keys := keysOf("", reflect.ValueOf(new(Config)))
	for _, key := range keys {
		if _, ok := extremes[key.path]; !ok {
			t.Errorf("no extremes of %s", key.path)
		}
	}
	for documented, values := range extremes {
		if !slices.ContainsFunc(keys, func(k documentedKey) bool { return k.path == documented }) {
			t.Errorf("there is no key %s", documented)
			continue
		}
		at := names.Replace(documented)
		for _, value := range strings.Fields(values.good) {
			if err := parseWith(at, value); err != nil {
				t.Errorf("%s: %q is refused: %v", at, value, err)
			}
		}
		for _, value := range strings.Fields(values.bad) {
			err := parseWith(at, value)
			var problems Problems
			if !errors.As(err, &problems) {
				t.Errorf("%s: %q is taken", at, value)
				continue
			}
			for _, p := range problems {
				if !slices.ContainsFunc([]string{"want", "did you mean", "there is", "not supported", "needs one of its own", "needs", "does not go with", "has one of", "is for"},
					func(words string) bool { return strings.Contains(p.Message, words) }) {
					t.Errorf("%s: %q: the message does not say what is right: %s", at, value, p.Message)
				}
				part, _ := cutLast(at)
				if value != "q/y" && !strings.HasPrefix(p.Message, part) {
					t.Errorf("%s: %q: the message is about something else: %s", at, value, p.Message)
				}
				if strings.Contains(p.Message, "%!") {
					t.Errorf("%s: %q: malformed message: %s", at, value, p.Message)
				}
			}
		}
	}
}

// parseWith parses everything with one key of another value.
func parseWith(at, value string) error {
	value = strings.NewReplacer("empty", "", "_", " ", "^", "\n").Replace(escapeNames(value))
	for _, n := range []int{121, 122, 125, 126, 249, 250, 255, 256, 5000} {
		value = strings.ReplaceAll(value, fmt.Sprintf("long%d", n), strings.Repeat("x", n))
	}
	value = strings.ReplaceAll(value, "\x00", "_")
	file := everything
	if strings.HasPrefix(at, "delivery.m.") {
		file = manifested
	}
	_, err := Parse("f.yaml", []byte(file), []string{"SPILLWAY_" + strings.ToUpper(strings.ReplaceAll(at, ".", "__")) + "=" + value})
	return err
}

// escapeNames keeps the _ of words that are values.
func escapeNames(value string) string {
	for _, word := range []string{"read_committed", "read_uncommitted", "drop_oldest", "drop_latest", "dead_letter", "round_robin", "/_HOST", "1_000"} {
		value = strings.ReplaceAll(value, word, strings.ReplaceAll(word, "_", "\x00"))
	}
	return value
}

func TestSamePort(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{":7400", ":7400", true}, {":7400", ":7401", false}, {":0", ":0", false}, {":7400", "0.0.0.0:7400", true}, {":7400", "[::]:7400", true},
		{"[::]:7400", "0.0.0.0:7400", true}, {":7400", "127.0.0.1:7400", true}, {"[::]:7400", "10.0.0.1:7400", true}, {"0.0.0.0:7400", "[::1]:7400", false},
		{"localhost:7400", "127.0.0.1:7400", true}, {"localhost:7400", "[::1]:7400", true}, {"localhost:7400", "10.0.0.1:7400", false},
		{"LOCALHOST:7400", "localhost:7400", true}, {"[::1]:7400", "[0:0:0:0:0:0:0:1]:7400", true}, {"[::ffff:10.0.0.1]:7400", "10.0.0.1:7400", true},
		{"10.0.0.1:7400", "10.0.0.2:7400", false}, {"a:7400", "a:7400", true}, {"a:7400", ":7400", true}, {"a:7400", "0.0.0.0:7400", true}, {"a:7400", "b:7400", false},
	} {
		if samePort(test.a, test.b) != test.want || samePort(test.b, test.a) != test.want {
			t.Errorf("%s and %s: %v, want %v", test.a, test.b, !test.want, test.want)
		}
	}
}

// TestWarnings names options that have no effect, and settings that work badly together.
func TestWarnings(t *testing.T) {
	for change, want := range map[string]string{
		"":                                       "",
		"DELIVERY__F__HDFS__ROUND_VALUE=5":       "delivery.f.hdfs.round_value: has no effect: it needs round: true",
		"DELIVERY__F__HDFS__SEQUENCE_VALUE=text": "delivery.f.hdfs.sequence_value: has no effect: it is for serializer sequence_file",
		"DELIVERY__K__KAFKA__NEW_TOPIC__PARTITIONS=4":          "delivery.k.kafka.new_topic.partitions: has no effect: it needs missing_topic: create",
		"BUFFER__QUEUES__Q__SUBSCRIPTIONS__X__TOPICS=oders*,t": `buffer.queues.q.subscriptions.x.topics[0]: "oders*" matches no topic that is read for the queue: t`,
		"INGEST__MEMORY=1MiB":                                  "ingest.sources.s.batch.bytes: is 1MiB, and a queue's part of ingest.memory is 1MiB: less than two batches, so that fetching waits for the buffer",
		"BUFFER__QUEUES__Q__MEMORY__BYTES=1MiB":                "ingest.sources.s.batch.bytes: is 1MiB, and the window of queue q has 1MiB: less than two batches, so that each waits for the disk",
		"DELIVERY__F__MEMORY=16MiB":                            "delivery.f.memory: is 16MiB, less than twice hdfs.commit.bytes, 16MiB: nothing is collected while a commit is written; three times is best",
		"BUFFER__QUEUES__Q__REVISION=2":                        "buffer.queues.q.revision: has no effect: it needs store.kafka; without it the file counts whenever it has changed",
		"BUFFER__QUEUES__KEPT__REVISION=2":                     "",
		"DELIVERY__F__LISTEN=:7400":                            `delivery.f.listen: ":7400" is the same port as buffer.listen, ":7400": the two cannot run on one machine`,
		"DELIVERY__F__LISTEN=0.0.0.0:7422":                     `delivery.k.listen: ":7422" is the same port as delivery.f.listen, "0.0.0.0:7422": the two cannot run on one machine`,
		"BUFFER__QUEUES__Q__MEMORY__RECORDS=200000000":         "buffer.queues.q.memory.records: is 200000000, and disk.records, which counts all that is pending, is 100000000: the latter is reached first",
	} {
		var environ []string
		if change != "" {
			environ = []string{"SPILLWAY_" + change}
		}
		c, err := Parse("f.yaml", []byte(everything), environ)
		if err != nil {
			t.Errorf("%s: %v", change, err)
			continue
		}
		var got []string
		for _, w := range c.Warnings() {
			got = append(got, w.Message)
		}
		if strings.Join(got, "\n") != want {
			t.Errorf("%s: warnings are\n%s\nwant\n%s", change, strings.Join(got, "\n"), want)
		}
	}
	inline := strings.ReplaceAll(everything, "secret_file: /s", "password: canary")
	const warned = "ingest.sources.s.sasl.password: is a secret in the file; want secret_file, or the variable SPILLWAY_INGEST__SOURCES__S__SASL__PASSWORD"
	if c, err := Parse("f.yaml", []byte(inline), nil); err != nil || !strings.Contains(c.Warnings().Error(), warned) || strings.Contains(c.Warnings().Error(), "canary") {
		t.Errorf("a password in the file: %v, %v", c.Warnings(), err)
	}
	if c, err := Parse("f.yaml", []byte(inline), []string{"SPILLWAY_INGEST__SOURCES__S__SASL__PASSWORD=x"}); err != nil || strings.Contains(c.Warnings().Error(), "sources.s.sasl") {
		t.Errorf("a password in a variable: %v, %v", c.Warnings(), err)
	}
	c, err := Parse("f.yaml", []byte(strings.Replace(everything, `"/logs/%Y-%m-%d", kerberos: {keytab: /k, principal: u@R}`, `"/logs", time_zone: UTC, user: u, roll: {interval: 0, size: 0, count: 0, idle: 0}`, 1)), []string{"SPILLWAY_DELIVERY__F__HDFS__URL=file:///x"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.Warnings().Error(), `f.yaml:30: delivery.f.hdfs.roll: has no bound: files become final only when the delivery stops, or max_open_files is reached
f.yaml:30: delivery.f.hdfs.time_zone: has no effect: it needs an escape of a time in path or file_prefix
f.yaml:30: delivery.f.hdfs.user: has no effect: it is for hdfs:// only`; got != want {
		t.Errorf("warnings are\n%s\nwant\n%s", got, want)
	}
}

// TestGSSAPI: a login by Kerberos needs its files, and no password.
func TestGSSAPI(t *testing.T) {
	const good = "{mechanism: GSSAPI, principal: spillway/_HOST@R, keytab: /k}"
	for sasl, want := range map[string]string{
		good: "",
		"{mechanism: GSSAPI, principal: spillway, keytab: /k, krb5_conf: /c, service_name: broker}": "",
		"{mechanism: GSSAPI, keytab: /k}":                                         "sasl.principal: is missing; want name@REALM",
		"{mechanism: GSSAPI, principal: a/b/c, keytab: /k}":                       "sasl.principal: malformed",
		"{mechanism: GSSAPI, principal: a}":                                       "sasl.keytab: is missing; want the file",
		"{mechanism: GSSAPI, principal: a, keytab: /k, krb5_conf: \"\"}":          "sasl.krb5_conf: is empty; want a file",
		"{mechanism: GSSAPI, principal: a, keytab: /k, service_name: kafka/host}": "sasl.service_name: malformed",
		"{mechanism: GSSAPI, principal: a, keytab: /k, service_name: \"\"}":       "sasl.service_name: is empty; want the first part",
		"{mechanism: GSSAPI, principal: a, keytab: /k, password: canary}":         "sasl: has a password",
		"{mechanism: PLAIN, username: u, secret_file: /s, keytab: /k}":            "warning sasl.keytab: has no effect: it is for mechanism GSSAPI",
		"{mechanism: GSSAPI, principal: a, keytab: /k, username: u}":              "warning sasl.username: has no effect: it is not for GSSAPI",
	} {
		c, err := Parse("f.yaml", []byte(strings.Replace(everything, "{mechanism: PLAIN, username: u, secret_file: /s}", sasl, 1)), nil)
		got := ""
		if err != nil {
			got = err.Error()
		} else if len(c.Warnings()) > 0 {
			got = "warning " + strings.TrimPrefix(c.Warnings()[0].Message, "ingest.sources.s.")
		}
		if (want == "") != (got == "") || !strings.Contains(got, want) || strings.Contains(got, "canary") {
			t.Errorf("%s: %q, want %q", sasl, got, want)
		}
	}
	c, err := Parse("f.yaml", []byte(strings.Replace(everything, "{mechanism: PLAIN, username: u, secret_file: /s}", good, 1)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if s := c.Ingest.Sources["s"].SASL; s.Krb5Conf != "/etc/krb5.conf" || s.ServiceName != "kafka" {
		t.Errorf("the defaults are %+v", s)
	}
}
