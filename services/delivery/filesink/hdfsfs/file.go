package hdfsfs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/spillwayio/spillway/services/internal/failpoint"
)

// setups is how often a block is asked for until its DataNodes take it.
const setups = 4

// protocol is what a file asks of the cluster. Requests are repeated, unchanged, until they are
// answered.
type protocol interface {
	addBlock(ctx context.Context, f *file, previous protoreflect.Message) (*located, error)
	abandonBlock(ctx context.Context, f *file, block protoreflect.Message) error
	fsync(ctx context.Context, f *file, lastBlock int64) error
	complete(ctx context.Context, f *file, last protoreflect.Message) error
	// open sets the block up on its DataNodes.
	open(ctx context.Context, f *file, l *located) (*openBlock, error)
	// exclude has no new block be written to a DataNode for a while; it may find out to which.
	exclude(l *located, node int)
	// release is told when a file needs its lease no more.
	release(f *file)
}

// file is a filesink.File:
//
//	create ─▶ open ──Commit──▶ open ──Close──▶ closed
//	             │ a DataNode, the NameNode or the caller fails
//	             └──▶ ended ──Abandon──▶ left to Take
//
// Its blocks follow each other: addBlock with the one before and its length, set up, packets, the
// last packet.
type file struct {
	p           protocol
	path        string
	lease       *lease
	holder      string // its client name
	id          uint64
	blockSize   int64 // a multiple of chunkBytes
	replication int
	sync        bool
	notify      func()

	// Of Commit and Close.
	block    *openBlock // nil before the first one, and after a full one
	at       *located   // the last block; nil before the first
	length   int64      // of the last block
	reported bool       // the NameNode knows of a length of it
	tail     []byte     // what the file has behind its last whole chunk

	mu      sync.Mutex
	current *openBlock // block, for those who end it
	rollAt  time.Time
	err     error // why it ended
	gone    bool  // closed or abandoned
}

// Commit implements filesink.File.
func (f *file) Commit(ctx context.Context, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	if err := f.Err(); err != nil {
		return err
	}
	rest := data
	for len(rest) > 0 {
		n, err := f.append(ctx, rest)
		if err != nil {
			return f.fail(err)
		}
		rest = rest[n:]
	}
	failpoint.At(failpoint.FSWritten)
	if !f.reported && f.length > 0 {
		// Until it knows of a length, a NameNode that starts anew may take the block for an empty
		// one, and remove it.
		if err := f.p.fsync(ctx, f, f.length); err != nil {
			return f.fail(fmt.Errorf("report the length of %v: %w", f.at, err))
		}
		f.reported = true
	}
	if len(data) > 0 {
		end := f.length % chunkBytes
		f.tail = append(f.tail, data[max(0, len(data)-chunkBytes):]...)
		f.tail = append(f.tail[:0], f.tail[len(f.tail)-int(end):]...)
	}
	return nil
}

// append writes what fits into the block, and returns how much that is.
func (f *file) append(ctx context.Context, data []byte) (int, error) {
	if f.block == nil {
		if err := f.nextBlock(ctx); err != nil {
			return 0, err
		}
	}
	data = data[:min(int64(len(data)), f.blockSize-f.length)]
	full := f.length+int64(len(data)) == f.blockSize
	if err := f.block.write(ctx, data, full); err != nil {
		return 0, err
	}
	f.length += int64(len(data))
	if full {
		f.finishBlock()
	}
	return len(data), nil
}

// nextBlock begins a block. One that its DataNodes do not take is given back, and another one
// asked for.
func (f *file) nextBlock(ctx context.Context) error {
	var previous protoreflect.Message
	if f.at != nil {
		previous = f.at.block(f.length)
	}
	for try := 1; ; try++ {
		l, err := f.p.addBlock(ctx, f, previous)
		if err != nil {
			return err
		}
		b, err := f.p.open(ctx, f, l)
		if err == nil {
			f.at, f.block, f.length, f.reported = l, b, 0, false
			return f.begun(b)
		}
		var refused *pipelineError
		switch {
		case ctx.Err() != nil:
			return err
		case errors.As(err, &refused):
			f.p.exclude(l, refused.node)
		case errors.Is(err, context.DeadlineExceeded):
			f.p.exclude(l, unknownNode)
		default:
			f.p.exclude(l, 0)
		}
		if abandoning := f.p.abandonBlock(ctx, f, l.block(0)); abandoning != nil || try == setups {
			return errors.Join(err, abandoning)
		}
	}
}

// begun makes b the block that whoever ends the file ends.
func (f *file) begun(b *openBlock) error {
	f.mu.Lock()
	f.current = b
	err := f.err
	f.mu.Unlock()
	if err != nil {
		b.end(err, noNode)
	}
	return err
}

// finishBlock takes leave of a block whose last packet is acknowledged.
func (f *file) finishBlock() {
	f.block.end(errComplete, noNode)
	f.block = nil
	f.mu.Lock()
	f.current = nil
	f.mu.Unlock()
}

var errComplete = errors.New("the block is complete")

// Close implements filesink.File.
func (f *file) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	if err := f.Err(); err != nil {
		return err
	}
	if f.block != nil {
		if err := f.block.write(ctx, nil, true); err != nil {
			return f.fail(err)
		}
		f.finishBlock()
	}
	var last protoreflect.Message
	if f.at != nil {
		last = f.at.block(f.length)
	}
	if err := f.p.complete(ctx, f, last); err != nil {
		return f.fail(fmt.Errorf("close: %w", err))
	}
	failpoint.At(failpoint.FSClosed)
	f.leave()
	return nil
}

// Abandon implements filesink.File.
func (f *file) Abandon() {
	f.end(errAbandoned)
	f.leave()
}

var errAbandoned = errors.New("it was given up")

// leave gives the lease back, once.
func (f *file) leave() {
	f.mu.Lock()
	gone := f.gone
	f.gone = true
	f.mu.Unlock()
	if !gone {
		f.p.release(f)
	}
}

// Tail implements filesink.File.
func (f *file) Tail() []byte { return f.tail }

// Err implements filesink.File.
func (f *file) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// RollAt implements filesink.File.
func (f *file) RollAt() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rollAt
}

// fail ends the file for err and returns why it ended.
func (f *file) fail(err error) error {
	f.end(err)
	return f.Err()
}

// end has the file take nothing more, and cuts its connection.
func (f *file) end(err error) {
	f.mu.Lock()
	if f.err == nil {
		f.err = fmt.Errorf("write %s: %w", f.path, err)
	}
	b, gone := f.current, f.gone
	f.mu.Unlock()
	if b != nil {
		b.end(err, noNode)
	}
	if !gone {
		f.notify()
	}
}

// tick keeps the open block alive, if there is one.
func (f *file) tick(now time.Time, heartbeat time.Duration) {
	f.mu.Lock()
	b := f.current
	f.mu.Unlock()
	if b != nil {
		b.tick(now, heartbeat)
	}
}

// rollSoon has the file be closed with the next commit after at.
func (f *file) rollSoon(at time.Time) {
	f.mu.Lock()
	f.rollAt = at
	f.mu.Unlock()
	f.notify()
}
