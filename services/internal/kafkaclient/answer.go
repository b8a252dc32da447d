package kafkaclient

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
)

const (
	// maxSetBytes bounds the records of one partition in an answer that are read into memory. A
	// broker exceeds what it was asked for by one batch at most, and Kafka takes none above
	// socket.request.max.bytes, 100 MiB.
	maxSetBytes = 128 << 20
	// maxAborted bounds the aborted transactions that an answer may name for one partition.
	maxAborted = 1 << 20
	// growBytes is how much memory a length is trusted with before its bytes have come.
	growBytes = 1 << 20
	// maxStringBytes bounds the name of a topic.
	maxStringBytes = 249
)

// Fetched is a partition's part of the answer to a fetch. It is used by one goroutine, once: Each
// and EachBatch release its memory.
type Fetched struct {
	// First is the first offset that the partition has.
	First int64
	// HighWatermark is Kafka's end offset: it comes after the last record, also of transactions
	// that are not decided.
	HighWatermark int64
	// Stable is the offset after the last record that may be read: what comes after it waits for
	// the decision of a transaction. With Request.Uncommitted it is HighWatermark.
	Stable int64
	// Next is the offset after the last whole batch that was fetched; the requested one when
	// there is none.
	Next int64
	// Unpack is called before a batch is decompressed, with the memory that this takes. It may
	// wait, and must be set before Each. Nil takes memory without asking.
	Unpack func(bytes int64) (release func(), err error)

	position int64
	set      []byte // record batches; the last one may be cut
	aborted  []abortedTransaction
	tooLarge *tooLarge

	release func()
	reader  batchReader
}

// tooLarge is a batch that is larger than what is read into memory.
type tooLarge struct{ first, next, bytes int64 }

// abortedTransaction begins at an offset; the records of its producer from there to the abort
// marker do not count.
type abortedTransaction struct{ producerID, first int64 }

// Bytes is the size of what was fetched, as it came.
func (f *Fetched) Bytes() int { return len(f.set) }

// From is the offset that was asked for.
func (f *Fetched) From() int64 { return f.position }

// Release gives the memory back, of one that is not used.
func (f *Fetched) Release() {
	f.set = nil
	if f.release != nil {
		f.release()
		f.release = nil
	}
}

// answer reads the answer to a fetch from a connection.
type answer struct {
	reader io.Reader
	conn   deadliner
	fetch  *fetch
	left   int // bytes of the answer that are not read
	err    error
	buf    [8]byte
	at     int // where in the request's partitions the next one is expected
	index  map[topicNumber]int
}

type topicNumber struct {
	topic     string
	partition int
}

// allow bounds the wait for what is read next.
func (a *answer) allow(d time.Duration) error {
	if a.conn != nil {
		if err := a.conn.SetDeadline(time.Now().Add(d)); err != nil {
			return err
		}
	}
	// The end of ctx sets a deadline in the past, and may just have done so.
	return a.fetch.ctx.Err()
}

// forever takes the bound away.
func (a *answer) forever() error {
	if a.conn != nil {
		if err := a.conn.SetDeadline(time.Time{}); err != nil {
			return err
		}
	}
	return a.fetch.ctx.Err()
}

// read reads an answer of version 4 to 11. All numbers are big endian:
//
//	length int32 | correlation id int32 | throttle int32 | [v7: error int16 | session int32] | topics int32 |
//	(name string | partitions int32 | (partition int32 | error int16 | high watermark int64 |
//	last stable offset int64 | [v5: log start int64] | aborted int32, -1 for none | (producer id int64 |
//	first offset int64)... | [v11: preferred replica int32] | size int32 | record batches)...)...
func (a *answer) read() error {
	const header = 4
	a.left = 4
	size := a.int32()
	if a.err == nil && size < header {
		a.err = fmt.Errorf("an answer of %d bytes; is this a Kafka broker, and without TLS?", size)
	}
	a.left = int(size)
	if id := a.int32(); a.err == nil && id != a.fetch.correlation {
		a.err = fmt.Errorf("the answer has correlation id %d, want %d", id, a.fetch.correlation)
	}
	throttle := max(a.int32(), 0)
	version := a.fetch.version
	if version >= 7 {
		code := kafka.Error(a.int16())
		a.int32()
		if a.err == nil && code != 0 {
			a.err = code
		}
	}
	if a.err != nil {
		return a.err
	}
	a.fetch.throttle = time.Duration(throttle) * time.Millisecond
	for topics := a.int32(); topics > 0 && a.err == nil; topics-- {
		topic := a.string()
		for partitions := a.int32(); partitions > 0 && a.err == nil; partitions-- {
			a.partition(topic)
		}
	}
	if a.err == nil && a.left > 0 {
		a.err = fmt.Errorf("%d bytes are left of the answer", a.left)
	}
	return a.err
}

