// Package ingest reads Kafka and appends to the buffer. It commits to Kafka the safe offsets that
// the buffer reports and nothing else, so that what the buffer lost is read again.
//
// The way of a record, and of what is known about it:
//
//	group.go      the source's place in its consumer group: partitions, heartbeats, commits
//	assign.go     where a partition goes on: what the buffer says, or Kafka (incarnation.go: is it still that topic)
//	fetcher.go    one fetch for many partitions of a broker, in three lanes (lanes.go)
//	reader.go     a partition's reader takes the parts of answers; batch.go makes batches of them
//	lookup.go     offsets and single records, of many partitions in one request a broker
//	owners.go     the buffers that have the queue's shards: one stream to each
//	stream.go     the stream to a buffer; partition.go takes its answers, and sends again what was refused
//
// Beside it: source.go (a source), topics.go (which topics), refetch.go (what the buffer asks for
// again), retention.go (how long Kafka will still have it), strangers.go (others' commits, open
// transactions), rivals.go (other pipelines in the group), budget.go (memory).
//
// The classic group protocol is spoken by kafkaclient.Group and not by kafka-go's ConsumerGroup,
// which sends member metadata that ends Java consumers in the same group, and cannot be given
// other metadata.
//
// # Goroutines
//
// One per source (source.run). For each generation of the group one each for heartbeats, for
// topics, for commits, for what others commit, for the retention, for the group's other members,
// for finding leaders, for those that have moved, and one per broker and lane; one per partition,
// which waits for what is fetched for it. For lookups one, and one per broker and kind while there
// is something to look up. For each stream one that receives, one per Refetch (eight of a source
// at a time fetch) and per FindOffset. All end before their owner returns.
//
// # Locks
//
// partition.mu, appender's, memory's and budget's locks are taken last: nothing is called under
// them but a budget. fetcher.mu may be held while a part is released, which takes a budget's.
// source.mu guards what the admin API shows, and is held during no call. sendMu is held while the
// stream's flow control makes a sender wait.
//
// # Memory
//
// A queue's part of ingest.memory bounds what arrived, what decompression takes, and batches
// without an answer (budget.go says why nobody waits in a circle). Beyond it: one record batch of
// up to 128 MiB and one decompressor of up to 145 MiB at a time in the process, a record of up to
// 17 MiB for each queue, and some 10 KiB per partition.
package ingest
