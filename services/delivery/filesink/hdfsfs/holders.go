package hdfsfs

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/spillwayio/spillway/services/delivery/filesink"
)

const (
	// reportPatience is how long an append waits for the NameNode to hear of all replicas. DataNodes report at once, or
	// after dfs.blockreport.incremental.intervalMsec.
	reportPatience = 5 * time.Second
	// maxReportWait is the longest time between two questions whether a block was reported to the NameNode.
	maxReportWait = 128 * time.Millisecond
	// maxHeld is how many files are remembered. Those that another process finishes are never forgotten else.
	maxHeld = 10_000
)

// holders remembers of the files that an FS writes which DataNodes have their last blocks: those that acknowledged the last write.
// Appends go to them and no others. When one is not named in an append, the block is lost to it; and one more may have been
// given a copy in the middle of an append, which is too short and bears the same generation stamp: it makes the next append fail, and
// then HDFS recovers the file by that copy, or not at all. So a file whose block is not where it was written ends, and a new
// one has all its replicas.
type holders struct {
	mu     sync.Mutex
	byFile map[string][]string
	vain   time.Time // when somebody waited last for one that did not come
}

func newHolders() *holders { return &holders{byFile: make(map[string][]string)} }

// set notes who has the last block of a file.
func (h *holders) set(name string, dataNodes []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.byFile[name]; !ok && len(h.byFile) >= maxHeld {
		for other := range h.byFile {
			delete(h.byFile, other)
			break
		}
	}
	h.byFile[name] = dataNodes
}

func (h *holders) forget(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.byFile, name)
}

// check compares the DataNodes that the NameNode names for the last block of a file with those that have it. The error wraps
// ErrEnded; wait says that it may be too early to say so.
func (h *holders) check(name string, named []string) (wait bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	have, ok := h.byFile[name]
	if !ok {
		return false, fmt.Errorf("%w: it is not known which DataNodes have all of its last block", filesink.ErrEnded)
	}
	both := 0
	for _, d := range named {
		if slices.Contains(have, d) {
			both++
		}
	}
	if both == len(have) && both == len(named) {
		return false, nil
	}
	return both == len(named), fmt.Errorf("%w: its last block was written to %d DataNodes, and the NameNode names %d of them and %d others",
		filesink.ErrEnded, len(have), both, len(named)-both)
}

// await returns nil once the NameNode, asked by ask, names all DataNodes that have the file's last block, and no others. After
// it was in vain for one file others do not wait for a while.
func (h *holders) await(ctx context.Context, name string, ask func() ([]string, error)) error {
	began := time.Now()
	for pause := time.Millisecond; ; pause = min(2*pause, maxReportWait) {
		named, err := ask()
		if err != nil {
			return err
		}
		wait, err := h.check(name, named)
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
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}
