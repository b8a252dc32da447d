package buffer

import (
	"cmp"
	"context"
	"maps"
	"math"
	"sync"
	"time"
)

// windows are those that forecasts look back on. The short one notices an outage within seconds;
// the long one is not misled by a burst.
var windows = []struct {
	name   string
	length time.Duration
}{{"15s", 15 * time.Second}, {"5m", 5 * time.Minute}}

const sampleEvery = time.Second

// trend keeps what a value was in the last five minutes. The zero value is ready for use.
type trend struct {
	keep    int      // samples; 0 is maxSamples
	samples []sample // a ring once it is full
	next    int      // where the oldest one is then
}

type sample struct {
	at    time.Time
	value float64
}

const (
	maxSamples  = int(5 * time.Minute / sampleEvery)
	rateSamples = int(15*time.Second/sampleEvery) + 1
)

// add notes a value. Times must not go back.
func (t *trend) add(at time.Time, value float64) {
	most := cmp.Or(t.keep, maxSamples)
	if len(t.samples) < most {
		t.samples = append(t.samples, sample{at, value})
		return
	}
	t.samples[t.next] = sample{at, value}
	t.next = (t.next + 1) % most
}

// newest returns the i-th sample, from the newest one, which is 0.
func (t *trend) newest(i int) sample {
	n := len(t.samples)
	return t.samples[(t.next-1-i+2*n)%n]
}

// slope returns the change a second over the window. It is NaN when the samples span less than
// half of the window.
func (t *trend) slope(window time.Duration) float64 {
	slope, _ := t.fit(window)
	return slope
}

// straight is from which share of its variance on a line explains a value well: steps that a store
// grows in do not come up to it unless there are several of them.
const straight = 0.95

// rise is slope for a value whose rise must not be noticed late: when it rises steadily, and
// faster than in the window as a whole, in the last half of it, that half counts alone. After a
// kink that is within 10 % of the truth when half of the window is over, and not only at its end.
func (t *trend) rise(window time.Duration) float64 {
	slope, _ := t.fit(window)
	if late, line := t.fit(window / 2); line >= straight && late > slope {
		return late
	}
	return slope
}

// fit is a line through the samples of the window, by least squares, since a store grows in steps:
// its slope, and the share of the variance that it explains, from 0 to 1.
func (t *trend) fit(window time.Duration) (slope, share float64) {
	if len(t.samples) == 0 {
		return math.NaN(), 0
	}
	last := t.newest(0)
	var n, x, y, xx, xy, yy float64
	var span time.Duration
	for i := range t.samples {
		s := t.newest(i)
		age := last.at.Sub(s.at)
		if age > window {
			break
		}
		dx, dy := -age.Seconds(), s.value-last.value
		n, x, y, xx, xy, yy = n+1, x+dx, y+dy, xx+dx*dx, xy+dx*dy, yy+dy*dy
		span = age
	}
	if span < window/2 {
		return math.NaN(), 0
	}
	with := n*xy - x*y
	slope = with / (n*xx - x*x)
	if variance := n*yy - y*y; variance > 0 {
		share = slope * with / variance
	}
	return slope, share
}

// toRise returns in how many seconds the value is up at limit as it rises: 0 when it is, +Inf
// when it does not rise, NaN when its slope is not known yet.
func (t *trend) toRise(limit float64, window time.Duration) float64 {
	return seconds(limit-t.last(), t.rise(window))
}

// toFall is toRise for a value that is to be down at 0.
func (t *trend) toFall(window time.Duration) float64 { return seconds(t.last(), -t.slope(window)) }

func (t *trend) last() float64 {
	if len(t.samples) == 0 {
		return math.NaN()
	}
	return t.newest(0).value
}

func seconds(way, perSecond float64) float64 {
	switch {
	case way <= 0:
		return 0
	case math.IsNaN(way) || math.IsNaN(perSecond):
		return math.NaN()
	case perSecond <= 0:
		return math.Inf(1)
	}
	return way / perSecond
}

// trendOf names what a trend is of: a shard that is open here, or a subscription in it. Shards
// come and go, and with them steps that a trend of their sum would have.
type trendOf struct {
	queue        string
	shard        int
	subscription string // its name in the queue; empty: it is of the queue
}

func (h *shard) trendOf(subscription string) trendOf { return trendOf{h.name, h.number, subscription} }

