package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kfake"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/rpc"
	"github.com/spillwayio/spillway/services/internal/telemetry"
)

// The pipeline of dev: two topics, to files and to another Kafka.
const (
	devQueue   = "demo"
	devFiles   = devQueue + "/files"
	devTest    = devQueue + "/test"
	partitions = 4
	// drainWait bounds the wait for the backlog at the end.
	drainWait = 2 * time.Minute
)

var devTopics = []string{"orders", "web"}

const devPipeline = `# What spillway dev runs. The Kafkas at these addresses are embedded in it and gone when it ends.
buffers: [%[2]q]
ingest:
  listen: %[4]q
  http: %[5]q
  sources:
    demo: {brokers: [%[9]q], group: spillway, topics: [orders, web], queue: demo}
buffer:
  listen: %[2]q
  http: %[3]q
  data_dir: %[1]q
  queues:
    demo:
      memory: {records: 10000, bytes: 64MiB}
      spill_after: 1s
      subscriptions:
        files: {}
        test: {}
delivery:
  files:
    subscription: demo/files
    listen: %[6]q
    http: %[7]q
    hdfs: {url: %[11]q, path: "/%%{topic}/%%Y-%%m-%%d", file_prefix: "%%H%%M", file_suffix: .log, roll: {interval: 1m, size: 64MiB, idle: 5s}, commit: {interval: 500ms}}
  test:
    subscription: demo/test
    listen: %[8]q
    http: %[12]q
    kafka: {brokers: [%[10]q], topic: "%%{topic}"}
`

// dev is all of a pipeline in one process.
type dev struct {
	dir    string
	rate   int
	outage interval // of the test Kafka; zero: none
	out    io.Writer
	live   bool // out is a terminal
	json   bool

	source, target *kfake.Cluster
	targetLis      *breakable
	listeners      map[string]net.Listener // reserved for the services, by address
	cfg            *config.Config
	generator      *generator
	conn           *grpc.ClientConn // to the buffer
	started        time.Time
}

// interval is a part of the run, as distances from its start.
type interval struct{ from, to time.Duration }

func newDev() *cobra.Command {
	var duration time.Duration
	var breakKafka, dir, output string
	var rate int
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Runs a whole pipeline in one process, with nothing installed, to see it at work",
		Long: `Runs ingest, buffer and two deliveries in this process, between an embedded Kafka with log records on two topics,
a local directory that plays HDFS, and a second embedded Kafka, the test Kafka. The table shows what flows.

--break-kafka takes the test Kafka away for a part of the run: its backlog grows and spills to disk, the files are
delivered as before, and when it is back the backlog drains. At the end, or at Ctrl-C, everything is drained and
the account is printed. It comes from reading the files and the topics of the test Kafka again, not from counters:
every record has a number. Delivery to files is exactly once; delivery to Kafka is at least once, so an outage may double
what was under way when it began. The exit status is 1 when a record is lost, or doubled in the files.

The admin API answers on the usual ports when they are free:
  grpcurl -plaintext localhost:7400 spillway.v1.BufferAdminService/ListSubscriptions`,
		Example: "  spillway dev\n  spillway dev --duration 60s --break-kafka 10s..30s",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if err := checkOutput(output); err != nil {
				return err
			}
			d := &dev{listeners: make(map[string]net.Listener), rate: rate, out: cmd.OutOrStdout(), json: output == "json"}
			if d.json {
				d.out = cmd.ErrOrStderr() // stdout is for the account alone
			}
			d.live = isTerminal(d.out)
			if d.outage, err = parseInterval(breakKafka, duration); err != nil {
				return &usageError{err}
			}
			if rate < 1 {
				return &usageError{fmt.Errorf("--rate %d: want 1 or more", rate)}
			}
			if duration < 0 {
				return &usageError{fmt.Errorf("--duration %s: want 0 or more", duration)}
			}
			remove, err := d.makeDir(dir)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, remove()) }()
			drains(cmd.Context(), 2*drainWait)
			ctx, stop := hangups(cmd.Context(), slog.New(slog.DiscardHandler), true, nil)
			defer stop()
			account, err := d.run(ctx, duration)
			if err != nil {
				return err
			}
			if d.json {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(account)
			} else {
				err = account.print(d.out)
			}
			return errors.Join(err, account.verdict())
		},
	}
	cmd.Flags().DurationVar(&duration, "duration", 0, "how long records are generated; 0: until Ctrl-C")
	cmd.Flags().StringVar(&breakKafka, "break-kafka", "", "when the test Kafka is away, as in 10s..40s from the start")
	cmd.Flags().IntVar(&rate, "rate", 2000, "records a second")
	cmd.Flags().StringVar(&dir, "dir", "", "new or empty directory for files, data, log and pipeline.yaml, which are kept; otherwise a temporary one")
	registerOutput(cmd, &output)
	return cmd
}

