package filesink_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/parquet-go/parquet-go"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/delivery"
	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/delivery/filesink/fstest"
	"github.com/spillwayio/spillway/services/delivery/filesink/localfs"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/race"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

func testConfig() *config.HDFS {
	return &config.HDFS{
		URL: "file:///x", Path: "/out/%{topic}/%{kind}", FilePrefix: "%H", FileSuffix: ".log", InUseSuffix: ".tmp", TimeZone: "UTC",
		MaxOpenFiles: 500, Commit: config.Commit{Bytes: 1 << 20, Interval: time.Second}, Serializer: "text", Compression: "none", AppendNewline: true,
	}
}

// newDisk is a file system below root, closed with the test.
func newDisk(t testing.TB, root string) *localfs.FS {
	t.Helper()
	disk, err := localfs.New(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := disk.Close(); err != nil {
			t.Error(err)
		}
	})
	return disk
}

func newSink(t testing.TB, cfg *config.HDFS, fs filesink.FS) *filesink.Sink {
	t.Helper()
	sink, err := filesink.New(cfg, fs, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return sink
}

// chaos is a random source that several goroutines share, and how likely faults are now.
type chaos struct {
	mu     sync.Mutex
	rand   *rand.Rand
	rate   float64         // 0 to 1, of an operation
	denied string          // all that is done to paths with this in them; empty: none
	stuck  map[string]bool // files that are not recovered, by path
}

func (c *chaos) happens(rate float64) bool { return c.rand.Float64() < rate }

func (c *chaos) fault(dead *atomic.Bool) func(op, path string) fstest.Fault {
	return func(op, path string) fstest.Fault {
		if dead.Load() {
			return fstest.Before
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if op == "Take" && c.stuck[path] {
			return fstest.Wait
		}
		if c.denied != "" && strings.Contains(path, c.denied) {
			return fstest.Denied
		}
		if !c.happens(c.rate) {
			return fstest.None
		}
		if strings.Contains(path, "/k2/") && c.rand.IntN(2) == 0 && op == "Take" {
			c.stuck[path] = true // HDFS does not recover it
		}
		return fstest.Fault(1 + c.rand.IntN(int(fstest.WaitAfter)))
	}
}

func (c *chaos) fate(ack *delivery.Ack) fate {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.happens(c.rate * 2) {
		return accepted
	}
	return []fate{refused, refused, lostBefore, lostAfter}[c.rand.IntN(4)]
}

func (c *chaos) intN(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rand.IntN(n)
}

// marked checks a directory when it gets its _SUCCESS: all of its records are in final files.
func marked(t *testing.T, root, path string, want map[string]string) {
	dir := strings.TrimSuffix(path, "_SUCCESS")
	missing := make(map[string]bool)
	for value, bucket := range want {
		if strings.HasPrefix(bucket, dir) {
			missing[value] = true
		}
	}
	n := len(missing)
	files, err := os.ReadDir(root + dir)
	for _, f := range files {
		if strings.HasSuffix(f.Name(), ".tmp") { // a dead session's, which may go at any time
			continue
		}
		content, readErr := os.ReadFile(root + dir + f.Name())
		err = errors.Join(err, readErr)
		for line := range strings.Lines(plain(t, dir+f.Name(), string(content))) {
			delete(missing, strings.TrimSuffix(line, "\n"))
		}
	}
	if err != nil {
		t.Error(err)
	}
	if len(missing) > 0 || n == 0 {
		t.Errorf("%s is marked with %d of its %d records in final files", dir, n-len(missing), n)
	}
}

var modelSeeds = flag.Int("model.seeds", 40, "how many seeds TestModel runs")

// TestModel delivers records while the file system fails, acks are refused, sessions are lost and
// processes die; some that lost their session go on for a while. In the end every record is in one
// final file of its bucket, once.
func TestModel(t *testing.T) {
	race.Apart(t)
	seeds := *modelSeeds
	if testing.Short() {
		seeds = 5
	}
	runModels(t, seeds)
}

// TestModelUnderRace runs the first of TestModel's seeds, for the race detector.
func TestModelUnderRace(t *testing.T) { runModels(t, 8) }

func runModels(t *testing.T, seeds int) {
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			root := t.TempDir()
			synctest.Test(t, func(t *testing.T) { runModel(t, root, uint64(seed)) })
		})
	}
}

