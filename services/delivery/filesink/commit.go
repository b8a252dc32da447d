package filesink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/delivery/filesink/serializer"
	"github.com/spillwayio/spillway/services/internal/failpoint"
)

const (
	// parallel is how many files of a commit are worked on at a time.
	parallel = 8
	// maxBroken is how many files of a bucket may wait for recovery before no more are begun. So a
	// directory that cannot be written to does not use up names and entries for as long as that lasts.
	maxBroken = 3
)

// commit is one round: what is collected becomes durable and settled, and files become final.
//
//	ack: entries of new files put ─▶ write these ─┐
//	write files that have an entry ───────────────┼▶ ack: leases settled, new lengths put ─▶ rename others to roll ─▶ ack: entries
//	rename files to roll that got nothing new ────┘                                          of renamed files deleted
//
// The loop makes it and gets it back with its results; in between run has it, and the stored side of
// its files.
type commit struct {
	began  time.Time
	shares []*share
	leases []*heldLease
	rolls  []*rollRequest

	fatal   error // the session is over
	refused error // the ack was
}

// share is what a commit has to do with one file.
type share struct {
	file    *file
	chunk   serializer.Chunk
	records int64 // in chunk; text without line feeds may have some and yet no data
	raw     int64 // bytes of chunk before it was sealed
	roll    bool  // make it final

	err       error // not written, or not settled
	renameErr error
	final     bool // renamed
}

// start begins a commit of all that is collected and due, and says whether there was something to do.
func (v *serving) start(ctx context.Context, now time.Time) bool {
	if v.blocked && !v.draining {
		v.answerRolls(v.rolls, nil, v.sink.trouble.Err())
		v.rolls = nil
		return false
	}
	if slices.ContainsFunc(v.leases, func(h *heldLease) bool { return h.lease.Revoked() }) {
		v.giveBack(errRevoked) // the ack would be refused
	}
	if len(v.leases) > 0 && !v.full() {
		v.early = now
	}
	c := &commit{began: now, leases: v.leases, rolls: v.rolls}
	v.leases, v.rolls, v.collected, v.dirty = nil, nil, 0, 0
	for _, f := range v.files {
		s := &share{file: f, chunk: f.chunk, records: f.count, raw: int64(len(f.chunk.Data))}
		s.roll = f.full || v.draining || v.sink.format.Whole() || v.rollDue(f, now) || requested(c.rolls, f)
		f.chunk, f.count = serializer.Chunk{}, 0
		if s.roll && f.bucket.file == f {
			f.bucket.file = nil // what is collected meanwhile goes to the next
		}
		if !f.stored && v.adopter.broken(f.bucket) >= maxBroken {
			s.err = fmt.Errorf("write %s: not begun, as %d files before it wait for recovery", f.entry.Final, maxBroken)
			if denied := f.bucket.denied; denied != nil {
				s.err = fmt.Errorf("%w; it was %w", s.err, denied)
			}
		}
		c.shares = append(c.shares, s)
	}
	v.rollLeastRecent(c.shares)
	c.shares = slices.DeleteFunc(c.shares, func(s *share) bool { return s.records == 0 && !s.roll })
	if len(c.shares) == 0 && len(c.leases) == 0 {
		v.answerRolls(c.rolls, nil, nil)
		v.nextRoll = v.soonestRoll()
		return false
	}
	v.running = true
	v.wg.Go(func() {
		v.run(ctx, c)
		v.committed <- c
	})
	return true
}

// run does the work of a commit.
func (v *serving) run(ctx context.Context, c *commit) {
	failpoint.At(failpoint.CommitBegun)
	var known, begun []*share
	var dirs []*completion // of theirs that have no entry
	ack := &delivery.Ack{}
	for _, s := range c.shares {
		switch f := s.file; {
		case s.raw == 0 || s.err != nil:
		case f.stored:
			known = append(known, s)
		default:
			if c.fatal = put(ack, f.key, &f.entry); c.fatal != nil {
				return
			}
			begun = append(begun, s)
			dir, err := v.marks.begin(ack, f)
			if c.fatal = err; err != nil {
				return
			}
			if dir != nil {
				dirs = append(dirs, dir)
			}
		}
	}
	var meanwhile sync.WaitGroup
	meanwhile.Go(func() { v.rename(ctx, c, func(s *share) bool { return s.raw == 0 }) })
	meanwhile.Go(func() { v.write(ctx, known) })
	if c.fatal = v.ack(ctx, ack); c.fatal == nil {
		for _, s := range begun {
			s.file.stored, s.file.begun = true, c.began
		}
		for _, dir := range dirs {
			v.marks.add(dir)
		}
		failpoint.At(failpoint.CommitPut)
		v.write(ctx, begun)
	}
	meanwhile.Wait()
	if c.fatal = cmp.Or(c.fatal, v.alive(ctx)); c.fatal != nil {
		return
	}
	failpoint.At(failpoint.CommitWritten)
	if c.fatal = v.settle(ctx, c); c.fatal != nil {
		return
	}
	failpoint.At(failpoint.CommitSettled)

	v.rename(ctx, c, func(s *share) bool { return s.raw > 0 })
	c.fatal = v.ack(ctx, &delivery.Ack{State: deletions(c.shares)})
	failpoint.At(failpoint.CommitRolled)
}

