package picture

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// Buffer is one of those that are looked at.
type Buffer struct {
	Address string // as people know it
	Admin   spillwayv1.BufferAdminServiceClient
}

// LookAll asks several buffers at once, and brings together what they tell of queues that they
// divide. One that does not answer is a trouble of the picture. It fails when none answers. A
// buffer without an address is the caller's own; when another of the list proves to be the same,
// it takes that one's address.
func LookAll(ctx context.Context, buffers []Buffer) (*Picture, error) {
	if len(buffers) == 1 {
		return Look(ctx, buffers[0].Admin)
	}
	seen, errs := make([]*Picture, len(buffers)), make([]error, len(buffers))
	var wg sync.WaitGroup
	for i, b := range buffers {
		wg.Go(func() { seen[i], errs[i] = Look(ctx, b.Admin) })
	}
	wg.Wait()
	buffers = slices.Clone(buffers)
	all := &merging{queues: make(map[string]*Queue), subs: make(map[string]*Subscription)}
	var away []Trouble
	for i, b := range buffers {
		switch {
		case errs[i] == nil && slices.ContainsFunc(seen[:i], seen[i].isOf):
			continue // the same buffer again
		case b.Address == "":
			b.Address = "this buffer"
			for j := range buffers {
				if j != i && seen[i].isOf(seen[j]) {
					b.Address = buffers[j].Address
				}
			}
		}
		all.asked = append(all.asked, Asked{b.Address, errs[i] == nil})
		if errs[i] != nil {
			away = append(away, trouble(Critical, b.Address, "Start it, or see in its log why it does not answer. What it holds is safe, and waits for it.",
				"this buffer is not in the picture: %v", rpc.Explain(errs[i], "buffer", b.Address)))
			continue
		}
		all.add(b.Address, seen[i])
	}
	if all.picture == nil {
		return nil, errs[0]
	}
	return all.end(away), nil
}

// isOf says whether two pictures are of the same buffer: they have the same shard of a queue. One
// that waits to take a shard over is not the one that has it.
func (p *Picture) isOf(other *Picture) bool {
	if p == nil || other == nil {
		return false
	}
	return slices.ContainsFunc(p.Queues, func(q *Queue) bool {
		return slices.ContainsFunc(other.Queues, func(o *Queue) bool { return o.Name == q.Name && o.number == q.number && o.State == q.State })
	})
}

// merging brings pictures together.
type merging struct {
	picture *Picture
	queues  map[string]*Queue
	subs    map[string]*Subscription
	asked   []Asked
	ofOne   []ofOne
}

// ofOne is a trouble that a buffer has, with its address in words.
type ofOne struct {
	Trouble
	address string
}

// add adds what one buffer told.
func (m *merging) add(address string, p *Picture) {
	if m.picture == nil {
		m.picture = &Picture{At: p.At, Queues: []*Queue{}, Troubles: []Trouble{}}
	}
	if p.At.Before(m.picture.At) {
		m.picture.At = p.At
	}
	for _, t := range p.Troubles {
		t.What = "at " + address + ": " + t.What
		m.ofOne = append(m.ofOne, ofOne{t, address})
	}
	for _, q := range p.Queues {
		shards := q.at(address)
		if q.State != "open" {
			q.Memory, q.Disk = Level{}, Level{} // bounds of what is not there
		}
		for _, s := range q.Subscriptions {
			for i := range s.Deliveries {
				s.Deliveries[i].Buffer = address
			}
		}
		sum := m.queues[q.Name]
		if sum == nil {
			q.Shards = shards
			m.picture.Queues, m.queues[q.Name] = append(m.picture.Queues, q), q
			for _, s := range q.Subscriptions {
				m.subs[s.Name] = s
			}
			continue
		}
		sum.Shards = append(sum.Shards, shards...)
		m.addQueue(sum, q)
	}
}

// at are the shards that a buffer has. Of several it is not known which will be full first.
func (q *Queue) at(address string) []Shard {
	if len(q.here) == 0 {
		return []Shard{{Number: q.number, Of: q.of, Buffer: address, State: q.State, Memory: q.Memory, Disk: q.Disk, Full: q.Full}}
	}
	for i := range q.here {
		q.here[i].Buffer = address
	}
	return q.here
}

func (m *merging) addQueue(sum, q *Queue) {
	if sum.State != "open" { // what is known is shown; a shard that is not open is a trouble
		sum.State = q.State
	}
	sum.Memory.add(q.Memory)
	sum.Disk.add(q.Disk)
	sum.PendingRecords += q.PendingRecords
	sum.InPerSecond = both(sum.InPerSecond, q.InPerSecond)
	sum.Full = sooner(sum.Full, q.Full)
	sum.PausedSources = slices.Compact(slices.Sorted(slices.Values(append(sum.PausedSources, q.PausedSources...))))
	for _, i := range q.Ingests {
		at := slices.IndexFunc(sum.Ingests, func(x Ingest) bool { return x.Name == i.Name && x.Cluster == i.Cluster })
		if at < 0 {
			sum.Ingests = append(sum.Ingests, i)
			continue
		}
		sum.Ingests[at].Sources = slices.Compact(slices.Sorted(slices.Values(append(sum.Ingests[at].Sources, i.Sources...))))
	}
	for _, s := range q.Subscriptions {
		if of := m.subs[s.Name]; of != nil {
			of.add(s)
		} else {
			sum.Subscriptions, m.subs[s.Name] = append(sum.Subscriptions, s), s
		}
	}
}

