package e2e

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/colinmarc/hdfs/v2"

	"github.com/spillwayio/spillway/services/delivery/filesink/hdfsfs"
	"github.com/spillwayio/spillway/services/internal/config"
)

const scripts = "../../deploy/stack/bin"

var errNoJava = errors.New("no Java or Maven")

// realStack is a broker and an HDFS with one DataNode, as deploy/stack starts them.
type realStack struct {
	run     string   // STACK_RUN
	kafka   broker   // with TLS
	hdfs    string   // host:port of the NameNode
	cluster *cluster // the same
}

// broker is a Kafka cluster of one.
type broker struct {
	run   string
	port  int
	tls   string // directory with the certificates; empty: only the plain port is there
	more  string // lines of its configuration
	kdc   string // directory of kdc-start; empty: no Kerberos
	joins int    // the port of another broker, of whose cluster it is; 0: of its own
}

func (b broker) addr() string { return fmt.Sprintf("127.0.0.1:%d", b.port) }

// saslAddr wants a user or a token, over TLS; certAddr a client certificate.
func (b broker) saslAddr() string { return fmt.Sprintf("127.0.0.1:%d", b.port+saslPort) }
func (b broker) certAddr() string { return fmt.Sprintf("127.0.0.1:%d", b.port+certPort) }

// Distances of the ports with TLS, as kafka-start has them.
const saslPort, certPort, kerberosPort = 17000, 16500, 17500

// startStack returns errNoJava, with the scripts' words about it, when it cannot be had on this
// machine.
func startStack(run string) (*realStack, error) {
	if out, err := script(run, "stack-resolve"); err != nil {
		// The scripts name the packages to install where one of these is what is missing.
		if strings.Contains(out, "apt-get install") {
			return nil, fmt.Errorf("%w: %s", errNoJava, strings.TrimSpace(out))
		}
		return nil, err
	}
	kafka, err := newBroker(run)
	if err != nil {
		return nil, err
	}
	kafka.tls = filepath.Join(run, "tls")
	kafka.more = fmt.Sprintf("log.cleaner.backoff.ms=500\nlistener.name.sasl_ssl.connections.max.reauth.ms=%d", reauthenticate.Milliseconds())
	if err := makeCertificates(kafka.tls); err != nil {
		return nil, fmt.Errorf("make certificates: %w", err)
	}
	hdfs, err := hdfsPorts(1)
	if err != nil {
		return nil, err
	}
	s := &realStack{run: run, kafka: kafka, hdfs: fmt.Sprintf("127.0.0.1:%d", hdfs), cluster: &cluster{run: run, port: hdfs}}
	if err := os.Setenv("HDFS_PERMISSIONS", "true"); err != nil { // for all scripts: a restart writes the configuration anew
		return nil, err
	}
	var wg sync.WaitGroup
	var kafkaErr, hdfsErr error
	wg.Go(func() { kafkaErr = s.kafka.start() })
	wg.Go(func() { _, hdfsErr = script(run, "hdfs-start", "1", strconv.Itoa(hdfs)) })
	wg.Wait()
	return s, errors.Join(kafkaErr, hdfsErr)
}

// newBroker has ports, and is not started.
func newBroker(run string) (broker, error) {
	port, err := freeBase(10000, 12700, 0, 20000, saslPort, certPort, kerberosPort)
	return broker{run: run, port: port}, err
}

// start returns when the broker answers; after a crash it goes on with its old data.
func (b broker) start() error {
	env := []string{"KAFKA_OPTS_EXTRA=" + b.more}
	if b.tls != "" {
		env = append(env, "KAFKA_TLS="+b.tls)
	}
	if b.kdc != "" {
		env = append(env, "KAFKA_KERBEROS="+b.kdc)
	}
	if b.joins != 0 {
		env = append(env, fmt.Sprint("KAFKA_JOIN=", b.joins))
	}
	_, err := scriptWith(b.run, env, "kafka-start", strconv.Itoa(b.port))
	return err
}

// crash kills the broker with SIGKILL.
func (b broker) crash() error {
	_, err := script(b.run, "kafka-stop", strconv.Itoa(b.port), "--kill")
	return err
}

