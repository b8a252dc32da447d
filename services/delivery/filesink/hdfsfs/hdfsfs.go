// Package hdfsfs is a filesink.FS on HDFS.
//
// A file is created once, stays open under a lease while it is in use, and is closed once. Its
// blocks are written by code of this package (file.go, block.go, packets.go), since
// colinmarc/hdfs knows neither barriers nor heartbeats that can be told apart, nor DataNodes to
// leave out; the library has the connections to the NameNode, login and SASL (client.go,
// dial.go), and its messages (rpc.go). No pipeline is ever repaired or shrunk, so each of its
// DataNodes has every byte that was acknowledged, and whichever of them HDFS finishes a file
// from, these are there. What fails ends the file, and Take (take.go) finishes it.
//
// Goroutines: a reader of acks for each open block; two for the lease while there are open files
// (lease.go); some that look after DataNodes that failed (exclude.go). Close waits for them.
// Locks: FS.mu before file.mu; openBlock.send before openBlock.mu; exclusions.mu takes none.
package hdfsfs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/colinmarc/hdfs/v2"

	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/internal/config"
)

const (
	// operationTimeout bounds one operation, requestTimeout one request of those that are
	// repeated. What hangs longer is cut.
	operationTimeout = time.Minute
	requestTimeout   = 15 * time.Second
	// maxIdle is how many clients are kept for the next operation.
	maxIdle = 16
	// maxAge is how long a client is used: what the NameNode gave it to encrypt with expires.
	maxAge = 10 * time.Minute
	// trustFor is how long a client is taken to work after an operation that did.
	trustFor = time.Second
)

// FS is an HDFS. All its methods but New and Close need the NameNode.
type FS struct {
	cluster    *cluster
	log        *slog.Logger
	excluded   exclusions
	recoveries recoveries
	wg         sync.WaitGroup
	answered   atomic.Bool // a NameNode has answered a request
	left       sync.Map    // files, by path, that are open and that nobody writes: why

	mu         sync.Mutex
	idle       []*client
	active     string // the NameNode that answered last; the first one is asked first
	closed     bool
	lease      *lease    // of open files; nil: none
	shortSince time.Time // since when blocks have too few replicas; zero: they have not
}

// New reads Hadoop's files where they are to be used, and connects to nothing yet.
func New(h *config.HDFS, log *slog.Logger) (*FS, error) {
	c, err := newCluster(h, log)
	if err != nil {
		return nil, err
	}
	return &FS{cluster: c, log: log, excluded: exclusions{nodes: make(map[string]*excludedNode)},
		recoveries: recoveries{staleAfter: c.staleAfter, livenessOf: livenessOf}}, nil
}

// Close implements filesink.FS. Files that are open are given up.
func (f *FS) Close() error {
	f.mu.Lock()
	f.closed = true
	l := f.lease
	f.mu.Unlock()
	if l != nil {
		for _, x := range f.filesOf(l) {
			x.Abandon()
		}
	}
	f.wg.Wait()
	f.excluded.wg.Wait()
	f.mu.Lock()
	idle := f.idle
	f.idle = nil
	f.mu.Unlock()
	for _, c := range idle {
		c.close()
	}
	if f.cluster.login != nil {
		f.cluster.login.Close()
	}
	return nil
}

// Rename implements filesink.FS.
func (f *FS) Rename(ctx context.Context, from, to string) error {
	return f.with(ctx, operationTimeout, func(_ context.Context, c *client) error {
		if path.Dir(to) != path.Dir(from) {
			if err := c.makeDirs(path.Dir(to)); err != nil {
				return fmt.Errorf("rename %s: %w", from, err)
			}
		}
		if err := c.rename(from, to, false); err != nil {
			return fmt.Errorf("rename %s to %s: %w", from, to, placeErr(err))
		}
		return nil
	})
}

