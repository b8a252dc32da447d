package nutsstore

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// Open opens the store in a directory, which it creates when there is none, and recovers. Of two
// stores in one directory, the second fails at once with ErrLocked. All functions of opts must be
// set; the keeper may call Damage later on, too.
func Open(dir string, cfg Config, opts queue.StoreOptions) (*Store, error) {
	cfg.SegmentBytes = cmp.Or(cfg.SegmentBytes, DefaultSegmentBytes)
	if cfg.SegmentBytes < MinSegmentBytes || cfg.SegmentBytes > math.MaxInt32 {
		return nil, fmt.Errorf("open store: segments of %d bytes: must be %d to %d", cfg.SegmentBytes, MinSegmentBytes, math.MaxInt32)
	}
	return open(dir, cfg, opts)
}

// open is Open for segments of any size.
func open(dir string, cfg Config, opts queue.StoreOptions) (*Store, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if _, err := os.Stat(filepath.Join(dir, lockName)); cfg.Existing && errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open store: %w: put %s back, or restart the buffer to begin with an empty one", ErrGone, dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{dir: dir, cfg: cfg, opts: opts, lock: lock,
		reads: make(chan struct{}, readsAtOnce), kick: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
	total, err := fileSystemBytes(dir)
	if err == nil {
		if opts.DiskBytes > 0 { // what is released must make room long before the queue's bound is reached
			total = min(total, opts.DiskBytes)
		}
		s.segmentEnd = min(cfg.SegmentBytes, max(total/segmentShare, 1<<20))
		s.reserve, err = openReserve(dir, cmp.Or(cfg.ReserveBytes, min(DefaultReserveBytes, total/8)))
	}
	if err == nil {
		err = s.recover()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open store: %w", err), lock.Close())
	}
	if err := s.reserve.fill(); err != nil {
		s.setShort(err) // or something worse, which is met when it is filled for the next batch
	}
	go s.keep()
	s.wake()
	return s, nil
}

// recover prepares the files, tells the queue what is in them, and starts nutsdb.
func (s *Store) recover() error {
	files, err := listDir(s.dir)
	if err != nil {
		return err
	}
	for _, name := range files.leftovers {
		if err := os.Remove(filepath.Join(s.dir, name)); err != nil {
			return fmt.Errorf("remove what a crash left: %w", err)
		}
	}
	// Under our own lock nutsdb's cannot be held, but for one left by an Open that failed in this
	// process.
	if err := os.Remove(filepath.Join(s.dir, engineLockName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove nutsdb's lock: %w", err)
	}
	err = s.reserve.with(smallAllocStep, func() error { return ensureFile(filepath.Join(s.dir, bucketMetaName), bucketMeta()) })
	if err != nil {
		return err
	}
	if s.numbers, err = readGroupNumbers(s.dir, s.opts.Damage); err != nil {
		return err
	}
	s.told = s.numbers.clone()
	for _, id := range files.orphans {
		s.opts.Damage(fmt.Sprintf("segment %d: its data file is missing", id))
	}
	active := int64(1)
	for _, id := range files.segments {
		active = id + 1
		if err := s.recoverSegment(id); err != nil {
			return err
		}
	}
	last, err := s.tell()
	if err != nil {
		return err
	}
	s.numbers.known = max(s.numbers.known, last)
	s.next = s.numbers.known + 1

	// nutsdb cannot read from files beyond its segment size.
	nominal := max(s.cfg.SegmentBytes, files.nominal)
	err = s.reserve.with(smallAllocStep, func() (err error) {
		s.data, err = s.createData(active, nominal)
		return err
	})
	if err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(s.dir)); err != nil {
		return errors.Join(err, s.data.Close())
	}
	s.segments = append(s.segments, &segment{id: active})
	if s.engine, err = openEngine(s.dir, nominal, active); err != nil {
		return errors.Join(err, s.data.Close())
	}
	return nil
}

// recoverSegment makes sure that a segment is sealed, and removes one in which nothing was
// written.
func (s *Store) recoverSegment(id int64) error {
	sum, err := readSummary(s.dir, id)
	if err != nil { // not sealed yet, or a sidecar is damaged: both are written anew
		err = s.reserve.with(sidecarBytes, func() error {
			sum, err = seal(s.dir, id, func(string) {})
			return err
		})
		if err != nil {
			return err
		}
	}
	if sum.dataEnd == 0 {
		return removeData(s.dir, id)
	}
	group, err := ledgerGroup(s.dir, id)
	if err != nil {
		return err
	}
	if group != 0 && group == sum.first {
		sum.snapshot = group
	}
	s.segments = append(s.segments, &segment{id: id, groups: span{sum.first, sum.last}, snapshot: sum.snapshot, sealed: true,
		diskBytes: diskBytes(s.dir, id)})
	return nil
}

// tell hands all segments to the queue, and returns the number of the last group. The indexes have
// the damage that was found when the segments were sealed.
func (s *Store) tell() (last uint64, err error) {
	snapshot, ledger, err := s.newestSnapshot()
	if err != nil {
		return 0, err
	}
	if snapshot == 0 && len(s.segments) > 0 {
		s.opts.Damage("no snapshot of the ledger is readable: it is rebuilt from the changes that are left")
	}
	behind := snapshot == 0 // the snapshot
	for _, seg := range s.segments {
		v := indexVisitor{damage: s.opts.Damage}
		v.group = func(number uint64) bool {
			if number <= last {
				s.opts.Damage(fmt.Sprintf("segment %d: group %d comes after group %d", seg.id, number, last))
				return false
			}
			s.tellMissing(span{last + 1, number - 1})
			last = number
			return true
		}
		v.entry = func(e queue.Recovered) error {
			switch e.Kind {
			case queue.BatchEntry:
				seg.batches.add(e.Ref)
			case queue.SnapshotEntry, wholeEntry, ledgerEntry:
				if last != snapshot {
					return nil
				}
				behind = true
				if ledger != nil {
					return ledger(func(part []byte) error { return s.opts.Recover(queue.Recovered{Kind: queue.SnapshotEntry, Meta: part}) })
				}
			case queue.ChangeEntry:
				if !behind {
					return nil
				}
			}
			return s.opts.Recover(e)
		}
		if err := readIndex(s.dir, seg.id, v); err != nil {
			return 0, err
		}
	}
	s.tellMissing(span{last + 1, s.numbers.known})
	return last, nil
}

// newestSnapshot returns the group with the newest readable snapshot, 0 when there is none, and
// what reads the snapshot when it has a file of its own.
func (s *Store) newestSnapshot() (group uint64, ledger teller, err error) {
	for _, seg := range slices.Backward(s.segments) {
		if seg.snapshot == 0 {
			continue
		}
		ledger, err = ledgerOf(s.dir, seg)
		if err == nil {
			return seg.snapshot, ledger, nil
		}
		if !errors.Is(err, queue.ErrDamaged) {
			return 0, nil, err
		}
		s.opts.Damage(fmt.Sprintf("segment %d: its ledger file is not readable: %v", seg.id, err))
		seg.snapshot = 0
	}
	return 0, nil, nil
}

func (s *Store) tellMissing(numbers span) {
	for _, lost := range s.numbers.missing(numbers) {
		s.opts.Damage(fmt.Sprintf("groups %d to %d are missing", lost.first, lost.last))
	}
}
