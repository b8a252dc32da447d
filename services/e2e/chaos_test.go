package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// TestKilledAgainAndAgain: while records flow, SIGKILL hits processes again and again, one,
// several at once, or all. In the end every record is in HDFS exactly once, no file is in use,
// and the audit has no hole.
func TestKilledAgainAndAgain(t *testing.T) {
	random := seeded(t)
	p := newPipeline(t, stack.kafka)
	createTopic(t, stack.kafka, p.topic, nil)
	p.start()
	source := newProducer(t, stack.kafka, p.topic)
	produced := make(chan error, 1)
	go func() { produced <- source.produce(manyRecords, 8_000) }()
	kills := 0
	for source.written.Load() < manyRecords*9/10 {
		pause(t, time.Duration(200+random.IntN(1800))*time.Millisecond)
		victims := random.Perm(4)[:1+random.IntN(4)]
		var wg sync.WaitGroup
		for _, i := range victims {
			wg.Go(p.services()[i].kill)
		}
		wg.Wait()
		kills += len(victims)
		pause(t, time.Duration(random.IntN(500))*time.Millisecond)
		for _, i := range victims {
			p.services()[i].start()
		}
	}
	t.Logf("%d kills", kills)
	if err := <-produced; err != nil {
		t.Fatal(err)
	}
	p.awaitRest(manyRecords, 4*time.Minute, p.hdfs)
	tallyHDFS(t, p.hdfsDir, manyRecords).check(t, "HDFS", false)
	tallyTopic(t, stack.kafka, p.out, manyRecords).check(t, p.out, true)
}

// TestDataFileSystemFull: the buffer's data is on a file system of 64 MiB, and the target Kafka
// is dead. The file system fills up; no process ends, HDFS goes on as far as memory lets it, and
// when the broker is back everything arrives everywhere without anybody's help.
func TestDataFileSystemFull(t *testing.T) {
	const n = 600_000
	target := secondBroker(t)
	dir := smallFileSystem(t, 64)
	p := newPipeline(t, target)
	p.buffer.env = []string{"SPILLWAY_BUFFER__DATA_DIR=" + filepath.Join(dir, "data")}
	createTopic(t, stack.kafka, p.topic, nil)
	p.start0(t)
	source := newProducer(t, stack.kafka, p.topic)
	if err := source.produce(n, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Minute, "the ingest is held back", func() error {
		_, body, err := p.buffer.get("/metrics")
		if err != nil {
			return err
		}
		if held := metric(body, `spillway_buffer_memory_records{queue="c"}`); held < 0.65*50_000 {
			return fmt.Errorf("%.0f records in memory", held)
		}
		return nil
	})
	pause(t, 5*time.Second) // it stays so
	if err := p.buffer.ready(); err != nil {
		t.Errorf("on a full disk: %v", err)
	}
	p.buffer.kill() // and it starts again on the full disk
	p.buffer.start()
	p.buffer.waitReady()
	if err := target.start(); err != nil {
		t.Fatal(err)
	}
	p.awaitRest(n, 4*time.Minute, p.hdfs)
	tallyHDFS(t, p.hdfsDir, n).check(t, "HDFS", false)
	tallyTopic(t, target, p.out, n).check(t, p.out, true)
}

// smallFileSystem mounts an ext4 of that many MiB. Without root it is a failure in CI, and said
// elsewhere.
func smallFileSystem(t testing.TB, mib int) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "disk.img")
	mount := t.TempDir()
	run := func(name string, args ...string) error {
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", name, err, out)
		}
		return nil
	}
	err := run("truncate", "-s", fmt.Sprintf("%dM", mib), image)
	if err == nil {
		err = run("mkfs.ext4", "-q", "-m", "0", image)
	}
	if err == nil {
		err = run("mount", "-o", "loop", image, mount)
	}
	if err != nil {
		if os.Getenv("CI") == "true" && os.Getuid() == 0 {
			t.Fatal(err)
		}
		fmt.Fprintf(os.Stderr, "NOT RUN: %s: a small file system cannot be mounted, which needs root on Linux: %v\n", t.Name(), err) // a skip alone is not shown
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := run("umount", "-l", mount); err != nil {
			t.Error(err)
		}
	})
	return mount
}
