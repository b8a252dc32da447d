package owners

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/spillwayio/spillway/services/internal/kafkaclient"
	"github.com/spillwayio/spillway/services/internal/race"
)

// mortal is a membership whose process may be killed.
type mortal struct {
	Group
	link *link
}

// Leave implements Group.
func (m mortal) Leave(ctx context.Context) error {
	if err := m.link.pass(ctx, time.Second); err != nil {
		return err
	}
	return m.Group.Leave(ctx)
}

// TestInAGroupOfKafka has members divide by the real protocol.
func TestInAGroupOfKafka(t *testing.T) {
	race.Apart(t)
	const session = time.Second
	cluster, err := kfake.NewCluster(kfake.NumBrokers(3), kfake.GroupMinSessionTimeout(session))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	w := &world{t: t, shards: 6, began: time.Now(), epochs: make([]uint64, 6), writes: make([]time.Time, 6), gaps: make([]time.Duration, 6)}
	defer func() {
		for _, p := range w.all {
			p.kill()
			<-p.done
		}
		if t.Failed() {
			t.Log(w.log.String())
		}
	}()
	start := func(name string) *process {
		client := kafkaclient.New(cluster.ListenAddrs(), "spillway-buffer", kafkaclient.Access{})
		t.Cleanup(client.Close)
		return w.start(name, func(c *Config, d *Deps) {
			c.SessionTimeout = session
			// start gives its link to the membership of a fake group.
			d.Group = mortal{NewGroup(client, "spillway.q", session), d.Group.(*membership).link}
		})
	}
	await := func(what string, so func() bool) time.Duration {
		t.Helper()
		began := time.Now()
		for !so() {
			if time.Since(began) > 20*time.Second {
				t.Fatalf("no end of waiting: %s", what)
			}
			time.Sleep(5 * time.Millisecond)
		}
		return time.Since(began)
	}
	owned := func(all ...*process) (shards []int) {
		for _, p := range all {
			shards = append(shards, p.owned()...)
		}
		slices.Sort(shards)
		return shards
	}
	six := []int{0, 1, 2, 3, 4, 5}

	a := start("a:1")
	await("a has all", func() bool { return slices.Equal(owned(a), six) })
	b, c := start("b:1"), start("c:1")
	await("all know each other", func() bool {
		return slices.Equal(a.others(), []string{"a:1", "b:1", "c:1"}) && b.State() == nil && c.State() == nil
	})
	w.gap()
	if err := a.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	await("b and c have all", func() bool { return slices.Equal(owned(b, c), six) && len(b.owned()) == 3 })
	if g := w.gap(); g > 5*time.Second {
		t.Errorf("draining stopped a shard for %v", g)
	}
	n := b.owned()[0]
	if err := b.Move(t.Context(), n, "c:1"); err != nil {
		t.Fatal(err)
	}
	await("it moves", func() bool { return slices.Contains(c.owned(), n) })
	if g := w.gap(); g > 5*time.Second {
		t.Errorf("a move stopped a shard for %v", g)
	}
	if err := b.Move(t.Context(), b.owned()[0], "a:1"); !errors.Is(err, ErrNoRoom) {
		t.Errorf("a move to one that drains: %v", err)
	}
	c.kill()
	took := await("b has all", func() bool { return slices.Equal(owned(b), six) })
	if took > session+5*time.Second {
		t.Errorf("a killed one's shards were elsewhere after %v", took)
	}
	b.stop()
	<-b.done
	a.stop()
	<-a.done
}
