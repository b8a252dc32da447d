// Package kafkaclient reaches Kafka clusters: connections and routing (Transport), who may use
// them (Access), quotas of brokers (Throttle), and reading: metadata, offsets, and fetches
// (Client).
//
// kafka-go's own Client.Fetch drops the list of aborted transactions, cannot get over a batch
// that compaction emptied, and does not know the append time of records. Here its encoding and
// its rules for routing are used, and the answer to a fetch is read from the wire, of many
// partitions at a time (fetch.go, answer.go). Fetched leaves out aborted records and transaction
// markers, and says where the next fetch goes on (records.go). What a producer compressed is
// opened within bounds (decompress.go).
package kafkaclient

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
)

const (
	dialTimeout = 5 * time.Second
	// answerTimeout is how long a broker may take beyond what it was asked to wait.
	answerTimeout = 15 * time.Second
)

// Client talks to one cluster. Its methods may be called concurrently. Close it at the end.
type Client struct {
	transport *Transport
	client    *kafka.Client
	addr      net.Addr

	correlation atomic.Int32
	buffers     bufferPool // for the records in answers to fetches
}

// New connects to nothing yet.
func New(brokers []string, clientID string, access Access) *Client {
	transport := access.Transport(brokers, clientID)
	return &Client{transport: transport, addr: kafka.TCP(brokers...), client: transport.Client(answerTimeout)}
}

// Transport returns what carries the client's requests, for requests of other kinds. Close closes
// its connections, too.
func (c *Client) Transport() *Transport { return c.transport }

// Throttle tells which brokers throttle this client.
func (c *Client) Throttle() *Throttle { return c.transport.throttle }

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

// Cluster describes the cluster, with the topics of these names, or with all when there is none.
// Topics that do not exist are left out.
func (c *Client) Cluster(ctx context.Context, names ...string) (*Cluster, error) {
	response, err := c.transport.metadata(ctx, metadataRequest(names, false))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.addr, err)
	}
	if response.ClusterID == nil || *response.ClusterID == "" {
		return nil, fmt.Errorf("read metadata from %s: the cluster has no id; Kafka 0.10.1 or later is needed", c.addr)
	}
	cluster := &Cluster{ID: *response.ClusterID, Topics: make(map[string]Topic)}
	for i := range response.Topics {
		t := &response.Topics[i]
		// An answer about all topics leaves out those that the client may not see.
		absent := slices.Contains([]kafka.Error{kafka.UnknownTopicOrPartition, kafka.TopicAuthorizationFailed, kafka.InvalidTopic}, kafka.Error(t.ErrorCode))
		if t.Topic != nil && !t.IsInternal && !absent {
			cluster.Topics[*t.Topic] = Topic{Partitions: len(describeTopic(t).Leaders), Err: described(t.ErrorCode, "")}
		}
	}
	return cluster, nil
}

// staleAfter has a topic's leaders asked for again when an error may mean that they are others.
func (c *Client) staleAfter(err error, topic string) {
	if IsStale(err) {
		c.Stale(topic)
	}
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
	// Compacted says that records go when there is a later one with their key.
	Compacted bool
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
		kept, bounded, deletes, compacts := int64(-1), false, false, false
		for _, entry := range r.ConfigEntries {
			switch entry.ConfigName {
			case "retention.ms":
				if kept, err = strconv.ParseInt(entry.ConfigValue, 10, 64); err != nil {
					return nil, fmt.Errorf("retention.ms of topic %s is %q", r.ResourceName, entry.ConfigValue)
				}
			case "retention.bytes":
				bounded = entry.ConfigValue != "-1"
			case "cleanup.policy":
				deletes, compacts = strings.Contains(entry.ConfigValue, "delete"), strings.Contains(entry.ConfigValue, "compact")
			}
		}
		const longest = math.MaxInt64 / int64(time.Millisecond)
		if kept < 0 || kept >= longest {
			kept = 0
		}
		keeps := Retention{Compacted: compacts}
		if deletes {
			keeps.After, keeps.Bounded = time.Duration(kept)*time.Millisecond, bounded
		}
		all[r.ResourceName] = keeps
	}
	return all, nil
}

// IsStale returns true for an error that means that another broker may lead the partition by now,
// or none may.
func IsStale(err error) bool {
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
