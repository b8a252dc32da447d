package hdfsfs

import (
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
)

const (
	// excludeFor is for how long a DataNode that failed gets no new block, unless it is seen to
	// live before.
	excludeFor = 10 * time.Minute
	// lookEvery is how often it is looked after.
	lookEvery = 15 * time.Second
	// lookPatience is how long a DataNode may take to answer.
	lookPatience = 3 * time.Second
)

// exclusions are the DataNodes that failed lately. The NameNode counts a dead one as alive for up
// to ten minutes, and names it again for new blocks.
type exclusions struct {
	mu    sync.Mutex
	nodes map[string]*excludedNode // by uuid
	wg    sync.WaitGroup
}

type excludedNode struct {
	dataNode
	until, look time.Time
}

// exclude implements protocol. Where it is not known whose fault it is, it asks the DataNodes.
func (f *FS) exclude(l *located, node int) {
	switch {
	case node >= 0 && node < len(l.nodes):
		f.excluded.add(l.nodes[node])
	case node == unknownNode:
		var looks sync.WaitGroup
		for _, n := range l.nodes {
			looks.Go(func() {
				if !answers(n.addr) {
					f.excluded.add(n)
				}
			})
		}
		looks.Wait()
	}
}

func (e *exclusions) add(n dataNode) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	e.nodes[n.uuid] = &excludedNode{n, now.Add(excludeFor), now.Add(lookEvery)}
}

// list is whom the NameNode is not to name.
func (e *exclusions) list() []protoreflect.Message {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	var infos []protoreflect.Message
	for uuid, n := range e.nodes {
		if now.After(n.until) {
			delete(e.nodes, uuid)
			continue
		}
		infos = append(infos, n.info)
		if now.After(n.look) {
			n.look = now.Add(lookEvery)
			e.wg.Go(func() {
				if answers(n.addr) {
					e.mu.Lock()
					defer e.mu.Unlock()
					if e.nodes[uuid] == n {
						delete(e.nodes, uuid)
					}
				}
			})
		}
	}
	return infos
}

func (e *exclusions) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	clear(e.nodes)
}

// answers reports whether a DataNode is at work.
func answers(addr string) bool { return livenessOf(addr) == living }

// liveness is how a DataNode is seen.
type liveness int

const (
	silent  liveness = iota // it is stopped, or its machine is away
	refused                 // its machine works, and it does not
	living
)

// livenessOf connects to a DataNode. One that is stopped accepts connections, too, but does not
// close one on which it gets nonsense.
func livenessOf(addr string) liveness {
	conn, err := net.DialTimeout("tcp", addr, lookPatience)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return refused
	}
	if err != nil {
		return silent
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(lookPatience))
	if _, err := conn.Write([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}); err != nil {
		return living
	}
	_, err = conn.Read(make([]byte, 1))
	if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
		return silent
	}
	return living
}
