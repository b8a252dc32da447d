package hdfsfs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestPackets: whatever the commits, the DataNodes get their bytes, with a barrier behind each
// commit, and the block's last packet where it ends. In sync mode disk the barriers ask for it.
func TestPackets(t *testing.T) {
	for _, disk := range []bool{false, true} {
		c, f, _ := newFakeFile(t, success)
		f.sync = disk
		random := rand.New(rand.NewPCG(1, 2))
		var want []byte
		for range 60 {
			n := []int{1, 510, 511, 512, 513, 1000, packetBytes - 1, packetBytes + 1, 3 * packetBytes}[random.IntN(9)]
			data := make([]byte, n)
			for i := range data {
				data[i] = byte(random.Uint32())
			}
			if err := f.Commit(t.Context(), data); err != nil {
				t.Fatal(err)
			}
			want = append(want, data...)
			if tail := f.Tail(); len(tail) != len(want)%chunkBytes || !bytes.HasSuffix(want, tail) {
				t.Fatalf("after %d bytes the tail has %d, or others", len(want), len(tail))
			}
		}
		if err := f.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.finish(f)
		var got []byte
		for i, d := range c.nodes {
			got = append(got, d.got...)
			for j, p := range d.packets {
				if p.seqno != int64(j) || p.sync != (disk && p.n == 0) || p.last != (j == len(d.packets)-1) {
					t.Errorf("packet %d of block %d is %+v", j, i+1, p)
				}
				if j > 0 && p.n > 0 && d.packets[j-1].n > 0 && p.offset%chunkBytes == 0 && d.packets[j-1].offset%chunkBytes == 0 && d.packets[j-1].n < packetBytes {
					t.Errorf("no barrier between packets %+v and %+v", d.packets[j-1], p)
				}
			}
			if full := int64(len(d.got)) == f.blockSize; full != (i < len(c.nodes)-1) {
				t.Errorf("block %d has %d bytes", i+1, len(d.got))
			}
		}
		if !bytes.Equal(got, want) || len(c.nodes) < 3 {
			t.Errorf("%d bytes in %d blocks arrived, of %d", len(got), len(c.nodes), len(want))
		}
	}
}

