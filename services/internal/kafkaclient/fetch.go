package kafkaclient

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	fetchapi "github.com/segmentio/kafka-go/protocol/fetch"
)

const (
	// maxAnswerBytes bounds the answer to a fetch. A broker exceeds what it was asked for by one batch at most.
	maxAnswerBytes = 1 << 30
	// maxPooledBytes is the largest buffer that is kept for the next answer.
	maxPooledBytes = 4 << 20
)

// Request is one fetch.
type Request struct {
	Topic     string
	Partition int
	Offset    int64
	// The broker answers when it has MinBytes, or after MaxWait, with at most MaxBytes or one of its batches.
	MinBytes, MaxBytes int
	MaxWait            time.Duration
	// Uncommitted also reads records of transactions that are aborted or not decided.
	Uncommitted bool
}

// Fetched is the answer to a fetch. It is used by one goroutine, once.
type Fetched struct {
	// First is the first offset that the partition has.
	First int64
	// End is the offset after the last record that may be read: beyond it are none, or, unless the
	// request was for uncommitted records, ones of transactions that are not decided.
	End int64
	// HighWatermark is the offset after the last record, also of undecided transactions.
	HighWatermark int64

	refused  error // by the broker
	position int64
	set      []byte // record batches; the last one may be cut
	aborted  []abortedTransaction

	pool   *sync.Pool
	buffer *[]byte // that set is in
	reader batchReader
}

// abortedTransaction begins at an offset; the records of its producer from there to the abort marker
// do not count.
type abortedTransaction struct{ producerID, first int64 }

// Fetch reads from r.Offset on. Errors of the broker are kafka.Error.
func (c *Client) Fetch(ctx context.Context, r Request) (*Fetched, error) {
	ctx, cancel := context.WithTimeout(ctx, r.MaxWait+answerTimeout)
	defer cancel()
	isolation := kafka.ReadCommitted
	if r.Uncommitted {
		isolation = kafka.ReadUncommitted
	}
	answer, err := c.transport.RoundTrip(ctx, c.addr, &rawFetch{clientID: c.transport.ClientID, correlation: c.correlation.Add(1), pool: &c.buffers,
		Request: fetchapi.Request{
			ReplicaID: -1, MaxWaitTime: int32(r.MaxWait.Milliseconds()), MinBytes: int32(r.MinBytes), MaxBytes: int32(r.MaxBytes),
			IsolationLevel: int8(isolation), SessionID: -1, SessionEpoch: -1,
			Topics: []fetchapi.RequestTopic{{Topic: r.Topic, Partitions: []fetchapi.RequestPartition{{
				Partition: int32(r.Partition), CurrentLeaderEpoch: -1, FetchOffset: r.Offset, LogStartOffset: -1, PartitionMaxBytes: int32(r.MaxBytes)}}}},
		}})
	var f *Fetched
	if err == nil {
		f = answer.(*rawFetched).Fetched
		f.position = r.Offset
		err = f.refused
	}
	if err != nil {
		var unrouted *fetchapi.Error
		if errors.As(err, &unrouted) {
			err = unrouted.Err
		}
		if unrouted != nil || isStale(err) {
			c.refresh()
		}
		return nil, fmt.Errorf("fetch %s/%d from %d: %w", r.Topic, r.Partition, r.Offset, err)
	}
	return f, nil
}

// rawFetch is a fetch request that reads its answer itself. kafka-go decodes record batches without
// their last offset, so that it cannot get over one that compaction emptied at its end; without their
// append time; and without telling whose they are when they hold no record.
type rawFetch struct {
	fetchapi.Request
	clientID    string
	correlation int32
	version     int16
	pool        *sync.Pool
}

// Prepare implements protocol.PreparedMessage.
func (r *rawFetch) Prepare(version int16) { r.version = version }

// Required implements protocol.RawExchanger.
func (r *rawFetch) Required(map[protocol.ApiKey]int16) bool { return true }

