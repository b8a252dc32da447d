package filesink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/delivery/filesink/serializer"
	"github.com/spillwayio/spillway/services/internal/backoff"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

const (
	// maxCached bounds the remembered keys of records; each has a bucket.
	maxCached = 10_000
	// maxRuns and maxEntryBytes bound what a commit's ack says of leases, and of new lengths of
	// files, but for the last lease: one run has up to 40 bytes there.
	maxRuns       = 100_000
	maxEntryBytes = 4 << 20
)

var (
	errRevoked = errors.New("given back with others of the same commit that were revoked")
	errLetGo   = errors.New("the session has ended")
	errBlocked = errors.New("files cannot be written now; it is tried again")
)

// serving is the work for one session. But for done, requests, told and what is said to be the
// adopter's, it belongs to the loop.
type serving struct {
	sink    *Sink
	session delivery.Session
	names   names
	number  atomic.Uint64 // of the last name made
	open    *opened
	adopter *adopter
	marks   *completer
	wg      sync.WaitGroup // of the commit and of the wait for the file system

	// The session's parts of what bounds the delivery as a whole.
	maxOpenFiles int
	commitBytes  int64

	told     atomic.Pointer[[]openFile] // as of the last commit; nil before the first
	requests chan *rollRequest
	done     chan struct{} // closed when Serve returns

	// Where records go.
	buckets map[string]*bucket // by directory, NUL, prefix
	cached  map[string]*bucket // by key of a record
	key     []byte             // of the last record
	last    *bucket            // of that key; nil before the first
	files   []*file            // all that are not final, or have something collected

	// What is collected for the next commit.
	leases    []*heldLease
	leaseSeq  uint64
	since     time.Time // when the first was taken
	latest    time.Time // when the last was
	early     time.Time // when a commit began last that was not full
	quiet     bool      // nothing waited behind the last
	collected int64     // bytes
	dirty     int       // files with records
	runs      int       // of the leases
	entries   int       // bytes of the dirty files' entries, about
	free      [][]byte  // buffers to collect in
	freeBytes int64     // their capacity
	spareRuns [][]run

	rolls     []*rollRequest
	nextRoll  time.Time // zero: never
	passedMs  int64     // how far the time of records has come, since 1970; 0: unknown
	draining  bool
	committed chan *commit  // has room for one
	running   bool          // a commit is
	usable    chan struct{} // has room for one: the file system works again
	blocked   bool          // it does not
	backoff   backoff.Backoff
}

// heldLease is a lease with the files that its records went to.
type heldLease struct {
	lease       *delivery.Lease
	runs        []run
	deadLetters []delivery.DeadLetter // of the damaged end of it
	failure     error                 // the commit's: why not all of it was settled
}

func newServing(s *Sink, session delivery.Session) *serving {
	v := &serving{
		sink: s, session: session,
		names:    newNames(s.layout.suffix, s.cfg.InUsePrefix, s.cfg.InUseSuffix),
		requests: make(chan *rollRequest), done: make(chan struct{}),
		buckets: make(map[string]*bucket), cached: make(map[string]*bucket),
		committed: make(chan *commit, 1), usable: make(chan struct{}, 1),
		backoff:      backoff.Backoff{Initial: 200 * time.Millisecond, Max: 10 * time.Second},
		open:         newOpened(s.fs),
		maxOpenFiles: max(s.cfg.MaxOpenFiles/session.Sessions(), 1),
		commitBytes:  max(int64(s.cfg.Commit.Bytes)/int64(session.Sessions()), 1),
	}
	v.adopter, v.marks = newAdopter(v), newCompleter(v)
	return v
}

