package owners

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestOneAloneHasAll(t *testing.T) {
	run(t, 6, func(w *world) {
		a := w.start("a:1")
		time.Sleep(time.Second)
		w.check("alone", a)
		b := w.start("b:1")
		time.Sleep(quiet / 2)
		if n := len(a.owned()); n != 6 {
			t.Errorf("it has %d shards soon after another has come, want all", n)
		}
		time.Sleep(3 * time.Minute)
		w.check("both", a, b)
		if g := w.gap(); g > 2*time.Second {
			t.Errorf("a move for balance stopped a shard for %v", g)
		}
	})
}

// TestOneIsKilled: its shards are at others within the session timeout and two seconds. One that
// comes back gets some again.
func TestOneIsKilled(t *testing.T) {
	run(t, 6, func(w *world) {
		a, b, c := startThree(w)
		b.kill()
		time.Sleep(testSession + 2*time.Second)
		if g := w.gap(); g > testSession+2*time.Second {
			t.Errorf("a shard stopped for %v", g)
		}
		w.check("two are left", a, c)
		b = w.start("b:1")
		time.Sleep(3 * time.Minute)
		w.check("it is back", a, b, c)
	})
}

// TestOneStops: a planned end stops a shard for two seconds at most.
func TestOneStops(t *testing.T) {
	run(t, 6, func(w *world) {
		a, b, c := startThree(w)
		b.stop()
		time.Sleep(5 * time.Second)
		if g := w.gap(); g > 2*time.Second {
			t.Errorf("a shard stopped for %v", g)
		}
		w.check("two are left", a, c)
		<-b.done
		a.stop()
		c.stop()
		<-a.done
		<-c.done
	})
}

// TestMove to a member that is named; errors say what is wrong.
func TestMove(t *testing.T) {
	run(t, 6, func(w *world) {
		a, b, c := startThree(w)
		mine := a.owned()
		began := time.Now()
		if err := a.Move(w.t.Context(), mine[0], "c:1"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond) // it opens
		if !slices.Contains(c.owned(), mine[0]) {
			t.Errorf("c has %v, want shard %d", c.owned(), mine[0])
		}
		if g := w.gap(); g > 2*time.Second {
			t.Errorf("a move that took %v stopped a shard for %v", time.Since(began), g)
		}
		for err, want := range map[error]error{
			a.Move(w.t.Context(), mine[0], "b:1"):     ErrNotHere,
			a.Move(w.t.Context(), mine[1], "nowhere"): ErrNoMember,
			a.Move(w.t.Context(), mine[1], "a:1"):     nil,
		} {
			if !errors.Is(err, want) {
				t.Errorf("got %v, want %v", err, want)
			}
		}
		time.Sleep(3 * time.Minute)
		w.check("in the end", a, b, c)
		// Its heir dies in the meantime: another one gets it, which is said.
		c.kill()
		n := a.owned()[0]
		if err := a.Move(w.t.Context(), n, "c:1"); err == nil || !strings.Contains(err.Error(), "the group has given it to") {
			t.Errorf("a move to a dead one: %v", err)
		}
	})
}

func TestDrain(t *testing.T) {
	run(t, 6, func(w *world) {
		a := w.start("a:1")
		time.Sleep(time.Second)
		if err := a.Drain(w.t.Context()); !errors.Is(err, ErrNoRoom) {
			t.Errorf("drain of the only one: %v", err)
		}
		time.Sleep(time.Second)
		w.check("it goes on", a)
		b := w.start("b:1")
		time.Sleep(3 * time.Minute)
		w.gap()
		if err := a.Drain(w.t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond)
		if g := w.gap(); g > 2*time.Second {
			t.Errorf("a shard stopped for %v", g)
		}
		time.Sleep(3 * time.Minute)
		w.check("one drained", b)
		if n := len(a.owned()); n != 0 {
			t.Errorf("it has %d shards again", n)
		}
	})
}

// TestOneIsCutOff from Kafka: its shards go to others after the session timeout, and it ends what
// it serves after twice that, not earlier.
func TestOneIsCutOff(t *testing.T) {
	run(t, 6, func(w *world) {
		a, b, c := startThree(w)
		mine := len(b.owned())
		b.link.set(false)
		time.Sleep(testSession + 3*time.Second)
		if n := len(a.owned()) + len(c.owned()); n != 6 {
			t.Errorf("the others have %d shards", n)
		}
		serving := func() (n int) {
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, s := range b.serves {
				n += s
			}
			return n
		}
		if n := serving(); n != mine {
			t.Errorf("after the session timeout it serves %d shards, want %d", n, mine)
		}
		time.Sleep(testSession)
		if n := serving(); n != 0 || !errors.Is(b.State(), ErrSilent) {
			t.Errorf("after twice the session timeout it serves %d shards: %v", n, b.State())
		}
		b.link.set(true)
		time.Sleep(3 * time.Minute)
		w.check("in the end", a, b, c)
	})
}

