package owners

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spillwayio/spillway/services/internal/backoff"
)

// Shard is one that the group has given to this buffer.
type Shard struct {
	m      *Member
	number int
	cancel context.CancelCauseFunc

	// Guarded by Member.mu.
	state State
	epoch uint64
	since time.Time // of the state
	stuck func() time.Duration
}

// Number is from 0.
func (s *Shard) Number() int { return s.number }

// Watch has the member ask for how long the shard has waited in vain for Kafka: for the answer to
// its oldest write, or for anything to read while it is opened. 0: it does not wait.
func (s *Shard) Watch(stuck func() time.Duration) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.stuck = stuck
}

// Opened tells that this buffer has taken the shard over, with which epoch.
func (s *Shard) Opened(epoch uint64) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if s.state == Opening {
		s.state, s.since = Open, time.Now()
	}
	s.epoch = epoch
	delete(s.m.unable, s.number)
}

// start begins to serve a shard. It needs the lock.
func (m *Member) start(number int) {
	ctx, cancel := context.WithCancelCause(m.serving)
	s := &Shard{m: m, number: number, cancel: cancel, state: Opening, since: time.Now()}
	m.held[number] = s
	m.running.Go(func() {
		defer cancel(nil)
		s.run(ctx)
	})
}

// run serves the shard until it is taken away, also over errors.
func (s *Shard) run(ctx context.Context) {
	m, wait := s.m, backoff.Backoff{Initial: time.Second, Max: 15 * time.Second}
	for {
		err := m.deps.Serve(ctx, s)
		fenced := errors.Is(err, ErrFenced)
		if fenced {
			m.deps.Log.Info("another buffer has taken a shard; it is no longer served here", "shard", s.number, "because", err)
		}
		m.mu.Lock()
		s.epoch, s.stuck = 0, nil
		if ctx.Err() != nil || fenced {
			delete(m.held, s.number)
			m.fenced[s.number] = fenced
			m.rejoinLocked(fenced)
			m.mu.Unlock()
			return
		}
		if err == nil {
			err = errors.New("it ended by itself")
		}
		s.state, s.since = Opening, time.Now()
		m.nameLocked(s.number, err.Error())
		m.mu.Unlock()
		m.deps.Log.Warn("a shard cannot be served; trying again unless another buffer can", "shard", s.number, "error", err)
		_ = wait.Wait(ctx)
	}
}

// close has the shard given up. It needs the lock.
func (s *Shard) close(cause error) {
	if s.state != Closing {
		s.state, s.since = Closing, time.Now()
		s.cancel(cause)
	}
}

// hangs says whether the shard was given up and does not end. It needs the lock.
func (s *Shard) hangs() bool { return s.state == Closing && time.Since(s.since) >= closingFor }

// nameLocked names a shard as one that this buffer cannot serve, for a while, so that the leader
// gives it to another buffer that can.
func (m *Member) nameLocked(shard int, reason string) {
	const longest = 300 // bytes of a reason
	if len(reason) > longest {
		reason = reason[:longest]
	}
	now := time.Now()
	t, known := m.unable[shard]
	if !known {
		t.since = now
	}
	t.reason = reason
	if !known || !now.Before(t.until) {
		t.until = now.Add(unableFor)
		m.rejoinLocked(true)
	}
	m.unable[shard] = t
}

// trouble is why a shard cannot be served.
type trouble struct {
	reason       string
	since, until time.Time
}

// lookForStuck names shards that have waited for too long.
func (m *Member) lookForStuck() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.held {
		waited, limit := time.Duration(0), stuckAfter
		switch {
		case s.hangs():
			m.nameLocked(s.number, "it was given up here and does not end")
			continue
		case s.state == Closing:
			continue
		case s.stuck != nil:
			waited = s.stuck()
		case s.state == Opening:
			waited, limit = time.Since(s.since), openingFor
		}
		if waited >= limit {
			m.nameLocked(s.number, fmt.Sprintf("Kafka has not answered it for %v", waited.Round(time.Second)))
		} else if s.state == Open && time.Now().After(m.unable[s.number].until) {
			delete(m.unable, s.number)
		}
	}
}
