package buffer

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
)

const (
	// maxStreamSources and maxWanted bound what one Append stream says of sources, and
	// maxFlowsBytes what a session is told.
	maxStreamSources = 16
	maxWanted        = 100_000
	maxFlowsBytes    = 4 << 20
	maxTemplateBytes = 4096
)

// flows is what the streams that are open say of where records come from and go to. Its lock is
// taken under no other.
type flows struct {
	mu      sync.Mutex
	sources map[*appendStream]map[string]*spillwayv1.FlowSource // by the source's name
	targets map[*consumeStream]*spillwayv1.FlowTarget
	all     *spillwayv1.Flows // what now returns; nil: not put together since the last change
	changed chan struct{}     // closed at the next change
}

func newFlows() *flows {
	return &flows{sources: make(map[*appendStream]map[string]*spillwayv1.FlowSource), targets: make(map[*consumeStream]*spillwayv1.FlowTarget),
		changed: make(chan struct{})}
}

func (f *flows) changedLocked() {
	close(f.changed)
	f.changed, f.all = make(chan struct{}), nil
}

// connected notes that a stream is open; until it says what it reads, it reads nothing.
func (f *flows) connected(a *appendStream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sources[a] == nil {
		f.sources[a] = make(map[string]*spillwayv1.FlowSource)
	}
}

// read notes what a source reads.
func (f *flows) read(a *appendStream, m *spillwayv1.SourceTopics) error {
	if len(m.Wanted) > maxWanted {
		return fmt.Errorf("%w source %.100q: it names %d topics and patterns, at most %d are allowed", queue.ErrInvalid, m.Source, len(m.Wanted), maxWanted)
	}
	s := &spillwayv1.FlowSource{Queue: a.open.Queue, Source: m.Source, Cluster: a.open.Cluster, Wanted: m.Wanted}
	f.mu.Lock()
	defer f.mu.Unlock()
	of := f.sources[a]
	if of == nil {
		of = make(map[string]*spillwayv1.FlowSource)
		f.sources[a] = of
	}
	if _, known := of[m.Source]; !known && len(of) >= maxStreamSources {
		return fmt.Errorf("%w source %.100q: a stream is about %d sources at most", queue.ErrInvalid, m.Source, maxStreamSources)
	}
	if !proto.Equal(of[m.Source], s) {
		of[m.Source] = s
		f.changedLocked()
	}
	return nil
}

// readNoMore forgets a stream and what it said.
func (f *flows) readNoMore(a *appendStream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	said := len(f.sources[a]) > 0
	delete(f.sources, a)
	if said {
		f.changedLocked()
	}
}

// ingests lists who has streams open to a queue, by client and cluster.
func (f *flows) ingests(queue string) []*spillwayv1.ConnectedIngest {
	type who struct{ client, cluster string }
	all := make(map[who]*spillwayv1.ConnectedIngest)
	f.mu.Lock()
	for a, of := range f.sources {
		if a.open.Queue != queue {
			continue
		}
		w := who{a.open.Client, a.open.Cluster}
		if all[w] == nil {
			all[w] = &spillwayv1.ConnectedIngest{Client: w.client, Cluster: w.cluster}
		}
		all[w].Sources = slices.AppendSeq(all[w].Sources, maps.Keys(of))
	}
	f.mu.Unlock()
	for _, i := range all {
		slices.Sort(i.Sources)
		i.Sources = slices.Compact(i.Sources)
	}
	return slices.SortedFunc(maps.Values(all), func(a, b *spillwayv1.ConnectedIngest) int {
		return cmp.Or(cmp.Compare(a.Client, b.Client), cmp.Compare(a.Cluster, b.Cluster))
	})
}

// produce notes what a session's delivery produces to.
func (f *flows) produce(c *consumeStream, subscription string, wanted []string, target *spillwayv1.FlowTarget) error {
	if len(target.Cluster) > queue.MaxNameBytes || len(target.Topic) > maxTemplateBytes {
		return fmt.Errorf("%w target %.100q of cluster %.100q: it is too long", queue.ErrInvalid, target.Topic, target.Cluster)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.targets[c] = &spillwayv1.FlowTarget{Subscription: subscription, Cluster: target.Cluster, Topic: target.Topic, Wanted: wanted}
	f.changedLocked()
	return nil
}

// produceNoMore forgets a session.
func (f *flows) produceNoMore(c *consumeStream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.targets, c)
	f.changedLocked()
}

// now returns all there is, each once, which nobody changes, and a channel that is closed when it
// is something else. It is put together once for all sessions.
func (f *flows) now() (*spillwayv1.Flows, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.all == nil {
		f.all = f.gatherLocked()
	}
	return f.all, f.changed
}

// gatherLocked puts together all there is. What is too much for a message is left out: sources
// first, of which a single one may name very many topics.
func (f *flows) gatherLocked() *spillwayv1.Flows {
	m := &spillwayv1.Flows{}
	for _, of := range f.sources {
		for _, s := range of {
			m.Sources = append(m.Sources, s)
		}
	}
	for _, t := range f.targets {
		m.Targets = append(m.Targets, t)
	}
	slices.SortFunc(m.Sources, func(a, b *spillwayv1.FlowSource) int {
		return cmp.Or(cmp.Compare(a.Queue, b.Queue), cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Source, b.Source), slices.Compare(a.Wanted, b.Wanted))
	})
	slices.SortFunc(m.Targets, func(a, b *spillwayv1.FlowTarget) int {
		return cmp.Or(cmp.Compare(a.Subscription, b.Subscription), cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Topic, b.Topic), slices.Compare(a.Wanted, b.Wanted))
	})
	m.Sources = slices.CompactFunc(m.Sources, func(a, b *spillwayv1.FlowSource) bool { return proto.Equal(a, b) })
	m.Targets = slices.CompactFunc(m.Targets, func(a, b *spillwayv1.FlowTarget) bool { return proto.Equal(a, b) })
	for size := proto.Size(m); size > maxFlowsBytes && len(m.Sources) > 0; size = proto.Size(m) {
		m.Sources = m.Sources[:len(m.Sources)/2]
	}
	for size := proto.Size(m); size > maxFlowsBytes && len(m.Targets) > 0; size = proto.Size(m) {
		m.Targets = m.Targets[:len(m.Targets)/2]
	}
	return m
}

// tellFlows tells a session that wants it where records come from and go to, unless it knows, and
// returns a context that ends when that changes.
func (c *consumeStream) tellFlows(ctx context.Context) (context.Context, error) {
	if c.flows == nil {
		return ctx, nil
	}
	m, changed := c.flows.now()
	if m != c.told && !proto.Equal(m, c.told) {
		c.told = m
		if err := c.grpc.Send(&spillwayv1.ConsumeResponse{Message: &spillwayv1.ConsumeResponse_Flows{Flows: m}}); err != nil {
			return nil, err
		}
	}
	wait, cancel := context.WithCancel(ctx)
	go func() { // ends with ctx at the latest
		defer cancel()
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}()
	return wait, nil
}
