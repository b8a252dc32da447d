package buffer

import (
	"time"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// timedStore tells how long each group takes to be durable.
type timedStore struct {
	queue.Store
	note func(time.Duration)
}

// Append implements queue.Store.
func (s timedStore) Append(entries []queue.Entry) ([]queue.Ref, error) {
	began := time.Now()
	refs, err := s.Store.Append(entries)
	s.note(time.Since(began))
	return refs, err
}

// Check implements queue.Checker for a store that does.
func (s timedStore) Check() error {
	if c, ok := s.Store.(queue.Checker); ok {
		return c.Check()
	}
	return nil
}
