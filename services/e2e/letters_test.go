package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestDeadLettersInATopic: copies of dead letters are in a topic of Kafka, each at least once,
// though the delivery dies of SIGKILL, and with the headers of Kafka Connect; the logs have none
// of what the records contain.
func TestDeadLettersInATopic(t *testing.T) {
	t.Parallel()
	const n = 4_000
	dead, canary := newName("dead"), "canary-in-a-header"
	p := newRoute(t, stack.kafka, `topic: "out-%{topic}"}`, fmt.Sprintf("topic: \"out-%%{to}\"}\n    dead_letter_topic: {brokers: [%q], topic: %q}", stack.kafka.addr(), dead))
	createTopic(t, stack.kafka, p.topic, nil)
	client := newClient(t, stack.kafka)
	send := func(from, to int) {
		t.Helper()
		var records []*kgo.Record
		for i := from; i < to; i++ {
			r := &kgo.Record{Topic: p.topic, Partition: int32(i % partitions), Value: value(i), Headers: []kgo.RecordHeader{{Key: "to", Value: []byte(p.topic)}}}
			switch i % 10 {
			case 3: // no target topic
				r.Headers = nil
			case 7: // none that Kafka allows
				r.Headers[0].Value = []byte(canary + " is no name")
			}
			records = append(records, r)
		}
		if err := client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	send(0, n/2)
	p.startRoute()
	p.kafka.kill()
	p.kafka.start()
	send(n/2, n)
	eventually(t, time.Minute, "everything is settled", func() error { return p.settledTopic(p.topic, n) })
	p.checkDeadLetters(p.topic, n/5, "no target topic")

	seen := make(map[int]int)
	readTopic(t, stack.kafka, dead, func(r *kgo.Record) {
		i, err := numberOf(r.Value)
		if err != nil || i%10 != 3 && i%10 != 7 {
			t.Errorf("record %d is a dead letter: %v", i, err)
			return
		}
		seen[i]++
		headers := make(map[string]string)
		for _, h := range r.Headers {
			headers[h.Key] = string(h.Value)
		}
		for key, want := range map[string]string{"topic": p.topic, "partition": fmt.Sprint(i % partitions), "connector.name": "c/test", "stage": "TASK_PUT",
			"exception.class.name": "spillway.DeadLetter"} {
			if got := headers["__connect.errors."+key]; got != want {
				t.Errorf("record %d: %s is %q, want %q", i, key, got, want)
			}
		}
		if headers["__connect.errors.offset"] != fmt.Sprint(i/partitions) || !strings.HasPrefix(headers["__connect.errors.exception.message"], "no target topic") ||
			i%10 == 7 && headers["to"] != canary+" is no name" {
			t.Errorf("record %d: %q", i, headers)
		}
	})
	if len(seen) != n/5 {
		t.Errorf("%d dead letters are in the topic, want %d", len(seen), n/5)
	}
	if topics, err := kadm.NewClient(client).ListTopics(t.Context(), dead); err != nil || !topics.Has(dead) {
		t.Errorf("%v", err)
	}
	for _, s := range []*service{p.buffer, p.ingest, p.kafka} {
		if log := s.logTail(100_000); strings.Contains(log, canary) {
			t.Errorf("the log of %s has what a record contains", s.name)
		}
	}
}