// RawExchange implements protocol.RawExchanger. After an error kafka-go closes the connection.
func (r *rawFetch) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	const firstWithIsolation = 4
	if r.version < firstWithIsolation {
		return nil, errors.New("the broker is older than Kafka 0.11")
	}
	if err := protocol.WriteRequest(rw, r.version, r.correlation, r.clientID, &r.Request); err != nil {
		return nil, err
	}
	var size [4]byte
	if _, err := io.ReadFull(rw, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxAnswerBytes {
		return nil, fmt.Errorf("an answer of %d bytes; is this a Kafka broker, and without TLS?", n)
	}
	buffer, _ := r.pool.Get().(*[]byte)
	if buffer == nil {
		buffer = new([]byte)
	}
	*buffer = slices.Grow((*buffer)[:0], int(n))[:n]
	if _, err := io.ReadFull(rw, *buffer); err != nil {
		return nil, err
	}
	f := &Fetched{pool: r.pool, buffer: buffer}
	correlation, err := f.parse(*buffer, r.version)
	if err == nil && correlation != r.correlation {
		err = fmt.Errorf("the answer has correlation id %d, want %d", correlation, r.correlation)
	}
	if err != nil || f.refused != nil {
		f.release()
	}
	return &rawFetched{f}, err
}

// rawFetched carries a Fetched through kafka-go.
type rawFetched struct{ *Fetched }

// ApiKey implements protocol.Message.
func (*rawFetched) ApiKey() protocol.ApiKey { return protocol.Fetch }

// parse reads an answer about one partition, of version 4 to 11. All numbers are big endian:
//
//	correlation id int32 | throttle int32 | [v7: error int16 | session int32] | topics int32 |
//	name string | partitions int32 | partition int32 | error int16 | high watermark int64 |
//	last stable offset int64 | [v5: log start int64] | aborted int32, -1 for none | (producer id int64 |
//	first offset int64)... | [v11: preferred replica int32] | size int32 | record batches
func (f *Fetched) parse(b []byte, version int16) (correlation int32, err error) {
	r := &fields{rest: b}
	correlation = r.int32()
	r.int32()
	var code kafka.Error
	if version >= 7 {
		code = kafka.Error(r.int16())
		r.int32()
	}
	if r.err == nil && code != 0 {
		f.refused = code
		return correlation, nil
	}
	if topics := r.int32(); r.err == nil && topics != 1 {
		return correlation, fmt.Errorf("the answer is about %d topics", topics)
	}
	r.bytes(int(r.int16()))
	if partitions := r.int32(); r.err == nil && partitions != 1 {
		return correlation, fmt.Errorf("the answer is about %d partitions", partitions)
	}
	r.int32()
	code = kafka.Error(r.int16())
	f.HighWatermark = r.int64()
	f.End = f.HighWatermark
	if stable := r.int64(); stable >= 0 {
		f.End = min(f.End, stable)
	}
	if version >= 5 {
		f.First = r.int64()
	}
	for range r.int32() {
		f.aborted = append(f.aborted, abortedTransaction{r.int64(), r.int64()})
		if r.err != nil {
			break
		}
	}
	if version >= 11 {
		r.int32()
	}
	f.set = r.bytes(int(max(r.int32(), 0)))
	if r.err != nil {
		return correlation, r.err
	}
	if code != 0 {
		f.refused = code
	}
	slices.SortFunc(f.aborted, func(a, b abortedTransaction) int { return cmp.Compare(a.first, b.first) })
	return correlation, nil
}

// Bytes is the size of what was fetched, as it came.
func (f *Fetched) Bytes() int { return len(f.set) }

// release gives the buffer back.
func (f *Fetched) release() {
	if f.buffer != nil && cap(*f.buffer) <= maxPooledBytes {
		f.pool.Put(f.buffer)
	}
	f.buffer, f.set = nil, nil
}

// fields reads numbers in sequence; after the first that is not there, all are 0.
type fields struct {
	rest []byte
	err  error
}

func (f *fields) bytes(n int) []byte {
	if f.err != nil || n < 0 || n > len(f.rest) {
		f.err = io.ErrUnexpectedEOF
		return nil
	}
	b := f.rest[:n:n]
	f.rest = f.rest[n:]
	return b
}

func (f *fields) int16() int16 {
	if b := f.bytes(2); b != nil {
		return int16(binary.BigEndian.Uint16(b))
	}
	return 0
}

func (f *fields) int32() int32 {
	if b := f.bytes(4); b != nil {
		return int32(binary.BigEndian.Uint32(b))
	}
	return 0
}

func (f *fields) int64() int64 {
	if b := f.bytes(8); b != nil {
		return int64(binary.BigEndian.Uint64(b))
	}
	return 0
}
