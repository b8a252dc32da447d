package kafkasink

import (
	"log/slog"
	"sync"
	"time"
)

// trouble is what the deliveries of several source partitions are up against together: it begins
// with the first of them that fails and is over when none does. Each end is one line in the log.
type trouble struct {
	log *slog.Logger

	mu       sync.Mutex
	failing  int // deliveries that are between a failure and their next success
	err      error
	since    time.Time
	failures int
}

// begin notes the first failure of a delivery, whose owner calls end when it got over it or gave
// up.
func (t *trouble) begin(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failing == 0 {
		t.since, t.failures = time.Now(), 0
		t.log.Warn("cannot produce to Kafka; retrying", "error", err)
	}
	t.failing++
	t.failures++
	t.err = err
}

// again notes a further failure.
func (t *trouble) again(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failures++
	t.err = err
}

// end ends one begin. Only a success is worth a line.
func (t *trouble) end(success bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failing--
	if t.failing > 0 {
		return
	}
	t.err = nil
	if success {
		t.log.Info("recovered: Kafka takes records again", "lasted", time.Since(t.since).Round(time.Millisecond), "failures", t.failures)
	}
}

func (t *trouble) last() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}
