package ingest

import (
	"context"
	"errors"
	"fmt"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// A topic that is deleted and created again has other records at the same offsets, and Kafka's answers do not tell.
// So the buffer keeps the fingerprint of a record that was read, and that record is read again whenever the topic
// may have changed unseen: at an assignment, after a fetch that failed, and before a refetch.

// A broker that is elected leader without having all records (unclean.leader.election.enable) has cut off the end of a
// partition, whose offsets are then given to other records. That looks the same at the newest record, but older ones
// are still there: then what comes after the newest of those is the next incarnation.

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

// compare looks at what Kafka, which has offsets first to next, has in the place of a record that was read.
func (p *partition) compare(ctx context.Context, known *spillwayv1.Fingerprint, first, next int64) (found comparison, err error) {
	switch {
	case known.Offset < first:
		return untold, nil
	case known.Offset >= next:
		return another, nil
	}
	fetched, err := p.source.client.Fetch(ctx, kafkaclient.Request{Topic: p.topic, Partition: p.number, Offset: known.Offset,
		MinBytes: 1, MaxBytes: probeBytes, Uncommitted: true})
	if err != nil {
		return untold, err
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
	}, func(int64, int64) error { return errSeen })
	if errors.Is(err, errSeen) {
		err = nil
	}
	return found, err
}

// isGone says whether the partition is another one than that of the known records, the newest first, which was read up to
// resume; and from where on, if not from its beginning.
func (p *partition) isGone(ctx context.Context, known []*spillwayv1.Fingerprint, resume int64) (gone bool, from int64, err error) {
	first, next, err := p.source.client.Offsets(ctx, p.topic, p.number)
	if err != nil {
		return false, 0, err
	}
	gone = next < resume
	for _, k := range known {
		found, err := p.compare(ctx, k, first, next)
		switch {
		case err != nil:
			return false, 0, err
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

// verify asks isGone until Kafka answers.
func (p *partition) verify(ctx context.Context, known []*spillwayv1.Fingerprint, resume int64) (gone bool, from int64, err error) {
	for {
		gone, from, err := p.isGone(ctx, known, resume)
		switch {
		case err == nil && gone && from > 0:
			p.log.Error("the partition has lost its newest records, and has others in their place", "first_offset", from, "was_read_to", resume)
		case err == nil && gone:
			p.log.Error("the topic was deleted and created again", "was_read_to", resume)
		}
		if err == nil {
			return gone, from, nil
		}
		if failed := p.fetching.Failed(ctx, fmt.Errorf("is it still the topic that was read: %w", err)); failed != nil {
			return false, 0, failed
		}
	}
}
