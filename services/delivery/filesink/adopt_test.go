package filesink_test

import (
	"context"
	"testing"
	"testing/synctest"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/delivery/filesink/fstest"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// heldFS is a file system on which leases of writers that failed are never given up.
type heldFS struct{ filesink.FS }

func (heldFS) Take(context.Context, filesink.Taking) error { return filesink.ErrWait }

// TestFailedBeginningsHoldNothingUp: writes fail again and again, each leaving behind a file of
// which nothing is committed. When writes succeed again, records are delivered without waiting
// for the leases of those files.
func TestFailedBeginningsHoldNothingUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := newDisk(t, t.TempDir())
		writes := 0
		faulty := &fstest.Faulty{FS: heldFS{disk}, Decide: func(op, _ string) fstest.Fault {
			if op == "Commit" {
				if writes++; writes <= 10 {
					return fstest.Torn
				}
			}
			return fstest.None
		}}
		b := newFakeBuffer()
		b.add(&spillwayv1.SourcePartition{Cluster: "c", Topic: "t"}, 0, recordbatch.Record{Value: []byte("x"), Headers: []recordbatch.Header{{Name: []byte("kind"), Value: []byte("k")}}})
		session := b.open()
		wait := serve(t, newSink(t, testConfig(), faulty), session)
		settleAll(t, b, session)
		if err := wait(); err != nil {
			t.Fatal(err)
		}
		if n := b.stateSize(); n != 0 {
			t.Errorf("%d entries are left", n)
		}
	})
}
