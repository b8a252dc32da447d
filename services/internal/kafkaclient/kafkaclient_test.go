package kafkaclient

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// TestClusterTriesEachTime: an error is of this attempt and not of one before, so that those who
// wait for a broker, or for its certificate to be put right, find it as soon as they ask again.
func TestClusterTriesEachTime(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	accepted := make(chan struct{}, 100)
	go func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			accepted <- struct{}{}
			conn.Close()
		}
	}()
	client := New([]string{lis.Addr().String()}, "test", Access{})
	defer client.Close()
	for i := range 3 {
		if _, err := client.Cluster(t.Context()); err == nil {
			t.Fatal("a broker that hangs up was read from")
		}
		if len(accepted) <= i {
			t.Fatalf("%d connections in %d attempts", len(accepted), i+1)
		}
	}
}

// expiringConn is a connection that a broker ends with the next request, as it does when a client
// should have logged in again.
type expiringConn struct {
	net.Conn
	expired *atomic.Bool
}

func (c expiringConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.expired.Load() {
		return 0, io.EOF // kfake closes it
	}
	return n, err
}

// expiringListener accepts connections that expire together.
type expiringListener struct {
	net.Listener
	mu      sync.Mutex
	expired *atomic.Bool // of the connections from now on
}

func (l *expiringListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	l.mu.Lock()
	defer l.mu.Unlock()
	return expiringConn{conn, l.expired}, err
}

func (l *expiringListener) expire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.expired.Store(true)
	l.expired = new(atomic.Bool)
}

// TestOneBrokenConnectionTellsOfAll: a fetch on a broken connection fails, and the next one does
// not meet another of them.
func TestOneBrokenConnectionTellsOfAll(t *testing.T) {
	listener := &expiringListener{expired: new(atomic.Bool)}
	cluster := newFake(t, kfake.ListenFn(func(network, address string) (net.Listener, error) {
		lis, err := net.Listen(network, address)
		listener.Listener = lis
		return listener, err
	}))
	client := New(cluster.ListenAddrs(), "test", Access{})
	defer client.Close()
	request := Request{Topic: "t", MinBytes: 1, MaxBytes: 1000, MaxWait: 100 * time.Millisecond}
	var wg sync.WaitGroup
	for range 5 { // at the same time: a connection for each
		wg.Go(func() {
			if _, err := client.Fetch(t.Context(), request); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	listener.expire()
	if _, err := client.Fetch(t.Context(), request); err == nil {
		t.Fatal("a broken connection was fetched from")
	}
	if _, err := client.Fetch(t.Context(), request); err != nil {
		t.Error("the fetch after the one that failed:", err)
	}
}

// TestOffsetsOfALeaderThatMoved asks the broker that led the partition, and then the one that
// does.
func TestOffsetsOfALeaderThatMoved(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(2), kfake.SeedTopics(1, "t"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	client := New(cluster.ListenAddrs(), "test", Access{})
	defer client.Close()
	for name, ask := range map[string]func() error{
		"Offsets":  func() error { _, _, err := client.Offsets(t.Context(), "t", 0); return err },
		"OffsetAt": func() error { _, err := client.OffsetAt(t.Context(), "t", 0, time.Now()); return err },
	} {
		if err := ask(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := cluster.MoveTopicPartition("t", 0, 1-cluster.LeaderFor("t", 0)); err != nil {
			t.Fatal(err)
		}
		if err := ask(); err == nil {
			t.Errorf("%s: the old leader answers, so this is no test", name)
		}
		if err := ask(); err != nil {
			t.Errorf("%s does not find the new leader: %v", name, err)
		}
	}
}