func runModel(t *testing.T, root string, seed uint64) {
	disk := newDisk(t, root)
	c := &chaos{stuck: make(map[string]bool), rand: rand.New(rand.NewPCG(seed, 1)), rate: []float64{0.01, 0.05, 0.2}[seed%3]}
	b := newFakeBuffer()
	b.fate = c.fate
	cfg := testConfig()
	cfg.Commit = config.Commit{Bytes: config.ByteSize(1 + c.intN(4000)), Interval: time.Duration(1+c.intN(20)) * time.Millisecond}
	cfg.Roll = config.Roll{Size: config.ByteSize(c.intN(3) * 500), Count: int64(c.intN(3) * 40), Idle: time.Duration(c.intN(3)) * 10 * time.Millisecond, Interval: time.Duration(c.intN(3)) * 50 * time.Millisecond}
	cfg.MaxOpenFiles = 1 + c.intN(6)
	if seed%2 == 0 {
		c.denied = "/k1/"
	}
	switch seed / 3 % 3 {
	case 1:
		cfg.Compression = "gzip"
	case 2:
		cfg.Serializer = "parquet"
		cfg.Roll.Idle = max(cfg.Roll.Idle, 5*time.Millisecond)
	}

	marks := seed%4 == 1
	if marks {
		cfg.Path += "/%Y-%m-%d/%H"
		cfg.SuccessAfter = time.Millisecond
	}

	want := make(map[string]string) // record → bucket
	for n := range 60 {
		source := &spillwayv1.SourcePartition{Cluster: "c", Topic: fmt.Sprintf("t%d", n%2), Partition: int32(n % 3)}
		records := make([]recordbatch.Record, 1+c.intN(20))
		first := int64(n * 100)
		for i := range records {
			value, kind := fmt.Sprintf("%s-%d-%d", source.Topic, source.Partition, first+int64(i)), fmt.Sprintf("k%d", c.intN(3))
			records[i] = recordbatch.Record{TimestampMs: int64(c.intN(2)) * 3_600_000, Value: []byte(value), Headers: []recordbatch.Header{{Name: []byte("kind"), Value: []byte(kind)}}}
			want[value] = fmt.Sprintf("/out/%s/%s/%02d.", source.Topic, kind, records[i].TimestampMs/3_600_000)
			if marks {
				records[i].TimestampMs = int64(n/10) * 3_600_001
				want[value] = fmt.Sprintf("/out/%s/%s/1970-01-01/%02d/%02d.", source.Topic, kind, n/10, n/10)
			}
		}
		b.add(source, first, records...)
	}

	var zombies []func() error
	var dead *atomic.Bool
	var sink *filesink.Sink
	for round := 0; ; round++ {
		if round == 25 { // enough
			c.mu.Lock()
			c.rate, c.denied = 0, ""
			clear(c.stuck)
			c.mu.Unlock()
		}
		if sink == nil {
			dead = new(atomic.Bool)
			fault := c.fault(dead)
			shorten := func(path string, length int64) error { return os.Truncate(root+path, length) }
			sink = newSink(t, cfg, &fstest.Faulty{FS: disk, Shorten: shorten, Decide: func(op, path string) fstest.Fault {
				decided := fault(op, path)
				if strings.HasSuffix(path, "/_SUCCESS") && decided != fstest.Before && decided != fstest.Denied {
					marked(t, root, path, want)
				}
				return decided
			}})
		}
		session := b.open()
		wait := serve(t, sink, session)
		switch end := c.intN(4); {
		case round >= 25:
			time.Sleep(50 * time.Millisecond << min(round-25, 10)) // what is tried again later has its time
			settleAll(t, b, session)
			if err := wait(); err != nil && session.Err() == nil {
				t.Fatalf("Serve: %v", err)
			}
		case end == 0: // drain
			time.Sleep(time.Duration(c.intN(30)) * time.Millisecond)
			session.drain()
			_ = wait() // a session may be lost at any time
		case end == 1: // the stream breaks
			time.Sleep(time.Duration(c.intN(30)) * time.Millisecond)
			session.lose()
			_ = wait()
		case end == 2: // kill -9
			time.Sleep(time.Duration(c.intN(30)) * time.Millisecond)
			dead.Store(true)
			session.lose()
			_ = wait()
			sink = nil
		case end == 3: // the buffer has given up on one that goes on
			time.Sleep(time.Duration(c.intN(30)) * time.Millisecond)
			session.lose()
			zombies, sink = append(zombies, wait), nil
		}
		if round >= 25 && b.unsettled() == 0 && b.stateSize() == 0 {
			break
		}
		if round == 32 {
			removeIncomplete(t, root)
		}
		if round == 40 {
			t.Fatalf("%d batches are unsettled and these entries are left: %q", b.unsettled(), b.entries())
		}
	}
	for _, wait := range zombies {
		_ = wait()
	}
	check(t, root, want)
	all := allFiles(t, root)
	for value, bucket := range want {
		if _, there := all[bucket[:strings.LastIndexByte(bucket, '/')]+"/_SUCCESS"]; there != marks {
			t.Errorf("the directory of %s in %s is marked: %v", value, bucket, there)
		}
	}
	t.Logf("seed %d: %d sessions, %d nacks, %d partial acks, %d records", seed, b.sessions-1000, b.nacks, b.partial, len(want))
}

