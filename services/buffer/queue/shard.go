package queue

import "fmt"

// shard says which part of a queue the data is. The data of a queue of one shard does not say it,
// as versions before shards did not.
type shard struct {
	Number uint16 `json:"number"`
	Of     int    `json:"of"`
}

func (s *shard) String() string {
	if s == nil {
		s = &shard{Of: 1}
	}
	return fmt.Sprintf("shard %d of %d", s.Number, s.Of)
}

// shard returns the part of the queue that is configured.
func (c *Config) shard() *shard {
	if c.Shards <= 1 {
		return nil
	}
	return &shard{c.Shard, c.Shards}
}

// Owns says whether a source partition is this shard's.
func (q *Queue) Owns(cluster, topic string, partition int32) bool {
	return q.cfg.Shards <= 1 || q.cfg.ShardOf == nil || q.cfg.ShardOf(cluster, topic, partition) == int(q.cfg.Shard)
}

// checkShard refuses data that was written as another part of the queue: its partitions would go
// on elsewhere, where nobody knows what was delivered.
func (q *Queue) checkShard(pieces []*piece) error {
	if q.cfg.ShardOf == nil {
		return nil
	}
	configured := q.cfg.shard()
	if q.ledger != "" && configured.String() != q.shard.String() {
		return fmt.Errorf("%w: it is %s, and %s is configured: a queue keeps its number of shards, and a data directory its shard, for ever; "+
			"put the numbers back, or give the queue a new name when the old one is drained", ErrOtherShard, q.shard, configured)
	}
	// Data whose ledger is lost, or older than ledgers, does not say it.
	foreign := func(id Partition) error {
		if q.Owns(id.Cluster, id.Topic, id.Number) {
			return nil
		}
		return fmt.Errorf("%w: it has records of partition %d of topic %s, which is not of %s; put buffer.shard and the queue's shards back to what they were",
			ErrOtherShard, id.Number, id.Topic, configured)
	}
	for id := range q.partitions {
		if err := foreign(id); err != nil {
			return err
		}
	}
	for _, pc := range pieces {
		if err := foreign(pc.part.id); err != nil {
			return err
		}
	}
	return nil
}

// listedTopics are the topics that a source reads.
type listedTopics struct {
	partitions map[string]int32 // how many each has
	own        map[string]int32 // how many of these are this shard's; nil: all
}

// ownOf counts the partitions of topics that are this shard's; nil is all. It may take long.
func (q *Queue) ownOf(cluster string, topics map[string]int32) map[string]int32 {
	if q.cfg.Shards <= 1 {
		return nil
	}
	own := make(map[string]int32, len(topics))
	for topic, partitions := range topics {
		for partition := range partitions {
			if q.Owns(cluster, topic, partition) {
				own[topic]++
			}
		}
	}
	return own
}

// ownPartitions returns how many partitions of a topic are this shard's.
func (l *listedTopics) ownPartitions(topic string) int32 {
	if l.own == nil {
		return l.partitions[topic]
	}
	return l.own[topic]
}
