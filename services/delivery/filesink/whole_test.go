package filesink_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// TestWholeFiles delivers to Parquet: nothing is written and settled before a file is due to
// become final, be it for its age, for idleness, or for the bytes collected.
func TestWholeFiles(t *testing.T) {
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		disk := newDisk(t, root)
		cfg := testConfig()
		cfg.Path, cfg.Serializer = "/out", "parquet"
		cfg.Commit = config.Commit{Bytes: 100_000, Interval: time.Second}
		cfg.Roll = config.Roll{Interval: time.Hour, Idle: 10 * time.Minute}
		b := newFakeBuffer()
		source := &spillwayv1.SourcePartition{Cluster: "c", Topic: "t"}
		offset := int64(0)
		add := func(bytes int) {
			b.add(source, offset, recordbatch.Record{Value: fmt.Appendf(nil, "%0*d", bytes, offset)})
			offset++
		}
		var have []int // records in each file
		expect := func(settled int, files ...int) {
			t.Helper()
			synctest.Wait()
			have = have[:0]
			for p, content := range allFiles(t, root) {
				if !strings.Contains(p, ".log") {
					continue // a probe
				}
				if !strings.HasSuffix(p, ".log") {
					t.Errorf("%s is in use", p)
					continue
				}
				have = append(have, strings.Count(parquetValues(t, p, content), "\n"))
			}
			slices.Sort(have)
			if left := int(offset) - b.unsettled(); !slices.Equal(have, files) || left != settled {
				t.Fatalf("the files have %d records, and %d are settled; want %d, and %d", have, left, files, settled)
			}
		}
		session := b.open()
		wait := serve(t, newSink(t, cfg, disk), session)

		add(100)
		time.Sleep(9 * time.Minute)
		add(100)
		time.Sleep(9 * time.Minute)
		expect(0)
		time.Sleep(time.Minute) // idle
		expect(2, 2)
		for range 13 { // never idle, till the first is an hour old
			add(100)
			time.Sleep(5 * time.Minute)
		}
		expect(14, 2, 12)
		add(99_000)
		add(2_000)
		expect(17, 2, 3, 12) // too much to hold
		add(100)
		synctest.Wait()
		session.drain()
		if err := wait(); err != nil {
			t.Fatal(err)
		}
		expect(18, 1, 2, 3, 12)
	})
}
