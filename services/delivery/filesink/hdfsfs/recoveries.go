package hdfsfs

import (
	"fmt"
	"sync"
	"time"

	"github.com/spillwayio/spillway/services/delivery/filesink"
)

const (
	// deadPatience is how long recovery waits for a second DataNode of a block, or one that has
	// what was committed. With one alone that has lost its disk HDFS would delete the block.
	deadPatience = 5 * time.Minute
	// slowFor is how long a DataNode tries to reach one that refuses connections.
	slowFor = 11 * time.Second
	// perHeartbeat is how many blocks a DataNode gets to recover with one heartbeat, and
	// roomEvery the time between two looks whether it had the next one.
	perHeartbeat = 64
	roomEvery    = 300 * time.Millisecond
	// askAgain is the time between two requests for the same file; it is looked at in between.
	// The NameNode repeats a recovery after 30 heartbeats of DataNodes at the earliest.
	askAgain = 5 * time.Second
	// cutPatience is how long a file that HDFS cuts is let alone. To ask again while a DataNode
	// works on it would begin a second recovery, which takes over some of the replicas: they end
	// up with different lengths, and no recovery of them succeeds ever after.
	cutPatience = 20 * time.Second
	// seenFor is how long it counts how a DataNode was seen.
	seenFor = 2 * time.Second
	// maxRemembered bounds what is remembered of files, and of DataNodes.
	maxRemembered = 20_000
)

// recoveries asks for the recovery of blocks such that few wait for others.
//
// The NameNode has that DataNode recover a block whose heartbeat came last, its primary, and
// tells it with the next one. All blocks that it is told of with one heartbeat the DataNode
// recovers one after the other, those of different heartbeats side by side. It asks the other
// DataNodes of a block. To reach one that is dead takes it ten seconds, and it tries that for one
// block at a time; one that is silent takes minutes. Only when the NameNode has not heard of such
// a DataNode for staleAfter does it leave it out. So a primary gets few blocks with one
// heartbeat, and hardly any that is slow: those are recovered faster after that time.
type recoveries struct {
	staleAfter time.Duration
	livenessOf func(addr string) liveness

	mu      sync.Mutex
	seen    map[string]sight     // DataNodes, by address
	batches map[string]*batch    // by uuid of the primary: what it hears of with its next heartbeat
	again   map[string]time.Time // files, by alias: when they may be asked for again
}

// sight is how a DataNode was seen.
type sight struct {
	at      time.Time
	looking bool // somebody looks now
	state   liveness
}

// batch is what is asked for between two heartbeats of a primary.
type batch struct {
	beat   uint64
	blocks int
	slow   time.Time // until when it tries to reach dead DataNodes
}

