package filesink_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/delivery/filesink/fstest"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// await waits until there is no error, and fails when that takes longer than ten minutes of the
// bubble's clock.
func await(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Minute)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(100 * time.Millisecond) // of the bubble's clock
	}
}

// ofKind is a record for /out/t/KIND.
func ofKind(kind, value string) recordbatch.Record {
	return recordbatch.Record{Value: []byte(value), Headers: []recordbatch.Header{{Name: []byte("kind"), Value: []byte(kind)}}}
}

var topicT = &spillwayv1.SourcePartition{Cluster: "c", Topic: "t"}

// entryOf is the state of a file in use with some bytes committed.
func entryOf(path string, committed int, due int64) []byte {
	return fmt.Appendf(nil, `{"v":1,"in_use":"%s.tmp","final":"%s","committed":%d,"records":1,"due":%d,"unique":true}`, path, path, committed, due)
}

// unfreedFS never gets the leases of some files.
type unfreedFS struct{ filesink.FS }

func (f unfreedFS) Take(ctx context.Context, t filesink.Taking) error {
	if strings.Contains(t.Alias, "/held/") {
		return filesink.ErrWait
	}
	return f.FS.Take(ctx, t)
}

// TestStuckFilesHoldUpNoOthers: 40 files never get their lease, more than are taken over at a
// time. Others, of the same dead session and of later ones, are finished.
func TestStuckFilesHoldUpNoOthers(t *testing.T) {
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		disk := newDisk(t, root)
		b := newFakeBuffer()
		state := make(map[string][]byte)
		for i := range 80 {
			path := fmt.Sprintf("/out/t/%s/1-%d", []string{"held", "free"}[i/40], i)
			if err := fstest.WriteFile(t.Context(), disk, path+".tmp", []byte("record\n")); err != nil {
				t.Fatal(err)
			}
			state[fmt.Sprintf("1-%02d", i)] = entryOf(path, 7, 0)
		}
		b.orphans[7] = state
		session := b.open()
		sink := newSink(t, testConfig(), unfreedFS{disk})
		wait := serve(t, sink, session)
		await(t, "the others are finished", func() error {
			if left := b.stateSize(); left != 40 {
				return fmt.Errorf("%d files are left", left)
			}
			return nil
		})
		await(t, "what is wrong is told", func() error {
			n := 0
			for _, f := range sink.OpenFiles() {
				if f.Trouble != "" && f.StateKey != "" && f.TroubleSince != nil {
					n++
				}
			}
			if err := sink.Trouble(); err == nil || n != 40 {
				return fmt.Errorf("trouble is %v, %d files are listed as stuck", err, n)
			}
			return nil
		})
		session.drain()
		if err := wait(); err != nil {
			t.Error(err)
		}
		free := 0
		for path := range finals(t, root) {
			if strings.Contains(path, "/free/") {
				free++
			}
		}
		if free != 40 {
			t.Errorf("%d of 40 files are final", free)
		}
	})
}

