package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
)

func newSources() *cobra.Command {
	t := &target{service: "ingest", flag: "ingest", short: "i", address: "localhost:7410",
		of: func(c *config.Config) ([]string, error) { return []string{reachable(c.Ingest.Listen)}, nil }, in: func(x config.Context) string { return x.Ingest }}
	cmd := &cobra.Command{
		Use:   "sources",
		Short: "Lists the sources of an ingest and what is wrong with them; shows partitions, pauses, resumes",
		Long: "Asks a running ingest for its sources: their state, the last error, topics that are missing, and how many partitions\n" +
			"this instance reads. Other instances have the others.",
		Example: "  spillway sources\n  spillway sources partitions logs\n  spillway sources -i ingest-2:7410 -o json",
		Args:    noArgs,
		RunE: t.run(func(c *call, _ []string) error {
			admin, all := spillwayv1.NewIngestAdminServiceClient(c.conn), &spillwayv1.ListSourcesResponse{}
			err := c.pages(func(ctx context.Context, token string) (string, error) {
				page, err := admin.ListSources(ctx, &spillwayv1.ListSourcesRequest{PageToken: token})
				all.Sources = append(all.Sources, page.GetSources()...)
				return page.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			return c.show(all, func(w io.Writer) { sourceTable(w, all.Sources) })
		}),
	}
	t.register(cmd)
	cmd.AddCommand(listPartitions(t),
		changeSource(t, "pause", "Holds a source in all its instances until it is resumed", "Holds a source until it is resumed: in all its instances, whichever is asked, and over restarts, since the buffer keeps it.\nPartitions stay with the instances that have them.",
			func(ctx context.Context, a spillwayv1.IngestAdminServiceClient, name string) (*spillwayv1.Source, bool, error) {
				r, err := a.PauseSource(ctx, &spillwayv1.PauseSourceRequest{Name: name})
				return r.GetSource(), r.GetKept(), err
			}),
		changeSource(t, "resume", "Lets a paused source go on", "Resumes a source that was paused, in all its instances.",
			func(ctx context.Context, a spillwayv1.IngestAdminServiceClient, name string) (*spillwayv1.Source, bool, error) {
				r, err := a.ResumeSource(ctx, &spillwayv1.ResumeSourceRequest{Name: name})
				return r.GetSource(), r.GetKept(), err
			}))
	return cmd
}

// reachable makes an address to listen on one to connect to from the same machine.
func reachable(listen string) string {
	if strings.HasPrefix(listen, ":") {
		return "localhost" + listen
	}
	return listen
}

func sourceTable(w io.Writer, sources []*spillwayv1.Source) {
	row(w, "SOURCE", "STATE", "QUEUE", "GROUP", "TOPICS", "PARTITIONS", "RECORDS", "BYTES", "TROUBLE")
	for _, s := range sources {
		trouble := s.LastError
		if len(s.MissingTopics) > 0 {
			trouble = strings.TrimPrefix(trouble+"; missing topics: "+strings.Join(s.MissingTopics, ","), "; ")
		}
		if len(s.ForeignClients) > 0 {
			trouble = strings.TrimPrefix(trouble+"; the group is shared with "+strings.Join(s.ForeignClients, ","), "; ")
		}
		state := s.State
		if s.Paused {
			state = "paused"
		}
		row(w, s.Name, state, s.Queue, s.Group, strings.Join(s.Topics, ","), s.Partitions, s.Records, bytesOf(s.Bytes), orNone(trouble))
	}
}

func listPartitions(t *target) *cobra.Command {
	return &cobra.Command{
		Use:   "partitions [SOURCE]",
		Short: "Lists the partitions that this instance reads, with their offsets",
		Long: "Lists where reading is in each partition: position is read next, safe is what the buffer has secured, committed is\n" +
			"what Kafka was told, lag is how far the position is behind the end.",
		Example: "  spillway sources partitions logs",
		Args:    atMostOneName("a source"),
		RunE: t.run(func(c *call, args []string) error {
			admin, all := spillwayv1.NewIngestAdminServiceClient(c.conn), &spillwayv1.ListPartitionsResponse{}
			err := c.pages(func(ctx context.Context, token string) (string, error) {
				page, err := admin.ListPartitions(ctx, &spillwayv1.ListPartitionsRequest{Source: strings.Join(args, ""), PageToken: token})
				all.Partitions = append(all.Partitions, page.GetPartitions()...)
				return page.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			return c.show(all, func(w io.Writer) {
				row(w, "SOURCE", "TOPIC", "PARTITION", "FIRST", "COMMITTED", "SAFE", "POSITION", "END", "LAG")
				for _, p := range all.Partitions {
					row(w, p.Source, p.Topic, p.Partition, p.FirstOffset, p.CommittedOffset, p.SafeOffset, p.Position, p.EndOffset, p.Lag)
				}
			})
		}),
	}
}

func changeSource(t *target, verb, summary, long string, change func(context.Context, spillwayv1.IngestAdminServiceClient, string) (*spillwayv1.Source, bool, error)) *cobra.Command {
	return &cobra.Command{
		Use: verb + " SOURCE", Short: summary, Long: long, Example: "  spillway sources " + verb + " logs", Args: oneName("a source"),
		RunE: t.run(func(c *call, args []string) error {
			return c.ask(func(ctx context.Context) error {
				s, kept, err := change(ctx, spillwayv1.NewIngestAdminServiceClient(c.conn), args[0])
				return either(err, func() error {
					c.noteNotKept(kept)
					return c.show(s, func(w io.Writer) { sourceTable(w, []*spillwayv1.Source{s}) })
				})
			})
		}),
	}
}

// noteNotKept says that a pause, or its end, is of one instance only.
func (c *call) noteNotKept(kept bool) {
	if !kept {
		fmt.Fprintln(c.err, "spillway: the buffer is of a version that keeps no pauses: this holds for the instance that was asked, until it restarts")
	}
}

func newDeliveries() *cobra.Command {
	var name string
	t := &target{service: "delivery", flag: "delivery", short: "d", address: "localhost:7420", in: func(x config.Context) string { return x.Delivery }}
	t.of = func(c *config.Config) ([]string, error) {
		if name == "" && len(c.Delivery) == 1 {
			for only := range c.Delivery {
				name = only
			}
		}
		if name == "" {
			return nil, fmt.Errorf("the file has %d deliveries; say which: --name NAME", len(c.Delivery))
		}
		d, err := c.ForDelivery(name)
		if err != nil {
			return nil, err
		}
		return []string{reachable(d.Listen)}, nil
	}
	cmd := &cobra.Command{
		Use:     "deliveries",
		Short:   "Shows an instance of a delivery and what is wrong with it; lists and rolls its files, pauses, resumes",
		Long:    "Asks a running instance of a delivery for its state, its last error and its counts since it started.",
		Example: "  spillway deliveries\n  spillway deliveries -c pipeline.yaml --name hdfs\n  spillway deliveries files -d delivery-2:7420",
		Args:    noArgs,
		RunE: t.run(func(c *call, _ []string) error {
			return c.ask(func(ctx context.Context) error {
				r, err := spillwayv1.NewDeliveryAdminServiceClient(c.conn).GetDelivery(ctx, &spillwayv1.GetDeliveryRequest{})
				return either(err, func() error { return c.delivery(r.Delivery) })
			})
		}),
	}
	t.register(cmd)
	cmd.PersistentFlags().StringVar(&name, "name", "", "with --config: which delivery of the file")
	cmd.AddCommand(listFiles(t), rollFiles(t),
		&cobra.Command{
			Use: "pause", Short: "Holds a delivery in all its instances until it is resumed", Args: noArgs, Example: "  spillway deliveries pause",
			Long: "Holds a delivery until it is resumed: in all its instances, whichever is asked, and over restarts, since the buffer keeps it.\nThey finish what they hold and take no more. spillway subscriptions pause does the same without a delivery that runs.",
			RunE: t.run(func(c *call, _ []string) error {
				return c.ask(func(ctx context.Context) error {
					r, err := spillwayv1.NewDeliveryAdminServiceClient(c.conn).PauseDelivery(ctx, &spillwayv1.PauseDeliveryRequest{})
					return either(err, func() error {
						c.noteNotKept(r.Kept)
						return c.delivery(r.Delivery)
					})
				})
			}),
		},
		&cobra.Command{
			Use: "resume", Short: "Lets a paused delivery go on", Args: noArgs, Example: "  spillway deliveries resume",
			Long: "Resumes a delivery that was paused, in all its instances.",
			RunE: t.run(func(c *call, _ []string) error {
				return c.ask(func(ctx context.Context) error {
					r, err := spillwayv1.NewDeliveryAdminServiceClient(c.conn).ResumeDelivery(ctx, &spillwayv1.ResumeDeliveryRequest{})
					return either(err, func() error {
						c.noteNotKept(r.Kept)
						return c.delivery(r.Delivery)
					})
				})
			}),
		})
	return cmd
}

func (c *call) delivery(d *spillwayv1.Delivery) error {
	return c.show(d, func(w io.Writer) {
		state := d.State
		if d.Paused {
			state = "paused"
		}
		row(w, "DELIVERY", "KIND", "STATE", "SUBSCRIPTION", "CONSUMER", "RECORDS", "BYTES", "DEAD", "BATCHES", "FILES", "TROUBLE")
		row(w, d.Name, d.Kind, state, d.Subscription, d.Consumer, d.Records, bytesOf(d.Bytes), d.DeadLetters, d.Leases, d.OpenFiles, orNone(d.LastError))
	})
}

func listFiles(t *target) *cobra.Command {
	return &cobra.Command{
		Use:     "files",
		Short:   "Lists the files in use of this instance, and those that it cannot finish",
		Long:    "Lists files in use with what is committed to them, and the files of dead instances that this one is to finish, with\nwhat is in the way.",
		Example: "  spillway deliveries files",
		Args:    noArgs,
		RunE: t.run(func(c *call, _ []string) error {
			admin, all := spillwayv1.NewDeliveryAdminServiceClient(c.conn), &spillwayv1.ListOpenFilesResponse{}
			err := c.pages(func(ctx context.Context, token string) (string, error) {
				page, err := admin.ListOpenFiles(ctx, &spillwayv1.ListOpenFilesRequest{PageToken: token})
				all.Files = append(all.Files, page.GetFiles()...)
				return page.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			return c.show(all, func(w io.Writer) {
				row(w, "FILE", "COMMITTED", "RECORDS", "OPEN FOR", "LAST COMMIT", "TROUBLE")
				for _, f := range all.Files {
					opened, committed := "-", "-"
					if f.OpenedAt != nil {
						opened = since(f.OpenedAt.AsTime())
					}
					if f.CommittedAt != nil {
						committed = since(f.CommittedAt.AsTime()) + " ago"
					}
					row(w, f.InUsePath, bytesOf(f.CommittedBytes), f.Records, opened, committed, orNone(f.Trouble))
				}
			})
		}),
	}
}

func rollFiles(t *target) *cobra.Command {
	return &cobra.Command{
		Use:     "roll [PREFIX]",
		Short:   "Makes files in use final now, those whose final path begins with PREFIX, or all",
		Long:    "Makes files in use final now, so that readers have them. Records that come after go to new files.",
		Example: "  spillway deliveries roll /logs/orders/2026-11-30",
		Args:    atMostOneName("a prefix of final paths"),
		RunE: t.run(func(c *call, args []string) error {
			return c.ask(func(ctx context.Context) error {
				r, err := spillwayv1.NewDeliveryAdminServiceClient(c.conn).RollFiles(ctx, &spillwayv1.RollFilesRequest{FinalPathPrefix: strings.Join(args, "")})
				return either(err, func() error {
					return c.show(r, func(w io.Writer) {
						for _, path := range r.FinalPaths {
							row(w, path)
						}
						row(w, fmt.Sprintf("%d files are final", len(r.FinalPaths)))
					})
				})
			})
		}),
	}
}