// removeIncomplete does what an operator is told to: a process that woke up after its session was
// given up may make an _INCOMPLETE after its heir has finished the file and removed it.
func removeIncomplete(t *testing.T, root string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "_INCOMPLETE" {
			return err
		}
		t.Logf("%s was left, and is removed", path)
		return os.Remove(path)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// check reads all final files: each record is in one of them, once, and in one of its bucket.
func check(t *testing.T, root string, want map[string]string) {
	t.Helper()
	seen := make(map[string]string)
	for p, content := range finals(t, root) {
		if content == "" {
			t.Errorf("%s is final and empty", p)
		}
		for line := range strings.Lines(plain(t, p, content)) {
			value := strings.TrimSuffix(line, "\n")
			switch bucket, known := want[value]; {
			case !known:
				t.Errorf("%s has %q, which is no record", p, line)
			case seen[value] != "":
				t.Errorf("record %s is in %s and in %s", value, seen[value], p)
			case !strings.HasPrefix(p, bucket):
				t.Errorf("record %s is in %s, want it in %s", value, p, bucket)
			}
			seen[value] = p
		}
	}
	for value := range want {
		if seen[value] == "" {
			t.Errorf("record %s is lost", value)
		}
	}
}

// plain is the values in a file as lines.
func plain(t *testing.T, p, content string) string {
	t.Helper()
	if strings.HasSuffix(p, ".gz") {
		content = gunzip(t, p, content)
	}
	if strings.HasPrefix(content, "PAR1") {
		content = parquetValues(t, p, content)
	}
	return content
}

// gunzip reads all members of a file.
func gunzip(t *testing.T, p, content string) string {
	t.Helper()
	r, err := gzip.NewReader(strings.NewReader(content))
	if err != nil {
		t.Fatalf("%s: %v", p, err)
	}
	plain, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("%s: %v", p, err)
	}
	return string(plain)
}

// parquetValues are the values in a file as lines.
func parquetValues(t *testing.T, p, content string) string {
	t.Helper()
	type row struct {
		Value []byte `parquet:"value,optional"`
	}
	rows, err := parquet.Read[row](strings.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatalf("%s: %v", p, err)
	}
	var lines []byte
	for _, r := range rows {
		lines = append(append(lines, r.Value...), '\n')
	}
	return string(lines)
}

// finals reads the final files below root.
func finals(t *testing.T, root string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	for p, content := range allFiles(t, root) {
		if !strings.HasSuffix(p, ".tmp") && !strings.HasSuffix(p, "/_SUCCESS") && !strings.Contains(p, "/.spillway-probe") {
			files[p] = content
		}
	}
	return files
}

func allFiles(t *testing.T, root string) map[string]string {
	t.Helper()
	files := make(map[string]string)
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(p)
		files[strings.TrimPrefix(p, root)] = string(bytes.Clone(content))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
