// Package kafkastore is a queue.Store in Kafka: one shard of a queue in one partition of two
// topics. A machine that is lost takes nothing with it, and another buffer takes its shards over.
//
// # The journal
//
// The topic NAME.journal has all that the queue recovers from, but for payloads. A shard's
// partition is one total order, so owners need no lock and no lease: a new owner writes a barrier,
// whose offset is its epoch, and what others write behind it counts for nobody. They see it by the
// offset that they are answered. The rules are in rule.go, the bytes in frame.go, and how an owner
// writes in owner.go. They need clean elections and acks of all replicas in sync, and nothing
// else: no transactions, no producer ids, no clocks. TestModel explores their schedules.
//
// A store that was taken over fails with ErrFenced, for good. It must not be opened again by
// itself: two buffers that each believe that they own a shard would take it from each other for
// ever. One that failed for another reason may be opened again, with Config.After.
//
//	0: identity | barrier | snapshot ... | group | group | snapshot... | group | ...
//	                                                       ^ trimmed up to the second newest whole one
//
// A snapshot replaces what is before it: the ledger as the queue had it when the snapshot began,
// and the batches that were needed still, which are read from the journal, so that the store keeps
// no metas in memory. It is written frame by frame between groups.
//
// # Payloads
//
// The topic NAME.payload has the payloads of batches, written before the group that refers to
// them, and found by their offset. When less than a quarter of it is needed, what is left of its
// oldest part is copied to its end, and the part is trimmed. A payload takes 40 bytes of memory
// until it is released.
//
// # What is refused
//
// Open refuses topics of another queue, namespace or number of shards, topics that were created
// again, mirrored or restored, settings that would lose records or trust clocks, a journal of a
// later version, and one of which a part is missing. It does so before it takes the shard from its
// owner. Settings are looked at again every minute, which raises an alarm and stops nothing.
// Topics that are replaced, or lose their end, while a store is open end it: nothing is answered
// any more. It notices by the offset that it is answered, or within a minute.
//
// That the end of a log was lost in an unclean election while nobody had it open cannot be seen
// here.
//
// # Waiting
//
// While Kafka is away or slow, or throttles, Append waits and sends the same bytes again, without
// end. Only Close, a definite refusal, or another owner ends it.
//
// # Goroutines and locks
//
// A store has one goroutine, the keeper, which ends snapshots, trims and watches settings until
// Close. Store.keeping before Store.w, which is held while something is written, before Store.mu
// and payloads.mu, which are never held during I/O.
package kafkastore
