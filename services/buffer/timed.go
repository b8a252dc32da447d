package buffer

import (
	"time"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// timedStore tells how long each group takes to be durable, and how long one has taken already.
type timedStore struct {
	queue.Store
	of   *opened
	note func(time.Duration)
}

// writing notes when the write that is under way began.
func (o *opened) writing(began time.Time) {
	o.since.Lock()
	defer o.since.Unlock()
	o.began = began
}

// waits is for how long a write has been under way; 0: none is.
func (o *opened) waits() time.Duration {
	o.since.Lock()
	defer o.since.Unlock()
	if o.began.IsZero() {
		return 0
	}
	return time.Since(o.began)
}

// Append implements queue.Store.
func (s timedStore) Append(entries []queue.Entry) ([]queue.Ref, error) {
	began := time.Now()
	s.of.writing(began)
	refs, err := s.Store.Append(entries)
	s.of.writing(time.Time{})
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
