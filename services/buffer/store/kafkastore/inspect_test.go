package kafkastore

import (
	"errors"
	"strings"
	"testing"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// TestInspector looks at topics before and after they are in use. The owner goes on, and so does
// its heir.
func TestInspector(t *testing.T) {
	k := newFakeKafka(t, 1)
	c := newClusterShard(t, k.ListenAddrs(), 1, 1<<10)
	inspect := func(wanted string) {
		t.Helper()
		i := NewInspector(c.cfg.Topics, discard)
		defer i.Close()
		if err := i.Settings(t.Context()); err != nil {
			t.Fatal(err)
		}
		life, err := i.Life(t.Context())
		if err != nil || life == "" || wanted != "" && life != wanted {
			t.Fatalf("life %q, %v; want %q", life, err, wanted)
		}
		if err := errors.Join(i.Write(t.Context()), i.Delete(t.Context())); err != nil {
			t.Error(err)
		}
	}
	inspect("")
	inspect("")
	opts := noOptions(t)
	var metas []string
	opts.Snapshot = func() queue.Snapshot { return whole(strings.Join(metas, "")) }
	opened, err := c.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	life := opened.(*Store).Identity().Life
	write := func() {
		t.Helper()
		if _, err := opened.Append([]queue.Entry{{Kind: queue.ChangeEntry, Meta: []byte("x")}}); err != nil {
			t.Fatal(err)
		}
		metas = append(metas, "x")
	}
	first := func() int64 {
		t.Helper()
		at, _, err := opened.(*Store).journal.bounds(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	for range 20 {
		write()
		inspect(life)
	}
	for i := 0; first() == 0; i++ { // it is trimmed, and begins with a snapshot
		for range 20 {
			write()
		}
		c.Settle(opened)
		if i == 100 {
			t.Fatal("the journal is not trimmed")
		}
	}
	inspect(life)
	write()
	crash(opened)
	recovered := ""
	opts.Recover = func(r queue.Recovered) error {
		recovered += string(r.Meta)
		return nil
	}
	if _, err := c.Open(opts); err != nil {
		t.Fatal(err)
	}
	if recovered != strings.Join(metas, "") {
		t.Errorf("recovered %d changes of %d", len(recovered), len(metas))
	}
	inspect(life)
}
