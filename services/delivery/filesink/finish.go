package filesink

import (
	"context"
	"errors"
	"fmt"

	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/internal/failpoint"
)

// finish brings a file to its end: cut to what is committed and final, or removed when that is
// nothing. It may stop anywhere, by a crash or an error, and be done again by another session.
func (a *adopter) finish(ctx context.Context, o *orphan) error {
	if o.raw != nil {
		return o.err
	}
	e := &o.entry
	if o.taking { // where it is, is known
		return a.take(ctx, o, e.InUse)
	}
	found, err := a.find(ctx, e)
	switch {
	case err != nil && e.Committed == 0:
		return a.abandon(ctx, o, err)
	case err != nil:
		return err
	case found == "" && e.Committed > 0:
		return errMissing
	case found == "" || found == e.Final:
		return a.forget(ctx, o)
	case e.Committed == 0 && (o.foreign || !e.Unique):
		// Nothing says that this session, or the entry's, made it.
		a.v.sink.log.Warn("a file with the name of one in use may be somebody else's; it is left alone", "path", found)
		return a.forget(ctx, o)
	case e.Committed == 0:
		// Nothing of it counts, whatever its writer still does, so there is nothing to wait for.
		return a.discard(ctx, o)
	}
	failpoint.At(failpoint.AdoptFound)
	if !o.named {
		// Before the rename, so that whoever comes next finds the file.
		next := *e
		next.Aliases = append([]string{a.v.names.alias(e, a.v.number.Add(1))}, e.Aliases...)
		if err := a.put(ctx, o, next); err != nil {
			return err
		}
		o.named = true
		failpoint.At(failpoint.AdoptNamed)
	}
	if found == e.Aliases[0] { // an earlier attempt got as far as this
		found = e.InUse
	}
	return a.take(ctx, o, found)
}

// take makes a file final that is at from, or has the alias already.
func (a *adopter) take(ctx context.Context, o *orphan, from string) error {
	e := &o.entry
	if err := a.v.alive(ctx); err != nil {
		return err
	}
	err := a.v.sink.fs.Take(ctx, Taking{From: from, Alias: e.Aliases[0], Spare: a.v.names.spare(e.Aliases[0]),
		Length: e.Committed, Tail: e.Tail, Since: o.since})
	o.taking = errors.Is(err, ErrWait)
	if err != nil {
		return err
	}
	failpoint.At(failpoint.AdoptTaken)
	for _, alias := range e.Aliases[1:] { // their owners may have died at it
		if err := a.v.alive(ctx); err != nil {
			return err
		}
		if err := a.v.sink.fs.Remove(ctx, a.v.names.spare(alias)); err != nil {
			return err
		}
	}
	if err := a.v.alive(ctx); err != nil {
		return err
	}
	if err := a.makeFinal(ctx, o); err != nil {
		return err
	}
	failpoint.At(failpoint.AdoptFinal)
	return a.forget(ctx, o)
}

// discard removes a file of which nothing is committed.
func (a *adopter) discard(ctx context.Context, o *orphan) error {
	for _, p := range append([]string{o.entry.InUse}, o.entry.Aliases...) {
		if err := a.v.alive(ctx); err != nil {
			return err
		}
		if err := a.v.sink.fs.Remove(ctx, p); err != nil {
			return a.abandon(ctx, o, err)
		}
	}
	failpoint.At(failpoint.AdoptDiscarded)
	return a.forget(ctx, o)
}

// abandon forgets a file of which nothing is committed, and which can be neither looked at nor
// removed, when that is because of its place: most likely it was never made. Otherwise places
// that take nothing would collect entries.
func (a *adopter) abandon(ctx context.Context, o *orphan, err error) error {
	if alive := a.v.alive(ctx); alive != nil {
		return alive
	}
	if err = a.v.sink.trouble.refused(o.dir(), err); !errors.Is(err, ErrDenied) {
		return err
	}
	if o.bucket == nil { // whoever began it may have been allowed to
		a.v.sink.log.Warn("a file of which nothing counts may be left behind", "path", o.entry.InUse, "error", err)
	}
	return a.forget(ctx, o)
}

// find returns the path where the file is, or "" when it is nowhere.
func (a *adopter) find(ctx context.Context, e *entry) (string, error) {
	fs := a.v.sink.fs
	for _, p := range append(append([]string(nil), e.Aliases...), e.InUse) {
		switch _, err := fs.Size(ctx, p); {
		case err == nil:
			return p, nil
		case !errors.Is(err, ErrNotExist):
			return "", err
		}
	}
	if e.Committed == 0 {
		return "", nil // such a file is never made final
	}
	switch size, err := fs.Size(ctx, e.Final); {
	case errors.Is(err, ErrNotExist):
		return "", nil
	case err != nil:
		return "", err
	case size != e.Committed:
		return "", fmt.Errorf("%w, and %s, which has its final name, has %d bytes", errMissing, e.Final, size)
	}
	return e.Final, nil
}

// makeFinal renames the alias. A name that is taken is somebody else's file: another one is put in
// the entry, and used.
func (a *adopter) makeFinal(ctx context.Context, o *orphan) error {
	fs := a.v.sink.fs
	err := fs.Rename(ctx, o.entry.Aliases[0], o.entry.Final)
	if !errors.Is(err, ErrExist) {
		return err
	}
	next := o.entry
	next.Final = a.v.names.otherFinal(&o.entry, a.v.number.Add(1))
	if err := a.put(ctx, o, next); err != nil {
		return err
	}
	if err := a.v.alive(ctx); err != nil {
		return err
	}
	return fs.Rename(ctx, o.entry.Aliases[0], o.entry.Final)
}

// put stores a changed entry.
func (a *adopter) put(ctx context.Context, o *orphan, e entry) error {
	ack := &delivery.Ack{}
	if o.raw != nil {
		ack.State = []delivery.StateChange{{Key: o.key, Value: o.raw}} // only what it holds back may change
	} else if err := put(ack, o.key, &e); err != nil {
		return err
	}
	if err := a.v.ack(ctx, ack); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.noteLocked(o, o.entry, e)
	o.entry = e
	return nil
}

// forget deletes the entry: there is nothing left to do.
func (a *adopter) forget(ctx context.Context, o *orphan) error {
	if err := a.unmark(ctx, o); err != nil {
		return err
	}
	err := a.v.ack(ctx, &delivery.Ack{State: []delivery.StateChange{{Key: o.key}}})
	if err == nil {
		failpoint.At(failpoint.AdoptForgotten)
	}
	return err
}