// loop serves until the session has drained (nil), is lost, or ctx ends.
func (v *serving) loop(ctx context.Context) error {
	leases := v.session.Leases()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if err := v.alive(ctx); err != nil {
			return err
		}
		now := time.Now()
		if !v.running && v.due(now) && !v.start(ctx, now) && v.draining {
			return nil // nothing is left
		}
		intake := leases
		if v.blocked || v.running && v.full() {
			intake = nil
		}
		var wake <-chan time.Time
		if at := v.wakeAt(); !at.IsZero() {
			timer.Reset(time.Until(at))
			wake = timer.C
		}
		select {
		case <-ctx.Done():
		case <-wake:
		case l, ok := <-intake:
			if !ok {
				leases, v.draining = nil, true
				continue
			}
			v.collect(l)
		case a := <-v.session.Adoptions():
			v.adopter.adopt(a)
		case c := <-v.committed:
			if err := v.finish(ctx, c); err != nil {
				return err
			}
		case <-v.open.changed:
			if !v.running { // else when the commit is done
				v.giveUpEnded()
				v.publish()
				v.nextRoll = v.soonestRoll()
			}
		case <-v.usable:
			v.blocked = false
			v.adopter.hurry()
			v.marks.retry()
		case w := <-v.session.Watermarks():
			v.passedMs = w.PassedMs
			if !v.running {
				v.nextRoll = v.soonestRoll()
			}
			v.marks.passed(w.CompleteMs)
		case r := <-v.requests:
			v.rolls = append(v.rolls, r)
		}
	}
}

// alive is nil while the session may touch files.
func (v *serving) alive(ctx context.Context) error {
	if err := v.session.Err(); err != nil {
		return err
	}
	return ctx.Err()
}

// due says whether a commit should begin.
func (v *serving) due(now time.Time) bool {
	switch {
	case v.draining || len(v.rolls) > 0:
		return true
	case v.blocked:
		return false
	case v.full():
		return true
	}
	at := v.wakeAt()
	return !at.IsZero() && !now.Before(at)
}

// full says whether as much is collected as a commit takes.
func (v *serving) full() bool {
	return v.collected >= v.commitBytes || v.dirty >= v.maxOpenFiles || v.runs >= maxRuns || v.entries >= maxEntryBytes
}

// wakeAt is when the next commit is due if nothing else happens; zero is never.
func (v *serving) wakeAt() time.Time {
	if v.running || v.blocked {
		return time.Time{}
	}
	at := v.nextRoll
	if len(v.leases) > 0 {
		if commit := v.commitAt(); at.IsZero() || !commit.IsZero() && commit.Before(at) {
			at = commit
		}
	}
	return at
}

// commitAt is when what is collected is to be committed; zero is never. When nothing more is on
// its way that is at once, but once in an interval. A format of whole files has it wait until its
// files are due to become final, with the leases held.
func (v *serving) commitAt() time.Time {
	if !v.sink.format.Whole() {
		from := v.since
		if v.quiet && v.early.Before(from) {
			from = v.early
		}
		return from.Add(v.sink.cfg.Commit.Interval)
	}
	var at time.Time
	roll := &v.sink.cfg.Roll
	if roll.Interval > 0 {
		at = v.since.Add(roll.Interval)
	}
	if roll.Idle > 0 {
		if idle := v.latest.Add(roll.Idle); at.IsZero() || idle.Before(at) {
			at = idle
		}
	}
	return at
}

// collect adds the records of l to their files' buffers.
func (v *serving) collect(l *delivery.Lease) {
	v.latest, v.quiet = time.Now(), l.Last
	if len(v.leases) == 0 {
		v.since = v.latest
	}
	if len(v.cached) >= maxCached {
		v.forgetBuckets()
	}
	v.leaseSeq++
	h := &heldLease{lease: l, runs: v.takeRuns()}
	next := l.First
	err := l.Records(func(offset int64, r *recordbatch.Record) error {
		if offset < next || offset >= l.Next {
			return fmt.Errorf("%w: offset %d where [%d,%d) is left", recordbatch.ErrMalformed, offset, next, l.Next)
		}
		next = offset + 1
		v.add(h, offset, r)
		return nil
	})
	if err != nil {
		// The records before the damage are whole, and are delivered.
		if next < l.Next {
			h.deadLetters = appendDead(nil, next, l.Next, err)
		}
		v.sink.log.Error("a batch cannot be read; the rest of it is dead-lettered", "source", l.Source,
			"first_offset", l.First, "from_offset", next, "next_offset", l.Next, "error", err)
	}
	v.leases = append(v.leases, h)
	v.runs += len(h.runs)
}

