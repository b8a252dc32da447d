package rpc

import (
	"encoding/binary"
	"sync"
)

// Frames of HTTP/2 (RFC 9113) that begin, carry and end gRPC's messages.
const (
	frameHeaderBytes = 9
	frameData        = 0
	frameHeaders     = 1
	frameReset       = 3
	flagEndStream    = 1
	flagPadded       = 8

	// messageHeaderBytes are whether a message is compressed, and its length.
	messageHeaderBytes = 5
	// frameOverhead is what gRPC needs for each frame that it keeps.
	frameOverhead = 256
)

// frameScanner finds the frames in one direction of a connection. It keeps nothing but its place.
type frameScanner struct {
	skip  int // bytes in front of the first frame
	frame func(kind, flags byte, stream uint32)
	data  func(stream uint32, p []byte, last bool) // pieces of a frame's data; nil to pass over them

	header   [frameHeaderBytes]byte
	have     int // bytes of header
	left     int // bytes of the frame's payload
	padding  int // bytes of that at the end, known when padKnown
	padKnown bool
	relevant bool // a frame was found that may end a stream
}

func (s *frameScanner) scan(p []byte) {
	if n := min(s.skip, len(p)); n > 0 {
		s.skip -= n
		p = p[n:]
	}
	for len(p) > 0 {
		if s.have < frameHeaderBytes {
			n := copy(s.header[s.have:], p)
			s.have += n
			if p = p[n:]; s.have < frameHeaderBytes {
				return
			}
			s.begin()
			if s.left > 0 {
				continue
			}
			s.end()
			continue
		}
		n := min(s.left, len(p))
		s.payload(p[:n])
		p = p[n:]
		if s.left -= n; s.left == 0 {
			s.end()
		}
	}
}

func (s *frameScanner) kind() byte { return s.header[3] }

func (s *frameScanner) flags() byte { return s.header[4] }

func (s *frameScanner) stream() uint32 { return binary.BigEndian.Uint32(s.header[5:]) &^ (1 << 31) }

func (s *frameScanner) begin() {
	s.left = int(s.header[0])<<16 | int(s.header[1])<<8 | int(s.header[2])
	s.padding, s.padKnown = 0, s.kind() != frameData || s.flags()&flagPadded == 0
	if s.kind() != frameData {
		s.relevant = s.relevant || s.kind() == frameReset || s.kind() == frameHeaders
		if s.frame != nil {
			s.frame(s.kind(), s.flags(), s.stream())
		}
	}
}

// payload is a piece of a frame's payload; left does not count it yet as passed.
func (s *frameScanner) payload(p []byte) {
	if s.kind() != frameData || s.data == nil {
		return
	}
	behind := s.left - len(p)
	if !s.padKnown {
		s.padding, s.padKnown = int(p[0]), true
		p = p[1:]
	}
	if over := s.padding - behind; over > 0 { // some of p is padding
		p = p[:max(len(p)-over, 0)]
	}
	s.data(s.stream(), p, behind == 0)
}

func (s *frameScanner) end() {
	s.have = 0
	if s.kind() == frameData && s.flags()&flagEndStream != 0 && s.frame != nil {
		s.relevant = true
		s.frame(frameData, s.flags(), s.stream())
	}
}

// messages knows how much of unfinished messages a connection's streams have brought. Safe for
// concurrent use.
type messages struct {
	mu      sync.Mutex
	last    uint32 // stream that was opened last
	streams map[uint32]*message
	sum     int64 // held of all
	missing int64 // left of all
}

// message is the one that a stream is bringing.
type message struct {
	header [messageHeaderBytes]byte
	have   int    // bytes of header
	left   uint32 // bytes that are not there yet
	held   int64  // bytes that are, with what gRPC needs for them
}

// held returns the bytes of unfinished messages, and how many they still lack.
func (m *messages) held() (held, missing int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sum, m.missing
}

// received notes a frame of the client's, but data.
func (m *messages) received(kind, flags byte, stream uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case kind == frameHeaders && stream > m.last:
		m.last = stream
		if flags&flagEndStream == 0 {
			m.streams[stream] = new(message)
		}
	case kind == frameReset || flags&flagEndStream != 0 && (kind == frameHeaders || kind == frameData):
		m.endLocked(stream)
	}
}

// sent notes a frame of the server's: once it has ended a stream, it keeps nothing of it.
func (m *messages) sent(kind, flags byte, stream uint32) {
	if kind != frameReset && (kind != frameHeaders || flags&flagEndStream == 0) {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.endLocked(stream)
}

func (m *messages) endLocked(stream uint32) {
	if s := m.streams[stream]; s != nil {
		m.sum -= s.held
		m.missing -= int64(s.left)
		delete(m.streams, stream)
	}
}

// data notes a piece of a stream's data, the last one of its frame or not.
func (m *messages) data(stream uint32, p []byte, last bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.streams[stream]
	if s == nil {
		return // of a stream that has ended, which gRPC drops
	}
	before, lacked := s.held, s.left
	for len(p) > 0 {
		if s.left == 0 {
			n := copy(s.header[s.have:], p)
			s.have += n
			s.held += int64(n)
			if p = p[n:]; s.have < messageHeaderBytes {
				break
			}
			s.have = 0
			s.left = binary.BigEndian.Uint32(s.header[1:])
		}
		n := min(uint64(s.left), uint64(len(p)))
		s.left -= uint32(n)
		s.held += int64(n)
		p = p[n:]
		if s.left == 0 {
			s.held = 0
		}
	}
	if last && s.held > 0 {
		s.held += frameOverhead
	}
	m.sum += s.held - before
	m.missing += int64(s.left) - int64(lacked)
}
