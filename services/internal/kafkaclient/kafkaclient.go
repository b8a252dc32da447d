// Package kafkaclient reads a Kafka cluster by kafka-go's low level: metadata, offsets, and fetches of
// one partition at a time.
//
// kafka-go's own Client.Fetch drops the list of aborted transactions, cannot get over a batch that
// compaction emptied, and does not know the append time of records. Here its connections and routing are
// used, and the answer to a fetch is read from the wire: Fetched leaves out aborted records and
// transaction markers, and says where the next fetch goes on (fetch.go, records.go).
package kafkaclient

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
)

const (
	dialTimeout = 5 * time.Second
	// answerTimeout is how long a broker may take beyond what it was asked to wait.
	answerTimeout = 15 * time.Second
	// refreshInterval is the least time between two times that metadata is asked for out of turn.
	refreshInterval = time.Second
)

// Client talks to one cluster. Its methods may be called concurrently. Close it at the end.
type Client struct {
	transport *kafka.Transport
	client    *kafka.Client
	addr      net.Addr

	correlation atomic.Int32
	buffers     sync.Pool // of *[]byte, for answers to fetches

	mu        sync.Mutex
	refreshed time.Time // when metadata was last asked for out of turn
}

// New connects to nothing yet.
func New(brokers []string, clientID string, access Access) *Client {
	transport := access.Transport(clientID)
	addr := kafka.TCP(brokers...)
	return &Client{transport: transport, addr: addr, client: &kafka.Client{Addr: addr, Timeout: answerTimeout, Transport: transport}}
}

// Close closes idle connections; those in use are closed when their request is answered.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Cluster is what a cluster says of itself.
type Cluster struct {
	ID string
	// Topics are those that this client may see, without Kafka's internal ones.
	Topics map[string]Topic
}

// Topic is a topic of a cluster.
type Topic struct {
	Partitions int
	Err        error // why Partitions may be wrong
}

// Cluster describes the cluster. It may be some seconds old.
func (c *Client) Cluster(ctx context.Context) (*Cluster, error) {
	response, err := c.client.Metadata(ctx, &kafka.MetadataRequest{})
	if err != nil {
		// kafka-go would answer with this error for up to 6 s before it tries again.
		c.transport.CloseIdleConnections()
		return nil, fmt.Errorf("read metadata from %s: %w", c.addr, err)
	}
	if response.ClusterID == "" {
		return nil, fmt.Errorf("read metadata from %s: the cluster has no id; Kafka 0.10.1 or later is needed", c.addr)
	}
	cluster := &Cluster{ID: response.ClusterID, Topics: make(map[string]Topic)}
	for _, t := range response.Topics {
		if !t.Internal && !errors.Is(t.Error, kafka.UnknownTopicOrPartition) {
			cluster.Topics[t.Name] = Topic{Partitions: len(t.Partitions), Err: t.Error}
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

// HasCommitted says whether a group has committed an offset in one of the first partitions of a topic.
func (c *Client) HasCommitted(ctx context.Context, group, topic string, partitions int) (bool, error) {
	request := &kafka.OffsetFetchRequest{GroupID: group, Topics: map[string][]int{topic: nil}}
	for i := range partitions {
		request.Topics[topic] = append(request.Topics[topic], i)
	}
	response, err := c.client.OffsetFetch(ctx, request)
	if err == nil {
		err = response.Error
	}
	if err != nil {
		return false, fmt.Errorf("read what group %s has committed: %w", group, err)
	}
	for _, p := range response.Topics[topic] {
		if p.Error != nil {
			return false, fmt.Errorf("read what group %s has committed in %s/%d: %w", group, topic, p.Partition, p.Error)
		}
		if p.CommittedOffset >= 0 {
			return true, nil
		}
	}
	return false, nil
}

// LeaveGroup takes a member out of a group. That it is no member is fine.
func (c *Client) LeaveGroup(ctx context.Context, group, member string) error {
	response, err := c.client.LeaveGroup(ctx, &kafka.LeaveGroupRequest{GroupID: group, Members: []kafka.LeaveGroupRequestMember{{ID: member}}})
	if err == nil {
		err = response.Error
		for _, m := range response.Members {
			err = cmp.Or(err, m.Error)
		}
	}
	if err != nil && !errors.Is(err, kafka.UnknownMemberId) {
		return fmt.Errorf("leave group %s: %w", group, err)
	}
	return nil
}

// Retention is when a topic deletes records.
type Retention struct {
	After   time.Duration // of that age; 0: never
	Bounded bool          // also when a partition has more than so many bytes
}

// Retention returns when each of the topics deletes records.
func (c *Client) Retention(ctx context.Context, topics []string) (map[string]Retention, error) {
	request := &kafka.DescribeConfigsRequest{}
	for _, t := range topics {
		request.Resources = append(request.Resources, kafka.DescribeConfigRequestResource{
			ResourceType: kafka.ResourceTypeTopic, ResourceName: t, ConfigNames: []string{"retention.ms", "retention.bytes", "cleanup.policy"}})
	}
	response, err := c.client.DescribeConfigs(ctx, request)
	if err != nil {
		return nil, fmt.Errorf("describe the configuration of topics: %w", err)
	}
	all := make(map[string]Retention)
	for _, r := range response.Resources {
		if r.Error != nil {
			return nil, fmt.Errorf("describe the configuration of topic %s: %w", r.ResourceName, r.Error)
		}
		kept, bounded, deletes := int64(-1), false, false
		for _, entry := range r.ConfigEntries {
			switch entry.ConfigName {
			case "retention.ms":
				if kept, err = strconv.ParseInt(entry.ConfigValue, 10, 64); err != nil {
					return nil, fmt.Errorf("retention.ms of topic %s is %q", r.ResourceName, entry.ConfigValue)
				}
			case "retention.bytes":
				bounded = entry.ConfigValue != "-1"
			case "cleanup.policy":
				deletes = strings.Contains(entry.ConfigValue, "delete")
			}
		}
		const longest = math.MaxInt64 / int64(time.Millisecond)
		if kept < 0 || kept >= longest {
			kept = 0
		}
		all[r.ResourceName] = Retention{}
		if deletes {
			all[r.ResourceName] = Retention{time.Duration(kept) * time.Millisecond, bounded}
		}
	}
	return all, nil
}

// isStale says whether an error means that what kafka-go knows of the cluster is out of date, or that its
// connections are: a broker that went away, or wants clients to log in again, has broken all of them.
func isStale(err error) bool {
	var code kafka.Error
	if !errors.As(err, &code) {
		return true
	}
	for _, stale := range []kafka.Error{kafka.NotLeaderForPartition, kafka.UnknownTopicOrPartition, kafka.LeaderNotAvailable, kafka.ReplicaNotAvailable,
		kafka.FencedLeaderEpoch, kafka.UnknownLeaderEpoch, kafka.KafkaStorageError} {
		if errors.Is(err, stale) {
			return true
		}
	}
	return false
}

// refresh makes kafka-go ask for metadata on its next use; by itself it asks every few seconds. It has
// no call for that, but it forgets what it knows together with its idle connections.
func (c *Client) refresh() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.refreshed) >= refreshInterval {
		c.refreshed = now
		c.transport.CloseIdleConnections()
	}
}
