package nutsstore

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// BenchmarkAppend appends groups of one batch, each with its fsync, beside a bare file that does
// the same:
//
//	go test -run XXX -bench Append ./services/buffer/store/nutsstore
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{64 << 10, 256 << 10, 1 << 20, 2 << 20} {
		payload := noise(1, size)
		b.Run(fmt.Sprintf("store/%dKiB", size>>10), func(b *testing.B) {
			h := &harness{t: b, dir: filepath.Join(b.TempDir(), "store"), segmentBytes: DefaultSegmentBytes, reserveBytes: DefaultReserveBytes}
			s, _ := h.mustOpen()
			entries := []queue.Entry{batch("meta of a batch as it is, about", payload)}
			b.SetBytes(int64(size))
			for b.Loop() {
				s.Release(h.mustAppend(s, entries...))
			}
		})
		b.Run(fmt.Sprintf("file/%dKiB", size>>10), func(b *testing.B) {
			f, err := os.Create(filepath.Join(b.TempDir(), "file"))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			b.SetBytes(int64(size))
			for at := int64(0); b.Loop(); at += int64(size) {
				if at > DefaultSegmentBytes {
					at = 0
					if err := f.Truncate(0); err != nil {
						b.Fatal(err)
					}
				}
				if _, err := f.WriteAt(payload, at); err != nil {
					b.Fatal(err)
				}
				if err := f.Sync(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkAckBesideSnapshot: 10,000 partitions of 100 subscriptions, batches that fill two
// segments, and a subscription that is paused and resumed all the while, which is on disk when it
// returns, as an ack is. It reports how long that takes at most, and mostly.
func BenchmarkAckBesideSnapshot(b *testing.B) {
	const partitions, subs, size = 10_000, 100, 200 << 10
	for range b.N {
		cfg := queue.Config{MemoryRecords: 100_000, MemoryBytes: 64 << 20, DiskRecords: 1 << 40, DiskBytes: 1 << 40, LeaseDuration: time.Minute}
		for i := range subs {
			cfg.Subscriptions = append(cfg.Subscriptions, queue.SubscriptionConfig{Name: fmt.Sprint("s", i), Topics: []string{"*"}, Required: true})
		}
		var s *Store
		q, err := queue.Open(cfg, func(o queue.StoreOptions) (_ queue.Store, err error) {
			s, err = Open(b.TempDir(), Config{}, o)
			return s, err
		})
		if err != nil {
			b.Fatal(err)
		}
		ctx, stop := context.WithCancel(b.Context())
		done := make(chan error, 1)
		go func() { done <- q.Run(ctx) }()
		add := func(i, next int64, bytes int) {
			batch := queue.Batch{Partition: queue.Partition{Cluster: "c", Topic: fmt.Sprint("t", i%100), Number: int32(i / 100)}, Range: queue.Range{First: next, Next: next + 1}, Records: 1, Payload: make([]byte, bytes)}
			if _, err := q.Append(ctx, batch, 0); err != nil {
				b.Fatal(err)
			}
		}
		for i := range int64(partitions) {
			add(i, 0, 1)
		}
		var waits []time.Duration
		ended := make(chan error, 1)
		going, end := context.WithCancel(ctx)
		go func() {
			for paused := true; going.Err() == nil; paused = !paused {
				before := time.Now()
				if err := q.Pause(ctx, "s0", paused); err != nil {
					ended <- err
					return
				}
				waits = append(waits, time.Since(before))
			}
			ended <- nil
		}()
		segments := s.Stats().Segments
		for i := int64(0); s.Stats().Segments < segments+2; i++ {
			add(i, 1, size)
		}
		for range 50 { // the last snapshot, where there are parts
			<-time.After(100 * time.Millisecond)
		}
		end()
		if err := <-ended; err != nil {
			b.Fatal(err)
		}
		slices.Sort(waits)
		b.ReportMetric(float64(waits[len(waits)-1].Milliseconds()), "ms-most")
		b.ReportMetric(float64(waits[len(waits)/2].Microseconds())/1000, "ms-median")
		b.ReportMetric(float64(waits[len(waits)*999/1000].Microseconds())/1000, "ms-p99.9")
		b.ReportMetric(float64(len(waits)), "waits")
		stop()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
}
