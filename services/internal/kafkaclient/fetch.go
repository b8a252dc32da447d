package kafkaclient

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/segmentio/kafka-go/protocol"
)

const (
	// firstFetchVersion is the first version that knows isolation levels (Kafka 0.11).
	firstFetchVersion = 4
	// lastFetchVersion is the last version that FetchFrom writes and reads.
	lastFetchVersion = 11
	// chunkTimeout bounds the wait for the next part of an answer that has begun to arrive.
	chunkTimeout = 15 * time.Second
)

// Request is one fetch of one partition.
type Request struct {
	Topic     string
	Partition int
	Offset    int64
	// The broker answers when it has MinBytes, or after MaxWait, with at most MaxBytes or one of
	// its batches.
	MinBytes, MaxBytes int
	MaxWait            time.Duration
	// Uncommitted also reads records of transactions that are aborted or not decided.
	Uncommitted bool
	// Reserve is as in MultiRequest.
	Reserve func(ctx context.Context, bytes int64) (release func(), err error)
}

// MultiRequest is one fetch of several partitions that have the same leader.
type MultiRequest struct {
	// Broker is the leader's id.
	Broker int32
	// The broker answers when it has MinBytes, or after MaxWait, with at most MaxBytes or one of
	// its batches.
	MinBytes, MaxBytes int
	MaxWait            time.Duration
	// Uncommitted also reads records of transactions that are aborted or not decided.
	Uncommitted bool
	Partitions  []Want
	// Reserve is called before the records of a partition are read into memory, with the bytes
	// that they take. It may wait: the broker is not asked for more in the meantime.
	// Fetched.Release calls release. Nil reserves nothing.
	Reserve func(ctx context.Context, bytes int64) (release func(), err error)
}

// Want is what a MultiRequest asks of one partition. Brokers serve partitions in the order of the
// request.
type Want struct {
	Topic     string
	Partition int
	Offset    int64
	MaxBytes  int
}

// Fetch reads from r.Offset on. Errors of the broker are kafka.Error. The caller must call
// Release or Each of what it gets.
func (c *Client) Fetch(ctx context.Context, r Request) (*Fetched, error) {
	leader, err := c.Leader(ctx, r.Topic, r.Partition)
	var got *Fetched
	if err == nil {
		got, err = c.fetchOne(ctx, leader, r)
	}
	if err != nil {
		c.staleAfter(err, r.Topic)
		return nil, fmt.Errorf("fetch %s/%d from %d: %w", r.Topic, r.Partition, r.Offset, err)
	}
	return got, nil
}

// fetchOne repeats the request as long as the broker throttles the client: such an answer is
// about no partition.
func (c *Client) fetchOne(ctx context.Context, leader int32, r Request) (got *Fetched, err error) {
	request := MultiRequest{Broker: leader, MinBytes: r.MinBytes, MaxBytes: r.MaxBytes, MaxWait: r.MaxWait,
		Uncommitted: r.Uncommitted, Reserve: r.Reserve, Partitions: []Want{{r.Topic, r.Partition, r.Offset, r.MaxBytes}}}
	for {
		answered := false
		throttle, broken := c.FetchFrom(ctx, request, func(_ int, f *Fetched, e error) { got, err, answered = f, e, true })
		switch {
		case broken != nil && got != nil:
			got.Release()
			return nil, broken
		case broken != nil:
			return nil, broken
		case answered:
			return got, err
		case throttle <= 0:
			return nil, errors.New("the broker answers about nothing")
		}
	}
}

// FetchFrom sends one request to one broker. It calls got on its own goroutine with the index of
// a partition as soon as the partition's part of the answer is there, so got must not wait. A
// partition that got is not called for has no part in the answer: it has no news, or the broker
// throttles the client.
//
// FetchFrom waits first for as long as the broker throttles the client. It returns the time for
// which the broker does after that, and an error when there was no whole answer. What got was
// called with before counts in any case.
func (c *Client) FetchFrom(ctx context.Context, r MultiRequest, got func(i int, f *Fetched, err error)) (throttle time.Duration, err error) {
	m := &fetch{ctx: ctx, request: &r, got: got, clientID: c.transport.ClientID, correlation: c.correlation.Add(1), buffers: &c.buffers}
	_, err = c.transport.Do(ctx, m, r.MaxWait+answerTimeout)
	return m.throttle, err
}

// fetch is a fetch request that writes itself and reads its answer itself. kafka-go decodes
// record batches without their last offset, so that it cannot get over one that compaction
// emptied at its end; without their append time; and without telling whose they are when they
// hold no record.
type fetch struct {
	ctx         context.Context // of FetchFrom, during which it is used
	request     *MultiRequest
	got         func(int, *Fetched, error)
	clientID    string
	correlation int32
	version     int16
	buffers     *bufferPool
	throttle    time.Duration
}

