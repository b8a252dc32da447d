package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/shards"
)

func newSubscriptions() *cobra.Command {
	t := bufferTarget()
	cmd := &cobra.Command{
		Use:     "subscriptions [QUEUE]",
		Aliases: []string{"subs"},
		Short:   "Lists the subscriptions of a buffer; shows, pauses, resumes, seeks, makes, changes and deletes them",
		Long: "Asks a running buffer for its subscriptions: how far behind each is, in records, bytes and age, and who is\n" +
			"connected. Changes are durable; those of subscriptions that are in the pipeline's file hold until the file says otherwise.\n" +
			"Why one is behind, and what to do about it, spillway top --once says in words.",
		Example: "  spillway subscriptions\n  spillway subscriptions show logs/hdfs\n  spillway subscriptions pause logs/hdfs",
		Args:    atMostOneName("a queue"),
		RunE: t.run(func(c *call, args []string) error {
			all := &spillwayv1.ListSubscriptionsResponse{}
			err := c.pages(func(ctx context.Context, token string) (string, error) {
				page, err := c.buffer().ListSubscriptions(ctx, &spillwayv1.ListSubscriptionsRequest{Queue: strings.Join(args, ""), PageToken: token})
				all.Subscriptions = shards.AddSubscriptions(all.Subscriptions, page.GetSubscriptions())
				return page.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			return c.show(all, func(w io.Writer) { subscriptionTable(w, all.Subscriptions) })
		}),
	}
	t.register(cmd)
	cmd.AddCommand(showSubscription(t), pauseSubscription(t), resumeSubscription(t), seekSubscription(t),
		createSubscription(t), updateSubscription(t), deleteSubscription(t))
	cmd.ValidArgsFunction = t.complete(queueNames)
	for _, sub := range cmd.Commands() {
		sub.ValidArgsFunction = t.complete(subscriptionNames)
	}
	return cmd
}

func subscriptionTable(w io.Writer, subs []*spillwayv1.Subscription) {
	row(w, "SUBSCRIPTION", "STATE", "PENDING", "BYTES", "AGE", "LEASED", "PARKED", "DEFERRED", "SESSIONS", "DELIVERED", "DEAD", "DROPPED", "LOST")
	for _, s := range subs {
		row(w, s.Name, stateOf(s), s.PendingRecords, bytesOf(s.PendingBytes), short(s.OldestPendingAge.AsDuration()), s.LeasedBatches, s.ParkedBatches,
			s.DeferredOffsets, s.Sessions, s.DeliveredRecords, s.DeadLetteredRecords, s.DroppedOffsets, s.LostOffsets)
	}
	for _, s := range subs {
		if s.Trouble == "" {
			continue
		}
		fmt.Fprintf(w, "%s: a delivery has failed since %s: %s\n", s.Name, s.TroubleSince.AsTime().Local().Format(time.DateTime), printable([]byte(s.Trouble)))
	}
}

// stateOf says in a word or two why a subscription goes on or does not.
func stateOf(s *spillwayv1.Subscription) string {
	behind := s.PendingRecords > 0 || s.DeferredOffsets > 0
	switch {
	case s.Paused:
		return "paused"
	case len(s.PausedDeliveries) > 0:
		return "delivery paused"
	case s.Sessions == 0 && behind:
		return "no delivery"
	case s.Sessions == 0:
		return "idle"
	case s.Trouble != "":
		return "retrying"
	case s.Replay.GetLeftOffsets() > 0:
		return "replaying"
	case s.PendingRecords > 0 && s.ParkedBatches > 0 && s.LeasedBatches == 0:
		return "parked"
	case behind:
		return "working"
	}
	return "caught up"
}

func showSubscription(t *target) *cobra.Command {
	return &cobra.Command{
		Use:     "show QUEUE/SUBSCRIPTION",
		Short:   "Shows one subscription, and its progress in each source partition",
		Long:    "Shows the settings of a subscription, and per source partition where it began, below which offset everything is\nsettled, and what is settled how.",
		Example: "  spillway subscriptions show logs/hdfs",
		Args:    oneName("queue/subscription"),
		RunE: t.run(func(c *call, args []string) error {
			all := &spillwayv1.GetSubscriptionResponse{}
			err := c.pages(func(ctx context.Context, token string) (string, error) {
				page, err := c.buffer().GetSubscription(ctx, &spillwayv1.GetSubscriptionRequest{Name: args[0], PageToken: token})
				if page.GetSubscription() != nil && token == "" {
					all.Subscription = shards.AddSubscription(all.Subscription, page.Subscription)
				}
				all.Partitions = append(all.Partitions, page.GetPartitions()...)
				return page.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			var parked *spillwayv1.ParkedBatch // one of them tells why
			if err := c.each(func() error {
				if all.Subscription.ParkedBatches == 0 {
					return nil
				}
				return c.ask(func(ctx context.Context) error {
					r, err := c.buffer().ListParkedBatches(ctx, &spillwayv1.ListParkedBatchesRequest{Subscription: args[0], PageSize: 1})
					if len(r.GetBatches()) > 0 {
						parked = r.Batches[0]
					}
					return err
				})
			}); err != nil {
				return err
			}
			return c.show(all, func(w io.Writer) {
				s := all.Subscription
				row(w, "topics:", strings.Join(s.Topics, ", "))
				row(w, "required:", yesNo(s.Required))
				row(w, "on full:", strings.ToLower(strings.TrimPrefix(s.OnFull.String(), "ON_FULL_")))
				if s.LimitBytes > 0 {
					row(w, "limit:", bytesOf(s.LimitBytes))
				}
				row(w, "from the file:", yesNo(s.Configured))
				if s.Replay != nil {
					row(w, "replay:", replayText(s.Replay))
				}
				if s.RedrivingOffsets > 0 {
					row(w, "redriving:", s.RedrivingOffsets)
				}
				if len(s.PausedDeliveries) > 0 {
					row(w, "paused deliveries:", strings.Join(s.PausedDeliveries, ", "))
				}
				if parked != nil {
					row(w, "given back:", fmt.Sprintf("%d batches, until %s: %s", s.ParkedBatches, parked.Until.AsTime().Local().Format(time.TimeOnly), orNone(parked.Reason)))
				}
				fmt.Fprintln(w)
				subscriptionTable(w, []*spillwayv1.Subscription{s})
				fmt.Fprintln(w)
				row(w, "TOPIC", "PARTITION", "FROM", "SETTLED", "APPENDED", "BEHIND", "DELIVERED", "FILTERED", "DEAD", "DROPPED", "LOST", "WANTED")
				for _, p := range all.Partitions {
					row(w, topicOf(p.Source), p.Source.Partition, p.StartOffset, p.SettledOffset, p.AppendedOffset, p.AppendedOffset-p.SettledOffset,
						p.Outcomes["delivered"], p.Outcomes["filtered"], p.Outcomes["dead_lettered"], p.Outcomes["dropped"], p.Outcomes["lost"], yesNo(!p.Unwanted))
				}
			})
		}),
	}
}

// change changes a subscription at each buffer, and prints what it is then.
func (c *call) change(f func(context.Context) (*spillwayv1.Subscription, error)) error {
	var sum *spillwayv1.Subscription
	err := c.askEach(func(ctx context.Context) error {
		s, err := f(ctx)
		if err == nil {
			sum = shards.AddSubscription(sum, s)
		}
		return err
	})
	if err != nil {
		return err
	}
	return c.show(sum, func(w io.Writer) { subscriptionTable(w, []*spillwayv1.Subscription{sum}) })
}

func pauseSubscription(t *target) *cobra.Command {
	return changeSubscription(t, "pause", "Holds a subscription: nothing is leased any more, what is with deliveries is finished",
		"Pauses a subscription until it is resumed, over restarts, for all instances of its delivery. Its backlog grows meanwhile,\nand holds back ingest, or is dropped or deferred, as its on_full says.",
		func(ctx context.Context, a spillwayv1.BufferAdminServiceClient, name string) (*spillwayv1.Subscription, error) {
			r, err := a.PauseSubscription(ctx, &spillwayv1.PauseSubscriptionRequest{Name: name})
			return r.GetSubscription(), err
		})
}

func resumeSubscription(t *target) *cobra.Command {
	return changeSubscription(t, "resume", "Lets a paused subscription go on", "Resumes a subscription that was paused.",
		func(ctx context.Context, a spillwayv1.BufferAdminServiceClient, name string) (*spillwayv1.Subscription, error) {
			r, err := a.ResumeSubscription(ctx, &spillwayv1.ResumeSubscriptionRequest{Name: name})
			return r.GetSubscription(), err
		})
}

func changeSubscription(t *target, verb, summary, long string,
	change func(context.Context, spillwayv1.BufferAdminServiceClient, string) (*spillwayv1.Subscription, error)) *cobra.Command {
	return &cobra.Command{
		Use: verb + " QUEUE/SUBSCRIPTION", Short: summary, Long: long,
		Example: "  spillway subscriptions " + verb + " logs/hdfs", Args: oneName("queue/subscription"),
		RunE: t.run(func(c *call, args []string) error {
			return c.change(func(ctx context.Context) (*spillwayv1.Subscription, error) { return change(ctx, c.buffer(), args[0]) })
		}),
	}
}

// either returns err, or what f returns without one.
func either(err error, f func() error) error {
	if err != nil {
		return err
	}
	return f()
}

// position reads --to or --start: earliest, latest, a time, or how long ago.
func position(flag, text string) (*spillwayv1.StartPosition, error) {
	switch text {
	case "earliest":
		return &spillwayv1.StartPosition{Place: &spillwayv1.StartPosition_Earliest_{Earliest: &spillwayv1.StartPosition_Earliest{}}}, nil
	case "latest":
		return &spillwayv1.StartPosition{Place: &spillwayv1.StartPosition_Latest_{Latest: &spillwayv1.StartPosition_Latest{}}}, nil
	}
	at, ok := timeOf(text)
	if !ok {
		return nil, &usageError{fmt.Errorf("--%s %q: want earliest, latest, a time such as 2026-11-30T12:00:00Z, or how long ago, such as 90m", flag, text)}
	}
	return &spillwayv1.StartPosition{Place: &spillwayv1.StartPosition_Time{Time: timestamppb.New(at)}}, nil
}

func seekSubscription(t *target) *cobra.Command {
	var to, confirm string
	cmd := &cobra.Command{
		Use:   "seek QUEUE/SUBSCRIPTION --to PLACE",
		Short: "Moves a subscription back, for a replay, or ahead",
		Long: "Moves a subscription to a place in all its partitions. Back: what was delivered since is delivered again, read from Kafka where\n" +
			"the buffer no longer has it. Ahead: what is skipped is settled as dropped, and listed by dead-letters. Since both change what\n" +
			"readers see, it asks for the name, or takes it from --confirm.",
		Example: "  spillway subscriptions seek logs/hdfs --to 2h\n  spillway subscriptions seek logs/copy --to latest --confirm logs/copy",
		Args:    oneName("queue/subscription"),
	}
	run := t.run(func(c *call, args []string) error {
		place, err := position("to", to)
		if err != nil {
			return err
		}
		return c.change(func(ctx context.Context) (*spillwayv1.Subscription, error) {
			r, err := c.buffer().SeekSubscription(ctx, &spillwayv1.SeekSubscriptionRequest{Name: args[0], To: place})
			return r.GetSubscription(), err
		})
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if _, err := position("to", to); err != nil {
			return err
		}
		if err := confirmed(cmd, confirm, args[0], fmt.Sprintf("%s is to go to %s: records are delivered again, or skipped", args[0], to)); err != nil {
			return err
		}
		return run(cmd, args)
	}
	cmd.Flags().StringVar(&to, "to", "", "earliest, latest, a time (RFC 3339), or how long ago, such as 90m")
	cmd.Flags().StringVar(&confirm, "confirm", "", "the subscription's name, to go ahead without being asked")
	return cmd
}

// subscriptionFlags are what create and update set.
type subscriptionFlags struct {
	topics   []string
	required bool
	onFull   string
	limit    config.ByteSize
}

var onFullNames = map[string]spillwayv1.OnFull{"": spillwayv1.OnFull_ON_FULL_UNSPECIFIED, "block": spillwayv1.OnFull_ON_FULL_BLOCK,
	"drop_oldest": spillwayv1.OnFull_ON_FULL_DROP_OLDEST, "defer": spillwayv1.OnFull_ON_FULL_DEFER}

func (f *subscriptionFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringSliceVar(&f.topics, "topics", nil, "globs of topics that it wants, such as 'orders*'")
	cmd.Flags().BoolVar(&f.required, "required", true, "offsets are committed to Kafka only when it has settled them, or they are on disk")
	cmd.Flags().StringVar(&f.onFull, "on-full", "", "block, drop_oldest or defer")
	cmd.Flags().TextVar(&f.limit, "limit", config.ByteSize(0), "bound of its backlog, such as 20GiB; 0B is the queue's disk bound")
}

func (f *subscriptionFlags) policy() (spillwayv1.OnFull, error) {
	policy, ok := onFullNames[f.onFull]
	if !ok {
		return 0, &usageError{fmt.Errorf("--on-full %q: want block, drop_oldest or defer", f.onFull)}
	}
	return policy, nil
}

func createSubscription(t *target) *cobra.Command {
	var f subscriptionFlags
	var start string
	cmd := &cobra.Command{
		Use:     "create QUEUE/SUBSCRIPTION",
		Short:   "Makes a subscription while the queue runs; it is kept over restarts",
		Long:    "Makes a subscription of a running queue, without the pipeline's file. It is kept over restarts until it is deleted.",
		Example: "  spillway subscriptions create logs/audit --topics 'orders*' --start earliest --on-full defer",
		Args:    oneName("queue/subscription"),
		RunE: t.run(func(c *call, args []string) error {
			policy, err := f.policy()
			if err != nil {
				return err
			}
			place, err := position("start", start)
			if err != nil {
				return err
			}
			return c.change(func(ctx context.Context) (*spillwayv1.Subscription, error) {
				r, err := c.buffer().CreateSubscription(ctx, &spillwayv1.CreateSubscriptionRequest{
					Name: args[0], Topics: f.topics, Required: &f.required, OnFull: policy, LimitBytes: int64(f.limit), Start: place})
				return r.GetSubscription(), err
			})
		}),
	}
	f.register(cmd)
	cmd.Flags().StringVar(&start, "start", "latest", "earliest, latest, a time (RFC 3339), or how long ago, such as 90m")
	return cmd
}

func updateSubscription(t *target) *cobra.Command {
	var f subscriptionFlags
	var drop bool
	cmd := &cobra.Command{
		Use:   "update QUEUE/SUBSCRIPTION",
		Short: "Changes the topics, the policy or the limit of a subscription",
		Long: "Changes what is given, and leaves the rest. A topic that is no longer wanted keeps its ledger, so that nothing is lost when\n" +
			"it is wanted again; --drop-unwanted settles what is pending of it as dropped.",
		Example: "  spillway subscriptions update logs/copy --on-full drop_oldest --limit 20GiB",
		Args:    oneName("queue/subscription"),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		request := &spillwayv1.UpdateSubscriptionRequest{Name: args[0], Topics: f.topics, DropUnwanted: drop}
		var err error
		if request.OnFull, err = f.policy(); err != nil {
			return err
		}
		changed := drop
		for _, name := range []string{"topics", "required", "on-full", "limit"} {
			changed = changed || cmd.Flags().Changed(name)
		}
		if !changed {
			return &usageError{errors.New("nothing to change: give --topics, --required, --on-full, --limit or --drop-unwanted")}
		}
		if cmd.Flags().Changed("required") {
			request.Required = &f.required
		}
		if limit := int64(f.limit); cmd.Flags().Changed("limit") {
			request.LimitBytes = &limit
		}
		return t.run(func(c *call, _ []string) error {
			return c.change(func(ctx context.Context) (*spillwayv1.Subscription, error) {
				r, err := c.buffer().UpdateSubscription(ctx, request)
				return r.GetSubscription(), err
			})
		})(cmd, args)
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&drop, "drop-unwanted", false, "settle as dropped what is pending of topics that it does not want")
	return cmd
}

func deleteSubscription(t *target) *cobra.Command {
	var confirm string
	var force bool
	cmd := &cobra.Command{
		Use:   "delete QUEUE/SUBSCRIPTION",
		Short: "Deletes a subscription with its ledger and its backlog",
		Long: "Deletes a subscription that was made while the queue ran; one that is in the pipeline's file is deleted there first. Its\n" +
			"backlog is gone, and so is what is known of its progress. While deliveries are connected it is refused, unless --force: their\n" +
			"sessions end then. It asks for the name, or takes it from --confirm.",
		Example: "  spillway subscriptions delete logs/audit",
		Args:    oneName("queue/subscription"),
	}
	run := t.run(func(c *call, args []string) error {
		err := c.askEach(func(ctx context.Context) error {
			_, err := c.buffer().DeleteSubscription(ctx, &spillwayv1.DeleteSubscriptionRequest{Name: args[0], Force: force})
			return err
		})
		if err != nil {
			return err
		}
		if c.output == "json" {
			return c.json(map[string]string{"deleted": args[0]})
		}
		_, err = fmt.Fprintln(c.out, args[0], "is deleted")
		return err
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := confirmed(cmd, confirm, args[0], args[0]+" is to be deleted, with its backlog and its ledger"); err != nil {
			return err
		}
		return run(cmd, args)
	}
	cmd.Flags().StringVar(&confirm, "confirm", "", "the subscription's name, to go ahead without being asked")
	cmd.Flags().BoolVar(&force, "force", false, "also when deliveries are connected")
	return cmd
}
