package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/segmentio/kafka-go"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer"
	"github.com/spillwayio/spillway/services/buffer/store/kafkastore"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

// lostFlags are those of store init for a queue whose topics are lost.
type lostFlags struct{ queue, confirm string }

func (l *lostFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&l.queue, "accept-doubles", "", "go on without the ledger of this queue, whose topics are lost")
	cmd.Flags().StringVar(&l.confirm, "confirm", "", "its name once more: do it without being asked")
}

// givenUp is what is lost with the topics of a queue.
type givenUp struct {
	Queue      string             `json:"queue"`
	Lost       []string           `json:"lost"` // of the topics
	Partitions []givenUpPartition `json:"partitions"`
	// NotRequired are the subscriptions for which nothing below the committed offsets comes again.
	NotRequired []string `json:"not_required"`
	// Files are the deliveries to files, whose files in use are to be recovered.
	Files []string `json:"files"`
	Life  string   `json:"life,omitempty"` // of the new topics
}

// givenUpPartition is where the delivery of a partition begins again.
type givenUpPartition struct {
	Source    string `json:"source"`
	Topic     string `json:"topic"`
	Partition int    `json:"partition"`
	Committed int64  `json:"committed"` // negative: nothing; the source begins as it is configured
	First     int64  `json:"first"`
	End       int64  `json:"end"`
}

// gone is how many offsets were not delivered to everyone, and are in the source no more.
func (p *givenUpPartition) gone() int64 {
	if p.Committed < 0 {
		return 0
	}
	return max(0, p.First-p.Committed)
}

func (l *lostFlags) run(cmd *cobra.Command, cfg *config.Config, f *storeFlags) error {
	q := cfg.Buffer.Queues[l.queue]
	if q == nil || q.Store.Kafka == nil {
		return &usageError{fmt.Errorf("--accept-doubles %s: no queue of that name is kept in Kafka", l.queue)}
	}
	log := slog.New(slog.DiscardHandler)
	access, err := kafkaclient.NewAccess(q.Store.Kafka.TLS, q.Store.Kafka.SASL, log)
	if err != nil {
		return err
	}
	defer access.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), f.timeout)
	defer cancel()
	topics := buffer.KafkaTopics(l.queue, q, access)
	out := &givenUp{Queue: l.queue, NotRequired: []string{}, Files: []string{}, Partitions: []givenUpPartition{}}
	out.Lost, err = kafkastore.Lost(ctx, topics, log)
	if errors.Is(err, kafkastore.ErrWhole) {
		return fmt.Errorf("queue %s: %w: there is nothing to accept; spillway store check says what else may be wrong", l.queue, err)
	}
	if err != nil {
		return fmt.Errorf("queue %s: %w", l.queue, err)
	}
	if err := noneAnswers(ctx, cfg, l.queue, func(*spillwayv1.Shard) bool { return true }); err != nil {
		return err
	}
	if err := out.look(ctx, cfg, log); err != nil {
		return err
	}
	if f.output != "json" {
		if err := out.write(cmd.OutOrStdout()); err != nil {
			return err
		}
	}
	if err := confirmed(cmd, l.confirm, l.queue, "the topics of the queue are deleted and made anew, and what is listed is given up"); err != nil {
		return err
	}
	making, stop := context.WithTimeout(cmd.Context(), f.timeout)
	defer stop()
	if out.Life, err = kafkastore.Renew(making, topics, out.lines(), log); err != nil {
		return fmt.Errorf("queue %s: %w", l.queue, err)
	}
	if f.output == "json" {
		return printJSON(cmd.OutOrStdout(), out)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "\nThe queue has new topics, and the life %s. Start the buffers%s.\n", out.Life, out.next())
	return err
}

// look asks the sources of the queue.
func (g *givenUp) look(ctx context.Context, cfg *config.Config, log *slog.Logger) error {
	for name, s := range cfg.Buffer.Queues[g.Queue].Subscriptions {
		if !s.Required {
			g.NotRequired = append(g.NotRequired, name)
		}
	}
	slices.Sort(g.NotRequired)
	for name, d := range cfg.Delivery {
		if queue, _, _ := strings.Cut(d.Subscription, "/"); queue == g.Queue && d.HDFS != nil {
			g.Files = append(g.Files, name)
		}
	}
	slices.Sort(g.Files)
	for _, name := range slices.Sorted(maps.Keys(cfg.Ingest.Sources)) {
		s := cfg.Ingest.Sources[name]
		if s.Queue != g.Queue {
			continue
		}
		if err := g.lookAt(ctx, name, s, log); err != nil {
			return fmt.Errorf("ingest.sources.%s: %w", name, err)
		}
	}
	return nil
}

