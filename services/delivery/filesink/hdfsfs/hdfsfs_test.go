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
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/colinmarc/hdfs/v2"
	"go.uber.org/goleak"

	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/delivery/filesink/fstest"
	"github.com/spillwayio/spillway/services/internal/config"
)

var _ filesink.FS = (*FS)(nil)

// TestMain: the library leaves a goroutine behind for each block whose connection broke while its own writer was at it, as it is
// in some tests.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/colinmarc/hdfs/v2/internal/transfer.(*blockWriteStream).ackPackets"))
}

// hdfsConf is that of a running HDFS, a secure one where E2E_KEYTAB is set; without one the test is skipped.
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
		tickets, err := login.get()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { login.release(tickets) })
		options.KerberosClient = tickets.client
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
		return fstest.FS{FS: f, Dir: dir, Read: c.ReadFile}
	})
}

// A writer that was killed leaves its file open with bytes beyond what was committed. Take waits for the
// NameNode to take its lease away, which is a minute.
func TestTakeFromADeadWriter(t *testing.T) {
	f, dir := newFS(t)
	defer closeFS(t, f)
	t.Parallel()
	c := other(t, f)
	from, alias := dir+"/file.tmp", dir+"/file.taken.tmp"
	if err := f.Write(t.Context(), from, 0, []byte("committed")); err != nil {
		t.Fatal(err)
	}
	w, err := c.Append(from)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("torn")); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil { // it renews its lease no more, and the file stays open
		t.Fatal(err)
	}
	defer w.Close() // in the end; it fails
	if err := f.Write(t.Context(), from, int64(len("committed")), []byte("x")); err == nil {
		t.Error("wrote to a file that somebody else has open")
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := f.Take(ctx, from, alias, int64(len("committed"))); err != nil {
		t.Fatal(err)
	}
	t.Logf("taken after %s", time.Since(began).Round(time.Second))
	c = other(t, f)
	defer c.Close()
	if got, err := c.ReadFile(alias); err != nil || string(got) != "committed" {
		t.Errorf("%s holds %q, %v", alias, got, err)
	}
	if _, err := f.Size(t.Context(), from); !errors.Is(err, filesink.ErrNotExist) {
		t.Errorf("%s is still there: %v", from, err)
	}
	// It is closed and ours: it can be renamed and read, and nobody writes to it.
	if err := f.Rename(t.Context(), alias, dir+"/file"); err != nil {
		t.Error(err)
	}
}

// While a writer lives, Take waits, also when the file has the right length already.
func TestTakeWaitsForALiveWriter(t *testing.T) {
	f, dir := newFS(t)
	defer closeFS(t, f)
	t.Parallel()
	c := other(t, f)
	defer c.Close()
	from, alias := dir+"/file.tmp", dir+"/file.taken.tmp"
	if err := f.Write(t.Context(), from, 0, []byte("0123")); err != nil {
		t.Fatal(err)
	}
	w, err := c.Append(from)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	if err := f.Take(ctx, from, alias, 4); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Take of a file that is open: %v, want to wait until the context ends", err)
	}
	if err := w.Close(); err != nil { // by the file's id: the rename did not shut it out
		t.Fatal(err)
	}
	if err := f.Take(t.Context(), from, alias, 4); err != nil {
		t.Errorf("Take after the writer closed: %v", err)
	}
	if size, err := f.Size(t.Context(), alias); err != nil || size != 4 {
		t.Errorf("the file has %d bytes, %v; want 4", size, err)
	}
}

// Files are created with what the configuration says; appending leaves it. A file of several blocks is written across
// their borders.
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
	for at := 0; at < len(data); at += 700_001 {
		if err := f.Write(t.Context(), name, int64(at), data[at:min(at+700_001, len(data))]); err != nil {
			t.Fatal(err)
		}
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

// TestWriteAcrossBlocks: one write may fill several blocks, end at the end of one, and go on in one that is begun.
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
		for _, n := range []int{2<<20 + 500_000 + i, 1<<20 - 500_000 - i, 1 << 20, 1, 3 << 20} {
			part := bytes.Repeat([]byte{byte('a' + i), byte(n), '\n'}, n/3+1)[:n]
			if err := f.Write(t.Context(), name, int64(len(want)), part); err != nil {
				t.Fatalf("write %d bytes at %d: %v", n, len(want), err)
			}
			want = append(want, part...)
		}
		if got, err := reader.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s has %d bytes, want %d: %v", name, len(got), len(want), err)
		}
	}
}

func TestConcurrentWrites(t *testing.T) {
	f, dir := newFS(t)
	defer closeFS(t, f)
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			p := fmt.Sprintf("%s/d%d/file", dir, i%3) + fmt.Sprint(i)
			for n := range 5 {
				if err := f.Write(t.Context(), p, int64(n*1000), make([]byte, 1000)); err != nil {
					t.Errorf("write %s: %v", p, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := len(f.idle); n == 0 || n > maxIdle {
		t.Errorf("%d clients are kept, want 1 to %d", n, maxIdle)
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
		"Write":  func(ctx context.Context) error { return f.Write(ctx, "/a", 0, []byte("x")) },
		"Take":   func(ctx context.Context) error { return f.Take(ctx, "/a", "/b", 0) },
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

// BenchmarkWrite appends 8 MiB to a file on the running HDFS.
func BenchmarkWrite(b *testing.B) {
	f, err := New(hdfsConf(b), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	p := path.Join("/hdfsfs-test", fmt.Sprintf("bench-%d", time.Now().UnixNano()))
	defer func() {
		if err := f.Remove(context.Background(), p); err != nil {
			b.Error(err)
		}
	}()
	data := make([]byte, 8<<20)
	b.SetBytes(int64(len(data)))
	for n := range b.N {
		if err := f.Write(b.Context(), p, int64(n*len(data)), data); err != nil {
			b.Fatal(err)
		}
	}
}
