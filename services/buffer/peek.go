package buffer

import (
	"context"
	"fmt"
	"slices"

	"github.com/klauspost/compress/zstd"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

const (
	peekDefault, peekMost = 10, 1000
	peekBytes             = 1 << 20
)

// PeekRecords is the one place where the buffer looks into a payload.
func (a *admin) PeekRecords(_ context.Context, r *spillwayv1.PeekRecordsRequest) (*spillwayv1.PeekRecordsResponse, error) {
	limit := int(r.Limit)
	if limit < 0 || limit > peekMost {
		return nil, toStatus(fmt.Errorf("%w limit %d: at most %d", queue.ErrInvalid, limit, peekMost))
	}
	if limit == 0 {
		limit = peekDefault
	}
	q, v, err := a.view(r.Subscription)
	if err != nil {
		return nil, err
	}
	batches, err := q.Peek(v.Name, limit)
	if err != nil {
		return nil, toStatus(err)
	}
	resp := &spillwayv1.PeekRecordsResponse{}
	bytes := 0
	for _, b := range batches {
		if err := q.Load(b); err != nil {
			return nil, toStatus(err)
		}
		if err := eachRecord(b, func(offset int64, rec *recordbatch.Record) bool {
			if len(resp.Records) == limit || (bytes > 0 && bytes+rec.Size() > peekBytes) {
				return false
			}
			bytes += rec.Size()
			resp.Records = append(resp.Records, &spillwayv1.PeekedRecord{Source: fromPartition(b.Batch.Partition), Offset: offset, Record: fromRecord(rec)})
			return true
		}); err != nil {
			return nil, toStatus(err)
		}
		if len(resp.Records) == limit || bytes >= peekBytes {
			break
		}
	}
	return resp, nil
}

// eachRecord yields the pending records of a batch until yield says no.
func eachRecord(b *queue.Lease, yield func(int64, *recordbatch.Record) bool) error {
	payload := b.Batch.Payload
	if b.Batch.Codec == int32(spillwayv1.Codec_CODEC_ZSTD) {
		d, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(64<<20))
		if err != nil {
			return fmt.Errorf("open zstd decoder: %w", err)
		}
		defer d.Close()
		if payload, err = d.DecodeAll(payload, nil); err != nil {
			return fmt.Errorf("decompress batch [%d,%d): %w", b.Batch.First, b.Batch.Next, err)
		}
	}
	var reader recordbatch.Reader
	reader.Reset(payload)
	for reader.Next() {
		offset := b.Batch.First + reader.Record().OffsetDelta
		if slices.ContainsFunc(b.Settled, func(r queue.Range) bool { return r.First <= offset && offset < r.Next }) {
			continue
		}
		if !yield(offset, reader.Record()) {
			return nil
		}
	}
	return reader.Err()
}

func fromRecord(r *recordbatch.Record) *spillwayv1.Record {
	out := &spillwayv1.Record{TimestampMs: r.TimestampMs, Key: r.Key, Value: r.Value}
	for _, h := range r.Headers {
		out.Headers = append(out.Headers, &spillwayv1.Header{Name: h.Name, Value: h.Value})
	}
	return out
}
