package owners

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spillwayio/spillway/services/internal/backoff"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

const (
	// DefaultSessionTimeout is after what silence a buffer's shards go to others.
	DefaultSessionTimeout = 10 * time.Second
	// heartbeatEvery is how soon a member hears that the group divides anew, and so a part of what
	// a planned move takes.
	heartbeatEvery = 400 * time.Millisecond
	// stuckAfter is how long a shard may wait for Kafka before another buffer is to try.
	stuckAfter = 15 * time.Second
	// openingFor is the same for one that is being opened and does not tell.
	openingFor = 45 * time.Second
	// closingFor is how long a shard that is given up keeps others from it.
	closingFor = 5 * time.Second
	// unableFor is how long a shard is named as one that this buffer cannot serve.
	unableFor = time.Minute
	// leaveTimeout bounds the farewell to the group.
	leaveTimeout = 2 * time.Second
)

// Config says what a group divides.
type Config struct {
	// Shards is how many the queue has.
	Shards int
	// Advertise is where clients and other buffers reach this one.
	Advertise string
	// Most is how many shards this buffer may have; 0: all.
	Most int
	// Program is the version of this program, for people.
	Program string
	// SessionTimeout is that of the group.
	SessionTimeout time.Duration
}

// Deps is what code injects.
type Deps struct {
	// Group is this buffer's membership, which the member joins and leaves.
	Group Group
	// Serve opens a shard, calls Opened, and serves until ctx ends, whose cause is ErrMoved or
	// ErrSilent. Then it lets acks under way end, closes the shard, and returns within a second or
	// two. It returns earlier with an error: ErrFenced when another buffer has taken the shard;
	// with any other, it is called again, unless another buffer can serve the shard.
	Serve func(ctx context.Context, s *Shard) error
	// Probe asks the buffer at an address who it is; Self is this one's answer. No two processes
	// have the same. Nil asks nobody.
	Probe func(ctx context.Context, address string) (string, error)
	Self  string
	// Changed is called when State may be another one, or a shard has another owner; nil: nobody
	// is. It must not wait.
	Changed func()
	// Log is told of what changes.
	Log *slog.Logger
}

// Group is a membership in a group of Kafka.
type Group interface {
	Join(ctx context.Context, metadata []byte, divide kafkaclient.Divide) (*kafkaclient.Generation, error)
	Heartbeat(ctx context.Context, g *kafkaclient.Generation) error
	Leave(ctx context.Context) error
}

// Member is this buffer among those that divide the shards of a queue.
type Member struct {
	cfg     Config
	deps    Deps
	began   time.Time
	failing *backoff.Trouble
	serving context.Context // of all shards, which outlive the context of Run by their farewell
	running sync.WaitGroup  // of all shards
	wake    chan struct{}

	mu       sync.Mutex
	held     map[int]*Shard
	unable   map[int]trouble
	fenced   map[int]bool   // since the last claim
	wishes   map[int]string // whom shards were given up for
	draining bool
	known    bool          // Config.Advertise leads here
	again    bool          // join again at once
	given    bool          // join again when nothing is closing any more
	balance  time.Time     // join again then; zero: not for this
	answered time.Time     // when the group was last heard of
	silent   bool          // all shards were ended because it was not
	joins    int           // how many claims were made
	share    share         // of the last generation
	idle     [2]bool       // whether this buffer drained and had nothing: at the last claim, and at that of share
	changed  chan struct{} // closed when share changes
	standing error         // why this buffer has no part in the group
}

