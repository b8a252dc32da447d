package filesink_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// TestSinkServesShards has one sink serve the sessions of three shards at once: their files are
// listed and rolled together, the bound of open files holds for all of them, and a session that
// is lost takes nothing of the others with it.
func TestSinkServesShards(t *testing.T) {
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		const shards, kinds, bound = 3, 10, 9
		cfg := testConfig()
		cfg.MaxOpenFiles = bound
		sink := newSink(t, cfg, newDisk(t, root))
		want := make(map[string]string)
		var buffers []*fakeBuffer
		var sessions []*fakeSession
		var waits []func() error
		add := func(shard, from int) {
			for n := from; n < from+kinds; n++ {
				value, kind := fmt.Sprint(shard, "-", n), fmt.Sprint("k", n%kinds)
				want[value] = "/out/t/" + kind + "/"
				buffers[shard].add(&spillwayv1.SourcePartition{Cluster: "c", Topic: "t", Partition: int32(shard)}, int64(n),
					recordbatch.Record{Value: []byte(value), Headers: []recordbatch.Header{{Name: []byte("kind"), Value: []byte(kind)}}})
			}
		}
		for shard := range shards {
			b := newFakeBuffer()
			b.shards = shards
			session := b.open()
			buffers, sessions = append(buffers, b), append(sessions, session)
			waits = append(waits, serve(t, sink, session))
			add(shard, 0)
		}
		time.Sleep(5 * time.Second)
		if open := sink.OpenFiles(); len(open) != bound {
			t.Errorf("%d files are open, want as many as may be, %d", len(open), bound)
		}

		sessions[0].lose()
		if err := waits[0](); err == nil {
			t.Error("Serve of a session that was lost returned no error")
		}
		if open := sink.OpenFiles(); len(open) != bound*(shards-1)/shards {
			t.Errorf("%d files are open without those of the session that was lost", len(open))
		}
		sessions[0] = buffers[0].open()
		waits[0] = serve(t, sink, sessions[0])
		for shard := range shards {
			add(shard, kinds)
		}
		time.Sleep(5 * time.Second)

		paths, err := sink.RollFiles(t.Context(), "/out/t/k")
		if err != nil || len(paths) != bound {
			t.Errorf("rolled %d files, %v; want %d", len(paths), err, bound)
		}
		for _, f := range sink.OpenFiles() {
			if strings.HasPrefix(f.FinalPath, "/out/t/k") {
				t.Errorf("%s is still in use", f.FinalPath)
			}
		}
		for shard, b := range buffers {
			settleAll(t, b, sessions[shard])
			if err := waits[shard](); err != nil {
				t.Error(err)
			}
		}
		if _, err := sink.RollFiles(t.Context(), ""); err == nil {
			t.Error("files were rolled without a session")
		}
		check(t, root, want)
	})
}
