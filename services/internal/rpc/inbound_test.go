package rpc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// attacker opens streams on a connection of its own and brings a part of a message on each.
type attacker struct {
	conn   net.Conn
	framer *http2.Framer

	mu      sync.Mutex
	changed *sync.Cond
	window  map[uint32]int // by stream; 0 is the connection's
	initial int
	err     error
}

func attack(address string) (*attacker, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	a := &attacker{conn: conn, framer: http2.NewFramer(conn, conn), window: map[uint32]int{0: 65535}, initial: 65535}
	a.changed = sync.NewCond(&a.mu)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return nil, err
	}
	if err := a.framer.WriteSettings(); err != nil {
		return nil, err
	}
	go a.read()
	return a, nil
}

// read follows the windows until the connection ends.
func (a *attacker) read() {
	for {
		f, err := a.framer.ReadFrame()
		a.mu.Lock()
		switch f := f.(type) {
		case *http2.WindowUpdateFrame:
			a.window[f.StreamID] += int(f.Increment)
		case *http2.SettingsFrame:
			if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
				a.initial = int(v)
			}
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			err = errors.New("refused")
		}
		if err != nil {
			a.err = err
		}
		a.changed.Broadcast()
		a.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (a *attacker) open(stream uint32) error {
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", "/spillway.v1.BufferService/Append"}, {":authority", "x"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		if err := e.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			return err
		}
	}
	a.mu.Lock()
	a.window[stream] += a.initial
	a.mu.Unlock()
	return a.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true})
}

// bring sends n bytes of a message that is said to have size bytes, as the windows allow.
func (a *attacker) bring(stream uint32, size, n int) error {
	data := make([]byte, 16<<10)
	binary.BigEndian.PutUint32(data[1:], uint32(size))
	for sent := 0; sent < n; {
		a.mu.Lock()
		for a.err == nil && (a.window[0] <= 0 || a.window[stream] <= 0) {
			a.changed.Wait()
		}
		part := min(len(data), n-sent, a.window[0], a.window[stream])
		a.window[0] -= part
		a.window[stream] -= part
		err := a.err
		a.mu.Unlock()
		if err != nil {
			return err
		}
		if err := a.framer.WriteData(stream, false, data[:part]); err != nil {
			return err
		}
		if sent == 0 {
			data = make([]byte, 16<<10)
		}
		sent += part
	}
	return nil
}

