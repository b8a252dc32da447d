package owners

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

// coordinator is Kafka's coordinator of one group, in memory, by the classic protocol.
type coordinator struct {
	session, rebalance time.Duration

	mu         sync.Mutex
	generation int32
	preparing  bool // waits for members to join again
	stable     bool // the leader has divided
	leader     string
	seats      []*seat // in the order of their first join
	ids        int
	deadline   *time.Timer
}

// seat is a member at the coordinator.
type seat struct {
	id       string
	metadata []byte
	joined   chan joinAnswer // of the JoinGroup that waits; nil: it has not joined again
	synced   chan syncAnswer // of the SyncGroup that waits
	share    []byte
	expiry   *time.Timer
}

type joinAnswer struct {
	generation int32
	id, leader string
	members    []kafkaclient.GroupMember // for the leader
	err        error
}

type syncAnswer struct {
	share []byte
	err   error
}

func (c *coordinator) seat(id string) *seat {
	for _, s := range c.seats {
		if s.id == id {
			return s
		}
	}
	return nil
}

func (c *coordinator) join(ctx context.Context, id string, metadata []byte) joinAnswer {
	c.mu.Lock()
	s := c.seat(id)
	if s == nil && id != "" {
		c.mu.Unlock()
		return joinAnswer{err: kafka.UnknownMemberId}
	}
	if s == nil {
		c.ids++
		s = &seat{id: fmt.Sprintf("member-%03d", c.ids)}
		s.expiry = time.AfterFunc(time.Hour, func() { c.expire(s) })
		c.seats = append(c.seats, s)
	}
	s.expiry.Stop()
	answer := make(chan joinAnswer, 1)
	s.metadata, s.joined = metadata, answer
	c.prepareLocked()
	c.completeLocked(false)
	c.mu.Unlock()
	select {
	case a := <-answer:
		return a
	case <-ctx.Done():
		c.touch(s)
		return joinAnswer{err: ctx.Err()}
	}
}

// prepareLocked has all members join again.
func (c *coordinator) prepareLocked() {
	if c.preparing {
		return
	}
	c.preparing, c.stable = true, false
	for _, s := range c.seats {
		if s.synced != nil {
			s.synced <- syncAnswer{err: kafka.RebalanceInProgress}
			s.synced = nil
		}
	}
	c.deadline = time.AfterFunc(c.rebalance, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.completeLocked(true)
	})
}

// completeLocked begins a generation when all members have joined, or the time is over for those
// that have not.
func (c *coordinator) completeLocked(late bool) {
	if !c.preparing || !late && slices.ContainsFunc(c.seats, func(s *seat) bool { return s.joined == nil }) {
		return
	}
	c.preparing = false
	c.deadline.Stop()
	c.seats = slices.DeleteFunc(c.seats, func(s *seat) bool {
		if s.joined == nil {
			s.expiry.Stop()
		}
		return s.joined == nil
	})
	c.generation++
	if len(c.seats) > 0 && c.seat(c.leader) == nil {
		c.leader = c.seats[0].id
	}
	var members []kafkaclient.GroupMember
	for _, s := range c.seats {
		members = append(members, kafkaclient.GroupMember{ID: s.id, Metadata: s.metadata})
	}
	for _, s := range c.seats {
		a := joinAnswer{generation: c.generation, id: s.id, leader: c.leader}
		if s.id == c.leader {
			a.members = members
		}
		s.joined <- a
		s.joined, s.share = nil, nil
		s.expiry.Reset(c.session)
	}
}

func (c *coordinator) sync(ctx context.Context, id string, generation int32, shares map[string][]byte) ([]byte, error) {
	c.mu.Lock()
	s, err := c.checkLocked(id, generation)
	if err != nil || c.preparing {
		c.mu.Unlock()
		return nil, errors.Join(err, kafka.RebalanceInProgress)
	}
	s.expiry.Reset(c.session)
	if id == c.leader {
		c.stable = true
		for _, o := range c.seats {
			o.share = shares[o.id]
			if o.synced != nil {
				o.synced <- syncAnswer{share: o.share}
				o.synced = nil
			}
		}
	}
	if c.stable {
		defer c.mu.Unlock()
		return s.share, nil
	}
	answer := make(chan syncAnswer, 1)
	s.synced = answer
	c.mu.Unlock()
	select {
	case a := <-answer:
		c.touch(s)
		return a.share, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *coordinator) checkLocked(id string, generation int32) (*seat, error) {
	s := c.seat(id)
	switch {
	case s == nil:
		return nil, kafka.UnknownMemberId
	case generation != c.generation:
		return nil, kafka.IllegalGeneration
	}
	return s, nil
}

func (c *coordinator) heartbeat(id string, generation int32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, err := c.checkLocked(id, generation)
	if err != nil {
		return err
	}
	s.expiry.Reset(c.session)
	if c.preparing {
		return kafka.RebalanceInProgress
	}
	return nil
}

// touch begins a seat's session anew.
func (c *coordinator) touch(s *seat) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seat(s.id) == s {
		s.expiry.Reset(c.session)
	}
}

