package picture

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Severity says how bad a trouble is.
type Severity string

// Critical troubles lose records, hold up Kafka, or will soon; warnings want somebody to look.
const (
	Critical Severity = "critical"
	Warning  Severity = "warning"
)

// Trouble is something that is wrong, in words.
type Trouble struct {
	Severity Severity `json:"severity"`
	About    string   `json:"about"` // a queue, or queue/subscription
	What     string   `json:"what"`
	Do       string   `json:"do"` // what somebody should do about it

	kind string // the same for the same trouble of the same thing, whatever the numbers
}

func trouble(severity Severity, about, do, what string, args ...any) Trouble {
	return Trouble{severity, about, fmt.Sprintf(what, args...), do, string(severity) + " " + about + " " + what}
}

const (
	fullShare = 0.95             // of the disk's bound
	soonFull  = 15 * time.Minute // critical
	laterFull = 4 * time.Hour    // a warning
	stuckFor  = 15 * time.Second // the window of the rates
	growsFor  = time.Minute
	notOpen   = "the queue is not open: %s"
)

// troubles looks for all that is wrong, the worst first.
func troubles(p *Picture) []Trouble {
	var all []Trouble
	for _, q := range p.Queues {
		all = append(all, q.troubles()...)
		for _, s := range q.Subscriptions {
			all = append(all, s.troubles()...)
		}
	}
	sortTroubles(all)
	return all
}

func sortTroubles(all []Trouble) {
	slices.SortStableFunc(all, func(a, b Trouble) int { return strings.Compare(string(a.Severity), string(b.Severity)) })
}

func (q *Queue) troubles() (all []Trouble) {
	add := func(severity Severity, do, what string, args ...any) {
		all = append(all, trouble(severity, q.Name, do, what, args...))
	}
	if q.State != "open" {
		add(Critical, "The buffer tries again by itself; its log says more. spillway inspect looks at the files.", notOpen, q.State)
		return all
	}
	left, known := q.Full.Left()
	behind := "Look for the subscription with the largest backlog"
	if s := q.largest(); s != nil {
		behind = "The largest backlog is that of " + s.Name
	}
	disk := q.Disk.Share()
	for _, s := range q.here { // which a sum does not show
		disk = max(disk, s.Disk.Share())
	}
	switch {
	case disk >= fullShare:
		add(Critical, behind+". Mend its destination, or raise the bound: spillway queues update "+q.Name+" --disk-bytes SIZE",
			"the disk bound is reached, %.0f %% are in use: ingest is held back and Kafka keeps the rest, as long as its retention lasts", 100*disk)
	case known && left < soonFull:
		add(Critical, behind+". Mend its destination, or raise the bound: spillway queues update "+q.Name+" --disk-bytes SIZE", "the disk bound will be reached in %s at this speed", Duration(left))
	case known && left < laterFull:
		add(Warning, behind+". Look at its destination.", "the disk bound will be reached in %s at this speed", Duration(left))
	}
	if len(q.PausedSources) > 0 {
		add(Warning, "Let it go on: spillway sources resume "+q.PausedSources[0]+" -i ADDRESS, or -c FILE", "sources are paused, which Kafka keeps the records of (%s)", strings.Join(q.PausedSources, ", "))
	}
	if len(q.Ingests) == 0 {
		add(Warning, "Start spillway ingest, or see in its log why it does not connect.", "no ingest is connected: nothing comes in")
	}
	return all
}

// largest returns the subscription with the largest backlog in bytes, or nil.
func (q *Queue) largest() (most *Subscription) {
	for _, s := range q.Subscriptions {
		if s.BacklogBytes > 0 && (most == nil || s.BacklogBytes > most.BacklogBytes) {
			most = s
		}
	}
	return most
}

func (s *Subscription) troubles() (all []Trouble) {
	add := func(severity Severity, do, what string, args ...any) {
		all = append(all, trouble(severity, s.Name, do, what, args...))
	}
	wait := fmt.Sprintf("%s records wait, the oldest for %s", Count(float64(s.Backlog)), Duration(s.Age()))
	left := s.left()
	const mend = "It tries again by itself. Mend what the error says."
	failing := fmt.Sprintf("a delivery has failed since %s: %s", s.FailingSince.UTC().Format(time.RFC3339), s.Failure)
	switch live := s.Live(); {
	case s.Backlog > 0 && !s.Configured && live == 0:
		add(Warning, "Delete it if nobody wants them: spillway subscriptions delete "+s.Name, "the configuration does not name it any more, and %s", wait)
	case s.Backlog > 0 && s.Paused:
		add(Warning, "Let it go on: spillway subscriptions resume "+s.Name, "it is paused; %s", wait)
	case s.Backlog > 0 && len(s.PausedDeliveries) > 0:
		add(Warning, "Let it go on: spillway deliveries resume -d ADDRESS, or -c FILE --name "+s.PausedDeliveries[0], "its delivery is paused (%s); %s", strings.Join(s.PausedDeliveries, ", "), wait)
	case s.Backlog > 0 && live == 0:
		add(Critical, "Start its delivery, or see in its log why it does not connect.", "no delivery is connected; %s", wait)
	case live == 0 && left > 0:
		add(Warning, "Start its delivery: it finishes them.", "no delivery is connected, and files or other unfinished things of dead sessions (%d) wait for one", left)
	case s.Failure != "" && s.stuck():
		add(Critical, mend, "nothing was delivered in the last %s; %s; %s", Duration(stuckFor), wait, failing)
	case s.Failure != "":
		add(Warning, mend, "%s", failing)
	case s.Parked > 0:
		add(Warning, "They are tried again by themselves. Mend what the reason says.", "batches were given back (%d): %s", s.Parked, orNone(s.ParkedReason))
	case s.stuck():
		add(Critical, "Ask the delivery for its last error: spillway deliveries -d ADDRESS, or -c FILE --name NAME.",
			"nothing was delivered in the last %s; %s", Duration(stuckFor), wait)
	case s.Backlog > 0 && s.Drained.Never() && s.Growth > 0 && s.Age() >= growsFor:
		add(Warning, "The destination is too slow, or wants more instances of its delivery.", "the backlog grows by %s records/s; %s", Count(s.Growth), wait)
	}
	if s.Lost > 0 {
		add(Critical, "spillway dead-letters "+s.Name+" --outcome lost lists them.", "%s records were lost: Kafka had deleted them before they were read", Count(float64(s.Lost)))
	}
	if s.Dropped > 0 {
		add(Warning, "spillway dead-letters "+s.Name+" --outcome dropped lists them.", "%s records were dropped", Count(float64(s.Dropped)))
	}
	if s.Dead > 0 {
		add(Warning, "spillway dead-letters "+s.Name+" lists them, with reasons.", "%s records could not be delivered and are dead letters", Count(float64(s.Dead)))
	}
	return all
}

// stuck says whether records wait that nothing happens to.
func (s *Subscription) stuck() bool {
	return s.Backlog > 0 && s.OutPerSecond != nil && *s.OutPerSecond == 0 && s.Age() >= stuckFor
}

// left counts what dead sessions left to be finished.
func (s *Subscription) left() (n int32) {
	for _, d := range s.Deliveries {
		if !d.Live {
			n += d.Entries
		}
	}
	return n
}

func orNone(s string) string {
	if s == "" {
		return "no reason was given"
	}
	return s
}
