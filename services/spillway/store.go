package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/spillwayio/spillway/services/buffer"
	"github.com/spillwayio/spillway/services/buffer/store/kafkastore"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/kafkaclient"
)

func newStore() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "store",
		Short: "Makes and tries the topics of queues that are kept in Kafka, and moves queues there",
		Long: "Makes and tries the topics of the queues in the pipeline's file that have store.kafka: the ledger of each, and the batches that\n" +
			"were spilled, so that another buffer can take over from one whose machine is lost. Moves queues between data_dir and Kafka.",
		Example: "  spillway store init -c pipeline.yaml\n  spillway store check -c pipeline.yaml\n  spillway store import logs -c pipeline.yaml",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newStoreInit(), newStoreCheck(), newStoreImport(), newStoreExport())
	return cmd
}

// storeFlags are those of both commands.
type storeFlags struct {
	config, output string
	timeout        time.Duration
}

func (f *storeFlags) register(cmd *cobra.Command) {
	registerConfig(cmd, &f.config)
	registerOutput(cmd, &f.output)
}

// load reads the file, which must have a queue that is kept in Kafka.
func (f *storeFlags) load() (*config.Config, error) {
	if err := errors.Join(checkOutput(f.output), checkTimeout(f.timeout)); err != nil {
		return nil, err
	}
	cfg, err := loadConfig(f.config)
	if err != nil {
		return nil, err
	}
	for _, q := range cfg.Buffer.Queues {
		if q.Store.Kafka != nil {
			return cfg, nil
		}
	}
	return nil, &usageError{fmt.Errorf("%s: no queue of the file is kept in Kafka; want store.kafka of one of buffer.queues", f.config)}
}

// madeStore is what store init has made, or found.
type madeStore struct {
	Queue  string   `json:"queue"`
	Topics []string `json:"topics"`
	Shards int      `json:"shards"`
	Life   string   `json:"life"`
	Made   bool     `json:"made"`
}

func newStoreInit() *cobra.Command {
	var f storeFlags
	var fsync bool
	var lost lostFlags
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Makes the topics of queues that are kept in Kafka",
		Long: `Makes the topics of all queues of the pipeline's file that have store.kafka, with the settings that lose nothing, and
writes into each partition which shard of which queue of which namespace it is. Nothing else makes them. It may be called
again: what is there stays as it is. Topics of another queue, with records of others, or with settings that would lose
records are refused by name.

The principal needs Create, Describe, DescribeConfigs, Read and Write on both topics.

When the topics of a queue are lost (deleted, created again, restored, or without their beginning), no buffer opens it.
--accept-doubles QUEUE says what there is left to go on from, and what is given up: where the sources' groups have committed,
from where on records are delivered again, and what cannot be. With --confirm QUEUE it deletes what is left of the topics,
which needs Delete, and makes new ones, with a new life. Files in use are finished by spillway files recover afterwards.`,
		Example: "  spillway store init -c pipeline.yaml\n  spillway store init --accept-doubles logs -c pipeline.yaml",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := f.load()
			if err != nil {
				return err
			}
			if lost.queue != "" {
				return lost.run(cmd, cfg, &f)
			}
			all := []madeStore{}
			for _, name := range slices.Sorted(maps.Keys(cfg.Buffer.Queues)) {
				q := cfg.Buffer.Queues[name]
				if q.Store.Kafka == nil {
					continue
				}
				made, err := initStore(cmd.Context(), name, q, f.timeout, fsync)
				if err != nil {
					return fmt.Errorf("queue %s: %w", name, err)
				}
				all = append(all, made)
			}
			if f.output == "json" {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"stores": all})
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			row(w, "QUEUE", "TOPICS", "SHARDS", "LIFE", "RESULT")
			for _, s := range all {
				result := "was there"
				if s.Made {
					result = "made"
				}
				row(w, s.Queue, strings.Join(s.Topics, ", "), s.Shards, s.Life, result)
			}
			return w.Flush()
		},
	}
	f.register(cmd)
	cmd.Flags().DurationVar(&f.timeout, "timeout", time.Minute, "how long each queue may take")
	lost.register(cmd)
	cmd.Flags().BoolVar(&fsync, "fsync", false, "have brokers sync each write to disk (flush.messages=1): for brokers that have nothing but stores, as they sync for all topics")
	return cmd
}