// TestZombieComesBack within twice the session timeout: it claims what others have, and moves
// nothing.
func TestZombieComesBack(t *testing.T) {
	run(t, 6, func(w *world) {
		a, b, c := startThree(w)
		b.link.set(false)
		time.Sleep(testSession + 3*time.Second)
		was := fmt.Sprint(a.owned(), c.owned())
		b.link.set(true)
		time.Sleep(quiet - 5*time.Second)
		if now := fmt.Sprint(a.owned(), c.owned()); now != was {
			t.Errorf("the others have %s, and had %s", now, was)
		}
		time.Sleep(3 * time.Minute)
		w.check("in the end", a, b, c)
	})
}

// TestGhost: a barrier of an owner that nobody knows of. The shard is served again within seconds.
func TestGhost(t *testing.T) {
	run(t, 6, func(w *world) {
		a, b, c := startThree(w)
		w.mu.Lock()
		for n := range w.epochs {
			w.next++
			w.epochs[n] = w.next
		}
		w.mu.Unlock()
		time.Sleep(3 * time.Second)
		if g := w.gap(); g > 2*time.Second {
			t.Errorf("a shard stopped for %v", g)
		}
		time.Sleep(3 * time.Minute)
		w.check("in the end", a, b, c)
	})
}

// TestOneLinkIsCut: a member reaches the coordinator, and not the leader of one shard's partition.
// Another one serves the shard within 25 s.
func TestOneLinkIsCut(t *testing.T) {
	run(t, 6, func(w *world) {
		a, b, c := startThree(w)
		n := a.owned()[0]
		w.mu.Lock()
		a.blocked[n] = true
		w.mu.Unlock()
		time.Sleep(stuckAfter + settle + 5*time.Second)
		if !slices.Contains(append(b.owned(), c.owned()...), n) {
			t.Errorf("nobody else has shard %d: %v %v %v", n, a.owned(), b.owned(), c.owned())
		}
		if !w.logged("its owner cannot serve it: Kafka has not answered it for") {
			t.Error("nobody says why")
		}
		time.Sleep(10 * time.Minute)
		if slices.Contains(a.owned(), n) {
			t.Errorf("it goes back to who cannot serve it")
		}
		w.mu.Lock()
		a.blocked[n] = false
		w.mu.Unlock()
		time.Sleep(3 * time.Minute)
		w.check("in the end", a, b, c)
	})
}

// TestStoreIsAway for all, but the coordinator is not: no shard is closed, and all go on.
func TestStoreIsAway(t *testing.T) {
	run(t, 6, func(w *world) {
		a, b, c := startThree(w)
		set := func(blocked bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, p := range w.all {
				for n := range p.blocked {
					p.blocked[n] = blocked
				}
			}
		}
		w.mu.Lock()
		was := fmt.Sprint(w.epochs)
		w.mu.Unlock()
		before := w.c.generations()
		set(true)
		time.Sleep(10 * time.Minute)
		if n := w.c.generations() - before; n > 3*6*11 {
			t.Errorf("%d generations in 10 minutes", n)
		}
		set(false)
		time.Sleep(10 * time.Second)
		w.check("at once", a, b, c)
		w.mu.Lock()
		if now := fmt.Sprint(w.epochs); now != was {
			t.Errorf("epochs %s, and before they were %s", now, was)
		}
		w.mu.Unlock()
	})
}

// TestServeFails: the shard goes to a buffer that can serve it, and stays when none can.
func TestServeFails(t *testing.T) {
	run(t, 4, func(w *world) {
		wrong := errors.New("the journal was written by a later version")
		a := w.start("a:1", func(_ *Config, d *Deps) {
			serve := d.Serve
			d.Serve = func(ctx context.Context, s *Shard) error {
				if s.Number() == 2 {
					return wrong
				}
				return serve(ctx, s)
			}
		})
		time.Sleep(50 * time.Second)
		if n := len(a.owned()); n != 3 || a.Owners()[2].State != Opening || a.Owners()[2].Trouble != wrong.Error() {
			t.Errorf("it has %d shards, %+v", n, a.Owners()[2])
		}
		b := w.start("b:1")
		time.Sleep(5 * time.Minute)
		if !slices.Contains(b.owned(), 2) {
			t.Errorf("b has %v, want shard 2", b.owned())
		}
		w.check("in the end", a, b)
	})
}

