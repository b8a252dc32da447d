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
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/buffer"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/security"
)

// moveFlags are those of store import and store export.
type moveFlags struct {
	storeFlags
	dryRun bool
}

func newStoreImport() *cobra.Command {
	var f moveFlags
	cmd := &cobra.Command{
		Use:   "import QUEUE",
		Short: "Moves a queue from data_dir to Kafka",
		Long: `Moves a queue from buffer.data_dir of this machine to its topics in Kafka (store.kafka of the file), which store init has
made: who has what, the files in use, and what is stored. The queue's buffer must be stopped. When it ends, the queue's
directory is marked, and its files are removed. A queue of one buffer is divided when the topics have several shards;
where each buffer has a shard of its own, it is called on each machine.

It may be stopped at any time, also by a crash: called again, it goes on. Meanwhile neither place can be opened by a
buffer once the last part has begun; until then, the directory can, and store export gives the move up.`,
		Example: "  spillway store import logs -c pipeline.yaml --dry-run\n  spillway store import logs -c pipeline.yaml",
		Args:    oneName("a queue"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd, args[0], func(ctx context.Context, m *buffer.Mover) ([]buffer.MovedShard, error) { return m.Import(ctx) },
				func(*spillwayv1.Shard, *buffer.Mover) bool { return true })
		},
	}
	f.registerMove(cmd)
	return cmd
}

func newStoreExport() *cobra.Command {
	var f moveFlags
	cmd := &cobra.Command{
		Use:   "export QUEUE",
		Short: "Moves a queue from Kafka to data_dir",
		Long: `Moves a queue, or the shard of it that buffer.shard says, from its topics in Kafka (store.kafka of the file) to
buffer.data_dir of this machine. The buffers that have it must be stopped. When it ends, store.kafka is to be taken out of
the file. No buffer opens what the topics still have; store import brings the queue back to them.

It may be stopped at any time, also by a crash: called again, it goes on.`,
		Example: "  spillway store export logs -c pipeline.yaml --dry-run\n  spillway store export logs -c pipeline.yaml",
		Args:    oneName("a queue"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd, args[0], func(ctx context.Context, m *buffer.Mover) ([]buffer.MovedShard, error) {
				one, err := m.Export(ctx)
				if err != nil {
					return nil, err
				}
				return []buffer.MovedShard{*one}, nil
			}, func(s *spillwayv1.Shard, m *buffer.Mover) bool { return int(s.Number) == m.Shard })
		},
	}
	f.registerMove(cmd)
	return cmd
}

func (f *moveFlags) registerMove(cmd *cobra.Command) {
	f.register(cmd)
	f.timeout = time.Minute // not a flag: a move takes as long as it takes
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "say what would be moved, and move nothing")
}

// run moves the queue, unless a buffer answers that has what concerns the move.
func (f *moveFlags) run(cmd *cobra.Command, name string, move func(context.Context, *buffer.Mover) ([]buffer.MovedShard, error), concerns func(*spillwayv1.Shard, *buffer.Mover) bool) error {
	cfg, err := f.load()
	if err != nil {
		return err
	}
	q := cfg.Buffer.Queues[name]
	switch {
	case q == nil:
		return &usageError{fmt.Errorf("no queue %q; there is %s", name, strings.Join(slices.Sorted(maps.Keys(cfg.Buffer.Queues)), ", "))}
	case q.Store.Kafka == nil:
		return &usageError{fmt.Errorf("buffer.queues.%s: want store.kafka, which says where in Kafka the queue is", name)}
	case cfg.Buffer.DataDir == "":
		return &usageError{errors.New("want buffer.data_dir, which says where on this machine the queue is")}
	}
	log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	m, err := buffer.NewMover(&cfg.Buffer, name, log)
	if err != nil {
		return err
	}
	defer m.Close()
	if err := noneAnswers(cmd.Context(), cfg, name, func(s *spillwayv1.Shard) bool { return concerns(s, m) }); err != nil {
		return err
	}
	m.DryRun, m.Progress = f.dryRun, progressOf(cmd.ErrOrStderr())
	all, err := move(cmd.Context(), m)
	if err != nil {
		return fmt.Errorf("queue %s: %w", name, err)
	}
	if f.output == "json" {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"queue": name, "shards": all})
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	row(w, "QUEUE", "SHARD", "PARTITIONS", "BATCHES", "BYTES", "SINK STATE", "DAMAGED", "RESULT")
	for _, s := range all {
		row(w, name, s.Shard, s.Partitions, s.Batches, bytesOf(s.Bytes), s.States, s.Damaged, s.Result)
	}
	return w.Flush()
}

// progressOf writes a line now and then.
func progressOf(w io.Writer) func(buffer.Moving) {
	const every = 2 * time.Second
	next := time.Now().Add(every)
	return func(p buffer.Moving) {
		if time.Now().Before(next) {
			return
		}
		next = time.Now().Add(every)
		fmt.Fprintf(w, "shard %d: %d of %d batches, %s of %s\n", p.Shard, p.Batches, p.Of.Batches, bytesOf(p.Bytes), bytesOf(p.Of.Bytes))
	}
}

// noneAnswers returns an error when a buffer of the file has what concerns is true of, or answers
// and does not say what it has.
func noneAnswers(ctx context.Context, cfg *config.Config, queue string, concerns func(*spillwayv1.Shard) bool) error {
	client, err := security.NewClient(&cfg.Security, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	const patience = 3 * time.Second
	for _, address := range cfg.Buffers {
		conn, err := client.Dial(address)
		if err != nil {
			return err
		}
		asking, cancel := context.WithTimeout(ctx, patience)
		open, err := openAt(asking, conn, queue)
		cancel()
		_ = conn.Close() // nothing is under way
		switch status.Code(err) {
		case codes.OK:
		case codes.Unavailable, codes.DeadlineExceeded, codes.NotFound:
			continue
		default:
			return fmt.Errorf("something answers at %s, which the file names as a buffer: stop it first (%w)", address, err)
		}
		for _, s := range open {
			if concerns(s) {
				return fmt.Errorf("the buffer at %s has shard %d of queue %s open: stop it first", address, s.Number, queue)
			}
		}
	}
	return ctx.Err()
}
