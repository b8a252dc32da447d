package ingest

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/rpc"
	"github.com/spillwayio/spillway/services/internal/shards"
)

// A pause of a source is the buffer's to keep, with each shard of the queue, so that it holds over
// restarts and for all instances. These hear of it on their streams, and hold themselves. A buffer
// of a version before keeps none: with one, a pause is this process's own.

// heard notes which sources a shard's buffer says are paused.
func (o *owner) heard(paused []string) {
	o.s.mu.Lock()
	defer o.s.mu.Unlock()
	o.paused = slices.Contains(paused, o.s.name)
	o.s.pausedLocked("paused by the buffer's word")
}

// pausedLocked holds the source, or lets it go on, as it was told.
func (s *source) pausedLocked(why string) {
	paused := s.pausedHere
	for _, o := range s.owners {
		paused = paused || o.paused
	}
	if s.gate.closed() != paused {
		s.log.Info(why, "paused", paused)
		s.gate.set(paused)
	}
}

// pause pauses the source, or resumes it, in all its instances. kept is false when that is in this
// one only, since the buffer keeps no pauses.
func (s *source) pause(ctx context.Context, paused bool) (kept bool, err error) {
	s.mu.Lock()
	owners, buffers := s.owners, s.buffers
	s.mu.Unlock()
	if buffers == nil || len(owners) == 0 {
		return false, rpc.Error(codes.Unavailable, "NO_BUFFER", 0, "source %s has not reached the buffer yet, which keeps what is paused", s.name)
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	var failed []error
	keeping := 0
	for _, o := range owners {
		switch keeps, err := o.pause(ctx, buffers, paused); {
		case err != nil:
			failed = append(failed, fmt.Errorf("shard %d of %d: %w", o.seen.Number, o.seen.Of, err))
		case keeps:
			keeping++
		}
	}
	if err := errors.Join(failed...); err != nil {
		return false, rpc.Error(codes.Unavailable, "NOT_ALL_SHARDS", 0, "%d of %d shards of queue %s know that source %s is paused=%v; try again: %v",
			len(owners)-len(failed), len(owners), s.cfg.Queue, s.name, paused, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	kept = keeping == len(owners)
	s.pausedHere = paused && !kept
	s.pausedLocked("paused by the admin API")
	if !kept {
		s.log.Warn("the buffer is of a version that keeps no pauses: this one holds for this instance, until it restarts", "paused", paused)
	}
	return kept, nil
}

// pause has the shard's buffer keep whether the source is paused, over a stream of its own, and
// says whether the buffer can.
func (o *owner) pause(ctx context.Context, buffers *shards.Buffers, paused bool) (keeps bool, err error) {
	a, err := o.open(ctx, buffers, nil, nil)
	if err != nil {
		return false, err
	}
	defer a.close()
	if !a.opened.KeepsPauses {
		return false, nil
	}
	if err := a.send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Pause{Pause: &spillwayv1.PauseSourceEverywhere{Source: o.s.name, Paused: paused}}}); err != nil {
		return true, err
	}
	for {
		select {
		case <-a.told:
		case <-a.ctx.Done():
			return true, context.Cause(a.ctx)
		}
		o.s.mu.Lock()
		done := o.paused == paused
		o.s.mu.Unlock()
		if done {
			return true, nil
		}
	}
}
