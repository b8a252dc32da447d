package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/spillwayio/spillway/services/internal/backoff"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

const (
	// maxParts is how many parts of answers wait for a partition's reader before the partition is
	// left out.
	maxParts = 2
	// leaderCheck is how often the leaders of partitions are compared with what other brokers say.
	leaderCheck = 30 * time.Second
	// routePause is the pause between two attempts to find leaders.
	routePause = 200 * time.Millisecond
)

// fetcher fetches for the partitions of one generation. Readers say from where on they want
// records, and get them in parts. Each broker has a goroutine per lane; one more finds leaders.
// Run starts them.
type fetcher struct {
	client      *kafkaclient.Client
	arrived     *budget
	uncommitted bool
	linger      time.Duration
	check       time.Duration // leaderCheck, but in tests
	log         *slog.Logger
	leaders     *backoff.Trouble

	mu       sync.Mutex
	brokers  map[int32]*broker
	homeless []*feed // without a known leader
	moved    chan struct{}
	wg       sync.WaitGroup
}

// broker has the partitions that it leads.
type broker struct {
	id      int32
	trouble *backoff.Trouble
	feeds   map[*feed]struct{}
	lines   [lanes][]*feed // those to be fetched, each in the order of the next fetch
	wake    [lanes]chan struct{}
}

// feed is the part of a partition that the fetcher has. fetcher.mu guards it.
type feed struct {
	topicPartition
	ready  chan struct{} // has room for one: there is something for the reader
	facts  func(f *kafkaclient.Fetched, asked time.Time) (wake bool)
	broker *broker
	wanted bool  // the reader wants records from position on
	round  int   // of wanted: what was asked for before counts no more
	next   int64 // the offset to fetch
	parts  []*kafkaclient.Fetched
	err    error
	more   bool // Kafka has more at next
	warm   time.Time

	homeless bool // in fetcher.homeless
	queued   bool // in a line
	flying   bool // in a fetch under way
}

func newFetcher(client *kafkaclient.Client, arrived *budget, uncommitted bool, linger time.Duration, log *slog.Logger) *fetcher {
	return &fetcher{client: client, arrived: arrived, uncommitted: uncommitted, linger: linger, check: leaderCheck, log: log,
		leaders: backoff.NewTrouble(log, "cannot find the leaders of partitions", "all partitions have leaders again"),
		brokers: make(map[int32]*broker), moved: make(chan struct{}, 1)}
}

