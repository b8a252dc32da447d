package shards

import (
	"fmt"
	"sync"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// Seen is what a client has seen of a shard, so that it never goes back to a buffer that has lost
// the shard to another. The zero value has seen nothing.
type Seen struct {
	mu    sync.Mutex
	life  string
	epoch uint64
}

// Claim is what to open a stream with.
func (s *Seen) Claim(shard, shards int) *spillwayv1.ShardClaim {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &spillwayv1.ShardClaim{Number: int32(shard), Of: int32(shards), Life: s.life, Epoch: s.epoch}
}

// Admit notes what a buffer answers, or says why it is not the owner. Epochs of different lives
// are not compared.
func (s *Seen) Admit(life string, epoch uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if life == s.life && epoch < s.epoch {
		return fmt.Errorf("the buffer has lost the shard to another: its epoch is %d, and %d has been seen", epoch, s.epoch)
	}
	s.life, s.epoch = life, epoch
	return nil
}

// Life is the name of the shard's data that was seen last; empty: none.
func (s *Seen) Life() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.life
}
