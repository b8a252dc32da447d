package kafkaclient

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// throttleQuiet is how long a broker must answer without a throttle time before it counts as
// recovered.
const throttleQuiet = 10 * time.Second

// Throttle keeps the times for which brokers have muted this client because a quota was exceeded.
//
// A broker that enforces a quota answers at once, names a throttle time, and reads nothing more
// from the connection until that time is over (KIP-219). A request that is sent meanwhile looks
// like one without an answer, so requests wait here before they are sent, and the time for an
// answer begins after the wait. Methods may be called concurrently, also on nil, which knows of
// no throttling.
type Throttle struct {
	log *slog.Logger

	mu      sync.Mutex
	brokers map[string]*throttledBroker
}

// throttledBroker is a broker that answered.
type throttledBroker struct {
	until     time.Time     // the end of the mute
	since     time.Time     // when the current spell of throttling began; zero when there is none
	spell     int           // answers with a throttle time in the spell
	spellTime time.Duration // their sum
	answers   int           // the same since the start of the process
	total     time.Duration
}

// NewThrottle knows of no throttling yet.
func NewThrottle(log *slog.Logger) *Throttle {
	return &Throttle{log: log, brokers: make(map[string]*throttledBroker)}
}

// Note takes in the throttle time of an answer of the broker, 0 included. It logs one line when a
// broker begins to throttle, and one when it answers without a throttle time again.
func (t *Throttle) Note(broker string, d time.Duration) {
	if t == nil {
		return
	}
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.brokers[broker]
	if b == nil { // the counters of every broker begin with 0
		b = &throttledBroker{}
		t.brokers[broker] = b
	}
	if d <= 0 {
		if !b.since.IsZero() && now.Sub(b.until) >= throttleQuiet {
			t.log.Info("recovered: the broker no longer throttles this client", "broker", broker,
				"lasted", now.Sub(b.since).Round(time.Millisecond), "answers", b.spell, "throttled", b.spellTime)
			b.since = time.Time{}
		}
		return
	}
	if b.since.IsZero() {
		b.since, b.spell, b.spellTime = now, 0, 0
		t.log.Warn("the broker throttles this client because a quota is exceeded; requests wait as long as it says",
			"broker", broker, "wait", d)
	}
	b.spell, b.answers = b.spell+1, b.answers+1
	b.spellTime, b.total = b.spellTime+d, b.total+d
	if until := now.Add(d); until.After(b.until) {
		b.until = until
	}
}

// Remaining returns how much longer the broker mutes this client; 0 when it does not.
func (t *Throttle) Remaining(broker string) time.Duration {
	if t == nil {
		return 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if b := t.brokers[broker]; b != nil {
		return max(time.Until(b.until), 0)
	}
	return 0
}

// Wait returns when the broker does not mute this client any more, or with ctx's error.
func (t *Throttle) Wait(ctx context.Context, broker string) error {
	for {
		left := t.Remaining(broker)
		if left == 0 {
			return ctx.Err()
		}
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("broker %s throttles this client for %s more: %w", broker, left.Round(time.Millisecond), ctx.Err())
		}
	}
}

// Longest returns the broker that mutes this client longest from now on, and how long; "" when
// none does.
func (t *Throttle) Longest() (broker string, left time.Duration) {
	if t == nil {
		return "", 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, b := range t.brokers {
		if l := time.Until(b.until); l > left {
			broker, left = name, l
		}
	}
	return broker, left
}

// Totals calls yield for each broker that has answered, with the number of its answers that named
// a throttle time and the sum of these times.
func (t *Throttle) Totals(yield func(broker string, answers int, total time.Duration)) {
	if t == nil {
		return
	}
	type counts struct {
		broker  string
		answers int
		total   time.Duration
	}
	var all []counts
	t.mu.Lock()
	for name, b := range t.brokers {
		all = append(all, counts{name, b.answers, b.total})
	}
	t.mu.Unlock()
	for _, c := range all {
		yield(c.broker, c.answers, c.total)
	}
}
