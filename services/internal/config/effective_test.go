package config

import (
	"reflect"
	"strings"
	"testing"
)

// TestEffective shows defaults and variables, and no secret.
func TestEffective(t *testing.T) {
	c, err := Parse("x.yaml", []byte(`
ingest: {sources: {s: {brokers: ['k:9092'], group: g, topics: [t], queue: q, sasl: {mechanism: PLAIN, username: u, password: canary-1}}}}
buffer: {data_dir: /d, queues: {q: {spill_after: 90s, subscriptions: {h: {}, k: {}}}}}
delivery:
  h: {subscription: q/h, hdfs: {url: 'hdfs://n:8020', path: /x}}
  k: {subscription: q/k, listen: 'localhost:1', http: 'localhost:2', kafka: {brokers: ['k:9092'], topic: y, sasl: {mechanism: PLAIN, username: u}}}
security: {oidc: {issuer: i, audience: a, jwks_url: 'https://u:canary-2@issuer/keys'}}
`), []string{"SPILLWAY_DELIVERY__K__KAFKA__SASL__PASSWORD=canary-3", "SPILLWAY_INGEST__MEMORY=64MiB"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Effective()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"memory: 64MiB", "spill_after: 1m30s", "password: (secret)", "on_full: block", "commit_after: safe", "data_dir: /d", "topics:\n                - t\n"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("it lacks %q:\n%s", want, b)
		}
	}
	if strings.Contains(string(b), "canary") || strings.Contains(string(b), "tls:") {
		t.Errorf("it has a secret, or what is not there:\n%s", b)
	}
	c.Ingest.Sources["s"].SASL, c.Delivery["k"].Kafka.SASL = nil, nil
	c.Security.OIDC.JWKSURL = "https://issuer/keys"
	if b, err = c.Effective(); err != nil {
		t.Fatal(err)
	}
	again, err := Parse("x.yaml", b, nil)
	if err != nil {
		t.Fatalf("%v in\n%s", err, b)
	}
	again.file, again.warnings, c.warnings = c.file, nil, nil
	if !reflect.DeepEqual(c.Ingest, again.Ingest) || !reflect.DeepEqual(c.Buffer, again.Buffer) || !reflect.DeepEqual(c.Security, again.Security) {
		t.Errorf("it is read as something else:\n%s", b)
	}
}
