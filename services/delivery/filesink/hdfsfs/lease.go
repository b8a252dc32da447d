package hdfsfs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"
	"strconv"
	"time"

	"github.com/colinmarc/hdfs/v2"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/internal/backoff"
	"github.com/spillwayio/spillway/services/internal/failpoint"
)

const (
	// renewEvery is how often a lease is renewed; after a minute others could take its files.
	renewEvery = 20 * time.Second
	// renewPatience is how long that may fail until the files end. After
	// dfs.namenode.lease-hard-limit-sec, 20 minutes, the NameNode would end them.
	renewPatience = 5 * time.Minute
	// longestShort is how long a file at most goes on whose last block has too few replicas.
	longestShort = 5 * time.Minute
)

// lease is what files are open under: a client name that is used for these files and never again,
// so that a request that comes too late never finds a lease of the same name. It is there while
// files are open.
type lease struct {
	name  string
	files map[*file]struct{} // under FS.mu
	stop  context.CancelFunc
}

// newName is a client name that nobody had.
func newName() string { return "spillway-" + rand.Text() }

// Create implements filesink.FS. A name that is taken is refused by the NameNode.
func (f *FS) Create(ctx context.Context, name string, notify func()) (filesink.File, error) {
	x := &file{p: f, path: name, sync: f.cluster.sync, notify: notify}
	if err := f.hold(x); err != nil {
		return nil, err
	}
	err := f.with(ctx, operationTimeout, func(_ context.Context, c *client) error {
		var err error
		if x.replication, x.blockSize, err = c.fileDefaults(); err == nil {
			x.id, err = c.createFile(x)
		}
		return err
	})
	if err != nil {
		f.release(x)
		return nil, fmt.Errorf("create %s: %w", name, err)
	}
	failpoint.At(failpoint.FSCreated)
	return x, nil
}

// createFile makes the file, and its directories where they are not there. It refuses places
// where files are more than their blocks on DataNodes.
func (c *client) createFile(f *file) (id uint64, err error) {
	made, err := c.create(f.path, f.holder, f.replication, f.blockSize)
	if errors.Is(err, os.ErrNotExist) {
		if err := c.makeDirs(path.Dir(f.path)); err != nil {
			return 0, err
		}
		made, err = c.create(f.path, f.holder, f.replication, f.blockSize)
	}
	if exceptionOf(err) == "hdfs.UnknownCryptoProtocolVersionException" {
		return 0, fmt.Errorf("%w: %s is in an encryption zone, which Spillway cannot write to: %w", filesink.ErrDenied, path.Dir(f.path), err)
	}
	if err != nil {
		return 0, placeErr(err)
	}
	var refused string
	switch {
	case made.ecPolicy != policyReplication:
		refused = "is erasure-coded, which Spillway cannot write; hdfs ec -setPolicy -replicate makes it replicated"
	case made.storagePolicy == policyLazyPersist:
		refused = "has the storage policy LAZY_PERSIST, which keeps data in memory; hdfs storagepolicies -setStoragePolicy gives it another"
	default:
		return made.id, nil
	}
	err = fmt.Errorf("%w: %s %s", filesink.ErrDenied, path.Dir(f.path), refused)
	if removing := c.Remove(f.path); removing != nil && !errors.Is(removing, os.ErrNotExist) {
		err = fmt.Errorf("%w; the empty file stays: %w", err, removing)
	}
	return 0, err
}

// makeDirs makes a directory and those above it. ErrDenied says that there cannot be one: a file
// is in the way, or what is above it is no place for directories (a snapshot).
func (c *client) makeDirs(dir string) error {
	err := c.MkdirAll(dir, c.cluster.dirMode)
	switch {
	case errors.Is(err, os.ErrExist):
		return fmt.Errorf("%w: %s is a file: %w", filesink.ErrDenied, dir, err)
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: %s cannot be a directory: %w", filesink.ErrDenied, dir, explain(err))
	}
	return placeErr(err)
}

