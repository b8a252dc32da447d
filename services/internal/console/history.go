package console

import (
	"encoding/json"
	"math"
	"sync"
	"time"

	"github.com/spillwayio/spillway/services/internal/picture"
)

const (
	sampleEvery = 10 * time.Second
	maxSamples  = int(time.Hour / sampleEvery)
	// maxSeries bounds the queues and subscriptions that have a history: 200 of them have 3 MiB.
	maxSeries = 200
)

// history keeps what queues and subscriptions were like in the last hour. It is lost with the
// process.
type history struct {
	mu     sync.Mutex
	series map[string]*series // by queue, and by queue/subscription
}

func newHistory() *history { return &history{series: make(map[string]*series)} }

// series is the history of a queue or a subscription, the oldest sample first.
type series struct {
	EverySeconds float64  `json:"every_seconds"`
	At           []int64  `json:"at"`         // seconds since 1970
	PerSecond    []sample `json:"per_second"` // records in, or out
	Bytes        []sample `json:"bytes"`      // on disk, or of the backlog
	Backlog      []sample `json:"backlog"`    // records that are pending
	Left         []sample `json:"left"`       // seconds until full, or drained
}

// sample is a number; NaN where there is none.
type sample float64

var none = sample(math.NaN())

// MarshalJSON implements json.Marshaler.
func (s sample) MarshalJSON() ([]byte, error) {
	if math.IsNaN(float64(s)) {
		return []byte("null"), nil
	}
	return json.Marshal(float64(s))
}

func (s *series) add(at time.Time, perSecond *float64, bytes, backlog int64, f picture.Forecast) {
	rate, left := none, none
	if perSecond != nil {
		rate = sample(*perSecond)
	}
	if f.Seconds != nil {
		left = sample(*f.Seconds)
	}
	s.At = push(s.At, at.Unix())
	s.PerSecond, s.Left = push(s.PerSecond, rate), push(s.Left, left)
	s.Bytes, s.Backlog = push(s.Bytes, sample(bytes)), push(s.Backlog, sample(backlog))
}

// push appends, and drops the oldest ones of too many.
func push[T any](all []T, one T) []T {
	if len(all) >= maxSamples {
		n := copy(all, all[len(all)-maxSamples+1:])
		all = all[:n]
	}
	return append(all, one)
}

// add notes a picture, and forgets what is no longer there.
func (h *history) add(p *picture.Picture) {
	h.mu.Lock()
	defer h.mu.Unlock()
	known := make(map[string]bool)
	of := func(name string) *series {
		known[name] = true
		s := h.series[name]
		if s == nil {
			s = &series{EverySeconds: sampleEvery.Seconds()}
			if len(h.series) < maxSeries {
				h.series[name] = s
			}
		}
		return s
	}
	for _, q := range p.Queues {
		of(q.Name).add(p.At, q.InPerSecond, q.Disk.Used, q.PendingRecords, q.Full)
		for _, sub := range q.Subscriptions {
			of(sub.Name).add(p.At, sub.OutPerSecond, sub.BacklogBytes, sub.Backlog, sub.Drained)
		}
		if q.State != "open" { // its subscriptions are not listed, and come back
			for name := range h.series {
				if len(name) > len(q.Name) && name[:len(q.Name)+1] == q.Name+"/" {
					known[name] = true
				}
			}
		}
	}
	for name := range h.series {
		if !known[name] {
			delete(h.series, name)
		}
	}
}

// of returns a copy of the history of a queue or a subscription, which is empty for one that has
// none.
func (h *history) of(name string) series {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.series[name]
	if s == nil {
		s = &series{EverySeconds: sampleEvery.Seconds()}
	}
	return series{s.EverySeconds, clone(s.At), clone(s.PerSecond), clone(s.Bytes), clone(s.Backlog), clone(s.Left)}
}

func clone[T any](all []T) []T { return append([]T{}, all...) }
