package config

import (
	"maps"
	"slices"
)

// shards checks that the queues' shards and the buffers go together.
func (k checker) shards() {
	between(k, "buffer.shard", k.c.Buffer.Shard, 0, maxShards-1)
	if k.c.Buffer.Advertise != "" {
		k.address("buffer.advertise", k.c.Buffer.Advertise)
	}
	most, fixed := "", "" // with the most shards, of all, and of those whose owners the files name
	for _, name := range slices.Sorted(maps.Keys(k.c.Buffer.Queues)) {
		if q := k.c.Buffer.Queues[name]; most == "" || q.Shards > k.c.Buffer.Queues[most].Shards {
			most = name
		}
		if q := k.c.Buffer.Queues[name]; !q.InGroup() && (fixed == "" || q.Shards > k.c.Buffer.Queues[fixed].Shards) {
			fixed = name
		}
	}
	if most == "" {
		return
	}
	n := k.c.Buffer.Queues[most].Shards
	switch {
	case k.c.Buffer.Shard >= max(n, 1):
		k.key("buffer.shard", "is %d, and no queue has so many shards; want less than %d, another one for each buffer", k.c.Buffer.Shard, max(n, 1))
	case fixed != "" && k.c.Buffer.Queues[fixed].Shards > max(len(k.c.Buffers), 1):
		k.key("buffer.queues."+fixed+".shards", "is %d, and buffers names %d; want one for each shard, or store.kafka.owners: group, which has buffers take several",
			k.c.Buffer.Queues[fixed].Shards, len(k.c.Buffers))
	}
}