// TestWhatCannotBeFinishedHoldsNoTimeBack: a file in use is removed, one's bytes are lost, one's
// entry cannot be read, one's entry is of a newer version, one is never freed. Later directories
// get their _SUCCESS, those of these files do not until the files are there again.
func TestWhatCannotBeFinishedHoldsNoTimeBack(t *testing.T) {
	const hour = 3_600_000
	for _, c := range []struct {
		name, dir string // the directory of the file; "" when that is not known
		entry     string
		mend      func(t *testing.T, disk filesink.FS) // nil: there is no way
	}{
		{"removed", "held", string(entryOf("/out/t/held/1970-01-01/00/1-1", 7, hour+1)), func(t *testing.T, disk filesink.FS) {
			if err := fstest.WriteFile(t.Context(), disk, "/out/t/held/1970-01-01/00/1-1.tmp", []byte("record\n")); err != nil {
				t.Error(err)
			}
		}},
		{"short", "short", string(entryOf("/out/t/short/1970-01-01/00/1-1", 8, hour+1)), nil},
		{"unreadable", "", `{"v":1,`, nil},
		{"newer", "newer", strings.Replace(string(entryOf("/out/t/newer/1970-01-01/00/1-1", 7, hour+1)), `"v":1`, `"v":2`, 1), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				disk := newDisk(t, root)
				for _, dir := range []string{"short", "newer"} {
					if err := fstest.WriteFile(t.Context(), disk, "/out/t/"+dir+"/1970-01-01/00/1-1.tmp", []byte("record\n")); err != nil {
						t.Fatal(err)
					}
				}
				cfg := testConfig()
				cfg.Path += "/%Y-%m-%d/%H"
				cfg.SuccessAfter = time.Millisecond
				b := newFakeBuffer()
				b.orphans[7] = map[string][]byte{"1-1": []byte(c.entry)}
				b.holds["1-1"] = hour + 1
				if c.dir != "" {
					b.orphans[7]["success//out/t/"+c.dir+"/1970-01-01/00"] = fmt.Appendf(nil, `{"v":1,"dir":"/out/t/%s/1970-01-01/00","due":%d}`, c.dir, hour+1)
				}
				for h := range int64(3) {
					r := ofKind("k", "x")
					r.TimestampMs = h * hour
					b.add(topicT, h, r)
				}
				session := b.open()
				sink := newSink(t, cfg, disk)
				wait := serve(t, sink, session)
				own := root + "/out/t/" + c.dir + "/1970-01-01/00/"
				await(t, "later directories are marked", func() error {
					_, err := os.Stat(root + "/out/t/k/1970-01-01/01/_SUCCESS")
					return err
				})
				time.Sleep(5 * time.Minute)
				if _, err := os.Stat(own + "_SUCCESS"); c.dir != "" && err == nil {
					t.Error("the directory of the file is marked")
				}
				if _, err := os.Stat(own + "_INCOMPLETE"); c.dir != "" && err != nil {
					t.Error(err)
				}
				if err := sink.Trouble(); err == nil {
					t.Error("no trouble is told")
				}
				if c.mend != nil {
					c.mend(t, disk)
					await(t, "the directory of the file is marked", func() error {
						_, err := os.Stat(own + "_SUCCESS")
						return err
					})
					if _, err := os.Stat(own + "_INCOMPLETE"); !errors.Is(err, os.ErrNotExist) {
						t.Errorf("_INCOMPLETE: %v, want it gone", err)
					}
				}
				session.drain()
				if err := wait(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// awayFS is away for a while, and takes some time to finish files when it is back. It counts the
// directories that are marked as incomplete.
type awayFS struct {
	filesink.FS
	until, finishes time.Time
	marks           *atomic.Int32
}

var errAway = errors.New("the file system is away")

func (f awayFS) away() error {
	if time.Now().Before(f.until) {
		return errAway
	}
	return nil
}

func (f awayFS) Take(ctx context.Context, t filesink.Taking) error {
	if time.Now().Before(f.finishes) {
		return errAway
	}
	return f.FS.Take(ctx, t)
}

func (f awayFS) Create(ctx context.Context, path string, notify func()) (filesink.File, error) {
	if err := f.away(); err != nil {
		return nil, err
	}
	if strings.HasSuffix(path, "_INCOMPLETE") {
		f.marks.Add(1)
	}
	return f.FS.Create(ctx, path, notify)
}

func (f awayFS) Size(ctx context.Context, path string) (int64, error) {
	if err := f.away(); err != nil {
		return 0, err
	}
	return f.FS.Size(ctx, path)
}

func (f awayFS) Probe(ctx context.Context) error { return cmp.Or(f.away(), f.FS.Probe(ctx)) }

// TestOutagesStickNoFiles: a file that is not finished because the file system was away for long
// does not count as one that cannot be finished.
func TestOutagesStickNoFiles(t *testing.T) {
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		disk := newDisk(t, root)
		const path = "/out/t/held/1970-01-01/00/1-1"
		if err := fstest.WriteFile(t.Context(), disk, path+".tmp", []byte("record\n")); err != nil {
			t.Fatal(err)
		}
		b := newFakeBuffer()
		b.orphans[7] = map[string][]byte{"1-1": entryOf(path, 7, 1)}
		session := b.open()
		var marks atomic.Int32
		sink := newSink(t, testConfig(), awayFS{disk, time.Now().Add(20 * time.Minute), time.Now().Add(22 * time.Minute), &marks})
		wait := serve(t, sink, session)
		time.Sleep(23 * time.Minute)
		await(t, "the file is final", func() error {
			_, err := os.Stat(root + path)
			return err
		})
		if n := marks.Load(); n != 0 {
			t.Errorf("its directory was marked as incomplete %d times", n)
		}
		session.drain()
		if err := wait(); err != nil {
			t.Error(err)
		}
	})
}

// TestARemovedFileInUse: an operator removes a file in use while records go on. They go to
// another file, and what is missing is told.
func TestARemovedFileInUse(t *testing.T) {
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBuffer()
		session := b.open()
		sink := newSink(t, testConfig(), newDisk(t, root))
		wait := serve(t, sink, session)
		b.add(topicT, 0, ofKind("k", "gone"))
		await(t, "a file is in use", func() error {
			if n := len(sink.OpenFiles()); n != 1 {
				return fmt.Errorf("%d files are open", n)
			}
			return nil
		})
		if err := os.Remove(root + sink.OpenFiles()[0].InUsePath); err != nil {
			t.Fatal(err)
		}
		b.add(topicT, 1, ofKind("k", "kept"))
		await(t, "the next is delivered", func() error {
			if n := b.unsettled(); n > 0 {
				return fmt.Errorf("%d batches are left", n)
			}
			return nil
		})
		await(t, "what is missing is told", func() error {
			for _, f := range sink.OpenFiles() {
				if strings.Contains(f.Trouble, "not there") && f.CommittedBytes == 5 && f.Records == 1 && sink.Trouble() != nil {
					return nil
				}
			}
			return fmt.Errorf("open files: %v; trouble: %v", sink.OpenFiles(), sink.Trouble())
		})
		session.drain()
		if err := wait(); err != nil {
			t.Error(err)
		}
		for path, content := range finals(t, root) {
			if content != "kept\n" {
				t.Errorf("%s has %q", path, content)
			}
		}
		if n := b.stateSize(); n != 1 {
			t.Errorf("%d entries are left, want the missing file's", n)
		}
	})
}

