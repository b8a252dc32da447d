package delivery

import "sync"

// times is how far the time of records has come in all shards of a queue: what the slowest of them
// tells. Nothing is told while a shard has not told: no directory may be marked as complete on the
// word of some.
type times struct {
	mu       sync.Mutex
	sessions []*session // by shard; nil: there is none
	told     []*Watermark
}

func newTimes(shards int) *times {
	return &times{sessions: make([]*session, shards), told: make([]*Watermark, shards)}
}

// join takes in a shard's session, which tells anew.
func (t *times) join(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sessions[s.shard], t.told[s.shard] = s, nil
}

// leave forgets a session and what it told.
func (t *times) leave(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sessions[s.shard] == s {
		t.sessions[s.shard], t.told[s.shard] = nil, nil
	}
}

// tell takes what the buffer of a session tells, and passes the least of all shards on to all
// sessions.
func (t *times) tell(s *session, w Watermark) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sessions[s.shard] != s {
		return
	}
	t.told[s.shard] = &w
	least := w
	for _, other := range t.told {
		if other == nil {
			return
		}
		least.PassedMs, least.CompleteMs = min(least.PassedMs, other.PassedMs), min(least.CompleteMs, other.CompleteMs)
	}
	for _, of := range t.sessions {
		select { // only the newest counts, and only the owner of mu sends
		case <-of.watermarks:
		default:
		}
		of.watermarks <- least
	}
}
