package main

import (
	"context"
	"errors"
	"log/slog"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/spillwayio/spillway/services/internal/config"
)

// loadConfig reads the file; what is wrong with it is the user's to mend.
func loadConfig(path string) (*config.Config, error) {
	if path == "" {
		return nil, &usageError{errors.New("want --config FILE, the file of the pipeline")}
	}
	cfg, err := config.Load(path)
	if err != nil {
		return nil, &usageError{err}
	}
	return cfg, nil
}

// warn logs what is odd in a part of the file.
func warn(log *slog.Logger, cfg *config.Config, part string) {
	for _, w := range cfg.Warnings() {
		if strings.HasPrefix(w.Message, part+".") && !strings.Contains(w.Message, " cannot run on one machine") {
			log.Warn("configuration: " + w.String())
		}
	}
}

// serve runs a service, or several, until the process is told to stop and run has drained.
func (f *serviceFlags) serve(cmd *cobra.Command, log *slog.Logger, reload *reloader, run func(context.Context) error) error {
	drains(cmd.Context(), f.stopTimeout)
	// A service whose log nobody reads any more goes on.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := hangups(cmd.Context(), log, hasTerminal(), reload.hangUp)
	defer stop()
	return run(ctx)
}

func newBuffer() *cobra.Command {
	var f serviceFlags
	cmd := &cobra.Command{
		Use:     "buffer",
		Short:   "Runs the buffer: the durable queue between ingest and deliveries",
		Long:    "Runs the buffer of the pipeline's file: its queues in buffer.data_dir or in Kafka, gRPC on buffer.listen,\nmetrics and health on buffer.http. SIGTERM or Ctrl-C makes it write out what is in memory, and end.",
		Example: "  spillway buffer -c pipeline.yaml",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := f.logger(cmd)
			if err != nil {
				return err
			}
			cfg, err := loadConfig(f.config)
			if err != nil {
				return err
			}
			if err := cfg.ForBuffer(); err != nil {
				return &usageError{err}
			}
			warn(log, cfg, "buffer")
			limitMemory(bufferMemory(&cfg.Buffer))
			p, err := newBufferProcess(cfg, log, listenTCP)
			if err != nil {
				return err
			}
			reload := newReloader(cfg, f.config, log, "buffer")
			reload.add(p)
			return f.serve(cmd, log, reload, p.serve)
		},
	}
	f.register(cmd)
	return cmd
}

func newIngest() *cobra.Command {
	var f serviceFlags
	cmd := &cobra.Command{
		Use:     "ingest",
		Short:   "Runs the ingest: reads Kafka and appends to the buffer",
		Long:    "Runs the ingest of the pipeline's file: every source as a member of its consumer group. Several instances\nshare the partitions. SIGTERM or Ctrl-C makes it commit what is safe, leave the groups, and end.",
		Example: "  spillway ingest -c pipeline.yaml",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := f.logger(cmd)
			if err != nil {
				return err
			}
			cfg, err := loadConfig(f.config)
			if err != nil {
				return err
			}
			if err := cfg.ForIngest(); err != nil {
				return &usageError{err}
			}
			warn(log, cfg, "ingest")
			limitMemory(cfg.Ingest.Memory)
			p, err := newIngestProcess(cfg, log, listenTCP, nil)
			if err != nil {
				return err
			}
			reload := newReloader(cfg, f.config, log, "ingest", "buffers")
			reload.add(p)
			return f.serve(cmd, log, reload, p.serve)
		},
	}
	f.register(cmd)
	return cmd
}

func newDelivery() *cobra.Command {
	var f serviceFlags
	cmd := &cobra.Command{
		Use:   "delivery NAME",
		Short: "Runs the delivery of that name: takes from the buffer and writes to HDFS, files or Kafka",
		Long: "Runs delivery.NAME of the pipeline's file. Several instances of one delivery share its subscription.\n" +
			"SIGTERM or Ctrl-C makes it finish what it holds, make its files final, and end.",
		Example: "  spillway delivery hdfs -c pipeline.yaml",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &usageError{errOneName}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			log, err := f.logger(cmd)
			if err != nil {
				return err
			}
			cfg, err := loadConfig(f.config)
			if err != nil {
				return err
			}
			warn(log, cfg, "delivery."+args[0])
			if d := cfg.Delivery[args[0]]; d != nil {
				limitMemory(d.Memory)
			}
			p, err := newDeliveryProcess(cfg, args[0], log, listenTCP, nil)
			if err != nil {
				return err
			}
			reload := newReloader(cfg, f.config, log, "delivery."+args[0], "buffers")
			reload.add(p)
			return f.serve(cmd, log, reload, p.serve)
		},
	}
	f.register(cmd)
	return cmd
}
