package ingest

import (
	"context"
	"errors"
	"fmt"

	"github.com/segmentio/kafka-go"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// A topic that is deleted and created again has other records at the same offsets, and Kafka's answers do not tell.
// So the buffer keeps the fingerprint of a record that was read, and that record is read again whenever the topic
// may have changed unseen: at an assignment, after a fetch that failed, and before a refetch.

// errRecreated ends the reading of a partition whose topic was created again.
var errRecreated = errors.New("the topic was deleted and created again: its records are read from the first one on")

// fingerprint is that of the record at an offset.
func fingerprint(offset int64, r *recordbatch.Record) *spillwayv1.Fingerprint {
	return &spillwayv1.Fingerprint{Offset: offset, TimestampMs: r.TimestampMs, Crc32C: recordbatch.CRC(r.Key, r.Value)}
}

// isGone says whether what Kafka has is another topic than the one that had the record. A record that Kafka no
// longer has, because of retention or compaction, tells nothing.
func (p *partition) isGone(ctx context.Context, known *spillwayv1.Fingerprint) (gone bool, err error) {
	if known == nil {
		return false, nil
	}
	fetched, err := p.source.client.Fetch(ctx, kafkaclient.Request{Topic: p.topic, Partition: p.number, Offset: known.Offset,
		MinBytes: 1, MaxBytes: probeBytes, Uncommitted: true})
	if errors.Is(err, kafka.OffsetOutOfRange) {
		first, next, err := p.source.client.Offsets(ctx, p.topic, p.number)
		return err == nil && first <= known.Offset && next <= known.Offset, err
	}
	if err != nil {
		return false, err
	}
	errSeen := errors.New("seen")
	_, err = fetched.Each(func(offset int64, r *recordbatch.Record) error {
		found := fingerprint(offset, r)
		gone = offset == known.Offset && (found.TimestampMs != known.TimestampMs || found.Crc32C != known.Crc32C)
		return errSeen
	}, func(int64, int64) error { return errSeen })
	if errors.Is(err, errSeen) {
		err = nil
	}
	return gone, err
}

// verify asks isGone until Kafka answers.
func (p *partition) verify(ctx context.Context, known *spillwayv1.Fingerprint) (gone bool, err error) {
	for {
		gone, err := p.isGone(ctx, known)
		if err == nil {
			if gone {
				p.log.Error("the topic was deleted and created again", "offset", known.Offset)
			}
			return gone, nil
		}
		if failed := p.fetching.Failed(ctx, fmt.Errorf("is it still the topic that was read: %w", err)); failed != nil {
			return false, failed
		}
	}
}
