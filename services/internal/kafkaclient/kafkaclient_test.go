package kafkaclient

import (
	"net"
	"testing"
)

// TestClusterTriesEachTime: an error is of this attempt and not of one before, so that those who wait for a broker, or for
// its certificate to be put right, find it as soon as they ask again.
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
