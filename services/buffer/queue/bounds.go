package queue

import (
	"fmt"
	"unicode/utf8"
)

// Bounds of what others send. A message costs what its length is, whatever the numbers in it, and
// what is kept of it has a bound for each queue.
const (
	// MaxTopicBytes is Kafka's own bound.
	MaxTopicBytes = 249
	// MaxNameBytes bounds the names of clusters, clients, consumers and sources.
	MaxNameBytes = 256
	// MaxReasonBytes bounds a reason. What is longer is cut.
	MaxReasonBytes = 1 << 10
	// MaxPartitions bounds the source partitions that a queue makes known, and those that one
	// stream watches.
	MaxPartitions = 100_000
	// maxSources and maxListedTopics bound what sources are said to read.
	maxSources, maxListedTopics = 1000, 100_000
	// maxUndeliveredBytes bounds the reasons of undelivered ranges that a subscription remembers.
	maxUndeliveredBytes = 4 << 20
	// maxSubscriptions bounds those that are made at run time, and maxGlobs what one of them
	// names.
	maxSubscriptions, maxGlobs = 1000, 1000
	// maxAckItems bounds the leases, ranges, dead letters and changes of sink state in an ack.
	maxAckItems = 1_000_000
	// maxChangeBytes bounds what an ack takes in the journal: it has to fit into a segment of the
	// store.
	maxChangeBytes = 64 << 20
	// maxAnswers is how many answers may wait for a session before its requests do.
	maxAnswers = 10_000
	// idsAtOnce is how many leases are looked at without letting go of the lock.
	idsAtOnce = 4096
)

const (
	// DefaultFreeBatches and DefaultMaxLeases are for a process with one queue.
	DefaultFreeBatches, DefaultMaxLeases = 700_000, 100_000
	// minLeases is the least that is leased to a session that has credit.
	minLeases = 100
	// batchOverhead is about what a batch that is held costs beside its payload, here and in the
	// store.
	batchOverhead = 200
)

// overheadLocked is what the batches that are held count in memory, beside their payloads.
func (q *Queue) overheadLocked() int64 {
	return max(0, q.pendingBatches-q.cfg.FreeBatches) * batchOverhead
}

// windowLocked is how many payload bytes may be in memory: what many batches cost is taken off,
// up to half of it, where fullLocked takes no more.
func (q *Queue) windowLocked() int64 {
	return q.cfg.MemoryBytes - min(q.overheadLocked(), q.cfg.MemoryBytes/2)
}

// validate refuses what no partition of Kafka is called.
func (id Partition) validate() error {
	switch {
	case id.Topic == "" || len(id.Topic) > MaxTopicBytes:
		return fmt.Errorf("%w topic %.100q: its name has %d bytes, want 1 to %d", ErrInvalid, id.Topic, len(id.Topic), MaxTopicBytes)
	case len(id.Cluster) > MaxNameBytes:
		return fmt.Errorf("%w cluster %.100q: its name has %d bytes, at most %d", ErrInvalid, id.Cluster, len(id.Cluster), MaxNameBytes)
	case id.Number < 0:
		return fmt.Errorf("%w partition %d of %s", ErrInvalid, id.Number, id.Topic)
	}
	return nil
}

// takesPartitionLocked refuses a partition that is new when there are too many.
func (q *Queue) takesPartitionLocked(id Partition) error {
	if q.partitions[id] == nil && len(q.partitions)+len(q.empty) >= MaxPartitions {
		if _, empty := q.empty[id]; !empty {
			return fmt.Errorf("%w: the queue has %d source partitions, and takes no new one; read fewer topics into it, or the others into another queue",
				ErrTooMany, len(q.partitions)+len(q.empty))
		}
	}
	return nil
}

// CutReason cuts a reason to MaxReasonBytes, with a mark.
func CutReason(reason string) string {
	if len(reason) <= MaxReasonBytes {
		return reason
	}
	const mark = " …"
	end := MaxReasonBytes - len(mark)
	for end > 0 && !utf8.RuneStart(reason[end]) {
		end--
	}
	return reason[:end] + mark
}
