package hdfsfs

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spillwayio/spillway/services/delivery/filesink"
)

// pretended is a cluster of DataNodes, by number, as recoveries see it.
type pretended struct {
	recoveries
	state map[string]liveness
	beats []uint64
}

func newPretended(n int) *pretended {
	p := &pretended{state: make(map[string]liveness), beats: make([]uint64, n)}
	p.recoveries = recoveries{staleAfter: 30 * time.Second, livenessOf: func(addr string) liveness { return p.state[addr] }}
	for i := range n {
		p.set(i, living)
		p.beats[i] = uint64(1_000_000 + i) // the last one's is the newest
	}
	return p
}

func (p *pretended) set(node int, state liveness) { p.state[fmt.Sprint(node)] = state }

func (p *pretended) block(nodes ...int) *located {
	l := &located{m: message("LocatedBlockProto")}
	for _, i := range nodes {
		l.nodes = append(l.nodes, dataNode{uuid: fmt.Sprint(i), addr: fmt.Sprint(i), beat: p.beats[i]})
	}
	return l
}

// ask is whether recovery of a file with this block is asked for.
func (p *pretended) ask(alias string, gone time.Duration, nodes ...int) bool {
	err := p.mayAsk(alias, p.block(nodes...), gone, func(int) bool { return false })
	if err != nil && !errors.Is(err, filesink.ErrWait) {
		panic(err)
	}
	return err == nil
}

// asked is how many of n files are.
func (p *pretended) asked(what string, n int, gone time.Duration, nodes ...int) int {
	asked := 0
	for i := range n {
		if p.ask(fmt.Sprint(what, i), gone, nodes...) {
			asked++
		}
	}
	return asked
}

// TestFewBlocksAHeartbeat: a primary hears of so many blocks with a heartbeat, and of the next
// ones with the next.
func TestFewBlocksAHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPretended(3)
		if n := p.asked("a", 200, 3*time.Second, 0, 1, 2); n != perHeartbeat {
			t.Errorf("%d blocks are asked for with one heartbeat, want %d", n, perHeartbeat)
		}
		p.beats[0] = p.beats[2] + 1
		if n := p.asked("b", 200, 3*time.Second, 0, 1, 2); n != perHeartbeat {
			t.Errorf("%d blocks are asked for when another DataNode is the primary, want %d", n, perHeartbeat)
		}
		if n := p.asked("a", perHeartbeat, 3*time.Second, 0, 1, 2); n != 0 {
			t.Errorf("%d of those that were asked for are asked for again at once", n)
		}
		p.beats[2] = p.beats[0] + 1
		if n := p.asked("c", 10, 3*time.Second, 0, 1, 2); n != 10 {
			t.Errorf("%d of 10 blocks are asked for after the next heartbeat", n)
		}
		time.Sleep(askAgain)
		p.beats[2]++
		if !p.ask("a0", 3*time.Second, 0, 1, 2) {
			t.Error("a file is not asked for again")
		}
	})
}

// TestDeadDataNodes: a block of which a DataNode is dead is recovered alone, as long as that is
// faster than to wait until the NameNode leaves it out; then all are.
func TestDeadDataNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPretended(3)
		p.set(0, refused)
		if n := p.asked("a", 100, 3*time.Second, 0, 1, 2); n != 1 {
			t.Errorf("%d blocks with a dead DataNode are asked for at a time", n)
		}
		p.beats[1] = p.beats[2] + 1 // it is the primary now
		if n := p.asked("b", 100, 3*time.Second, 0, 1, 2); n != 1 {
			t.Errorf("%d blocks with a dead DataNode are asked for of the other primary", n)
		}
		p.beats[2] = p.beats[1] + 1000
		if n := p.asked("c", 5, 3*time.Second, 1, 2); n != 5 {
			t.Errorf("%d of 5 blocks without it are asked for meanwhile", n)
		}
		if p.ask("d", 3*time.Second, 0, 1, 2) {
			t.Error("a second one is asked for while the DataNode tries to reach the dead one")
		}
		time.Sleep(slowFor)
		if !p.ask("d", 14*time.Second, 0, 1, 2) {
			t.Error("none is asked for when it should have given that up")
		}
		time.Sleep(slowFor)
		p.beats[1], p.beats[2] = p.beats[0]+25_000, p.beats[0]+25_001
		if p.ask("e", 25*time.Second, 0, 1, 2) {
			t.Error("one is asked for right before the NameNode leaves the dead one out")
		}
		p.beats[1], p.beats[2] = p.beats[0]+30_001, p.beats[0]+30_002
		if n := p.asked("f", 60, 28*time.Second, 0, 1, 2); n != 60 {
			t.Errorf("%d of 60 blocks are asked for when the NameNode leaves the dead one out", n)
		}
		time.Sleep(seenFor)
		p.set(1, refused)
		p.beats[2]++
		if n := p.asked("g", 60, time.Hour, 0, 1, 2); n != 1 {
			t.Errorf("%d blocks are asked for when a single DataNode lives, and the NameNode leaves none out", n)
		}
	})
}

// TestWhoseRecoveryWaits: nothing is asked for of a dead primary, with a silent DataNode, or with
// a single one that is not seen to have all bytes.
func TestWhoseRecoveryWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPretended(3)
		p.set(2, refused)
		if p.ask("primary", 3*time.Second, 0, 1, 2) {
			t.Error("the primary is dead")
		}
		p.beats[1] = p.beats[2] + 1
		if !p.ask("primary", 3*time.Second, 0, 1, 2) {
			t.Error("another one is the primary now")
		}
		p = newPretended(3)
		p.set(0, silent)
		if p.ask("silent", 29*time.Second, 0, 1, 2) || !p.ask("silent", 30*time.Second, 0, 1, 2) {
			t.Error("a recovery with a silent DataNode is asked for before its time, or never")
		}
		p = newPretended(2)
		p.set(1, refused)
		p.beats[0] = p.beats[1] + 1
		if p.ask("single", deadPatience-time.Second, 0, 1) {
			t.Error("a single DataNode lives that is not seen to have the bytes")
		}
		if err := p.mayAsk("single", p.block(0, 1), time.Minute, func(node int) bool { return node == 0 }); err != nil {
			t.Errorf("a single DataNode lives, and has the bytes: %v", err)
		}
		if p.ask("none", deadPatience-time.Second, 1) {
			t.Error("no DataNode lives")
		}
	})
}

// TestCutsAreLetAlone: while HDFS cuts a file, nothing is asked for: a second recovery would leave
// replicas of different lengths behind.
func TestCutsAreLetAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPretended(3)
		p.cut("a", time.Now())
		for range int(cutPatience / time.Second) {
			if p.ask("a", time.Hour, 0, 1, 2) {
				t.Fatal("it is asked for while it is cut")
			}
			p.cut("a", time.Now()) // seen again
			time.Sleep(time.Second)
		}
		if !p.ask("a", time.Hour, 0, 1, 2) {
			t.Error("a cut that got lost is never asked for")
		}
		p.ended("a")
		if !p.ask("a", time.Hour, 0, 1, 2) {
			t.Error("it ended, and is asked for no more")
		}
	})
}
