package delivery

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// A pause of a delivery is the buffer's to keep, with each shard of the queue, so that it holds
// over restarts and for all instances. These hear of it in their sessions, and hold themselves. A
// buffer of a version before keeps none: with one, a pause is this process's own.

// sessionPoll is how often a session is looked for that is not there.
const sessionPoll = 100 * time.Millisecond

var errNoSession = errors.New("there is no session with the buffer")

// pause pauses the delivery, or resumes it, in all its instances. kept is false when that is in
// this one only, since the buffer keeps no pauses.
func (s *Service) pause(ctx context.Context, paused bool) (kept bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	s.mu.Lock()
	links := s.links
	s.mu.Unlock()
	var failed []error
	keeping := 0
	for _, l := range links {
		keeps, err := false, errNoSession
		if session := l.awaitSession(ctx); session != nil {
			keeps, err = session.pauseEverywhere(ctx, paused)
		}
		switch {
		case err != nil:
			failed = append(failed, fmt.Errorf("shard %d of %d: %w", l.seen.Number, l.seen.Of, err))
		case keeps:
			keeping++
		}
	}
	if err := errors.Join(failed...); err != nil {
		return false, rpc.Error(codes.Unavailable, "NOT_ALL_SHARDS", 0, "%d of %d shards of the queue know that delivery %s is paused=%v; try again, or pause its subscription, for which no delivery is needed: %v",
			len(links)-len(failed), len(links), s.name, paused, err)
	}
	kept = keeping == len(links)
	s.pauseHere(paused && !kept)
	s.log.Info("paused by the admin API", "paused", paused)
	if !kept {
		s.log.Warn("the buffer is of a version that keeps no pauses: this one holds for this instance, until it restarts", "paused", paused)
	}
	return kept, nil
}

// awaitSession waits for the link's session, such as between two of them; nil when ctx ends
// before.
func (l *link) awaitSession(ctx context.Context) *session {
	for {
		l.s.mu.Lock()
		session := l.session
		l.s.mu.Unlock()
		if session != nil {
			return session
		}
		select {
		case <-time.After(sessionPoll):
		case <-ctx.Done():
			return nil
		}
	}
}

// pauseHere withholds batches from the sink of this instance, or stops doing so.
func (s *Service) pauseHere(paused bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pausedHere = paused
	for _, l := range s.links {
		if l.session != nil {
			l.session.Pause(paused)
		}
	}
}

// pausedLocked says whether the delivery is paused, as far as is known.
func (s *Service) pausedLocked() bool {
	paused := s.pausedHere
	for _, l := range s.links {
		paused = paused || l.paused
	}
	return paused
}

// heard notes what the shard's buffer says of the delivery.
func (l *link) heard(paused bool) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if l.paused != paused {
		l.log.Info("paused by the buffer's word", "paused", paused)
	}
	l.paused = paused
}

// pauseEverywhere has the buffer keep whether the delivery is paused, and says whether it can.
func (s *session) pauseEverywhere(ctx context.Context, paused bool) (keeps bool, err error) {
	if !s.keeps {
		return false, nil
	}
	s.mu.Lock()
	s.outbox = append(s.outbox, &spillwayv1.ConsumeRequest{Message: &spillwayv1.ConsumeRequest_Pause{Pause: &spillwayv1.PauseEverywhere{Paused: paused}}})
	told := s.told
	s.mu.Unlock()
	s.wakeUp()
	for {
		select {
		case <-told:
		case <-s.lost:
			return true, s.Err()
		case <-ctx.Done():
			return true, fmt.Errorf("the buffer did not answer: %w", ctx.Err())
		}
		s.mu.Lock()
		done := s.stopped == paused
		told = s.told
		s.mu.Unlock()
		if done {
			return true, nil
		}
	}
}

// hear takes the buffer's word on whether the delivery is paused.
func (s *session) hear(paused bool) {
	if s.heard != nil {
		s.heard(paused)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = paused
	close(s.told)
	s.told = make(chan struct{})
}
