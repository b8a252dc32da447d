package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/spillwayio/spillway/services/internal/config"
)

func newRun() *cobra.Command {
	var f serviceFlags
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Runs a whole pipeline in one process: buffer, ingest and all deliveries of the file",
		Long: `Runs all that the pipeline's file describes in this process, for one machine: one unit of systemd or one
container, and one log. Every part has its own ports, as if it ran alone; what the parts say to each other stays inside
the process, so "buffers" of the file is not used. The deliveries' ports differ from each other: set listen and http of each.

SIGTERM or Ctrl-C drains the parts in order: ingest commits what is safe, deliveries finish what they hold, the buffer
writes out what is in memory. A part that fails ends the others in the same order, with exit status 1.

The price: the parts share one fate, one memory and one machine. A delivery that crashes takes the buffer
along, and the parts cannot be scaled or restarted apart. Nothing is lost or doubled either way.`,
		Example: "  spillway run -c pipeline.yaml",
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
			if err := cfg.ForOneProcess(); err != nil {
				return &usageError{err}
			}
			for _, w := range cfg.Warnings() {
				log.Warn("configuration: " + w.String())
			}
			limitMemory(pipelineMemory(cfg))
			all, err := newPipeline(cfg, log)
			if err != nil {
				return err
			}
			reload := newReloader(cfg, f.config, log, "buffer", "ingest", "delivery")
			for _, p := range all.processes() {
				reload.add(p)
			}
			return f.serve(cmd, log, reload, func(ctx context.Context) error { return all.run(ctx, log) })
		},
	}
	f.register(cmd)
	return cmd
}

// wholePipeline is all of a file, not yet started.
type wholePipeline struct {
	buffer, ingest *process
	deliveries     map[string]*process
}

// newPipeline makes all services and listens on their ports.
func newPipeline(cfg *config.Config, log *slog.Logger) (*wholePipeline, error) {
	p := &wholePipeline{deliveries: make(map[string]*process)}
	var err error
	if p.buffer, err = newBufferProcess(cfg, log, listenTCP); err != nil {
		return nil, err
	}
	dial := p.buffer.serveLocally()
	if p.ingest, err = newIngestProcess(cfg, log, listenTCP, dial); err != nil {
		return nil, err
	}
	for name := range cfg.Delivery {
		if p.deliveries["delivery "+name], err = newDeliveryProcess(cfg, name, log, listenTCP, dial); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// processes are all parts.
func (p *wholePipeline) processes() []*process {
	return append([]*process{p.buffer, p.ingest}, slices.Collect(maps.Values(p.deliveries))...)
}

// bufferFirst is how much sooner than the others the buffer starts, unless it is ready before. A
// buffer that opens large queues takes longer, and the others wait for it as they always do.
const bufferFirst = 2 * time.Second

// run serves until ctx ends or a part has failed, and all parts have drained.
func (p *wholePipeline) run(ctx context.Context, log *slog.Logger) error {
	var all stages
	all.start(map[string]*process{"buffer": p.buffer})
	select { // the others would find it still opening its queues, and say so
	case <-p.buffer.everReady:
	case <-time.After(bufferFirst):
	case <-all.failed:
	case <-ctx.Done():
	}
	all.start(p.deliveries)
	all.start(map[string]*process{"ingest": p.ingest})
	select {
	case <-ctx.Done():
	case <-all.failed:
		log.Error("a part of the pipeline has ended; stopping the others. The last line of this log says why")
	}
	err := all.stop()
	if err != nil {
		return fmt.Errorf("%s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return nil
}

// pipelineMemory is the payload bytes that all parts together may hold in memory. Each part also
// has the overhead of a process of its own.
func pipelineMemory(cfg *config.Config) config.ByteSize {
	sum := bufferMemory(&cfg.Buffer) + cfg.Ingest.Memory
	for _, d := range cfg.Delivery {
		sum += d.Memory
	}
	return sum + config.ByteSize(1+len(cfg.Delivery))*overhead*3/4
}