func (c *coordinator) expire(s *seat) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.synced == nil && s.joined == nil {
		c.removeLocked(s.id)
	}
}

func (c *coordinator) leave(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.removeLocked(id)
}

func (c *coordinator) removeLocked(id string) {
	at := slices.IndexFunc(c.seats, func(s *seat) bool { return s.id == id })
	if at < 0 {
		return
	}
	c.seats[at].expiry.Stop()
	c.seats = slices.Delete(c.seats, at, at+1)
	if len(c.seats) > 0 {
		c.prepareLocked()
		c.completeLocked(false)
	}
}

// generations is how many there have been.
func (c *coordinator) generations() int32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.generation
}

// link is what a process has to Kafka.
type link struct {
	mu   sync.Mutex
	open chan struct{} // closed while it works
	dead chan struct{} // closed when its process is killed
}

func newLink() *link {
	l := &link{open: make(chan struct{}), dead: make(chan struct{})}
	close(l.open)
	return l
}

func (l *link) set(works bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.open:
		if !works {
			l.open = make(chan struct{})
		}
	default:
		if works {
			close(l.open)
		}
	}
}

var (
	errNoAnswer = errors.New("no answer")
	errKilled   = errors.New("killed")
)

// pass waits until the link works, for as long as patience.
func (l *link) pass(ctx context.Context, patience time.Duration) error {
	l.mu.Lock()
	open := l.open
	l.mu.Unlock()
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-l.dead:
		return errKilled
	default:
	}
	select {
	case <-open:
		return nil
	case <-l.dead:
		return errKilled
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return errNoAnswer
	}
}

// membership is a member's end of the group. It implements Group.
type membership struct {
	c    *coordinator
	link *link
	id   string
}

// Join implements Group.
func (m *membership) Join(ctx context.Context, metadata []byte, divide kafkaclient.Divide) (*kafkaclient.Generation, error) {
	patience := m.c.rebalance + 15*time.Second
	for range 2 {
		if err := m.link.pass(ctx, patience); err != nil {
			return nil, err
		}
		limited, done := context.WithTimeout(ctx, patience)
		j := m.c.join(limited, m.id, metadata)
		done()
		if err := m.link.pass(ctx, patience); err != nil {
			return nil, err
		}
		if errors.Is(j.err, kafka.UnknownMemberId) {
			m.id = ""
			continue
		}
		if j.err != nil {
			return nil, j.err
		}
		m.id = j.id
		var shares map[string][]byte
		if j.leader == j.id {
			var err error
			if shares, err = divide(ctx, Protocol, j.members); err != nil {
				return nil, err
			}
		}
		limited, done = context.WithTimeout(ctx, patience)
		share, err := m.c.sync(limited, m.id, j.generation, shares)
		done()
		if err := m.link.pass(ctx, patience); err != nil {
			return nil, err
		}
		if errors.Is(err, kafka.UnknownMemberId) {
			m.id = ""
		}
		if err != nil {
			return nil, err
		}
		return &kafkaclient.Generation{Number: j.generation, Member: m.id, Protocol: Protocol, Leader: j.leader, Assignment: share}, nil
	}
	return nil, kafka.UnknownMemberId
}

// Heartbeat implements Group.
func (m *membership) Heartbeat(ctx context.Context, g *kafkaclient.Generation) error {
	if err := m.link.pass(ctx, m.c.session/2); err != nil {
		return err
	}
	return m.c.heartbeat(g.Member, g.Number)
}

// Leave implements Group.
func (m *membership) Leave(ctx context.Context) error {
	if err := m.link.pass(ctx, m.c.session/2); err != nil {
		return err
	}
	m.c.leave(m.id)
	return nil
}

// others are the addresses of all members, as this one knows.
func (m *Member) others() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.share.Members
}
