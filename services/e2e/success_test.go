package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/colinmarc/hdfs/v2"
	"github.com/twmb/franz-go/pkg/kgo"
)

// successBuckets is the length of the times that directories of TestDirectoriesAreMarked are
// about.
const successBuckets = 10 * time.Second

// timedRecords are the records of TestDirectoriesAreMarked.
type timedRecords struct {
	mu    sync.Mutex
	n     int
	in    map[string][]int // by directory: the numbers of its records
	marks map[string]bool  // directories that were looked at since they are marked
}

// note gives the next number, for a record with a timestamp.
func (r *timedRecords) note(at time.Time) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	dir := at.UTC().Truncate(successBuckets).Format("2006-01-02/15-04-05")
	r.in[dir] = append(r.in[dir], r.n)
	r.n++
	return r.n - 1
}

// watch looks again and again until stop is called, or a look fails the test.
func (r *timedRecords) watch(t *testing.T, root string) (stop func()) {
	fs := hdfsClient(t)
	ended := repeat(200*time.Millisecond, func() error {
		err := r.look(t, fs, root)
		if err != nil {
			t.Error(err)
		}
		return err
	})
	return func() { _ = ended() } // what failed was told
}

// look reads all directories that are marked since the last look: what belongs there must be
// there, in final files.
func (r *timedRecords) look(t *testing.T, fs *hdfs.Client, root string) error {
	days, err := fs.ReadDir(root)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, day := range days {
		times, err := fs.ReadDir(path.Join(root, day.Name()))
		if err != nil {
			return err
		}
		for _, at := range times {
			dir := day.Name() + "/" + at.Name()
			r.mu.Lock()
			seen, want := r.marks[dir], r.in[dir]
			r.mu.Unlock()
			if _, err := fs.Stat(path.Join(root, dir, "_SUCCESS")); seen || errors.Is(err, os.ErrNotExist) {
				continue
			} else if err != nil {
				return err
			}
			there, err := numbersIn(fs, path.Join(root, dir))
			if err != nil {
				return err
			}
			missing := 0
			for _, n := range want {
				if !there[n] {
					missing++
				}
			}
			if missing > 0 || len(want) == 0 {
				t.Errorf("%s is marked, and %d of its %d records are missing", dir, missing, len(want))
			}
			t.Logf("%s is marked %.1f s after its end, with %d records", dir, time.Since(endOf(t, dir)).Seconds(), len(want))
			r.mu.Lock()
			r.marks[dir] = true
			r.mu.Unlock()
		}
	}
	return nil
}

func endOf(t *testing.T, dir string) time.Time {
	t.Helper()
	at, err := time.Parse("2006-01-02/15-04-05", dir)
	if err != nil {
		t.Fatal(err)
	}
	return at.Add(successBuckets)
}

// unmarked is nil when all directories are marked.
func (r *timedRecords) unmarked() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for dir := range r.in {
		if !r.marks[dir] {
			return fmt.Errorf("%s has no _SUCCESS", dir)
		}
	}
	return nil
}

// numbersIn reads the final files of a directory, in which no other may be.
func numbersIn(fs *hdfs.Client, dir string) (map[int]bool, error) {
	files, err := fs.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	there := make(map[int]bool)
	for _, f := range files {
		if strings.HasSuffix(f.Name(), ".tmp") {
			return nil, fmt.Errorf("%s is marked, and has %s in use", dir, f.Name())
		}
		content, err := fs.ReadFile(path.Join(dir, f.Name()))
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(bytes.NewReader(content))
		for lines.Scan() {
			n, err := numberOf(lines.Bytes())
			if err != nil {
				return nil, err
			}
			there[n] = true
		}
	}
	return there, nil
}

// TestDirectoriesAreMarked: two replicas write directories of ten seconds, one source partition
// of four is empty at first, one idle for long, and all processes are killed now and then; the
// ingest is away for longer than success_after. Each directory gets its _SUCCESS, and never
// before all of its records are in final files.
func TestDirectoriesAreMarked(t *testing.T) {
	random := seeded(t)
	p := newPipeline(t, stack.kafka, `path: "/e2e/%{topic}/%Y-%m-%d"`, `path: "/e2e/%{topic}/%Y-%m-%d/%H-%M-%S", round: true, round_value: 10, round_unit: second, time_zone: UTC, success_after: 5s`,
		"idle: 2s", "idle: 1m", "lease: 10s", "lease: 5s")
	createTopic(t, stack.kafka, p.topic, nil)
	other := p.replica(p.hdfs, 2)
	p.start()
	other.start()
	other.waitReady()

	records := &timedRecords{in: make(map[string][]int), marks: make(map[string]bool)}
	client := newClient(t, stack.kafka)
	began := time.Now()
	produce := func(at time.Time) error {
		var batch []*kgo.Record
		for i := range 200 {
			partition := int32(i % partitions)
			switch since := time.Since(began); {
			case partition == 3 && since < 25*time.Second, partition == 2 && since > 10*time.Second:
				partition = 0
			}
			batch = append(batch, &kgo.Record{Topic: p.topic, Partition: partition, Value: value(records.note(at)), Timestamp: at})
		}
		return client.ProduceSync(t.Context(), batch...).FirstErr()
	}
	produced := repeat(100*time.Millisecond, func() error {
		return produce(time.Now())
	})
	looked := records.watch(t, p.hdfsDir)
	victims := []*service{p.hdfs, other, p.buffer, p.ingest}
	for range 8 {
		pause(t, time.Duration(1000+random.IntN(4000))*time.Millisecond)
		victim := victims[random.IntN(len(victims))]
		victim.kill()
		pause(t, time.Duration(random.IntN(1000))*time.Millisecond)
		victim.start()
	}
	p.ingest.kill()
	pause(t, 2*successBuckets)
	p.ingest.start()
	pause(t, successBuckets)
	if err := produced(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Minute, "all directories are marked", records.unmarked)
	looked()

	if err := produce(began); err != nil { // late
		t.Fatal(err)
	}
	eventually(t, time.Minute, "everything is delivered", func() error { return p.settled(records.n, "hdfs") })
	p.hdfs.stop() // makes all files final
	other.stop()
	if err := p.noOrphans(); err != nil {
		t.Error(err)
	}
	tallyHDFS(t, p.hdfsDir, records.n).check(t, "HDFS", false)
}
