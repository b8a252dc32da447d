package buffer

import (
	"cmp"
	"slices"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// Dead letters are kept: beside PeekRecords and ReadUndelivered, this is where the buffer looks
// into a payload.

const (
	// mostCopied bounds the bytes that are copied of one ack, but for a larger record, and
	// mostCopies the records.
	mostCopied = 4 << 20
	mostCopies = 1000
)

// copies adds to an ack the records of its dead letters. Where they cannot be read, or are too
// many, they are listed without: an ack does not fail for that.
func (c *consumeStream) copies(a *queue.Ack) {
	bytes, n := 0, 0
	for i := range a.Leases {
		al := &a.Leases[i]
		if len(al.DeadLetters) == 0 || bytes >= mostCopied || n >= mostCopies || slices.ContainsFunc(al.DeadLetters, malformed) {
			continue
		}
		c.copying.Lock()
		al.Copies = c.copiesOf(al, mostCopied-bytes, mostCopies-n)
		c.copying.Unlock()
		for _, b := range al.Copies {
			bytes += len(b.Payload)
			n++
		}
	}
}

// copiesOf returns the dead letters of a lease that the ack settles, each as a batch of its own,
// so that each can be delivered once more alone. A batch ends where the next record is, or its
// dead letter: what is between are offsets without a record.
func (c *consumeStream) copiesOf(al *queue.AckedLease, bytes, most int) (copies []queue.Batch) {
	batch, err := c.session.Batch(al.ID)
	if err != nil {
		return nil
	}
	runs := slices.DeleteFunc(slices.Clone(al.DeadLetters), func(d queue.DeadLetter) bool {
		r := offsetsOf(d)
		return len(al.Only) > 0 && !slices.ContainsFunc(al.Only, func(o queue.Range) bool { return o.First <= r.First && r.Next <= o.Next })
	})
	slices.SortFunc(runs, func(a, b queue.DeadLetter) int { return cmp.Compare(a.Offset, b.Offset) })
	var making *queue.Batch
	end := func(next int64) {
		if making != nil {
			making.Next = next
			copies = append(copies, *making)
		}
		making = nil
	}
	err = eachRecord(&queue.Lease{Batch: batch}, func(offset int64, rec *recordbatch.Record) bool {
		for len(runs) > 0 && offsetsOf(runs[0]).Next <= offset {
			end(offsetsOf(runs[0]).Next)
			runs = runs[1:]
		}
		if len(runs) == 0 || offset < runs[0].Offset {
			return len(runs) > 0
		}
		end(offset)
		if bytes <= 0 || len(copies) >= most {
			runs = nil
			return false
		}
		one := *rec
		one.OffsetDelta = 0
		payload := recordbatch.AppendRecord(nil, &one)
		making = &queue.Batch{Partition: batch.Partition, Range: queue.Range{First: offset}, Records: 1, Codec: int32(spillwayv1.Codec_CODEC_NONE),
			CRC: recordbatch.CRC(payload), MaxTimestampMs: rec.TimestampMs, Payload: payload}
		bytes -= len(payload)
		return true
	})
	if err == nil && len(runs) > 0 {
		end(offsetsOf(runs[0]).Next)
	}
	return copies
}

// malformed says what the queue refuses.
func malformed(d queue.DeadLetter) bool { return d.Next != 0 && d.Next <= d.Offset }

func offsetsOf(d queue.DeadLetter) queue.Range {
	return queue.Range{First: d.Offset, Next: max(d.Next, d.Offset+1)} // 0 is the next one
}
