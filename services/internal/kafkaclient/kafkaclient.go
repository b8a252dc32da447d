// Package kafkaclient reads a Kafka cluster by kafka-go's low level: metadata, offsets, and fetches of
// one partition at a time.
//
// kafka-go's own Client.Fetch drops the list of aborted transactions and cannot get over a batch that
// compaction emptied. Here the protocol package is used under it: Fetched leaves out aborted records
// and transaction markers, and says where the next fetch goes on.
package kafkaclient

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	fetchapi "github.com/segmentio/kafka-go/protocol/fetch"

	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

const (
	dialTimeout = 5 * time.Second
	// answerTimeout is how long a broker may take beyond what it was asked to wait.
	answerTimeout = 15 * time.Second
)

// Client talks to one cluster. Its methods may be called concurrently. Close it at the end.
type Client struct {
	transport *kafka.Transport
	client    *kafka.Client
	addr      net.Addr
}

// New connects to nothing yet.
func New(brokers []string, clientID string) *Client {
	transport := &kafka.Transport{ClientID: clientID, DialTimeout: dialTimeout}
	addr := kafka.TCP(brokers...)
	return &Client{transport: transport, addr: addr, client: &kafka.Client{Addr: addr, Timeout: answerTimeout, Transport: transport}}
}

// Close closes idle connections; those in use are closed when their request is answered.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Cluster is what a cluster says of itself.
type Cluster struct {
	ID string
	// Partitions is the number of partitions of each topic that exists.
	Partitions map[string]int
}

// Cluster describes the cluster and those of topics that exist. It may be some seconds old. No topic
// is created by asking for it.
func (c *Client) Cluster(ctx context.Context, topics []string) (*Cluster, error) {
	response, err := c.client.Metadata(ctx, &kafka.MetadataRequest{Topics: topics})
	if err != nil {
		return nil, fmt.Errorf("read metadata from %s: %w", c.addr, err)
	}
	if response.ClusterID == "" {
		return nil, fmt.Errorf("read metadata from %s: the cluster has no id; Kafka 0.10.1 or later is needed", c.addr)
	}
	cluster := &Cluster{ID: response.ClusterID, Partitions: make(map[string]int)}
	for _, t := range response.Topics {
		switch {
		case t.Error == nil && slices.Contains(topics, t.Name):
			cluster.Partitions[t.Name] = len(t.Partitions)
		case t.Error != nil && !errors.Is(t.Error, kafka.UnknownTopicOrPartition):
			return nil, fmt.Errorf("read metadata of topic %s: %w", t.Name, t.Error)
		}
	}
	return cluster, nil
}

// Offsets returns the first offset that the partition has and the one its next record gets.
func (c *Client) Offsets(ctx context.Context, topic string, partition int) (first, next int64, err error) {
	response, err := c.client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{
		topic: {kafka.FirstOffsetOf(partition), kafka.LastOffsetOf(partition)}}})
	if err == nil {
		for _, p := range response.Topics[topic] {
			if p.Error != nil {
				err = p.Error
			}
			first, next = p.FirstOffset, p.LastOffset
		}
	}
	if err != nil {
		return 0, 0, fmt.Errorf("list offsets of %s/%d: %w", topic, partition, err)
	}
	return first, next, nil
}

// OffsetAt returns the offset of the first record that is not older than a time, or the one that the
// next record gets when all are older.
func (c *Client) OffsetAt(ctx context.Context, topic string, partition int, at time.Time) (int64, error) {
	response, err := c.client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{
		topic: {kafka.TimeOffsetOf(partition, at)}}})
	if err == nil {
		for _, p := range response.Topics[topic] {
			if p.Error != nil {
				err = p.Error
			}
			for offset := range p.Offsets {
				if offset >= 0 {
					return offset, nil
				}
			}
		}
	}
	if err != nil {
		return 0, fmt.Errorf("list offsets of %s/%d at %s: %w", topic, partition, at.Format(time.RFC3339), err)
	}
	_, next, err := c.Offsets(ctx, topic, partition)
	return next, err
}

// Request is one fetch.
type Request struct {
	Topic     string
	Partition int
	Offset    int64
	// The broker answers when it has MinBytes, or after MaxWait, with at most MaxBytes or one of its batches.
	MinBytes, MaxBytes int
	MaxWait            time.Duration
}

// Fetched is the answer to a fetch. It is used by one goroutine, once.
type Fetched struct {
	// End is the offset after the last record that may be read: beyond it are none, or ones of
	// transactions that are not decided.
	End int64

	position int64
	batches  []protocol.RecordReader
	aborted  []fetchapi.ResponseTransaction

	key, value, names []byte // scratch
	record            recordbatch.Record
}