// New prepares a member. Run joins the group.
func New(cfg Config, deps Deps) *Member {
	if cfg.SessionTimeout == 0 {
		cfg.SessionTimeout = DefaultSessionTimeout
	}
	if deps.Changed == nil {
		deps.Changed = func() {}
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	return &Member{cfg: cfg, deps: deps, failing: backoff.NewTrouble(deps.Log, "this buffer has no place in the group that divides the shards", "this buffer has a place in the group that divides the shards"),
		wake: make(chan struct{}, 1), held: make(map[int]*Shard), unable: make(map[int]trouble), fenced: make(map[int]bool), wishes: make(map[int]string),
		changed: make(chan struct{}), standing: errors.New("it has not joined yet")}
}

// Run serves the shards that the group gives this buffer until ctx ends. Then it gives all of them
// up, leaves the group, and returns.
func (m *Member) Run(ctx context.Context) {
	serving := context.WithoutCancel(ctx)
	m.mu.Lock()
	m.began, m.answered, m.serving = time.Now(), time.Now(), serving
	m.mu.Unlock()
	var wg sync.WaitGroup
	watched, stop := context.WithCancel(serving)
	wg.Go(func() { m.watchSilence(watched) })
	for lost := 0; ctx.Err() == nil; {
		err := m.checkAdvertise(ctx)
		if err == nil {
			err = m.generation(ctx)
		}
		const often = 20
		switch {
		case ctx.Err() != nil:
		case err == nil:
			lost = 0
		case kafkaclient.Lost(err) && lost < often:
			lost++ // the group is dividing again already
			sleep(ctx, 20*time.Millisecond)
		default:
			m.stands(err)
			_ = m.failing.Failed(ctx, err)
		}
	}
	stop()
	wg.Wait()
	m.giveUpAll(ErrMoved)
	last, done := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer done()
	if err := m.deps.Group.Leave(last); err != nil {
		m.deps.Log.Warn("leaving the group failed; others get this buffer's shards when its session is over", "error", err)
	}
	m.stands(errors.New("it has left the group"))
}

// checkAdvertise makes sure that what others will be told leads to this process, before it claims
// anything; not each time, as others wait while it joins again.
func (m *Member) checkAdvertise(ctx context.Context) error {
	m.mu.Lock()
	known := m.known
	m.mu.Unlock()
	if m.deps.Probe == nil || known {
		return nil
	}
	who, err := m.deps.Probe(ctx, m.cfg.Advertise)
	switch {
	case err != nil:
		return fmt.Errorf("%w: buffer.advertise is %s: %w", ErrAdvertise, m.cfg.Advertise, err)
	case who != m.deps.Self:
		return fmt.Errorf("%w: buffer.advertise is %s, and another buffer answers there: give each buffer an address of its own", ErrAdvertise, m.cfg.Advertise)
	}
	m.mu.Lock()
	m.known = true
	m.mu.Unlock()
	return nil
}

// generation joins the group and stays until it is to join again.
func (m *Member) generation(ctx context.Context) error {
	metadata := m.claim()
	var again time.Duration
	g, err := m.deps.Group.Join(ctx, metadata, func(_ context.Context, _ string, members []kafkaclient.GroupMember) (map[string][]byte, error) {
		all, after := m.lead(members)
		again = after
		return all, nil
	})
	if err != nil {
		m.heard(err)
		return err
	}
	s, err := parseShare(g.Assignment)
	if err != nil {
		m.heard(nil)
		return err
	}
	m.heard(nil)
	m.apply(g, s, again)
	if s.Refused != "" {
		refused := fmt.Errorf("%w: %s", ErrRefused, s.Refused)
		m.stands(refused)
		m.failing.Note(refused)
	} else {
		m.stands(nil)
		m.failing.Over()
	}
	return m.stay(ctx, g)
}

// claim tells what this buffer has, and begins to note what happens after it.
func (m *Member) claim() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.joins++
	m.again, m.given, m.balance = false, false, time.Time{}
	clear(m.fenced)
	c := claim{Version: formatVersion, Advertise: m.cfg.Advertise, Program: m.cfg.Program, Shards: m.cfg.Shards, Most: m.cfg.Most, Joins: m.joins,
		AgeMillis: time.Since(m.began).Milliseconds(), Wishes: m.wishes, Draining: m.draining}
	for _, n := range slices.Sorted(maps.Keys(m.held)) {
		s := m.held[n]
		if s.hangs() {
			continue
		}
		c.Held = append(c.Held, held{Shard: n, State: s.state, Epoch: s.epoch, AgeMillis: time.Since(s.since).Milliseconds()})
	}
	now := time.Now()
	maps.DeleteFunc(m.unable, func(_ int, t trouble) bool { return !now.Before(t.until) })
	for _, n := range slices.Sorted(maps.Keys(m.unable)) {
		c.Unable = append(c.Unable, inability{n, m.unable[n].reason, now.Sub(m.unable[n].since).Milliseconds()})
	}
	m.idle[0] = m.draining && len(c.Held) == 0
	b, _ := json.Marshal(c) // of strings and numbers: never fails
	return b
}

// lead divides the shards, as the group's leader.
func (m *Member) lead(all []kafkaclient.GroupMember) (map[string][]byte, time.Duration) {
	var members []member
	addresses := make(map[string]string)
	for _, g := range all {
		c, err := parseClaim(g.Metadata)
		if err != nil {
			members = append(members, member{id: g.ID, wrong: err.Error()})
			continue
		}
		members = append(members, member{id: g.ID, claim: c})
		addresses[g.ID] = c.Advertise
	}
	d := divide(members)
	for _, v := range d.moves {
		m.deps.Log.Info("a shard is moved", "shard", v.shard, "from", addresses[v.from], "because", v.why)
	}
	for id, why := range d.refused {
		m.deps.Log.Error("a buffer is given no shard", "buffer", addresses[id], "because", why)
	}
	known := slices.Compact(slices.Sorted(maps.Values(addresses)))
	owners := make([]int, d.shards)
	mine := make(map[string][]int)
	for shard, id := range d.owners {
		owners[shard] = -1
		if id != "" {
			owners[shard] = slices.Index(known, addresses[id])
			mine[id] = append(mine[id], shard)
		}
	}
	room := make([]int, len(known))
	for id, n := range d.room {
		room[slices.Index(known, addresses[id])] += n
	}
	shares := make(map[string][]byte)
	for _, g := range all {
		shares[g.ID], _ = json.Marshal(share{Version: formatVersion, Mine: mine[g.ID], Refused: d.refused[g.ID], Owners: owners, Epochs: d.epochs, Members: known, Room: room})
	}
	return shares, d.again
}

