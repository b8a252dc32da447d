package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
	"github.com/spillwayio/spillway/services/internal/recordbatch"
)

// generator writes log records to topics. The value of each begins with its number within its
// topic, from 1, and a blank, so that one can tell afterwards which are missing or doubled.
type generator struct {
	brokers    []string
	topics     []string
	partitions int   // of topics that do not exist yet
	count      int64 // for each topic; 0: no end
	size       int   // of values, in bytes, at least
	rate       int   // records a second, all topics together; 0: as fast as possible

	written map[string]*atomic.Int64 // by topic: acknowledged by Kafka
}

func (g *generator) init() {
	g.written = make(map[string]*atomic.Int64)
	for _, t := range g.topics {
		g.written[t] = new(atomic.Int64)
	}
}

// sum is the number of records written so far.
func (g *generator) sum() int64 {
	var n int64
	for _, w := range g.written {
		n += w.Load()
	}
	return n
}

// run creates the topics and writes until it is done or ctx ends.
func (g *generator) run(ctx context.Context) error {
	// It waits as long as brokers say, when a quota is exceeded.
	transport := kafkaclient.Access{}.Transport(g.brokers, "spillway-generate")
	defer transport.CloseIdleConnections()
	if err := g.createTopics(ctx, transport); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, topic := range g.topics {
		group.Go(func() error { return g.fill(ctx, topic, transport) })
	}
	return group.Wait()
}

func (g *generator) createTopics(ctx context.Context, transport *kafkaclient.Transport) error {
	topics, _, err := transport.Topics(ctx, g.topics, false)
	if err != nil {
		return fmt.Errorf("%s: %w", strings.Join(g.brokers, ","), err)
	}
	for _, t := range g.topics {
		switch err := topics[t].Err; {
		case errors.Is(err, kafka.UnknownTopicOrPartition):
			if _, err := transport.CreateTopic(ctx, t, g.partitions, -1, 10*time.Second); err != nil {
				return err
			}
		case err != nil:
			return fmt.Errorf("topic %s: %w", t, err)
		}
	}
	return nil
}

// writePatience bounds a write, with the time for which a quota has it wait. The transport bounds
// the wait for each answer by itself.
const writePatience = 5 * time.Minute

// fill writes one topic.
func (g *generator) fill(ctx context.Context, topic string, transport *kafkaclient.Transport) (err error) {
	const tick, chunkBytes = 50 * time.Millisecond, 16 << 20
	chunk := int64(min(4000, max(chunkBytes/max(g.size, 1), 1)))
	w := &kafka.Writer{Addr: kafka.TCP(g.brokers...), Topic: topic, Transport: transport, Balancer: &kafka.RoundRobin{},
		BatchSize: 1000, BatchTimeout: 5 * time.Millisecond, RequiredAcks: kafka.RequireAll,
		BatchBytes: int64(max(1<<20, g.size+4096)), ReadTimeout: writePatience, WriteTimeout: writePatience}
	defer func() { err = errors.Join(err, w.Close()) }()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	started := time.Now()
	for n := int64(0); (g.count == 0 || n < g.count) && ctx.Err() == nil; {
		want := chunk
		if g.rate > 0 {
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return nil
			}
			due := int64(time.Since(started).Seconds() * float64(g.rate) / float64(len(g.topics)))
			want = min(due-n, chunk)
		}
		if g.count > 0 {
			want = min(want, g.count-n)
		}
		if want <= 0 {
			continue
		}
		messages := make([]kafka.Message, want)
		for i := range messages {
			n++
			messages[i] = g.message(topic, n)
		}
		// What was begun is finished, so that the numbers have no holes.
		if err := g.write(context.WithoutCancel(ctx), w, messages); err != nil {
			return fmt.Errorf("write to topic %s: %w", topic, err)
		}
		g.written[topic].Store(n)
	}
	return nil
}

// write tries again while a new topic has no leader yet: then nothing was written.
func (g *generator) write(ctx context.Context, w *kafka.Writer, messages []kafka.Message) error {
	for attempt := 0; ; attempt++ {
		err := w.WriteMessages(ctx, messages...)
		if attempt == 50 || !errors.Is(err, kafka.UnknownTopicOrPartition) && !errors.Is(err, kafka.LeaderNotAvailable) {
			return err
		}
		var each kafka.WriteErrors
		if errors.As(err, &each) {
			var failed []kafka.Message
			for i, e := range each {
				if e != nil {
					failed = append(failed, messages[i])
				}
			}
			messages = failed
		}
		time.Sleep(100 * time.Millisecond)
	}
}

var (
	paths    = []string{"/", "/login", "/cart", "/checkout", "/search?q=lamp", "/products/", "/api/v1/orders/", "/static/app.js"}
	agents   = []string{"Mozilla/5.0 (X11; Linux x86_64) Firefox/131.0", "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X)", "curl/8.9.1", "okhttp/4.12.0"}
	statuses = []int{200, 200, 200, 200, 200, 204, 301, 304, 404, 500}
)

