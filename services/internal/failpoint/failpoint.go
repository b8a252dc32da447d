// Package failpoint lets tests end a process exactly between two steps. Outside of tests At costs
// one load of a pointer that is nil.
//
// A test in the same process sets a hook. One that starts the process names a point in
// $E2E_FAILPOINT, "commit.put" or "commit.put:2": the process kills itself with SIGKILL when it
// comes there for the first, or second, time.
package failpoint

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Variable names a point in the environment of a process.
const Variable = "E2E_FAILPOINT"

// The points of a delivery to files, each with what has been done there.
const (
	CommitBegun    = "commit.begun"    // nothing
	CommitPut      = "commit.put"      // the entries of new files are put
	FSCreated      = "fs.created"      // a file is there and open, a new one is empty
	FSWritten      = "fs.written"      // data is written, and Commit has not returned
	CommitWritten  = "commit.written"  // all files are written, and nothing is acked
	CommitSettled  = "commit.settled"  // the ack is durable; no file is renamed
	RollRenamed    = "roll.renamed"    // a file has its final name, and its entry is there
	CommitRolled   = "commit.rolled"   // the entries of final files are deleted
	AdoptFound     = "adopt.found"     // a file is found, and not touched
	AdoptNamed     = "adopt.named"     // its alias is put
	FSClosed       = "fs.closed"       // a file is closed, and has its name in use
	FSRenamed      = "fs.renamed"      // it has its alias, and is not cut
	FSRecovered    = "fs.recovered"    // nobody writes it any more, and it is not cut
	AdoptTaken     = "adopt.taken"     // it is cut
	AdoptFinal     = "adopt.final"     // it has its final name, and its entry is there
	AdoptForgotten = "adopt.forgotten" // its entry is deleted
	AdoptDiscarded = "adopt.discarded" // a file of which nothing counts is removed, and its entry is there
)

// The points of a move of a queue to another store.
const (
	MoveCopying = "move.copying" // a group of batches is copied
	MoveCopied  = "move.copied"  // all are
	MoveMarked  = "move.marked"  // the queue cannot be opened where it was
	MoveLedger  = "move.ledger"  // a shard is whole in the other place
	MoveDone    = "move.done"    // the directory says that its files are not needed
)

var hook atomic.Pointer[func(name string)]

func init() {
	if v := os.Getenv(Variable); v != "" {
		Set(killer(v))
	}
}

// At is a point.
func At(name string) {
	if h := hook.Load(); h != nil {
		(*h)(name)
	}
}

// Set has f called at every point, and returns what ends that. f may be called by several
// goroutines at a time.
func Set(f func(name string)) (end func()) {
	hook.Store(&f)
	return func() { hook.Store(nil) }
}

// killer ends the process at a point.
func killer(variable string) func(string) {
	point, times, _ := strings.Cut(variable, ":")
	left := new(atomic.Int64)
	left.Store(1)
	if n, err := strconv.ParseInt(times, 10, 64); err == nil {
		left.Store(n)
	}
	return func(name string) {
		if name != point || left.Add(-1) > 0 {
			return
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // SIGKILL is on its way
	}
}
