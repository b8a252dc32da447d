package ingest

import (
	"context"
	"slices"
	"time"

	"github.com/spillwayio/spillway/services/internal/backoff"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

const (
	// idleWait is how long a broker holds a fetch of idle partitions when there is nothing.
	idleWait = time.Second
	// warmWait is the same for partitions that had records lately. It is also how long one of
	// them may wait until it is part of the next fetch.
	warmWait = 100 * time.Millisecond
	// warmTime is how long a partition without new records is one that had some lately.
	warmTime = 2 * time.Second
	// manyIdle is the number of idle partitions above which they are fetched at most every
	// idlePause.
	manyIdle  = 64
	idlePause = 250 * time.Millisecond
	// maxFetchBytes and maxPartBytes bound what one fetch asks for, in all and of one partition.
	maxFetchBytes = 8 << 20
	maxPartBytes  = 2 << 20
)

// lane is one of the kinds of fetches that a broker is sent, at most one of each at a time:
//
//	          more than was fetched                    nothing new for warmTime
//	behind ◀────────────────────────▶ warm ────────────────────────────────────▶ idle
//
// A fetch of partitions that are behind is answered at once. The others wait at the broker for
// records, so that a partition that is behind must not be in one fetch with them; and those that
// had none for long are not named in each fetch of the few that have some. So the cost of a record
// does not depend on the number of partitions.
type lane int

const (
	behind lane = iota
	warm
	idle
	lanes
)

// lineUpLocked puts a feed into the line of its lane if it is to be fetched.
func (f *fetcher) lineUpLocked(x *feed, first bool) {
	if !x.wanted || x.queued || x.flying || x.broker == nil || len(x.parts) >= maxParts {
		return
	}
	l := idle
	switch {
	case x.more:
		l = behind
	case time.Now().Before(x.warm):
		l = warm
	}
	line := &x.broker.lines[l]
	if x.queued = true; first {
		*line = slices.Insert(*line, 0, x)
	} else {
		*line = append(*line, x)
	}
	poke(x.broker.wake[l])
}

// pickLocked takes from a line what the next fetch is to ask for. Feeds that belong into another
// lane by now go there.
func (f *fetcher) pickLocked(b *broker, l lane) []*feed {
	const most = 256 // of those that are behind: an answer has room for a few
	line := b.lines[l]
	n := len(line)
	if l == behind {
		n = min(n, most)
	}
	var picked []*feed
	now := time.Now()
	for _, x := range line[:n] {
		x.queued = false
		if !x.wanted || x.broker != b {
			continue
		}
		if l == warm && !now.Before(x.warm) {
			f.lineUpLocked(x, false) // idle
			continue
		}
		x.flying = true
		picked = append(picked, x)
	}
	b.lines[l] = slices.Delete(line, 0, n)
	return picked
}

// serve sends a broker the fetches of one lane.
func (f *fetcher) serve(ctx context.Context, b *broker, l lane) {
	var wait backoff.Backoff
	wait.Initial, wait.Max = 200*time.Millisecond, 5*time.Second
	for ctx.Err() == nil {
		f.mu.Lock()
		picked := f.pickLocked(b, l)
		f.mu.Unlock()
		if len(picked) == 0 {
			select {
			case <-b.wake[l]:
			case <-ctx.Done():
			}
			continue
		}
		began := time.Now()
		err := f.fetch(ctx, b, l, picked)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			f.lose(b, err)
			_ = wait.Wait(ctx)
		case l == warm:
			// Records are lingered over anyway: many small fetches cost more than a later one.
			wait.Reset()
			sleep(ctx, min(f.linger/2, warmWait)-time.Since(began))
		case l == idle && len(picked) > manyIdle:
			wait.Reset()
			sleep(ctx, idlePause-time.Since(began))
		default:
			wait.Reset()
		}
	}
}

// fetch sends one fetch and hands out what comes.
func (f *fetcher) fetch(ctx context.Context, b *broker, l lane, picked []*feed) error {
	total := int(min(max(f.arrived.limit/4, 64<<10), maxFetchBytes))
	request := kafkaclient.MultiRequest{Broker: b.id, MinBytes: 1, MaxBytes: total, Uncommitted: f.uncommitted,
		Partitions: make([]kafkaclient.Want, len(picked)),
		Reserve:    func(ctx context.Context, n int64) (func(), error) { return f.arrived.reserve(ctx, nil, n) }}
	switch l {
	case warm:
		request.MaxWait = warmWait
	case idle:
		request.MaxWait = idleWait
	}
	rounds := make([]int, len(picked))
	answered := make([]bool, len(picked))
	f.mu.Lock()
	for i, x := range picked {
		request.Partitions[i] = kafkaclient.Want{Topic: x.topic, Partition: x.number, Offset: x.next, MaxBytes: min(total, maxPartBytes)}
		rounds[i] = x.round
	}
	f.mu.Unlock()
	asked := time.Now()
	throttle, err := f.client.FetchFrom(ctx, request, func(i int, got *kafkaclient.Fetched, err error) {
		answered[i] = true
		f.got(picked[i], rounds[i], i == 0, got, err, asked)
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	// Those without an answer are first in the next request. A broker that throttles says nothing
	// about any; one that says nothing at once, and does not throttle, would be asked again at
	// once.
	if err == nil && throttle == 0 && !slices.Contains(answered, true) && (request.MaxWait == 0 || time.Since(asked) < request.MaxWait/2) {
		err = errUnanswered
	}
	for i, x := range slices.Backward(picked) {
		if !answered[i] {
			x.flying = false
			f.lineUpLocked(x, true)
		}
	}
	return err
}
