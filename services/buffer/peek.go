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

// PeekRecords and TapRecords are the places where the buffer looks into a payload. A batch that
// cannot be read is named, and does not hide what is behind it.
func (a *admin) PeekRecords(ctx context.Context, r *spillwayv1.PeekRecordsRequest) (*spillwayv1.PeekRecordsResponse, error) {
	limit := int(r.Limit)
	if limit < 0 || limit > peekMost {
		return nil, toStatus(fmt.Errorf("%w limit %d: want 1 to %d, or 0 for %d", queue.ErrInvalid, limit, peekMost, peekDefault))
	}
	if limit == 0 {
		limit = peekDefault
	}
	if r.FromOffset != 0 && r.Source == nil || r.FromOffset < 0 {
		return nil, toStatus(fmt.Errorf("%w from_offset %d: want an offset from 0, and a source", queue.ErrInvalid, r.FromOffset))
	}
	open, views, err := a.view(r.Subscription)
	if err != nil {
		return nil, err
	}
	p := peek{limit: limit, from: r.FromOffset}
	if err := each(open, func(o openShard) error { return p.look(ctx, o.Queue, views[0].Name, r.Source) }, queue.ErrNoSource); err != nil {
		return nil, toStatus(err)
	}
	return &spillwayv1.PeekRecordsResponse{Records: p.records}, nil
}

// peek collects records for an answer.
type peek struct {
	limit   int
	from    int64
	records []*spillwayv1.PeekedRecord
	bytes   int
	full    bool
}

// look adds records of a queue, of one partition or of any, unless the answer is full.
func (p *peek) look(ctx context.Context, q *queue.Queue, sub string, source *spillwayv1.SourcePartition) (err error) {
	if p.full {
		return nil
	}
	var batches []*queue.Lease
	if source == nil {
		batches, err = q.Peek(sub, p.limit)
	} else {
		id := queue.Partition{Cluster: source.Cluster, Topic: source.Topic, Incarnation: source.Incarnation, Number: source.Partition}
		batches, err = q.PeekFrom(sub, id, p.from, p.limit)
	}
	if err != nil {
		return err
	}
	for _, b := range batches {
		if err := ctx.Err(); err != nil {
			return err
		}
		if p.full {
			break
		}
		err := q.Load(b)
		if err == nil {
			err = eachRecord(b, func(offset int64, rec *recordbatch.Record) bool { return p.add(b, offset, rec) })
		}
		if err != nil {
			p.addError(b, err)
		}
		b.Batch.Payload = nil
	}
	return nil
}

// add adds a record unless the answer is full. The first one is cut where it is too large.
func (p *peek) add(b *queue.Lease, offset int64, rec *recordbatch.Record) bool {
	if offset < p.from {
		return true
	}
	if p.full = len(p.records) == p.limit || p.bytes > 0 && p.bytes+rec.Size() > peekBytes; p.full {
		return false
	}
	out := &spillwayv1.PeekedRecord{Source: fromPartition(b.Batch.Partition), Offset: offset, Record: fromRecord(rec)}
	out.CutBytes = cutRecord(out.Record, rec.Size()-peekBytes)
	p.bytes += rec.Size()
	p.records = append(p.records, out)
	p.full = len(p.records) == p.limit || p.bytes >= peekBytes
	return !p.full
}

func (p *peek) addError(b *queue.Lease, err error) {
	if p.full = len(p.records) == p.limit; !p.full {
		p.records = append(p.records, unreadable(b.Batch, err))
	}
}

// unreadable names a batch that cannot be read.
func unreadable(b queue.Batch, err error) *spillwayv1.PeekedRecord {
	return &spillwayv1.PeekedRecord{Source: fromPartition(b.Partition), Offset: b.First, NextOffset: b.Next, Error: fmt.Sprintf("%.1000s", err)}
}

// cutRecord takes at least over bytes from a record: its headers, then the end of its value, and
// of its key. It returns how many.
func cutRecord(r *spillwayv1.Record, over int) int64 {
	cut := 0
	if over > 0 {
		for _, h := range r.Headers {
			cut += len(h.Name) + len(h.Value)
		}
		r.Headers = nil
	}
	for _, b := range []*[]byte{&r.Value, &r.Key} {
		if n := min(max(over-cut, 0), len(*b)); n > 0 {
			*b = (*b)[:len(*b)-n]
			cut += n
		}
	}
	return int64(cut)
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
