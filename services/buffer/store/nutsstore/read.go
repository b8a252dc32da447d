package nutsstore

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

const (
	// cacheBytes bounds the memory of groups that were read lately.
	cacheBytes = 8 << 20
	// readsAtOnce bounds the groups that are being read, each as a whole.
	readsAtOnce = 4
)

// Read implements queue.Store.
func (s *Store) Read(ref queue.Ref) ([]byte, error) {
	s.mu.Lock()
	seg := s.segmentOfLocked(ref.Group)
	s.mu.Unlock()
	if seg == nil {
		return nil, fmt.Errorf("read group %d: it is not in the store", ref.Group)
	}
	g, ok := s.cache.get(ref.Group)
	if !ok {
		s.reads <- struct{}{}
		defer func() { <-s.reads }()
		if g, ok = s.cache.get(ref.Group); !ok { // another may have read it
			var err error
			if g, err = s.readGroup(seg, ref.Group); err != nil {
				return nil, fmt.Errorf("read group %d of segment %d: %w", ref.Group, seg.id, err)
			}
			s.cache.put(g)
		}
	}
	payload, err := g.payload(ref)
	if err != nil {
		return nil, fmt.Errorf("read segment %d: %w", seg.id, err)
	}
	return payload, nil
}

// readGroup reads a group from disk.
func (s *Store) readGroup(seg *segment, number uint64) (*group, error) {
	seg.reading.RLock()
	defer seg.reading.RUnlock()
	if seg.removed {
		return nil, errors.New("it was released")
	}
	if seg.moved != nil {
		return readMoved(s.dir, seg, number)
	}
	value, err := s.engine.get(number)
	if err == nil {
		g, err := decodeGroup(value)
		if err == nil && g.number == number && g.segment == seg.id {
			return &g, nil
		}
	}
	if errors.Is(err, ErrClosed) {
		return nil, err
	}
	// nutsdb refuses all of a group when any byte of it is wrong.
	g, salvageErr := salvage(s.dir, seg.id, number)
	if salvageErr != nil {
		return nil, fmt.Errorf("%w (nutsdb: %v)", salvageErr, err)
	}
	return g, nil
}

// salvage reads what is readable of a damaged group.
func salvage(dir string, segment int64, number uint64) (*group, error) {
	f, err := os.Open(segmentPath(dir, segment, dataSuffix))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", queue.ErrDamaged, err)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	var g *group
	s := scanner{segment: segment, w: window{r: f, size: info.Size()}, through: math.MaxUint64, damage: func(int64, int64, string) {}}
	s.found = func(f found) error {
		if f.number != number {
			return nil
		}
		copied, err := decodeGroup(bytes.Clone(f.raw))
		if err != nil {
			return err
		}
		g = &copied
		return errStop
	}
	if _, err := s.scan(); err != nil {
		return nil, err
	}
	if g == nil {
		return nil, fmt.Errorf("%w: nothing of it is readable", queue.ErrDamaged)
	}
	return g, nil
}

// cache keeps the groups read last: batches are read one by one, and many are in one group.
type cache struct {
	mu     sync.Mutex
	groups []*group // the one used last is at the end
	bytes  int
}

func (c *cache) get(number uint64) (*group, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, g := range c.groups {
		if g.number == number {
			c.groups = append(append(c.groups[:i], c.groups[i+1:]...), g)
			return g, true
		}
	}
	return nil, false
}

func (c *cache) put(g *group) {
	if g.size > cacheBytes {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, other := range c.groups {
		if other.number == g.number { // read twice at once
			c.groups[i] = g
			return
		}
	}
	c.groups = append(c.groups, g)
	c.bytes += g.size
	for c.bytes > cacheBytes {
		c.bytes -= c.groups[0].size
		c.groups[0] = nil
		c.groups = c.groups[1:]
	}
}
