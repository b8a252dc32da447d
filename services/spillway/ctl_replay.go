package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/shards"
)

// timeLayouts are how people write times; those without a zone are of this machine's.
var timeLayouts = []string{time.RFC3339, "2006-01-02T15:04Z07:00", "2006-01-02T15:04:05", "2006-01-02T15:04", time.DateTime, "2006-01-02 15:04", time.DateOnly}

// timeOf reads a time, or how long ago.
func timeOf(text string) (time.Time, bool) {
	for _, layout := range timeLayouts {
		if at, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return at, true
		}
	}
	ago, err := time.ParseDuration(text)
	return time.Now().Add(-ago), err == nil && ago > 0
}

func newReplay() *cobra.Command {
	t := bufferTarget()
	var f replayFlags
	var dryRun bool
	var confirm string
	cmd := &cobra.Command{
		Use:   "replay QUEUE/SUBSCRIPTION",
		Short: "Delivers once more what a subscription has delivered in a time, as fast as is wanted",
		Long: "Delivers records of a time once more, beside what is new, and says before how many they are and where they are read from.\n" +
			"Nothing is begun anew: what the audit says, and what is committed to Kafka, stays. What the buffer does not hold is read from\n" +
			"Kafka, as long as it has it. A delivery to files writes it to new files, beside those that are there; one to Kafka delivers the\n" +
			"replay of a partition first, and what is new of that partition afterwards. Since readers see records twice, it asks for the\n" +
			"name, or takes it from --confirm.",
		Example: "  spillway replay logs/hdfs --last 1h --rate 0.5x --dry-run\n" +
			"  spillway replay logs/hdfs --from 2026-11-30T08:00Z --to 2026-11-30T09:00Z --rate 1000/s\n" +
			"  spillway replay status logs/hdfs\n  spillway replay cancel logs/hdfs",
		Args: oneName("queue/subscription"),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		request, err := f.request(args[0])
		if err != nil {
			return err
		}
		return t.run(func(c *call, _ []string) error {
			request.ValidateOnly = true
			plans := make(map[*grpc.ClientConn]*spillwayv1.ReplaySubscriptionResponse)
			plan, err := c.replay(func() *spillwayv1.ReplaySubscriptionRequest { return request }, plans)
			if err != nil {
				return err
			}
			if dryRun {
				return c.show(plan, func(w io.Writer) { planTable(w, plan) })
			}
			what := fmt.Sprintf("%d records of %s are to be delivered once more%s", plan.AgainOffsets, args[0], takes(plan))
			if err := confirmed(cmd, confirm, args[0], what); err != nil {
				return err
			}
			begun, err := c.replay(func() *spillwayv1.ReplaySubscriptionRequest { return shards.ReplayPart(request, plans[c.conn], plan) }, nil)
			if begun == nil {
				return err
			}
			return errors.Join(c.show(begun, func(w io.Writer) {
				planTable(w, begun)
				fmt.Fprintf(w, "\nit goes on over restarts; spillway replay status %s says how far it is\n", args[0])
			}), err)
		})(cmd, args)
	}
	t.register(cmd)
	f.register(cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would be delivered, and from where")
	cmd.Flags().StringVar(&confirm, "confirm", "", "the subscription's name, to go ahead without being asked")
	cmd.AddCommand(replayStatus(t), cancelReplay(t))
	cmd.ValidArgsFunction = t.complete(subscriptionNames)
	for _, sub := range cmd.Commands() {
		sub.ValidArgsFunction = t.complete(subscriptionNames)
	}
	return cmd
}

// replay asks each buffer for its part of a replay, and returns the sum: also when some of them
// fail, and nil when nothing was asked. The buffer that has the connection c.conn is asked what of
// returns, or nothing. Each answer is put into answers, if there is such a map.
func (c *call) replay(of func() *spillwayv1.ReplaySubscriptionRequest, answers map[*grpc.ClientConn]*spillwayv1.ReplaySubscriptionResponse) (
	sum *spillwayv1.ReplaySubscriptionResponse, err error) {
	err = c.askEach(func(ctx context.Context) error {
		request := of()
		if request == nil {
			return nil
		}
		r, err := c.buffer().ReplaySubscription(ctx, request)
		if err != nil {
			return err
		}
		if answers != nil {
			answers[c.conn] = proto.CloneOf(r)
		}
		sum = shards.AddReplayed(sum, r)
		return nil
	})
	return sum, err
}

// replayFlags say what to replay, and how fast.
type replayFlags struct {
	from, to, rate string
	last           time.Duration
	topics         []string
}

func (f *replayFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.from, "from", "", "where it begins: a time such as 2026-11-30T08:00Z, or how long ago, such as 90m")
	flags.StringVar(&f.to, "to", "", "where it ends: a time, or how long ago; by default now")
	flags.DurationVar(&f.last, "last", 0, "in place of --from: the last so long, such as 1h")
	flags.StringVar(&f.rate, "rate", "", "how fast: 500/s are records a second, 0.5x is half as fast as the records came; by default as fast as it goes")
	flags.StringSliceVar(&f.topics, "topics", nil, "only topics that match one of these globs")
}