// forecasts tell how long queues and backlogs can go on as they do.
type forecasts struct {
	mu   sync.Mutex
	disk map[trendOf]*trend // bytes, of a queue
	subs map[trendOf]*trend // pending records, of a subscription
	in   map[trendOf]*trend // records accepted so far, of a queue
	out  map[trendOf]*trend // records settled so far, of a subscription
	// oldest is when the oldest pending batch of a subscription was appended; zero without a
	// backlog.
	oldest map[trendOf]time.Time
}

func newForecasts() *forecasts {
	return &forecasts{disk: make(map[trendOf]*trend), subs: make(map[trendOf]*trend),
		in: make(map[trendOf]*trend), out: make(map[trendOf]*trend), oldest: make(map[trendOf]time.Time)}
}

// run takes samples until ctx ends.
func (f *forecasts) run(ctx context.Context, s *Service) {
	ticker := time.NewTicker(sampleEvery)
	defer ticker.Stop()
	for {
		f.sample(s)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// sample notes what all open queues hold, and forgets the shards and subscriptions that are gone.
func (f *forecasts) sample(s *Service) {
	known := make(map[trendOf]bool)
	for _, m := range s.queues {
		for _, h := range m.here() {
			known[h.trendOf("")] = false
		}
	}
	s.eachOpen(func(o openShard) {
		stats, views, now := o.Stats(), o.Queue.Subscriptions(), time.Now()
		f.mu.Lock()
		defer f.mu.Unlock()
		note(f.disk, o.trendOf(""), now, stats.Store.DiskBytes, maxSamples)
		note(f.in, o.trendOf(""), now, stats.AppendedRecords, rateSamples)
		known[o.trendOf("")] = true
		for _, v := range views {
			sub := o.trendOf(v.Name)
			known[sub] = true
			note(f.subs, sub, now, v.PendingRecords+v.Deferred, maxSamples)
			note(f.out, sub, now, v.Delivered, rateSamples)
		}
	})
	f.keep(known)
}

// keep forgets all shards and subscriptions that are not known. A known shard is true while it is
// open: of others nobody can tell which subscriptions they have.
func (f *forecasts) keep(known map[trendOf]bool) {
	gone := func(of trendOf) bool {
		open, here := known[trendOf{of.queue, of.shard, ""}]
		return !here || open && !known[of]
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, trends := range []map[trendOf]*trend{f.disk, f.subs, f.in, f.out} {
		maps.DeleteFunc(trends, func(of trendOf, _ *trend) bool { return gone(of) })
	}
	maps.DeleteFunc(f.oldest, func(of trendOf, _ time.Time) bool { return gone(of) })
}

// ageShare is the part of the time that looking for the oldest pending batches may take. With many
// partitions the ages are older than a second.
const ageShare = 50

// ages looks for the oldest pending batches until ctx ends.
func (f *forecasts) ages(ctx context.Context, s *Service) {
	for ctx.Err() == nil {
		began := time.Now()
		s.eachOpen(func(o openShard) {
			for _, v := range o.Queue.Subscriptions() {
				oldest := o.OldestPending(v.Name)
				f.mu.Lock()
				f.oldest[o.trendOf(v.Name)] = oldest
				f.mu.Unlock()
			}
		})
		select {
		case <-time.After(max(sampleEvery, ageShare*time.Since(began))):
		case <-ctx.Done():
		}
	}
}

// age returns how long the oldest pending batch of a subscription has been in a shard; 0 without
// one.
func (f *forecasts) age(subscription trendOf) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if oldest := f.oldest[subscription]; !oldest.IsZero() {
		return max(0, time.Since(oldest))
	}
	return 0
}

func note(trends map[trendOf]*trend, name trendOf, at time.Time, value int64, keep int) {
	if trends[name] == nil {
		trends[name] = &trend{keep: keep}
	}
	trends[name].add(at, float64(value))
}

// full returns in how many seconds the files of a shard reach limit, as toRise does.
func (f *forecasts) full(queue trendOf, limit int64, window time.Duration) float64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t := f.disk[queue]; t != nil {
		return t.toRise(float64(limit), window)
	}
	return math.NaN()
}

// drained returns in how many seconds a subscription's backlog in a shard is gone, as toFall does.
func (f *forecasts) drained(subscription trendOf, window time.Duration) float64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t := f.subs[subscription]; t != nil {
		return t.toFall(window)
	}
	return math.NaN()
}
