package queue

import "sync"

// Share is the part of a buffer's memory that one of its queues has. It may change while the queue
// runs, when the buffer gets another shard of the same queue, or loses one.
type Share struct {
	Records, Bytes int64 // as Config.MemoryRecords and Config.MemoryBytes
	FreeBatches    int64 // as Config.FreeBatches
	MaxLeases      int   // as Config.MaxLeases
}

// Of returns an equal part of the share for each of n queues, which is something.
func (s Share) Of(n int) Share {
	return Share{max(s.Records/int64(n), 1), max(s.Bytes/int64(n), 1), max(s.FreeBatches/int64(n), 1), max(s.MaxLeases/n, 1)}
}

// Memory returns the share that the configuration names.
func (c *Config) Memory() Share {
	return Share{c.MemoryRecords, c.MemoryBytes, c.FreeBatches, c.MaxLeases}
}

// SetMemory changes what Memory returns.
func (c *Config) SetMemory(s Share) {
	c.MemoryRecords, c.MemoryBytes, c.FreeBatches, c.MaxLeases = s.Records, s.Bytes, s.FreeBatches, s.MaxLeases
}

// SetMemory changes the queue's share at once. What is in memory above it is written soon, and
// Append waits for that. It returns what is in memory now.
func (q *Queue) SetMemory(s Share) (records, bytes int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.cfg.Memory() != s {
		q.cfg.SetMemory(s)
		q.roomLocked()
		if q.spillDueLocked() {
			q.wake()
		}
	}
	return q.memoryRecords, q.memoryBytes + q.heldBytes
}

// Oversize has one batch pass at a time that is larger than the window of its queue, of all queues
// that share it: else each of many small windows could hold one of any size.
type Oversize struct {
	mu    sync.Mutex
	freed chan struct{} // closed when the one that passes has passed; nil: none does
}

// enter says whether a batch may pass; if not, the channel is closed when it is worth another try.
func (o *Oversize) enter() (bool, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.freed != nil {
		return false, o.freed
	}
	o.freed = make(chan struct{})
	return true, nil
}

func (o *Oversize) leave() {
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.freed)
	o.freed = nil
}

// passesAloneLocked says whether a batch that does not fit into the window may pass it alone. The
// channel is closed when others let it; nil: they do.
func (q *Queue) passesAloneLocked() (bool, <-chan struct{}) {
	if q.memoryBytes != 0 {
		return false, nil
	}
	if q.cfg.Oversize == nil || q.passing {
		return true, nil
	}
	var others <-chan struct{}
	q.passing, others = q.cfg.Oversize.enter()
	return q.passing, others
}

// passedLocked lets others have a batch pass when this queue has none any more that does.
func (q *Queue) passedLocked() {
	if q.passing && (q.memoryBytes == 0 || q.closed != nil) {
		q.passing = false
		q.cfg.Oversize.leave()
	}
}