// Size implements filesink.FS.
func (f *FS) Size(ctx context.Context, name string) (size int64, err error) {
	err = f.with(ctx, operationTimeout, func(_ context.Context, c *client) error {
		info, err := c.Stat(name)
		if err != nil {
			return fmt.Errorf("stat %s: %w", name, placeErr(err))
		}
		size = info.Size()
		return nil
	})
	return size, err
}

// Remove implements filesink.FS.
func (f *FS) Remove(ctx context.Context, name string) error {
	return f.with(ctx, operationTimeout, func(_ context.Context, c *client) error {
		if err := c.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove %s: %w", name, placeErr(err))
		}
		return nil
	})
}

// Probe implements filesink.FS. The NameNode refuses to rename even what does not exist while it
// is in safe mode.
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
	switch exceptionOf(err) {
	case "hdfs.protocol.NSQuotaExceededException", "hdfs.protocol.DSQuotaExceededException", "hdfs.protocol.QuotaByStorageTypeExceededException",
		"hdfs.protocol.FSLimitException$PathComponentTooLongException", "hdfs.protocol.FSLimitException$MaxDirectoryItemsExceededException",
		"fs.ParentNotDirectoryException", "fs.InvalidPathException":
		return true
	}
	return false
}

// refusesPlace says whether a NameNode that works refuses what was asked of the namespace (to
// make, rename, remove or look at a file) because of the name or the place. There is no complete
// list of such exceptions: authorization providers have their own. So every exception counts but
// those that are about the cluster or the caller.
func refusesPlace(err error) bool {
	if errors.Is(err, os.ErrInvalid) || errors.Is(err, syscall.ENOTEMPTY) || isDenied(err) { // the first is a reserved name
		return true
	}
	var remote hdfs.Error
	if !errors.As(err, &remote) {
		return false // the NameNode did not answer
	}
	class := remote.Exception()
	switch class {
	case "java.io.IOException":
		return strings.Contains(remote.Message(), "Pathname too long") // in all, or too deep
	case "org.apache.hadoop.hdfs.protocol.AlreadyBeingCreatedException", "org.apache.hadoop.hdfs.protocol.RecoveryInProgressException",
		"org.apache.hadoop.hdfs.protocol.UnregisteredNodeException":
		return false
	}
	for _, cluster := range []string{"java.", "javax.", "org.apache.hadoop.ipc.", "org.apache.hadoop.security.", "org.apache.hadoop.hdfs.server.",
		"org.apache.hadoop.ha.", "org.apache.hadoop.net.", "org.apache.hadoop.util."} {
		if strings.HasPrefix(class, cluster) {
			return false
		}
	}
	return class != ""
}

// placeErr is errOf for what is asked of the namespace.
func placeErr(err error) error {
	if !errors.Is(err, os.ErrExist) && refusesPlace(err) {
		return fmt.Errorf("%w: %w", filesink.ErrDenied, explain(err))
	}
	return errOf(err)
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
	if err == nil || exceptionOf(err) != "" {
		f.answered.Store(true)
	} else if f.cluster.login == nil && hungUp(err, f.answered.Load()) {
		err = fmt.Errorf("%w (the NameNode may want Kerberos, and hdfs.kerberos is not set)", err)
	}
	if cut := !stop(); cut {
		c.close()
		if err != nil {
			err = errors.Join(ctx.Err(), err)
		}
		return err
	}
	if err == nil || exceptionOf(err) != "" || errors.Is(err, os.ErrNotExist) { // the connection is as it was
		f.put(c)
	} else {
		c.close()
	}
	return err
}

// hungUp reports whether an error is what a NameNode that wants Kerberos leaves to somebody
// without: an answer that the library takes for another call's, or, where the connection ends
// before it is read, none. The latter means it only as long as the NameNode has answered nothing.
func hungUp(err error, answered bool) bool {
	ends := []string{"unexpected sequence number"}
	if !answered {
		ends = append(ends, "broken pipe", "connection reset by peer", "EOF")
	}
	return slices.ContainsFunc(ends, func(end string) bool { return strings.HasSuffix(err.Error(), end) })
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
