package ingest

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

const (
	// rivalGone is for how long a group has to be without another pipeline's members until it is
	// joined: those may only be starting anew.
	rivalGone = 30 * time.Second
	// rivalAgain is after how long it is said again that the group is another pipeline's.
	rivalAgain = 10 * time.Minute
)

// rivals keeps whether the group is another pipeline's.
type rivals struct {
	mu   sync.Mutex
	err  error     // nil: it is not
	seen time.Time // a member of the other was last
	said time.Time
}

// note says that the group is another pipeline's, now and then.
func (r *rivals) note(log *slog.Logger, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil || r.err.Error() != err.Error() || time.Since(r.said) >= rivalAgain {
		log.Error("two pipelines read the same topics in one group", "error", err)
		r.said = time.Now()
	}
	r.err, r.seen = err, time.Now()
}

// over notes that the group is this pipeline's. It says whether it was not.
func (r *rivals) over(log *slog.Logger) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.err != nil
	if was {
		log.Info("recovered: no other pipeline reads in the group")
	}
	r.err = nil
	return was
}

// lately returns the error about a member of another pipeline that was seen not long ago.
func (r *rivals) lately() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil && time.Since(r.seen) < rivalGone {
		return r.err
	}
	return nil
}

func (r *rivals) current() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// ledger is for which data the source reads, as far as the buffers have told.
func (s *source) ledger() kafkaclient.Ledger {
	s.mu.Lock()
	owners := s.owners
	s.mu.Unlock()
	l := kafkaclient.Ledger{Queue: s.cfg.Queue, Lives: make([]string, len(owners))}
	for i, o := range owners {
		l.Lives[i] = o.seen.Life()
	}
	return l
}

// lookForRivals returns an error when the group is another pipeline's. It does not join to find
// out, so that the other is not disturbed. While the group divides its partitions nobody can tell;
// then its leader decides.
func (s *source) lookForRivals(ctx context.Context, group *kafkaclient.Group) error {
	members, err := group.Members(ctx)
	switch {
	case err != nil:
		s.log.Debug("cannot look at the group's members", "group", s.cfg.Group, "error", err)
		return nil
	case members.Same: // its leader decides, if there are others, too
		return nil
	case len(members.Rivals) > 0:
		return group.Rival(members)
	}
	return s.rivals.lately()
}

// yield leaves the group to another pipeline for a while. What the buffer says of its data is
// asked for anew after that.
func (s *source) yield(ctx context.Context, rival error) {
	if rival != s.rivals.lately() { // seen again
		s.rivals.note(s.log, rival)
	}
	s.onReady(false, rival.Error())
	sleep(ctx, topicPoll)
}