// parseInterval reads "10s..40s".
func parseInterval(s string, duration time.Duration) (interval, error) {
	if s == "" {
		return interval{}, nil
	}
	from, to, ok := strings.Cut(s, "..")
	if !ok {
		return interval{}, fmt.Errorf("--break-kafka %q: want FROM..TO, as in 10s..40s", s)
	}
	var i interval
	var err error
	if i.from, err = time.ParseDuration(from); err != nil {
		return i, fmt.Errorf("--break-kafka %q: want FROM..TO, as in 10s..40s: %w", s, err)
	}
	if i.to, err = time.ParseDuration(to); err != nil {
		return i, fmt.Errorf("--break-kafka %q: want FROM..TO, as in 10s..40s: %w", s, err)
	}
	if i.from < 0 || i.to <= i.from {
		return i, fmt.Errorf("--break-kafka %s: the end must be after the beginning", s)
	}
	if duration > 0 && i.from >= duration {
		return i, fmt.Errorf("--break-kafka %s begins after the end of --duration %s", s, duration)
	}
	return i, nil
}

// makeDir prepares the directory; remove is for the end.
func (d *dev) makeDir(dir string) (remove func() error, err error) {
	if dir == "" {
		if d.dir, err = os.MkdirTemp("", "spillway-dev-"); err != nil {
			return nil, fmt.Errorf("make a directory: %w", err)
		}
		return func() error { return os.RemoveAll(d.dir) }, nil
	}
	if d.dir, err = filepath.Abs(dir); err != nil {
		return nil, fmt.Errorf("--dir: %w", err)
	}
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return nil, fmt.Errorf("--dir: %w", err)
	}
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return nil, fmt.Errorf("--dir: %w", err)
	}
	if len(entries) > 0 {
		return nil, &usageError{fmt.Errorf("--dir %s is not empty; the embedded Kafkas begin anew each time, so their records would not fit the data there", dir)}
	}
	return func() error { return nil }, nil
}

// run does everything but print the account.
func (d *dev) run(ctx context.Context, duration time.Duration) (*account, error) {
	logFile, err := os.Create(filepath.Join(d.dir, "spillway.log"))
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	defer logFile.Close() // nothing is left to write when it matters
	log := telemetry.NewLogger(logFile, "info", false)

	if err := d.startKafkas(); err != nil {
		return nil, err
	}
	defer d.source.Close()
	defer d.target.Close()
	defer func() {
		for _, lis := range d.listeners { // of services that did not start
			_ = lis.Close()
		}
	}()
	if err := d.configure(); err != nil {
		return nil, err
	}
	if d.conn, err = rpc.Dial(d.cfg.Buffers[0]); err != nil {
		return nil, err
	}
	defer d.conn.Close()

	services, err := d.startServices(log)
	if err != nil {
		return nil, err
	}
	d.generator = &generator{brokers: d.source.ListenAddrs(), topics: devTopics, partitions: partitions, size: 200, rate: d.rate}
	d.generator.init()
	fmt.Fprintf(d.out, "everything is in %s: files/, buffer/, pipeline.yaml, spillway.log\n", d.dir)
	fmt.Fprintf(d.out, "admin API: buffer %s, ingest %s, deliveries %s %s\n\n", d.cfg.Buffer.Listen, d.cfg.Ingest.Listen, d.cfg.Delivery["files"].Listen, d.cfg.Delivery["test"].Listen)

	d.started = time.Now()
	d.generate(ctx, duration)
	if ctx.Err() != nil { // the signal was to end the generator
		ctx = context.WithoutCancel(ctx)
	}
	stats, drainErr := d.drain(ctx)
	if drainErr != nil {
		fmt.Fprintln(d.out, drainErr)
	}
	if err := services.stop(); err != nil {
		return nil, err
	}
	return d.account(ctx, stats)
}

