package filesink_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/delivery/filesink/fstest"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/failpoint"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// crashes are the points at which a process dies, one after the other: those of an adoption need
// something to adopt.
var crashes = [][]string{
	{failpoint.CommitBegun}, {failpoint.CommitPut}, {failpoint.FSCreated}, {failpoint.FSWritten}, {failpoint.CommitWritten},
	{failpoint.CommitSettled}, {failpoint.FSClosed}, {failpoint.RollRenamed}, {failpoint.CommitRolled},
	{failpoint.CommitSettled, failpoint.AdoptFound}, {failpoint.CommitSettled, failpoint.AdoptNamed},
	{failpoint.CommitSettled, failpoint.FSRenamed}, {failpoint.CommitSettled, failpoint.FSRecovered}, {failpoint.CommitSettled, failpoint.AdoptTaken},
	{failpoint.CommitSettled, failpoint.AdoptFinal}, {failpoint.CommitSettled, failpoint.AdoptForgotten},
	{failpoint.CommitWritten, failpoint.AdoptDiscarded},
	{failpoint.CommitSettled, failpoint.AdoptNamed, failpoint.FSRenamed, failpoint.AdoptTaken, failpoint.AdoptFinal, failpoint.AdoptForgotten},
}

// TestCrashAtEachStep: a process dies exactly between two steps, when it comes there for the
// first, the second or the third time. The next one finishes what it left: every record is in one
// file, once, and none is in use.
func TestCrashAtEachStep(t *testing.T) {
	for _, points := range crashes {
		for time := range 3 {
			if time > 0 && points[len(points)-1] == failpoint.AdoptDiscarded {
				continue // by then something counts of every file
			}
			t.Run(fmt.Sprintf("%s/%d", strings.Join(points, ","), time+1), func(t *testing.T) {
				root := t.TempDir()
				synctest.Test(t, func(t *testing.T) { runCrashes(t, root, points, time) })
			})
		}
	}
}

func runCrashes(t *testing.T, root string, points []string, passed int) {
	disk := newDisk(t, root)
	cfg := testConfig()
	cfg.Commit = config.Commit{Bytes: 1 << 20, Interval: 5 * time.Millisecond}
	cfg.Roll = config.Roll{Count: 25, Idle: 40 * time.Millisecond}
	b := newFakeBuffer()
	want := make(map[string]string)
	offset := int64(0)
	add := func() {
		var records []recordbatch.Record
		for range 20 {
			value, kind := fmt.Sprintf("v%d", offset+int64(len(records))), fmt.Sprintf("k%d", len(records)%2)
			records = append(records, recordbatch.Record{Value: []byte(value), Headers: []recordbatch.Header{{Name: []byte("kind"), Value: []byte(kind)}}})
			want[value] = "/out/t/" + kind + "/"
		}
		b.add(&spillwayv1.SourcePartition{Cluster: "c", Topic: "t"}, offset, records...)
		offset += int64(len(records))
	}

	for i, point := range points {
		if i > 0 {
			passed = 0 // there is one file to adopt in each bucket, not more
		}
		var dead atomic.Bool
		var left atomic.Int64
		left.Store(int64(passed))
		session := b.open()
		end := failpoint.Set(func(name string) {
			if name == point && left.Add(-1) < 0 && !dead.Swap(true) {
				session.lose()
			}
		})
		wait := serve(t, newSink(t, cfg, &fstest.Faulty{FS: disk, Decide: func(string, string) fstest.Fault {
			if dead.Load() {
				return fstest.Before
			}
			return fstest.None
		}}), session)
		for round := 0; !dead.Load(); round++ {
			if round == 100 {
				t.Fatalf("%s was not reached", point)
			}
			if round%6 < 4 { // and idle for a while
				add()
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err := wait(); err == nil {
			t.Fatal("it served on")
		}
		end()
	}

	session := b.open()
	wait := serve(t, newSink(t, cfg, disk), session)
	time.Sleep(time.Second)
	settleAll(t, b, session)
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	check(t, root, want)
	if n := b.stateSize(); n != 0 {
		t.Errorf("%d entries are left", n)
	}
	for p := range allFiles(t, root) {
		if strings.Contains(p, ".tmp") {
			t.Errorf("%s is in use", p)
		}
	}
}
