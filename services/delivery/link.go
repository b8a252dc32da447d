package delivery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/backoff"
	"github.com/spillwayio/spillway/services/internal/shards"
)

// link is what a Service has to do with one shard of the queue: one session after the other with
// the buffer that has it. A session begins only after Serve of the one before has returned.
type link struct {
	s           *Service
	log         *slog.Logger
	trouble     *backoff.Trouble // with the buffer
	destination *backoff.Trouble
	seen        *shards.Seen
	failing     time.Time // since when the delivery fails; zero: it does not. Of serve

	// Guarded by Service.mu.
	session *session // nil when there is none
	paused  bool     // the shard's buffer says that the delivery is
	reason  string   // why there is none
}

func newLink(s *Service, shard, of int) *link {
	log := s.log
	if of > 1 {
		log = log.With("shard", shard)
	}
	queue, _, _ := strings.Cut(s.cfg.subscription, "/")
	seen := &shards.Seen{Queue: queue, Number: shard, Of: of, Rival: func(err error) {
		log.Error("two buffers have a shard; the second one is asked for nothing", "error", err)
	}}
	return &link{s: s, log: log, seen: seen, reason: "waiting for the buffer",
		trouble:     backoff.NewTrouble(log, "no session with the buffer", "a session with the buffer is open"),
		destination: backoff.NewTrouble(log, "the destination fails", "the destination takes records again")}
}

// run holds sessions until ctx ends.
func (l *link) run(ctx context.Context, buffers *shards.Buffers) {
	failedAtOnce := false // the session before did
	for ctx.Err() == nil {
		cfg, err := l.sessionConfig(ctx)
		if err != nil {
			l.without(fmt.Sprintf("waiting for the destination: %v", err))
			if l.destination.Failed(ctx, err) != nil {
				return
			}
			continue
		}
		session, err := l.open(ctx, buffers, cfg)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			l.without(fmt.Sprintf("waiting for the buffer: %v", err))
			if l.trouble.Failed(ctx, err) != nil {
				return
			}
			continue
		}
		if !failedAtOnce {
			l.trouble.Over()
		}
		l.s.counters.sessions.Add(1)
		l.begin(session)
		well := time.AfterFunc(shortLived, l.trouble.Over)
		err = l.serve(ctx, session)
		failedAtOnce = well.Stop() && !session.accepted.Load()
		lost := l.finish(session)
		switch {
		case l.s.isStuck():
			l.log.Error("the destination did not stop; the process ends without it", "error", err)
			return
		case ctx.Err() != nil:
			if err != nil {
				l.log.Warn("drained incompletely; what is left is delivered by another session", "error", err)
			}
		case lost != nil:
			_ = l.trouble.Failed(ctx, lost) // the loop looks at ctx
		default:
			if err == nil {
				err = errors.New("the sink stopped")
			}
			_ = l.destination.Failed(ctx, err)
		}
	}
}

// open opens a session with the buffer that has the shard.
func (l *link) open(ctx context.Context, buffers *shards.Buffers, cfg sessionConfig) (*session, error) {
	owner, err := buffers.Owner(ctx, l.seen)
	if err != nil {
		return nil, err
	}
	cfg.buffer = owner.Address
	return openSession(ctx, spillwayv1.NewBufferServiceClient(owner.Conn), cfg, l.log, l.s.counters)
}

// sessionConfig is what the next session asks for.
func (l *link) sessionConfig(ctx context.Context) (sessionConfig, error) {
	l.s.mu.Lock()
	cfg := l.s.cfg
	cfg.paused = l.s.pausedHere
	l.s.mu.Unlock()
	cfg.seen = l.seen
	cfg.memory = max(cfg.memory/int64(l.seen.Of), 1)
	cfg.heard = l.heard
	cfg.acked = func() {
		l.destination.Over()
		l.trouble.Over()
	}
	if t, ok := l.s.sink.(Targeted); ok {
		cluster, topic, err := t.Target(ctx)
		if err != nil {
			return cfg, err
		}
		cfg.target = &spillwayv1.FlowTarget{Cluster: cluster, Topic: topic}
	}
	return cfg, nil
}

// begin makes the session known to the admin API.
func (l *link) begin(session *session) {
	l.log.Info("session opened", "session", session.id, "ordering", l.s.cfg.ordering)
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.session, l.reason = session, ""
	session.Pause(l.s.pausedHere)
	l.s.linksChangedLocked()
}

// without notes why there is no session that works.
func (l *link) without(reason string) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.reason = reason
	l.s.linksChangedLocked()
}

// linksChangedLocked makes the service ready when all links have a session.
func (s *Service) linksChangedLocked() {
	for _, l := range s.links {
		if l.reason != "" {
			reason := l.reason
			if l.seen.Of > 1 {
				reason = fmt.Sprintf("shard %d of %d: %s", l.seen.Number, l.seen.Of, reason)
			}
			s.setReadyLocked(false, reason)
			return
		}
	}
	s.setReadyLocked(true, "")
}

// serve runs the sink on a session until the sink returns.
func (l *link) serve(ctx context.Context, session *session) error {
	sinkCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- l.s.sink.Serve(sinkCtx, session) }()

	l.tellTrouble(session)
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	stop, lost := ctx.Done(), session.Lost()
	var deadline, abandon <-chan time.Time
	for {
		select {
		case err := <-served:
			return err
		case <-look.C:
			l.tellTrouble(session)
		case <-stop:
			stop = nil
			timer := time.NewTimer(drainTimeout)
			defer timer.Stop()
			deadline = timer.C
			l.drain(session)
		case <-lost:
			lost = nil
			l.without(session.Err().Error())
			cancel()
		case <-deadline:
			l.log.Warn("the sink did not finish in time", "after", drainTimeout)
			cancel()
			abandon = time.After(closeTimeout)
		case <-abandon:
			l.s.setStuck()
			return errStuck
		}
	}
}

func (l *link) drain(session *session) {
	l.s.mu.Lock()
	l.s.draining = true
	l.s.mu.Unlock()
	l.without("draining")
	l.log.Info("draining", "leases", session.Held())
	session.Drain()
}

// finish ends the session and returns why it was lost, if it was. A sink that ran into its ctx's
// end may have left leases: closing hands them to other sessions.
func (l *link) finish(session *session) (lost error) {
	lost = session.Err()
	if lost != nil {
		l.without(lost.Error())
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	session.Close(ctx)
	l.s.mu.Lock()
	l.session = nil
	l.s.mu.Unlock()
	return lost
}