// Fetch reads committed records from r.Offset on. Errors of the broker are kafka.Error.
func (c *Client) Fetch(ctx context.Context, r Request) (*Fetched, error) {
	ctx, cancel := context.WithTimeout(ctx, r.MaxWait+answerTimeout)
	defer cancel()
	answer, err := c.transport.RoundTrip(ctx, c.addr, &fetchapi.Request{
		ReplicaID: -1, MaxWaitTime: int32(r.MaxWait.Milliseconds()), MinBytes: int32(r.MinBytes), MaxBytes: int32(r.MaxBytes),
		IsolationLevel: int8(kafka.ReadCommitted), SessionID: -1, SessionEpoch: -1,
		Topics: []fetchapi.RequestTopic{{Topic: r.Topic, Partitions: []fetchapi.RequestPartition{{
			Partition: int32(r.Partition), CurrentLeaderEpoch: -1, FetchOffset: r.Offset, LogStartOffset: -1, PartitionMaxBytes: int32(r.MaxBytes)}}}},
	})
	if err != nil {
		return nil, fmt.Errorf("fetch %s/%d from %d: %w", r.Topic, r.Partition, r.Offset, err)
	}
	response := answer.(*fetchapi.Response)
	if response.ErrorCode != 0 {
		return nil, fmt.Errorf("fetch %s/%d from %d: %w", r.Topic, r.Partition, r.Offset, kafka.Error(response.ErrorCode))
	}
	if len(response.Topics) != 1 || len(response.Topics[0].Partitions) != 1 {
		return nil, fmt.Errorf("fetch %s/%d from %d: the answer is about something else", r.Topic, r.Partition, r.Offset)
	}
	p := &response.Topics[0].Partitions[0]
	if p.ErrorCode != 0 {
		return nil, fmt.Errorf("fetch %s/%d from %d: %w", r.Topic, r.Partition, r.Offset, kafka.Error(p.ErrorCode))
	}
	f := &Fetched{End: p.HighWatermark, position: r.Offset, aborted: p.AbortedTransactions}
	if p.LastStableOffset >= 0 {
		f.End = min(f.End, p.LastStableOffset)
	}
	if stream, ok := p.RecordSet.Records.(*protocol.RecordStream); ok {
		f.batches = stream.Records
	}
	slices.SortFunc(f.aborted, func(a, b fetchapi.ResponseTransaction) int { return cmp.Compare(a.FirstOffset, b.FirstOffset) })
	return f, nil
}

// Each calls yield with every record from the requested offset on, in order, and returns the offset
// where the next fetch goes on: offsets before it without a record have none. The record and its bytes
// are valid within yield only. Each stops at yield's first error and returns it.
func (f *Fetched) Each(yield func(offset int64, r *recordbatch.Record) error) (next int64, err error) {
	start := f.position
	var gone map[int64]bool // producers within an aborted transaction
	for _, batch := range f.batches {
		skip := false
		switch b := batch.(type) {
		case *protocol.ControlBatch:
			if err := f.control(b, gone); err != nil {
				return f.position, err
			}
			continue
		case *protocol.RecordBatch:
			for len(f.aborted) > 0 && f.aborted[0].FirstOffset <= b.BaseOffset {
				if gone == nil {
					gone = make(map[int64]bool)
				}
				gone[f.aborted[0].ProducerID] = true
				f.aborted = f.aborted[1:]
			}
			skip = b.Attributes.Transactional() && gone[b.ProducerID]
		}
		if err := f.records(batch, skip, yield); err != nil {
			return f.position, err
		}
	}
	// The first batch of an answer reaches beyond the requested offset. When nothing of it is left
	// there, compaction emptied its end; how far it reaches, kafka-go does not tell.
	if len(f.batches) > 0 && f.position == start {
		f.position++
	}
	return f.position, nil
}

// control reads the markers of a control batch.
func (f *Fetched) control(b *protocol.ControlBatch, gone map[int64]bool) error {
	for {
		r, err := b.ReadRecord()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read control batch at %d: %w", b.BaseOffset, err)
		}
		marker, err := protocol.ReadControlRecord(r)
		if err != nil {
			return fmt.Errorf("read control record at %d: %w", r.Offset, err)
		}
		const abort = 0
		if marker.Type == abort {
			delete(gone, b.ProducerID)
		}
		f.position = max(f.position, marker.Offset+1)
	}
}

func (f *Fetched) records(batch protocol.RecordReader, skip bool, yield func(int64, *recordbatch.Record) error) error {
	for {
		r, err := batch.ReadRecord()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read records at %d: %w", f.position, err)
		}
		if err := f.one(r, skip || r.Offset < f.position, yield); err != nil {
			return err
		}
	}
}

func (f *Fetched) one(r *protocol.Record, skip bool, yield func(int64, *recordbatch.Record) error) (err error) {
	if r.Key != nil {
		defer r.Key.Close()
	}
	if r.Value != nil {
		defer r.Value.Close()
	}
	if !skip {
		f.record.TimestampMs = r.Time.UnixMilli()
		if f.record.Key, f.key, err = read(r.Key, f.key); err != nil {
			return fmt.Errorf("read key at %d: %w", r.Offset, err)
		}
		if f.record.Value, f.value, err = read(r.Value, f.value); err != nil {
			return fmt.Errorf("read value at %d: %w", r.Offset, err)
		}
		f.headers(r.Headers)
		if err := yield(r.Offset, &f.record); err != nil {
			return err
		}
	}
	f.position = max(f.position, r.Offset+1)
	return nil
}

// read returns the content of b, nil when b is null, and the scratch to use next.
func read(b protocol.Bytes, scratch []byte) (content, grown []byte, err error) {
	if b == nil {
		return nil, scratch, nil
	}
	scratch = slices.Grow(scratch[:0], max(b.Len(), 1))[:b.Len()]
	_, err = io.ReadFull(b, scratch)
	return scratch, scratch, err
}

func (f *Fetched) headers(from []protocol.Header) {
	f.record.Headers, f.names = f.record.Headers[:0], f.names[:0]
	size := 0
	for i := range from {
		size += len(from[i].Key)
	}
	f.names = slices.Grow(f.names, size)
	for i := range from {
		at := len(f.names)
		f.names = append(f.names, from[i].Key...)
		f.record.Headers = append(f.record.Headers, recordbatch.Header{Name: f.names[at:len(f.names):len(f.names)], Value: from[i].Value})
	}
}
