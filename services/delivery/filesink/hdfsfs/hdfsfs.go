// Package hdfsfs is a filesink.FS on HDFS.
//
// What it rests on, measured with colinmarc/hdfs v2.4.0 against HDFS 3.4: only a FileWriter's Close says
// that bytes are written; Close may be repeated after ErrReplicating, but after any other error a
// second one can complete a file with bytes that never were. Repeated, it no longer says which block is the
// last, and the NameNode did not hear of it before when it was still waiting for the block before that; so no
// FileWriter writes more than one block. A Client renews the leases of its files for as long as it lives. So
// every operation has a client to itself, and a client that saw an error is closed: then the NameNode takes the
// lease away after its soft limit, a minute, and Take gets the file. What the library's appends lack is in append.go;
// packets.go writes the data itself.
package hdfsfs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/colinmarc/hdfs/v2"

	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/failpoint"
)

const (
	// operationTimeout bounds one operation, Take's waiting apart. What hangs longer is cut.
	operationTimeout = time.Minute
	// maxIdle is how many clients are kept for the next operation.
	maxIdle = 8
	// maxAge is how long a client is used: what the NameNode gave it to encrypt with expires.
	maxAge = 10 * time.Minute
	// trustFor is how long a client is taken to work after an operation that did.
	trustFor = time.Second
	// takePoll is the time between two attempts to get a file that a writer still holds.
	takePoll = time.Second
)

// FS is an HDFS. All its methods but New and Close need the NameNode.
type FS struct {
	cluster *cluster
	log     *slog.Logger

	holders *holders

	mu     sync.Mutex
	idle   []*client
	active string // the NameNode that answered last; the first one is asked first
	closed bool
}

// New reads Hadoop's files where they are to be used, and connects to nothing yet.
func New(h *config.HDFS, log *slog.Logger) (*FS, error) {
	c, err := newCluster(h)
	if err != nil {
		return nil, err
	}
	if c.login != nil {
		c.login.log = log
	}
	return &FS{cluster: c, log: log, holders: newHolders()}, nil
}

// Close implements filesink.FS.
func (f *FS) Close() error {
	f.mu.Lock()
	idle := f.idle
	f.idle, f.closed = nil, true
	f.mu.Unlock()
	for _, c := range idle {
		c.close()
	}
	if f.cluster.login != nil {
		f.cluster.login.close()
	}
	return nil
}

// Take implements filesink.FS. The rename does not shut out a writer, since the NameNode goes by the
// file's id; the truncate does: it needs the lease.
func (f *FS) Take(ctx context.Context, from, alias string, length int64) error {
	f.holders.forget(from)
	return f.with(ctx, 0, func(ctx context.Context, c *client) error {
		if err := c.rename(from, alias); err != nil {
			return fmt.Errorf("take %s: %w", from, err)
		}
		failpoint.At(failpoint.FSRenamed)
		for said := false; ; {
			hung := time.AfterFunc(operationTimeout, c.cut)
			done, err := c.Truncate(alias, length)
			hung.Stop()
			switch {
			case done:
				return nil
			case err == nil || isHeld(err):
				if !said {
					f.log.Info("waiting for the lease of a file's last writer", "file", alias, "length", length)
				}
				said = true
			case errors.Is(err, os.ErrInvalid):
				return fmt.Errorf("take %s: %s has fewer than %d bytes: %w", from, alias, length, err)
			default:
				return fmt.Errorf("take %s: %w", from, errOf(err))
			}
			if err := sleep(ctx, takePoll); err != nil {
				return fmt.Errorf("take %s: %w", from, err)
			}
		}
	})
}

// rename is the first half of Take. A file at from beside one at alias comes from a writer that created
// it again after it had been taken; nothing of it was ever acknowledged.
func (c *client) rename(from, alias string) error {
	_, err := c.Stat(alias)
	switch {
	case err == nil:
		err = c.Remove(from)
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	case errors.Is(err, os.ErrNotExist):
		err = c.Rename(from, alias)
	}
	return errOf(err)
}

// isHeld says whether a truncate has to wait for a lease or for a block's recovery.
func isHeld(err error) bool {
	var remote hdfs.Error
	if !errors.As(err, &remote) {
		return false
	}
	switch remote.Exception() {
	case "org.apache.hadoop.hdfs.protocol.AlreadyBeingCreatedException", "org.apache.hadoop.hdfs.protocol.RecoveryInProgressException":
		return true
	}
	return false
}