// add adds what another buffer tells of the same subscription.
func (s *Subscription) add(o *Subscription) {
	// Before the backlogs are added: a buffer without one has nothing to drain.
	switch {
	case s.Backlog == 0:
		s.Drained = o.Drained
	case o.Backlog > 0:
		s.Drained = later(s.Drained, o.Drained)
	}
	s.PausedDeliveries = slices.Compact(slices.Sorted(slices.Values(append(s.PausedDeliveries, o.PausedDeliveries...))))
	s.Paused, s.Required, s.Configured = s.Paused || o.Paused, s.Required || o.Required, s.Configured || o.Configured
	s.Backlog += o.Backlog
	s.BacklogBytes += o.BacklogBytes
	s.Deferred += o.Deferred
	s.AgeSeconds = max(s.AgeSeconds, o.AgeSeconds)
	s.OutPerSecond = both(s.OutPerSecond, o.OutPerSecond)
	s.Growth += o.Growth
	s.Leased += o.Leased
	s.Parked += o.Parked
	s.ParkedReason = cmp.Or(s.ParkedReason, o.ParkedReason)
	if o.Failure != "" && (s.Failure == "" || o.FailingSince.Before(s.FailingSince)) {
		s.Failure, s.FailingSince = o.Failure, o.FailingSince
	}
	s.Delivered += o.Delivered
	s.Dead += o.Dead
	s.Dropped += o.Dropped
	s.Lost += o.Lost
	s.Deliveries = append(s.Deliveries, o.Deliveries...)
}

func (l *Level) add(o Level) {
	l.Used += o.Used
	l.Limit += o.Limit
}

// both adds two rates, as far as they are known.
func both(a, b *float64) *float64 {
	if a == nil || b == nil {
		return cmp.Or(a, b)
	}
	sum := *a + *b
	return &sum
}

// sooner returns what comes first of two forecasts.
func sooner(a, b Forecast) Forecast {
	if a.Seconds == nil || b.Seconds != nil && *b.Seconds < *a.Seconds {
		a.Seconds = b.Seconds
	}
	a.Known = a.Known || b.Known
	return a
}

// later returns what comes last of two forecasts: it is known when both are, and that one is never
// reached is known when it is of one of them.
func later(a, b Forecast) Forecast {
	switch {
	case a.Never() || b.Never():
		return Forecast{Known: true}
	case !a.Known || !b.Known:
		return Forecast{}
	case *a.Seconds < *b.Seconds:
		return b
	}
	return a
}

// withoutWaiting leaves out the buffers that wait to take over a shard which another one has open,
// and that it is not open with them.
func (m *merging) withoutWaiting(q *Queue) {
	waits := func(s Shard) bool {
		return s.State != "open" && slices.ContainsFunc(q.Shards, func(o Shard) bool { return o.Number == s.Number && o.State == "open" })
	}
	for _, s := range q.Shards {
		if waits(s) {
			m.ofOne = slices.DeleteFunc(m.ofOne, func(t ofOne) bool {
				return t.address == s.Buffer && t.kind == trouble(Critical, q.Name, "", notOpen, "").kind
			})
		}
	}
	var all []Shard
	for _, s := range q.Shards {
		if !waits(s) {
			all = append(all, s)
		}
	}
	q.Shards = all
}

// end looks for what is wrong with the whole. Beside it stands what only one of several buffers
// has: that is lost in a sum.
func (m *merging) end(away []Trouble) *Picture {
	slices.SortFunc(m.picture.Queues, func(a, b *Queue) int { return strings.Compare(a.Name, b.Name) })
	for _, q := range m.picture.Queues {
		m.withoutWaiting(q)
		slices.SortFunc(q.Shards, func(a, b Shard) int { return cmp.Compare(a.Number, b.Number) })
		slices.SortFunc(q.Subscriptions, func(a, b *Subscription) int { return strings.Compare(a.Name, b.Name) })
	}
	found := append(away, troubles(m.picture)...)
	kinds := make(map[string]bool)
	for _, t := range found {
		kinds[t.kind] = true
	}
	for _, t := range m.ofOne {
		if !kinds[t.kind] {
			found = append(found, t.Trouble)
		}
	}
	sortTroubles(found)
	m.picture.Troubles, m.picture.Buffers = append(m.picture.Troubles, found...), m.asked
	return m.picture
}
