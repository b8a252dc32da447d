package buffer

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/spillwayio/spillway/services/buffer/owners"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/buffer/store/kafkastore"
)

// managedQueue is a queue of the configuration, with the shards of it that this buffer has: the
// one that the configuration names, or all that the group of the buffers gives. To streams each
// shard is a queue of its own; what is asked of the queue is asked of all of them (several.go).
type managedQueue struct {
	name  string
	dir   string             // of the queue in data_dir; empty: there is no data_dir
	kafka *kafkastore.Config // nil: it is kept in dir. But for the shard
	group *owners.Member     // gives shards to this buffer; nil: the configuration does

	behind behind // of what the sources' groups have committed

	mu       sync.Mutex     // guards all below, and the shards
	cfg      queue.Config   // of which the shards divide the memory
	shards   map[int]*shard // that are here, whether open or not
	state    string         // while there are none
	dividing bool           // a timer will divide the memory again
	past     sums           // what shards counted that are not open any more
}

// shard is the queue of a shard, which is opened again when its store fails.
type shard struct {
	*managedQueue
	number int

	// Guarded by managedQueue.mu.
	given   *owners.Shard // by the group
	memory  queue.Share   // its part of the queue's
	store   KafkaStore    // of current, when it is in Kafka
	running *queue.Queue  // from when it is open until it has ended
	current *queue.Queue  // the same while it takes and gives anything
	epoch   uint64        // of the owner that opened it last; 0 in a data_dir, which has one for ever
	state   string
	lost    bool // to another owner, or with its topics
}

// openShard is the queue of a shard that is open.
type openShard struct {
	*queue.Queue
	*shard
}

// add makes a shard one of those that are here.
func (m *managedQueue) add(number int, given *owners.Shard) *shard {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := &shard{managedQueue: m, number: number, given: given, state: "opening"}
	m.shards[number] = h
	m.divideLocked()
	return h
}

// remove undoes add.
func (m *managedQueue) remove(h *shard) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closedLocked(h)
	delete(m.shards, h.number)
	m.state = "spare: other buffers have the shards"
	m.divideLocked()
}

// here lists the shards that this buffer has, by number.
func (m *managedQueue) here() []*shard {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.hereLocked()
}

func (m *managedQueue) hereLocked() (all []*shard) {
	for _, number := range slices.Sorted(maps.Keys(m.shards)) {
		all = append(all, m.shards[number])
	}
	return all
}

// open lists those that are open.
func (m *managedQueue) open() []openShard {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.openLocked()
}

func (m *managedQueue) openLocked() (all []openShard) {
	for _, h := range m.hereLocked() {
		if h.current != nil {
			all = append(all, openShard{h.current, h})
		}
	}
	return all
}

// numbers are those of the shards that are here, in words.
func numbers(all []*shard) string {
	var text []string
	for _, h := range all {
		text = append(text, fmt.Sprint(h.number))
	}
	switch len(text) {
	case 0:
		return "no shard"
	case 1:
		return "shard " + text[0]
	}
	return fmt.Sprint("shards ", text)
}

// config is how the queue of the shard is opened.
func (h *shard) config() queue.Config {
	h.mu.Lock()
	defer h.mu.Unlock()
	cfg := h.cfg
	cfg.Shard, cfg.Log = uint16(h.number), h.logTo(h.cfg.Log)
	cfg.SetMemory(h.memory)
	return cfg
}

// mayHaveOthers returns whether this buffer may have other shards of the queue, too.
func (h *shard) mayHaveOthers() bool { return h.group != nil && h.of() > 1 }

// logTo names the shard in the lines of a log, where there may be others here.
func (h *shard) logTo(log *slog.Logger) *slog.Logger {
	if !h.mayHaveOthers() {
		return log
	}
	return log.With("shard", h.number)
}

// get returns the queue, nil when it is not open, and in words what it is.
func (h *shard) get() (*queue.Queue, string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.current, h.state
}

// ownerEpoch is that of this buffer, also when it is the owner no more.
func (h *shard) ownerEpoch() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.epoch
}

// isLost says that the shard is not this buffer's any more.
func (h *shard) isLost() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lost
}

// set notes what became of a queue, and reports readiness.
func (s *Service) set(h *shard, q *queue.Queue, state string) {
	h.mu.Lock()
	h.closedLocked(h)
	h.current, h.state = q, state
	h.divideLocked()
	h.mu.Unlock()
	s.ready()
}

// notOpen says what is wrong with the queue here; empty: nothing is. A buffer is well to which the
// group gives no shard.
func (m *managedQueue) notOpen() string {
	all := m.here()
	if len(all) == 0 && m.group != nil {
		if err := m.group.State(); err != nil {
			return err.Error()
		}
		return ""
	}
	for _, h := range all {
		if q, state := h.get(); q == nil {
			return h.named(state)
		}
	}
	return ""
}

// named puts the shard before what is said of it, where there may be others here.
func (h *shard) named(text string) string {
	if !h.mayHaveOthers() {
		return text
	}
	return fmt.Sprintf("shard %d: %s", h.number, text)
}

// of is how many shards the queue has.
func (m *managedQueue) of() int32 { return int32(max(m.cfg.Shards, 1)) }

// withoutShards is the state of the queue when no shard of it is here.
func (m *managedQueue) withoutShards() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

// isSpare says that the group has given no shard to this buffer, which is well.
func (m *managedQueue) isSpare() bool {
	return m.group != nil && len(m.here()) == 0 && m.group.State() == nil
}

// memory is what the shards divide.
func (m *managedQueue) memory() queue.Share {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cfg.Memory()
}

// divideEvery is how often the memory is divided again while a shard has more in it than its part.
const divideEvery = 100 * time.Millisecond

// divideLocked gives each shard an equal part of the queue's memory. One that has more in it is to
// write that, and until it has, the others have less: so together they never have more than is
// configured.
func (m *managedQueue) divideLocked() {
	if len(m.shards) == 0 {
		return
	}
	all := m.cfg.Memory()
	part := all.Of(len(m.shards))
	var within []*shard
	for _, h := range m.shards {
		h.memory = queue.Share{Records: min(h.memory.Records, part.Records), Bytes: min(h.memory.Bytes, part.Bytes), FreeBatches: part.FreeBatches, MaxLeases: part.MaxLeases}
		records, bytes := h.useMemory()
		if records <= part.Records && bytes <= part.Bytes {
			within = append(within, h)
			continue
		}
		all.Records -= max(records, part.Records)
		all.Bytes -= max(bytes, part.Bytes)
	}
	if len(within) > 0 {
		rest := all.Of(len(within))
		for _, h := range within {
			h.memory.Records, h.memory.Bytes = min(rest.Records, part.Records), min(rest.Bytes, part.Bytes)
			h.useMemory()
		}
	}
	if len(within) < len(m.shards) && !m.dividing {
		m.dividing = true
		time.AfterFunc(divideEvery, func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.dividing = false
			m.divideLocked()
		})
	}
}

// useMemory tells a queue what its part is, and returns what is in it.
func (h *shard) useMemory() (records, bytes int64) {
	if h.running == nil {
		return 0, 0
	}
	return h.running.SetMemory(h.memory)
}
