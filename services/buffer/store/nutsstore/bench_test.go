package nutsstore

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/spillwayio/spillway/services/buffer/queue"
)

// BenchmarkAppend appends groups of one batch, each with its fsync, beside a bare file that does the same:
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
