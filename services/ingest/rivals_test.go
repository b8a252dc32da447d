package ingest

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillwayio/spillway/services/internal/config"
)

// startBufferOf starts a buffer whose data has a name.
func startBufferOf(t *testing.T, life string) *fakeBuffer {
	t.Helper()
	b := startBuffer(t)
	b.set(func() { b.life = life })
	return b
}

// TestTwoPipelinesInOneGroup: a second pipeline in the group of the first gets nothing, and says
// why, and the first goes on with all partitions.
func TestTwoPipelinesInOneGroup(t *testing.T) {
	kafka := startKafka(t, 4, topic)
	mine, other := startBufferOf(t, "mine"), startBufferOf(t, "other")
	first := kafka.ingest(mine).sources[0]
	waitFor(t, "all partitions", func() bool { return len(first.partitionStatus()) == 4 })
	var log logged
	var ready readiness
	source := kafka.source()
	source.Queue = "q2"
	second := kafka.ingestWith(other, map[string]*config.Source{"s": source}, Deps{Log: log.logger(), Instance: "second", OnReady: ready.set}).sources[0]
	told := func(s string) bool {
		for _, part := range []string{"group g", "spillway-test", "queue q with the data mine", "queue q2 with the data other", "a group of its own"} {
			if !strings.Contains(s, part) {
				return false
			}
		}
		return true
	}
	waitFor(t, "the second to say why it does not read", func() bool {
		is, reason := ready.get()
		return !is && told(reason)
	})
	if n := log.count("level=ERROR", "queue q with the data mine"); n != 1 {
		t.Errorf("%d errors in the log", n)
	}
	if got := second.status(); !strings.Contains(got.State, "another pipeline") || !told(got.LastError) {
		t.Errorf("the second is %q: %s", got.State, got.LastError)
	}
	kafka.produce(numbered(400, 4, 0)...)
	checkOnce(t, mine, 400)
	if n := other.count(); n != 0 {
		t.Errorf("the second has %d records", n)
	}
}

// TestTwoPipelinesJoinAtOnce: where neither was first, one gets everything.
func TestTwoPipelinesJoinAtOnce(t *testing.T) {
	kafka := startKafka(t, 4, topic)
	kafka.produce(numbered(400, 4, 0)...)
	mine, other := startBufferOf(t, "mine"), startBufferOf(t, "other")
	a, b := kafka.ingest(mine).sources[0], kafka.ingest(other).sources[0]
	waitFor(t, "one to give way", func() bool { return a.rivals.current() != nil || b.rivals.current() != nil })
	waitFor(t, "all records in one place", func() bool { return mine.count() == 400 || other.count() == 400 })
	// The one that reads may join anew when the other leaves, and sees it as a rival until then.
	waitFor(t, "one to read all partitions", func() bool { return len(a.partitionStatus())+len(b.partitionStatus()) == 4 })
}

// TestInstancesOfOnePipeline share the partitions, also after their buffer lost its data.
func TestInstancesOfOnePipeline(t *testing.T) {
	kafka, buffer := startKafka(t, 4, topic), startBufferOf(t, "before")
	a := kafka.ingest(buffer).sources[0]
	waitFor(t, "all partitions", func() bool { return len(a.partitionStatus()) == 4 })
	buffer.set(func() { buffer.life, buffer.breakAfter = "after", 1 })
	kafka.produce(numbered(4, 4, 0)...)
	b := kafka.ingest(buffer).sources[0]
	waitFor(t, "half of the partitions each", func() bool { return len(a.partitionStatus()) == 2 && len(b.partitionStatus()) == 2 })
}

// TestBuffersBeforeLedgers: where a buffer does not tell which data it has, nothing can be told
// apart.
func TestBuffersBeforeLedgers(t *testing.T) {
	kafka := startKafka(t, 4, topic)
	a, b := kafka.ingest(startBufferOf(t, "named")).sources[0], kafka.ingest(startBuffer(t)).sources[0]
	waitFor(t, "half of the partitions each", func() bool { return len(a.partitionStatus()) == 2 && len(b.partitionStatus()) == 2 })
}

// TestOtherTopicsAreNoRivals: sources of one group may read different topics for different data.
func TestOtherTopicsAreNoRivals(t *testing.T) {
	kafka := startKafka(t, 2, topic, "in2")
	a, b := kafka.ingest(startBufferOf(t, "mine")).sources[0], kafka.ingest(startBufferOf(t, "other"), "in2").sources[0]
	waitFor(t, "all partitions each", func() bool { return len(a.partitionStatus()) == 2 && len(b.partitionStatus()) == 2 })
}

// TestRivalsComeBack: a group is not taken from a pipeline that is only starting anew.
func TestRivalsComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		var r rivals
		if r.lately() != nil || r.over(log) {
			t.Error("there is a rival from the beginning")
		}
		r.note(log, errors.New("rival"))
		time.Sleep(rivalGone - time.Second)
		if r.lately() == nil {
			t.Error("the group is free too soon")
		}
		time.Sleep(time.Second)
		if r.lately() != nil || r.current() == nil {
			t.Error("the group is not free, or its rival forgotten before it is joined")
		}
		if !r.over(log) || r.current() != nil {
			t.Error("it is not over")
		}
	})
}
