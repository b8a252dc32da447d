// Package memstore is a queue.Store in memory, for tests. What was appended survives Reopen, which
// stands for the restart of a process, and nothing else. As on disk, Reopen brings back released
// batches of segments that were not dropped.
package memstore

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// DefaultSegmentBytes is where a segment ends when the store does not say otherwise.
const DefaultSegmentBytes = 1 << 20

var (
	errClosed   = errors.New("store is closed")
	errReopened = errors.New("store was opened again")
)

// Memory is what stores write to: the disk, as it were.
type Memory struct {
	// SegmentBytes is where a segment ends: meta and payload bytes. Set it before the first
	// Reopen.
	SegmentBytes int64

	mu       sync.Mutex
	segments []*segment
	next     uint64 // group
	open     *Store // the one that was opened last
}

type segment struct {
	parts  [][]byte // of the snapshot that it begins with
	whole  bool     // these are all
	groups []storedGroup
	bytes  int64
	live   map[queue.Ref]struct{}
}

type storedGroup struct {
	number  uint64
	entries []queue.Entry
}

// New returns an empty memory. Reopen makes a store of it.
func New() *Memory { return &Memory{SegmentBytes: DefaultSegmentBytes, next: 1} }

// Reopen opens a store on what has been appended so far. The store that was open before, if any,
// is dead, as if its process had been killed: its methods fail.
func (m *Memory) Reopen(opts queue.StoreOptions) (*Store, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &Store{m: m, opts: opts, fresh: true}
	if m.open != nil && m.open.dead == nil {
		m.open.dead = errReopened
	}
	m.open = nil
	newest := m.newestSnapshotLocked()
	for i, seg := range m.segments {
		if i == newest {
			for _, part := range seg.parts {
				if err := opts.Recover(queue.Recovered{Kind: queue.SnapshotEntry, Meta: bytes.Clone(part)}); err != nil {
					return nil, fmt.Errorf("recover snapshot: %w", err)
				}
			}
		}
		for _, g := range seg.groups {
			if err := g.recover(seg, i >= newest, opts.Recover); err != nil {
				return nil, fmt.Errorf("recover group %d: %w", g.number, err)
			}
		}
	}
	m.open = s
	return s, nil
}

// newestSnapshotLocked is the index of the last segment with a whole snapshot, or 0.
func (m *Memory) newestSnapshotLocked() int {
	for i := len(m.segments) - 1; i > 0; i-- {
		if m.segments[i].whole {
			return i
		}
	}
	return 0
}

func (g *storedGroup) recover(seg *segment, changes bool, tell func(queue.Recovered) error) error {
	for i, e := range g.entries {
		ref := refOf(g.number, i, e)
		switch e.Kind {
		case 0: // dropped
			continue
		case queue.BatchEntry:
			seg.live[ref] = struct{}{}
		case queue.ChangeEntry:
			if !changes {
				continue
			}
		}
		if err := tell(queue.Recovered{Kind: e.Kind, Meta: bytes.Clone(e.Meta), Ref: ref}); err != nil {
			return err
		}
	}
	return nil
}

func refOf(group uint64, i int, e queue.Entry) queue.Ref {
	if e.Kind != queue.BatchEntry {
		return queue.Ref{}
	}
	return queue.Ref{Group: group, Offset: uint32(i), Length: uint32(len(e.Payload))}
}

// Wipe loses everything, as a lost disk does. The open store is dead afterwards.
func (m *Memory) Wipe() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.segments, m.next = nil, 1
	if m.open != nil && m.open.dead == nil {
		m.open.dead = errReopened
	}
	m.open = nil
}

// Store is an open store. It implements queue.Store.
type Store struct {
	m    *Memory
	opts queue.StoreOptions

	fresh    bool  // nothing was appended since it was opened
	dead     error // why it is no longer usable
	snapshot queue.Snapshot
	begun    *segment // of snapshot; nil: none goes on
}

