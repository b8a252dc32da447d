package e2e

import (
	"fmt"
	"syscall"
	"time"

	"github.com/spillwayio/spillway/services/delivery/filesink"
)

// heldUpgrade: each DataNode in turn is shut down for an upgrade in the middle of commits, which
// it tells its writers, and is back seconds later with what it had.
func heldUpgrade(h *held) {
	for _, node := range allNodes() {
		f := h.open(h.fs, fmt.Sprintf("upgrade-%d", node))
		f.mustCommit(301)
		ended := make(chan error, 1)
		go func() { ended <- f.untilItFails(301) }()
		pause(h.t, 300*time.Millisecond)
		h.do("hdfs-dfsadmin", "-shutdownDatanode", fmt.Sprintf("127.0.0.1:%d", h.port+11060+100*node), "upgrade")
		h.t.Logf("DataNode %d: %v", node, <-ended)
		f.Abandon()
		h.restartNodes(node)
		f.take(time.Minute)
	}
}

// heldIdleLong: nothing is written for longer than any of HDFS's timeouts.
func heldIdleLong(h *held) {
	f := h.open(h.fs, "idle-long")
	f.mustCommit(700)
	pause(h.t, 150*time.Second)
	f.mustCommit(700)
	if err := f.Close(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	f.check(f.path + ".tmp")
}

// heldSlowCut: DataNodes stand still while they cut files. To ask HDFS again meanwhile would
// leave replicas of different lengths behind, for good.
func heldSlowCut(h *held) {
	const n = 24
	took := make(chan error, n)
	var files []*heldFile
	var takings []filesink.Taking
	for i := range n {
		f := h.open(h.fs, fmt.Sprintf("slow-cut-%d", i))
		f.mustCommit(1000)
		takings = append(takings, f.taking(time.Now()))
		f.mustCommit(700)
		f.committed = f.committed[:1000]
		files = append(files, f)
	}
	for i, f := range files {
		f.Abandon()
		takings[i].Since = time.Now()
		go func() { took <- takeWithin(h.t, h.fs, takings[i], 2*time.Minute) }()
	}
	for range 4 { // the cuts begin some seconds after the takeover
		pause(h.t, 1200*time.Millisecond)
		h.signalNodes(syscall.SIGSTOP, 1, 2)
		pause(h.t, 1500*time.Millisecond)
		h.signalNodes(syscall.SIGCONT, 1, 2)
	}
	for range n {
		if err := <-took; err != nil {
			h.t.Error(err)
		}
	}
	files[0].check(takings[0].Alias)
	files[n-1].check(takings[n-1].Alias)
}
