package filesink

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/failpoint"
)

// rollRequest asks for the files whose final path begins with prefix to be made final.
type rollRequest struct {
	prefix string
	answer chan rolled // has room for one
}

// rolled is the answer: the final paths, and why there are not more.
type rolled struct {
	paths []string
	err   error
}

// requested says whether somebody wants f to be made final.
func requested(requests []*rollRequest, f *file) bool {
	return slices.ContainsFunc(requests, func(r *rollRequest) bool { return strings.HasPrefix(f.entry.Final, r.prefix) })
}

func (v *serving) answerRolls(requests []*rollRequest, finals []string, err error) {
	for _, r := range requests {
		a := rolled{err: err}
		for _, p := range finals {
			if strings.HasPrefix(p, r.prefix) {
				a.paths = append(a.paths, p)
			}
		}
		r.answer <- a
	}
}

// rollDue says whether time makes f final. Size and count do when records are added.
func (v *serving) rollDue(f *file, now time.Time) bool {
	at := f.rollAt(&v.sink.cfg.Roll, v.passedMs)
	return !at.IsZero() && !now.Before(at)
}

// rollAt is when time will make f final, if nothing more is written to it; zero is never. When
// the time of its directory is passed, that is at once.
func (f *file) rollAt(cfg *config.Roll, passedMs int64) time.Time {
	if !f.stored {
		return time.Time{}
	}
	if f.entry.DueMs > 0 && f.entry.DueMs <= passedMs {
		return f.begun
	}
	var at time.Time
	if f.open != nil {
		at = f.open.RollAt()
	}
	if cfg.Interval > 0 {
		if interval := f.begun.Add(cfg.Interval); at.IsZero() || interval.Before(at) {
			at = interval
		}
	}
	if cfg.Idle > 0 && f.count == 0 {
		if idle := f.committedAt.Add(cfg.Idle); at.IsZero() || idle.Before(at) {
			at = idle
		}
	}
	return at
}

// soonestRoll is the first rollAt of all files.
func (v *serving) soonestRoll() time.Time {
	var soonest time.Time
	for _, f := range v.files {
		if at := f.rollAt(&v.sink.cfg.Roll, v.passedMs); !at.IsZero() && (soonest.IsZero() || at.Before(soonest)) {
			soonest = at
		}
	}
	return soonest
}

// rollLeastRecent makes final what exceeds maxOpenFiles, those first that have waited longest for
// a record.
func (v *serving) rollLeastRecent(shares []*share) {
	var open []*share
	for _, s := range shares {
		if !s.roll && (s.file.stored || s.raw > 0) {
			open = append(open, s)
		}
	}
	excess := len(open) - v.maxOpenFiles
	if excess <= 0 {
		return
	}
	slices.SortFunc(open, func(a, b *share) int { return cmp.Compare(a.file.lease, b.file.lease) })
	for _, s := range open[:excess] {
		s.roll = true
		if s.file.bucket.file == s.file {
			s.file.bucket.file = nil
		}
	}
}

// rename makes those shares final that are to be, are committed, and are chosen. A failure, even
// when the name is taken, is left to the adopter.
func (v *serving) rename(ctx context.Context, c *commit, chosen func(*share) bool) {
	v.each(c.shares, func(s *share) {
		if !chosen(s) || !s.roll || s.err != nil || !s.file.stored {
			return
		}
		if s.renameErr = v.alive(ctx); s.renameErr == nil {
			s.renameErr = s.file.open.Close(ctx)
		}
		if s.renameErr == nil {
			s.renameErr = v.alive(ctx)
		}
		if s.renameErr == nil {
			s.renameErr = v.sink.fs.Rename(ctx, s.file.entry.InUse, s.file.entry.Final)
		}
		if s.final = s.renameErr == nil; s.final {
			failpoint.At(failpoint.RollRenamed)
		}
	})
}

// deletions are the changes that delete the entries of final files.
func deletions(shares []*share) []delivery.StateChange {
	var changes []delivery.StateChange
	for _, s := range shares {
		if s.final {
			changes = append(changes, delivery.StateChange{Key: s.file.key})
		}
	}
	return changes
}
