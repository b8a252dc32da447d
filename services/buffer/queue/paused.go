package queue

import (
	"context"
	"fmt"
	"maps"
	"slices"
)

// maxPaused bounds the sources and deliveries that a queue notes as paused.
const maxPaused = 200

// pausedOne names a source or a delivery that is paused in all of its instances. They hold
// themselves: the queue keeps the pause and tells them, on their streams.
type pausedOne struct {
	Cluster  string `json:"c,omitempty"`        // of a source
	Source   string `json:"source,omitempty"`   // its name in the configuration
	Sub      int64  `json:"sub,omitempty"`      // the subscription of a delivery
	Delivery string `json:"delivery,omitempty"` // its name in the configuration
}

func (o *pausedOne) compare(p pausedOne) int {
	switch {
	case *o == p:
		return 0
	case o.Sub < p.Sub || o.Sub == p.Sub && o.Cluster+"\x00"+o.Source+o.Delivery < p.Cluster+"\x00"+p.Source+p.Delivery:
		return -1
	}
	return 1
}

// holdChange pauses a source or a delivery, or resumes it.
type holdChange struct {
	pausedOne
	Paused bool `json:"paused,omitempty"`
}

// PauseSource notes that a source of the ingest is paused, or is not any more, for all ingests
// that read it, and returns when that is durable. They hear of it from Next.
func (w *Watcher) PauseSource(ctx context.Context, source string, paused bool) error {
	return w.q.holdOne(ctx, paused, func() (pausedOne, error) {
		if source == "" {
			return pausedOne{}, fmt.Errorf("%w pause: it names no source", ErrInvalid)
		}
		return pausedOne{Cluster: w.cluster, Source: source}, validateLength("source", source)
	})
}

// PausedSources returns the names of the sources of the ingest's cluster that are paused.
func (w *Watcher) PausedSources() []string {
	w.q.mu.Lock()
	defer w.q.mu.Unlock()
	return w.q.pausedSourcesLocked(w.cluster)
}

func (q *Queue) pausedSourcesLocked(cluster string) []string {
	names := []string{}
	for one := range q.paused {
		if one.Source != "" && one.Cluster == cluster {
			names = append(names, one.Source)
		}
	}
	slices.Sort(names)
	return names
}

// SetDelivery says which delivery the session is one of, and returns whether that is paused. From
// now on the session is told, by Events, when that changes.
func (s *Session) SetDelivery(name string) (paused bool, err error) {
	if err := validateLength("delivery", name); err != nil {
		return false, err
	}
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	s.delivery = name
	return s.q.paused[pausedOne{Sub: s.sub.id, Delivery: name}], nil
}

// PauseDelivery notes that the session's delivery is paused, or is not any more, in all of its
// sessions, and returns when that is durable. They hear of it from Events.
func (s *Session) PauseDelivery(ctx context.Context, paused bool) error {
	return s.q.holdOne(ctx, paused, func() (pausedOne, error) {
		switch {
		case !s.live:
			return pausedOne{}, s.goneLocked()
		case s.delivery == "":
			return pausedOne{}, fmt.Errorf("%w pause: the session did not say which delivery it is of", ErrInvalid)
		}
		return pausedOne{Sub: s.sub.id, Delivery: s.delivery}, nil
	})
}

func validateLength(what, name string) error {
	if len(name) > MaxNameBytes {
		return fmt.Errorf("%w %s %.100q…: its name has %d bytes, at most %d", ErrInvalid, what, name, len(name), MaxNameBytes)
	}
	return nil
}

// holdOne writes a change of what is paused. One that changes nothing is written, too: who asked
// for it is told.
func (q *Queue) holdOne(ctx context.Context, paused bool, which func() (pausedOne, error)) error {
	return q.manage(ctx, func() (*change, error) {
		one, err := which()
		if err != nil {
			return nil, err
		}
		if paused && !q.paused[one] && len(q.paused) >= maxPaused {
			return nil, fmt.Errorf("%w: %d sources and deliveries of the queue are paused", ErrTooMany, len(q.paused))
		}
		return &change{Hold: &holdChange{one, paused}}, nil
	})
}

// holdChangeLocked applies a change of what is paused, and tells those that it is about.
func (q *Queue) holdChangeLocked(c *holdChange) {
	if c.Paused {
		q.paused[c.pausedOne] = true
	} else {
		delete(q.paused, c.pausedOne)
	}
	if c.Source != "" {
		for w := range q.watchers {
			if w.cluster == c.Cluster {
				w.paused = q.pausedSourcesLocked(c.Cluster)
				w.signalLocked()
			}
		}
		return
	}
	if sub := q.subscriptionByID(c.Sub); sub != nil {
		for _, s := range sub.sessions {
			if s.delivery == c.Delivery {
				paused := c.Paused
				s.tellLocked(Event{Paused: &paused})
			}
		}
	}
}

// pausedLocked lists what is paused, for a snapshot.
func (q *Queue) pausedLocked() []pausedOne {
	return slices.SortedFunc(maps.Keys(q.paused), func(a, b pausedOne) int { return a.compare(b) })
}
