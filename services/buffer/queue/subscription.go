package queue

import (
	"path"
	"slices"
	"strings"
	"time"
)

// OnFull is what happens when a subscription's backlog reaches its limit. The numbers are those of
// spillway.v1.OnFull and of the journal.
type OnFull uint8

const (
	Block      OnFull = 1 // appends are refused
	DropOldest OnFull = 2 // the oldest pending batches are settled as dropped
	Defer      OnFull = 3 // newer batches are not kept, and refetched later
)

// SubscriptionConfig is a subscription as somebody wants it.
type SubscriptionConfig struct {
	Name   string   `json:"name"`
	Topics []string `json:"topics"` // globs of path.Match
	// Required subscriptions hold back the safe offset. What another one still needs after a
	// crash is refetched.
	Required bool   `json:"required"`
	OnFull   OnFull `json:"on_full"` // 0 is Block
	// Limit bounds the payload bytes of the backlog; 0 leaves Block to the queue's disk bound,
	// and is policyPercent of that for the others.
	Limit int64 `json:"limit"`
	// Headers are for deliveries, of a Numbered queue. Else the file that the buffer has counts.
	Headers []HeaderFilter `json:"headers,omitempty"`
}

// policyPercent of the queue's disk bound is the limit of a subscription that drops or defers and
// has no limit of its own: it gives way before the disk bound holds back the others.
const policyPercent = 80

func (c *SubscriptionConfig) equal(o *SubscriptionConfig) bool {
	return c.Name == o.Name && slices.Equal(c.Topics, o.Topics) && c.Required == o.Required && c.OnFull == o.OnFull && c.Limit == o.Limit &&
		slices.EqualFunc(c.Headers, o.Headers, HeaderFilter.equal)
}

// subscription is one destination's claim on the queue.
type subscription struct {
	SubscriptionConfig
	globs      globs // of Topics
	id         int64 // never reused; names the subscription in the journal
	seed       *SubscriptionConfig
	paused     bool
	configured bool // the configuration names it now
	deleted    bool // or its deletion is being written
	moving     int  // changes that move it are being written: nothing is leased

	progress []*progress // of the partitions it wants; progress.slot is the index
	// ready is the partitions that may have something to lease, in turn. With ordering, those of
	// which a session holds leases are in Session.ready instead.
	ready           line[*progress]
	undispatched    bool       // there may be more to lease than was leased at once
	sessions        []*Session // live
	takers          takers     // sessions, by their credit
	orderedSessions int
	// orphans are dead sessions whose sink state waits for a live session.
	orphans []*Session
	// stateBytes is what its sessions' sink state counts in memory.
	stateBytes int64

	replay               *replayRun    // the last one, or nil
	replaying, redriving int64         // offsets that a replay, or redriving, has left
	undelivered          []Undelivered // the newest maxUndelivered, oldest first; durable
	reasonBytes          int           // of the reasons in it
	deadListed           int64         // dead letters in it
	copies               []*piece      // of dead letters, oldest first
	copyBytes            int64         // of their payloads

	pendingRecords, pendingBytes int64 // of the pieces it needs
	keptRecords, keptBytes       int64 // of those in partitions that it does not want any more
	deferred                     int64 // offsets that are pending and not held
	scattered                    int   // ranges settled in front of what was never leased, above some that are not
	parked                       int   // pieces of it in Queue.parked
	parkedQuiet                  int64 // until then the log says nothing of it, on the queue's clock
	droppingBytes                int64 // of pieces whose drop is being written
	allLeased                    int64 // until then nothing more can be dropped, on the queue's clock
	leased                       int
	leasedRecords, leasedBytes   int64   // of the pieces that are leased
	taken                        int64   // payload bytes leased for the first time since pace was measured
	pace                         float64 // how many a second are, about
	// Since Open.
	delivered, deadLettered, dropped, lost, redelivered int64
}

// maxUndelivered bounds what is remembered of a subscription's undelivered ranges.
const maxUndelivered = 10_000

// Undelivered is a range that ended otherwise than delivered or filtered.
type Undelivered struct {
	Partition Partition `json:"part"`
	Range     Range     `json:"range"`
	Outcome   Outcome   `json:"o"`
	Reason    string    `json:"why"`
	AtMs      int64     `json:"at"` // since the Unix epoch
}

// dead returns how many dead letters the range is.
func (u *Undelivered) dead() int64 {
	if u.Outcome != DeadLettered {
		return 0
	}
	return u.Range.Len()
}

// note remembers an undelivered range, joined with the one before when that is alike.
func (s *subscription) note(u Undelivered) {
	u.Reason = CutReason(u.Reason) // an older version did not
	s.deadListed += u.dead()
	if n := len(s.undelivered); n > 0 {
		last := &s.undelivered[n-1]
		if last.Partition == u.Partition && last.Outcome == u.Outcome && last.Reason == u.Reason && last.Range.Next == u.Range.First {
			last.Range.Next, last.AtMs = u.Range.Next, u.AtMs
			return
		}
	}
	if s.reasonBytes += len(u.Reason); len(s.undelivered) >= maxUndelivered || s.reasonBytes > maxUndeliveredBytes {
		gone := len(s.undelivered)/10 + 1
		for _, u := range s.undelivered[:gone] {
			s.reasonBytes -= len(u.Reason)
			s.deadListed -= u.dead()
		}
		s.undelivered = slices.Clone(s.undelivered[gone:]) // a snapshot may still read the old one
	}
	s.undelivered = append(s.undelivered, u)
}

// wants says whether a topic matches one of the globs.
func (s *subscription) wants(topic string) bool {
	if !s.globs.are(s.Topics) {
		s.globs = newGlobs(s.Topics)
	}
	return s.globs.match(topic)
}

// globs are the topics that a subscription wants. There may be thousands of names, and as many
// topics are looked for among them with the lock held.
type globs struct {
	of       []string
	names    map[string]bool // those that match nothing else
	patterns []string
}

func newGlobs(of []string) globs {
	g := globs{of: of, names: make(map[string]bool)}
	for _, glob := range of {
		if strings.ContainsAny(glob, `*?[\`) {
			g.patterns = append(g.patterns, glob)
		} else {
			g.names[glob] = true
		}
	}
	return g
}

// are says whether they were made of a list, which nobody changes.
func (g *globs) are(list []string) bool {
	return len(g.of) == len(list) && (len(list) == 0 || &g.of[0] == &list[0])
}

func (g *globs) match(topic string) bool {
	return g.names[topic] || slices.ContainsFunc(g.patterns, func(glob string) bool {
		ok, _ := path.Match(glob, topic)
		return ok
	})
}

// ordered says whether partitions are leased in order, to one session at a time.
func (s *subscription) ordered() bool { return s.orderedSessions > 0 }

// redeliveryDelay is the buffer's own backoff: 100ms after the first attempt, doubled up to 30s,
// and between half and all of it by chance.
func redeliveryDelay(attempt int, random float64) time.Duration {
	const first, most = 100 * time.Millisecond, 30 * time.Second
	d := most
	if attempt < 10 {
		d = min(most, first<<max(attempt-1, 0))
	}
	return d/2 + time.Duration(random*float64(d/2))
}