// TestNameNodeIsTold: of each block once how long it is, before the first commit in it counts;
// the blocks follow each other by their lengths; and what is asked in a request to write.
func TestNameNodeIsTold(t *testing.T) {
	c, f, _ := newFakeFile(t, success)
	for _, n := range []int{700, 1, 1 << 20, 5, 1<<20 - 706} { // the last one fills the second block exactly
		if err := f.Commit(t.Context(), make([]byte, n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.Abandon()
	want := []string{"addBlock -", "open", "fsync 700", "addBlock 1:1048576", "open", "fsync 701", "complete 2:1048576", "release"}
	if got := c.said(); !reflect.DeepEqual(got, want) {
		t.Errorf("the NameNode was asked %q, want %q", got, want)
	}
	c.finish(f)
	for _, part := range []string{`clientName:"me"`, "stage:PIPELINE_SETUP_CREATE", "pipelineSize:2", `hostName:"b"`, "bytesPerChecksum:512", "storageType:SSD", "targetStorageTypes:DISK", `storageId:"s1"`, `targetStorageIds:"s2"`} {
		if got := strings.ReplaceAll(c.nodes[0].request, ": ", ":"); !strings.Contains(got, part) {
			t.Errorf("the request has no %s: %s", part, got)
		}
	}
	if strings.Contains(c.nodes[0].request, `hostName:"a"`) {
		t.Errorf("the first DataNode is a target: %s", c.nodes[0].request)
	}
}

// TestFullBlockIsReported: a commit that ends a block which the NameNode knows no length of
// reports it, too.
func TestFullBlockIsReported(t *testing.T) {
	c, f, _ := newFakeFile(t, success)
	for range 2 {
		if err := f.Commit(t.Context(), make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"addBlock -", "open", "fsync 1048576", "addBlock 1:1048576", "open", "fsync 1048576"}
	if got := c.said(); !reflect.DeepEqual(got, want) {
		t.Errorf("the NameNode was asked %q, want %q", got, want)
	}
	c.finish(f)
}

// TestAckedIsNotCommitted: while the barrier is not acknowledged, a commit does not count, though
// its data is.
func TestAckedIsNotCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, f, _ := newFakeFile(t, func(p fakePacket) []string {
			if p.n == 0 {
				return nil
			}
			return success(p)
		})
		done := make(chan error, 1)
		go func() { done <- f.Commit(context.Background(), make([]byte, 1000)) }()
		time.Sleep(ackPatience / 2)
		select {
		case err := <-done:
			t.Fatalf("a commit whose barrier nobody acknowledged returned: %v", err)
		default:
		}
		time.Sleep(ackPatience)
		f.tick(time.Now(), heartbeatAfter)
		if err := <-done; err == nil || !strings.Contains(err.Error(), "said nothing") {
			t.Errorf("then it returned %v", err)
		}
		if calls := fmt.Sprint(c.said()); strings.Contains(calls, "fsync") || !strings.Contains(calls, fmt.Sprint("exclude ", unknownNode)) {
			t.Errorf("the NameNode was asked %v", calls)
		}
		c.finish(f)
	})
}

// TestWhateverFailsEndsTheFile: of one ack, one request, or the connection, during a commit or
// after it. The file tells, takes nothing more, and is never completed.
func TestWhateverFailsEndsTheFile(t *testing.T) {
	third := func(text string) func(p fakePacket) []string { // what is said of the data of the second commit
		return func(p fakePacket) []string {
			if p.seqno == 2 {
				return []string{strings.ReplaceAll(text, "N", fmt.Sprint(p.seqno))}
			}
			return success(p)
		}
	}
	idle := func(text string) func(p fakePacket) []string { // and what is said a while after the first
		return func(p fakePacket) []string {
			if p.seqno == 1 {
				return append(success(p), text)
			}
			return success(p)
		}
	}
	for _, test := range []struct {
		name    string
		ack     func(p fakePacket) []string
		fail    string // a request of the second commit, or of Close
		want    string
		exclude int
	}{
		{"a DataNode refuses", third("seqno: N reply: SUCCESS reply: ERROR_CHECKSUM"), "", "DataNode 2 of the pipeline: ERROR_CHECKSUM", 1},
		{"a DataNode restarts", third("seqno: -2 reply: OOB_RESTART"), "", "DataNode 1 of the pipeline: OOB_RESTART", 0},
		{"too few replies", third("seqno: N reply: SUCCESS"), "", "1 of 2", 1},
		{"another packet", third("seqno: 7 reply: SUCCESS reply: SUCCESS"), "", "ack of packet 7, want 2", noNode},
		{"the connection ends", third("close"), "", "closed the connection", 0},
		{"the connection ends while it is idle", idle("close"), "", "closed the connection", 0},
		{"a restart while it is idle", idle("seqno: -2 reply: OOB_RESTART"), "", "OOB_RESTART", 0},
		{"a failure while it is idle", idle("seqno: -1 reply: SUCCESS reply: ERROR"), "", "DataNode 2 of the pipeline: ERROR", 1},
		{"no next block", success, "addBlock", "injected", noNode},
		{"the length is not reported", success, "fsync", "injected", noNode},
		{"not completed", success, "complete", "injected", noNode},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, f, notified := newFakeFile(t, test.ack)
				ctx := context.Background()
				if err := f.Commit(ctx, make([]byte, 100)); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if test.fail != "" {
					c.fail[test.fail] = errors.New("injected")
				}
				err := f.Commit(ctx, make([]byte, 1<<20))
				if err == nil {
					err = f.Close(ctx)
				}
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("%v, want %q", err, test.want)
				}
				if f.Err() == nil || *notified == 0 {
					t.Errorf("the file has not ended (%v), or did not tell (%d times)", f.Err(), *notified)
				}
				synctest.Wait()
				before := len(c.said())
				if f.Commit(ctx, []byte("x")) == nil || f.Close(ctx) == nil {
					t.Error("it took more")
				}
				f.Abandon()
				f.Abandon()
				synctest.Wait()
				calls := c.said()
				if after := calls[before:]; !reflect.DeepEqual(after, []string{"release"}) {
					t.Errorf("after the failure: %q", after)
				}
				if test.fail != "complete" && strings.Contains(fmt.Sprint(calls), "complete") {
					t.Errorf("it was completed: %q", calls)
				}
				if excluded := fmt.Sprint("exclude ", test.exclude); test.fail == "" && !slices.Contains(calls, excluded) {
					t.Errorf("want %s: %q", excluded, calls)
				}
				c.finish(f)
			})
		})
	}
}

