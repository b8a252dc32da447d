package shards

import (
	"fmt"
	"sync"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// Seen is a shard, and what a client has seen of it: so the client never goes back to a buffer
// that has lost the shard to another, and never takes another buffer's data for the shard's.
type Seen struct {
	Queue      string
	Number, Of int
	// Rival is called when a buffer is refused that says that it has the shard, too, with other
	// data. It may be nil.
	Rival func(error)

	mu      sync.Mutex
	life    string // empty: nothing was seen
	epoch   uint64
	address string // of the buffer
}

// Claim returns what to open a stream with.
func (s *Seen) Claim() *spillwayv1.ShardClaim {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &spillwayv1.ShardClaim{Number: int32(s.Number), Of: int32(s.Of), Life: s.life, Epoch: s.epoch}
}

// Admit notes what the buffer at an address answers, or returns why it is not the owner. Epochs of
// different lives are not compared.
func (s *Seen) Admit(address, life string, epoch uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.strangerLocked(address, life, epoch); err != nil {
		return err
	}
	if life == s.life && epoch < s.epoch {
		return fmt.Errorf("the buffer has lost the shard to another: its epoch is %d, and %d has been seen", epoch, s.epoch)
	}
	s.address, s.life, s.epoch = address, life, epoch
	return nil
}

// strangerLocked returns an error that names a buffer which has a shard of that number, but other
// data than the buffer that was seen before. Data directories have no epoch, which would tell who
// is the later owner: so other data count only where the first buffer was, which has lost its disk
// then. A client that is started anew takes the data of the buffer that it finds.
func (s *Seen) strangerLocked(address, life string, epoch uint64) error {
	if s.life == "" || life == "" || life == s.life || address == s.address || epoch != 0 || s.epoch != 0 {
		return nil
	}
	return fmt.Errorf("the buffer at %s says that it has shard %d of queue %s, which is at the one at %s: its data are others (%s, and not %s). "+
		"Give it a buffer.shard of its own; if it is to be in the place of the other one for good, restart this process",
		address, s.Number, s.Queue, s.address, life, s.life)
}

// knows returns whether a buffer has the data that were seen last, or is where they were seen.
func (s *Seen) knows(address string, shard *spillwayv1.Shard) (theData, thePlace bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life == "" || s.epoch != 0 {
		return false, false
	}
	return shard.Life == s.life, address == s.address
}

// refuse reports a buffer that has other data than the one that was seen before.
func (s *Seen) refuse(address string, shard *spillwayv1.Shard) {
	s.mu.Lock()
	err := s.strangerLocked(address, shard.Life, shard.Epoch)
	s.mu.Unlock()
	if err != nil && s.Rival != nil {
		s.Rival(err)
	}
}

// Life is the name of the shard's data that was seen last; empty: none.
func (s *Seen) Life() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.life
}
