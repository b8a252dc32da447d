package filesink

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/spillwayio/spillway/services/delivery/filesink/serializer"
	"github.com/spillwayio/spillway/services/internal/backoff"
)

// bucket is a directory and a prefix of names, and the file that its records go to now.
type bucket struct {
	dir, prefix string
	file        *file // nil when the next record begins one
	denied      error // what the file system said last, when it was ErrDenied
	retryAt     time.Time
	backoff     backoff.Backoff // of the attempts while it is denied
	dueMs       int64           // when dir is to be marked, by the time of records, since 1970; 0: never
	late        bool            // records came after that

	// broken counts its files that wait for recovery and have nothing committed. It is the
	// adopter's, under its lock.
	broken int
}

// file is a file being written: what is committed of it, and the records collected for it since.
//
// All fields are the loop's, except that a commit in progress works on those of the first group.
type file struct {
	key    string // of its entry
	entry  entry
	stored bool // the entry is in the buffer's state; only then the file may exist
	open   File // nil while it does not exist
	// begun is when the file was created, committedAt when records were last committed to it.
	begun, committedAt time.Time

	bucket *bucket
	sync   serializer.Sync
	chunk  serializer.Chunk // collected since the last commit began
	count  int64            // records in chunk
	// records is what the file will have when all commits succeed. So is bytes, but that what is
	// not committed yet counts as long as it is before compression.
	bytes, records int64
	full           bool   // big enough: to be made final with the next commit
	dropped        bool   // done with
	lease          uint64 // the last one of which it got a record: the least recent file is rolled first
}

// entry is what the buffer's sink state holds of a file. It is put before the file is created and
// deleted when the file is final, so every file that may exist without being final has one. Its
// JSON form is a format that later versions must read.
type entry struct {
	Version   int    `json:"v"`
	InUse     string `json:"in_use"`    // path of the file
	Final     string `json:"final"`     // path it will have
	Committed int64  `json:"committed"` // bytes of it that are acked; what lies beyond does not count
	Records   int64  `json:"records"`   // records in these
	// Tail is the end of these bytes, as far as the file system needs it to finish the file: see
	// File.Tail.
	Tail []byte `json:"tail,omitempty"`
	// DueMs is until when the buffer's complete time waits for the file; 0 for not at all.
	DueMs int64 `json:"due,omitempty"`
	// Aliases are the paths its adopters renamed it to, or were about to, newest first.
	Aliases []string `json:"aliases,omitempty"`
	// Unique says that the names carry a random number, so that no other session makes files of
	// these names. Entries of older versions lack it: their names repeat in other queues.
	Unique bool `json:"unique,omitempty"`
	// Released says that the file could not be finished for long, and holds back no time any
	// more: its directory has an _INCOMPLETE instead. Marked says that the entry's owners made
	// that.
	Released bool `json:"released,omitempty"`
	Marked   bool `json:"marked,omitempty"`
}

const entryVersion = 1

func (e *entry) encode() ([]byte, error) {
	b, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode entry of %s: %w", e.InUse, err)
	}
	return b, nil
}

func decodeEntry(value []byte) (entry, error) {
	var e entry
	if err := json.Unmarshal(value, &e); err != nil {
		return entry{}, fmt.Errorf("decode entry: %w", err)
	}
	if e.Version != entryVersion {
		return entry{}, fmt.Errorf("decode entry: version %d is unknown; a newer Spillway can finish the file", e.Version)
	}
	if !absolute(e.InUse) || !absolute(e.Final) || e.Committed < int64(len(e.Tail)) {
		return entry{}, fmt.Errorf("decode entry: malformed %q", value)
	}
	for _, alias := range e.Aliases {
		if !absolute(alias) {
			return entry{}, fmt.Errorf("decode entry: malformed alias %q", alias)
		}
	}
	return e, nil
}

func absolute(p string) bool {
	return strings.HasPrefix(p, "/") && path.Clean(p) == p && p != "/"
}

// names makes names of files. They carry the session's random number and a serial number, so they
// are unique over all sessions of all queues, whatever became of clocks and data directories.
type names struct {
	random                           uint64
	suffix, inUsePrefix, inUseSuffix string
}

func newNames(suffix, inUsePrefix, inUseSuffix string) names {
	var random [8]byte
	rand.Read(random[:]) // never fails
	return names{binary.BigEndian.Uint64(random[:]), suffix, inUsePrefix, inUseSuffix}
}

func (n *names) id(number uint64) string { return fmt.Sprintf("%d-%d", n.random, number) }

// begin makes the entry of a new file.
func (n *names) begin(b *bucket, number uint64) (key string, e entry) {
	key = n.id(number)
	name := key + n.suffix
	if b.prefix != "" {
		name = b.prefix + "." + name
	}
	return key, entry{Version: entryVersion, InUse: b.dir + "/" + n.inUse(name), Final: b.dir + "/" + name, Unique: true}
}

// alias is a new name for a file that is taken over. It marks the file as one in use.
func (n *names) alias(e *entry, number uint64) string {
	dir, name := path.Split(e.Final)
	return dir + n.inUse(name+".taken-"+n.id(number))
}

// spare is the name of what Take may need beside an alias.
func (n *names) spare(alias string) string {
	return strings.TrimSuffix(alias, n.inUseSuffix) + ".tail" + n.inUseSuffix
}

// otherFinal is a final path for a file whose own is taken by another.
func (n *names) otherFinal(e *entry, number uint64) string {
	stem, found := strings.CutSuffix(e.Final, n.suffix)
	if !found {
		return e.Final + "-" + n.id(number)
	}
	return stem + "-" + n.id(number) + n.suffix
}

func (n *names) inUse(name string) string { return n.inUsePrefix + name + n.inUseSuffix }
