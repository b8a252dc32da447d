package filesink

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillwayio/spillway/services/internal/telemetry"
)

// timedFS is an FS whose calls are timed. The calls of a label are those that wait for the file
// system: a commit, for one, ends when the DataNodes have the data.
type timedFS struct {
	FS
	calls telemetry.Seconds
}

func newTimedFS(fs FS) *timedFS {
	return &timedFS{fs, telemetry.NewCallSeconds("spillway_delivery_file_call_seconds", "Time that calls of the file system take, on HDFS or a local directory.", "call")}
}

// Metrics implements delivery.Metered.
func (s *Sink) Metrics() []prometheus.Collector { return []prometheus.Collector{s.fs.calls} }

// Create implements FS.
func (t *timedFS) Create(ctx context.Context, path string, notify func()) (File, error) {
	defer t.since(time.Now(), "create")
	f, err := t.FS.Create(ctx, path, notify)
	if err != nil {
		return nil, err
	}
	return timedFile{f, t}, nil
}

// Take implements FS.
func (t *timedFS) Take(ctx context.Context, taking Taking) error {
	defer t.since(time.Now(), "take")
	return t.FS.Take(ctx, taking)
}

// Rename implements FS.
func (t *timedFS) Rename(ctx context.Context, from, to string) error {
	defer t.since(time.Now(), "rename")
	return t.FS.Rename(ctx, from, to)
}

// Remove implements FS.
func (t *timedFS) Remove(ctx context.Context, path string) error {
	defer t.since(time.Now(), "remove")
	return t.FS.Remove(ctx, path)
}

func (t *timedFS) since(began time.Time, call string) { t.calls.Since(began, call) }

type timedFile struct {
	File
	fs *timedFS
}

// Commit implements File.
func (f timedFile) Commit(ctx context.Context, data []byte) error {
	defer f.fs.since(time.Now(), "commit")
	return f.File.Commit(ctx, data)
}

// Close implements File.
func (f timedFile) Close(ctx context.Context) error {
	defer f.fs.since(time.Now(), "close")
	return f.File.Close(ctx)
}
