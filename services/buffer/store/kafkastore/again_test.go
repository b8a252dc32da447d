package kafkastore

import (
	"errors"
	"testing"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// TestAgain: whoever opens a store once more, because it failed, gets it when nobody else has had
// the shard since, whatever its own attempts have left, and leaves it to the one who has.
func TestAgain(t *testing.T) {
	f := newFakeShard(t)
	f.cfg.SegmentBytes = 1 << 10
	open := func(instance string, after int64) (*Store, error) {
		t.Helper()
		f.cfg.Instance, f.cfg.After = instance, after
		s, err := f.Open(noOptions(t))
		if err != nil {
			return nil, err
		}
		return s.(*Store), nil
	}
	must := func(instance string, after int64) int64 {
		t.Helper()
		s, err := open(instance, after)
		if err != nil {
			t.Fatalf("%s, after %d: %v", instance, after, err)
		}
		if _, err := s.Append([]queue.Entry{{Kind: queue.ChangeEntry, Meta: []byte("c")}}); err != nil {
			t.Fatal(err)
		}
		crash(s)
		return s.Epoch()
	}
	refused := func(instance string, after int64) {
		t.Helper()
		_, before, err := f.journal.bounds(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := open(instance, after); !errors.Is(err, ErrFenced) {
			t.Errorf("%s, after %d: %v, want %v", instance, after, err, ErrFenced)
		}
		if _, next, err := f.journal.bounds(t.Context()); err != nil || next != before {
			t.Errorf("%s has written to the journal of another owner", instance)
		}
	}
	first := must("a", 0)
	second := must("a", first)
	third := must("a", first) // its second opening failed before it heard of its epoch
	heir := must("b", 0)
	refused("a", first)
	refused("a", second)
	refused("a", third)
	must("b", heir)
	s, err := open("b", heir)
	if err != nil {
		t.Fatal(err)
	}
	for range 200 { // so that the barriers are trimmed
		if _, err := s.Append([]queue.Entry{{Kind: queue.ChangeEntry, Meta: make([]byte, 100)}}); err != nil {
			t.Fatal(err)
		}
		settle(t, s)
	}
	if start, _, err := f.journal.bounds(t.Context()); err != nil || start <= heir {
		t.Fatalf("the journal begins at %d, %v: that is no test", start, err)
	}
	crash(s)
	refused("a", third)
	must("a", 0) // who is to have it gets it
}