// startKafkas starts both clusters; topics of the test Kafka are created by their first use.
func (d *dev) startKafkas() (err error) {
	if d.source, err = kfake.NewCluster(kfake.ClusterID("dev-source"), kfake.NumBrokers(1), kfake.SeedTopics(partitions, devTopics...)); err != nil {
		return fmt.Errorf("start the embedded Kafka: %w", err)
	}
	d.targetLis = &breakable{}
	d.target, err = kfake.NewCluster(kfake.ClusterID("dev-target"), kfake.NumBrokers(1), kfake.AllowAutoTopicCreation(), kfake.DefaultNumPartitions(partitions), kfake.ListenFn(d.targetLis.listen))
	if err != nil {
		d.source.Close()
		return fmt.Errorf("start the test Kafka: %w", err)
	}
	return nil
}

// configure writes the pipeline's file and reads it.
func (d *dev) configure() error {
	ports := []int{7400, 7401, 7410, 7411, 7420, 7421, 7422, 7423}
	addrs := make([]string, len(ports))
	for i, port := range ports {
		addr, err := d.reserve(port)
		if err != nil {
			return err
		}
		addrs[i] = addr
	}
	text := fmt.Sprintf(devPipeline, filepath.Join(d.dir, "buffer"), addrs[0], addrs[1], addrs[2], addrs[3], addrs[4], addrs[5], addrs[6],
		d.source.ListenAddrs()[0], d.target.ListenAddrs()[0], "file://"+filepath.Join(d.dir, "files"), addrs[7])
	path := filepath.Join(d.dir, "pipeline.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write the pipeline: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(d.dir, "files"), 0o755); err != nil {
		return fmt.Errorf("make the files' directory: %w", err)
	}
	var err error
	d.cfg, err = config.Parse(path, []byte(text), nil)
	return err
}

// reserve listens on the port on the loopback interface when it is free, else on another, and
// returns the address. The service takes the listener over, so that nobody takes the port in
// between.
func (d *dev) reserve(port int) (string, error) {
	lis, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		if lis, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return "", fmt.Errorf("find a free port: %w", err)
		}
	}
	addr := lis.Addr().String()
	d.listeners[addr] = lis
	return addr, nil
}

// listen hands over a reserved listener.
func (d *dev) listen(addr string) (net.Listener, error) {
	lis := d.listeners[addr]
	delete(d.listeners, addr)
	return lis, nil
}

func (d *dev) startServices(log *slog.Logger) (*stages, error) {
	buffer, err := newBufferProcess(d.cfg, log, d.listen)
	if err != nil {
		return nil, fmt.Errorf("start the buffer: %w", err)
	}
	all := new(stages)
	all.start(map[string]*process{"buffer": buffer})
	for _, name := range slices.Sorted(maps.Keys(d.cfg.Delivery)) {
		p, err := newDeliveryProcess(d.cfg, name, log, d.listen, nil)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("start delivery %s: %w", name, err), all.stop())
		}
		all.start(map[string]*process{"delivery " + name: p})
	}
	p, err := newIngestProcess(d.cfg, log, d.listen, nil)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the ingest: %w", err), all.stop())
	}
	all.start(map[string]*process{"ingest": p})
	return all, nil
}

// generate writes records, breaks and mends the test Kafka, and shows the table, until duration
// is over or ctx ends.
func (d *dev) generate(ctx context.Context, duration time.Duration) {
	if duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, duration)
		defer cancel()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var g errgroup.Group
	g.Go(func() error {
		defer cancel()
		if err := d.generator.run(ctx); err != nil && ctx.Err() == nil {
			fmt.Fprintln(d.out, "the generator failed:", err)
		}
		return nil
	})
	g.Go(func() error {
		if d.outage != (interval{}) && sleepUntil(ctx, d.started.Add(d.outage.from)) {
			d.targetLis.setBroken(true)
			sleepUntil(ctx, d.started.Add(d.outage.to))
			d.targetLis.setBroken(false)
		}
		return nil
	})
	d.watch(ctx)
	_ = g.Wait() // none returns an error
}

