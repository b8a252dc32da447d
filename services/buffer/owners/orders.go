package owners

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Owner is who has a shard, as far as this buffer knows.
type Owner struct {
	Shard   int
	Address string // empty: nobody
	Epoch   uint64 // 0: not open yet, or not told
	State   State  // at this buffer; empty for the shards of others
	Trouble string // why this buffer cannot serve it
}

// Owners are those of all shards: of this buffer's as they are, of the others as they were when
// the group last divided.
func (m *Member) Owners() []Owner {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]Owner, m.cfg.Shards)
	for n := range all {
		all[n].Shard = n
		all[n].Address, all[n].Epoch = m.share.owner(n), m.share.epoch(n)
		if t := m.unable[n]; time.Now().Before(t.until) {
			all[n].Trouble = t.reason
		}
		s := m.held[n]
		switch {
		case s != nil:
			all[n].Address, all[n].Epoch, all[n].State = m.cfg.Advertise, s.epoch, s.state
		case all[n].Address == m.cfg.Advertise: // no longer
			all[n].Address, all[n].Epoch = "", 0
		}
	}
	return all
}

// Move gives up a shard of this buffer for another one of the group, and returns when that one is
// its owner. It does not pin the shard there: balance may move it again.
func (m *Member) Move(ctx context.Context, shard int, to string) error {
	m.mu.Lock()
	s := m.held[shard]
	if s == nil || s.state == Closing {
		m.mu.Unlock()
		return fmt.Errorf("move shard %d: %w", shard, ErrNotHere)
	}
	if to == m.cfg.Advertise {
		m.mu.Unlock()
		return nil
	}
	if !slices.Contains(m.share.Members, to) {
		members := strings.Join(m.share.Members, ", ")
		m.mu.Unlock()
		return fmt.Errorf("move shard %d to %s: %w; there are: %s", shard, to, ErrNoMember, members)
	}
	if m.share.room(to) == 0 {
		m.mu.Unlock()
		return fmt.Errorf("move shard %d to %s: %w", shard, to, ErrNoRoom)
	}
	m.wishes[shard] = to
	s.close(ErrMoved)
	m.mu.Unlock()
	err := m.await(ctx, func() (bool, error) {
		switch owner := m.share.owner(shard); {
		case owner == to:
			return true, nil
		case m.held[shard] != nil && m.held[shard] != s, owner != "" && owner != m.cfg.Advertise:
			return false, fmt.Errorf("the group has given it to %s", owner)
		}
		return false, nil
	})
	if err != nil {
		return fmt.Errorf("move shard %d to %s: %w", shard, to, err)
	}
	return nil
}

// Drain gives all shards of this buffer to others, and has it given none until it is started anew.
// It returns when others are their owners.
func (m *Member) Drain(ctx context.Context) error {
	m.mu.Lock()
	room := 0
	for _, other := range m.share.Members {
		if other != m.cfg.Advertise {
			room += m.share.room(other)
		}
	}
	if room < len(m.held) {
		m.mu.Unlock()
		return fmt.Errorf("drain: %w: this buffer has %d shards, and others may have %d more", ErrNoRoom, len(m.held), room)
	}
	given := slices.Sorted(maps.Keys(m.held))
	m.draining = true
	for _, s := range m.held {
		s.close(ErrMoved)
	}
	m.rejoinLocked(false)
	m.mu.Unlock()
	err := m.await(ctx, func() (bool, error) {
		if !m.idle[1] {
			return false, nil
		}
		for _, shard := range given {
			if m.share.owner(shard) == "" {
				return false, fmt.Errorf("nobody has taken shard %d", shard)
			}
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("drain: %w", err)
	}
	return nil
}

// await waits for a generation in which something is so, which is asked with the lock.
func (m *Member) await(ctx context.Context, so func() (bool, error)) error {
	for {
		m.mu.Lock()
		changed := m.changed
		ok, err := so()
		m.mu.Unlock()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// Draining returns whether Drain was called. The group gives this buffer nothing more then.
func (m *Member) Draining() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.draining
}