// ApiKey implements protocol.Message.
func (f *fetch) ApiKey() protocol.ApiKey { return protocol.Fetch }

// Prepare implements protocol.PreparedMessage.
func (f *fetch) Prepare(version int16) { f.version = min(version, lastFetchVersion) }

// Broker implements protocol.BrokerMessage.
func (f *fetch) Broker(cluster protocol.Cluster) (protocol.Broker, error) {
	return brokerOf(cluster, f.request.Broker)
}

// Required implements protocol.RawExchanger.
func (f *fetch) Required(map[protocol.ApiKey]int16) bool { return true }

// fetchAnswer tells the transport how long the broker throttles the client.
type fetchAnswer struct{ throttle time.Duration }

// ApiKey implements protocol.Message.
func (fetchAnswer) ApiKey() protocol.ApiKey { return protocol.Fetch }

// ThrottleTime returns the time for which the broker reads no further request on this connection.
func (a fetchAnswer) ThrottleTime() time.Duration { return a.throttle }

// RawExchange implements protocol.RawExchanger. After an error the transport closes the
// connection. The transport's limit is for an answer without records: the time limit moves with
// what arrives, and does not run in Reserve.
func (f *fetch) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	if f.version < firstFetchVersion {
		return nil, errors.New("the broker is older than Kafka 0.11")
	}
	conn, _ := rw.(deadliner)
	a := &answer{reader: rw, conn: conn, fetch: f}
	if err := a.allow(f.request.MaxWait + answerTimeout); err != nil {
		return nil, err
	}
	if _, err := rw.Write(f.encode()); err != nil {
		return nil, err
	}
	if err := a.read(); err != nil {
		return nil, err
	}
	return fetchAnswer{f.throttle}, a.forever()
}

// deadliner is a connection whose exchange can be bounded.
type deadliner interface{ SetDeadline(time.Time) error }

// encode writes the request in a version from 4 to 11, with its length. All numbers are big
// endian:
//
//	length int32 | api key int16 | version int16 | correlation id int32 | client id string |
//	replica int32 | max wait ms int32 | min bytes int32 | max bytes int32 | isolation int8 |
//	[v7: session id int32, epoch int32] | topics int32 | (name string | partitions int32 |
//	(partition int32 | [v9: leader epoch int32] | offset int64 | [v5: log start int64] | max bytes int32)...)... |
//	[v7: forgotten topics int32] | [v11: rack string]
func (f *fetch) encode() []byte {
	r := f.request
	be := binary.BigEndian
	b := make([]byte, 4, 128+64*len(r.Partitions))
	b = be.AppendUint16(b, uint16(protocol.Fetch))
	b = be.AppendUint16(b, uint16(f.version))
	b = be.AppendUint32(b, uint32(f.correlation))
	b = appendString(b, f.clientID)
	b = be.AppendUint32(b, math.MaxUint32) // replica -1: a consumer
	b = be.AppendUint32(b, uint32(min(r.MaxWait.Milliseconds(), math.MaxInt32)))
	b = be.AppendUint32(b, uint32(r.MinBytes))
	b = be.AppendUint32(b, uint32(r.MaxBytes))
	committed := byte(1)
	if r.Uncommitted {
		committed = 0
	}
	b = append(b, committed)
	if f.version >= 7 {
		b = be.AppendUint32(b, 0)              // no session, and
		b = be.AppendUint32(b, math.MaxUint32) // none is wanted
	}
	topics, topicsAt := uint32(0), len(b)
	b = be.AppendUint32(b, 0)
	partitions, partitionsAt := uint32(0), 0
	for i, p := range r.Partitions {
		if i == 0 || p.Topic != r.Partitions[i-1].Topic {
			b = appendString(b, p.Topic)
			topics, partitions, partitionsAt = topics+1, 0, len(b)
			b = be.AppendUint32(b, 0)
		}
		b = be.AppendUint32(b, uint32(p.Partition))
		if f.version >= 9 {
			b = be.AppendUint32(b, math.MaxUint32) // any leader epoch
		}
		b = be.AppendUint64(b, uint64(p.Offset))
		if f.version >= 5 {
			b = be.AppendUint64(b, math.MaxUint64)
		}
		b = be.AppendUint32(b, uint32(p.MaxBytes))
		partitions++
		be.PutUint32(b[partitionsAt:], partitions)
	}
	be.PutUint32(b[topicsAt:], topics)
	if f.version >= 7 {
		b = be.AppendUint32(b, 0)
	}
	if f.version >= 11 {
		b = appendString(b, "")
	}
	be.PutUint32(b, uint32(len(b)-4))
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(s))), s...)
}