func sleepUntil(ctx context.Context, at time.Time) bool {
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// devStats is what the buffer says of itself.
type devStats struct {
	queue    *spillwayv1.Queue
	appended int64 // records, by their offsets: those that are replayed are appended more than once
	subs     map[string]*spillwayv1.Subscription
}

func (d *dev) stats(ctx context.Context) (*devStats, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	admin := spillwayv1.NewBufferAdminServiceClient(d.conn)
	q, err := admin.GetQueue(ctx, &spillwayv1.GetQueueRequest{Name: devQueue})
	if err != nil {
		return nil, err
	}
	list, err := admin.ListSubscriptions(ctx, &spillwayv1.ListSubscriptionsRequest{})
	if err != nil {
		return nil, err
	}
	s := &devStats{queue: q.Queue, subs: make(map[string]*spillwayv1.Subscription)}
	for { // page by page
		for _, p := range q.Partitions {
			s.appended += p.AppendedOffset
		}
		if q.NextPageToken == "" {
			break
		}
		if q, err = admin.GetQueue(ctx, &spillwayv1.GetQueueRequest{Name: devQueue, PageToken: q.NextPageToken}); err != nil {
			return nil, err
		}
	}
	for _, sub := range list.Subscriptions {
		s.subs[sub.Name] = sub
	}
	for _, name := range []string{devFiles, devTest} {
		if s.subs[name] == nil {
			return nil, fmt.Errorf("subscription %s is missing", name)
		}
	}
	return s, nil
}

// pending is the backlog of a subscription, with what is to be fetched again.
func (s *devStats) pending(subscription string) int64 {
	return s.subs[subscription].PendingRecords + s.subs[subscription].DeferredOffsets
}

// in is the number of records generated so far.
func (d *dev) in() int64 { return d.generator.sum() }

// drain waits until all that was generated is delivered.
func (d *dev) drain(ctx context.Context) (*devStats, error) {
	fmt.Fprintln(d.out, "draining: no more records are generated; what is in Kafka and in the buffer is delivered (Ctrl-C ends at once)")
	stopped := ctx
	ctx, cancel := context.WithTimeout(ctx, drainWait)
	defer cancel()
	said := time.Now()
	for {
		s, err := d.stats(ctx)
		if err == nil && s.appended == d.in() && s.pending(devFiles) == 0 && s.pending(devTest) == 0 {
			return s, nil
		}
		if err == nil && time.Since(said) > 2*time.Second {
			said = time.Now()
			fmt.Fprintf(d.out, "  backlog: files %d, test Kafka %d records\n", s.pending(devFiles), s.pending(devTest))
		}
		if !sleepUntil(ctx, time.Now().Add(100*time.Millisecond)) {
			if stopped.Err() != nil {
				return s, errors.New("stopped while draining; what is left is counted as pending")
			}
			return s, fmt.Errorf("not drained after %s; what is left is counted as pending", drainWait)
		}
	}
}

// breakable makes listeners that can be taken away from their clients and given back.
type breakable struct {
	mu     sync.Mutex
	broken bool
	conns  map[net.Conn]struct{}
}

func (b *breakable) listen(network, address string) (net.Listener, error) {
	lis, err := net.Listen(network, address)
	if err != nil {
		return nil, err
	}
	return &breakableListener{lis, b}, nil
}

// setBroken cuts all connections and lets no new ones in, or lets them in again.
func (b *breakable) setBroken(broken bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.broken = broken
	if broken {
		for c := range b.conns {
			_ = c.Close() // that is the outage
		}
		b.conns = nil
	}
}

func (b *breakable) isBroken() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.broken
}

type breakableListener struct {
	net.Listener
	b *breakable
}

// Accept implements net.Listener.
func (l *breakableListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.b.admit(conn) {
			return &breakableConn{conn, l.b}, nil
		}
		_ = conn.Close() // refused
	}
}

func (b *breakable) admit(conn net.Conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.broken {
		return false
	}
	if b.conns == nil {
		b.conns = make(map[net.Conn]struct{})
	}
	b.conns[conn] = struct{}{}
	return true
}

type breakableConn struct {
	net.Conn
	b *breakable
}

// Close implements net.Conn.
func (c *breakableConn) Close() error {
	c.b.mu.Lock()
	delete(c.b.conns, c.Conn)
	c.b.mu.Unlock()
	return c.Conn.Close()
}
