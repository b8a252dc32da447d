package e2e

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/delivery/filesink/fstest"
	"github.com/spillwayio/spillway/services/internal/config"
)

// heldCase is something that files in use outlive, or that ends them.
type heldCase struct {
	name string
	run  func(h *held)
}

// TestHeldFiles is what files that are held open outlive, and what ends them: in every case all
// that was committed is there in the end, and nothing else.
func TestHeldFiles(t *testing.T) {
	testHeld(t, []heldCase{
		{"idle", heldIdle},
		{"NameNodeAway", heldNameNodeAway},
		{"oneDataNodeDies", heldOneDies},
		{"manyFilesOfADeadDataNode", heldManyOfOne},
		{"allDataNodesDie", heldAllDie},
		{"tornChunk", heldTorn},
		{"NameNodeIsBackFirst", heldNameNodeFirst},
	})
}

// TestHeldFilesInTrouble is the same for what is full, slow, or in the way.
func TestHeldFilesInTrouble(t *testing.T) {
	testHeld(t, []heldCase{
		{"busyWriter", heldBusyWriter},
		{"slowDataNode", heldSlow},
		{"deadDataNodeIsLeftOut", heldLeftOut},
		{"quota", heldQuota},
		{"snapshot", heldSnapshot},
		{"transferThreads", heldThreads},
		{"upgrade", heldUpgrade},
		{"slowCut", heldSlowCut},
		{"idleLong", heldIdleLong},
	})
}

// testHeld has one cluster for all cases.
func testHeld(t *testing.T, cases []heldCase) {
	t.Parallel()
	env := []string{"HDFS_SITE_EXTRA=dfs.client.socket-timeout=10000\ndfs.namenode.redundancy.interval.seconds=1\ndfs.namenode.redundancy.considerLoad=false\ndfs.namenode.reconstruction.pending.timeout-sec=5"}
	shared := newHeld(t, nil, env...)
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			h := &held{cluster: shared.cluster, t: t}
			h.fs = h.view(nil)
			test.run(h)
		})
	}
}

