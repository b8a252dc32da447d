package e2e

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/buffer/owners"
	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/buffer/store/kafkastore"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

// ledgers are shards that count, kept in Kafka, whoever owns them.
type ledgers struct {
	cfg kafkastore.Config

	mu       sync.Mutex
	answered [][]string // by shard
	last     []time.Time
	gaps     []time.Duration // the longest time without an answer
}

// ledgerOwner is a member that counts in each shard that it is given.
type ledgerOwner struct {
	*owners.Member
	*ledgers
	name string
	dead chan struct{} // closed when it is killed
	stop func()
	done chan struct{}
}

// mortal is a membership that ends without a farewell when its owner is killed.
type mortal struct {
	owners.Group
	dead chan struct{}
}

// Leave implements owners.Group.
func (m mortal) Leave(ctx context.Context) error {
	select {
	case <-m.dead:
		return errors.New("killed")
	default:
		return m.Group.Leave(ctx)
	}
}

func (l *ledgers) start(t *testing.T, name string, session time.Duration) *ledgerOwner {
	client := kafkaclient.New(l.cfg.Topics.Brokers, "spillway-buffer-"+name, kafkaclient.Access{})
	t.Cleanup(client.Close)
	o := &ledgerOwner{ledgers: l, name: name, dead: make(chan struct{}), done: make(chan struct{})}
	o.Member = owners.New(owners.Config{Shards: l.cfg.Topics.Shards, Advertise: name, SessionTimeout: session},
		owners.Deps{Group: mortal{owners.NewGroup(client, l.cfg.Topics.Name, session), o.dead}, Serve: o.serve, Log: slog.New(slog.NewTextHandler(t.Output(), nil)).With("at", name)})
	ctx, cancel := context.WithCancel(t.Context())
	o.stop = cancel
	t.Cleanup(func() {
		cancel()
		<-o.done
	})
	go func() {
		defer close(o.done)
		o.Run(ctx)
	}()
	return o
}

// kill has nothing more sent to Kafka, and nobody told.
func (o *ledgerOwner) kill() {
	close(o.dead)
	o.stop()
}

// serve counts in a shard every 20 ms.
func (o *ledgerOwner) serve(ctx context.Context, s *owners.Shard) error {
	n, have := s.Number(), []string(nil)
	cfg := o.cfg
	cfg.Shard, cfg.Address = n, o.name
	store, err := kafkastore.Open(ctx, cfg, queue.StoreOptions{
		Recover: func(r queue.Recovered) error {
			switch r.Kind {
			case queue.SnapshotEntry:
				have = strings.Fields(string(r.Meta))
			case queue.ChangeEntry:
				have = append(have, string(r.Meta))
			}
			return nil
		},
		Snapshot: func() queue.Snapshot {
			s := queue.WholeSnapshot(strings.Join(have, " "))
			return &s
		},
		Damage: func(string) {},
	})
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	s.Opened(uint64(store.Epoch()))
	for {
		number := fmt.Sprintf("%s.%d", o.name, len(have))
		_, err := store.Append([]queue.Entry{{Kind: queue.ChangeEntry, Meta: []byte(number)}})
		if errors.Is(err, kafkastore.ErrFenced) {
			err = fmt.Errorf("%w: %w", owners.ErrFenced, err)
		}
		if err != nil {
			return err
		}
		have = append(have, number)
		o.mu.Lock()
		o.answered[n] = append(o.answered[n], number)
		if !o.last[n].IsZero() {
			o.gaps[n] = max(o.gaps[n], time.Since(o.last[n]))
		}
		o.last[n] = time.Now()
		o.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// served returns an error unless these owners serve all shards, each one.
func (l *ledgers) served(all ...*ledgerOwner) error {
	var open []int
	for _, o := range all {
		for _, s := range o.Owners() {
			if s.State == owners.Open {
				open = append(open, s.Shard)
			}
		}
	}
	slices.Sort(open)
	if want := l.cfg.Topics.Shards; len(open) != want || len(slices.Compact(open)) != want {
		return fmt.Errorf("shards %v are open", open)
	}
	return nil
}

// gap is the longest time without an answer in a shard, and begins anew.
func (l *ledgers) gap() (longest time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n := range l.gaps {
		longest = max(longest, l.gaps[n], time.Since(l.last[n]))
		l.gaps[n] = 0
	}
	return longest
}

// TestOwnersOfShards: three owners divide six shards by a group of a real Kafka, with the ledgers
// there. What a killed one had is counted elsewhere within the session timeout and two seconds,
// what is moved, or a stopped one's, within two; no number that was answered is lost, or counts
// twice.
func TestOwnersOfShards(t *testing.T) {
	const session = 6 * time.Second
	h := newShards(t, []string{stack.kafka.addr()}, 1, 1<<20, 6, false)
	l := &ledgers{cfg: h.cfg, answered: make([][]string, 6), last: make([]time.Time, 6), gaps: make([]time.Duration, 6)}
	a, b, c := l.start(t, "a", session), l.start(t, "b", session), l.start(t, "c", session)
	all := func(some ...*ledgerOwner) func() error { return func() error { return l.served(some...) } }
	eventually(t, time.Minute, "all shards are served", all(a, b, c))
	eventually(t, time.Minute, "all owners are members", func() error { return errors.Join(a.State(), b.State(), c.State()) })
	l.gap()

	within := func(what string, limit time.Duration) {
		t.Helper()
		g := l.gap()
		t.Logf("%s: a shard stopped for %v at most", what, g.Round(time.Millisecond))
		if g > limit {
			t.Errorf("%s: a shard stopped for %v, want %v at most", what, g, limit)
		}
	}
	for shard, to := range []*ledgerOwner{a, a, b, b, c, c} { // the first of them has all
		eventually(t, 20*time.Second, fmt.Sprint("shard ", shard, " moves to ", to.name), func() error {
			err := owners.ErrNotHere
			for _, o := range []*ledgerOwner{a, b, c} {
				if e := o.Move(t.Context(), shard, to.name); !errors.Is(e, owners.ErrNotHere) {
					err = e
				}
			}
			return err
		})
		eventually(t, 10*time.Second, "all shards are served", all(a, b, c))
	}
	within("moved", 2*time.Second)
	c.kill()
	eventually(t, session+10*time.Second, "the killed one's shards are served", all(a, b))
	time.Sleep(200 * time.Millisecond) // answers
	within("killed", session+2*time.Second)
	b.stop()
	eventually(t, 10*time.Second, "the stopped one's shards are served", all(a))
	time.Sleep(200 * time.Millisecond)
	within("stopped", 2*time.Second)
	a.stop()
	<-a.done

	for n := range l.answered {
		cfg := h.cfg
		cfg.Shard = n
		last, _ := openNumbers(t, cfg)
		at := 0
		for _, number := range last.have {
			if at < len(l.answered[n]) && l.answered[n][at] == number {
				at++
			}
		}
		if at < len(l.answered[n]) {
			t.Errorf("shard %d: %s was answered, and is not there, or not in order", n, l.answered[n][at])
		}
		if unique := slices.Compact(slices.Sorted(slices.Values(last.have))); len(unique) != len(last.have) {
			t.Errorf("shard %d: %d of %d numbers count twice", n, len(last.have)-len(unique), len(last.have))
		}
	}
}
