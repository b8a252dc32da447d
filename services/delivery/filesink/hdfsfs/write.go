package hdfsfs

import (
	"context"
	"fmt"
	"path"

	"github.com/colinmarc/hdfs/v2"

	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/internal/failpoint"
)

// Write implements filesink.FS.
func (f *FS) Write(ctx context.Context, name string, length int64, data []byte) error {
	return f.with(ctx, operationTimeout, func(ctx context.Context, c *client) error {
		for {
			n, err := c.write(ctx, name, length, data)
			if err != nil {
				return err
			}
			length, data = length+int64(n), data[n:]
			if len(data) == 0 {
				return nil
			}
		}
	})
}

// write is Write of what fits into the block at length. It returns how much that was.
func (c *client) write(ctx context.Context, name string, length int64, data []byte) (int, error) {
	w, blockSize, err := c.open(ctx, name, length)
	if err != nil {
		return 0, fmt.Errorf("write %s: %w", name, err)
	}
	failpoint.At(failpoint.FSCreated)
	data = data[:min(int64(len(data)), blockSize-length%blockSize)]
	nodes, err := c.send(ctx, w, length%blockSize, data)
	if err == nil {
		failpoint.At(failpoint.FSWritten)
		err = complete(ctx, w)
	}
	if err != nil {
		c.cut()
		abandon(w)
		return 0, fmt.Errorf("write %s: %w", name, err)
	}
	if nodes != nil {
		c.holders.set(name, held{blockSize, nodes})
	}
	return len(data), nil
}

// send hands data to DataNodes, all of it for the block that is to have offset bytes, and returns who they are: nil without data.
func (c *client) send(ctx context.Context, w *hdfs.FileWriter, offset int64, data []byte) ([]string, error) {
	if deadline, ok := ctx.Deadline(); ok {
		if err := w.SetDeadline(deadline); err != nil {
			return nil, err
		}
	}
	if len(data) == 0 {
		return nil, nil
	}
	conn, has, err := c.begin(w)
	if err != nil {
		return nil, err
	}
	if has != offset {
		return nil, fmt.Errorf("the last block has %d bytes, not %d", has, offset)
	}
	if err := conn.send(offset, data); err != nil {
		return nil, err
	}
	advance(w, offset+int64(len(data)))
	return conn.nodes, nil
}

// complete closes w, which says that its bytes are written, and waits for the NameNode to hear of a replica.
func complete(ctx context.Context, w *hdfs.FileWriter) error {
	wait := reportWait
	for {
		err := w.Close()
		if !hdfs.IsErrReplicating(err) {
			return err
		}
		if err := wait.Wait(ctx); err != nil {
			return err
		}
	}
}

// open opens the file for writing at its end, which must be at length. It has blocks of blockSize.
func (c *client) open(ctx context.Context, name string, length int64) (w *hdfs.FileWriter, blockSize int64, err error) {
	if length == 0 {
		return c.create(name)
	}
	last, ok := c.holders.get(name)
	if !ok {
		return nil, 0, fmt.Errorf("%w: its last block was not written here", filesink.ErrEnded)
	}
	err = c.holders.await(ctx, last, func() ([]string, error) {
		size, named, err := c.locate(name)
		if err == nil && size != length {
			err = fmt.Errorf("the file has %d bytes, not %d", size, length)
		}
		if length%last.blockSize == 0 { // the next block begins, wherever this one is
			named = last.dataNodes
		}
		return named, err
	})
	if err != nil {
		return nil, 0, err
	}
	if w, err = c.Append(name); err != nil {
		return nil, 0, errOf(err)
	}
	if block := blockOf(w); block != nil { // else the next one begins
		if _, ended := last.check(dataNodes(block)); ended != nil { // a report came in between
			if err := complete(ctx, w); err != nil { // with nothing written
				return nil, 0, err
			}
			return nil, 0, ended
		}
	}
	return w, last.blockSize, nil
}

// create makes the file and its directories. The NameNode refuses a name that is taken.
func (c *client) create(name string) (w *hdfs.FileWriter, blockSize int64, err error) {
	if err := c.MkdirAll(path.Dir(name), c.cluster.dirMode); err != nil {
		return nil, 0, err
	}
	if err := c.checkReplicated(path.Dir(name)); err != nil {
		return nil, 0, err
	}
	replication := c.cluster.replication
	blockSize = c.cluster.blockSize
	if replication == 0 || blockSize == 0 {
		defaults, err := c.ServerDefaults()
		if err != nil {
			return nil, 0, err
		}
		if replication == 0 {
			replication = defaults.Replication
		}
		if blockSize == 0 {
			blockSize = defaults.BlockSize
		}
	}
	w, err = c.CreateFile(name, replication, blockSize, c.cluster.fileMode)
	return w, blockSize, errOf(err)
}

// checkReplicated is nil when new files in the directory are replicated. The library would ask for a file as its directory has it
// and then write an erasure-coded one like any other: what the DataNodes then hold is no such file.
func (c *client) checkReplicated(dir string) error {
	info, err := c.Stat(dir)
	if err != nil {
		return err
	}
	if status, ok := info.Sys().(*hdfs.FileStatus); ok && status.GetEcPolicy().GetId() != 0 { // 0 is replication
		return fmt.Errorf("%w: %s is erasure-coded, which the HDFS client cannot write; hdfs ec -setPolicy -replicate makes it replicated", filesink.ErrDenied, dir)
	}
	return nil
}