func (g *givenUp) lookAt(ctx context.Context, name string, s *config.Source, log *slog.Logger) error {
	access, err := kafkaclient.NewAccess(s.TLS, s.SASL, log)
	if err != nil {
		return err
	}
	defer access.Close()
	client := kafkaclient.New(s.Brokers, checkClientID, access)
	defer client.Close()
	cluster, err := client.Cluster(ctx)
	if err != nil {
		return err
	}
	read := make(map[string][]int)
	for topic, t := range cluster.Topics {
		for p := range t.Partitions {
			if readsTopic(s, topic) {
				read[topic] = append(read[topic], p)
			}
		}
	}
	group := kafkaclient.NewGroup(client, kafkaclient.GroupConfig{Group: s.Group, Ours: "spillway-"})
	committed, err := group.Committed(ctx, read)
	if errors.Is(err, kafka.GroupIdNotFound) {
		err = nil
	}
	if err != nil {
		return err
	}
	var all []givenUpPartition
	for _, topic := range slices.Sorted(maps.Keys(read)) {
		for _, p := range read[topic] {
			one := givenUpPartition{Source: name, Topic: topic, Partition: p, Committed: -1}
			if c, ok := committed[topic][p]; ok {
				one.Committed = c.Offset
			}
			all = append(all, one)
		}
	}
	asking, asked := errgroup.WithContext(ctx)
	asking.SetLimit(32) // a source may have 10,000 partitions
	for i := range all {
		asking.Go(func() (err error) {
			p := &all[i]
			if p.First, p.End, err = client.Offsets(asked, p.Topic, p.Partition); err != nil {
				err = fmt.Errorf("%s/%d: %w", p.Topic, p.Partition, err)
			}
			return err
		})
	}
	err = asking.Wait()
	g.Partitions = append(g.Partitions, all...)
	return err
}

// lines are what is written into the journal.
func (g *givenUp) lines() (all []string) {
	all = append(all, g.Lost...)
	for _, s := range g.NotRequired {
		all = append(all, "not required, nothing below what is committed comes again: "+s)
	}
	for _, p := range g.Partitions {
		b, _ := json.Marshal(p) // never fails
		all = append(all, string(b))
	}
	return all
}

// next is what there is to do besides.
func (g *givenUp) next() string {
	if len(g.Files) == 0 {
		return ""
	}
	var all []string
	for _, d := range g.Files {
		all = append(all, "spillway files recover "+d+" --path /")
	}
	return ", and when they run, finish the files in use: " + strings.Join(all, "; ")
}

func (g *givenUp) write(out io.Writer) error {
	fmt.Fprintf(out, "Lost of queue %s:\n", g.Queue)
	for _, l := range g.Lost {
		fmt.Fprintf(out, "  %s\n", l)
	}
	fmt.Fprintln(out, "\nWhere delivery begins again. What is above it and was delivered comes twice; what only the queue still had is lost:")
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row(w, "SOURCE", "TOPIC", "PARTITION", "COMMITTED", "FIRST", "END", "GONE")
	for _, p := range g.Partitions {
		committed := fmt.Sprint(p.Committed)
		if p.Committed < 0 {
			committed = "-"
		}
		row(w, p.Source, p.Topic, p.Partition, committed, p.First, p.End, p.gone())
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(g.Partitions) == 0 {
		fmt.Fprintln(out, "  no source of the file feeds the queue: look at the groups of those that do")
	}
	if len(g.NotRequired) > 0 {
		fmt.Fprintf(out, "\nNot required, so they may lack records below the committed offsets, which do not come again: %s\n", strings.Join(g.NotRequired, ", "))
	}
	if len(g.Files) > 0 {
		fmt.Fprintf(out, "\nTheir files in use have no heir any more: %s\n", strings.Join(g.Files, ", "))
	}
	fmt.Fprintln(out, "\nGiven up as well: pauses, changes of subscriptions at run time, and what was not delivered, with its copies (dead letters).")
	return nil
}
