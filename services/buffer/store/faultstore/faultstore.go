// Package faultstore puts scripted faults in front of a queue.Store, for tests.
package faultstore

import (
	"fmt"
	"sync"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// When says whether a group is in the store although Append fails.
type When int

const (
	// Before fails without appending.
	Before When = iota
	// After fails when the group is already durable: until the store is opened again, nobody can
	// tell.
	After
)

// Faults is the script. The stores that a test opens one after the other can share it, and it may
// be changed while they are in use. The zero Faults has no fault.
type Faults struct {
	mu          sync.Mutex
	appends     []*appendFault
	corrupt     map[queue.Ref]struct{}
	blockAppend *Block
	blockRead   *Block
}

type appendFault struct {
	n    int // which Append from now
	when When
	err  error
}

// FailAppend makes the nth Append from now fail with err; 1 is the next one.
func (f *Faults) FailAppend(n int, when When, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.appends = append(f.appends, &appendFault{n: n, when: when, err: err})
}

// CorruptRead makes every Read of ref fail with queue.ErrDamaged.
func (f *Faults) CorruptRead(ref queue.Ref) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.corrupt == nil {
		f.corrupt = make(map[queue.Ref]struct{})
	}
	f.corrupt[ref] = struct{}{}
}

// BlockAppend makes every Append wait before it does anything, until the block is released.
func (f *Faults) BlockAppend() *Block {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blockAppend = newBlock()
	return f.blockAppend
}

// BlockRead makes every Read wait before it does anything, until the block is released.
func (f *Faults) BlockRead() *Block {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blockRead = newBlock()
	return f.blockRead
}

// Block holds up calls.
type Block struct {
	enter, leave      sync.Once
	entered, released chan struct{}
}

func newBlock() *Block { return &Block{entered: make(chan struct{}), released: make(chan struct{})} }

// Entered is closed when the first call waits.
func (b *Block) Entered() <-chan struct{} { return b.entered }

// Release lets all calls go on, also later ones.
func (b *Block) Release() { b.leave.Do(func() { close(b.released) }) }

func (b *Block) wait() {
	if b != nil {
		b.enter.Do(func() { close(b.entered) })
		<-b.released
	}
}

// Wrap returns a store that does what inner does, but for the faults.
func (f *Faults) Wrap(inner queue.Store) *Store { return &Store{Store: inner, faults: f} }

// Store implements queue.Store.
type Store struct {
	queue.Store
	faults *Faults
}

// Append implements queue.Store.
func (s *Store) Append(entries []queue.Entry) ([]queue.Ref, error) {
	block, fault := s.faults.nextAppend()
	block.wait()
	if fault != nil && fault.when == Before {
		return nil, fmt.Errorf("append group: %w", fault.err)
	}
	refs, err := s.Store.Append(entries)
	if err == nil && fault != nil {
		return nil, fmt.Errorf("append group: %w", fault.err)
	}
	return refs, err
}

// nextAppend counts an Append, and returns what is to happen to it.
func (f *Faults) nextAppend() (block *Block, fault *appendFault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var later []*appendFault
	for _, a := range f.appends {
		if a.n--; a.n > 0 {
			later = append(later, a)
		} else if fault == nil {
			fault = a
		}
	}
	f.appends = later
	return f.blockAppend, fault
}

// Read implements queue.Store.
func (s *Store) Read(ref queue.Ref) ([]byte, error) {
	s.faults.mu.Lock()
	block := s.faults.blockRead
	_, corrupt := s.faults.corrupt[ref]
	s.faults.mu.Unlock()
	block.wait()
	if corrupt {
		return nil, fmt.Errorf("read group %d: %w", ref.Group, queue.ErrDamaged)
	}
	return s.Store.Read(ref)
}