// atTime is a place that a flag says: a time, or how long ago.
func atTime(flag, text string) (*spillwayv1.StartPosition, error) {
	at, ok := timeOf(text)
	if !ok {
		return nil, &usageError{fmt.Errorf("--%s %q: want a time such as 2026-11-30T08:00Z, or how long ago, such as 90m", flag, text)}
	}
	return &spillwayv1.StartPosition{Place: &spillwayv1.StartPosition_Time{Time: timestamppb.New(at)}}, nil
}

func (f *replayFlags) request(name string) (*spillwayv1.ReplaySubscriptionRequest, error) {
	r := &spillwayv1.ReplaySubscriptionRequest{Name: name, Topics: f.topics}
	switch {
	case f.from == "" && f.last == 0:
		return nil, &usageError{fmt.Errorf("from when? want --from, as in --from 2026-11-30T08:00Z, or --last, as in --last 1h")}
	case f.from != "" && f.last != 0:
		return nil, &usageError{fmt.Errorf("--from and --last both say from when; want one")}
	case f.last < 0:
		return nil, &usageError{fmt.Errorf("--last %s: want more than 0", f.last)}
	case f.last > 0:
		f.from = f.last.String()
	}
	var err error
	if r.From, err = atTime("from", f.from); err != nil {
		return nil, err
	}
	if r.To, err = atTime("to", cmp.Or(f.to, time.Now().Format(time.RFC3339Nano))); err != nil {
		return nil, err
	}
	speed, isSpeed := strings.CutSuffix(f.rate, "x")
	number := strings.TrimSuffix(strings.TrimSuffix(f.rate, "/s"), " records")
	if isSpeed {
		number = speed
	}
	rate, err := strconv.ParseFloat(cmp.Or(number, "0"), 64)
	if err != nil || !(rate >= 0) || f.rate != "" && rate == 0 {
		return nil, &usageError{fmt.Errorf("--rate %q: want records a second, as in 500/s, or a speed, as in 0.5x", f.rate)}
	}
	if isSpeed {
		r.Speed = rate
	} else {
		r.OffsetsPerSecond = rate
	}
	return r, nil
}

func takes(r *spillwayv1.ReplaySubscriptionResponse) string {
	if r.Takes == nil {
		return ""
	}
	return fmt.Sprintf(", which takes %s", short(r.Takes.AsDuration()))
}

func planTable(w io.Writer, r *spillwayv1.ReplaySubscriptionResponse) {
	row(w, "TOPIC", "PARTITION", "FROM", "TO", "AGAIN", "PENDING", "IN THE BUFFER")
	for _, p := range r.Partitions {
		row(w, topicOf(p.Source), p.Source.Partition, p.Range.First, p.Range.Next, p.AgainOffsets, p.PendingOffsets, p.HeldOffsets)
	}
	fmt.Fprintf(w, "\n%d records are delivered once more%s; the buffer holds %d, and the others are read from Kafka\n", r.AgainOffsets, takes(r), min(r.HeldOffsets, r.AgainOffsets))
	if r.HoldsUp {
		fmt.Fprintln(w, "the delivery keeps the order of partitions: what is new of these waits for the replay")
	}
}