// heldIdle: DataNodes that give a silent writer up after ten seconds hear of this one.
func heldIdle(h *held) {
	f := h.open(h.fs, "idle")
	f.mustCommit(700)
	pause(h.t, 13*time.Second)
	f.mustCommit(700)
	if err := f.Close(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	f.check(f.path + ".tmp")
}

// heldNameNodeAway: commits need no NameNode; it is away, and then in safe mode, when a block is
// full, and the commit waits.
func heldNameNodeAway(h *held) {
	f := h.open(h.fs, "away")
	f.mustCommit(700)
	h.do("hdfs-kill-namenode")
	for range 20 {
		f.mustCommit(1001)
	}
	full := make(chan error, 1)
	go func() { full <- f.commit(2 << 20) }()
	h.do("hdfs-restart-namenode")
	if err := <-full; err != nil {
		h.t.Fatalf("a commit over the end of a block while the NameNode starts: %v", err)
	}
	h.do("hdfs-dfsadmin", "-safemode", "enter")
	f.mustCommit(333)
	closed := make(chan error, 1)
	go func() { closed <- f.Close(h.t.Context()) }()
	h.do("hdfs-dfsadmin", "-safemode", "leave")
	if err := <-closed; err != nil {
		h.t.Fatalf("Close while the NameNode is in safe mode: %v", err)
	}
	f.check(f.path + ".tmp")
	h.awaitDataNodes(h.t, heldNodes)
}

// heldOneDies: each DataNode of a pipeline in turn, in the middle of commits.
func heldOneDies(h *held) {
	for _, node := range allNodes() {
		f := h.open(h.fs, fmt.Sprintf("dies-%d", node))
		f.mustCommit(30_001)
		killed := make(chan struct{})
		go func() {
			defer close(killed)
			pause(h.t, 200*time.Millisecond)
			h.signalNodes(syscall.SIGKILL, node)
		}()
		h.t.Logf("DataNode %d: %v", node, f.untilItFails(30_001))
		<-killed
		f.take(time.Minute)
		h.restartNodes(node)
	}
}

// heldManyOfOne: a DataNode dies and stays dead, with many files. Each has it, and the one that
// recovers a file tries for ten seconds to reach it.
func heldManyOfOne(h *held) {
	var files []*heldFile
	for i := range 40 {
		f := h.open(h.fs, fmt.Sprintf("many-%d", i))
		f.mustCommit(1000 + i)
		files = append(files, f)
	}
	h.signalNodes(syscall.SIGKILL, 1)
	began := time.Now()
	var wg sync.WaitGroup
	for _, f := range files {
		f.Abandon()
		wg.Go(func() {
			if err := takeWithin(h.t, h.fs, f.taking(began), 2*time.Minute); err != nil {
				h.t.Errorf("%s: %v", f.path, err)
			}
		})
	}
	wg.Wait()
	h.t.Logf("%d files were taken over within %.1f s", len(files), time.Since(began).Seconds())
	if took := time.Since(began); took > 100*time.Second { // ten seconds each
		h.t.Error("they waited for each other")
	}
	files[7].check(files[7].path + ".taken")
	h.restartNodes(1)
}

// heldAllDie: all DataNodes at once, while small commits go on.
func heldAllDie(h *held) {
	for _, mode := range []string{"flush", "disk"} {
		f := h.open(h.view(func(c *config.HDFS) { c.Sync = mode }), "all-die-"+mode)
		f.mustCommit(300)
		killed := make(chan struct{})
		go func() {
			defer close(killed)
			pause(h.t, 300*time.Millisecond)
			h.signalNodes(syscall.SIGKILL, allNodes()...)
		}()
		h.t.Logf("%s: %v", mode, f.untilItFails(300))
		f.Abandon()
		<-killed
		h.restartNodes(allNodes()...)
		f.take(2 * time.Minute)
	}
}

// heldTorn: what was being written behind the last commit got as far as the block, and not as far
// as its checksums. All DataNodes take the whole chunk for damaged.
func heldTorn(h *held) {
	const length = 2*512 + 188
	f := h.open(h.fs, "torn")
	f.mustCommit(length)
	blocks := h.openReplicas(length)
	if len(blocks) != heldNodes {
		h.t.Fatalf("%d replicas of %d bytes are open", len(blocks), length)
	}
	h.signalNodes(syscall.SIGKILL, allNodes()...)
	f.Abandon()
	for _, block := range blocks {
		file, err := os.OpenFile(block, os.O_APPEND|os.O_WRONLY, 0)
		if err == nil {
			_, err = file.Write(make([]byte, 100))
			err = errors.Join(err, file.Close())
		}
		if err != nil {
			h.t.Fatal(err)
		}
	}
	h.restartNodes(allNodes()...)
	taking := f.taking(time.Now())
	short := taking
	short.Tail = nil
	if err := takeWithin(h.t, h.fs, short, 20*time.Second); err == nil || !strings.Contains(err.Error(), "1024 bytes, fewer than the 1212 committed") {
		h.t.Fatalf("without the tail: %v; the chunk is not torn", err)
	}
	f.take(time.Minute)
	if _, err := h.fs.Size(h.t.Context(), taking.Spare); !errors.Is(err, filesink.ErrNotExist) {
		h.t.Errorf("the spare file: %v", err)
	}
}

// heldNameNodeFirst: all are gone, and the NameNode is back before the DataNodes. It knows of no
// replica. A file that it was told the length of waits for them; one that it was not told of is
// emptied, which shows that this can happen.
func heldNameNodeFirst(h *held) {
	f := h.open(h.fs, "first")
	f.mustCommit(70_001)
	library := hdfsClientAt(h.t, fmt.Sprintf("127.0.0.1:%d", h.port))
	w, err := library.Create("/held/untold")
	if err != nil {
		h.t.Fatal(err)
	}
	_, err = w.Write(make([]byte, 70_001))
	if err := errors.Join(err, w.Flush()); err != nil {
		h.t.Fatal(err)
	}
	h.signalNodes(syscall.SIGKILL, allNodes()...)
	h.do("hdfs-kill-namenode")
	f.Abandon()
	started := make(chan error, 1)
	go func() { started <- h.script("hdfs-restart-namenode") }()
	eventually(h.t, time.Minute, "safe mode is left", func() error { return h.script("hdfs-dfsadmin", "-safemode", "leave") })
	if err := <-started; err != nil {
		h.t.Fatal(err)
	}
	longAgo := time.Now().Add(-time.Hour) // nobody waits for DataNodes
	if err := takeWithin(h.t, h.fs, f.taking(longAgo), 5*time.Second); !errors.Is(err, filesink.ErrWait) {
		h.t.Errorf("without DataNodes: %v, want that it waits", err)
	}
	eventually(h.t, time.Minute, "the other file is closed", func() error {
		return h.script("hdfs-debug", "recoverLease", "-path", "/held/untold", "-retries", "2")
	})
	if size, err := h.fs.Size(h.t.Context(), "/held/untold"); err != nil || size != 0 {
		h.t.Errorf("a file of whose length the NameNode was not told has %d bytes, %v; this test shows nothing", size, err)
	}
	h.restartNodes(allNodes()...)
	f.take(3 * time.Minute)
}

// heldBusyWriter: the file of a writer that knows of nothing is taken. With several replicas that
// takes seconds; with a single one HDFS may fail until the DataNode is started again, and other
// files do not wait.
func heldBusyWriter(h *held) {
	for _, replication := range []int{heldNodes, 1} {
		busy := h.open(h.view(func(c *config.HDFS) { c.Replication = replication }), fmt.Sprintf("busy-%d", replication))
		busy.mustCommit(300)
		first := busy.taking(time.Now().Add(-time.Hour))
		ended := make(chan error, 1)
		go func() { ended <- busy.untilItFails(300) }()
		pause(h.t, 300*time.Millisecond)
		began := time.Now()
		limit := time.Minute
		if replication == 1 {
			limit = 10 * time.Second
		}
		err := takeWithin(h.t, h.fs, first, limit)
		h.t.Logf("%d replicas: %v after %.1f s; the writer: %v", replication, err, time.Since(began).Seconds(), <-ended)
		if err != nil && (replication > 1 || !errors.Is(err, filesink.ErrWait)) {
			h.t.Fatal(err)
		}
		if err != nil {
			other := h.open(h.fs, "other")
			other.mustCommit(300)
			other.take(30 * time.Second)
			h.restartNodes(allNodes()...)
			if err := takeWithin(h.t, h.fs, first, 2*time.Minute); err != nil {
				h.t.Fatal(err)
			}
		}
		busy.committed = busy.committed[:300]
		busy.check(first.Alias)
	}
}

// heldSlow: a DataNode that stands still for a while slows commits down, and ends nothing.
func heldSlow(h *held) {
	f := h.open(h.fs, "slow")
	f.mustCommit(700)
	h.signalNodes(syscall.SIGSTOP, 2)
	done := make(chan error, 1)
	go func() { done <- f.commit(100_000) }()
	pause(h.t, 6*time.Second)
	select {
	case err := <-done:
		h.t.Errorf("a commit that a DataNode did not acknowledge: %v", err)
	default:
	}
	h.signalNodes(syscall.SIGCONT, 2)
	if err := <-done; err != nil {
		h.t.Errorf("a commit with a slow DataNode: %v", err)
	}
	f.mustCommit(700)
	if err := f.Close(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	f.check(f.path + ".tmp")
}

// heldLeftOut: a DataNode is dead and the NameNode does not know. One file at most notices; new
// ones go to the others. Their files should be closed soon, and are replicated when the DataNode
// is back.
func heldLeftOut(h *held) {
	h.signalNodes(syscall.SIGKILL, 3)
	began := time.Now()
	var last *heldFile
	for i := range 8 {
		last = h.open(h.fs, fmt.Sprintf("left-out-%d", i))
		last.mustCommit(4321 + i)
		if at := last.RollAt(); at.IsZero() || at.After(time.Now().Add(time.Minute)) {
			h.t.Errorf("a file with two replicas of three is to be closed at %v", at)
		} else if i == 0 && at.After(time.Now()) {
			h.t.Errorf("the first file with two replicas of three is not to be closed at once, but at %v", at)
		}
		if err := last.Close(h.t.Context()); err != nil {
			h.t.Fatal(err)
		}
	}
	h.t.Logf("8 files took %.1f s", time.Since(began).Seconds())
	if blocks := h.finalReplicas(4328); blocks != 2 {
		h.t.Errorf("the last file has %d replicas", blocks)
	}
	h.restartNodes(3)
	eventually(h.t, time.Minute, "the last file has three replicas", func() error {
		if n := h.finalReplicas(4328); n != heldNodes {
			return fmt.Errorf("it has %d", n)
		}
		return nil
	})
	eventually(h.t, time.Minute, "the DataNode is used again", func() error {
		f := h.open(h.fs, fmt.Sprintf("used-%d", time.Now().UnixNano()))
		f.mustCommit(1)
		at := f.RollAt()
		if err := f.Close(h.t.Context()); err != nil {
			return err
		}
		if !at.IsZero() {
			return errors.New("it is not")
		}
		return nil
	})
}

// heldQuota: a directory's space is used up where a block begins, inside a commit. What was
// committed before stays.
func heldQuota(h *held) {
	h.do("hdfs-dfs", "-mkdir", "-p", "/held/quota")
	h.do("hdfs-dfsadmin", "-setSpaceQuota", "4m", "/held/quota") // one block of 1 MiB, thrice, and no second
	f := h.open(h.fs, "quota/file")
	f.mustCommit(700)
	if err := f.commit(2 << 20); !errors.Is(err, filesink.ErrDenied) {
		h.t.Errorf("a commit that needs a second block: %v, want that it is denied", err)
	}
	f.take(time.Minute)
	h.do("hdfs-dfsadmin", "-clrSpaceQuota", "/held/quota")
}

// heldSnapshot: a file in a snapshot is cut by a copy of its last block, for which there is no
// room. It waits until there is.
func heldSnapshot(h *held) {
	h.do("hdfs-dfs", "-mkdir", "-p", "/held/snapshot")
	h.do("hdfs-dfsadmin", "-allowSnapshot", "/held/snapshot")
	f := h.open(h.fs, "snapshot/file")
	f.mustCommit(700)
	taking := f.taking(time.Now())
	f.mustCommit(5000)
	h.do("hdfs-dfs", "-createSnapshot", "/held/snapshot", "s")
	f.Abandon()
	h.do("hdfs-dfsadmin", "-setSpaceQuota", "100k", "/held/snapshot")
	if err := takeWithin(h.t, h.fs, taking, 15*time.Second); err == nil || !strings.Contains(err.Error(), "quota") {
		h.t.Errorf("without room: %v, want that the quota is named", err)
	}
	h.do("hdfs-dfsadmin", "-clrSpaceQuota", "/held/snapshot")
	f.committed = f.committed[:700]
	if err := takeWithin(h.t, h.fs, taking, time.Minute); err != nil {
		h.t.Fatal(err)
	}
	f.check(taking.Alias)
}

// heldThreads: DataNodes take a few blocks at a time only. Files that get one keep what they
// commit, others fail, and when the limit is gone, all goes on.
func heldThreads(h *held) {
	env := h.env
	h.env = append(slices.Clone(env), env[0]+"\ndfs.datanode.max.transfer.threads=12")
	h.restartNodes(allNodes()...)
	var open []*heldFile
	refused := 0
	for i := range 20 {
		f := h.open(h.fs, fmt.Sprintf("threads-%d", i))
		if err := f.commit(500); err != nil {
			if refused == 0 {
				h.t.Logf("file %d: %v", i, err)
			}
			refused++
			f.Abandon()
			if err := h.fs.Remove(h.t.Context(), f.path+".tmp"); err != nil {
				h.t.Error(err)
			}
			continue
		}
		open = append(open, f)
	}
	if refused == 0 || len(open) == 0 {
		h.t.Errorf("%d files are open, %d were refused", len(open), refused)
	}
	for _, f := range open {
		f.mustCommit(500)
	}
	for _, f := range open[1:] {
		if err := f.Close(h.t.Context()); err != nil {
			h.t.Fatal(err)
		}
	}
	h.env = env
	h.restartNodes(allNodes()...)
	open[0].take(2 * time.Minute)
	open[len(open)-1].check(open[len(open)-1].path + ".tmp")
	if err := fstest.WriteFile(h.t.Context(), h.fs, "/held/threads-again", []byte("x")); err != nil {
		h.t.Error(err)
	}
}