// write writes the shares.
func (v *serving) write(ctx context.Context, shares []*share) {
	v.each(shares, func(s *share) {
		if s.err = v.seal(s); s.err != nil {
			return
		}
		if s.err = v.alive(ctx); s.err == nil {
			s.err = v.sink.fs.Write(ctx, s.file.entry.InUse, s.file.entry.Committed, s.chunk.Data)
		}
	})
}

// seal makes what the file gets of what was collected for it.
func (v *serving) seal(s *share) error {
	spare, ok := v.sink.spare.Get().(*[]byte)
	if !ok {
		spare = new([]byte)
	}
	var err error
	*spare, err = v.sink.format.Seal(&s.chunk, serializer.File{Empty: s.file.entry.Committed == 0, Sync: s.file.sync}, (*spare)[:0])
	if err != nil {
		return fmt.Errorf("serialize records for %s: %w", s.file.entry.Final, err)
	}
	v.sink.spare.Put(spare)
	return nil
}

// finish takes back what a commit had, and does what its failures ask for.
func (v *serving) finish(ctx context.Context, c *commit) error {
	v.running = false
	if c.fatal != nil {
		return c.fatal
	}
	wrote := false
	var failed, denied, ended error // of a file, for one reason or the other
	var finals []string
	for _, s := range c.shares {
		s.file.bytes += int64(len(s.chunk.Data)) - s.raw
		v.giveBuffer(s.chunk.Data)
		switch err := cmp.Or(s.err, s.renameErr); {
		case errors.Is(err, ErrEnded):
			ended = err
			v.sink.log.Info("a file ends early; its records go to another", "path", s.file.entry.InUse, "reason", err)
		case errors.Is(err, ErrDenied):
			denied, s.file.bucket.denied = err, err
			v.sink.trouble.denied(s.file.bucket.dir, v.sink.cfg.OnDenied, err)
		case err != nil:
			failed = err
		case s.raw > 0:
			s.file.bucket.denied = nil
			v.sink.trouble.allowed(s.file.bucket.dir)
		}
		switch f := s.file; {
		case s.err != nil || s.renameErr != nil:
			v.giveUp(f)
		case s.roll:
			if s.final {
				finals = append(finals, f.entry.Final)
			}
			v.drop(f)
		case !f.stored && f.count == 0: // got records without bytes
			v.drop(f)
		}
		wrote = wrote || s.final || s.err == nil && s.raw > 0
	}
	for _, h := range c.leases {
		if h.failure != nil {
			v.session.Nack(h.lease, 0, h.failure)
		}
	}
	v.giveRuns(c.leases)
	switch {
	case c.refused != nil:
		v.sink.log.Warn("a commit was refused; its records will come again", "leases", len(c.leases), "error", c.refused)
	case failed != nil:
		v.sink.trouble.failed(failed)
		if !wrote {
			v.block(ctx)
		}
	case wrote:
		v.sink.trouble.over()
		v.backoff.Reset()
	}
	v.answerRolls(c.rolls, finals, cmp.Or(c.refused, failed, denied, ended))
	v.publish()
	v.nextRoll = v.soonestRoll()
	return nil
}

// giveUp leaves what is committed of f to the adopter. What was collected for f since goes to a new file.
func (v *serving) giveUp(f *file) {
	if f.stored {
		v.adopter.add(&orphan{key: f.key, entry: f.entry, session: v.session.ID(), bucket: f.bucket})
	}
	if f.count == 0 {
		v.drop(f)
		return
	}
	v.begin(f)
	f.stored = false
	f.bytes, f.records = int64(len(f.chunk.Data)), f.count
}

// block takes no more leases until the file system answers again.
func (v *serving) block(ctx context.Context) {
	if v.blocked {
		return
	}
	v.blocked = true
	v.wg.Go(func() {
		for v.backoff.Wait(ctx) == nil {
			err := v.sink.fs.Probe(ctx)
			if err == nil {
				v.usable <- struct{}{}
				return
			}
			if ctx.Err() == nil {
				v.sink.trouble.failed(err)
			}
		}
	})
}

// publish makes the files known to OpenFiles.
func (v *serving) publish() {
	open := make([]openFile, 0, len(v.files))
	for _, f := range v.files {
		if f.stored {
			open = append(open, openFile{f.entry.InUse, f.entry.Final, f.entry.Committed, f.entry.Records, f.begun, f.committedAt})
		}
	}
	v.sink.mu.Lock()
	defer v.sink.mu.Unlock()
	v.sink.open = open
}

// each calls do with all shares, several at a time.
func (v *serving) each(shares []*share, do func(*share)) {
	var g errgroup.Group
	g.SetLimit(parallel)
	for _, s := range shares {
		g.Go(func() error {
			do(s)
			return nil
		})
	}
	_ = g.Wait() // they keep their errors themselves
}

// ack is Session.Ack for one that has something to say.
func (v *serving) ack(ctx context.Context, ack *delivery.Ack) error {
	if err := v.alive(ctx); err != nil || len(ack.Leases)+len(ack.State) == 0 {
		return err
	}
	return v.session.Ack(ctx, ack)
}

// put adds an entry to ack.
func put(ack *delivery.Ack, key string, e *entry) error {
	value, err := e.encode()
	if err != nil {
		return err
	}
	ack.State = append(ack.State, delivery.StateChange{Key: key, Value: value, HoldsMs: e.DueMs})
	return nil
}
