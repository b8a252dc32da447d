// Package owners divides the shards of a queue among buffers, by Kafka's group protocol: when a
// buffer dies, others get its shards after the session timeout, and a planned move takes no longer
// than giving the shard up, a heartbeat, and opening it.
//
// The buffer uses it for queues with store.kafka.owners: group. A version before took one shard of
// a queue at most (Config.Most), and may be a member still.
//
// # What it guarantees
//
// Liveness only. The group is a hint, the store is the fence: two members may believe that they
// have a shard, and what the wrong one writes counts for nobody. In return nobody stops serving
// while the group divides anew, or while its coordinator is away, or its leader is mad.
//
// When members, Kafka and what is between them work for long enough, each shard has one owner, all
// have as many as possible, and nothing moves (TestModel).
//
// # Rules
//
//   - The group's leader divides, by what members claim when they join (divide.go). Shards stay where
//     they are; of two claims the higher epoch counts; a shard that moves is nobody's for one
//     generation, in which its owner gives it up, and joins again when it has.
//   - A member whose shard was taken joins again at once without it, and does not take it back: two
//     that did would go on for ever. Only a generation for which it claimed nothing gives it back.
//   - A shard that waits for Kafka for 15 s is named as one that the member cannot serve, for a
//     minute. It goes to another member, unless that one has such trouble, too: then it is Kafka's,
//     and it stays open. So is one that cannot be opened.
//   - Balance moves a quarter of a member's shards at once, at least one, and waits until nothing has
//     changed for 30 s.
//   - When the group is silent for twice the session timeout, all shards are ended: others have them.
//   - A member that has nothing makes sure that the address it advertises leads to itself before it
//     claims anything.
//
// # A shard at a member
//
//	given ─▶ opening ─▶ open ─▶ closing ─▶ gone, joins again
//	            ▲ └──error──┘ │
//	            └─────────────┘ fenced ─▶ gone, joins again at once
//
// # Goroutines and locks
//
// Run is one goroutine, with another that watches for silence, and one for each shard. Member.mu
// is never held during I/O or while Serve is called.
package owners
