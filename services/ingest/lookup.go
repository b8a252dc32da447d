package ingest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

const (
	// maxLookups bounds the partitions of one request for offsets, maxPeeks those of one for
	// records.
	maxLookups = 10_000
	maxPeeks   = 1000
	// peekBytes is what a first look at a record may bring. Brokers do not cut batches, so one
	// that is larger takes another look.
	peekBytes = 64 << 10
)

// lookups asks brokers where partitions begin and end, and for single records of them, beside the
// fetches. Thousands of partitions may ask at a time, as they all do at an assignment: what is
// asked while a request is under way is asked together in the next one, so that a broker has one
// request of each kind at a time, and few in all. Run serves them.
type lookups struct {
	client *kafkaclient.Client
	memory *budget // of the records that come

	mu      sync.Mutex
	waiting []*lookup // whose leader is not looked up yet
	lines   map[lookupLine]*[]*lookup
	wake    chan struct{} // has room for one
	wg      sync.WaitGroup
}

// lookupLine is what one goroutine asks one broker, while there is something to ask.
type lookupLine struct {
	broker  int32
	records bool
}

// lookup is one question about a partition: the offset of a place, or the records at an offset.
type lookup struct {
	topicPartition
	at      int64 // a kafkaclient.OffsetWant's, or the offset of the records
	records bool
	most    int  // bytes of records
	again   bool // it is asked once more; of serve

	mu     sync.Mutex
	gone   bool // nobody waits for the answer
	done   chan struct{}
	offset int64
	got    *kafkaclient.Fetched
	err    error
}

func newLookups(client *kafkaclient.Client, memory *budget) *lookups {
	return &lookups{client: client, memory: memory, lines: make(map[lookupLine]*[]*lookup), wake: make(chan struct{}, 1)}
}

// answer gives the answer to the one who waits for it.
func (l *lookup) answer(offset int64, got *kafkaclient.Fetched, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone && got != nil {
		got.Release()
		got = nil
	}
	l.offset, l.got, l.err = offset, got, err
	close(l.done)
}

func (l *lookup) isGone() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gone
}

// ask returns when the lookup is answered, or with ctx's error. The caller owns l.got.
func (s *lookups) ask(ctx context.Context, l *lookup) error {
	l.done = make(chan struct{})
	s.mu.Lock()
	s.waiting = append(s.waiting, l)
	s.mu.Unlock()
	poke(s.wake)
	select {
	case <-l.done:
		return l.err
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone = true
	if l.got != nil {
		l.got.Release()
		l.got = nil
	}
	return ctx.Err()
}

// place returns the offset of a kafkaclient.OffsetWant.
func (s *lookups) place(ctx context.Context, tp topicPartition, at int64) (int64, error) {
	l := &lookup{topicPartition: tp, at: at}
	if err := s.ask(ctx, l); err != nil {
		return 0, fmt.Errorf("list offsets of %s: %w", tp, err)
	}
	return l.offset, nil
}

// offsets returns the first offset of a partition and the one that its next record gets.
func (s *lookups) offsets(ctx context.Context, tp topicPartition) (first, next int64, err error) {
	if first, err = s.place(ctx, tp, kafkaclient.First); err == nil {
		next, err = s.place(ctx, tp, kafkaclient.Next)
	}
	return first, next, err
}

// offsetAt returns the offset of the first record that is not older than a time, or the one that
// the next record gets when all are older.
func (s *lookups) offsetAt(ctx context.Context, tp topicPartition, at time.Time) (int64, error) {
	offset, err := s.place(ctx, tp, max(at.UnixMilli(), 0))
	if err == nil && offset < 0 {
		offset, err = s.place(ctx, tp, kafkaclient.Next)
	}
	return offset, err
}

// peek fetches the first records from an offset on, also those of open transactions. The caller
// must go through them, or release them, without waiting for another lookup.
func (s *lookups) peek(ctx context.Context, tp topicPartition, offset int64) (*kafkaclient.Fetched, error) {
	l := &lookup{topicPartition: tp, at: offset, records: true, most: peekBytes}
	if err := s.ask(ctx, l); err != nil {
		return nil, fmt.Errorf("fetch %s from %d: %w", tp, offset, err)
	}
	return l.got, nil
}

// run finds the leaders of the partitions that are asked about, until ctx ends.
func (s *lookups) run(ctx context.Context) {
	defer s.wg.Wait()
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
		s.mu.Lock()
		all := s.waiting
		s.waiting = nil
		s.mu.Unlock()
		s.route(ctx, all)
	}
}

