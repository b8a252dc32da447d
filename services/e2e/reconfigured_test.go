package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// commitWatch watches the committed offsets of a group, which may only rise.
type commitWatch struct {
	t      testing.TB
	admin  *kadm.Client
	group  string
	mu     sync.Mutex
	most   map[string]int64 // by topic and partition
	fell   []string
	cancel context.CancelFunc
	done   chan struct{}
}

func watchCommitted(t testing.TB, b broker, group string) *commitWatch {
	ctx, cancel := context.WithCancel(context.Background())
	c := &commitWatch{t: t, admin: kadm.NewClient(newClient(t, b)), group: group, most: make(map[string]int64), cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		for ctx.Err() == nil {
			_ = c.look(ctx) // a broker that does not answer is asked again
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}()
	t.Cleanup(c.stop)
	return c
}

func (c *commitWatch) look(ctx context.Context) error {
	offsets, err := c.admin.FetchOffsets(ctx, c.group)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	offsets.Each(func(o kadm.OffsetResponse) {
		key := fmt.Sprintf("%s/%d", o.Topic, o.Partition)
		if o.At >= 0 && o.At < c.most[key] {
			c.fell = append(c.fell, fmt.Sprintf("%s from %d to %d", key, c.most[key], o.At))
		}
		c.most[key] = max(c.most[key], o.At)
	})
	return nil
}

// sum is how many records are committed.
func (c *commitWatch) sum() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := int64(0)
	for _, o := range c.most {
		n += o
	}
	return n
}

func (c *commitWatch) await(n int64) {
	c.t.Helper()
	eventually(c.t, time.Minute, fmt.Sprintf("%d records are committed", n), func() error {
		if got := c.sum(); got != n {
			return fmt.Errorf("%d are", got)
		}
		return nil
	})
}

func (c *commitWatch) stop() {
	c.cancel()
	<-c.done
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.fell) > 0 {
		c.t.Errorf("committed offsets fell: %v", c.fell)
		c.fell = nil
	}
}

// TestConfigurationChangesOverRestarts has a typing error in the topics of a subscription with a
// backlog, which is mended; and then a subscription is ended as documented. Nothing is lost, and
// no committed offset falls.
func TestConfigurationChangesOverRestarts(t *testing.T) {
	const backlog, more = 5_000, 100
	right, wrong := `test: {topics: ["*"], on_full: block}`, `test: {topics: ["oders*"], on_full: block}`
	hdfs := `hdfs: {topics: ["*"], on_full: block}`
	p := newPipeline(t, stack.kafka, hdfs, `hdfs: {topics: ["nothing"], required: false}`)
	createTopic(t, stack.kafka, p.topic, nil)
	source := newProducer(t, stack.kafka, p.topic)
	produce := func(n int) {
		t.Helper()
		if err := source.produce(n, 0); err != nil {
			t.Fatal(err)
		}
	}
	restart := func(edit ...string) {
		t.Helper()
		p.buffer.stop()
		p.rewrite(edit...)
		p.buffer.start()
		p.buffer.waitReady()
		p.ingest.waitReady()
	}
	produce(backlog)
	p.buffer.start()
	p.ingest.start()
	p.buffer.waitReady()
	p.ingest.waitReady()
	offsets := watchCommitted(t, stack.kafka, p.topic)
	offsets.await(backlog)

	restart(right, wrong)
	produce(more)
	offsets.await(backlog + more)
	restart()
	restart(wrong, right)
	produce(more)
	n := backlog + 2*more
	offsets.await(int64(n))
	p.kafka.start()
	p.kafka.waitReady()
	eventually(t, 2*time.Minute, "everything is delivered", func() error { return p.settled(n, "test") })
	tallyTopic(t, stack.kafka, p.out, n).check(t, p.out, false)

	p.kafka.stop()
	restart(right, `other: {topics: ["nothing"], required: false}`, "subscription: c/test", "subscription: c/other")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := spillwayv1.NewBufferAdminServiceClient(p.buffer.conn).DeleteSubscription(ctx, &spillwayv1.DeleteSubscriptionRequest{Name: "c/test"}); err != nil {
		t.Fatal(err)
	}
	restart()
	produce(more)
	offsets.await(int64(n + more))
	queue, err := spillwayv1.NewBufferAdminServiceClient(p.buffer.conn).GetQueue(ctx, &spillwayv1.GetQueueRequest{Name: "c"})
	if err != nil {
		t.Fatal(err)
	}
	if queue.Queue.AppendedRecords != more {
		t.Errorf("%d records were read after the last restart, want %d", queue.Queue.AppendedRecords, more)
	}
	offsets.stop()
}
