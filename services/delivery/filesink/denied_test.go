package filesink_test

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/delivery/filesink/fstest"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// TestOneDirectoryIsDenied: records for a directory that takes none share every batch with those
// for another. The others arrive, and those wait until it takes some, or are dead-lettered by
// rule.
func TestOneDirectoryIsDenied(t *testing.T) {
	for _, rule := range []string{"wait", "dead_letter"} {
		t.Run(rule, func(t *testing.T) {
			root := t.TempDir()
			synctest.Test(t, func(t *testing.T) { runDenied(t, root, rule) })
		})
	}
}

func runDenied(t *testing.T, root, rule string) {
	const batches, size = 20, 10
	disk := newDisk(t, root)
	var allowed atomic.Bool
	faulty := &fstest.Faulty{FS: disk, Decide: func(_, path string) fstest.Fault {
		if !allowed.Load() && strings.Contains(path, "/bad/") {
			return fstest.Denied
		}
		return fstest.None
	}}
	cfg := testConfig()
	cfg.OnDenied = rule
	b := newFakeBuffer()
	want := make(map[string]string)
	for n := range batches {
		records := make([]recordbatch.Record, size)
		for i := range records {
			kind := []string{"good", "bad"}[i%2]
			value := fmt.Sprintf("%s-%d-%d", kind, n, i)
			records[i] = recordbatch.Record{Value: []byte(value), Headers: []recordbatch.Header{{Name: []byte("kind"), Value: []byte(kind)}}}
			if kind == "good" || rule == "wait" {
				want[value] = "/out/t/" + kind + "/"
			}
		}
		b.add(&spillwayv1.SourcePartition{Cluster: "c", Topic: "t"}, int64(n*100), records...)
	}
	sink := newSink(t, cfg, faulty)
	session := b.open()
	wait := serve(t, sink, session)
	time.Sleep(time.Minute) // of the bubble's clock
	synctest.Wait()

	if rule == "dead_letter" {
		if n := b.unsettled(); n != 0 {
			t.Errorf("%d batches are unsettled", n)
		}
		if len(b.deadLetters) != batches*size/2 || !strings.Contains(b.deadLetters[0].Reason, "denied") {
			t.Errorf("%d dead letters: %v", len(b.deadLetters), b.deadLetters)
		}
	} else {
		if n := b.unsettled(); n != batches {
			t.Errorf("%d batches are unsettled, want %d", n, batches)
		}
		for _, x := range b.batches {
			if len(x.parts) == 0 {
				t.Errorf("nothing of batch %d is settled", x.first)
			}
		}
	}
	if err := sink.Trouble(); !errors.Is(err, filesink.ErrDenied) {
		t.Errorf("trouble is %v, want that a directory is denied", err)
	}
	open := 0
	for _, f := range sink.OpenFiles() {
		open += int(f.Records)
	}
	if open != batches*size/2 {
		t.Errorf("the open files have %d records, want those for the good directory, %d", open, batches*size/2)
	}
	allowed.Store(true)
	time.Sleep(2 * time.Minute) // the adopter tries less and less often
	settleAll(t, b, session)
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	check(t, root, want)
	if n := b.stateSize(); n != 0 {
		t.Errorf("%d entries are left", n)
	}
}
