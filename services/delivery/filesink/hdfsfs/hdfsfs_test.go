package hdfsfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/colinmarc/hdfs/v2"
	"go.uber.org/goleak"

	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/delivery/filesink/fstest"
	"github.com/spillwayio/spillway/services/internal/config"
)

var _ filesink.FS = (*FS)(nil)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hdfsConf is that of a running HDFS, a secure one where E2E_KEYTAB is set; without one the test
// is skipped.
func hdfsConf(t testing.TB) *config.HDFS {
	t.Helper()
	h := &config.HDFS{URL: os.Getenv("E2E_HDFS")}
	if h.URL == "" {
		t.Skip("needs an HDFS: `make stack-up`, then set E2E_HDFS=hdfs://127.0.0.1:8020")
	}
	if keytab := os.Getenv("E2E_KEYTAB"); keytab != "" {
		h.ConfDir = os.Getenv("E2E_CONF_DIR")
		h.Kerberos = &config.Kerberos{Principal: "spillway", Keytab: keytab, Krb5Conf: os.Getenv("E2E_KRB5_CONF")}
	}
	return h
}

// newFS is an FS on the running HDFS and a directory of the test's own.
func newFS(t *testing.T) (*FS, string) {
	t.Helper()
	f, err := New(hdfsConf(t), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	dir := fmt.Sprintf("/hdfsfs-test/%s-%d", strings.ReplaceAll(t.Name(), "/", "-"), time.Now().UnixNano())
	return f, dir
}

// other is a client that is none of the FS's, as another process has it.
func other(t *testing.T, f *FS) *hdfs.Client {
	t.Helper()
	options := f.cluster.options
	if login := f.cluster.login; login != nil {
		tickets, err := login.Get()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { login.Release(tickets) })
		options.KerberosClient = tickets.Client
	}
	c, err := hdfs.NewClient(options)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func closeFS(t *testing.T, f *FS) {
	t.Helper()
	if err := f.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func TestConformance(t *testing.T) {
	fstest.Run(t, func(t *testing.T) fstest.FS {
		f, dir := newFS(t)
		c := other(t, f)
		t.Cleanup(func() {
			if err := c.RemoveAll(dir); err != nil {
				t.Errorf("remove %s: %v", dir, err)
			}
			if err := c.Close(); err != nil {
				t.Errorf("close client: %v", err)
			}
		})
		return fstest.FS{FS: f, Dir: dir, Read: c.ReadFile, Shorten: func(p string, length int64) error { return shorten(t, f, p, length) }}
	})
}

// shorten cuts a closed file, and waits until HDFS has done it.
func shorten(t *testing.T, f *FS, name string, length int64) error {
	return f.with(t.Context(), operationTimeout, func(ctx context.Context, c *client) error {
		holder := newName()
		done, err := c.truncate(name, holder, length)
		for err == nil && !done {
			if err = sleep(ctx, 100*time.Millisecond); err == nil {
				done, err = c.recoverLease(name, holder)
			}
		}
		return err
	})
}

// take is Take until it is done.
func take(ctx context.Context, f *FS, t filesink.Taking) error {
	for {
		err := f.Take(ctx, t)
		if !errors.Is(err, filesink.ErrWait) {
			return err
		}
		if sleep(ctx, 200*time.Millisecond) != nil {
			return err
		}
	}
}

// TestSync: a commit may have any size, in both modes; what is committed is there after a
// takeover, byte by byte, and the NameNode knows of the block's length from the first commit on.
func TestSync(t *testing.T) {
	for _, mode := range []string{"flush", "disk"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			h := hdfsConf(t)
			h.Sync, h.BlockSize = mode, config.MiB
			f, err := New(h, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			defer closeFS(t, f)
			c := other(t, f)
			defer c.Close()
			dir := fmt.Sprintf("/hdfsfs-test/sync-%s-%d", mode, time.Now().UnixNano())
			x, err := f.Create(t.Context(), dir+"/a.tmp", func() {})
			if err != nil {
				t.Fatal(err)
			}
			var want []byte
			for i, n := range []int{1, 100, 411, 700, 5, 300001, 3, 511, 513, 1, 262144, 77, 2 << 20, 1, 0} {
				data := bytes.Repeat([]byte{byte('a' + i), byte(n), '\n'}, n/3+1)[:n]
				if err := x.Commit(t.Context(), data); err != nil {
					t.Fatalf("commit %d bytes at %d: %v", n, len(want), err)
				}
				want = append(want, data...)
				if i == 0 {
					if size, err := f.Size(t.Context(), dir+"/a.tmp"); err != nil || size != 1 {
						t.Errorf("after the first commit the NameNode knows of %d bytes, %v", size, err)
					}
				}
			}
			tail := bytes.Clone(x.Tail())
			if !bytes.HasSuffix(want, tail) || len(tail) != len(want)%chunkBytes {
				t.Errorf("a tail of %d bytes after %d", len(tail), len(want))
			}
			if err := x.Commit(t.Context(), []byte("not settled")); err != nil {
				t.Fatal(err)
			}
			x.Abandon()
			began := time.Now()
			if err := take(t.Context(), f, filesink.Taking{From: dir + "/a.tmp", Alias: dir + "/b.tmp", Spare: dir + "/c.tmp", Length: int64(len(want)), Tail: tail, Since: began}); err != nil {
				t.Fatal(err)
			}
			t.Logf("taken after %s", time.Since(began).Round(time.Millisecond))
			if got, err := c.ReadFile(dir + "/b.tmp"); err != nil || !bytes.Equal(got, want) {
				t.Errorf("the file has %d bytes of %d, or others: %v", len(got), len(want), err)
			}
		})
	}
}

// TestLeaseIsNotShared: a client name is there as long as files are open under it, and never
// again.
func TestLeaseIsNotShared(t *testing.T) {
	f, dir := newFS(t)
	defer closeFS(t, f)
	holders := make(map[string]int)
	for round := range 3 {
		a, err := f.Create(t.Context(), fmt.Sprintf("%s/%d-a", dir, round), func() {})
		if err != nil {
			t.Fatal(err)
		}
		b, err := f.Create(t.Context(), fmt.Sprintf("%s/%d-b", dir, round), func() {})
		if err != nil {
			t.Fatal(err)
		}
		holders[a.(*file).holder]++
		holders[b.(*file).holder]++
		a.Abandon()
		if err := b.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if f.lease != nil {
			t.Error("there is a lease without a file")
		}
	}
	if len(holders) != 3 {
		t.Errorf("three times two files were open under %v", holders)
	}
}

// Files are created with what the configuration says; appending leaves it. A file of several
// blocks is written across their borders.
func TestModesReplicationAndBlockSize(t *testing.T) {
	dir := fmt.Sprintf("/hdfsfs-test/%s-%d", t.Name(), time.Now().UnixNano())
	h := hdfsConf(t)
	h.Replication, h.BlockSize, h.Umask = 2, config.MiB, "027"
	f, err := New(h, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer closeFS(t, f)
	c := other(t, f)
	defer c.Close()
	defer c.RemoveAll(dir)
	data := make([]byte, 5<<20/2)
	for i := range data {
		data[i] = byte(i >> 8)
	}
	name := dir + "/a/file"
	if err := fstest.WriteFile(t.Context(), f, name, slices.Collect(slices.Chunk(data, 700_001))...); err != nil {
		t.Fatal(err)
	}
	if got, err := c.ReadFile(name); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read %d bytes, %v; not what was written", len(got), err)
	}
	info, err := c.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	status := info.Sys().(*hdfs.FileStatus)
	if got := info.Mode().Perm(); got != 0o640 || status.GetBlockReplication() != 2 || status.GetBlocksize() != 1<<20 {
		t.Errorf("mode %o, %d replicas, blocks of %d bytes; want 640, 2, 1 MiB", got, status.GetBlockReplication(), status.GetBlocksize())
	}
	for _, d := range []string{dir, dir + "/a"} {
		if info, err := c.Stat(d); err != nil || info.Mode().Perm() != 0o750 {
			t.Errorf("%s: %v, %v; want mode 750", d, info, err)
		}
	}
}

// TestWriteAcrossBlocks: one write may fill several blocks, end at the end of one, and go on in
// one that is begun.
func TestWriteAcrossBlocks(t *testing.T) {
	h := hdfsConf(t)
	h.BlockSize = 1 << 20
	f, err := New(h, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer closeFS(t, f)
	reader := other(t, f)
	defer reader.Close()
	for i := range 5 {
		name := fmt.Sprintf("/hdfsfs-test/blocks-%d/%d", time.Now().UnixNano(), i)
		var want []byte
		var commits [][]byte
		for _, n := range []int{2<<20 + 500_000 + i, 1<<20 - 500_000 - i, 1 << 20, 1, 3 << 20} {
			commits = append(commits, bytes.Repeat([]byte{byte('a' + i), byte(n), '\n'}, n/3+1)[:n])
			want = append(want, commits[len(commits)-1]...)
		}
		if i == 0 {
			commits, want = commits[:3], want[:4<<20] // the last block is full
		}
		if err := fstest.WriteFile(t.Context(), f, name, commits...); err != nil {
			t.Fatal(err)
		}
		if got, err := reader.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s has %d bytes, want %d: %v", name, len(got), len(want), err)
		}
	}
}

// A NameNode that accepts connections and says nothing must hold up nobody beyond the context.
func TestSilentNameNode(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns []net.Conn
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns = append(conns, c)
		}
	}()
	defer func() {
		l.Close()
		<-accepted
		for _, c := range conns {
			c.Close()
		}
	}()
	f, err := New(&config.HDFS{URL: "hdfs://" + l.Addr().String(), User: "me"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer closeFS(t, f)
	for name, operate := range map[string]func(context.Context) error{
		"Create": func(ctx context.Context) error { _, err := f.Create(ctx, "/a", func() {}); return err },
		"Take":   func(ctx context.Context) error { return f.Take(ctx, filesink.Taking{From: "/a", Alias: "/b"}) },
		"Rename": func(ctx context.Context) error { return f.Rename(ctx, "/a", "/b") },
		"Size":   func(ctx context.Context) error { _, err := f.Size(ctx, "/a"); return err },
		"Remove": func(ctx context.Context) error { return f.Remove(ctx, "/a") },
		"Probe":  f.Probe,
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			began := time.Now()
			err := operate(ctx)
			if err == nil || errors.Is(err, filesink.ErrExist) || errors.Is(err, filesink.ErrNotExist) {
				t.Errorf("%s: %v", name, err)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("returned after %s", took)
			}
		})
	}
}

// BenchmarkCommit commits to a file on the running HDFS.
func BenchmarkCommit(b *testing.B) {
	for _, size := range []int{1 << 10, 200 << 10, 1 << 20, 8 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			f, err := New(hdfsConf(b), slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			p := path.Join("/hdfsfs-test", fmt.Sprintf("bench-%d", time.Now().UnixNano()))
			x, err := f.Create(b.Context(), p, func() {})
			if err != nil {
				b.Fatal(err)
			}
			data := make([]byte, size)
			b.SetBytes(int64(size))
			for b.Loop() {
				if err := x.Commit(b.Context(), data); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			if err := errors.Join(x.Close(b.Context()), f.Remove(context.Background(), p)); err != nil {
				b.Error(err)
			}
		})
	}
}
