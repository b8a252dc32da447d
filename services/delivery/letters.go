package delivery

import (
	"context"
	"slices"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// Letter is a record that is about to be settled as a dead letter, as it is in Kafka.
type Letter struct {
	Source *spillwayv1.SourcePartition
	Offset int64
	// Record points into the lease.
	Record recordbatch.Record
	Reason string
	// Transform says that it is a transform of the delivery that could not work on it.
	Transform bool
}

// LetterWriter keeps dead letters elsewhere besides. It may be called concurrently.
type LetterWriter interface {
	// Write returns once the letters are durable, but for those that can never be written, which
	// it counts; it goes on trying until ctx ends. The same ones may come again.
	Write(ctx context.Context, letters []Letter) (refused int, err error)
	// Close ends it; no Write is under way.
	Close() error
}

// lettersAtOnce bounds the letters of one Write.
const lettersAtOnce = 1000

// writeLetters writes the dead letters of an ack, before the buffer is told of them: from then on
// it may forget the records. What cannot be read is left out.
func (s *session) writeLetters(ctx context.Context, ack *Ack) error {
	if s.letters == nil {
		return nil
	}
	dead := slices.ContainsFunc(ack.Leases, func(l AckedLease) bool { return len(l.DeadLetters)+len(l.Lease.refused) > 0 })
	if !dead {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-s.lost:
			cancel()
		case <-ctx.Done():
		}
	}()
	var some []Letter
	flush := func() error {
		if len(some) == 0 {
			return nil
		}
		refused, err := s.letters.Write(ctx, some)
		if err != nil && s.Err() != nil {
			return s.Err()
		}
		if err != nil {
			return err
		}
		s.counters.copied.Add(int64(len(some) - refused))
		s.counters.notCopied.Add(int64(refused))
		some = some[:0]
		return nil
	}
	for _, l := range ack.Leases {
		if err := l.eachLetter(func(letter Letter) error {
			if some = append(some, letter); len(some) < lettersAtOnce {
				return nil
			}
			return flush()
		}); err != nil {
			return err
		}
	}
	return flush()
}

// eachLetter calls yield with the dead letters of the lease, as far as they can be read.
func (al *AckedLease) eachLetter(yield func(Letter) error) error {
	type reasoned struct {
		DeadLetter
		transform bool
	}
	var dead []reasoned
	for _, d := range al.DeadLetters {
		dead = append(dead, reasoned{d, false})
	}
	for _, d := range al.Lease.refused {
		dead = append(dead, reasoned{d, true})
	}
	slices.SortStableFunc(dead, func(a, b reasoned) int { return int(a.Offset - b.Offset) })
	settled, filtered, only := ranges(al.Lease.settled), al.Lease.filtered, ranges(al.Only)
	var reader recordbatch.Reader
	reader.Reset(al.Lease.Payload)
	for reader.Next() {
		r := reader.Record()
		offset := al.Lease.First + r.OffsetDelta
		for len(dead) > 0 && dead[0].offsets().Next <= offset {
			dead = dead[1:]
		}
		if len(dead) == 0 {
			return nil
		}
		if offset < dead[0].Offset || settled.contain(offset) || filtered.contain(offset) || len(al.Only) > 0 && !only.contain(offset) {
			continue
		}
		record := *r
		record.Headers = slices.Clone(r.Headers)
		if err := yield(Letter{Source: al.Lease.Source, Offset: offset, Record: record, Reason: dead[0].Reason, Transform: dead[0].transform}); err != nil {
			return err
		}
	}
	return nil // the rest cannot be read
}
