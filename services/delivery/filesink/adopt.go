package filesink

import (
	"container/heap"
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/internal/backoff"
)

const (
	// adopters is how many files are worked on at a time. None waits for the file system
	// meanwhile.
	adopters = 16
	// takeEvery is the time between two looks whether the file system has finished a file. After
	// takePatience, in which HDFS tries once, there are laterEvery; after stuckAfter that counts
	// as a failure.
	takeEvery    = time.Second
	takePatience = 100 * time.Second
	laterEvery   = 10 * time.Second
	// drainPatience bounds how long a draining session waits for them.
	drainPatience = 3 * time.Second
)

var errMissing = errors.New("the file is not there")

// adopter finishes files that nobody writes any more: those of dead sessions, and those of this
// one of which something failed. What it cannot do it tries again, less and less often; its entry
// stays in the buffer's state until the file is final, so the next session goes on where this one
// stops.
type adopter struct {
	v      *serving
	wg     sync.WaitGroup
	cancel context.CancelFunc
	wake   chan struct{} // an orphan was added or finished; room for one a worker

	mu       sync.Mutex
	all      map[string]*orphan // by key
	waiting  orphans
	working  int
	released map[string]int  // files that are not finished and Released, by directory
	marked   map[string]bool // directories with an _INCOMPLETE that was made for them
	probed   time.Time       // when the file system was asked last whether it answers
	answers  time.Time       // since when it does; zero: it does not
}

// orphan is a file to be finished. One worker at a time has it; what others look at is under the
// adopter's lock.
type orphan struct {
	key     string
	entry   entry   // changed under the lock
	raw     []byte  // the entry as it is in the state, when it cannot be read; err says why
	session uint64  // whose it was
	foreign bool    // the file at InUse was there before: it is somebody else's
	bucket  *bucket // that it counts as broken in; nil when it is another session's
	named   bool    // the newest alias is this session's

	since   time.Time // when its writer was gone, at the latest
	taking  bool      // Take has begun, and waits for the file system
	waiting time.Time // since when it does; zero: not

	due      time.Time
	failing  time.Time // since when; zero: not
	attempts int       // that failed
	err      error     // of the last one
	backoff  backoff.Backoff
}

func newAdopter(v *serving) *adopter {
	return &adopter{v: v, wake: make(chan struct{}, adopters), all: make(map[string]*orphan), released: make(map[string]int), marked: make(map[string]bool)}
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
		o := &orphan{key: s.Key, session: adoption.SessionID, since: time.Now()}
		if o.entry, o.err = decodeEntry(s.Value); o.err != nil {
			o.raw = s.Value
		}
		a.add(o)
	}
}

// add gives the adopter a file to finish.
func (a *adopter) add(o *orphan) {
	o.backoff = backoff.Backoff{Initial: 500 * time.Millisecond, Max: 15 * time.Second}
	a.mu.Lock()
	if o.counts() {
		o.bucket.broken++
	}
	a.noteLocked(o, entry{}, o.entry)
	a.all[o.key] = o
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
		if err != nil && a.v.alive(ctx) == nil {
			err = a.stuck(ctx, o, err)
		}
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
	if a.v.alive(ctx) == nil {
		a.tell(o, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.working--
	if a.laterLocked(o, err) {
		return
	}
	if err != nil {
		if o.attempts == 0 {
			o.failing = time.Now()
		}
		o.attempts++
		o.err = err
		o.due = time.Now().Add(o.backoff.Next())
		heap.Push(&a.waiting, o)
		return
	}
	delete(a.all, o.key)
	if o.counts() {
		o.bucket.broken--
	}
	a.noteLocked(o, o.entry, entry{})
}

// tell logs how it went with o, when that is news.
func (a *adopter) tell(o *orphan, err error) {
	if errors.Is(err, ErrWait) && (o.waiting.IsZero() || time.Since(o.waiting) < stuckAfter) {
		return
	}
	log := a.v.sink.log.With("path", o.entry.InUse, "final_path", o.entry.Final, "committed_bytes", o.entry.Committed,
		"committed_records", o.entry.Records, "of_session", o.session, "state_key", o.key)
	switch {
	case err == nil && o.attempts > 0:
		log.Info("a file was finished after all")
	case err == nil || o.attempts > 0:
	case o.raw != nil:
		log.Error("the entry of a file cannot be read; it is kept, so that a version that can read it finishes the file", "error", err)
	case errors.Is(err, errMissing):
		log.Error("a file with committed records is missing; put it back, or when it is lost have the buffer forget its entry (ForgetSinkState)",
			"aliases", o.entry.Aliases, "error", err)
	default:
		log.Warn("cannot finish a file; retrying", "error", err)
	}
}

// counts says whether o counts as broken in its bucket: where something was committed to it, the
// bucket takes files.
func (o *orphan) counts() bool { return o.bucket != nil && o.entry.Committed == 0 }

// laterLocked has o looked at again while the file system has not finished it, which is no
// failure.
func (a *adopter) laterLocked(o *orphan, err error) bool {
	if !errors.Is(err, ErrWait) {
		o.waiting = time.Time{}
		return false
	}
	now := time.Now()
	if o.waiting.IsZero() {
		o.waiting = now
	}
	waited := now.Sub(o.waiting)
	if waited >= stuckAfter {
		return false
	}
	o.due = now.Add(takeEvery)
	var wait *WaitError
	switch {
	case waited >= takePatience:
		o.due = now.Add(laterEvery)
	case errors.As(err, &wait):
		o.due = now.Add(wait.After)
	}
	heap.Push(&a.waiting, o)
	return true
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