// replayText says in a line how a replay does.
func replayText(r *spillwayv1.Replay) string {
	text := fmt.Sprintf("%d of %d records are left, begun %s ago", r.LeftOffsets, r.Offsets, since(r.BeganAt.AsTime()))
	switch {
	case r.CancelledAt != nil && r.LeftOffsets > 0:
		text = fmt.Sprintf("cancelled %s ago; %d of %d records are still with deliveries", since(r.CancelledAt.AsTime()), r.LeftOffsets, r.Offsets)
	case r.CancelledAt != nil:
		text = fmt.Sprintf("cancelled %s ago, of %d records", since(r.CancelledAt.AsTime()), r.Offsets)
	case r.LeftOffsets == 0:
		text = fmt.Sprintf("over, %d records, begun %s ago", r.Offsets, since(r.BeganAt.AsTime()))
	case r.OffsetsPerSecond > 0:
		text += fmt.Sprintf(", at most %.3g a second: %s more", r.OffsetsPerSecond, short(time.Duration(float64(r.LeftOffsets)/r.OffsetsPerSecond*float64(time.Second))))
	}
	if r.From != nil && r.To != nil {
		text += fmt.Sprintf(" (%s to %s)", r.From.AsTime().Local().Format(time.DateTime), r.To.AsTime().Local().Format(time.DateTime))
	}
	return text
}

func replayStatus(t *target) *cobra.Command {
	return &cobra.Command{
		Use: "status QUEUE/SUBSCRIPTION", Short: "Says how far a replay is", Long: "Says how much of a subscription's last replay is left.",
		Example: "  spillway replay status logs/hdfs", Args: oneName("queue/subscription"),
		RunE: t.run(func(c *call, args []string) error {
			return c.replayOf(func(ctx context.Context) (*spillwayv1.Subscription, error) {
				r, err := c.buffer().GetSubscription(ctx, &spillwayv1.GetSubscriptionRequest{Name: args[0], PageSize: 1})
				return r.GetSubscription(), err
			})
		}),
	}
}

func cancelReplay(t *target) *cobra.Command {
	return &cobra.Command{
		Use: "cancel QUEUE/SUBSCRIPTION", Short: "Ends a replay; what is with deliveries is finished",
		Long: "Ends a subscription's replay. What was delivered stays, and what is with deliveries is finished.", Example: "  spillway replay cancel logs/hdfs",
		Args: oneName("queue/subscription"),
		RunE: t.run(func(c *call, args []string) error {
			return c.replayOf(func(ctx context.Context) (*spillwayv1.Subscription, error) {
				r, err := c.buffer().CancelReplay(ctx, &spillwayv1.CancelReplayRequest{Name: args[0]})
				return r.GetSubscription(), err
			}, "NO_REPLAY")
		}),
	}
}

// replayOf prints the replay of a subscription, which ask returns of each buffer.
func (c *call) replayOf(ask func(context.Context) (*spillwayv1.Subscription, error), elsewhere ...string) error {
	var s *spillwayv1.Subscription
	err := c.askEach(func(ctx context.Context) error {
		one, err := ask(ctx)
		if err == nil {
			s = shards.AddSubscription(s, one)
		}
		return err
	}, elsewhere...)
	switch {
	case err != nil:
		return err
	case s.Replay == nil && c.output != "json":
		_, err := fmt.Fprintln(c.out, s.Name, "was never replayed")
		return err
	case s.Replay == nil:
		return c.json(struct{}{})
	}
	return c.show(s.Replay, func(w io.Writer) { row(w, s.Name+":", replayText(s.Replay)) })
}
