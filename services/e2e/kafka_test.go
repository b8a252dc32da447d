package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// TestTopicsByPattern: a source reads what matches a pattern, also a topic that is created while
// it runs; records of aborted transactions are not delivered.
func TestTopicsByPattern(t *testing.T) {
	t.Parallel()
	const n = 5_000
	p := newPipeline(t, stack.kafka)
	p.rewrite(fmt.Sprintf("topics: [%q]", p.topic), fmt.Sprintf("topics: [%q]", "re:"+p.topic+".*"))
	createTopic(t, stack.kafka, p.topic, nil)
	p.start()
	if err := newProducer(t, stack.kafka, p.topic).produce(n, 0); err != nil {
		t.Fatal(err)
	}
	later := p.topic + "-later"
	createTopic(t, stack.kafka, later, nil)
	transactional := newClient(t, stack.kafka, kgo.TransactionalID(later))
	for i, end := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort, kgo.TryCommit} {
		if err := transactional.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		records := make([]*kgo.Record, 100)
		for j := range records {
			number := j + i/2*100 // those of the aborted transaction are written again by the last
			records[j] = &kgo.Record{Topic: later, Partition: int32(j % partitions), Value: value(number)}
		}
		if err := transactional.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := transactional.EndTransaction(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	hdfsOf := func(topic string) string { return "/e2e/" + topic }
	eventually(t, time.Minute, "both topics are delivered", func() error {
		subs, err := p.subscriptions()
		if err == nil && (subs["hdfs"].DeliveredRecords < n+200 || subs["test"].DeliveredRecords < n+200) {
			err = fmt.Errorf("%d and %d records delivered", subs["hdfs"].DeliveredRecords, subs["test"].DeliveredRecords)
		}
		return err
	})
	eventually(t, time.Minute, "every file is final", func() error { return noOpenFiles(p.hdfs) })
	tallyHDFS(t, hdfsOf(p.topic), n).check(t, "HDFS", false)
	tallyHDFS(t, hdfsOf(later), 200).check(t, "HDFS, the later topic", false)
	tallyTopic(t, stack.kafka, "out-"+later, 200).check(t, "out-"+later, false)
}
