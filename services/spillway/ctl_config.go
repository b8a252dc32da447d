package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
)

// errDiffers ends a comparison that found something. What there is to say is printed already.
var errDiffers = errors.New("the buffer runs with other values than the file has")

func newConfig() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "config",
		Short:   "Shows the configuration as it counts, and compares it with a running buffer",
		Long:    "Shows a pipeline's file with the defaults and with what variables say, and what a running buffer does otherwise.",
		Example: "  spillway config show -c pipeline.yaml\n  spillway config diff -c pipeline.yaml",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(showConfig(), diffConfig())
	return cmd
}

func showConfig() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Prints the configuration as it counts, without its secrets",
		Long: "Prints what a pipeline's file says, what variables of the environment say in its place, and the defaults of all other keys,\n" +
			"as a file. Passwords are redacted.",
		Example: "  spillway config show -c pipeline.yaml",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(path)
			if err != nil {
				return err
			}
			b, err := cfg.Effective()
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(b)
			return err
		},
	}
	registerConfig(cmd, &path)
	return cmd
}

func diffConfig() *cobra.Command {
	t := bufferTarget()
	cmd := &cobra.Command{
		Use:   "diff",
		Short: "Says what a running buffer does otherwise than a pipeline's file says",
		Long: "Compares the queues and subscriptions of a pipeline's file with those of a running buffer: what was changed while it runs, and\n" +
			"what the file says since it was started. The exit status is 1 when something differs. Other keys than those printed by\n" +
			"spillway queues and subscriptions are not compared.",
		Example: "  spillway config diff -c pipeline.yaml",
		Args:    noArgs,
	}
	cmd.RunE = t.run(func(c *call, _ []string) error {
		cfg, err := loadConfig(t.config)
		if err != nil {
			return err
		}
		any := false
		err = c.each(func() error {
			d := &differences{w: c.out}
			if len(c.all) > 1 {
				d.where = " at " + c.address
			}
			err := c.differences(cfg, d)
			any = any || d.any
			return err
		})
		switch {
		case err != nil:
			return err
		case any:
			return errDiffers
		}
		_, err = fmt.Fprintln(c.out, "the buffer runs as the file says")
		return err
	})
	t.register(cmd)
	return cmd
}

// differences compares the file with one buffer.
func (c *call) differences(cfg *config.Config, d *differences) error {
	admin := c.buffer()
	queues := make(map[string]*spillwayv1.Queue)
	err := c.pagesOfOne(func(ctx context.Context, token string) (string, error) {
		page, err := admin.ListQueues(ctx, &spillwayv1.ListQueuesRequest{PageToken: token})
		for _, q := range page.GetQueues() {
			queues[q.Name] = q
		}
		return page.GetNextPageToken(), err
	})
	subs := make(map[string]*spillwayv1.Subscription)
	if err == nil {
		err = c.pagesOfOne(func(ctx context.Context, token string) (string, error) {
			page, err := admin.ListSubscriptions(ctx, &spillwayv1.ListSubscriptionsRequest{PageToken: token})
			for _, s := range page.GetSubscriptions() {
				subs[s.Name] = s
			}
			return page.GetNextPageToken(), err
		})
	}
	if err != nil {
		return err
	}
	for _, name := range union(cfg.Buffer.Queues, queues) {
		d.queue(name, cfg.Buffer.Queues[name], queues[name])
		if cfg.Buffer.Queues[name] == nil || queues[name] == nil {
			continue
		}
		running := make(map[string]*spillwayv1.Subscription)
		for full, s := range subs {
			if of, sub, _ := strings.Cut(full, "/"); of == name {
				s.LimitBytes /= shardCount(queues[name])
				running[sub] = s
			}
		}
		for _, sub := range union(cfg.Buffer.Queues[name].Subscriptions, running) {
			d.subscription(name+"/"+sub, cfg.Buffer.Queues[name].Subscriptions[sub], running[sub])
		}
	}
	return nil
}

// union is the names of both maps, sorted.
func union[A, B any](a map[string]A, b map[string]B) []string {
	names := slices.AppendSeq(slices.Collect(maps.Keys(a)), maps.Keys(b))
	slices.Sort(names)
	return slices.Compact(names)
}

// differences prints what differs.
type differences struct {
	w     io.Writer
	where string // of the buffer, if there are several
	any   bool
}

func (d *differences) add(key string, file, running any) {
	if fmt.Sprint(file) != fmt.Sprint(running) {
		d.any = true
		fmt.Fprintf(d.w, "%s: the file says %v, the buffer%s has %v\n", key, file, d.where, running)
	}
}

func (d *differences) queue(name string, q *config.Queue, running *spillwayv1.Queue) {
	at := "buffer.queues." + name
	switch {
	case running == nil:
		d.add(at, "it is there", "no such queue; it is made when the buffer is restarted")
	case q == nil:
		d.add(at, "nothing", "it")
	default:
		d.add(at+".disk.bytes", q.Disk.Bytes, config.ByteSize(running.DiskBytesLimit/shardCount(running)))
		d.add(at+".disk.records", q.Disk.Records, running.DiskRecordsLimit/shardCount(running))
		d.add(at+".memory.bytes", q.Memory.Bytes, config.ByteSize(running.MemoryBytesLimit))
		d.add(at+".memory.records", q.Memory.Records, running.MemoryRecordsLimit)
	}
}

func (d *differences) subscription(name string, s *config.Subscription, running *spillwayv1.Subscription) {
	queue, sub, _ := strings.Cut(name, "/")
	at := "buffer.queues." + queue + ".subscriptions." + sub
	switch {
	case running == nil:
		d.add(at, "it is there", "no such subscription; it is made when the buffer is restarted")
	case s == nil:
		d.add(at, "nothing", "it, until it is deleted")
	default:
		d.add(at+".topics", s.Topics, running.Topics)
		d.add(at+".required", s.Required, running.Required)
		d.add(at+".on_full", s.OnFull, strings.ToLower(strings.TrimPrefix(running.OnFull.String(), "ON_FULL_")))
		d.add(at+".limit", s.Limit, config.ByteSize(running.LimitBytes))
	}
}