// route gives lookups to the lines of the brokers that lead their partitions.
func (s *lookups) route(ctx context.Context, all []*lookup) {
	seen := make(map[string]bool)
	var topics []string
	for _, l := range all {
		if !seen[l.topic] {
			seen[l.topic] = true
			topics = append(topics, l.topic)
		}
	}
	leaders, err := s.client.Leaders(ctx, topics)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range all {
		broker, err := int32(-1), err
		if err == nil {
			broker, err = leaderOf(leaders[l.topic], l.number)
		}
		if err != nil {
			l.answer(0, nil, fmt.Errorf("find the leader: %w", err))
			continue
		}
		key := lookupLine{broker, l.records}
		line := s.lines[key]
		if line == nil {
			line = new([]*lookup)
			s.lines[key] = line
			s.wg.Go(func() { s.serve(ctx, key, line) })
		}
		*line = append(*line, l)
	}
}

func leaderOf(t kafkaclient.TopicMetadata, number int) (int32, error) {
	switch {
	case t.Err != nil:
		return -1, t.Err
	case number >= len(t.Leaders):
		return -1, kafka.UnknownTopicOrPartition
	}
	return t.Leaders[number].ID, t.Leaders[number].Err
}

// serve sends a broker the requests of a line until there is nothing to ask.
func (s *lookups) serve(ctx context.Context, key lookupLine, line *[]*lookup) {
	for {
		s.mu.Lock()
		picked := pickLookups(line, key.records)
		if len(picked) == 0 {
			delete(s.lines, key)
		}
		s.mu.Unlock()
		if len(picked) == 0 {
			return
		}
		again, err := s.send(ctx, key, picked)
		if err == nil {
			err = errUnanswered
		}
		for _, l := range again {
			l.again = true
		}
		for _, l := range picked {
			select {
			case <-l.done:
			default:
				if !l.again {
					s.fail(l, err)
				}
			}
			l.again = false
		}
		s.mu.Lock()
		*line = append(again, *line...)
		s.mu.Unlock()
	}
}

// fail answers a lookup with an error.
func (s *lookups) fail(l *lookup, err error) {
	if kafkaclient.IsStale(err) {
		s.client.Stale(l.topic)
	}
	l.answer(0, nil, err)
}

var errUnanswered = errors.New("the broker answers about nothing")

// pickLookups takes from a line what the next request asks: each partition once, and as the first
// one what has waited longest.
func pickLookups(line *[]*lookup, records bool) (picked []*lookup) {
	most := maxLookups
	if records {
		most = maxPeeks
	}
	in := make(map[topicPartition]bool)
	var left []*lookup
	for i, l := range *line {
		if len(picked) == most {
			left = append(left, (*line)[i:]...)
			break
		}
		if l.isGone() {
			continue
		}
		if in[l.topicPartition] {
			left = append(left, l)
			continue
		}
		in[l.topicPartition] = true
		picked = append(picked, l)
	}
	*line = left
	if len(picked) > 1 { // a request names each topic once
		slices.SortStableFunc(picked[1:], func(a, b *lookup) int {
			return cmp.Or(cmp.Compare(a.topic, b.topic), cmp.Compare(a.number, b.number))
		})
	}
	return picked
}

// send sends one request and hands out what comes. It returns those that are to be asked again.
func (s *lookups) send(ctx context.Context, key lookupLine, picked []*lookup) (again []*lookup, err error) {
	if !key.records {
		wants := make([]kafkaclient.OffsetWant, len(picked))
		for i, l := range picked {
			wants[i] = kafkaclient.OffsetWant{Topic: l.topic, Partition: l.number, At: l.at}
		}
		return nil, s.client.ListOffsets(ctx, key.broker, wants, func(i int, offset int64, err error) {
			if err != nil {
				s.fail(picked[i], err)
				return
			}
			picked[i].answer(offset, nil, nil)
		})
	}
	total := int(min(max(s.memory.limit/4, peekBytes), maxFetchBytes))
	request := kafkaclient.MultiRequest{Broker: key.broker, MinBytes: 1, MaxBytes: total, Uncommitted: true, Partitions: make([]kafkaclient.Want, len(picked)),
		Reserve: func(ctx context.Context, n int64) (func(), error) { return s.memory.reserve(ctx, nil, n) }}
	for i, l := range picked {
		request.Partitions[i] = kafkaclient.Want{Topic: l.topic, Partition: l.number, Offset: l.at, MaxBytes: min(l.most, total)}
	}
	came := 0
	answered := make([]bool, len(picked))
	throttle, err := s.client.FetchFrom(ctx, request, func(i int, got *kafkaclient.Fetched, err error) {
		l := picked[i]
		answered[i] = true
		switch {
		case err != nil:
			s.fail(l, err)
		case i > 0 && got.Bytes() == 0 && l.at < got.HighWatermark:
			// Its batch had no room: alone, or at the front, it has.
			got.Release()
			again = append(again, l)
		default:
			came += got.Bytes()
			l.answer(0, got, nil)
		}
	})
	if came < total/2 {
		for _, l := range again {
			l.most = min(4*l.most, maxPartBytes)
		}
	}
	if err == nil && throttle > 0 && !slices.Contains(answered, true) { // a broker that throttles says nothing about any
		return picked, nil
	}
	return again, err
}
