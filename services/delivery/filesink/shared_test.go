package filesink_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/delivery/filesink/fstest"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// TestTwoQueuesWriteToOneDirectory has two deliveries with equal session ids and equal
// configurations write to one directory: each record is in one final file, whatever fails
// meanwhile.
func TestTwoQueuesWriteToOneDirectory(t *testing.T) {
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		disk := newDisk(t, root)
		const batches, size = 8, 100
		want := make(map[string]string)
		var buffers []*fakeBuffer
		var sessions []*fakeSession
		var waits []func() error
		for _, name := range []string{"east", "west"} {
			b := newFakeBuffer()
			session := b.open() // both begin with the same id
			buffers, sessions = append(buffers, b), append(sessions, session)
			waits = append(waits, serve(t, newSink(t, testConfig(), disk), session))
			for n := range batches {
				records := make([]recordbatch.Record, size)
				for i := range records {
					value := fmt.Sprintf("%s-%d-%d", name, n, i)
					records[i] = recordbatch.Record{Value: []byte(value), Headers: []recordbatch.Header{{Name: []byte("kind"), Value: []byte("k")}}}
					want[value] = "/out/t/k/"
				}
				b.add(&spillwayv1.SourcePartition{Cluster: "c", Topic: "t"}, int64(n*size), records...)
				time.Sleep(2 * time.Second) // each batch a commit
			}
		}
		for i, b := range buffers {
			settleAll(t, b, sessions[i])
			if err := waits[i](); err != nil {
				t.Error(err)
			}
		}
		check(t, root, want)
	})
}

// planter makes a file of somebody else's.
type planter struct {
	t       *testing.T
	root    string
	planted string // its path
}

const foreign = "somebody else's records\n"

func (p *planter) plant(path string) {
	p.planted = path
	if err := os.MkdirAll(filepath.Dir(p.root+path), 0o755); err != nil {
		p.t.Error(err)
	}
	if err := os.WriteFile(p.root+path, []byte(foreign), 0o644); err != nil {
		p.t.Error(err)
	}
}

// TestWhatIsSomebodyElses plants a file at the name of a file in use, or at its final name,
// before the sink gets there: it is not touched, and the records go elsewhere.
func TestWhatIsSomebodyElses(t *testing.T) {
	for _, op := range []string{"Create", "Rename"} {
		t.Run(op, func(t *testing.T) {
			root := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				p := &planter{t: t, root: root}
				faulty := &fstest.Faulty{FS: newDisk(t, root), Decide: func(did, path string) fstest.Fault {
					if did == op && p.planted == "" {
						if op == "Rename" {
							path = strings.TrimSuffix(path, ".tmp")
						}
						p.plant(path)
					}
					return fstest.None
				}}
				b := newFakeBuffer()
				b.add(&spillwayv1.SourcePartition{Cluster: "c", Topic: "t"}, 0, recordbatch.Record{Value: []byte("mine"), Headers: []recordbatch.Header{{Name: []byte("kind"), Value: []byte("k")}}})
				session := b.open()
				wait := serve(t, newSink(t, testConfig(), faulty), session)
				settleAll(t, b, session)
				if err := wait(); err != nil {
					t.Error(err)
				}
				files := allFiles(t, root)
				if p.planted == "" || files[p.planted] != foreign {
					t.Errorf("somebody else's file %q has %q", p.planted, files[p.planted])
				}
				delete(files, p.planted)
				if len(files) != 1 {
					t.Errorf("files are %v, want one more", files)
				}
				for path, content := range files {
					if content != "mine\n" || strings.HasSuffix(path, ".tmp") {
						t.Errorf("%s has %q, want a final file with the record", path, content)
					}
				}
				if n := b.stateSize(); n != 0 {
					t.Errorf("%d entries are left", n)
				}
			})
		})
	}
}

// TestAnEntryThatProvesNothing: a version that named files by session and number put an entry,
// and somebody else made the file of that name. Nothing of it is committed, so nothing says that
// it is ours.
func TestAnEntryThatProvesNothing(t *testing.T) {
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := &planter{t: t, root: root}
		p.plant("/out/t/k/00.1769853600-1.log.tmp")
		b := newFakeBuffer()
		b.orphans[7] = map[string][]byte{"1769853600-1": []byte(`{"v":1,"in_use":"/out/t/k/00.1769853600-1.log.tmp","final":"/out/t/k/00.1769853600-1.log","committed":0,"records":0}`)}
		session := b.open()
		wait := serve(t, newSink(t, testConfig(), newDisk(t, root)), session)
		time.Sleep(time.Minute)
		session.drain()
		if err := wait(); err != nil {
			t.Error(err)
		}
		if got := allFiles(t, root)[p.planted]; got != foreign {
			t.Errorf("somebody else's file has %q", got)
		}
		if n := b.stateSize(); n != 0 {
			t.Errorf("%d entries are left", n)
		}
	})
}
