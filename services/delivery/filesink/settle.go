package filesink

import (
	"context"
	"errors"
	"slices"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/delivery"
)

// run is offsets of a lease, ascending, whose records went to one file.
type run struct {
	first, next int64
	file        *file
}

// maxSpareRuns is how many slices of runs are kept for the next leases.
const maxSpareRuns = 32

// takeRuns is an empty slice for the runs of a lease, a used one if there is.
func (v *serving) takeRuns() []run {
	n := len(v.spareRuns)
	if n == 0 {
		return nil
	}
	runs := v.spareRuns[n-1]
	v.spareRuns = v.spareRuns[:n-1]
	return runs
}

// giveRuns keeps the slices of leases that are done with.
func (v *serving) giveRuns(leases []*heldLease) {
	for _, h := range leases {
		if len(v.spareRuns) < maxSpareRuns && cap(h.runs) > 0 {
			clear(h.runs) // lets go of the files
			v.spareRuns = append(v.spareRuns, h.runs[:0])
		}
		h.runs = nil
	}
}

// went notes that the record at offset went to f.
func (h *heldLease) went(offset int64, f *file) {
	if n := len(h.runs); n > 0 && h.runs[n-1].file == f {
		h.runs[n-1].next = offset + 1
		return
	}
	h.runs = append(h.runs, run{offset, offset + 1, f})
}

// judge is what of the lease is to be acked after its files were written, and whether there is
// anything. What failed is kept back, so that a file or directory that takes nothing does not
// hold up the records of others; what was denied is dead-lettered when the rule is so.
func (h *heldLease) judge(shares map[*file]*share, rule string) (al delivery.AckedLease, any bool) {
	l := h.lease
	al = delivery.AckedLease{Lease: l}
	at := l.First // all before it is judged
	for _, r := range h.runs {
		err := shares[r.file].err
		switch {
		case err == nil:
			any = true
		case rule == deadLetterDenied && errors.Is(err, ErrDenied):
			al.DeadLetters = appendDead(al.DeadLetters, r.first, r.next, err)
			any = true
		default:
			h.failure = err
			if at < r.first {
				al.Only = append(al.Only, &spillwayv1.OffsetRange{First: at, Next: r.first})
			}
			at = r.next
		}
	}
	if h.failure == nil {
		al.DeadLetters = append(al.DeadLetters, h.deadLetters...)
		return al, true
	}
	end := l.Next
	if len(h.deadLetters) > 0 { // they come again with the rest
		end = h.deadLetters[0].Offset
	}
	if at < end {
		al.Only = append(al.Only, &spillwayv1.OffsetRange{First: at, Next: end})
	}
	return al, any && len(al.Only) > 0
}

// appendDead appends the dead letters of a range, joined with those before when they follow on
// them for the same reason.
func appendDead(letters []delivery.DeadLetter, first, next int64, err error) []delivery.DeadLetter {
	reason := err.Error()
	if n := len(letters); n > 0 && letters[n-1].Next == first && letters[n-1].Reason == reason {
		letters[n-1].Next = next
		return letters
	}
	return append(letters, delivery.DeadLetter{Offset: first, Next: next, Reason: reason})
}

// settle acks what did not fail. After a refused ack nothing of it counts.
func (v *serving) settle(ctx context.Context, c *commit) error {
	shares := make(map[*file]*share, len(c.shares))
	for _, s := range c.shares {
		shares[s.file] = s
	}
	ack := &delivery.Ack{}
	for _, h := range c.leases {
		if al, any := h.judge(shares, v.sink.cfg.OnDenied); any {
			ack.Leases = append(ack.Leases, al)
		}
	}
	entries := make(map[*share]entry, len(c.shares))
	for _, s := range c.shares {
		if s.records == 0 || s.err != nil {
			continue
		}
		e := s.file.entry
		e.Committed += int64(len(s.chunk.Data))
		e.Records += s.records
		e.Tail = slices.Clone(s.file.open.Tail())
		entries[s] = e
		if s.file.stored {
			if err := put(ack, s.file.key, &e); err != nil {
				return err
			}
		}
	}
	if len(ack.Leases) == 0 {
		return nil
	}
	err := v.ack(ctx, ack)
	if errors.Is(err, delivery.ErrRefused) {
		c.refused = err
		for _, h := range c.leases {
			h.failure = err
		}
		for s := range entries {
			s.err = err
		}
		return nil
	}
	if err != nil {
		return err
	}
	for s, e := range entries { // the loop reads the names and the due time meanwhile
		f := s.file
		f.entry.Committed, f.entry.Records, f.entry.Tail, f.committedAt = e.Committed, e.Records, e.Tail, c.began
	}
	return nil
}
