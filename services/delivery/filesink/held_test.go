package filesink_test

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/delivery/filesink/fstest"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// watchedFS notes what becomes of its files, and has their commits hang when told to.
type watchedFS struct {
	filesink.FS
	mu      sync.Mutex
	hang    bool
	open    int // files that are neither closed nor abandoned
	most    int
	created int
	rollAt  time.Time // of all files
	files   []*watchedFile
}

type watchedFile struct {
	filesink.File
	fs     *watchedFS
	notify func()
	once   sync.Once
	gone   chan struct{}
}

func (w *watchedFS) Create(ctx context.Context, path string, notify func()) (filesink.File, error) {
	f, err := w.FS.Create(ctx, path, notify)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open++
	w.created++
	w.most = max(w.most, w.open)
	x := &watchedFile{File: f, fs: w, notify: notify, gone: make(chan struct{})}
	w.files = append(w.files, x)
	return x, nil
}

func (f *watchedFile) Commit(ctx context.Context, data []byte) error {
	f.fs.mu.Lock()
	hang := f.fs.hang
	f.fs.mu.Unlock()
	if hang {
		<-f.gone // not with ctx: it knows of none
		return errors.New("the connection was closed")
	}
	return f.File.Commit(ctx, data)
}

func (f *watchedFile) left() {
	f.once.Do(func() {
		close(f.gone)
		f.fs.mu.Lock()
		f.fs.open--
		f.fs.mu.Unlock()
	})
}

func (f *watchedFile) Close(ctx context.Context) error {
	defer f.left()
	return f.File.Close(ctx)
}

func (f *watchedFile) Abandon() {
	f.File.Abandon()
	f.left()
}

func (f *watchedFile) RollAt() time.Time {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return f.fs.rollAt
}

func kindOf(kind, value string) recordbatch.Record {
	return recordbatch.Record{Value: []byte(value), Headers: []recordbatch.Header{{Name: []byte("kind"), Value: []byte(kind)}}}
}

// TestLostSessionLetsGo: when the buffer is lost, files are let go of at once, whatever a commit
// still waits for: the buffer gives them to another.
func TestLostSessionLetsGo(t *testing.T) {
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		fs := &watchedFS{FS: newDisk(t, root)}
		b := newFakeBuffer()
		source := &spillwayv1.SourcePartition{Cluster: "c", Topic: "t"}
		b.add(source, 0, kindOf("a", "1"), kindOf("b", "2"))
		session := b.open()
		ctx, cancel := context.WithCancel(t.Context())
		sink := newSink(t, testConfig(), fs)
		done := make(chan error, 1)
		go func() { done <- sink.Serve(ctx, session) }()
		time.Sleep(time.Second)
		fs.mu.Lock()
		open := fs.open
		fs.hang = true
		fs.mu.Unlock()
		if open != 2 || b.unsettled() != 0 {
			t.Fatalf("%d files are open, %d batches unsettled", open, b.unsettled())
		}
		b.add(source, 10, kindOf("a", "3"))
		time.Sleep(2 * time.Second) // a commit hangs
		session.lose()
		cancel() // as the delivery does then
		synctest.Wait()
		select {
		case err := <-done:
			if err == nil {
				t.Error("Serve returned without an error")
			}
		default:
			t.Error("Serve has not returned")
		}
		if fs.open != 0 {
			t.Errorf("%d files are still open", fs.open)
		}
	})
}

// TestOpenFilesAreBounded: no more files than max_open_files are open at any time, those that are
// begun and those that are closed for them included.
func TestOpenFilesAreBounded(t *testing.T) {
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		fs := &watchedFS{FS: newDisk(t, root)}
		cfg := testConfig()
		cfg.MaxOpenFiles = 5
		cfg.Commit = config.Commit{Bytes: 1 << 20, Interval: time.Second}
		cfg.Roll = config.Roll{Interval: time.Hour}
		b := newFakeBuffer()
		want := make(map[string]string)
		session := b.open()
		wait := serve(t, newSink(t, cfg, fs), session)
		for n := range 12 {
			var records []recordbatch.Record
			for i := range 4 {
				kind, value := string(rune('a'+(n*3+i)%20)), string(rune('A'+n))+string(rune('a'+i))
				want[value] = "/out/t/" + kind + "/"
				records = append(records, kindOf(kind, value))
			}
			b.add(&spillwayv1.SourcePartition{Cluster: "c", Topic: "t"}, int64(n*10), records...)
			time.Sleep(3 * time.Second)
		}
		settleAll(t, b, session)
		if err := wait(); err != nil {
			t.Fatal(err)
		}
		check(t, root, want)
		if fs.most > 5 || fs.created < 20 {
			t.Errorf("of %d files %d were open at a time, want at most 5", fs.created, fs.most)
		}
	})
}

