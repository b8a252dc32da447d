package hdfsfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/colinmarc/hdfs/v2"

	"github.com/spillwayio/spillway/services/delivery/manifest"
)

// Reader is an FS as a manifest.Tree.
type Reader struct{ *FS }

// ReadDir implements manifest.Tree.
func (r Reader) ReadDir(ctx context.Context, dir string) (all []manifest.Info, err error) {
	err = r.with(ctx, operationTimeout, func(_ context.Context, c *client) error {
		items, err := c.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("list %s: %w", dir, err)
		}
		all = make([]manifest.Info, len(items))
		for i, item := range items {
			all[i] = manifest.Info{Name: item.Name(), Dir: item.IsDir(), Size: item.Size()}
		}
		return nil
	})
	return all, err
}

// Open implements manifest.Tree. When ctx ends, reading does.
func (r Reader) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	c, err := r.get(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, c.cut)
	file, err := c.Open(name)
	if err != nil {
		stop()
		c.close()
		return nil, explain(fmt.Errorf("open %s: %w", name, err))
	}
	return &reading{ctx: ctx, fs: r.FS, client: c, file: file, stop: stop}, nil
}

// reading is a file that is read with a client of its own.
type reading struct {
	ctx    context.Context
	fs     *FS
	client *client
	file   *hdfs.FileReader
	stop   func() bool
	failed bool
}

// Read implements io.Reader. A DataNode that is silent ends it.
func (r *reading) Read(p []byte) (int, error) {
	if err := r.file.SetDeadline(time.Now().Add(operationTimeout)); err != nil {
		return 0, err
	}
	n, err := r.file.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.failed = true
		if r.ctx.Err() != nil {
			err = r.ctx.Err()
		}
	}
	return n, err
}

// Close implements io.Closer.
func (r *reading) Close() error {
	err := r.file.Close()
	if !r.stop() || r.failed || err != nil {
		r.client.close()
		return err
	}
	r.fs.put(r.client)
	return nil
}
