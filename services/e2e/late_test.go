package e2e

import (
	"io"
	"net"
	"sync"
	"testing"
)

// latePeer is an address at which nobody listens before it is opened; then connections go on to
// target.
type latePeer struct{ addr, target string }

func newLatePeer(t testing.TB, target string) latePeer {
	t.Helper()
	return latePeer{addr: freeAddr(t), target: target}
}

// open begins to listen; the end of the test ends it.
func (p latePeer) open(t testing.TB) {
	t.Helper()
	lis, err := net.Listen("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := []io.Closer{lis}
	t.Cleanup(func() {
		mu.Lock()
		for _, c := range conns {
			_ = c.Close() // most of them are closed already
		}
		mu.Unlock()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			in, err := lis.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", p.target)
			if err != nil {
				_ = in.Close()
				continue
			}
			mu.Lock()
			conns = append(conns, in, out)
			mu.Unlock()
			forward := func(to, from net.Conn) {
				_, _ = io.Copy(to, from) // whatever ends it, both ends learn of it
				_ = to.Close()
				_ = from.Close()
			}
			wg.Go(func() { forward(in, out) })
			wg.Go(func() { forward(out, in) })
		}
	})
}
