package filesink_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/delivery/filesink/fstest"
)

// TestTheSubscriptionIsDeleted: what was acked is in final files, those of the session and those
// that it had inherited. What was not is in none.
func TestTheSubscriptionIsDeleted(t *testing.T) {
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		disk := newDisk(t, root)
		if err := fstest.WriteFile(t.Context(), disk, "/out/t/old/1-1.tmp", []byte("inherited\nnot acked\n")); err != nil {
			t.Fatal(err)
		}
		var hold atomic.Bool // the inherited file
		hold.Store(true)
		faulty := &fstest.Faulty{FS: disk, Decide: func(op, path string) fstest.Fault {
			if hold.Load() && op == "Take" {
				return fstest.Before
			}
			return fstest.None
		}}
		b := newFakeBuffer()
		b.orphans[7] = map[string][]byte{"1-1": entryOf("/out/t/old/1-1", len("inherited\n"), 0)}
		session := b.open()
		wait := serve(t, newSink(t, testConfig(), faulty), session)
		want := map[string]string{"inherited": "/out/t/old/"}
		for n := range int64(20) {
			kind, value := fmt.Sprint(n%5), fmt.Sprint("record ", n)
			b.add(topicT, n, ofKind(kind, value))
			want[value] = "/out/t/" + kind + "/"
		}
		await(t, "all is acked", func() error {
			if n := b.unsettled(); n > 0 {
				return fmt.Errorf("%d batches are not", n)
			}
			return nil
		})
		b.fate = func(*delivery.Ack) fate { // what comes now is written, and never acked
			hold.Store(false)
			b.deleted = true
			return lostBefore
		}
		b.add(topicT, 20, ofKind("0", "not acked"))
		if err := wait(); !errors.Is(err, delivery.ErrSubscriptionGone) {
			t.Errorf("Serve: %v", err)
		}
		check(t, root, want)
		for path := range allFiles(t, root) {
			if _, final := finals(t, root)[path]; !final {
				t.Errorf("%s is left", path)
			}
		}
	})
}
