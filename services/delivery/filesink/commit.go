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
	// maxBroken is how many files of a bucket may wait for recovery before no more are begun. So
	// a directory that cannot be written to does not use up names and entries for as long as that
	// lasts.
	maxBroken = 3
)

// commit is one round: what is collected becomes durable and settled, and files become final.
//
//	ack: entries of new files put ─▶ write these ─┐
//	write files that have an entry ───────────────┼▶ ack: leases settled, new lengths put ─▶ rename others to roll ─▶ ack: entries
//	rename files to roll that got nothing new ────┘                                          of renamed files deleted
//
// The loop makes it and gets it back with its results; in between run has it, and the stored side
// of its files.
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
	skipped bool  // not tried: err says why

	err       error // not written, or not settled
	renameErr error
	final     bool // renamed
}

// start begins a commit of all that is collected and due, and says whether there was something to
// do.
func (v *serving) start(ctx context.Context, now time.Time) bool {
	if v.blocked && !v.draining {
		v.answerRolls(v.rolls, nil, cmp.Or(v.sink.trouble.Err(), errBlocked)) // another session may have got over it
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
	v.leases, v.rolls, v.collected, v.dirty, v.runs, v.entries = nil, nil, 0, 0, 0, 0
	for _, f := range v.files {
		s := &share{file: f, chunk: f.chunk, records: f.count, raw: int64(len(f.chunk.Data))}
		s.roll = f.full || v.draining || v.sink.format.Whole() || v.rollDue(f, now) || requested(c.rolls, f)
		f.chunk, f.count = serializer.Chunk{}, 0
		if s.roll && f.bucket.file == f {
			f.bucket.file = nil // what is collected meanwhile goes to the next
		}
		if !f.stored {
			s.err = v.mayBegin(f, now)
			s.skipped = s.err != nil
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

// mayBegin says why a file is not to be created now: its place was denied a moment ago, or files
// before it are to be recovered first.
func (v *serving) mayBegin(f *file, now time.Time) error {
	b := f.bucket
	if b.denied != nil && now.Before(b.retryAt) {
		return b.denied
	}
	if v.adopter.broken(b) < maxBroken {
		return nil
	}
	err := fmt.Errorf("write %s: not begun, as %d files before it wait for recovery", f.entry.Final, maxBroken)
	if b.denied != nil {
		err = fmt.Errorf("%w; it was %w", err, b.denied)
	}
	return err
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
		if v.open.count()+len(begun) > v.maxOpenFiles {
			meanwhile.Wait() // files to roll are closed first
		}
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

// write writes the shares, to files that it creates where they are not there.
func (v *serving) write(ctx context.Context, shares []*share) {
	v.each(shares, func(s *share) {
		if s.err = v.seal(s); s.err != nil {
			return
		}
		if s.err = v.alive(ctx); s.err != nil {
			return
		}
		f := s.file
		if f.open == nil {
			f.open, s.err = v.open.create(ctx, f.entry.InUse)
		}
		if s.err == nil {
			s.err = f.open.Commit(ctx, s.chunk.Data)
		}
		if s.err != nil && f.entry.Committed == 0 && v.alive(ctx) == nil {
			s.err = v.sink.trouble.refused(f.bucket.dir, s.err)
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
	doubt := false                  // whether the file system works at all
	var finals []string
	for _, s := range c.shares {
		s.file.bytes += int64(len(s.chunk.Data)) - s.raw
		v.giveBuffer(s.chunk.Data)
		switch err := cmp.Or(s.err, s.renameErr); {
		case errors.Is(err, ErrExist):
			ended = err
			v.sink.log.Warn("a file of somebody else has the name that a file was to get; another name is taken", "path", s.file.entry.InUse, "error", err)
		case errors.Is(err, ErrDenied):
			denied = err
			v.sink.trouble.denied(s.file.bucket.dir, v.sink.cfg.OnDenied, err)
			if b := s.file.bucket; !s.skipped {
				b.denied, b.retryAt = err, time.Now().Add(b.backoff.Next())
			}
		case err != nil && v.sink.trouble.suspected(s.file.bucket.dir):
			denied = err
			v.sink.trouble.denied(s.file.bucket.dir, v.sink.cfg.OnDenied, err)
		case err != nil:
			failed, doubt = err, doubt || !s.skipped
		case s.raw > 0:
			s.file.bucket.denied = nil
			s.file.bucket.backoff.Reset()
			v.sink.trouble.allowed(s.file.bucket.dir)
		}
		switch f := s.file; {
		case s.err != nil || s.renameErr != nil:
			v.giveUp(f, s.err)
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
	v.forgetDropped()
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
		if doubt && !wrote {
			v.block(ctx)
		}
	case wrote:
		if v.sink.trouble.over() {
			v.adopter.hurry()
		}
		v.backoff.Reset()
	}
	v.giveUpEnded()
	v.publish()
	v.answerRolls(c.rolls, finals, cmp.Or(c.refused, failed, denied, ended)) // who asked may list the files now
	v.nextRoll = v.soonestRoll()
	return nil
}

// giveUpEnded gives up files that ended by themselves. No commit runs.
func (v *serving) giveUpEnded() {
	for _, f := range v.files {
		if f.open == nil {
			continue
		}
		if err := f.open.Err(); err != nil {
			v.sink.log.Info("a file ends early; its records go to another", "path", f.entry.InUse, "committed_bytes", f.entry.Committed, "reason", err)
			if f.bucket.file == f && f.count == 0 {
				f.bucket.file = nil
			}
			v.giveUp(f, err)
		}
	}
	v.forgetDropped()
}

// giveUp leaves what is committed of f, of which writing failed with err, to the adopter. What
// was collected for f since goes to a new file.
func (v *serving) giveUp(f *file, err error) {
	v.open.letGo(f.open)
	f.open = nil
	if f.stored {
		v.adopter.add(&orphan{key: f.key, entry: f.entry, session: v.session.ID(), bucket: f.bucket, since: time.Now(),
			foreign: f.entry.Committed == 0 && errors.Is(err, ErrExist)})
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
			open = append(open, openFile{key: f.key, inUse: f.entry.InUse, final: f.entry.Final, bytes: f.entry.Committed, records: f.entry.Records,
				begun: f.begun, committedAt: f.committedAt})
		}
	}
	v.told.Store(&open)
}

// published returns the files as of the last commit.
func (v *serving) published() []openFile {
	if open := v.told.Load(); open != nil {
		return *open
	}
	return nil
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
	change := delivery.StateChange{Key: key, Value: value, HoldsMs: e.DueMs}
	if e.Released {
		change.HoldsMs = 0
	}
	ack.State = append(ack.State, change)
	return nil
}
