// Package picture shows a pipeline as its buffer sees it, for people: what comes in, what is held,
// what goes out, how long that can go on, and what is wrong. A Picture is computed from answers of
// the admin API of a buffer, or of all that divide the queues; `spillway top` prints it, and the
// console draws it. It keeps nothing, and no goroutine outlives the call that started it.
package picture

import (
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// Picture is one look at a buffer. Its JSON is what the console and --output json show.
type Picture struct {
	At       time.Time `json:"at"`
	Troubles []Trouble `json:"troubles"`          // the worst first
	Queues   []*Queue  `json:"queues"`            // by name
	Buffers  []Asked   `json:"buffers,omitempty"` // when several were looked at
}

// Asked is a buffer that was looked at.
type Asked struct {
	Address string `json:"address"`
	Answers bool   `json:"answers"`
}

// Queue is one queue with those who feed it and those who take from it.
type Queue struct {
	Name           string          `json:"name"`
	State          string          `json:"state"` // "open", or why it is not
	Ingests        []Ingest        `json:"ingests"`
	InPerSecond    *float64        `json:"in_per_second"` // records; nil: not known yet
	Memory         Level           `json:"memory"`
	Disk           Level           `json:"disk"`
	PendingRecords int64           `json:"pending_records"`
	Full           Forecast        `json:"time_to_full"`
	Subscriptions  []*Subscription `json:"subscriptions"`    // by name
	Shards         []Shard         `json:"shards,omitempty"` // when several buffers were looked at
	// PausedSources are held in all their instances.
	PausedSources []string `json:"paused_sources,omitempty"`

	number, of int32   // of the shard that the buffer has, the first of several
	here       []Shard // when it has several
}

// Shard is the part of a queue that one of several buffers has. What a Queue says is of all of
// them: the sums, and the first of its disks to be full.
type Shard struct {
	Number int32    `json:"number"`
	Of     int32    `json:"of"`
	Buffer string   `json:"buffer"` // its address
	State  string   `json:"state"`
	Memory Level    `json:"memory"`
	Disk   Level    `json:"disk"`
	Full   Forecast `json:"time_to_full"`
}

// Level is a use beside its bound, in bytes.
type Level struct {
	Used  int64 `json:"used"`
	Limit int64 `json:"limit"`
}

// Share returns the part of the bound that is used, from 0 to 1 and beyond; 0 without a bound.
func (l Level) Share() float64 {
	if l.Limit <= 0 {
		return 0
	}
	return float64(l.Used) / float64(l.Limit)
}

// Ingest is an instance that feeds a queue.
type Ingest struct {
	Name    string   `json:"name"`
	Cluster string   `json:"cluster"`
	Sources []string `json:"sources"`
}

// Subscription is one destination's backlog.
type Subscription struct {
	Name   string `json:"name"` // queue/subscription
	Paused bool   `json:"paused"`
	// PausedDeliveries are held in all their instances.
	PausedDeliveries []string `json:"paused_deliveries,omitempty"`
	Required         bool     `json:"required"`
	Configured       bool     `json:"configured"`
	OnFull           string   `json:"on_full"`
	Backlog          int64    `json:"backlog_records"` // pending, and deferred
	BacklogBytes     int64    `json:"backlog_bytes"`   // without what is deferred
	Deferred         int64    `json:"deferred_records"`
	AgeSeconds       float64  `json:"age_seconds"` // of the oldest record in the backlog
	OutPerSecond     *float64 `json:"out_per_second"`
	Growth           float64  `json:"backlog_growth_per_second"`
	Drained          Forecast `json:"time_to_drain"`
	Leased           int64    `json:"leased_batches"`
	Parked           int64    `json:"parked_batches"`
	ParkedReason     string   `json:"parked_reason"` // of one of them
	// Failure is the last error of the delivery that has failed for longest; empty: none fails.
	Failure      string        `json:"failure,omitempty"`
	FailingSince time.Time     `json:"failing_since,omitzero"`
	Delivered    int64         `json:"delivered_records"`
	Dead         int64         `json:"dead_lettered_records"` // that are listed now; before an upgrade of the buffer, since it was started
	Dropped      int64         `json:"dropped_offsets"`
	Lost         int64         `json:"lost_offsets"`
	Deliveries   []Destination `json:"deliveries"`
}

// Age returns how long the oldest record of the backlog has waited.
func (s *Subscription) Age() time.Duration { return time.Duration(s.AgeSeconds * float64(time.Second)) }

// behindFrom is the age from which on a backlog is more than what is on its way anyhow.
const behindFrom = 5 * time.Second

// Behind says whether there is a backlog that is worth a forecast.
func (s *Subscription) Behind() bool {
	return s.Backlog > 0 && (s.Deferred > 0 || s.Age() >= behindFrom)
}

// Live returns the number of deliveries that are connected.
func (s *Subscription) Live() (n int) {
	for _, d := range s.Deliveries {
		if d.Live {
			n++
		}
	}
	return n
}

// Destination is an instance of a delivery, or what a dead one left to be finished.
type Destination struct {
	Session  string    `json:"session"` // as text: JavaScript's numbers are too short
	Consumer string    `json:"consumer"`
	Live     bool      `json:"live"`
	Opened   time.Time `json:"opened_at"`
	Leased   int64     `json:"leased_batches"`
	Entries  int32     `json:"state_entries"`    // such as files in use
	Buffer   string    `json:"buffer,omitempty"` // its address, when several were looked at
}

// Forecast tells when something is reached if it goes on as it does. It looks back on 15 seconds.
type Forecast struct {
	Known bool `json:"known"`
	// Seconds are left; 0: it is reached, nil: it will not be, at this speed, or is not known.
	Seconds *float64 `json:"seconds"`
}

// Never says whether it is known not to be reached.
func (f Forecast) Never() bool { return f.Known && f.Seconds == nil }

// Left returns the time that is left, and whether there is such a time.
func (f Forecast) Left() (time.Duration, bool) {
	if f.Seconds == nil {
		return 0, false
	}
	return time.Duration(*f.Seconds * float64(time.Second)), true
}

// forecastOf takes the shortest window that is known: it notices an outage within seconds.
func forecastOf(all []*spillwayv1.Forecast) (f Forecast, perSecond float64) {
	var chosen *spillwayv1.Forecast
	for _, x := range all {
		if chosen == nil || x.Window.AsDuration() < chosen.Window.AsDuration() {
			chosen = x
		}
	}
	if chosen == nil {
		return f, 0
	}
	f.Known = true
	if chosen.Left != nil {
		seconds := chosen.Left.AsDuration().Seconds()
		f.Seconds = &seconds
	}
	return f, chosen.PerSecond
}