// Rename implements filesink.FS.
func (f *FS) Rename(ctx context.Context, from, to string) error {
	f.holders.forget(from)
	return f.with(ctx, operationTimeout, func(_ context.Context, c *client) error {
		if _, err := c.Stat(to); err == nil {
			return fmt.Errorf("rename %s: %s: %w", from, to, filesink.ErrExist)
		} else if !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("rename %s: %w", from, errOf(err))
		}
		if _, err := c.Stat(from); err != nil {
			return fmt.Errorf("rename %s: %w", from, errOf(err))
		}
		if path.Dir(to) != path.Dir(from) {
			if err := c.MkdirAll(path.Dir(to), c.cluster.dirMode); err != nil {
				return fmt.Errorf("rename %s: %w", from, err)
			}
		}
		if err := c.Rename(from, to); err != nil {
			return fmt.Errorf("rename %s to %s: %w", from, to, errOf(err))
		}
		return nil
	})
}

// Size implements filesink.FS.
func (f *FS) Size(ctx context.Context, name string) (size int64, err error) {
	err = f.with(ctx, operationTimeout, func(_ context.Context, c *client) error {
		info, err := c.Stat(name)
		if err != nil {
			return fmt.Errorf("stat %s: %w", name, errOf(err))
		}
		size = info.Size()
		return nil
	})
	return size, err
}

// Remove implements filesink.FS.
func (f *FS) Remove(ctx context.Context, name string) error {
	f.holders.forget(name)
	return f.with(ctx, operationTimeout, func(_ context.Context, c *client) error {
		if err := c.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove %s: %w", name, err)
		}
		return nil
	})
}

// Probe implements filesink.FS. The NameNode refuses to rename even what does not exist while it is
// in safe mode.
func (f *FS) Probe(ctx context.Context) error {
	return f.with(ctx, operationTimeout, func(_ context.Context, c *client) error {
		err := c.Rename("/.spillway-probe", "/.spillway-probed")
		if err == nil || errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
			return nil
		}
		return fmt.Errorf("probe %s: %w", strings.Join(f.cluster.options.Addresses, ","), err)
	})
}

// explain adds what HDFS says, which the library's errors leave out, without the stack trace.
func explain(err error) error {
	var remote hdfs.Error
	if !errors.As(err, &remote) {
		return err
	}
	said, _, _ := strings.Cut(remote.Message(), "\n")
	return fmt.Errorf("%w: %s", err, said)
}

// isDenied says whether the NameNode works, but refuses this place.
func isDenied(err error) bool {
	if errors.Is(err, os.ErrPermission) {
		return true
	}
	var remote hdfs.Error
	if !errors.As(err, &remote) {
		return false
	}
	switch _, name, _ := strings.Cut(remote.Exception(), "org.apache.hadoop."); name {
	case "hdfs.protocol.NSQuotaExceededException", "hdfs.protocol.DSQuotaExceededException", "hdfs.protocol.QuotaByStorageTypeExceededException",
		"hdfs.protocol.FSLimitException$PathComponentTooLongException", "hdfs.protocol.FSLimitException$MaxDirectoryItemsExceededException",
		"fs.ParentNotDirectoryException", "fs.InvalidPathException":
		return true
	}
	return false
}

// errOf translates the errors that FS promises.
func errOf(err error) error {
	switch {
	case errors.Is(err, os.ErrExist):
		return fmt.Errorf("%w: %w", filesink.ErrExist, err)
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: %w", filesink.ErrNotExist, err)
	}
	return err
}

// with runs an operation on a client of its own. When ctx ends or the time is over, the client's
// connections are cut, so that the operation returns; with returns after it.
func (f *FS) with(ctx context.Context, timeout time.Duration, operate func(context.Context, *client) error) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	c, err := f.get(ctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, c.cut)
	err = explain(operate(ctx, c))
	if isDenied(err) {
		err = fmt.Errorf("%w: %w", filesink.ErrDenied, err)
	}
	if f.cluster.login == nil && err != nil && strings.HasSuffix(err.Error(), "unexpected sequence number") {
		err = fmt.Errorf("%w (the NameNode may want Kerberos, and hdfs.kerberos is not set)", err)
	}
	if cut := !stop(); cut {
		c.close()
		if err != nil {
			err = errors.Join(ctx.Err(), err)
		}
		return err
	}
	if err == nil || errors.Is(err, filesink.ErrExist) || errors.Is(err, filesink.ErrNotExist) || errors.Is(err, filesink.ErrEnded) {
		f.put(c)
	} else {
		c.close()
	}
	return err
}

// get returns a client that answers: an idle one, or a new one.
func (f *FS) get(ctx context.Context) (*client, error) {
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		f.mu.Lock()
		var c *client
		if n := len(f.idle); n > 0 {
			c, f.idle = f.idle[n-1], f.idle[:n-1]
		}
		f.mu.Unlock()
		if c == nil {
			return f.connect(ctx)
		}
		if time.Since(c.since) > maxAge {
			c.close()
			continue
		}
		if time.Since(c.used) < trustFor {
			return c, nil
		}
		// Its connection may have died meanwhile, and a write must not find that out half way.
		stop := context.AfterFunc(ctx, c.cut)
		_, err := c.Stat("/")
		if stop() && err == nil {
			return c, nil
		}
		c.close()
	}
}

// sleep waits for d, or for ctx's error.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