// apply does what the group says.
func (m *Member) apply(g *kafkaclient.Generation, s share, again time.Duration) {
	ends := m.begin(s, again)
	m.deps.Log.Info("the group has divided the shards", "generation", g.Number, "here", fmt.Sprint(s.Mine), "given_up", fmt.Sprint(ends), "buffers", strings.Join(s.Members, ", "))
}

// begin starts and ends what the group says, and returns what it ends.
func (m *Member) begin(s share, again time.Duration) (ends []int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.share, m.idle[1] = s, m.idle[0]
	close(m.changed)
	m.changed = make(chan struct{})
	if again > 0 {
		m.balance = time.Now().Add(again)
	}
	mine := make(map[int]bool)
	for _, n := range s.Mine {
		switch {
		case n < 0 || n >= m.cfg.Shards:
			continue
		case m.fenced[n]: // after the claim: the leader did not know
			m.again = true
			continue
		}
		mine[n] = true
		if m.held[n] == nil {
			m.start(n)
		}
	}
	for n, held := range m.held {
		if !mine[n] && held.state != Closing {
			held.close(ErrMoved)
			ends = append(ends, n)
		}
	}
	maps.DeleteFunc(m.wishes, func(n int, _ string) bool { return s.owner(n) != "" })
	slices.Sort(ends)
	return ends
}

// stay sends heartbeats until it is time to join again.
func (m *Member) stay(ctx context.Context, g *kafkaclient.Generation) error {
	every := min(heartbeatEvery, m.cfg.SessionTimeout/5)
	beat := time.NewTicker(every)
	defer beat.Stop()
	for {
		if m.due() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-m.wake:
			continue
		case <-beat.C:
		}
		m.lookForStuck()
		err := m.deps.Group.Heartbeat(ctx, g)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		m.heard(err)
		switch {
		case err == nil:
			if m.State() == nil {
				m.failing.Over()
			}
		case kafkaclient.Lost(err):
			m.deps.Log.Debug("the group divides anew", "generation", g.Number, "because", err)
			return nil
		default:
			m.failing.Note(err)
		}
	}
}

// due says whether it is time to join again.
func (m *Member) due() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.again || !m.balance.IsZero() && !time.Now().Before(m.balance) {
		return true
	}
	if !m.given {
		return false
	}
	for _, s := range m.held {
		if s.state == Closing && !s.hangs() {
			return false
		}
	}
	return true
}

// rejoinLocked has the member join again: at once, or when nothing is closing any more.
func (m *Member) rejoinLocked(now bool) {
	if now {
		m.again = true
	} else {
		m.given = true
	}
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// heard notes whether the group has answered.
func (m *Member) heard(err error) {
	if err != nil && !kafkaclient.Lost(err) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.answered, m.silent = time.Now(), false
}

// watchSilence ends all shards when the group has not been heard of for twice the session timeout:
// others have them by then. Nothing needs it to be safe, but clients that reach this buffer and
// not Kafka would stay.
func (m *Member) watchSilence(ctx context.Context) {
	limit := 2 * m.cfg.SessionTimeout
	for ctx.Err() == nil {
		left, ended := m.endSilent(limit)
		if ended > 0 {
			m.deps.Changed()
			m.deps.Log.Warn("the group has not been heard of for too long; others have this buffer's shards by now, and they are ended here", "shards", ended, "after", limit)
		}
		sleep(ctx, left)
	}
}

// endSilent ends all shards when the group has been silent for a time, and returns when to look
// again.
func (m *Member) endSilent(limit time.Duration) (next time.Duration, ended int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if left := time.Until(m.answered.Add(limit)); left > 0 {
		return left, 0
	}
	if !m.silent {
		m.silent, m.known = true, false
		ended = len(m.held)
		for _, s := range m.held {
			s.close(ErrSilent)
		}
	}
	return limit / 10, ended
}

// giveUpAll ends all shards at the same time, and waits for them.
func (m *Member) giveUpAll(cause error) {
	m.mu.Lock()
	for _, s := range m.held {
		s.close(cause)
	}
	m.mu.Unlock()
	m.running.Wait()
}

func (m *Member) stands(err error) {
	m.mu.Lock()
	m.standing = err
	m.mu.Unlock()
	m.deps.Changed()
}

// State is nil while this buffer has a part in the group, and else says why it has none.
func (m *Member) State() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.standing == nil && m.silent {
		return ErrSilent
	}
	return m.standing
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