// partition reads one partition's part and hands it on.
func (a *answer) partition(topic string) {
	number := int(a.int32())
	code := kafka.Error(a.int16())
	f := &Fetched{HighWatermark: a.int64()}
	f.Stable = f.HighWatermark
	if stable := a.int64(); stable >= 0 {
		f.Stable = min(f.Stable, stable)
	}
	if a.fetch.request.Uncommitted {
		f.Stable = f.HighWatermark
	}
	if a.fetch.version >= 5 {
		f.First = a.int64()
	}
	aborted := a.int32()
	if aborted > maxAborted {
		a.fail(fmt.Errorf("%w: %d aborted transactions", ErrMalformed, aborted))
	}
	for ; aborted > 0 && a.err == nil; aborted-- {
		f.aborted = append(f.aborted, abortedTransaction{a.int64(), a.int64()})
	}
	if a.fetch.version >= 11 {
		a.int32()
	}
	size := int(max(a.int32(), 0))
	if a.err == nil && size > a.left {
		a.fail(io.ErrUnexpectedEOF)
	}
	i := a.find(topic, number)
	if a.err == nil && i < 0 {
		a.fail(fmt.Errorf("the answer is about %s/%d, which was not asked for", topic, number))
	}
	if a.err != nil {
		return
	}
	want := &a.fetch.request.Partitions[i]
	f.position, f.Next = want.Offset, want.Offset
	if code != 0 {
		if a.skip(size); a.err == nil {
			a.fetch.got(i, nil, code)
		}
		return
	}
	slices.SortFunc(f.aborted, func(x, y abortedTransaction) int { return cmp.Compare(x.first, y.first) })
	if err := a.records(f, size); err != nil {
		a.fail(err)
		f.Release()
		return
	}
	f.Next = f.end()
	a.fetch.got(i, f, nil)
}

// find returns where in the request a partition is, -1 when it is not there.
func (a *answer) find(topic string, number int) int {
	all := a.fetch.request.Partitions
	// Most brokers answer in the order of the request.
	if a.at < len(all) && all[a.at].Topic == topic && all[a.at].Partition == number {
		a.at++
		return a.at - 1
	}
	if a.index == nil {
		a.index = make(map[topicNumber]int, len(all))
		for i, w := range all {
			a.index[topicNumber{w.Topic, w.Partition}] = i
		}
	}
	i, ok := a.index[topicNumber{topic, number}]
	if !ok {
		return -1
	}
	a.at = i + 1
	return i
}

// records reads the record batches of a partition.
func (a *answer) records(f *Fetched, size int) error {
	if size == 0 {
		return nil
	}
	if size > maxSetBytes {
		return a.oversized(f, size)
	}
	class := sizeClass(size)
	if reserve := a.fetch.request.Reserve; reserve != nil {
		if err := a.forever(); err != nil {
			return err
		}
		release, err := reserve(a.fetch.ctx, int64(classBytes(class)))
		if err != nil {
			return err
		}
		f.release = release
	}
	buffer := a.fetch.buffers.get(class)
	release := f.release
	f.release = func() {
		a.fetch.buffers.put(class, buffer)
		if release != nil {
			release()
		}
	}
	for len(buffer) < size {
		// Memory grows with what comes, not with what the length says.
		have := len(buffer)
		if have == cap(buffer) {
			buffer = append(make([]byte, 0, min(2*have, classBytes(class))), buffer...)
		}
		next := min(size, cap(buffer), have+growBytes)
		if err := a.allow(chunkTimeout); err != nil {
			return err
		}
		if _, err := io.ReadFull(a.reader, buffer[have:next]); err != nil {
			return err
		}
		buffer = buffer[:next]
		a.left -= next - have
	}
	f.set = buffer
	return nil
}

