package nutsstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
)

// nutsdb must never meet a full file system: what it leaves behind then would have to be scanned.
// So the blocks that a write needs are allocated before nutsdb hears of it, in steps, and when
// there are none, nothing was written. Where fallocate does not exist, or promises nothing (copy
// on write), a full file system fails the store, which is then opened again.

const (
	// DefaultReserveBytes is the size of the reserve when the Config has none; on a small file
	// system it is an eighth of it.
	DefaultReserveBytes = 16 << 20

	// segmentShare is the part of the file system that a segment may take up, so that there are
	// always some to give back.
	segmentShare = 32

	allocStep      = 4 << 20  // the most that a segment grows by
	smallAllocStep = 64 << 10 // the same when space is short
)

// isNoSpace says whether an error is a full file system's, or a quota's.
func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// dataFile is the file of the active segment, open to allocate its blocks.
type dataFile struct {
	*os.File
	info      os.FileInfo // tells whether it is the file of that name
	size      int64
	step      int64 // what is allocated at once
	allocated int64 // from its beginning
}

// allocate makes sure that the file has blocks up to a byte. With a reserve, it may take from it.
func (d *dataFile) allocate(end int64, r *reserve) error {
	var err error
	for end > d.allocated {
		for _, step := range []int64{d.step, smallAllocStep, 1} {
			to := min((end+step-1)/step*step, d.size)
			if err = preallocate(d.File, d.allocated, to-d.allocated); err == nil {
				d.allocated = to
				break
			}
			if !isNoSpace(err) {
				return fmt.Errorf("allocate space: %w", err)
			}
		}
		if err != nil && !r.give(end-d.allocated) {
			return fmt.Errorf("allocate space: %w", err)
		}
	}
	return nil
}

// reserve is a file that does nothing but take up space, until the file system is full: then it
// gives it to what must be written nevertheless. A nil reserve has nothing to give.
type reserve struct {
	path string
	want int64

	mu   sync.Mutex // held to change the file
	have atomic.Int64
}

// fileSystemBytes is the size of the file system that has a directory.
func fileSystemBytes(dir string) (int64, error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return 0, fmt.Errorf("ask for the size of the file system: %w", err)
	}
	return int64(fs.Blocks) * int64(fs.Bsize), nil
}

// openReserve finds what a store before has left of the reserve. It does not fill it.
func openReserve(dir string, want int64) (*reserve, error) {
	r := &reserve{path: filepath.Join(dir, reserveName), want: want}
	info, err := os.Stat(r.path)
	if errors.Is(err, os.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open reserve: %w", err)
	}
	r.have.Store(min(info.Size(), allocatedBytes(info)))
	return r, nil
}

// fill makes the reserve whole. When it cannot be, it stays as it is.
func (r *reserve) fill() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	have := r.have.Load()
	if have == r.want {
		return nil
	}
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("fill reserve: %w", err)
	}
	defer f.Close()
	if err := f.Truncate(r.want); err != nil { // cuts off what is too much, too
		return fmt.Errorf("fill reserve: %w", err)
	}
	if have < r.want {
		if err := preallocate(f, have, r.want-have); err != nil {
			return errors.Join(fmt.Errorf("fill reserve: %w", err), f.Truncate(have))
		}
	}
	r.have.Store(r.want)
	return nil
}

// give makes room for n bytes and a little more, and says whether there was anything to give.
func (r *reserve) give(n int64) bool {
	if r == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	have := r.have.Load()
	left := max(0, have-max(n+n/8, smallAllocStep))
	if have == 0 || os.Truncate(r.path, left) != nil {
		return false
	}
	r.have.Store(left)
	return true
}

// with does what may need up to n bytes of a file system that may be full, and can be done twice.
func (r *reserve) with(n int64, do func() error) error {
	err := do()
	for isNoSpace(err) && r.give(n) {
		err = do()
	}
	return err
}

// becomeShort notes that the file system is full, and begins a new segment when that can help. The
// caller holds writing.
func (s *Store) becomeShort(why error) {
	s.setShort(why)
	if s.worthRotating() {
		if _, err := s.appendGroup(nil, false); err != nil {
			s.cfg.Log.Error("no new segment, which could free space", "dir", s.dir, "error", err)
		}
	}
	s.wake() // whatever the keeper can give back
}

func (s *Store) setShort(why error) {
	if !s.short.Load() {
		s.short.Store(true)
		s.cfg.Log.Warn("the file system is full: no batch is stored until there is space", "dir", s.dir, "reserve_bytes", s.reserve.have.Load(), "error", why)
	}
}

// worthRotating says whether a segment of which much is released cannot be given back only
// because there are not two newer ones yet. It is never one of those that come of rotating.
func (s *Store) worthRotating() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	worth := max(8*s.snapshotBytes, min(1<<20, s.cfg.SegmentBytes/8))
	newer := 0
	for i := len(s.segments) - 1; i >= 0 && newer < snapshotsAhead; i-- {
		seg := s.segments[i]
		used := seg.diskBytes
		if i == len(s.segments)-1 {
			used = s.engine.used()
		}
		if used >= worth && seg.batches.bytes <= used/4*3 {
			return true
		}
		if seg.snapshot > 0 || seg.begun { // not again and again, when there is no space for one
			newer++
		}
	}
	return false
}
