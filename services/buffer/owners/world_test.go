package owners

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const testSession = 10 * time.Second

// world is a cluster of buffers with a group, and a store with a fence.
type world struct {
	t      *testing.T
	shards int
	c      *coordinator
	log    strings.Builder
	began  time.Time

	mu     sync.Mutex
	next   uint64
	epochs []uint64        // of the last barrier, by shard
	writes []time.Time     // the last that counted, by shard
	gaps   []time.Duration // the longest time without one
	all    []*process
}

// process is a buffer.
type process struct {
	*Member
	w       *world
	name    string
	link    *link
	kill    func()
	stop    func()
	done    chan struct{}
	blocked []bool // by shard: its leader cannot be reached from here
	drains  time.Duration
	serves  []int // of each shard at the same time; more than one is wrong
}

// run has f act on a world in a bubble, in which all processes end at last.
func run(t *testing.T, shards int, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, shards: shards, c: &coordinator{session: testSession, rebalance: testSession}, began: time.Now(),
			epochs: make([]uint64, shards), writes: make([]time.Time, shards), gaps: make([]time.Duration, shards)}
		f(w)
		for _, p := range w.all {
			p.kill()
		}
		for _, p := range w.all {
			<-p.done
		}
		w.c.mu.Lock()
		for _, s := range w.c.seats {
			s.expiry.Stop()
		}
		if w.c.deadline != nil {
			w.c.deadline.Stop()
		}
		w.c.mu.Unlock()
		if t.Failed() {
			t.Log(w.log.String())
		}
	})
}

// start starts a buffer.
func (w *world) start(name string, change ...func(*Config, *Deps)) *process {
	p := &process{w: w, name: name, link: newLink(), done: make(chan struct{}), blocked: make([]bool, w.shards), serves: make([]int, w.shards), drains: 500 * time.Millisecond}
	cfg := Config{Shards: w.shards, Advertise: name, SessionTimeout: testSession}
	deps := Deps{Group: &membership{c: w.c, link: p.link}, Serve: p.serve, Log: slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				a.Value = slog.StringValue(time.Since(w.began).String())
			}
			return a
		}})).With("at", name)}
	for _, f := range change {
		f(&cfg, &deps)
	}
	p.Member = New(cfg, deps)
	ctx, cancel := context.WithCancel(w.t.Context())
	p.stop = cancel
	p.kill = sync.OnceFunc(func() {
		close(p.link.dead)
		cancel()
	})
	w.mu.Lock()
	w.all = append(w.all, p)
	w.mu.Unlock()
	go func() {
		defer close(p.done)
		p.Run(ctx)
	}()
	return p
}

// Write implements io.Writer, for the log.
func (w *world) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(b)
}

func (w *world) logged(words string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Contains(w.log.String(), words)
}

// reach waits until this process reaches the leader of a shard's partition.
func (p *process) reach(ctx context.Context, shard int) error {
	for {
		p.w.mu.Lock()
		blocked := p.blocked[shard]
		p.w.mu.Unlock()
		err := p.link.pass(ctx, time.Second)
		if err == nil && !blocked {
			return nil
		}
		if errors.Is(err, errKilled) || ctx.Err() != nil {
			return errKilled
		}
		if err == nil {
			sleep(ctx, time.Second)
		}
	}
}

// serve is a shard with a fence: it opens, writes every 250 ms, and notices by the epoch that
// another one has opened.
func (p *process) serve(ctx context.Context, s *Shard) error {
	n, w := s.Number(), p.w
	w.mu.Lock()
	if p.serves[n]++; p.serves[n] > 1 {
		w.t.Errorf("%s serves shard %d twice", p.name, n)
	}
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		p.serves[n]--
	}()
	if err := p.reach(ctx, n); err != nil {
		return err
	}
	sleep(ctx, time.Duration(50+rand.IntN(250))*time.Millisecond)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var waits time.Time
	w.mu.Lock()
	w.next++
	epoch := w.next
	w.epochs[n] = epoch
	w.mu.Unlock()
	s.Opened(epoch)
	s.Watch(func() time.Duration {
		w.mu.Lock()
		defer w.mu.Unlock()
		if waits.IsZero() {
			return 0
		}
		return time.Since(waits)
	})
	for {
		w.mu.Lock()
		waits = time.Now()
		w.mu.Unlock()
		err := p.reach(ctx, n)
		w.mu.Lock()
		fenced := w.epochs[n] != epoch
		if err == nil && !fenced {
			if !w.writes[n].IsZero() {
				w.gaps[n] = max(w.gaps[n], time.Since(w.writes[n]))
			}
			w.writes[n], waits = time.Now(), time.Time{}
		}
		w.mu.Unlock()
		switch {
		case ctx.Err() != nil && (errors.Is(context.Cause(ctx), ErrSilent) || p.killed()):
			return ctx.Err()
		case ctx.Err() != nil:
			time.Sleep(p.drains)
			return nil
		case fenced:
			return fmt.Errorf("write: %w", ErrFenced)
		case err != nil:
			return err
		}
		sleep(ctx, 250*time.Millisecond)
	}
}

func (p *process) killed() bool {
	select {
	case <-p.link.dead:
		return true
	default:
		return false
	}
}

// owned are the shards that a process has open with the epoch that counts.
func (p *process) owned() (all []int) {
	for _, o := range p.Owners() {
		p.w.mu.Lock()
		if o.State == Open && o.Epoch == p.w.epochs[o.Shard] {
			all = append(all, o.Shard)
		}
		p.w.mu.Unlock()
	}
	return all
}

// check fails unless each shard has exactly one owner, of processes that have as many each as can
// be, and all processes say the same of who it is.
func (w *world) check(when string, processes ...*process) {
	w.t.Helper()
	owners := make([]string, w.shards)
	least, most := w.shards, 0
	for _, p := range processes {
		has := p.owned()
		least, most = min(least, len(has)), max(most, len(has))
		for _, n := range has {
			if owners[n] != "" {
				w.t.Errorf("%s: %s and %s have shard %d", when, owners[n], p.name, n)
			}
			owners[n] = p.name
		}
	}
	for n, owner := range owners {
		if owner == "" {
			w.t.Errorf("%s: nobody has shard %d", when, n)
		}
	}
	if most-least > 1 {
		w.t.Errorf("%s: one has %d shards and one %d", when, most, least)
	}
	for _, p := range processes {
		for _, o := range p.Owners() {
			if o.Address != owners[o.Shard] {
				w.t.Errorf("%s: %s says that %q has shard %d, and it is %q", when, p.name, o.Address, o.Shard, owners[o.Shard])
			}
		}
		if err := p.State(); err != nil {
			w.t.Errorf("%s: %s: %v", when, p.name, err)
		}
	}
}

// gap is the longest time without a write of any shard, which begins anew.
func (w *world) gap() (longest time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for n := range w.gaps {
		longest = max(longest, w.gaps[n], time.Since(w.writes[n]))
		w.gaps[n] = 0
	}
	return longest
}

func startThree(w *world) (a, b, c *process) {
	a, b, c = w.start("a:1"), w.start("b:1"), w.start("c:1")
	time.Sleep(3 * time.Minute)
	w.check("at first", a, b, c)
	w.gap()
	return a, b, c
}
