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
	most := ""
	for _, name := range slices.Sorted(maps.Keys(k.c.Buffer.Queues)) {
		if q := k.c.Buffer.Queues[name]; most == "" || q.Shards > k.c.Buffer.Queues[most].Shards {
			most = name
		}
	}
	if most == "" {
		return
	}
	n := k.c.Buffer.Queues[most].Shards
	switch {
	case k.c.Buffer.Shard >= max(n, 1):
		k.key("buffer.shard", "is %d, and no queue has so many shards; want less than %d, another one for each buffer", k.c.Buffer.Shard, max(n, 1))
	case n > 1 && n > len(k.c.Buffers):
		k.key("buffer.queues."+most+".shards", "is %d, and buffers names %d; want one for each shard", n, len(k.c.Buffers))
	}
}
