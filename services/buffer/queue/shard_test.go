package queue

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// lastDigit puts partitions of topics into one of three shards.
func lastDigit(_, topic string, number int32) int { return (len(topic) + int(number)) % 3 }

// shardOf makes the harness one of several shards.
func (h *harness) shardOf(number uint16, of int) {
	h.cfg.Shard, h.cfg.Shards, h.cfg.ShardOf = number, of, lastDigit
}

// TestDataKeepsItsShard refuses data under another number, or another number of shards, also when
// a snapshot is all that is left; and opens it again under its own.
func TestDataKeepsItsShard(t *testing.T) {
	single := newHarness(t, all("s"))
	single.append("t", 0, 10)
	single.write()
	several := newHarness(t, all("s"))
	several.store = newFakeStore()
	several.shardOf(1, 3)
	several.reopen()
	several.append("t", 0, 10) // in shard 1
	several.write()
	several.reopen()

	for _, test := range []struct {
		name   string
		h      *harness
		number uint16
		of     int
		want   string // a part of the error; empty: none
	}{
		{"one shard gets others", single, 0, 3, "it is shard 0 of 1, and shard 0 of 3 is configured"},
		{"one shard gets another number", single, 1, 3, "it is shard 0 of 1, and shard 1 of 3 is configured"},
		{"one shard stays", single, 0, 1, ""},
		{"another shard", several, 2, 3, "it is shard 1 of 3, and shard 2 of 3 is configured"},
		{"more shards", several, 1, 4, "it is shard 1 of 3, and shard 1 of 4 is configured"},
		{"no shards", several, 0, 0, "it is shard 1 of 3, and shard 0 of 1 is configured"},
		{"the same shard", several, 1, 3, ""},
	} {
		test.h.shardOf(test.number, test.of)
		_, err := Open(test.h.cfg, test.h.store.open)
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s: %v", test.name, err)
		case test.want != "" && (!errors.Is(err, ErrOtherShard) || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: %v, want %s", test.name, err, test.want)
		}
	}
}

// TestDataWithoutALedgerKeepsItsPartitions refuses partitions of other shards where the data does
// not say whose it is.
func TestDataWithoutALedgerKeepsItsPartitions(t *testing.T) {
	h := newHarness(t, all("s"))
	h.append("t", 0, 10) // shard 1 of 3 would have it
	h.pass(2 * time.Second)
	h.write()
	kept := h.store.entries[:0]
	for _, e := range h.store.entries {
		if e.Kind == BatchEntry {
			kept = append(kept, e)
		}
	}
	if h.store.entries = kept; len(kept) == 0 {
		t.Fatal("no batch is stored")
	}
	h.shardOf(2, 3)
	if _, err := Open(h.cfg, h.store.open); !errors.Is(err, ErrOtherShard) {
		t.Errorf("opened as another shard: %v", err)
	}
	h.shardOf(1, 3)
	if _, err := Open(h.cfg, h.store.open); err != nil {
		t.Errorf("opened as its own shard: %v", err)
	}
}

// TestWatermarkOfAShard waits for the shard's own partitions of what sources read, and for none
// when it has none of them; but not before a source has told what it reads.
func TestWatermarkOfAShard(t *testing.T) {
	h := newHarness(t, all("s"))
	h.store = newFakeStore()
	h.shardOf(1, 3)
	h.reopen()
	s := h.session("s", false, 1000)
	s.WantWatermarks()
	expect := func(what string, want int64) {
		t.Helper()
		h.write()
		h.pass(2 * time.Second)
		if w := told(drain(s)); w.Passed != want {
			t.Fatalf("%s: %d is passed, want %d", what, w.Passed, want)
		}
	}
	expect("nobody has told what is read", 0)
	h.q.ListTopics("k", "src", map[string]int32{"tt": 1}) // in shard 2
	now := h.now
	expect("nothing that is read is in this shard", now.Add(2*time.Second).UnixMilli())

	h.reopen() // as the journal has it
	s = h.session("s", false, 1000)
	s.WantWatermarks()
	now = h.now
	expect("nothing that is read is in this shard after a restart", now.Add(2*time.Second).UnixMilli())

	h.q.ListTopics("k", "src", map[string]int32{"tt": 1, "t": 5}) // 0 and 3 of t are in shard 1
	h.write()
	h.reopen()
	s = h.session("s", false, 1000)
	s.WantWatermarks()
	later := h.now.Add(time.Hour)
	h.now = later
	id := testPartition("t")
	if err := h.q.CaughtUp(id, 0, later.UnixMilli()); err != nil {
		t.Fatal(err)
	}
	expect("partition 3 has not told", 0)
	id.Number = 3
	if err := h.q.CaughtUp(id, 0, later.UnixMilli()-1000); err != nil {
		t.Fatal(err)
	}
	expect("both are at their ends", later.UnixMilli()-1000)
}
