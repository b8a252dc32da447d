package ingest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// A topic that is deleted and created again has other records at the same offsets, and Kafka's
// answers do not tell. So the buffer keeps the fingerprint of a record that was read, and that
// record is read again whenever the topic may have changed unseen: at an assignment, after a
// fetch that failed, and before a refetch.

// A broker that is elected leader without having all records (unclean.leader.election.enable) has
// cut off the end of a partition, whose offsets are then given to other records. That looks the
// same at the newest record, but older ones are still there: then what comes after the newest of
// those is the next incarnation.

// errRecreated ends the reading of a partition whose topic was created again, or cut off.
var errRecreated = errors.New("the topic was created again, or lost its newest records")

// comparison is what Kafka has at a known record's offset.
type comparison int

const (
	untold  comparison = iota // nothing any more, because of retention or compaction
	same                      // the record
	another                   // another one, or not that many
)

// fingerprint is that of the record at an offset.
func fingerprint(offset int64, r *recordbatch.Record) *spillwayv1.Fingerprint {
	return &spillwayv1.Fingerprint{Offset: offset, TimestampMs: r.TimestampMs, Crc32C: recordbatch.CRC(r.Key, r.Value)}
}

// compare looks at what Kafka has in the place of a record that was read. It also returns the
// offset that the partition's next record gets.
func (p *partition) compare(ctx context.Context, known *spillwayv1.Fingerprint) (found comparison, next int64, err error) {
	fetched, err := p.peek(ctx, known.Offset)
	if errors.Is(err, kafka.OffsetOutOfRange) {
		first, next, err := p.offsets(ctx)
		switch {
		case err != nil || known.Offset < first:
			return untold, next, err
		case known.Offset >= next:
			return another, next, nil
		}
		return untold, 0, fmt.Errorf("offset %d is out of range, and between %d and %d", known.Offset, first, next)
	}
	if err != nil {
		return untold, 0, err
	}
	if next = fetched.HighWatermark; known.Offset >= next {
		fetched.Release()
		if next, err = p.nextOffset(ctx); err != nil {
			return untold, 0, err
		}
		if known.Offset >= next {
			return another, next, nil
		}
		return untold, 0, fmt.Errorf("offset %d is not readable yet, and the end is %d", known.Offset, next)
	}
	errSeen := errors.New("seen")
	_, err = fetched.Each(func(offset int64, r *recordbatch.Record) error {
		if offset == known.Offset {
			found = another
			if f := fingerprint(offset, r); f.TimestampMs == known.TimestampMs && f.Crc32C == known.Crc32C {
				found = same
			}
		}
		return errSeen
	}, func(int64, int64, string) error { return errSeen })
	if errors.Is(err, errSeen) {
		err = nil
	}
	return found, next, err
}

// nextOffset is the offset that the partition's next record gets. A fetch does not tell that
// reliably: a broker that has just become leader may answer with a high watermark that is behind
// what the former leader had shown, and asked for the end it then refuses to answer (KIP-207).
func (p *partition) nextOffset(ctx context.Context) (int64, error) {
	return p.source.lookups.place(ctx, p.topicPartition, kafkaclient.Next)
}

// isGone says whether the partition is another one than that of the known records, the newest
// first, which was read up to resume; and from where on, if not from its beginning.
func (p *partition) isGone(ctx context.Context, known []*spillwayv1.Fingerprint, resume int64) (gone bool, from int64, err error) {
	if len(known) == 0 {
		_, next, err := p.offsets(ctx)
		return err == nil && next < resume, 0, err
	}
	for i, k := range known {
		found, next, err := p.compare(ctx, k)
		if err == nil && i == 0 && next < resume {
			next, err = p.nextOffset(ctx)
		}
		if err != nil {
			return false, 0, err
		}
		if i == 0 {
			gone = next < resume
		}
		switch {
		case found == same && gone:
			return true, k.Offset + 1, nil
		case found == same:
			return false, 0, nil
		case found == another:
			gone = true
		}
	}
	return gone, 0, nil
}

// sureFor is for how long it is believed that all brokers have told who leads a topic's
// partitions.
const sureFor = 5 * time.Second

// hasOtherLeader asks all brokers whether the one that was asked about a partition leads it. One
// that is cut off from the others has an end that is no more than where it was cut off: as if the
// partition had lost what came after that.
func (s *source) hasOtherLeader(ctx context.Context, tp topicPartition) bool {
	s.mu.Lock()
	sure := time.Since(s.compared[tp.topic]) < sureFor
	s.mu.Unlock()
	if sure {
		return false
	}
	before, err := s.client.Leader(ctx, tp.topic, tp.number)
	if err != nil {
		return false
	}
	began := time.Now()
	s.client.CompareAll(ctx, tp.topic)
	after, err := s.client.Leader(ctx, tp.topic, tp.number)
	if err == nil && after != before {
		s.log.Info("a broker seemed to have lost records, but another one leads the partition by now", "topic", tp.topic, "partition", tp.number,
			"former_leader", before, "leader", after)
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	const many = 10_000
	if len(s.compared) >= many {
		clear(s.compared)
	}
	s.compared[tp.topic] = began
	return false
}

// verify asks isGone until Kafka answers.
func (p *partition) verify(ctx context.Context, known []*spillwayv1.Fingerprint, resume int64) (gone bool, from int64, err error) {
	for {
		gone, from, err := p.isGone(ctx, known, resume)
		if err == nil && gone && p.source.hasOtherLeader(ctx, p.topicPartition) {
			continue
		}
		switch {
		case err == nil && gone && from > 0:
			p.log.Error("the partition has lost its newest records, and has others in their place", "first_offset", from, "was_read_to", resume)
		case err == nil && gone:
			p.log.Error("the topic was deleted and created again", "was_read_to", resume)
		}
		if err == nil {
			p.source.fetching.over(p)
			return gone, from, nil
		}
		if ctx.Err() != nil {
			return false, 0, ctx.Err()
		}
		p.source.fetching.note(p, fmt.Errorf("is it still the topic that was read: %w", err))
		if err := p.backOff(ctx); err != nil {
			return false, 0, err
		}
	}
}