func (b broker) wipe() error {
	_, err := script(b.run, "kafka-stop", strconv.Itoa(b.port), "--wipe")
	return err
}

// secondBroker is there for one test and not yet started.
func secondBroker(t testing.TB) broker {
	b, err := newBroker(stack.run)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.wipe(); err != nil {
			t.Errorf("stop the second broker: %v", err)
		}
	})
	return b
}

// script runs one of deploy/stack/bin and returns what it printed.
func script(run, name string, args ...string) (string, error) {
	return scriptWith(run, nil, name, args...)
}

func scriptWith(run string, env []string, name string, args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(scripts, name), args...)
	cmd.Env = append(append(os.Environ(), "STACK_RUN="+run), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// given are the ports that freeBase found: its callers listen later, and tests run side by side.
var given = struct {
	sync.Mutex
	ports map[int]bool
}{ports: map[int]bool{}}

// freeBase finds a port in [from, to) such that it, plus each of the distances, is free, and was
// not given before. The ranges stay below those from which the kernel takes the ports of outgoing
// connections.
func freeBase(from, to int, distances ...int) (int, error) {
	given.Lock()
	defer given.Unlock()
	for range 100 {
		base := from + rand.IntN(to-from)
		if !free(base, distances) {
			continue
		}
		for _, d := range distances {
			given.ports[base+d] = true
		}
		return base, nil
	}
	return 0, fmt.Errorf("no free ports from %d to %d", from, to)
}

func free(base int, distances []int) bool {
	for _, d := range distances {
		if given.ports[base+d] {
			return false
		}
		lis, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", base+d))
		if err != nil {
			return false
		}
		if lis.Close() != nil {
			return false
		}
	}
	return true
}

// hdfsClient is closed with the test.
func hdfsClient(t testing.TB) *hdfs.Client {
	t.Helper()
	return hdfsClientAt(t, stack.hdfs)
}

func hdfsClientAt(t testing.TB, address string) *hdfs.Client {
	t.Helper()
	client, err := hdfs.NewClient(hdfs.ClientOptions{Addresses: []string{address}, User: "hdfs"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Errorf("close HDFS client: %v", err)
		}
	})
	return client
}

// newFS is a delivery's file system on an HDFS, closed with the test.
func newFS(t testing.TB, h config.HDFS) *hdfsfs.FS {
	t.Helper()
	fs, err := hdfsfs.New(&h, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fs.Close(); err != nil {
			t.Errorf("close HDFS: %v", err)
		}
	})
	return fs
}

// freeAddr is host:port to listen on.
func freeAddr(t testing.TB) string {
	port, err := freeBase(15000, 22900, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", port)
}

// reapEnv names the directory to clean up, and makes the test binary a reaper.
const reapEnv = "E2E_REAP"

// reaper is this binary again, in a session of its own. It waits for the end of its stdin, which
// only this process holds, and cleans up then.
type reaper struct {
	cmd   *exec.Cmd
	stdin io.Closer
}

func startReaper(dir string) (*reaper, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the test binary: %w", err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), reapEnv+"="+dir)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("open a pipe to the reaper: %w", err)
	}
	return &reaper{cmd: cmd, stdin: stdin}, cmd.Start()
}

// finish returns when everything is stopped and removed.
func (r *reaper) finish() error {
	return errors.Join(r.stdin.Close(), r.cmd.Wait())
}

// reap is the reaper's main.
func reap(dir string) int {
	_, err := io.Copy(io.Discard, os.Stdin)
	run := filepath.Join(dir, "stack")
	entries, readErr := os.ReadDir(run)
	if !errors.Is(readErr, os.ErrNotExist) {
		err = errors.Join(err, readErr)
	}
	errs := make([]error, len(entries))
	var wg sync.WaitGroup
	for i, e := range entries { // kafka-PORT, hdfs-PORT
		if kind, port, ok := strings.Cut(e.Name(), "-"); ok {
			wg.Go(func() { _, errs[i] = script(run, kind+"-stop", port, "--wipe") })
		}
	}
	wg.Wait()
	if err := errors.Join(err, errors.Join(errs...), os.RemoveAll(dir)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
