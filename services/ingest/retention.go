package ingest

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

const (
	retentionInterval = 30 * time.Second
	// thinMargin is the part of the retention that an unsafe record may reach before there is a
	// warning.
	thinMargin = 0.8
	// hurryShare is the part of what Kafka keeps that a partition may be behind before the buffer
	// is to take its batches at once, whatever becomes of them there.
	hurryShare = 8
	// oldShare is the part of what Kafka keeps that may be over before the buffer is to keep
	// itself what it needs.
	oldShare = 2
)

// keeps is the topic's retention; zero while it is unknown.
func (p *partition) keeps() (r kafkaclient.Retention) {
	if known := p.retention.Load(); known != nil {
		r = *known
	}
	return r
}

// mayWait says whether the buffer may hold back a batch that ends at next and whose newest record
// is of newestMs: Kafka is far from deleting what comes after it.
func (p *partition) mayWait(next, newestMs int64) bool {
	keeps := p.retention.Load()
	if keeps == nil || keeps.After > 0 && time.Since(time.UnixMilli(newestMs)) > keeps.After/hurryShare {
		return false
	}
	end := p.end.Load()
	return !keeps.Bounded || end-next <= (end-p.first.Load())/hurryShare
}

// watchRetention compares the age of each partition's first unsafe record with how long its topic
// keeps records, until ctx ends. What Kafka deletes before it is safe may be lost.
func (s *source) watchRetention(ctx context.Context, partitions []*partition) {
	told := make(chan struct{}, 1) // has room while nobody is told
	var telling sync.WaitGroup
	defer telling.Wait()
	for ctx.Err() == nil {
		err := s.lookAtRetention(ctx, partitions)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.retention.Note(err)
		default:
			s.retention.Over()
		}
		s.lookAtTransactions(partitions)
		select {
		case told <- struct{}{}: // a buffer may take its time
			telling.Go(func() {
				s.tellRetention(ctx, partitions)
				<-told
			})
		default:
		}
		sleep(ctx, retentionInterval)
	}
}

func (s *source) lookAtRetention(ctx context.Context, partitions []*partition) error {
	if len(partitions) == 0 {
		return nil
	}
	s.looks.Lock()
	defer s.looks.Unlock()
	var topics []string
	for _, p := range partitions { // by topic
		if n := len(topics); n == 0 || topics[n-1] != p.topic {
			topics = append(topics, p.topic)
		}
	}
	kept, failures := s.client.Retention(ctx, topics)
	for _, p := range partitions {
		if failures == nil {
			keeps := kept[p.topic]
			p.retention.Store(&keeps)
		}
	}
	// Together, so that few requests do for many partitions.
	const looks = 64
	ages, errs := make([]time.Duration, len(partitions)), make([]error, len(partitions))
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(looks, len(partitions)) {
		wg.Go(func() {
			for i := range next {
				ages[i], errs[i] = partitions[i].oldestUnsafe(ctx)
			}
		})
	}
	for i := range partitions {
		next <- i
	}
	close(next)
	wg.Wait()
	for i, p := range partitions {
		age, err := ages[i], errs[i]
		if err != nil {
			if failures == nil { // those of the others are most likely like it
				failures = err
			}
			continue
		}
		p.unsafeAge.Store(age.Milliseconds())
		limit := p.keeps().After
		thin := limit > 0 && age > time.Duration(thinMargin*float64(limit))
		if thin != p.thin {
			if p.thin = thin; thin {
				p.log.Warn("Kafka will soon delete records that are not safe yet", "offset", p.safe.Load(), "age", age.Round(time.Second), "retention", limit)
			} else {
				p.log.Info("recovered: Kafka is far from deleting records that are not safe yet")
			}
		}
	}
	return failures
}

// tellRetention tells buffers that want to know what Kafka may delete soon.
func (s *source) tellRetention(ctx context.Context, partitions []*partition) {
	s.tells.Lock()
	defer s.tells.Unlock()
	for _, p := range partitions {
		a := p.stream.Load()
		if a == nil || !a.wants || p.safe.Load() < 0 || ctx.Err() != nil {
			continue
		}
		old, err := p.oldOffset(ctx)
		if err != nil || p.old.to == a && p.old.offset == old {
			continue // it is looked at again soon
		}
		m := &spillwayv1.SourceRetention{FirstOffset: p.first.Load(), EndOffset: p.end.Load(), OldOffset: old, Source: &spillwayv1.SourcePartition{
			Cluster: s.clusterID(), Topic: p.topic, Partition: int32(p.number), Incarnation: p.life.Load()}}
		if a.send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Retention{Retention: m}}) == nil {
			p.old.to, p.old.offset = a, old
		}
	}
}

// oldOffset returns what Kafka may delete soon: what is before it. Of a partition whose first
// unsafe record is young it is 0, unless bytes count.
func (p *partition) oldOffset(ctx context.Context) (old int64, err error) {
	first, end, keeps := p.first.Load(), p.end.Load(), p.retention.Load()
	if keeps == nil || keeps.Compacted {
		return end, nil
	}
	if keeps.Bounded {
		old = first + (end-first)/oldShare
	}
	half := keeps.After / oldShare
	if half == 0 || time.Duration(p.unsafeAge.Load())*time.Millisecond <= half {
		return old, nil
	}
	at, err := p.source.lookups.offsetAt(ctx, p.topicPartition, time.Now().Add(-half))
	return max(old, at), err
}

// oldestUnsafe is the age of the record at the safe offset, 0 when there is none.
func (p *partition) oldestUnsafe(ctx context.Context) (age time.Duration, err error) {
	safe := p.safe.Load()
	if safe < 0 || safe >= p.end.Load() {
		return 0, nil
	}
	if p.seen.timestampMs != 0 && p.seen.offset == safe {
		return ageOf(p.seen.timestampMs), nil
	}
	fetched, err := p.peek(ctx, safe)
	if errors.Is(err, kafka.OffsetOutOfRange) {
		return 0, nil // the reader deals with that
	}
	if err != nil {
		return 0, err
	}
	errFound := errors.New("found")
	found := func(_ int64, r *recordbatch.Record) error {
		age = ageOf(r.TimestampMs)
		p.seen.offset, p.seen.timestampMs = safe, r.TimestampMs
		return errFound
	}
	_, err = fetched.Each(found, func(int64, int64, string) error { return errFound })
	if errors.Is(err, errFound) {
		err = nil
	}
	return age, err
}

// ageOf is the age of a record for Kafka's retention. Without a timestamp, which is -1, Kafka goes
// by when it wrote the segment, and tells nobody.
func ageOf(timestampMs int64) time.Duration {
	if timestampMs < 0 {
		return 0
	}
	return max(time.Since(time.UnixMilli(timestampMs)), 0)
}
