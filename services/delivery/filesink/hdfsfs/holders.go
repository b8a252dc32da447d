package hdfsfs

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/internal/backoff"
)

const (
	// reportPatience is how long an append waits for the NameNode to hear of all replicas. DataNodes report at once, or
	// after dfs.blockreport.incremental.intervalMsec.
	reportPatience = 5 * time.Second
	// maxHeld is how many files are remembered. Those that another process finishes are never forgotten else.
	maxHeld = 10_000
)

// reportWait spaces out the questions whether a block was reported to the NameNode; it is copied for each wait.
var reportWait = backoff.Backoff{Initial: time.Millisecond, Max: 128 * time.Millisecond}

// holders remembers of the files that an FS writes which DataNodes have their last blocks: those that acknowledged the last write.
// Appends go to them and no others. When one is not named in an append, the block is lost to it; and one more may have been
// given a copy in the middle of an append, which is too short and bears the same generation stamp: it makes the next append fail, and
// then HDFS recovers the file by that copy, or not at all. So a file whose block is not where it was written ends, and a new
// one has all its replicas.
type holders struct {
	mu     sync.Mutex
	byFile map[string]held
	vain   time.Time // when somebody waited last for one that did not come
}

// held is a file's last block.
type held struct {
	blockSize int64 // of all blocks of the file, but perhaps the last
	dataNodes []string
}

func newHolders() *holders { return &holders{byFile: make(map[string]held)} }

func (h *holders) set(name string, last held) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.byFile[name]; !ok && len(h.byFile) >= maxHeld {
		for other := range h.byFile {
			delete(h.byFile, other)
			break
		}
	}
	h.byFile[name] = last
}

func (h *holders) get(name string) (held, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	last, ok := h.byFile[name]
	return last, ok
}

func (h *holders) forget(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.byFile, name)
}

// check compares the DataNodes that the NameNode names for the block with those that have it. The error wraps ErrEnded; wait
// says that it may be too early to say so.
func (l held) check(named []string) (wait bool, err error) {
	both := 0
	for _, d := range named {
		if slices.Contains(l.dataNodes, d) {
			both++
		}
	}
	if both == len(l.dataNodes) && both == len(named) {
		return false, nil
	}
	return both == len(named), fmt.Errorf("%w: its last block was written to %d DataNodes, and the NameNode names %d of them and %d others",
		filesink.ErrEnded, len(l.dataNodes), both, len(named)-both)
}

// await returns nil once the NameNode, asked by ask, names all DataNodes that have the block, and no others. After it was in
// vain for one file others do not wait for a while.
func (h *holders) await(ctx context.Context, last held, ask func() ([]string, error)) error {
	began, pause := time.Now(), reportWait
	for {
		named, err := ask()
		if err != nil {
			return err
		}
		wait, err := last.check(named)
		if !wait {
			return err
		}
		h.mu.Lock()
		if time.Since(began) > reportPatience {
			h.vain = time.Now()
		}
		vain := time.Since(h.vain) < reportPatience
		h.mu.Unlock()
		if vain {
			return err
		}
		if err := pause.Wait(ctx); err != nil {
			return err
		}
	}
}