// err is why some broker's partitions are not fetched now.
func (f *fetcher) err() error {
	if err := f.leaders.Err(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range f.brokers {
		if err := b.trouble.Err(); err != nil && len(b.feeds) > 0 {
			return err
		}
	}
	return nil
}

// run fetches until ctx ends.
func (f *fetcher) run(ctx context.Context) {
	var wait backoff.Backoff
	wait.Initial, wait.Max = routePause, 5*time.Second
	for ctx.Err() == nil {
		select {
		case <-f.moved:
		case <-ctx.Done():
			continue
		}
		for ctx.Err() == nil {
			err := f.route(ctx)
			if err == nil {
				f.leaders.Over()
				wait.Reset()
				break
			}
			if ctx.Err() == nil {
				f.leaders.Note(err)
				_ = wait.Wait(ctx)
			}
		}
	}
	f.wg.Wait()
}

// route gives the feeds that have no leader to the brokers that lead them.
func (f *fetcher) route(ctx context.Context) error {
	f.mu.Lock()
	topics := make(map[string]bool)
	for _, feed := range f.homeless {
		topics[feed.topic] = true
	}
	f.mu.Unlock()
	if len(topics) == 0 {
		return nil
	}
	var names []string
	for t := range topics {
		names = append(names, t)
	}
	all, err := f.client.Leaders(ctx, names)
	if err != nil {
		return err
	}
	var missing error
	f.mu.Lock()
	defer f.mu.Unlock()
	f.homeless = slices.DeleteFunc(f.homeless, func(x *feed) bool {
		t, err := all[x.topic], error(nil)
		switch {
		case !x.wanted:
			x.homeless = false
			return true
		case !topics[x.topic]:
			err = kafka.LeaderNotAvailable // it came meanwhile
		case t.Err != nil:
			err = t.Err
		case x.number >= len(t.Leaders):
			err = kafka.UnknownTopicOrPartition
		default:
			err = t.Leaders[x.number].Err
		}
		if err != nil {
			missing = fmt.Errorf("find the leader of %s: %w", x, err)
			if errors.Is(err, kafka.UnknownTopicOrPartition) {
				x.failLocked(missing) // the reader finds out what became of the topic
			}
			return false
		}
		x.homeless = false
		x.broker = f.brokerLocked(ctx, t.Leaders[x.number].ID)
		x.broker.feeds[x] = struct{}{}
		f.lineUpLocked(x, false)
		return true
	})
	return missing
}

// watchLeaders looks for leaders that are new until ctx ends.
func (f *fetcher) watchLeaders(ctx context.Context) {
	for sleep(ctx, f.check); ctx.Err() == nil; sleep(ctx, f.check) {
		f.compare(ctx)
	}
}

// compare moves the feeds whose partitions have another leader by now. The one before says so
// itself, unless it does not know: cut off from the others it goes on answering fetches, without
// any record that is new.
func (f *fetcher) compare(ctx context.Context) {
	names := make(map[string]bool)
	f.mu.Lock()
	for _, b := range f.brokers {
		for x := range b.feeds {
			names[x.topic] = true
		}
	}
	f.mu.Unlock()
	topics := slices.Collect(maps.Keys(names))
	if len(topics) == 0 {
		return
	}
	if err := f.client.Compare(ctx, topics); err != nil { // another broker is asked next
		f.log.Debug("cannot compare the leaders of partitions", "error", err)
	}
	all, err := f.client.Leaders(ctx, topics)
	if err != nil {
		f.log.Debug("cannot look up the leaders of partitions", "error", err)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	moved := 0
	var one *feed
	for _, b := range f.brokers {
		for x := range b.feeds {
			t := all[x.topic]
			if t.Err != nil || x.number >= len(t.Leaders) || t.Leaders[x.number].Err != nil || t.Leaders[x.number].ID == b.id {
				continue
			}
			f.leaveLocked(x)
			if x.wanted && !x.homeless {
				x.homeless = true
				f.homeless = append(f.homeless, x)
			}
			moved++
			one = x
		}
	}
	if moved > 0 {
		poke(f.moved)
		f.log.Info("partitions have new leaders, of which the former ones do not know; fetching from the new ones", "partitions", moved, "among_them", one.topicPartition)
	}
}

func (f *fetcher) brokerLocked(ctx context.Context, id int32) *broker {
	b := f.brokers[id]
	if b == nil {
		b = &broker{id: id, feeds: make(map[*feed]struct{}), trouble: backoff.NewTrouble(f.log.With("broker", id), "cannot fetch from a broker", "the broker is fetched from again")}
		f.brokers[id] = b
		for l := range lanes {
			b.wake[l] = make(chan struct{}, 1)
			f.wg.Go(func() { f.serve(ctx, b, l) })
		}
	}
	return b
}

// want has records fetched from an offset on. What was fetched before is given up.
func (f *fetcher) want(x *feed, offset int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	x.dropLocked()
	x.wanted, x.next, x.more = true, offset, true
	if x.broker == nil {
		if !x.homeless {
			x.homeless = true
			f.homeless = append(f.homeless, x)
		}
		poke(f.moved)
	}
	x.unqueueLocked()
	f.lineUpLocked(x, false)
}

// rest has nothing fetched until want, and gives up what was fetched.
func (f *fetcher) rest(x *feed) {
	f.mu.Lock()
	defer f.mu.Unlock()
	x.dropLocked()
	x.wanted = false
}

// take returns the oldest part that was fetched, or why there is none and will be none; both nil:
// not now.
func (f *fetcher) take(x *feed) (*kafkaclient.Fetched, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(x.parts) == 0 {
		return nil, x.err
	}
	part := x.parts[0]
	x.parts[0] = nil
	x.parts = x.parts[1:]
	if len(x.parts) > 0 || x.err != nil {
		poke(x.ready)
	}
	f.lineUpLocked(x, false)
	return part, nil
}

// dropLocked gives up what was fetched, and what is being fetched.
func (x *feed) dropLocked() {
	for _, part := range x.parts {
		part.Release()
	}
	x.parts, x.err = nil, nil
	x.round++
}

func (x *feed) failLocked(err error) {
	x.err, x.wanted = err, false
	poke(x.ready)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// got hands a partition's part of an answer to its reader.
func (f *fetcher) got(x *feed, round int, first bool, got *kafkaclient.Fetched, err error, asked time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	x.flying = false
	if !x.wanted || x.round != round {
		if got != nil {
			got.Release()
		}
		f.lineUpLocked(x, false)
		return
	}
	if err != nil {
		x.failLocked(fmt.Errorf("fetch from %d: %w", x.next, err))
		f.leaveLocked(x)
		f.client.Stale(x.topic)
		return
	}
	if x.broker != nil {
		x.broker.trouble.Over()
	}
	wake := x.facts(got, asked)
	front := false
	if got.Next > x.next {
		x.next = got.Next
		x.more = got.Next < got.Stable
		x.warm = time.Now().Add(warmTime)
		x.parts = append(x.parts, got)
		wake = true
	} else {
		got.Release()
		// A batch that had no room after those of other partitions has it at the front.
		x.more = x.next < got.Stable && !first
		front = x.more
		if x.next < got.Stable {
			x.warm = time.Now().Add(warmTime)
		}
	}
	if wake {
		poke(x.ready)
	}
	f.lineUpLocked(x, front)
}

// leaveLocked takes a feed away from its broker, which may not lead it any more.
func (f *fetcher) leaveLocked(x *feed) {
	if x.broker != nil {
		x.unqueueLocked()
		delete(x.broker.feeds, x)
		x.broker = nil
	}
}

func (x *feed) unqueueLocked() {
	if !x.queued {
		return
	}
	x.queued = false
	for l, line := range x.broker.lines {
		if i := slices.Index(line, x); i >= 0 {
			x.broker.lines[l] = slices.Delete(line, i, i+1)
		}
	}
}

// lose tells all readers of a broker's partitions that it does not answer, and has their leaders
// looked up again.
func (f *fetcher) lose(b *broker, err error) {
	b.trouble.Note(err)
	f.mu.Lock()
	defer f.mu.Unlock()
	topics := make(map[string]bool)
	for x := range b.feeds {
		topics[x.topic] = true
		x.broker, x.queued = nil, false
		if x.wanted {
			x.failLocked(err)
		}
	}
	clear(b.feeds)
	for l := range b.lines {
		b.lines[l] = nil
	}
	for t := range topics {
		f.client.Stale(t)
	}
}