// fileDefaults is what new files get: what the configuration says, else the NameNode's defaults.
func (c *client) fileDefaults() (replication int, blockSize int64, err error) {
	replication, blockSize = c.cluster.replication, c.cluster.blockSize
	if replication > 0 && blockSize > 0 {
		return replication, blockSize, nil
	}
	defaults, err := c.ServerDefaults()
	if err != nil {
		return 0, 0, err
	}
	if replication == 0 {
		replication = defaults.Replication
	}
	if blockSize == 0 {
		blockSize = defaults.BlockSize / chunkBytes * chunkBytes
	}
	return replication, blockSize, nil
}

// hold gives a file a lease.
func (f *FS) hold(x *file) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return errors.New("the file system is closed")
	}
	if f.lease == nil {
		l := &lease{name: newName(), files: make(map[*file]struct{})}
		var ctx context.Context
		ctx, l.stop = context.WithCancel(context.Background())
		f.wg.Go(func() {
			f.renew(ctx, l, func() error { return f.insist(ctx, func(c *client) error { return c.renewLease(l.name) }) })
		})
		f.wg.Go(func() { f.watch(ctx, l) })
		f.lease = l
	}
	f.lease.files[x] = struct{}{}
	x.holder = f.lease.name
	x.lease = f.lease
	return nil
}

// release implements protocol. The last file of a lease ends it.
func (f *FS) release(x *file) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(x.lease.files, x)
	if len(x.lease.files) == 0 {
		f.retireLocked(x.lease)
	}
}

func (f *FS) retireLocked(l *lease) {
	l.stop()
	if f.lease == l {
		f.lease = nil
	}
}

// filesOf is a copy.
func (f *FS) filesOf(l *lease) []*file {
	f.mu.Lock()
	defer f.mu.Unlock()
	files := make([]*file, 0, len(l.files))
	for x := range l.files {
		files = append(files, x)
	}
	return files
}

// renew renews a lease until it is retired. When that fails for too long its files end.
func (f *FS) renew(ctx context.Context, l *lease, request func() error) {
	renewed, failing := time.Now(), false
	for sleep(ctx, renewEvery) == nil {
		err := request()
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			if failing {
				f.log.Info("the lease of the open files is renewed again", "after", time.Since(renewed).Round(time.Second))
			}
			renewed, failing = time.Now(), false
		case time.Since(renewed) < renewPatience:
			if !failing {
				f.log.Warn("cannot renew the lease of the open files; they end when that does not change", "end_after", renewPatience, "error", err)
			}
			failing = true
		default:
			f.mu.Lock()
			f.retireLocked(l)
			f.mu.Unlock()
			for _, x := range f.filesOf(l) {
				x.end(fmt.Errorf("its lease could not be renewed for %s: %w", renewPatience, err))
			}
			return
		}
	}
}

// watch keeps the blocks of a lease alive until it is retired, and ends those whose DataNodes are
// silent.
func (f *FS) watch(ctx context.Context, l *lease) {
	every := min(time.Second, f.cluster.heartbeat/2)
	for sleep(ctx, every) == nil {
		now := time.Now()
		for _, x := range f.filesOf(l) {
			x.tick(now, f.cluster.heartbeat)
		}
	}
}

// requestWait spaces out requests that are repeated; it is copied for each wait.
var requestWait = backoff.Backoff{Initial: time.Millisecond, Max: time.Second}

// insist repeats a request that may be repeated until the NameNode answers it or the time is
// over. Some of its answers mean that it cannot tell yet.
func (f *FS) insist(ctx context.Context, request func(*client) error) error {
	return insist(ctx, func() error {
		return f.with(ctx, requestTimeout, func(_ context.Context, c *client) error { return request(c) })
	})
}

func insist(ctx context.Context, request func() error) error {
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	var unplacedSince time.Time // without an outage in between, of the NameNode or of all DataNodes
	for pause := requestWait; ; {
		err := request()
		switch exceptionOf(err) {
		case "", "ipc.StandbyException", "ipc.RetriableException", "hdfs.server.namenode.SafeModeException", "hdfs.server.namenode.NotReplicatedYetException":
			unplacedSince = time.Time{}
		default:
			running, _, ok := unplaced(err)
			if !ok {
				return err
			}
			switch {
			case running == 0:
				unplacedSince = time.Time{}
			case unplacedSince.IsZero():
				unplacedSince = time.Now()
			case time.Since(unplacedSince) > placementPatience:
				return err
			}
		}
		if err == nil || errors.Is(err, filesink.ErrDenied) {
			return err
		}
		if waiting := pause.Wait(ctx); waiting != nil {
			return err
		}
	}
}

