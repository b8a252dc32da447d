package buffer

import (
	"log/slog"
	"sync"
	"time"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// behind says when Spillway has committed further in the group of a source than the ledger of a
// queue says is safe. A ledger never takes back what was safe, whatever is done to subscriptions:
// so its end was lost, as in an unclean election of its topic or with the disk that had it, or an
// older copy was restored; or the group has read for another queue. It is no reason to refuse
// anything: all from safe on is delivered again, and nothing is lost.
type behind struct {
	log *slog.Logger

	mu    sync.Mutex
	n     int64
	since time.Time
	said  int
}

// compare looks at what an ingest has committed when it is assigned a partition.
func (b *behind) compare(at queue.Assigned, committed *int64) {
	const (
		most   = 8 // lines
		period = time.Minute
	)
	// In another incarnation the offsets begin anew, and the group may have those of the one
	// before.
	if committed == nil || !at.Known || at.Partition.Incarnation > 0 || *committed <= at.Safe {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.n++
	if time.Since(b.since) > period {
		b.since, b.said = time.Now(), 0
	}
	if b.said++; b.said <= most {
		b.log.Error("Spillway has committed further in the source's group than the ledger says is safe: the end of the ledger was lost, or an older copy of it was restored, or the group has read for another queue; what came after the safe offset is delivered again",
			"topic", at.Partition.Topic, "partition", at.Partition.Number, "committed", *committed, "safe", at.Safe, "todo", "see docs/runbooks.md#spillwayledgerbehind")
	} else if b.said == most+1 {
		b.log.Error("Spillway has committed further than the ledger says is safe in more partitions; spillway_buffer_ledger_behind_total counts them")
	}
}

func (b *behind) times() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.n
}