// Append implements queue.Store.
func (s *Store) Append(entries []queue.Entry) ([]queue.Ref, error) {
	for i, e := range entries {
		if e.Kind != queue.BatchEntry && (e.Kind != queue.ChangeEntry || len(e.Payload) > 0) {
			return nil, fmt.Errorf("append entry %d: kind %d cannot be stored, or not with a payload", i, e.Kind)
		}
	}
	s.m.mu.Lock()
	if s.dead != nil {
		s.m.mu.Unlock()
		return nil, fmt.Errorf("append group: %w", s.dead)
	}
	n := len(s.m.segments)
	begins := s.fresh || s.m.segments[n-1].bytes >= s.m.SegmentBytes
	snapshots := begins && s.begun == nil
	s.m.mu.Unlock()
	var parts [][]byte
	whole := false
	if snapshots { // without the lock: Snapshot takes the queue's, and Release comes with it held
		s.snapshot = s.opts.Snapshot()
		for n := 0; !whole && (s.fresh || n < 2); n++ {
			part := s.snapshot.Next()
			if whole = part == nil; !whole {
				parts = append(parts, bytes.Clone(part))
			}
		}
	}

	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if s.dead != nil {
		return nil, fmt.Errorf("append group: %w", s.dead)
	}
	g := storedGroup{number: s.m.next}
	if begins {
		seg := &segment{live: make(map[queue.Ref]struct{}), parts: parts, whole: whole}
		s.m.segments = append(s.m.segments, seg)
		if snapshots && !whole {
			s.begun = seg
		}
	}
	seg := s.m.segments[len(s.m.segments)-1]
	refs := make([]queue.Ref, len(entries))
	for i, e := range entries {
		e.Meta, e.Payload = bytes.Clone(e.Meta), bytes.Clone(e.Payload)
		refs[i] = refOf(g.number, len(g.entries), e)
		g.entries = append(g.entries, e)
		seg.bytes += int64(len(e.Meta) + len(e.Payload))
		if e.Kind == queue.BatchEntry {
			seg.live[refs[i]] = struct{}{}
		}
	}
	seg.groups = append(seg.groups, g)
	s.m.next++
	s.fresh = false
	s.m.dropReleasedLocked()
	return refs, nil
}

// Continue implements queue.Store.
func (s *Store) Continue() (more bool, err error) {
	if s.begun == nil {
		return false, nil
	}
	part := s.snapshot.Next()
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if s.dead != nil {
		return false, fmt.Errorf("continue snapshot: %w", s.dead)
	}
	if part == nil {
		s.begun.whole, s.begun = true, nil
		s.m.dropReleasedLocked()
		return false, nil
	}
	s.begun.parts = append(s.begun.parts, bytes.Clone(part))
	return true, nil
}

// dropReleasedLocked drops segments without a live batch, and of those with few the rest, but for
// the one that has the newest snapshot, and those with the changes after it.
func (m *Memory) dropReleasedLocked() {
	var kept []*segment
	newest := m.newestSnapshotLocked()
	for i, seg := range m.segments {
		if len(seg.live) > 0 || i >= newest {
			kept = append(kept, seg)
		}
		if i < newest {
			seg.dropReleased()
		}
	}
	m.segments = kept
}

// dropReleased leaves nothing but the live batches, when they are a quarter or less.
func (s *segment) dropReleased() {
	live := int64(0)
	for ref := range s.live {
		live += int64(ref.Length)
	}
	if live > s.bytes/4 {
		return
	}
	s.bytes, s.parts = 0, nil
	for _, g := range s.groups {
		for i := range g.entries {
			e := &g.entries[i]
			if _, ok := s.live[refOf(g.number, i, *e)]; !ok {
				*e = queue.Entry{}
			}
			s.bytes += int64(len(e.Meta) + len(e.Payload))
		}
	}
}

// Read implements queue.Store.
func (s *Store) Read(ref queue.Ref) ([]byte, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if s.dead != nil {
		return nil, fmt.Errorf("read group %d: %w", ref.Group, s.dead)
	}
	for _, seg := range s.m.segments {
		for _, g := range seg.groups {
			if g.number == ref.Group && int(ref.Offset) < len(g.entries) && ref != (queue.Ref{}) && refOf(g.number, int(ref.Offset), g.entries[ref.Offset]) == ref {
				return bytes.Clone(g.entries[ref.Offset].Payload), nil
			}
		}
	}
	return nil, fmt.Errorf("read group %d: it is not in the store", ref.Group)
}

// Release implements queue.Store.
func (s *Store) Release(refs []queue.Ref) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if s.dead != nil {
		return
	}
	for _, ref := range refs {
		for _, seg := range s.m.segments {
			delete(seg.live, ref)
		}
	}
	s.m.dropReleasedLocked()
}

// Stats implements queue.Store.
func (s *Store) Stats() queue.StoreStats {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	stats := queue.StoreStats{Segments: len(s.m.segments)}
	for _, seg := range s.m.segments {
		stats.DiskBytes += seg.bytes
	}
	return stats
}

// Close implements queue.Store.
func (s *Store) Close() error {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if s.dead == nil {
		s.dead = errClosed
	}
	return nil
}
