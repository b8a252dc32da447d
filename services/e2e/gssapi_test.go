package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"go.yaml.in/yaml/v3"

	"github.com/spillwayio/spillway/services/flume"
)

// TestKafkaKerberos: ingest and delivery log in at a broker by Kerberos, with TLS and without it.
// What is wrong is named, an unauthorized principal gets nowhere, and one run of the processes
// outlives its tickets, and all keys.
func TestKafkaKerberos(t *testing.T) {
	t.Parallel()
	const n = 3_000
	kdcPort, err := freeBase(13000, 14900, 11000)
	if err != nil {
		t.Fatal(err)
	}
	kdcPort += 11000
	b := secondBroker(t)
	b.tls, b.kdc = stack.kafka.tls, filepath.Join(b.run, fmt.Sprintf("kdc-%d", kdcPort))
	startKDC := func() {
		t.Helper()
		if _, err := script(b.run, "kdc-start", strconv.Itoa(kdcPort), "kafka/localhost", "reader", "writer/host", "stranger"); err != nil {
			t.Fatal(err)
		}
	}
	stopKDC := func() {
		if _, err := script(b.run, "kdc-stop", strconv.Itoa(kdcPort)); err != nil {
			t.Errorf("stop the KDC: %v", err)
		}
	}
	startKDC()
	t.Cleanup(stopKDC)
	if err := b.start(); err != nil {
		t.Fatal(err)
	}
	// The clients' krb5.conf, for tickets that soon expire; the keytab is that of the KDC, which
	// each start makes anew.
	text, err := os.ReadFile(filepath.Join(b.kdc, "krb5.conf"))
	krb5Conf := filepath.Join(t.TempDir(), "krb5.conf")
	err = errors.Join(err, os.WriteFile(krb5Conf, []byte(strings.Replace(string(text), "ticket_lifetime = 1d", fmt.Sprintf("ticket_lifetime = %ds", int(ticketLifetime.Seconds())), 1)), 0o644))
	if err != nil {
		t.Fatal(err)
	}

	p := newRoute(t, b)
	sasl := func(principal, service string) string {
		return fmt.Sprintf("sasl: {mechanism: GSSAPI, principal: %s, keytab: %q, krb5_conf: %q%s}", principal, filepath.Join(b.kdc, "kdc.keytab"), krb5Conf, service)
	}
	p.rewrite(fmt.Sprintf("brokers: [%q], group", stack.kafka.addr()), fmt.Sprintf("brokers: [\"localhost:%d\"], %s, group", b.port+kerberosPort, sasl("nobody", "")),
		fmt.Sprintf("brokers: [%q], topic", b.addr()), fmt.Sprintf("brokers: [\"localhost:%d\"], tls: {ca: %q}, %s, topic", b.port+saslPort, filepath.Join(b.tls, "ca.pem"), sasl("writer/host@EXAMPLE.COM", ", service_name: kafak")))
	createTopic(t, b, p.topic, nil)
	createTopic(t, b, p.out, nil)
	admin := kadm.NewClient(newClient(t, b))
	for _, acl := range []*kadm.ACLBuilder{
		kadm.NewACLs().Allow("User:reader").AllowHosts().Topics(p.topic).Groups(p.topic).Operations(kadm.OpRead).ResourcePatternType(kadm.ACLPatternLiteral),
		kadm.NewACLs().Allow("User:reader").AllowHosts().Topics(p.topic).Operations(kadm.OpDescribeConfigs).ResourcePatternType(kadm.ACLPatternLiteral),
		kadm.NewACLs().Allow("User:writer").AllowHosts().Topics(p.out).Operations(kadm.OpWrite).ResourcePatternType(kadm.ACLPatternLiteral),
	} {
		if _, err := admin.CreateACLs(t.Context(), acl); err != nil {
			t.Fatal(err)
		}
	}

	p.buffer.start()
	again := func(s *service, edit ...string) {
		t.Helper()
		s.kill()
		p.rewrite(edit...)
		s.start()
	}
	p.ingest.start()
	p.kafka.start()
	for s, what := range map[*service]string{p.ingest: "no key of nobody@EXAMPLE.COM", p.kafka: "get a Kerberos ticket for kafak/localhost"} {
		eventually(t, 30*time.Second, s.name+" names what is wrong", func() error { return s.complains(what) })
	}
	again(p.ingest, "principal: nobody", "principal: stranger")
	eventually(t, 30*time.Second, "ingest may not read", func() error {
		if log := p.ingest.logTail(10); !strings.Contains(log, "topics do not exist, or may not be seen") {
			return errors.New(log)
		}
		return nil
	})
	// What import-flume makes of a Flume client's keys logs in, too.
	again(p.ingest, sasl("stranger", ""), importedSASL(t, "source", "reader@EXAMPLE.COM", filepath.Join(b.kdc, "kdc.keytab"), krb5Conf))
	again(p.kafka, sasl("writer/host@EXAMPLE.COM", ", service_name: kafak"), importedSASL(t, "sink", "writer/host@EXAMPLE.COM", filepath.Join(b.kdc, "kdc.keytab"), krb5Conf))
	p.ingest.waitReady()
	p.kafka.waitReady()
	loggedIn := time.Now()

	source := newProducer(t, b, p.topic)
	total := 0
	more := func(what string) {
		t.Helper()
		if err := source.produce(n, 0); err != nil {
			t.Fatal(err)
		}
		total += n
		eventually(t, time.Minute, what, func() error { return p.settled(total, "test") })
	}
	more("all is delivered")
	pause(t, time.Until(loggedIn.Add(ticketLifetime+time.Second)))
	more("all is delivered after the tickets expired")
	// The broker ends what was authenticated by a ticket when that expires; its restart makes all
	// log in anew, with keys that were not there when the processes started.
	stopKDC()
	if err := b.crash(); err != nil {
		t.Fatal(err)
	}
	startKDC()
	if err := b.start(); err != nil {
		t.Fatal(err)
	}
	more("all is delivered with new keys")
	tallyTopic(t, b, p.out, total).check(t, p.out, true)
}

