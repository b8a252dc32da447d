package ingest

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/spillwayio/spillway/services/internal/backoff"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

// strangers says that somebody else has committed the group's offsets.
type strangers struct {
	log *slog.Logger
	few backoff.Few
}

// note is called for a partition whose committed offset is neither the safe one nor Spillway's.
func (s *strangers) note(p *partition, committed, safe, resume int64) {
	s.few.Tell(func(more bool) {
		if more {
			s.log.Warn("the committed offsets of more partitions were changed by somebody else", "first_of_them", fmt.Sprint(p))
			return
		}
		s.log.Warn("the group's committed offset was changed by somebody else: an operator who reset or deleted it (-1), or another consumer in the group; Spillway goes on where the buffer says, and commits its own offset again; to read records again use SeekSubscription, to begin elsewhere give the source a new group and queue",
			"topic", p.topic, "partition", p.number, "committed_by_others", committed, "safe", safe, "going_on_at", resume)
	})
}

// lookAtCommits says when somebody else has committed, or deleted, offsets of the group meanwhile:
// another member of the group, or a transaction. It has Spillway's own committed again.
func (s *source) lookAtCommits(ctx context.Context, group *kafkaclient.Group, assignment *kafkaclient.Assignment, partitions []*partition) {
	before := make([]int64, len(partitions))
	for i, p := range partitions {
		before[i] = p.committed.Load()
	}
	found, err := group.Committed(ctx, assignment.Partitions)
	if err != nil {
		s.log.Debug("cannot look at the group's committed offsets", "group", s.cfg.Group, "error", err)
		return
	}
	for i, p := range partitions {
		now, ok := found[p.topic][p.number]
		// One that was committed here meanwhile may or may not be what was found.
		if !ok || now.Ours || now.Offset == before[i] || before[i] < 0 || p.safe.Load() < 0 {
			continue
		}
		if p.committed.CompareAndSwap(before[i], now.Offset) { // so that the next commit has it
			s.strangers.note(p, now.Offset, p.safe.Load(), p.position.Load())
		}
	}
}

// undecided says that open transactions hold back records.
type undecided struct {
	mu   sync.Mutex
	said bool
}

// longUndecided is how long a transaction may be open before there is a line in the log.
// Producers' transactions end within a minute, unless their transaction.timeout.ms is longer.
const longUndecided = time.Minute

// lookAtTransactions says when records wait for the decision of a transaction for long, and when
// that is over.
func (s *source) lookAtTransactions(partitions []*partition) {
	s.undecided.mu.Lock()
	defer s.undecided.mu.Unlock()
	var worst *partition
	held, number := int64(0), 0
	for _, p := range partitions {
		since := p.undecided.Load()
		if since == 0 || time.Since(time.UnixMilli(since)) < longUndecided {
			continue
		}
		number++
		held += p.end.Load() - p.stable.Load()
		if worst == nil || since < worst.undecided.Load() {
			worst = p
		}
	}
	switch {
	case number > 0 && !s.undecided.said:
		s.undecided.said = true
		s.log.Warn("an open transaction holds back records: they are read when its producer commits or aborts it, or when its transaction.timeout.ms is over; kafka-transactions.sh find-hanging finds one that is left over",
			"partitions", number, "offsets", held, "topic", worst.topic, "partition", worst.number, "from_offset", worst.stable.Load(),
			"end", worst.end.Load(), "since", time.UnixMilli(worst.undecided.Load()).UTC().Format(time.RFC3339))
	case number == 0 && s.undecided.said:
		s.undecided.said = false
		s.log.Info("recovered: no open transaction holds back records")
	}
}
