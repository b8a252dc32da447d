package hdfsfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// answer is an exception of a NameNode.
type answer string

func (a answer) Error() string     { return string(a) }
func (a answer) Method() string    { return "m" }
func (a answer) Desc() string      { return "ERROR" }
func (a answer) Exception() string { return "org.apache.hadoop." + string(a) }
func (a answer) Message() string   { return string(a) }

// TestInsist: requests are repeated while the NameNode does not answer, or cannot say, and not
// after an answer.
func TestInsist(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		later := []error{io.ErrUnexpectedEOF, answer("ipc.StandbyException"), answer("hdfs.server.namenode.SafeModeException"), answer("hdfs.server.namenode.NotReplicatedYetException"),
			remote{"java.io.IOException", "File /a could only be written to 0 of the 1 minReplication nodes. There are 0 datanode(s) running and 0 node(s) are excluded in this operation."},
			remote{"java.io.IOException", "File /a could only be written to 0 of the 1 minReplication nodes. There are 3 datanode(s) running and 3 node(s) are excluded in this operation."}}
		for _, final := range []error{nil, answer("hdfs.server.namenode.LeaseExpiredException"), answer("hdfs.protocol.DSQuotaExceededException")} {
			n := 0
			err := insist(context.Background(), func() error {
				if n++; n <= len(later) {
					return fmt.Errorf("request: %w", later[n-1])
				}
				return final
			})
			if err != final || n != len(later)+1 {
				t.Errorf("after %d requests: %v, want %v", n, err, final)
			}
		}
		began := time.Now()
		noRoom := remote{"java.io.IOException", "File /a could only be written to 0 of the 1 minReplication nodes. There are 3 datanode(s) running and no node(s) are excluded in this operation."}
		if err := insist(context.Background(), func() error { return noRoom }); err != noRoom || time.Since(began) > placementPatience+2*time.Second {
			t.Errorf("of a HDFS without room, after %s: %v", time.Since(began), err)
		}
		began = time.Now()
		starts := func() error { // it is away longer than its patience, and its DataNodes tell their room later
			switch since := time.Since(began); {
			case since < placementPatience+5*time.Second:
				return io.ErrUnexpectedEOF
			case since < placementPatience+10*time.Second:
				return remote{"java.io.IOException", "File /a could only be written to 0 of the 1 minReplication nodes. There are 3 datanode(s) running and 1 node(s) are excluded in this operation."}
			}
			return nil
		}
		if err := insist(context.Background(), starts); err != nil {
			t.Errorf("of a NameNode that starts: %v", err)
		}
		for name, outage := range map[string]error{"NameNode is away": io.ErrUnexpectedEOF, "DataNodes are away": later[4]} {
			began = time.Now()
			again := func() error { // it chooses none, then there is an outage, and then it chooses none for a while
				switch since := time.Since(began); {
				case since < 5*time.Second, since > 25*time.Second && since < 32*time.Second:
					return noRoom
				case since < 25*time.Second:
					return outage
				}
				return nil
			}
			if err := insist(context.Background(), again); err != nil {
				t.Errorf("when the %s in between: %v", name, err)
			}
		}
		began = time.Now()
		err := insist(context.Background(), func() error { return io.ErrUnexpectedEOF })
		if took := time.Since(began); !errors.Is(err, io.ErrUnexpectedEOF) || took < operationTimeout || took > operationTimeout+2*time.Second {
			t.Errorf("given up after %s: %v", took, err)
		}
	})
}

// TestLeaseIsRenewed: three times a minute. When that fails for minutes, its files end, and new
// files get another lease.
func TestLeaseIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &FS{cluster: &cluster{heartbeat: heartbeatAfter}, log: slog.New(slog.DiscardHandler)}
		ctx, cancel := context.WithCancel(t.Context())
		l := &lease{name: "me", files: make(map[*file]struct{}), stop: cancel}
		c, x, notified := newFakeFile(t, success)
		x.lease, l.files[x], f.lease = l, struct{}{}, l
		var failing atomic.Bool
		var requests atomic.Int64
		done := make(chan struct{})
		go func() {
			defer close(done)
			f.renew(ctx, l, func() error {
				requests.Add(1)
				if failing.Load() {
					return io.ErrUnexpectedEOF
				}
				return nil
			})
		}()
		time.Sleep(time.Hour + time.Second)
		if n := requests.Load(); n != 180 {
			t.Errorf("%d requests in an hour, want 180", n)
		}
		for range 3 { // it comes back in time
			failing.Store(true)
			time.Sleep(renewPatience - 2*renewEvery)
			failing.Store(false)
			time.Sleep(2 * renewEvery)
		}
		if x.Err() != nil {
			t.Errorf("the file has ended: %v", x.Err())
		}
		failing.Store(true)
		time.Sleep(renewPatience + 2*renewEvery)
		synctest.Wait()
		select {
		case <-done:
		default:
			t.Errorf("it goes on for %s", renewPatience+2*renewEvery)
			cancel()
			<-done
		}
		if x.Err() == nil || *notified != 1 || f.lease != nil || ctx.Err() == nil {
			t.Errorf("after %s without: %v, told %d times, lease %v", renewPatience, x.Err(), *notified, f.lease)
		}
		c.finish(x)
	})
}

// TestHungUp: somebody without Kerberos is told that the NameNode may want it, however the
// connection ends; not when the NameNode has answered before.
func TestHungUp(t *testing.T) {
	for text, want := range map[string][2]bool{ // not answered yet, answered
		"no available namenodes: unexpected sequence number":                        {true, true},
		"no available namenodes: write tcp 127.0.0.1:1->127.0.0.1:2: broken pipe":   {true, false},
		"no available namenodes: read tcp 127.0.0.1:1: connection reset by peer":    {true, false},
		"no available namenodes: EOF":                                               {true, false},
		"no available namenodes: dial tcp 127.0.0.1:1: connect: connection refused": {false, false},
	} {
		if got := [2]bool{hungUp(errors.New(text), false), hungUp(errors.New(text), true)}; got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
}
