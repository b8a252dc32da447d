package queue

import "errors"

// ErrDamaged is wrapped by Store.Read when the bytes are there but wrong.
var ErrDamaged = errors.New("stored bytes are damaged")

// Store keeps a queue's entries durably, in the order they were appended. One goroutine at a time
// calls Append; Read, Release and Stats may be called concurrently with it and each other.
//
// After an error of Append nothing is known about the group: the caller closes the store and
// opens it again, and believes what it finds then. ErrNoSpace is the exception: nothing of the
// group was written, the store goes on, and the caller tries again later. A group of changes
// alone may still fit then, since a store keeps space in reserve for them.
type Store interface {
	// Append writes entries as one group, all or nothing. When it returns nil they are on disk
	// and survive a power cut; refs[i] locates the payload of entries[i]. The store keeps no
	// slice of the entries after it returned. When the group begins a new segment, and no
	// snapshot goes on, the store first calls the Snapshot function it was opened with, on this
	// goroutine: its parts count as written in front of the group. The first Append writes all of
	// them: what opening the queue has changed is in no change.
	Append(entries []Entry) (refs []Ref, err error)
	// Continue writes the next part of a snapshot that goes on, and says whether there may be
	// more. It is called between groups by whoever calls Append, takes no longer than a group, and
	// its errors are like those of Append. A snapshot counts once all of it is on disk; until then
	// the one before does, with the changes since.
	Continue() (more bool, err error)
	// Read returns the payload at ref in a slice the caller may keep but not change. Damage is
	// ErrDamaged.
	Read(ref Ref) ([]byte, error)
	// Release says that the payloads are no longer needed. Space comes back when all of a segment
	// is released, or most of it.
	Release(refs []Ref)
	// Stats tells what the store uses.
	Stats() StoreStats
	// Close releases files and locks. It does not delete anything.
	Close() error
}

// Checker is a Store that can find out, between writes, that nothing it writes would be found
// again.
type Checker interface {
	// Check returns an error as Append would. It is called by whoever calls Append.
	Check() error
}

// EntryKind says how an entry is recovered.
type EntryKind uint8

const (
	// BatchEntry has a payload and counts until it is released.
	BatchEntry EntryKind = 1
	// ChangeEntry is a change of ledger state, superseded by a later snapshot.
	ChangeEntry EntryKind = 2
	// SnapshotEntry is a part of the ledger state of everything appended before the snapshot was
	// begun. Only Snapshot makes these.
	SnapshotEntry EntryKind = 3
)

// Snapshot is a state in parts. It stays what it was when it was begun, though groups are appended
// meanwhile. Only whoever calls Append calls its methods.
type Snapshot interface {
	// Next returns the Meta of the next SnapshotEntry, and nil after the last.
	Next() []byte
	// Abandon ends a snapshot before its last part. Afterwards it does nothing.
	Abandon()
}

// WholeSnapshot is a Snapshot of one part.
type WholeSnapshot []byte

// Next implements Snapshot.
func (s *WholeSnapshot) Next() []byte {
	part := *s
	*s = nil
	return part
}

// Abandon implements Snapshot.
func (s *WholeSnapshot) Abandon() { *s = nil }

// Entry is one thing to store.
type Entry struct {
	Kind EntryKind
	// Meta is small, and handed back when the store is opened.
	Meta []byte
	// Payload is only for BatchEntry, and read by Ref.
	Payload []byte
}

// Ref locates a payload. The zero Ref locates nothing.
type Ref struct {
	Group  uint64 // from 1, ascending
	Offset uint32 // of the payload in the group
	Length uint32 // of the payload
}

// Recovered is one entry found when a store is opened. Meta may be kept.
type Recovered struct {
	Kind EntryKind
	Meta []byte
	Ref  Ref // of a BatchEntry
}

// StoreOptions are what a queue gives to a store it opens.
type StoreOptions struct {
	// DiskBytes is the queue's bound: beyond it nothing is appended but changes. 0: none.
	DiskBytes int64
	// Recover is called during Open, in append order, with every batch that was not released
	// durably (released ones may come back too), and with the newest readable snapshot, all parts
	// of it, and the changes after it was begun. Batches of older segments come before it.
	Recover func(Recovered) error
	// Snapshot begins a snapshot of the state after all groups appended so far. A store makes one
	// at a time.
	Snapshot func() Snapshot
	// Damage is called with every damaged byte range found, in words for people.
	Damage func(description string)
}

// StoreStats is what a store uses.
type StoreStats struct {
	DiskBytes int64 // of all its files, by their allocated blocks
	Segments  int
}
