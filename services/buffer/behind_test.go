package buffer

import (
	"log/slog"
	"testing"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/config"
)

// TestTheLedgerIsBehind: what an ingest has committed beyond the safe offset is counted and said,
// and decides nothing.
func TestTheLedgerIsBehind(t *testing.T) {
	t.Parallel()
	var out lines
	r := start(t, t.TempDir(), func(_ *config.Queue, d *Deps) { d.Log = slog.New(slog.NewTextHandler(&out, nil)) })
	in := r.appendStream()
	r.appended(in, batch("t", 0, 10, "v"))
	assign := func(topic string, committed *int64) *spillwayv1.PartitionAssigned {
		t.Helper()
		r.send(in, &spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Assign{Assign: &spillwayv1.AssignPartition{Source: source(topic), CommittedOffset: committed}}})
		for {
			m, err := in.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if a := m.GetAssigned(); a != nil {
				return a
			}
		}
	}
	at := func(n int64) *int64 { return &n }
	counted := func(want int64) {
		t.Helper()
		if n := r.service.queues["c"].behind.times(); n != want {
			t.Errorf("counted %d, want %d", n, want)
		}
	}
	assign("t", nil)
	assign("t", at(0))
	assign("unknown", at(50))
	counted(0)
	if a := assign("t", at(1_000)); !a.Known || a.ResumeOffset != 10 {
		t.Errorf("assigned %v", a)
	}
	counted(1)
	out.await(t, "level=ERROR", "the end of the ledger was lost", "committed=1000")
	r.service.queues["c"].behind.compare(queue.Assigned{Known: true, Partition: queue.Partition{Incarnation: 1}}, at(7)) // of the topic before
	counted(1)
}
