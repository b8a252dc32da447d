// Package shards divides the source partitions of a queue among its shards, and finds the buffer
// that has a shard.
package shards

// Max is how many shards a queue may have.
const Max = 256

// Of returns the shard of a source partition of a queue with so many shards, from 0: the one with
// the highest score of all (rendezvous hashing), so that with one shard more a partition stays or
// goes to the new one. All incarnations of a topic are in the same shard. What this returns is a
// format: records of a partition that was given to another shard would be delivered twice.
func Of(cluster, topic string, partition int32, shards int) int {
	if shards <= 1 {
		return 0
	}
	key := hash(cluster, topic, partition)
	best, highest := 0, uint64(0)
	for shard := range shards {
		if score := mix(key ^ mix(uint64(shard)+1)); shard == 0 || score > highest {
			best, highest = shard, score
		}
	}
	return best
}

// Count returns how many partitions of a topic are in a shard.
func Count(cluster, topic string, partitions int32, shard, shards int) int32 {
	if shards <= 1 {
		return partitions
	}
	n := int32(0)
	for partition := range partitions {
		if Of(cluster, topic, partition, shards) == shard {
			n++
		}
	}
	return n
}

// hash is FNV-1a over the names, each with a zero behind it, and the number, big-endian.
func hash(cluster, topic string, partition int32) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	add := func(b byte) { h = (h ^ uint64(b)) * prime }
	for _, name := range [...]string{cluster, topic} {
		for i := range len(name) {
			add(name[i])
		}
		add(0)
	}
	for shift := 24; shift >= 0; shift -= 8 {
		add(byte(uint32(partition) >> shift))
	}
	return h
}

// mix is the finalizer of SplitMix64: each bit of the result depends on all of x.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}