// TestHalfSentMessages has 200 streams each bring half of a message of 30 MB, and stop: with many
// connections, and with few. What the server holds stays bounded, and an honest client gets its
// messages through.
func TestHalfSentMessages(t *testing.T) {
	const streams, size = 200, 30_000_000
	for name, connections := range map[string]int{"on 200 connections": 200, "on 2 connections": 2} {
		t.Run(name, func(t *testing.T) {
			f := start(t)
			f.echo.ended = make(chan error, 2*streams)
			honest := f.append(t)
			var slowest time.Duration
			again := 0
			// A client that did not get to run for seconds is cut as if it were none of the
			// honest, and comes again.
			exchange := func(bytes int) {
				t.Helper()
				batch := &spillwayv1.Batch{Payload: make([]byte, bytes)}
				for begin := time.Now(); ; again++ {
					err := honest.Send(&spillwayv1.AppendRequest{Message: &spillwayv1.AppendRequest_Batch{Batch: batch}})
					m, recvErr := honest.Recv()
					if err == nil && recvErr == nil && m.GetSafe().GetOffset() == int64(bytes) {
						slowest = max(slowest, time.Since(begin))
						return
					}
					if time.Since(begin) > 2*time.Minute {
						t.Fatalf("an honest client is answered %v, %v, %v", m, err, recvErr)
					}
					honest = f.append(t)
				}
			}
			exchange(1 << 20)

			var wg sync.WaitGroup
			attackers := make(chan *attacker, connections)
			for range connections {
				wg.Go(func() {
					a, err := attack(f.address)
					if err != nil {
						return // refused
					}
					attackers <- a
					for i := range streams / connections {
						if a.open(uint32(2*i+1)) != nil {
							return
						}
					}
					for i := range streams / connections {
						if a.bring(uint32(2*i+1), size, size/2) != nil {
							return // cut
						}
					}
				})
			}
			done := make(chan struct{})
			go func() {
				wg.Wait()
				close(done)
			}()
			in := f.server.inbound
			var most int64
			var heap uint64
			watch := func() {
				in.mu.Lock()
				most = max(most, in.held)
				in.mu.Unlock()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				heap = max(heap, m.HeapAlloc)
			}
			for n := 0; n < 20; n++ {
				watch()
				if heap > 512<<20 {
					t.Fatalf("%d MB on the heap", heap>>20)
				}
				exchange(1 << 20)
				select {
				case <-done:
				case <-time.After(20 * time.Millisecond):
				}
			}
			watch()
			// Each connection may be read from once when there is room for one.
			if bound := int64(maxUnfinished) + int64(connections+1)*(freeUnfinished+2*ioBytes); most > bound {
				t.Errorf("unfinished messages had %d MB, want at most %d", most>>20, bound>>20)
			}
			t.Logf("at most %d MB of unfinished messages, %d MB on the heap; an honest message takes up to %s, and %d were sent again", most>>20, heap>>20, slowest, again)
			close(attackers)
			for a := range attackers {
				_ = a.conn.Close()
			}
			// Those that wait for a window hear of the end.
			<-done
			exchange(20 << 20)
			if err := honest.CloseSend(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// frameBytesOf is a frame of HTTP/2.
func frameBytesOf(kind, flags byte, stream uint32, payload []byte) []byte {
	b := []byte{byte(len(payload) >> 16), byte(len(payload) >> 8), byte(len(payload)), kind, flags}
	return append(binary.BigEndian.AppendUint32(b, stream), payload...)
}

// grpcMessage is the first n bytes of a message of size bytes.
func grpcMessage(size, n int) []byte {
	b := binary.BigEndian.AppendUint32([]byte{0}, uint32(size))
	return append(b, make([]byte, size)...)[:n]
}

func newScanner(m *messages) *frameScanner {
	m.streams = make(map[uint32]*message)
	return &frameScanner{frame: m.received, data: m.data}
}

func TestMessagesHeld(t *testing.T) {
	const stream = 1
	open := frameBytesOf(frameHeaders, 4, stream, []byte("block"))
	padded := append([]byte{3}, append(grpcMessage(100, 50), 0, 0, 0)...)
	for name, test := range map[string]struct {
		frames [][]byte
		want   int64
	}{
		"nothing":                      {[][]byte{open}, 0},
		"a part of the length":         {[][]byte{open, frameBytesOf(frameData, 0, stream, grpcMessage(10, 3))}, 3 + frameOverhead},
		"half a message":               {[][]byte{open, frameBytesOf(frameData, 0, stream, grpcMessage(100, 55))}, 55 + frameOverhead},
		"half in two frames":           {[][]byte{open, frameBytesOf(frameData, 0, stream, grpcMessage(100, 20)), frameBytesOf(frameData, 0, stream, make([]byte, 30))}, 50 + 2*frameOverhead},
		"all of it":                    {[][]byte{open, frameBytesOf(frameData, 0, stream, grpcMessage(100, 105))}, 0},
		"an empty one":                 {[][]byte{open, frameBytesOf(frameData, 0, stream, grpcMessage(0, 5))}, 0},
		"one, and half of another":     {[][]byte{open, frameBytesOf(frameData, 0, stream, append(grpcMessage(10, 15), grpcMessage(100, 45)...))}, 45 + frameOverhead},
		"padded":                       {[][]byte{open, frameBytesOf(frameData, flagPadded, stream, padded)}, 50 + frameOverhead},
		"two streams":                  {[][]byte{open, frameBytesOf(frameHeaders, 4, 3, nil), frameBytesOf(frameData, 0, 3, grpcMessage(100, 10)), frameBytesOf(frameData, 0, stream, grpcMessage(100, 20))}, 30 + 2*frameOverhead},
		"the end of the stream":        {[][]byte{open, frameBytesOf(frameData, flagEndStream, stream, grpcMessage(100, 20))}, 0},
		"an empty frame ends it":       {[][]byte{open, frameBytesOf(frameData, 0, stream, grpcMessage(100, 20)), frameBytesOf(frameData, flagEndStream, stream, nil)}, 0},
		"a reset":                      {[][]byte{open, frameBytesOf(frameData, 0, stream, grpcMessage(100, 20)), frameBytesOf(frameReset, 0, stream, make([]byte, 4))}, 0},
		"of a stream that is not open": {[][]byte{open, frameBytesOf(frameData, 0, 5, grpcMessage(100, 20))}, 0},
		"other frames":                 {[][]byte{open, frameBytesOf(6, 0, 0, make([]byte, 8)), frameBytesOf(frameData, 0, stream, grpcMessage(100, 20)), frameBytesOf(8, 0, stream, make([]byte, 4))}, 20 + frameOverhead},
	} {
		for range 20 { // however it is split
			var m messages
			s := newScanner(&m)
			all := bytes.Join(test.frames, nil)
			for len(all) > 0 {
				n := 1 + rand.IntN(len(all))
				s.scan(all[:n])
				all = all[n:]
			}
			if got, _ := m.held(); got != test.want {
				t.Errorf("%s: %d bytes are held, want %d", name, got, test.want)
				break
			}
		}
	}
	var m messages
	s := newScanner(&m)
	s.scan(append(open, frameBytesOf(frameData, 0, stream, grpcMessage(100, 20))...))
	answer := &frameScanner{frame: m.sent}
	answer.scan(frameBytesOf(frameHeaders, 4, stream, nil))
	if held, missing := m.held(); held == 0 || missing != 85 {
		t.Error("the beginning of an answer ends a stream")
	}
	answer.scan(frameBytesOf(frameHeaders, 4|flagEndStream, stream, nil))
	if held, missing := m.held(); held != 0 || missing != 0 || !answer.relevant {
		t.Errorf("the end of an answer leaves %d bytes, and %d are missing", held, missing)
	}
}

// FuzzFrames reads any bytes in any pieces: the same is held however they are split, and never
// less than nothing.
func FuzzFrames(f *testing.F) {
	f.Add(append(frameBytesOf(frameHeaders, 4, 1, nil), frameBytesOf(frameData, 0, 1, grpcMessage(100, 20))...), uint16(3))
	f.Add(append(frameBytesOf(frameHeaders, 4, 1, nil), frameBytesOf(frameData, flagPadded, 1, []byte{200, 1})...), uint16(1))
	f.Add(frameBytesOf(frameData, flagPadded|flagEndStream, 1, nil), uint16(1))
	f.Fuzz(func(t *testing.T, b []byte, piece uint16) {
		var whole, split messages
		newScanner(&whole).scan(b)
		s := newScanner(&split)
		for n := int(piece%64) + 1; len(b) > 0; {
			n = min(n, len(b))
			s.scan(b[:n])
			b = b[n:]
		}
		held, missing := whole.held()
		if splitHeld, splitMissing := split.held(); held != splitHeld || missing != splitMissing || held < 0 || missing < 0 {
			t.Errorf("%d bytes are held and %d missing; %d and %d when it is split", held, missing, splitHeld, splitMissing)
		}
	})
}