func initStore(ctx context.Context, name string, q *config.Queue, timeout time.Duration, fsync bool) (madeStore, error) {
	made := madeStore{Queue: name, Topics: q.Store.Kafka.Topics(), Shards: q.Shards}
	log := slog.New(slog.DiscardHandler)
	access, err := kafkaclient.NewAccess(q.Store.Kafka.TLS, q.Store.Kafka.SASL, log)
	if err != nil {
		return made, err
	}
	defer access.Close()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	topics := buffer.KafkaTopics(name, q, access)
	topics.Fsync = fsync
	made.Life, made.Made, err = kafkastore.Init(ctx, topics, log)
	return made, err
}

func newStoreCheck() *cobra.Command {
	var f storeFlags
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Tries what a buffer needs of the topics of queues that are kept in Kafka",
		Long: `Tries, for each queue of the pipeline's file that has store.kafka: the brokers, the settings of the topics, whose they are,
and each right that a buffer needs, in every partition: Read, Write, Delete and DescribeConfigs. It says what to do where that
fails, and the exit status is 1. Buffers that run are not disturbed: what it writes they pass over.`,
		Example: "  spillway store check -c pipeline.yaml",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := f.load()
			if err != nil {
				return err
			}
			x := &connector{cfg: cfg, timeout: f.timeout, log: slog.New(slog.DiscardHandler), clusters: make(map[string]string), topics: make(map[string][]string)}
			var parts []string
			for name, q := range cfg.Buffer.Queues {
				if q.Store.Kafka != nil {
					parts = append(parts, storePart(name))
				}
			}
			found := x.connect(cmd.Context(), parts)
			if f.output == "json" {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"file": f.config, "probes": found})
			} else {
				err = writeFindings(cmd.OutOrStdout(), found)
			}
			if n := failures(found); err == nil && n > 0 {
				err = fmt.Errorf("%d of %d probes failed", n, len(found))
			}
			return err
		},
	}
	f.register(cmd)
	cmd.Flags().DurationVar(&f.timeout, "timeout", 10*time.Second, "how long each probe may take")
	return cmd
}

// storePart is the part of the file that says how a queue is kept.
func storePart(queue string) string { return "buffer.queues." + queue + ".store" }

// store tries what a buffer does with the topics that keep a queue, but for taking a shard.
func (x *connector) store(p *probes, name string, q *config.Queue) {
	k := q.Store.Kafka
	x.kafka(p, k.Brokers, k.TLS, k.SASL, k.Topics(), func(*kafkaclient.Client, *kafkaclient.Cluster) {
		access, err := kafkaclient.NewAccess(k.TLS, k.SASL, x.log)
		if err != nil {
			return // credentials has said so
		}
		defer access.Close()
		in := kafkastore.NewInspector(buffer.KafkaTopics(name, q, access), x.log)
		defer in.Close()
		if !p.try("topics", "run spillway store init, set what is named as it must be, or allow the principal Describe and DescribeConfigs on both topics", func(ctx context.Context) (string, error) {
			return fmt.Sprintf("%s: partitions, replicas and settings are right", strings.Join(k.Topics(), ", ")), in.Settings(ctx)
		}) {
			return
		}
		if !p.try("identity", "run spillway store init if the topics are new; correct brokers, topic, namespace or shards if they are others'; allow the principal Read on both topics", func(ctx context.Context) (string, error) {
			life, err := in.Life(ctx)
			return fmt.Sprintf("%d shards, life %s", max(q.Shards, 1), life), err
		}) {
			return
		}
		p.try("write", "allow the principal Write on both topics; see that enough replicas of each partition are in sync", func(ctx context.Context) (string, error) {
			return "may write to each partition", in.Write(ctx)
		})
		p.try("delete", "allow the principal Delete on both topics, or the store grows for ever", func(ctx context.Context) (string, error) {
			return "may delete records of each partition", in.Delete(ctx)
		})
	})
}