// add serializes r into its file's buffer.
func (v *serving) add(h *heldLease, offset int64, r *recordbatch.Record) {
	b := v.bucketOf(v.sink.layout.item(h.lease.Source, offset, r))
	f := b.file
	if f == nil {
		f = &file{bucket: b, sync: serializer.NewSync()}
		v.begin(f)
		b.file = f
		v.files = append(v.files, f)
	}
	if f.count == 0 {
		v.dirty++
		v.entries += len(f.entry.InUse) + len(f.entry.Final) + 300
		f.chunk.Data = v.takeBuffer()
	}
	f.lease = v.leaseSeq
	h.went(offset, f)
	before := len(f.chunk.Data)
	f.chunk.Add(v.sink.format, serializer.Position{Source: h.lease.Source, Offset: offset}, r)
	n := int64(len(f.chunk.Data) - before)
	v.collected += n
	f.count++
	f.records++
	f.bytes += n
	if roll := &v.sink.cfg.Roll; roll.Size > 0 && f.bytes >= int64(roll.Size) || roll.Count > 0 && f.records >= roll.Count {
		f.full = true
		b.file = nil
	}
}

// begin gives f the name and entry of a new file of its bucket.
func (v *serving) begin(f *file) {
	b := f.bucket
	f.key, f.entry = v.names.begin(b, v.number.Add(1))
	switch {
	case b.dueMs > v.passedMs:
		f.entry.DueMs = b.dueMs
	case b.dueMs > 0 && !b.late:
		b.late = true
		v.sink.log.Warn("records came later than success_after allows for; they are written, but their directory may be taken for complete", "path", b.dir)
	}
}

// bucketOf is the bucket of a record. Records mostly come with the same key as the one before.
func (v *serving) bucketOf(it item) *bucket {
	layout := v.sink.layout
	before := len(v.key)
	v.key = layout.appendKey(v.key, it)
	if v.last != nil && string(v.key[:before]) == string(v.key[before:]) {
		v.key = v.key[:before]
		return v.last
	}
	v.key = append(v.key[:0], v.key[before:]...)
	b := v.cached[string(v.key)]
	if b == nil {
		dir, prefix := layout.render(it)
		place := dir + "\x00" + prefix
		if b = v.buckets[place]; b == nil {
			b = &bucket{dir: dir, prefix: prefix, backoff: backoff.Backoff{Initial: time.Second, Max: 30 * time.Second}}
			if layout.successMs > 0 {
				b.dueMs = layout.timeOver(it.ms) + layout.successMs
			}
			v.buckets[place] = b
		}
		v.cached[string(v.key)] = b
	}
	v.last = b
	return b
}

// forgetBuckets keeps the buckets that are in use, and no key.
func (v *serving) forgetBuckets() {
	clear(v.cached)
	v.key, v.last = v.key[:0], nil
	for place, b := range v.buckets {
		if b.file == nil && v.adopter.broken(b) == 0 {
			delete(v.buckets, place)
		}
	}
}

// takeBuffer is an empty buffer, a used one if there is.
func (v *serving) takeBuffer() []byte {
	n := len(v.free)
	if n == 0 {
		return nil
	}
	buf := v.free[n-1]
	v.free = v.free[:n-1]
	v.freeBytes -= int64(cap(buf))
	return buf
}

// giveBuffer keeps buf for takeBuffer, when there are not enough for two commits already. They
// have grown to more than they were filled with.
func (v *serving) giveBuffer(buf []byte) {
	size := int64(cap(buf))
	if size == 0 || v.freeBytes+size > 3*v.commitBytes {
		return
	}
	v.free = append(v.free, buf[:0])
	v.freeBytes += size
}

// giveBack nacks all collected leases, and forgets their records.
func (v *serving) giveBack(reason error) {
	for _, h := range v.leases {
		v.session.Nack(h.lease, 0, reason)
	}
	v.giveRuns(v.leases)
	v.leases, v.collected, v.dirty, v.runs, v.entries = nil, 0, 0, 0, 0
	for _, f := range v.files {
		v.giveBuffer(f.chunk.Data)
		f.chunk, f.count = serializer.Chunk{}, 0
		f.bytes, f.records = f.entry.Committed, f.entry.Records
		if !f.stored {
			v.drop(f)
		}
	}
	v.forgetDropped()
}

// drop has forgetDropped forget a file.
func (v *serving) drop(f *file) {
	v.open.letGo(f.open)
	f.open = nil
	if f.bucket.file == f {
		f.bucket.file = nil
	}
	f.dropped = true
}

func (v *serving) forgetDropped() {
	v.files = slices.DeleteFunc(v.files, func(f *file) bool { return f.dropped })
}