// oversized steps over records of which the first batch alone is larger than what is read into
// memory.
func (a *answer) oversized(f *Fetched, size int) error {
	head := make([]byte, headerBytes)
	if _, err := io.ReadFull(a.reader, head); err != nil {
		return err
	}
	a.left -= headerBytes
	base := int64(binary.BigEndian.Uint64(head))
	bytes := int64(binary.BigEndian.Uint32(head[8:])) + frameBytes
	next := base + int64(int32(binary.BigEndian.Uint32(head[23:]))) + 1
	if bytes < maxSetBytes || head[magicAt] != 2 || next <= base || next <= f.position {
		return fmt.Errorf("%w: %d bytes of records for offset %d", ErrMalformed, size, f.position)
	}
	f.tooLarge = &tooLarge{max(base, f.position), next, bytes}
	a.skip(size - headerBytes)
	return a.err
}

func (a *answer) fail(err error) {
	if a.err == nil {
		a.err = err
	}
}

func (a *answer) bytes(n int) []byte {
	if a.err == nil && n > a.left {
		a.err = io.ErrUnexpectedEOF
	}
	if a.err != nil {
		return nil
	}
	if _, a.err = io.ReadFull(a.reader, a.buf[:n]); a.err != nil {
		return nil
	}
	a.left -= n
	return a.buf[:n]
}

func (a *answer) int16() int16 {
	if b := a.bytes(2); b != nil {
		return int16(binary.BigEndian.Uint16(b))
	}
	return 0
}

func (a *answer) int32() int32 {
	if b := a.bytes(4); b != nil {
		return int32(binary.BigEndian.Uint32(b))
	}
	return 0
}

func (a *answer) int64() int64 {
	if b := a.bytes(8); b != nil {
		return int64(binary.BigEndian.Uint64(b))
	}
	return 0
}

func (a *answer) string() string {
	n := int(a.int16())
	if a.err == nil && (n < 0 || n > maxStringBytes || n > a.left) {
		a.err = fmt.Errorf("%w: a name of %d bytes", ErrMalformed, n)
	}
	if a.err != nil {
		return ""
	}
	b := make([]byte, n)
	if _, a.err = io.ReadFull(a.reader, b); a.err != nil {
		return ""
	}
	a.left -= n
	return string(b)
}

func (a *answer) skip(n int) {
	chunk := make([]byte, min(n, 4<<10))
	for n > 0 && a.err == nil {
		step := min(n, len(chunk))
		if a.err = a.allow(chunkTimeout); a.err != nil {
			return
		}
		_, a.err = io.ReadFull(a.reader, chunk[:step])
		n -= step
		a.left -= step
	}
}

// bufferPool keeps buffers for records, in classes of powers of two.
type bufferPool struct{ classes [32]sync.Pool } // of *[]byte

const (
	// minClass is the class of 512 bytes.
	minClass = 9
	// maxPooledClass is the class of the largest buffer that is kept for later, 4 MiB.
	maxPooledClass = 22
)

func sizeClass(n int) int  { return max(bits.Len(uint(n-1)), minClass) }
func classBytes(c int) int { return 1 << c }

// get returns an empty buffer. One that is new has memory for no more than growBytes at first.
func (p *bufferPool) get(class int) []byte {
	if class <= maxPooledClass {
		if b, _ := p.classes[class].Get().(*[]byte); b != nil {
			return (*b)[:0]
		}
	}
	return make([]byte, 0, min(classBytes(class), growBytes))
}

func (p *bufferPool) put(class int, b []byte) {
	if class <= maxPooledClass && cap(b) == classBytes(class) {
		p.classes[class].Put(&b)
	}
}
