package filesink

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// lastPatience bounds how long a session whose subscription was deleted finishes its files.
const lastPatience = 20 * time.Second

// finishAll makes the session's files final when its subscription was deleted, and the entries
// with it: nobody else knows of them any more. Of each, what was acked is kept.
func (v *serving) finishAll(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lastPatience)
	defer cancel()
	files := make(map[string]*lastFile)
	now := time.Now()
	for key, o := range v.adopter.all {
		if o.raw == nil && !o.foreign {
			files[key] = &lastFile{entry: o.entry, since: o.since}
		}
	}
	for _, f := range v.files {
		if f.stored {
			files[f.key] = &lastFile{entry: f.entry, since: now}
		}
	}
	log := v.sink.log.With("session", v.session.ID())
	log.Warn("the subscription was deleted; its files in use become final", "files", len(files))
	for { // in rounds, so that none waits for the file system while others could be finished
		var g errgroup.Group
		g.SetLimit(parallel)
		for _, f := range files {
			g.Go(func() error {
				f.err = v.finishLast(ctx, f)
				return nil
			})
		}
		_ = g.Wait() // they keep their errors themselves
		maps.DeleteFunc(files, func(_ string, f *lastFile) bool { return f.err == nil })
		if !slices.ContainsFunc(slices.Collect(maps.Values(files)), func(f *lastFile) bool { return errors.Is(f.err, ErrWait) }) || pause(ctx, takeEvery) != nil {
			break
		}
	}
	for _, f := range files {
		e := &f.entry
		log.Error("a file of a deleted subscription stays in use; rename it by hand", "path", e.InUse, "final_path", e.Final,
			"committed_bytes", e.Committed, "committed_records", e.Records, "aliases", e.Aliases, "taken_as", f.alias, "error", f.err)
	}
}

// lastFile is one of these files.
type lastFile struct {
	entry entry
	since time.Time // when its writer was gone
	alias string    // empty before it is taken
	err   error
}

// finishLast does what it can to finish one file without its entry, which is gone.
func (v *serving) finishLast(ctx context.Context, f *lastFile) error {
	e, found := &f.entry, f.entry.InUse
	if f.alias == "" {
		var err error
		found, err = v.adopter.find(ctx, e)
		switch {
		case err != nil:
			return err
		case found == e.Final:
			return nil
		case found == "" && e.Committed > 0:
			return errMissing
		case found == "":
			return nil
		case e.Committed == 0 && e.Unique:
			return v.sink.fs.Remove(ctx, found)
		case e.Committed == 0:
			return nil
		}
		f.alias = v.names.alias(e, v.number.Add(1))
	}
	err := v.sink.fs.Take(ctx, Taking{From: found, Alias: f.alias, Spare: v.names.spare(f.alias), Length: e.Committed, Tail: e.Tail, Since: f.since})
	if err != nil {
		return err
	}
	return v.sink.fs.Rename(ctx, f.alias, e.Final)
}

// pause waits for d, or for ctx's error.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