// placementPatience is for how long a NameNode is asked for a block again that has DataNodes and
// chooses none of them. In the seconds after its start they have registered, and have not told how
// much room they have. A HDFS that is full answers the same.
const placementPatience = 10 * time.Second

var placement = regexp.MustCompile(`There are (\d+) datanode\(s\) running and (?:no|(\d+)) node\(s\) are excluded`)

// unplaced tells an answer of a NameNode that could place no replica of a new block: how many
// DataNodes it knows, and how many of them it was not to take, or tried in vain, as
// BlockManager.chooseTarget4NewBlock counts them.
func unplaced(err error) (running, excluded int, ok bool) {
	var remote hdfs.Error
	if !errors.As(err, &remote) {
		return 0, 0, false
	}
	m := placement.FindStringSubmatch(remote.Message())
	if m == nil {
		return 0, 0, false
	}
	running, _ = strconv.Atoi(m[1])  // digits
	excluded, _ = strconv.Atoi(m[2]) // none is 0
	return running, excluded, true
}

// addBlock implements protocol.
func (f *FS) addBlock(ctx context.Context, x *file, previous protoreflect.Message) (l *located, err error) {
	for excluded := f.excluded.list(); ; excluded = nil {
		tooFew := false // DataNodes besides those that are excluded
		err = f.insist(ctx, func(c *client) error {
			l, err = c.addBlock(x.path, x.holder, x.id, previous, excluded)
			if running, tried, ok := unplaced(err); ok && len(excluded) > 0 && 0 < running && running <= tried {
				tooFew = true
				return nil
			}
			return err
		})
		if !tooFew && (len(excluded) == 0 || exceptionOf(err) != "java.io.IOException") {
			break
		}
		f.excluded.forget()
	}
	if err != nil {
		return nil, fmt.Errorf("add a block: %w", err)
	}
	if len(l.nodes) == 0 {
		return nil, errors.New("add a block: the NameNode names no DataNode")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); len(l.nodes) >= x.replication {
		f.shortSince = time.Time{}
	} else {
		// What is open is not replicated, so the file is closed soon: the first one with the next
		// commit, later ones less often when the cluster has no more DataNodes.
		if f.shortSince.IsZero() {
			f.shortSince = now
		}
		defer x.rollSoon(now.Add(min(now.Sub(f.shortSince), longestShort)))
	}
	return l, nil
}

// abandonBlock implements protocol.
func (f *FS) abandonBlock(ctx context.Context, x *file, block protoreflect.Message) error {
	return f.insist(ctx, func(c *client) error { return c.abandonBlock(x.path, x.holder, x.id, block) })
}

// fsync implements protocol.
func (f *FS) fsync(ctx context.Context, x *file, lastBlock int64) error {
	return f.insist(ctx, func(c *client) error { return c.fsync(x.path, x.holder, x.id, lastBlock) })
}

// complete implements protocol. It waits for the NameNode to hear of a replica of each block.
func (f *FS) complete(ctx context.Context, x *file, last protoreflect.Message) error {
	for pause := requestWait; ; {
		var done bool
		err := f.insist(ctx, func(c *client) (err error) {
			done, err = c.complete(x.path, x.holder, x.id, last)
			return err
		})
		if err != nil || done {
			return err
		}
		if err := pause.Wait(ctx); err != nil {
			return fmt.Errorf("the NameNode has not heard of all its blocks: %w", err)
		}
	}
}

// open implements protocol.
func (f *FS) open(ctx context.Context, x *file, l *located) (*openBlock, error) {
	ctx, cancel := context.WithTimeout(ctx, setupPatience)
	defer cancel()
	var conn *blockConn
	err := f.with(ctx, 0, func(ctx context.Context, c *client) (err error) {
		conn, err = c.dialBlock(ctx, l, l.nodes[0].addr)
		return err
	})
	if err != nil {
		return nil, err
	}
	b, err := setUp(ctx, conn, l, x.holder, x.sync, func(err error, node int) {
		x.end(err)
		f.wg.Go(func() { f.exclude(l, node) })
	})
	if err == nil {
		f.wg.Go(b.readAcks)
	}
	return b, err
}