// TestADirectoryFailsForNoStatedReason: nothing works in one directory, with an error that does
// not say that it is the place. Records for others are not held up, those for it follow on_denied
// after a while, and no entries pile up.
func TestADirectoryFailsForNoStatedReason(t *testing.T) {
	for _, fault := range []fstest.Fault{fstest.Before, fstest.Denied} {
		t.Run(map[fstest.Fault]string{fstest.Before: "unknown", fstest.Denied: "denied"}[fault], func(t *testing.T) {
			root := t.TempDir()
			synctest.Test(t, func(t *testing.T) { runRefused(t, root, fault) })
		})
	}
}

func runRefused(t *testing.T, root string, fault fstest.Fault) {
	faulty := &fstest.Faulty{FS: newDisk(t, root), Decide: func(_, path string) fstest.Fault {
		if strings.Contains(path, "/.snapshot/") {
			return fault
		}
		return fstest.None
	}}
	cfg := testConfig()
	cfg.OnDenied = "dead_letter"
	b := newFakeBuffer()
	session := b.open()
	sink := newSink(t, cfg, faulty)
	wait := serve(t, sink, session)
	slowest, n := time.Duration(0), int64(0)
	for ; n < 600; n += 2 { // for ten minutes
		before := time.Now()
		b.add(topicT, n, ofKind(".snapshot", "bad"))
		b.add(topicT, n+1, ofKind("k", "good"))
		await(t, "the good record is delivered", func() error {
			if !b.settled(n + 1) {
				return errors.New("it is not")
			}
			return nil
		})
		if n >= 10 { // once it is known that it is not the file system
			slowest = max(slowest, time.Since(before))
		}
		time.Sleep(2*time.Second - min(2*time.Second, time.Since(before)))
	}
	if slowest > 2*cfg.Commit.Interval {
		t.Errorf("a record for another directory took %s", slowest)
	}
	await(t, "the others are dead-lettered", func() error {
		if left := b.unsettled(); left > 0 {
			return fmt.Errorf("%d batches are left", left)
		}
		return nil
	})
	if len(b.deadLetters) != 300 || !strings.Contains(b.deadLetters[0].Reason, "denied") {
		t.Errorf("%d dead letters, the first being %v", len(b.deadLetters), b.deadLetters[:1])
	}
	if err := sink.Trouble(); !errors.Is(err, filesink.ErrDenied) {
		t.Errorf("trouble is %v", err)
	}
	session.drain()
	if err := wait(); err != nil {
		t.Error(err)
	}
	if left := b.stateSize(); left != 0 {
		t.Errorf("%d entries are left", left)
	}
}

// TestManyNamesAreDenied has each record ask for a directory of its own that is denied, for
// looking and removing, too. No entries pile up, since the buffer keeps 100,000.
func TestManyNamesAreDenied(t *testing.T) {
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.OnDenied = "dead_letter"
		b := newFakeBuffer()
		most := 0
		b.fate = func(*delivery.Ack) fate { most = max(most, len(b.live.state)); return accepted }
		session := b.open()
		wait := serve(t, newSink(t, cfg, &fstest.Faulty{FS: newDisk(t, root), Decide: func(string, string) fstest.Fault { return fstest.Denied }}), session)
		for n := range int64(3000) {
			b.add(topicT, n, ofKind(fmt.Sprint(n), "x"))
		}
		settleAll(t, b, session)
		if err := wait(); err != nil {
			t.Error(err)
		}
		if len(b.deadLetters) != 3000 {
			t.Errorf("%d dead letters, want 3000", len(b.deadLetters))
		}
		if most > 2*cfg.MaxOpenFiles || b.stateSize() != 0 {
			t.Errorf("there were %d entries at a time, and %d are left", most, b.stateSize())
		}
	})
}