// message is an access log's line.
func (g *generator) message(topic string, n int64) kafka.Message {
	now := time.Now()
	host := rand.IntN(64)
	value := make([]byte, 0, g.size+64)
	value = strconv.AppendInt(value, n, 10)
	value = append(value, ' ')
	value = now.UTC().AppendFormat(value, "2006-01-02T15:04:05.000Z")
	value = fmt.Appendf(value, " 10.0.%d.%d GET %s%d %d %d %q", host, rand.IntN(256), paths[rand.IntN(len(paths))], rand.IntN(10_000),
		statuses[rand.IntN(len(statuses))], 200+rand.IntN(40_000), agents[rand.IntN(len(agents))])
	for i := 0; len(value) < g.size; i++ {
		value = append(value, " trace="...)
		value = strconv.AppendUint(value, rand.Uint64(), 16)
	}
	if len(value) > g.size && g.size > 0 {
		value = value[:max(g.size, 25)] // the number and the time stay
	}
	return kafka.Message{Key: fmt.Appendf(nil, "host-%02d", host), Value: value, Time: now,
		Headers: []kafka.Header{{Key: "host", Value: fmt.Appendf(nil, "web-%02d", host)}}}
}

func newGenerate() *cobra.Command {
	g := &generator{}
	cmd := &cobra.Command{
		Use:   "generate",
		Short: "Writes numbered log records to Kafka: for tests and demonstrations",
		Long: "Writes log records to topics, which are created when they do not exist. Each value begins with the record's\n" +
			"number within its topic, from 1, and a blank, so that what is missing or doubled elsewhere can be told.",
		Example: "  spillway generate --brokers localhost:19092 --topics originTopic,testTest --rate 1000\n  spillway generate --brokers localhost:9092 --topics load --count 200000",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := g.check(); err != nil {
				return &usageError{err}
			}
			g.init()
			started := time.Now()
			err := g.runWithProgress(cmd)
			sum := g.sum()
			if err != nil && sum == 0 {
				return err
			}
			for _, topic := range g.topics {
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %d records\n", topic, g.written[topic].Load())
			}
			took := time.Since(started)
			fmt.Fprintf(cmd.OutOrStdout(), "%d records in %s, %.0f a second\n", sum, took.Round(time.Millisecond), float64(sum)/took.Seconds())
			return err
		},
	}
	cmd.Flags().StringSliceVar(&g.brokers, "brokers", []string{"localhost:9092"}, "bootstrap brokers, separated by commas")
	cmd.Flags().StringSliceVar(&g.topics, "topics", nil, "topics, separated by commas")
	cmd.Flags().IntVar(&g.partitions, "partitions", 4, "partitions of topics that are created")
	cmd.Flags().Int64Var(&g.count, "count", 0, "records for each topic; 0: until it is stopped")
	cmd.Flags().IntVar(&g.rate, "rate", 0, "records a second, all topics together; 0: as fast as Kafka takes them")
	cmd.Flags().IntVar(&g.size, "size", 200, "bytes of a value, at least 25")
	return cmd
}

// topicName is what Kafka takes as one.
var topicName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,249}$`)

func (g *generator) check() error {
	switch {
	case len(g.brokers) == 0:
		return errors.New("--brokers: want addresses of brokers, separated by commas")
	case len(g.topics) == 0 || slices.Contains(g.topics, ""):
		return errors.New("--topics: want names of topics, separated by commas")
	case g.partitions < 1 || g.partitions > 100_000:
		return fmt.Errorf("--partitions %d: want 1 to 100000", g.partitions)
	case g.count < 0:
		return fmt.Errorf("--count %d: want 0 or more", g.count)
	case g.rate < 0:
		return fmt.Errorf("--rate %d: want 0 or more", g.rate)
	case g.size < 25 || g.size > recordbatch.MaxRecordBytes:
		return fmt.Errorf("--size %d: want 25 to %d", g.size, recordbatch.MaxRecordBytes)
	}
	for _, b := range g.brokers {
		if !config.IsAddress(b) {
			return fmt.Errorf("--brokers %q: want host:port, as in localhost:9092", b)
		}
	}
	for _, t := range g.topics {
		if !topicName.MatchString(t) {
			return fmt.Errorf("--topics %q: want letters, digits, dots, dashes and underscores, 249 at most", t)
		}
	}
	return nil
}

// runWithProgress says on stderr how far it is, every five seconds.
func (g *generator) runWithProgress(cmd *cobra.Command) error {
	drains(cmd.Context(), 15*time.Second) // the records under way are finished, so that their numbers have no holes
	ctx, cancel := context.WithCancel(cmd.Context())
	done := make(chan error, 1)
	go func() {
		defer cancel()
		done <- g.run(ctx)
	}()
	ticker := time.NewTicker(5 * time.Second)
	defer ticker.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-ticker.C:
			for _, topic := range g.topics {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s: %d records so far\n", topic, g.written[topic].Load())
			}
		}
	}
}