// mayAsk returns nil when recovery of the last block of a file, whose writer is gone for so long,
// is to be asked for now, and why not otherwise. Has says whether a DataNode is seen to have what
// was committed.
func (r *recoveries) mayAsk(alias string, at *located, gone time.Duration, has func(node int) bool) error {
	b := r.inspect(at)
	soon := gone < r.staleAfter // later nothing is waited for that may never come
	switch {
	case gone < deadPatience && (b.live == 0 || b.live == 1 && len(at.nodes) > 1 && !has(b.lastLive)):
		return fmt.Errorf("%w: %d of those of %v live", filesink.ErrWait, b.live, at)
	case soon && b.silent > 0:
		return fmt.Errorf("%w: %d of those of %v do not answer; the NameNode leaves them out soon", filesink.ErrWait, b.silent, at)
	case soon && b.dead > 0 && (b.leftOutIn < slowFor || !b.primaryLives):
		return fmt.Errorf("%w: %d of those of %v are dead; the NameNode leaves them out soon", filesink.ErrWait, b.dead, at)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if now.Before(r.again[alias]) {
		return fmt.Errorf("%w: HDFS recovers %v", filesink.ErrWait, at)
	}
	slow := time.Duration(b.dead+b.silent) * slowFor
	if b.primary != nil && !r.roomLocked(b.primary, slow, now) {
		if slow > 0 {
			return fmt.Errorf("%w: %d of those of %v are dead, and others are recovered first", filesink.ErrWait, b.dead+b.silent, at)
		}
		return &filesink.WaitError{After: roomEvery, Reason: fmt.Sprintf("other blocks are recovered before %v", at)}
	}
	r.waitLocked(alias, now.Add(askAgain))
	return nil
}

// roomLocked reports whether a block may be added to what a primary hears of next, and adds it.
// Slow is for how long it tries to reach dead DataNodes for the block.
func (r *recoveries) roomLocked(primary *dataNode, slow time.Duration, now time.Time) bool {
	if r.batches == nil || len(r.batches) >= maxRemembered {
		r.batches = make(map[string]*batch)
	}
	next := r.batches[primary.uuid]
	if next == nil {
		next = &batch{}
		r.batches[primary.uuid] = next
	}
	if next.beat != primary.beat {
		next.beat, next.blocks = primary.beat, 0
	}
	switch {
	case next.blocks >= perHeartbeat || slow > 0 && now.Before(next.slow):
		return false
	case slow > 0:
		next.blocks, next.slow = perHeartbeat, now.Add(slow)
	default:
		next.blocks++
	}
	return true
}

func (r *recoveries) waitLocked(alias string, until time.Time) {
	if r.again == nil || len(r.again) >= maxRemembered {
		r.again = make(map[string]time.Time)
	}
	r.again[alias] = until
}

// cut notes that HDFS cuts a file since then, unless it is noted already.
func (r *recoveries) cut(alias string, since time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.again[alias].IsZero() {
		r.waitLocked(alias, since.Add(cutPatience))
	}
}

// ended notes that a file is not recovered any more.
func (r *recoveries) ended(alias string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.again, alias)
}

// inspection is what is known of a block's DataNodes.
type inspection struct {
	live     int
	lastLive int // one of them
	// Those that a recovery tries to reach in vain.
	dead, silent int
	leftOutIn    time.Duration // until the NameNode leaves the last of them out
	// primary is the DataNode whose heartbeat came last. It is nil where the NameNode tells no
	// heartbeats.
	primary      *dataNode
	primaryLives bool
}

func (r *recoveries) inspect(at *located) inspection {
	b := inspection{primaryLives: true}
	newest, kept := uint64(0), 0
	for i := range at.nodes {
		if n := &at.nodes[i]; n.beat > newest {
			newest, b.primary = n.beat, n
		}
	}
	leftOutIn := func(n *dataNode) time.Duration {
		return r.staleAfter - time.Duration(newest-n.beat)*time.Millisecond
	}
	for i := range at.nodes {
		if leftOutIn(&at.nodes[i]) > 0 {
			kept++
		}
	}
	for i := range at.nodes {
		n := &at.nodes[i]
		state := r.look(n.addr)
		if state == living {
			b.live, b.lastLive = b.live+1, i
			continue
		}
		if n == b.primary {
			b.primaryLives = false
		}
		in := leftOutIn(n)
		if in <= 0 && kept > 1 { // else the NameNode leaves none out
			continue
		}
		b.leftOutIn = max(b.leftOutIn, in)
		if state == silent {
			b.silent++
		} else {
			b.dead++
		}
	}
	return b
}

// look returns how a DataNode is, as of a moment ago. One that another goroutine looks at for the
// first time counts as silent.
func (r *recoveries) look(addr string) liveness {
	r.mu.Lock()
	if r.seen == nil || len(r.seen) >= maxRemembered {
		r.seen = make(map[string]sight)
	}
	s := r.seen[addr]
	if s.looking || time.Since(s.at) < seenFor {
		r.mu.Unlock()
		return s.state
	}
	s.looking = true
	r.seen[addr] = s
	r.mu.Unlock()
	s = sight{state: r.livenessOf(addr)}
	s.at = time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen[addr] = s
	return s.state
}
