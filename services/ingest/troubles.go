package ingest

import (
	"log/slog"
	"sync"

	"github.com/spillwayio/spillway/services/internal/backoff"
)

// troubles is one trouble that many partitions may have at a time. It begins with the first of
// them and is over with the last, so that an outage is not logged for each partition.
type troubles struct {
	trouble *backoff.Trouble

	mu sync.Mutex
	in map[*partition]struct{}
}

func newTroubles(log *slog.Logger, what, recovered string) *troubles {
	return &troubles{trouble: backoff.NewTrouble(log, what, recovered), in: make(map[*partition]struct{})}
}

// note notes a partition's failure.
func (t *troubles) note(p *partition, err error) {
	t.mu.Lock()
	t.in[p] = struct{}{}
	t.mu.Unlock()
	t.trouble.Note(err)
}

// over notes that a partition has what failed.
func (t *troubles) over(p *partition) { t.end(p, (*backoff.Trouble).Over) }

// ended notes that a partition is no longer read here.
func (t *troubles) ended(p *partition) { t.end(p, (*backoff.Trouble).GivenUp) }

func (t *troubles) end(p *partition, last func(*backoff.Trouble)) {
	t.mu.Lock()
	_, was := t.in[p]
	delete(t.in, p)
	none := was && len(t.in) == 0
	t.mu.Unlock()
	if none {
		last(t.trouble)
	}
}

func (t *troubles) err() error { return t.trouble.Err() }
