package buffer

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spillwayio/spillway/services/buffer/queue"
	"github.com/spillwayio/spillway/services/buffer/store/nutsstore"
)

// strayReadBytes bounds the data directory of a queue that is not configured, for it to be read:
// every byte of it is.
const strayReadBytes = 4 << 30

// warnStray names the data directories of queues that are not in the configuration, with what is
// pending in them: a queue may have been renamed by mistake, and nobody delivers what it holds.
func (s *Service) warnStray(ctx context.Context) {
	entries, err := os.ReadDir(s.cfg.DataDir)
	if err != nil {
		return // opening the queues says so
	}
	for _, e := range entries {
		dir := filepath.Join(s.cfg.DataDir, e.Name())
		if ctx.Err() != nil || !e.IsDir() || s.queues[e.Name()] != nil || !nutsstore.IsStore(dir) {
			continue
		}
		log := s.deps.Log.With("queue", e.Name(), "dir", dir)
		const warning = "a queue is not in the configuration any more, and its data is still there: name it in the file again to deliver what is pending, or remove its directory"
		if size := nutsstore.DiskBytes(dir); size > strayReadBytes {
			log.Warn(warning, "bytes", size, "pending", "too much to be counted here: spillway inspect tells")
			continue
		}
		pending, err := pendingIn(dir)
		if err != nil {
			log.Warn(warning, "error", err)
			continue
		}
		log.Warn(warning, "pending", pending)
	}
}

// pendingIn is what is pending in the data directory of a queue that nobody has open. Nothing is
// written.
func pendingIn(dir string) (pending []string, err error) {
	in, err := nutsstore.Inspect(dir)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	q, err := queue.Open(queue.Config{}, in.Open)
	if err != nil {
		return nil, err
	}
	for _, v := range q.Subscriptions() {
		pending = append(pending, fmt.Sprintf("%s: %d records and %d offsets to be refetched", v.Name, v.PendingRecords, v.Deferred))
	}
	return pending, nil
}
