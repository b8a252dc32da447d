package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestTargetQuota: the target's brokers throttle the delivery to 100 kB a second. Nothing is
// doubled, with and without transactions, the order is kept, no transaction is aborted, and the
// delivery says what it waits for.
func TestTargetQuota(t *testing.T) {
	t.Parallel()
	for _, exactlyOnce := range []bool{false, true} {
		t.Run(map[bool]string{false: "plain", true: "transactions"}[exactlyOnce], func(t *testing.T) {
			t.Parallel()
			target := secondBroker(t)
			if err := target.start(); err != nil {
				t.Fatal(err)
			}
			if _, err := scriptWith(target.run, []string{fmt.Sprint("KAFKA_PORT=", target.port)}, "kafka-configs", "--alter",
				"--add-config", "producer_byte_rate=100000", "--entity-type", "clients", "--entity-name", "spillway"); err != nil {
				t.Fatal(err)
			}
			p := newPipeline(t, target, `topic: "out-%{topic}"}`, fmt.Sprintf(`topic: "out-%%{topic}", exactly_once: %v}`, exactlyOnce))
			const n = 10_000
			createTopic(t, stack.kafka, p.topic, nil)
			if err := newProducer(t, stack.kafka, p.topic).produce(n, 0); err != nil {
				t.Fatal(err)
			}
			p.start()
			p.awaitRest(n, 5*time.Minute, p.hdfs)
			if exactlyOnce {
				checkCommitted(t, target, p.out, n)
			} else {
				tallyTopic(t, target, p.out, n).check(t, p.out, false)
				last := make(map[int]int)
				readTopic(t, target, p.out, func(r *kgo.Record) {
					number, err := numberOf(r.Value)
					if err != nil || number < last[number%partitions] {
						t.Errorf("record %d comes after %d (%v)", number, last[number%partitions], err)
					}
					last[number%partitions] = number
				})
			}
			log := p.kafka.logTail(1000)
			if c := strings.Count(log, "the broker throttles this client"); c != 1 || strings.Contains(log, "no answer within") {
				t.Errorf("the log says %d times that the broker throttles:\n%s", c, log)
			}
			if _, metrics, err := p.kafka.get("/metrics"); err != nil || !strings.Contains(metrics, `spillway_delivery_kafka_throttled_seconds_total{broker=`) {
				t.Errorf("no metric of the throttling: %v", err)
			}
		})
	}
}

// TestRequestAndConnectionQuotas: the target's brokers give the delivery a thousandth of a
// thread's time, and take a connection a second from its address, which they close otherwise.
// Nothing is doubled or out of order.
func TestRequestAndConnectionQuotas(t *testing.T) {
	t.Parallel()
	target := secondBroker(t)
	if err := target.start(); err != nil {
		t.Fatal(err)
	}
	admin := kadm.NewClient(newClient(t, target))
	client, address := "spillway", "127.0.0.1"
	quota := func(kind string, name *string, key string, value float64, remove bool) {
		t.Helper()
		altered, err := admin.AlterClientQuotas(t.Context(), []kadm.AlterClientQuotaEntry{{Entity: kadm.ClientQuotaEntity{{Type: kind, Name: name}},
			Ops: []kadm.AlterClientQuotaOp{{Key: key, Value: value, Remove: remove}}}})
		for _, a := range altered {
			err = errors.Join(err, a.Err)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	p := newPipeline(t, target)
	const n = 20_000
	createTopic(t, stack.kafka, p.topic, nil)
	createTopic(t, target, p.out, nil)
	quota("client-id", &client, "request_percentage", 0.1, false)
	quota("ip", &address, "connection_creation_rate", 1, false)
	p.start()
	source := newProducer(t, stack.kafka, p.topic)
	for range 10 { // many requests
		if err := source.produce(n/10, 0); err != nil {
			t.Fatal(err)
		}
		pause(t, 300*time.Millisecond)
	}
	eventually(t, 2*time.Minute, "everything is delivered", func() error { return p.settled(n, "test") })
	quota("ip", &address, "connection_creation_rate", 0, true)
	tallyTopic(t, target, p.out, n).check(t, p.out, false)
	last := make(map[int]int)
	readTopic(t, target, p.out, func(r *kgo.Record) {
		if number, err := numberOf(r.Value); err != nil || number < last[number%partitions] {
			t.Errorf("record %d comes after %d (%v)", number, last[number%partitions], err)
		} else {
			last[number%partitions] = number
		}
	})
	if log := p.kafka.logTail(1000); !strings.Contains(log, "the broker throttles this client") || strings.Contains(log, "no answer within") {
		t.Errorf("the log does not say that the broker throttles, or takes it for silent:\n%s", log)
	}
}