// TestAdvertise: a buffer whose address leads to another one, or nowhere, has no part in the
// group, says so, and has one when that is mended.
func TestAdvertise(t *testing.T) {
	run(t, 4, func(w *world) {
		var mu sync.Mutex
		answers, nobody := "a's", false
		probe := func(self string) func(*Config, *Deps) {
			return func(c *Config, d *Deps) {
				c.Advertise, d.Self = "localhost:7400", self
				d.Probe = func(_ context.Context, address string) (string, error) {
					mu.Lock()
					defer mu.Unlock()
					if nobody || address != "localhost:7400" {
						return "", errors.New("connection refused")
					}
					return answers, nil
				}
			}
		}
		a := w.start("a", probe("a's"))
		b := w.start("b", probe("b's"))
		time.Sleep(time.Minute)
		if len(a.owned()) != 4 || len(b.owned()) != 0 {
			t.Errorf("they have %v and %v", a.owned(), b.owned())
		}
		if err := b.State(); !errors.Is(err, ErrAdvertise) || !strings.Contains(err.Error(), "localhost:7400, and another buffer answers there") {
			t.Errorf("it says %v", err)
		}
		mu.Lock()
		answers = "b's" // the address leads to the other one now: both have passed
		mu.Unlock()
		time.Sleep(time.Minute)
		if err := b.State(); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "another buffer of the group advertises localhost:7400") {
			t.Errorf("it says %v", err)
		}
		if len(a.owned()) != 4 || a.State() != nil {
			t.Errorf("the first one has %v: %v", a.owned(), a.State())
		}
		a.kill()
		time.Sleep(time.Minute)
		if len(b.owned()) != 4 || b.State() != nil {
			t.Errorf("the second one has %v: %v", b.owned(), b.State())
		}
		mu.Lock()
		nobody = true
		mu.Unlock()
		c := w.start("c", probe("c's"))
		time.Sleep(time.Second)
		if err := c.State(); !errors.Is(err, ErrAdvertise) || !strings.Contains(err.Error(), "refused") {
			t.Errorf("it says %v", err)
		}
	})
}

// TestOtherNumberOfShards: a buffer with another one in its file is given nothing, and says so.
func TestOtherNumberOfShards(t *testing.T) {
	run(t, 4, func(w *world) {
		a, b := w.start("a:1"), w.start("b:1")
		time.Sleep(time.Second)
		c := w.start("c:1", func(c *Config, _ *Deps) { c.Shards = 5 })
		time.Sleep(3 * time.Minute)
		w.check("without it", a, b)
		if err := c.State(); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "5 shards here, and 4 at most buffers") {
			t.Errorf("it says %v", err)
		}
	})
}

// TestCloseHangs: a shard that does not end at its owner goes to another one all the same.
func TestCloseHangs(t *testing.T) {
	run(t, 4, func(w *world) {
		a, b := w.start("a:1"), w.start("b:1")
		time.Sleep(3 * time.Minute)
		w.mu.Lock()
		a.drains = time.Minute
		w.mu.Unlock()
		n := a.owned()[0]
		ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
		defer cancel()
		began := time.Now()
		if err := a.Move(ctx, n, "b:1"); err != nil || time.Since(began) > closingFor+2*time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		time.Sleep(5 * time.Minute)
		w.check("in the end", a, b)
	})
}

// TestModel: members die, stop, start, are cut off from Kafka or from one shard's partition, and
// ghosts write barriers, all at random. When it is over each shard has one owner, all have as many
// as can be, all say the same, and nothing moves any more.
func TestModel(t *testing.T) {
	seeds := uint64(12)
	if testing.Short() {
		seeds = 4
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			run(t, 7, func(w *world) { w.chaos(rand.New(rand.NewPCG(seed, 2))) })
		})
	}
}

func (w *world) chaos(r *rand.Rand) {
	const most = 5
	var alive [most]*process
	start := func(i int) { alive[i] = w.start(fmt.Sprint("buffer-", i, ":7400")) }
	for i := range 3 {
		start(i)
	}
	for range 100 {
		time.Sleep(time.Duration(r.Int64N(int64(10 * time.Second))))
		i, n := r.IntN(most), r.IntN(w.shards)
		p := alive[i]
		if p == nil {
			start(i)
			continue
		}
		switch r.IntN(9) {
		case 0:
			p.kill()
			alive[i] = nil
		case 1:
			p.stop()
			alive[i] = nil
		case 2, 3:
			p.link.set(false)
		case 4, 5:
			p.link.set(true)
		case 6:
			w.mu.Lock()
			p.blocked[n] = !p.blocked[n]
			w.mu.Unlock()
		case 7:
			w.mu.Lock()
			w.next++
			w.epochs[n] = w.next
			w.mu.Unlock()
		case 8:
			ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
			_ = p.Move(ctx, n, fmt.Sprint("buffer-", r.IntN(most), ":7400")) // or not
			cancel()
		}
	}
	var processes []*process
	for i, p := range alive {
		if p == nil {
			start(i)
			p = alive[i]
		}
		p.link.set(true)
		w.mu.Lock()
		clear(p.blocked)
		w.mu.Unlock()
		processes = append(processes, p)
	}
	time.Sleep(40 * time.Second)
	w.gap()
	time.Sleep(5 * time.Minute)
	w.check("when it is fair", processes...)
	if g := w.gap(); g > 2*time.Second {
		w.t.Errorf("balance stopped a shard for %v", g)
	}
	before := w.c.generations()
	time.Sleep(5 * time.Minute)
	w.check("later", processes...)
	if n := w.c.generations() - before; n != 0 {
		w.t.Errorf("%d generations while nothing happens", n)
	}
}
