package listen

import (
	"net"
	"testing"
	"time"
)

// TestLimit: the oldest unsettled connection makes room, and settled ones do not count.
func TestLimit(t *testing.T) {
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	lis := Limit(raw, 2)
	var clients, servers []net.Conn
	more := func() {
		t.Helper()
		client, err := net.Dial("tcp", raw.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		server, err := lis.Accept()
		if err != nil {
			t.Fatal(err)
		}
		clients, servers = append(clients, client), append(servers, server)
	}
	isOpen := func(i int) bool {
		t.Helper()
		if _, err := servers[i].Write([]byte("x")); err != nil {
			return false
		}
		_ = clients[i].SetReadDeadline(time.Now().Add(5 * time.Second))
		_, err := clients[i].Read(make([]byte, 1))
		return err == nil
	}
	more()
	servers[0].(*Conn).Settle()
	more()
	more()
	for i := range 3 {
		if !isOpen(i) {
			t.Errorf("connection %d of 2 that are not settled was closed", i)
		}
	}
	more()
	if isOpen(1) || !isOpen(0) || !isOpen(2) || !isOpen(3) {
		t.Error("not the oldest one that is not settled was closed")
	}
	if err := servers[2].Close(); err != nil {
		t.Fatal(err)
	}
	more()
	if !isOpen(3) || !isOpen(4) {
		t.Error("a connection that was closed still counts")
	}
	for _, c := range append(clients, servers...) {
		_ = c.Close()
	}
}
