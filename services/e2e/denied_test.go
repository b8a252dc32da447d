package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// TestTopicsThatAreDenied: of the topics that a delivery writes to it may not see one, may see
// but not write to another, and a third takes small records only. The records for those, and no
// others, wait or are dead-lettered, as the configuration says. What waits is delivered when the
// broker allows it.
func TestTopicsThatAreDenied(t *testing.T) {
	for _, onDenied := range []string{"wait", "dead_letter"} {
		t.Run(onDenied, func(t *testing.T) {
			t.Parallel()
			const n, large = 4_000, 40
			p := newRoute(t, stack.kafka)
			writer := newPeer(t, "SCRAM-SHA-256", "writer-"+p.topic)
			writer.trust(authority)
			writer.right()
			p.rewrite(fmt.Sprintf("topics: [%q]", p.topic), fmt.Sprintf("topics: [%q]", "re:"+p.topic+".*"),
				fmt.Sprintf("brokers: [%q], topic", stack.kafka.addr()), writer.config(stack.kafka)+", on_denied: "+onDenied+", topic")
			open, hidden, readOnly, small := p.topic+"-open", p.topic+"-hidden", p.topic+"-read-only", p.topic+"-small"
			all := []string{open, hidden, readOnly, small}
			limit := "5000"
			for _, topic := range all {
				createTopic(t, stack.kafka, topic, nil)
				configs := map[string]*string{}
				if topic == small {
					configs["max.message.bytes"] = &limit
				}
				createTopic(t, stack.kafka, "out-"+topic, configs)
			}
			allow(t, writer.principal(), kadm.NewACLs().Topics("out-"+open, "out-"+small), kadm.OpWrite)
			allow(t, writer.principal(), kadm.NewACLs().Topics("out-"+readOnly), kadm.OpDescribe)
			for _, topic := range all {
				if err := newProducer(t, stack.kafka, topic).produce(n, 0); err != nil {
					t.Fatal(err)
				}
			}
			// Among the small ones, so that batches have both.
			client := newClient(t, stack.kafka)
			for i := range large {
				if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: small, Partition: int32(i % partitions), Value: make([]byte, 6_000)}).FirstErr(); err != nil {
					t.Fatal(err)
				}
			}
			late := newProducer(t, stack.kafka, small)
			late.written.Store(n)
			if err := late.produce(n, 0); err != nil {
				t.Fatal(err)
			}

			p.startRoute()
			eventually(t, 30*time.Second, "the open topic is delivered", func() error { return p.settledTopic(open, n) })
			eventually(t, 30*time.Second, "the topic of small records is delivered", func() error { return p.settledTopic(small, 2*n+large) })
			tallyTopic(t, stack.kafka, "out-"+open, n).check(t, "out-"+open, false)
			tallyTopic(t, stack.kafka, "out-"+small, 2*n).check(t, "out-"+small, false)
			p.checkDeadLetters(small, large, "refuses the record of 6000 bytes")
			if onDenied == "dead_letter" {
				for _, topic := range []string{hidden, readOnly} {
					eventually(t, 30*time.Second, topic+" is dead-lettered", func() error { return p.settledTopic(topic, n) })
					p.checkDeadLetters(topic, n, "Topic Authorization Failed")
					tallyTopic(t, stack.kafka, "out-"+topic, 0).check(t, "out-"+topic, false)
				}
				return
			}
			for _, topic := range []string{hidden, readOnly} {
				eventually(t, 30*time.Second, topic+" waits", func() error { return p.waits(topic, n) })
			}
			if words := p.kafka.logTail(100); !strings.Contains(words, "Topic Authorization Failed") {
				t.Errorf("the log does not tell what is denied:\n%s", words)
			}
			allow(t, writer.principal(), kadm.NewACLs().Topics("out-"+hidden, "out-"+readOnly), kadm.OpWrite)
			for _, topic := range []string{hidden, readOnly} {
				eventually(t, 30*time.Second, topic+" is delivered", func() error { return p.settledTopic(topic, n) })
				p.checkDeadLetters(topic, 0, "")
				tallyTopic(t, stack.kafka, "out-"+topic, n).check(t, "out-"+topic, false)
			}
		})
	}
}

// checkDeadLetters says that n records of a topic are dead-lettered for a reason, and nothing
// else is undelivered.
func (p *pipeline) checkDeadLetters(topic string, n int64, reason string) {
	p.t.Helper()
	got := int64(0)
	for _, u := range p.undelivered(topic) {
		if u.Outcome != spillwayv1.Outcome_OUTCOME_DEAD_LETTERED || !strings.Contains(u.Reason, reason) {
			p.t.Errorf("undelivered: %v", u)
		}
		got += u.Range.Next - u.Range.First
	}
	if got != n {
		p.t.Errorf("%s: %d dead letters, want %d", topic, got, n)
	}
}

// TestSourceTopicsThatAreDenied: ingest may not read one of its topics, then it may, then it may
// not any more, and in the end it may again. The other topic flows all the time, and nothing is
// lost.
func TestSourceTopicsThatAreDenied(t *testing.T) {
	t.Parallel()
	const n = 2_000
	p := newRoute(t, stack.kafka)
	reader := newPeer(t, "SCRAM-SHA-512", "reader-"+p.topic)
	reader.trust(authority)
	reader.right()
	open, denied := p.topic+"-open", p.topic+"-denied"
	p.rewrite(fmt.Sprintf("brokers: [%q], group", stack.kafka.addr()), reader.config(stack.kafka)+", group",
		fmt.Sprintf("topics: [%q]", p.topic), fmt.Sprintf("topics: [%q, %q]", open, denied))
	may := kadm.NewACLs().Topics(denied)
	allow(t, reader.principal(), kadm.NewACLs().Topics(open).Groups(p.topic), kadm.OpRead)
	sources := map[string]*producer{}
	for _, topic := range []string{open, denied} {
		createTopic(t, stack.kafka, topic, nil)
		sources[topic] = newProducer(t, stack.kafka, topic)
	}
	produce := func() {
		t.Helper()
		for _, source := range sources {
			if err := source.produce(n, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	flows := func(topic string, want int64) {
		t.Helper()
		eventually(t, 30*time.Second, topic+" flows", func() error { return p.settledTopic(topic, want) })
	}
	p.startRoute()
	produce()
	flows(open, n)
	if err := p.settledTopic(denied, 0); err != nil {
		t.Error(err)
	}
	allow(t, reader.principal(), may, kadm.OpRead)
	flows(denied, n)
	if _, err := kadm.NewClient(newClient(t, stack.kafka)).DeleteACLs(t.Context(), may); err != nil {
		t.Fatal(err)
	}
	produce()
	flows(open, 2*n)
	if settled, _, err := p.topicState(denied); settled > 2*n || err != nil {
		t.Error(settled, err)
	}
	allow(t, reader.principal(), may, kadm.OpRead)
	flows(denied, 2*n)
	produce()
	for topic := range sources {
		flows(topic, 3*n)
		tallyTopic(t, stack.kafka, "out-"+topic, 3*n).check(t, topic, false)
	}
}