// TestHeartbeats: an idle file says something now and then, and DataNodes that do not answer end
// it.
func TestHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent := false
		c, f, _ := newFakeFile(t, func(p fakePacket) []string {
			if silent && p.seqno == heartbeatSeqno {
				return nil
			}
			return success(p)
		})
		if err := f.Commit(context.Background(), make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		second := func(n int) {
			for range n {
				time.Sleep(time.Second)
				f.tick(time.Now(), heartbeatAfter)
				synctest.Wait()
			}
		}
		second(600)
		d := c.nodes[0]
		d.mu.Lock()
		n := len(d.packets) - 2
		d.mu.Unlock()
		if f.Err() != nil || n < 100 || n > 151 {
			t.Errorf("after ten minutes and %d heartbeats: %v", n, f.Err())
		}
		if err := f.Commit(context.Background(), make([]byte, 100)); err != nil {
			t.Errorf("a commit after ten minutes: %v", err)
		}
		silent = true
		second(int((ackPatience + heartbeatAfter) / time.Second))
		if f.Err() != nil {
			t.Errorf("it ended too early: %v", f.Err())
		}
		second(2)
		if f.Err() == nil {
			t.Error("it goes on without an answer")
		}
		c.finish(f)
	})
}

// TestBlocksThatAreNotTaken are given back, and others asked for, with the same previous one, a
// few times.
func TestBlocksThatAreNotTaken(t *testing.T) {
	c, f, _ := newFakeFile(t, success)
	c.fail["open"] = fmt.Errorf("set up: %w", &pipelineError{1, "ERROR"})
	if err := f.Commit(t.Context(), []byte("x")); err == nil {
		t.Error("a commit without DataNodes succeeded")
	}
	want := slices.Repeat([]string{"addBlock -", "open", "exclude 1", "abandonBlock 1:0"}, setups)
	if got := c.said(); !reflect.DeepEqual(got, want) {
		t.Errorf("the NameNode was asked %q, want %q", got, want)
	}
	c.finish(f)

	c, f, _ = newFakeFile(t, success)
	left := 2
	c.fail["open"] = &pipelineError{0, "ERROR"}
	c2 := &failsFirst{fakeCluster: c, left: &left}
	f.p = c2
	if err := errors.Join(f.Commit(t.Context(), []byte("x")), f.Close(t.Context())); err != nil {
		t.Errorf("a commit with the third block: %v", err)
	}
	c.finish(f)
}

// failsFirst has open fail a few times.
type failsFirst struct {
	*fakeCluster
	left *int
}

func (c *failsFirst) open(ctx context.Context, f *file, l *located) (*openBlock, error) {
	if *c.left--; *c.left < 0 {
		delete(c.fail, "open")
	}
	return c.fakeCluster.open(ctx, f, l)
}

// TestNonsense: what is no ack is an error.
func TestNonsense(t *testing.T) {
	for name, said := range map[string][]byte{
		"no ack": nil, "half of one": {5, 1}, "a huge one": {255, 255, 255, 255, 15}, "none at all": {2, 255, 255}, "a number that does not end": bytes.Repeat([]byte{255}, 11), "an empty one": {0},
	} {
		if _, err := readAck(bufio.NewReader(bytes.NewReader(said)), 2); err == nil {
			t.Errorf("%s is taken for an ack", name)
		}
	}
}
