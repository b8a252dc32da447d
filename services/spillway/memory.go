package main

import (
	"os"
	"runtime/debug"

	"github.com/spillwayio/spillway/services/internal/config"
)

// overhead is what a service may use on top of the payloads that its configuration bounds: Go's
// runtime, gRPC's buffers, what is being written or read, and garbage. docs/operations.md
// promises it.
const overhead = 256 * config.MiB

// limitMemory makes Go's garbage collector keep the process within its configured payload bytes
// plus overhead. A quarter of it is left for what the collector does not count, and for what it
// lets pass before it catches up. GOMEMLIMIT in the environment says otherwise.
func limitMemory(payload config.ByteSize) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(int64(payload + overhead*3/4))
	}
}

// bufferMemory is the payload bytes that a buffer may hold in memory.
func bufferMemory(b *config.Buffer) config.ByteSize {
	var payload config.ByteSize
	for _, q := range b.Queues {
		payload += q.Memory.Bytes
	}
	return payload
}
