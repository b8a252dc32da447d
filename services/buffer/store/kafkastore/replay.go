package kafkastore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
)

// replay reads a journal from its first record on, and passes on the entries that count.
//
// Entries of a group come when all of it is there. Those of a snapshot come one by one, as soon as
// they are whole: the snapshot may never end.
type replay struct {
	rule
	group    []byte // the stream so far
	groupAt  int64
	snapshot []byte // what is not read yet of the stream
	begin    int64  // the first frame of the snapshot that is being read; -1: none
	strange  int    // records that no store wrote
	log      *slog.Logger

	// entry is called with each entry. At is the offset where its group or its snapshot began.
	// Bodies are valid within the call only.
	entry func(at int64, inSnapshot bool, e entry) error
	// ended is called when a snapshot is whole.
	ended func(begin int64)
	// counted is called with the bytes of each frame that counts.
	counted func(offset, bytes int64)
	// owned is called with the epoch of each owner; the barrier of the first may have been
	// trimmed.
	owned func(epoch int64, b barrier)
}

func newReplay(start int64, log *slog.Logger) *replay {
	return &replay{rule: newRule(start), begin: -1, log: log, ended: func(int64) {}, counted: func(int64, int64) {}, owned: func(int64, barrier) {}}
}

// record takes in the record at an offset.
func (p *replay) record(offset int64, r record) error {
	f, err := parseFrame(r.key, r.value)
	if errors.Is(err, errNoFrame) {
		if p.strange++; p.strange == 1 {
			p.log.Warn("somebody else writes to the journal of a store; what it writes does not count", "offset", offset, "error", err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("offset %d: %w", offset, err)
	}
	if !p.begun && f.kind != barrierFrame && f.kind != identityFrame && (f.kind != snapshotFrame || f.flags&firstFlag == 0) {
		return fmt.Errorf("%w: it begins at offset %d in the middle", ErrGap, offset)
	}
	trimmed := !p.begun
	v, err := p.next(offset, &f)
	if err != nil {
		return err
	}
	switch v {
	case fences:
		var b barrier
		if err := json.Unmarshal(f.value, &b); err != nil || b.Reader > readerVersion {
			return fmt.Errorf("%w: offset %d: the owner at %s wants readers of version %d, this is version %d", ErrVersion, offset, b.Address, b.Reader, readerVersion)
		}
		p.group, p.snapshot, p.begin = nil, nil, -1 // what the former owner has begun does not end
		if trimmed && offset == p.start && offset > 0 {
			return fmt.Errorf("%w: it begins at offset %d with a barrier", ErrGap, offset)
		}
		p.owned(offset, b)
	case counts:
		if trimmed {
			p.owned(f.epoch, barrier{})
		}
		p.counted(offset, int64(len(r.key)+len(r.value)))
		return p.take(offset, &f)
	case ignored:
	}
	return nil
}

// take takes in a frame that counts.
func (p *replay) take(offset int64, f *frame) error {
	switch f.kind {
	case groupFrame:
		if f.flags&firstFlag != 0 {
			p.group, p.groupAt = p.group[:0], offset
		}
		p.group = append(p.group, f.value...)
		if f.flags&lastFlag == 0 {
			return nil
		}
		rest, err := p.entries(p.group, p.groupAt, false)
		if err == nil && len(rest) > 0 {
			err = errEntry
		}
		p.group = p.group[:0]
		return at(err, offset)
	case snapshotFrame:
		if f.flags&firstFlag != 0 {
			p.snapshot, p.begin = nil, offset
		}
		if p.begin < 0 {
			return fmt.Errorf("%w: a snapshot at offset %d has no beginning", ErrGap, offset)
		}
		p.snapshot = append(p.snapshot, f.value...)
		rest, err := p.entries(p.snapshot, p.begin, true)
		if len(rest) < len(p.snapshot) { // else a large entry would be copied once for each frame
			p.snapshot = append([]byte(nil), rest...)
		}
		if err == nil && f.flags&lastFlag != 0 {
			if len(rest) > 0 {
				err = errEntry
			}
			p.ended(p.begin)
			p.begin = -1
		}
		return at(err, offset)
	}
	return fmt.Errorf("%w: a record of the unknown kind %q at offset %d", ErrVersion, f.kind, offset)
}

func at(err error, offset int64) error {
	if err != nil {
		return fmt.Errorf("offset %d: %w", offset, err)
	}
	return nil
}

// entries passes on the whole entries of a stream and returns the rest.
func (p *replay) entries(stream []byte, begin int64, inSnapshot bool) ([]byte, error) {
	for {
		e, rest, ok, err := cutEntry(stream)
		if err != nil || !ok {
			return stream, err
		}
		if err := p.entry(begin, inSnapshot, e); err != nil {
			return nil, err
		}
		stream = rest
	}
}

// run reads [from, to) of a journal.
func (p *replay) run(ctx context.Context, journal partitionLog, from, to int64) error {
	for from < to {
		next, err := keepTrying(ctx, p.log, "read the journal", func() (int64, error) {
			return journal.read(ctx, from, func(offset int64, r record) error {
				if offset >= to || offset < from {
					return nil
				}
				if err := p.record(offset, r); err != nil {
					return fmt.Errorf("%w: %w", errRecord, err)
				}
				from = offset + 1 // never twice, should the read fail after it
				return nil
			})
		})
		if err != nil {
			return err
		}
		from = max(from, next)
	}
	return nil
}

// errRecord wraps errors about a record, which reading it again does not mend.
var errRecord = errors.New("read the journal")
