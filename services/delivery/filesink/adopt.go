package filesink

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/internal/backoff"
	"github.com/spillwayio/spillway/services/internal/failpoint"
)

const (
	// adopters is how many files are taken over at a time. On HDFS each may have to wait a minute.
	adopters = 16
	// drainPatience bounds how long a draining session waits for them.
	drainPatience = 3 * time.Second
)

var errMissing = errors.New("the file is not there")

// adopter finishes files that nobody writes any more: those of dead sessions, and those of this one of
// which something failed. What it cannot do it tries again, less and less often; its entry stays in
// the buffer's state until the file is final, so the next session goes on where this one stops.
type adopter struct {
	v      *serving
	wg     sync.WaitGroup
	cancel context.CancelFunc
	wake   chan struct{} // an orphan was added or finished; room for one a worker

	mu      sync.Mutex
	waiting orphans
	working int
}

// orphan is a file to be finished.
type orphan struct {
	key     string
	entry   entry
	session uint64  // whose it was
	bucket  *bucket // that it counts as broken in; nil when it is another session's
	named   bool    // the newest alias is this session's

	due     time.Time
	failing bool
	backoff backoff.Backoff
}

func newAdopter(v *serving) *adopter {
	return &adopter{v: v, wake: make(chan struct{}, adopters)}
}

// start starts the workers, which end with ctx.
func (a *adopter) start(ctx context.Context) {
	ctx, a.cancel = context.WithCancel(ctx)
	for range adopters {
		a.wg.Go(func() { a.work(ctx) })
	}
}

// wait returns when the workers have ended.
func (a *adopter) wait() {
	a.cancel()
	a.wg.Wait()
}

// drain waits a little for what can be done now.
func (a *adopter) drain(ctx context.Context) {
	patience := time.NewTimer(drainPatience)
	defer patience.Stop()
	poll := time.NewTicker(drainPatience / 100)
	defer poll.Stop()
	for a.busy() {
		select {
		case <-patience.C:
			return
		case <-ctx.Done():
			return
		case <-poll.C:
		}
	}
}

func (a *adopter) busy() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.working > 0 || len(a.waiting) > 0 && !a.waiting[0].due.After(time.Now())
}

// adopt takes over the files of a dead session.
func (a *adopter) adopt(adoption *delivery.Adoption) {
	log := a.v.sink.log.With("dead_session", adoption.SessionID)
	log.Info("adopting files", "entries", len(adoption.Entries))
	for _, s := range adoption.Entries {
		if strings.HasPrefix(s.Key, successPrefix) {
			if err := a.v.marks.adopt(s.Value); err != nil {
				log.Error("cannot adopt a directory; its entry is kept", "key", s.Key, "error", err)
			}
			continue
		}
		e, err := decodeEntry(s.Value)
		if err != nil {
			log.Error("cannot adopt a file; its entry is kept", "key", s.Key, "error", err)
			continue
		}
		a.add(&orphan{key: s.Key, entry: e, session: adoption.SessionID})
	}
}

// add gives the adopter a file to finish.
func (a *adopter) add(o *orphan) {
	o.backoff = backoff.Backoff{Initial: 500 * time.Millisecond, Max: time.Minute}
	a.mu.Lock()
	if o.bucket != nil {
		o.bucket.broken++
	}
	heap.Push(&a.waiting, o)
	a.mu.Unlock()
	a.signal()
}

// hurry tries all files again now.
func (a *adopter) hurry() {
	a.mu.Lock()
	for _, o := range a.waiting {
		o.due = time.Time{}
	}
	heap.Init(&a.waiting)
	a.mu.Unlock()
	for range adopters {
		a.signal()
	}
}

// broken is how many files of b wait here.
func (a *adopter) broken(b *bucket) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return b.broken
}

func (a *adopter) signal() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// work finishes files until ctx ends.
func (a *adopter) work(ctx context.Context) {
	for ctx.Err() == nil {
		o, idle := a.next()
		if o == nil {
			timer := time.NewTimer(idle)
			select {
			case <-ctx.Done():
			case <-a.wake:
			case <-timer.C:
			}
			timer.Stop()
			continue
		}
		err := a.finish(ctx, o)
		a.done(ctx, o, err)
	}
}

// next takes the file that is due, or says how long there is none.
func (a *adopter) next() (*orphan, time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.waiting) == 0 {
		return nil, time.Hour
	}
	if idle := time.Until(a.waiting[0].due); idle > 0 {
		return nil, idle
	}
	a.working++
	return heap.Pop(&a.waiting).(*orphan), 0
}

// done notes how it went with o.
func (a *adopter) done(ctx context.Context, o *orphan, err error) {
	log := a.v.sink.log.With("path", o.entry.InUse, "final_path", o.entry.Final, "committed_bytes", o.entry.Committed, "of_session", o.session)
	ended := a.v.alive(ctx) != nil
	switch {
	case ended:
	case err == nil:
		if o.failing {
			log.Info("a file was finished after all")
		}
	case !o.failing && errors.Is(err, errMissing):
		log.Error("a file with committed records is missing; put it back, it is looked for again and again", "aliases", o.entry.Aliases)
	case !o.failing:
		log.Warn("cannot finish a file; retrying", "error", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.working--
	if err != nil {
		o.failing = true
		o.due = time.Now().Add(o.backoff.Next())
		heap.Push(&a.waiting, o)
	} else if o.bucket != nil {
		o.bucket.broken--
	}
}

// finish brings a file to its end: cut to what is committed and final, or removed when that is
// nothing. It may stop anywhere, by a crash or an error, and be done again by another session.
func (a *adopter) finish(ctx context.Context, o *orphan) error {
	fs, e := a.v.sink.fs, &o.entry
	found, err := a.find(ctx, e)
	switch {
	case err != nil:
		return err
	case found == "" && e.Committed > 0:
		return errMissing
	case found == "" || found == e.Final:
		return a.forget(ctx, o)
	case e.Committed == 0:
		// Nothing of it counts, whatever its writer still does, so there is no lease to wait for. On HDFS
		// that is a minute, in which a bucket whose writes fail would run into maxBroken.
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
	alias := e.Aliases[0]
	if found == alias { // an earlier attempt got as far as this
		found = e.InUse
	}
	if err := a.v.alive(ctx); err != nil {
		return err
	}
	if err := fs.Take(ctx, found, alias, e.Committed); err != nil {
		return err
	}
	failpoint.At(failpoint.AdoptTaken)
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
			return err
		}
	}
	failpoint.At(failpoint.AdoptDiscarded)
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
	if err := put(ack, o.key, &e); err != nil {
		return err
	}
	if err := a.v.ack(ctx, ack); err != nil {
		return err
	}
	o.entry = e
	return nil
}

// forget deletes the entry: there is nothing left to do.
func (a *adopter) forget(ctx context.Context, o *orphan) error {
	err := a.v.ack(ctx, &delivery.Ack{State: []delivery.StateChange{{Key: o.key}}})
	if err == nil {
		failpoint.At(failpoint.AdoptForgotten)
	}
	return err
}

// orphans is a heap, the one that is due first on top.
type orphans []*orphan

func (h orphans) Len() int           { return len(h) }
func (h orphans) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h orphans) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *orphans) Push(x any)        { *h = append(*h, x.(*orphan)) }
func (h *orphans) Pop() any {
	old := *h
	o := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return o
}
