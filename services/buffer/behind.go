package buffer

import (
	"log/slog"
	"sync/atomic"

	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/backoff"
)

// behind says when Spillway has committed further in the group of a source than the ledger of a
// queue says is safe. A ledger never takes back what was safe, whatever is done to subscriptions:
// so its end was lost, as in an unclean election of its topic or with the disk that had it, or an
// older copy was restored; or the group has read for another queue. It is no reason to refuse
// anything: all from safe on is delivered again, and nothing is lost.
type behind struct {
	log *slog.Logger
	few backoff.Few
	n   atomic.Int64
}

// compare looks at what an ingest has committed when it is assigned a partition.
func (b *behind) compare(at queue.Assigned, committed *int64) {
	// The offsets of another incarnation begin at 0 again. The group may have those of the one before.
	if committed == nil || !at.Known || at.Partition.Incarnation > 0 || *committed <= at.Safe {
		return
	}
	b.n.Add(1)
	b.few.Tell(func(more bool) {
		if more {
			b.log.Error("Spillway has committed further than the ledger says is safe in more partitions; spillway_buffer_ledger_behind_total counts them")
			return
		}
		b.log.Error("Spillway has committed further in the source's group than the ledger says is safe: the end of the ledger was lost, or an older copy of it was restored, or the group has read for another queue; what came after the safe offset is delivered again",
			"topic", at.Partition.Topic, "partition", at.Partition.Number, "committed", *committed, "safe", at.Safe, "todo", "see docs/runbooks.md#spillwayledgerbehind")
	})
}

func (b *behind) times() int64 { return b.n.Load() }