// importedSASL returns the key sasl that import-flume writes for the Kafka source or the Kafka
// sink of an agent whose client logs in by a keytab. Flume has the place of krb5.conf from Java.
func importedSASL(t *testing.T, component, principal, keytab, krb5Conf string) string {
	t.Helper()
	client := func(prefix string) string {
		return strings.ReplaceAll(fmt.Sprintf(`PREFIX.security.protocol = SASL_SSL
PREFIX.sasl.mechanism = GSSAPI
PREFIX.sasl.kerberos.service.name = kafka
PREFIX.sasl.jaas.config = com.sun.security.auth.module.Krb5LoginModule required useKeyTab=true storeKey=true keyTab="%s" principal="%s";
`, keytab, principal), "PREFIX", prefix)
	}
	result, err := flume.Import([]byte(`a.sources = source
a.channels = c
a.sinks = sink
a.channels.c.type = memory
a.sources.source.type = org.apache.flume.source.kafka.KafkaSource
a.sources.source.kafka.bootstrap.servers = in:9092
a.sources.source.kafka.topics = t
a.sources.source.channels = c
a.sinks.sink.type = org.apache.flume.sink.kafka.KafkaSink
a.sinks.sink.kafka.bootstrap.servers = out:9092
a.sinks.sink.channel = c
`+client("a.sources.source.kafka.consumer")+client("a.sinks.sink.kafka.producer")), flume.Options{})
	if err != nil {
		t.Fatal(err)
	}
	type secured struct {
		SASL map[string]string
	}
	var imported struct {
		Ingest   struct{ Sources map[string]secured }
		Delivery map[string]struct{ Kafka secured }
	}
	if err := yaml.Unmarshal([]byte(result.YAML), &imported); err != nil {
		t.Fatal(err)
	}
	sasl := imported.Delivery[component].Kafka.SASL
	if component == "source" {
		sasl = imported.Ingest.Sources[component].SASL
	}
	if len(sasl) == 0 {
		t.Fatalf("no sasl of %s in\n%s", component, result.YAML)
	}
	sasl["krb5_conf"] = krb5Conf
	text, err := json.Marshal(sasl) // which is YAML, too
	if err != nil {
		t.Fatal(err)
	}
	return "sasl: " + string(text)
}
