package main

import (
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
)

// TestGenerate writes to topics that do not exist, and again to those that then do.
func TestGenerate(t *testing.T) {
	kafka, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer kafka.Close()
	args := []string{"generate", "--brokers", kafka.ListenAddrs()[0], "--topics", "orders,web", "--count", "1500", "--partitions", "3"}

	got := spillway(t, args...)
	if got.status != 0 || !strings.HasPrefix(got.stdout, "orders: 1500 records\nweb: 1500 records\n3000 records in ") {
		t.Fatalf("generate: %+v", got)
	}
	tally := newTally(newTestGenerator(map[string]int64{"orders": 1500, "web": 1500}))
	if err := tally.readTopics(t.Context(), kafka.ListenAddrs()); err != nil {
		t.Fatal(err)
	}
	if tally.distinct != 3000 || tally.doubled != 0 || tally.err("kafka") != nil {
		t.Errorf("%d different records, %d doubled, %v; want 3000", tally.distinct, tally.doubled, tally.err("kafka"))
	}

	if got := spillway(t, args...); got.status != 0 {
		t.Errorf("again: %+v", got)
	}
	tally = newTally(newTestGenerator(map[string]int64{"orders": 1500, "web": 1500}))
	if err := tally.readTopics(t.Context(), kafka.ListenAddrs()); err != nil {
		t.Fatal(err)
	}
	if tally.distinct != 3000 || tally.doubled != 3000 {
		t.Errorf("again: %d different records, %d doubled; want 3000 of each", tally.distinct, tally.doubled)
	}
}

func TestMessageSizes(t *testing.T) {
	for _, size := range []int{25, 40, 200, 5000} {
		g := &generator{size: size}
		m := g.message("orders", 123456789)
		if len(m.Value) != size || !strings.HasPrefix(string(m.Value), "123456789 2") {
			t.Errorf("size %d: %d bytes: %s", size, len(m.Value), m.Value)
		}
	}
}
