package filesink_test

import (
	"testing"
	"testing/synctest"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// TestCommitInterval: what comes after a while is committed at once when nothing waits behind it,
// and what follows once in an interval. What others wait behind is committed when it is enough,
// or has waited for the interval.
func TestCommitInterval(t *testing.T) {
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		disk := newDisk(t, root)
		cfg := testConfig()
		cfg.Path = "/out"
		cfg.Commit = config.Commit{Bytes: 1000, Interval: time.Minute}
		cfg.Roll = config.Roll{}
		b := newFakeBuffer()
		offset := int64(0)
		add := func() {
			b.add(&spillwayv1.SourcePartition{Cluster: "c", Topic: "t"}, offset, recordbatch.Record{Value: make([]byte, 300)})
			offset++
			synctest.Wait()
		}
		expect := func(unsettled int) {
			t.Helper()
			synctest.Wait()
			if n := b.unsettled(); n != unsettled {
				t.Fatalf("%d of %d records are not settled, want %d", n, offset, unsettled)
			}
		}
		session := b.open()
		wait := serve(t, newSink(t, cfg, disk), session)

		add()
		expect(0)
		add()
		time.Sleep(time.Second)
		add()
		expect(2)
		time.Sleep(58 * time.Second)
		expect(2)
		time.Sleep(time.Second)
		expect(0)
		for range 4 { // enough
			add()
		}
		expect(0)
		add()
		expect(1)
		time.Sleep(time.Minute)
		expect(0)

		time.Sleep(time.Hour)
		b.mu.Lock()
		hidden := &fakeBatch{source: &spillwayv1.SourcePartition{Cluster: "c", Topic: "u"}, next: 1, due: time.Now().Add(24 * time.Hour), lease: nil}
		b.batches = append(b.batches, hidden) // it is leased later
		b.mu.Unlock()
		add()
		expect(2)
		time.Sleep(time.Minute)
		expect(1)
		b.mu.Lock()
		hidden.settled = true
		b.mu.Unlock()
		session.drain()
		if err := wait(); err != nil {
			t.Fatal(err)
		}
	})
}