// TestFileSystemAsksToRoll: files that should be closed soon become final when it is time,
// without waiting for roll.idle.
func TestFileSystemAsksToRoll(t *testing.T) {
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		fs := &watchedFS{FS: newDisk(t, root)}
		cfg := testConfig()
		cfg.Roll = config.Roll{Interval: time.Hour}
		b := newFakeBuffer()
		session := b.open()
		wait := serve(t, newSink(t, cfg, fs), session)
		b.add(&spillwayv1.SourcePartition{Cluster: "c", Topic: "t"}, 0, kindOf("a", "1"))
		time.Sleep(2 * time.Second)
		if n := len(finals(t, root)); n != 0 {
			t.Fatalf("%d files are final", n)
		}
		fs.mu.Lock()
		fs.rollAt = time.Now().Add(10 * time.Second)
		notify := fs.files[0].notify
		fs.mu.Unlock()
		notify()
		time.Sleep(9 * time.Second)
		if n := len(finals(t, root)); n != 0 {
			t.Errorf("%d files are final too early", n)
		}
		time.Sleep(2 * time.Second)
		if n := len(finals(t, root)); n != 1 {
			t.Errorf("%d files are final, want one", n)
		}
		session.drain()
		if err := wait(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestFileEndsByItself: the connection of a file that nobody writes breaks. It is final soon,
// with what was committed, and its directory goes on with another one.
func TestFileEndsByItself(t *testing.T) {
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ends := true
		faulty := &fstest.Faulty{FS: newDisk(t, root), Decide: func(op, _ string) fstest.Fault {
			if op == "Commit" && ends {
				ends = false
				return fstest.Ended
			}
			return fstest.None
		}}
		cfg := testConfig()
		cfg.Roll = config.Roll{Interval: time.Hour, Idle: 10 * time.Minute}
		b := newFakeBuffer()
		session := b.open()
		wait := serve(t, newSink(t, cfg, faulty), session)
		want := make(map[string]string)
		for n := range 3 {
			value := string(rune('a' + n))
			want[value] = "/out/t/k/"
			b.add(&spillwayv1.SourcePartition{Cluster: "c", Topic: "t"}, int64(n), kindOf("k", value))
			time.Sleep(5 * time.Second)
			if final, state := len(finals(t, root)), b.stateSize(); final != 1 || state != min(n, 1) {
				t.Errorf("after record %d there are %d final files and %d entries, want the one that ended to be final", n, final, state)
			}
			if n == 0 {
				time.Sleep(15 * time.Minute) // in which it would have become final
			}
		}
		time.Sleep(2 * time.Hour)
		if final, state := len(finals(t, root)), b.stateSize(); final != 2 || state != 0 {
			t.Errorf("in the end there are %d final files and %d entries, want 2 and none", final, state)
		}
		settleAll(t, b, session)
		if err := wait(); err != nil {
			t.Fatal(err)
		}
		check(t, root, want)
	})
}

// TestTailIsKept: the entry of a file has what Take needs to complete a torn chunk, of the bytes
// that are settled.
func TestTailIsKept(t *testing.T) {
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBuffer()
		faulty := &fstest.Faulty{FS: newDisk(t, root), Decide: func(string, string) fstest.Fault { return fstest.None }}
		session := b.open()
		wait := serve(t, newSink(t, testConfig(), faulty), session)
		var last []byte
		for n := range 5 {
			b.add(&spillwayv1.SourcePartition{Cluster: "c", Topic: "t"}, int64(n*10), kindOf("a", string(make([]byte, 300+n))))
			time.Sleep(2 * time.Second)
			b.mu.Lock()
			for _, value := range session.state {
				last = value
			}
			b.mu.Unlock()
			length, tail := committedOf(t, last)
			if len(tail) != int(length)%512 || length == 0 {
				t.Errorf("after %d bytes the entry has a tail of %d", length, len(tail))
			}
		}
		session.drain()
		if err := wait(); err != nil {
			t.Fatal(err)
		}
	})
}

// committedOf reads an entry as a later version must.
func committedOf(t *testing.T, value []byte) (length int64, tail []byte) {
	t.Helper()
	var e struct {
		Committed int64  `json:"committed"`
		Tail      []byte `json:"tail"`
	}
	if err := json.Unmarshal(value, &e); err != nil {
		t.Fatal(err)
	}
	return e.Committed, e.Tail
}
