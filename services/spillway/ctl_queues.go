package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/shards"
)

func newQueues() *cobra.Command {
	t := bufferTarget()
	cmd := &cobra.Command{
		Use:   "queues [QUEUE]",
		Short: "Lists the queues of a buffer, or the source partitions of one; changes the bounds of their disk",
		Long: "Asks a running buffer for its queues: what is in memory and on disk beside the bounds, and how much is\n" +
			"pending. With the name of a queue it lists the source partitions: appended is where a reconnecting ingest\ngoes on, safe is what may be committed to Kafka.",
		Example: "  spillway queues\n  spillway queues logs -o json\n  spillway queues update logs --disk-bytes 200GiB",
		Args:    atMostOneName("a queue"),
		RunE: t.run(func(c *call, args []string) error {
			if len(args) == 1 {
				return showQueue(c, args[0])
			}
			queues, err := c.queues()
			if err != nil {
				return err
			}
			return c.show(&spillwayv1.ListQueuesResponse{Queues: queues}, func(w io.Writer) { queueTable(w, queues) })
		}),
	}
	t.register(cmd)
	cmd.ValidArgsFunction = t.complete(queueNames)
	update := updateQueue(t)
	update.ValidArgsFunction = t.complete(queueNames)
	cmd.AddCommand(update)
	return cmd
}

func queueTable(w io.Writer, queues []*spillwayv1.Queue) {
	row(w, "QUEUE", "SHARD", "STATE", "MEMORY", "OF", "DISK", "OF", "PENDING", "BATCHES", "SUBSCRIPTIONS")
	for _, q := range queues {
		row(w, q.Name, shardsOf(q), q.State, bytesOf(q.MemoryBytes), bytesOf(q.MemoryBytesLimit), bytesOf(q.DiskBytes), bytesOf(q.DiskBytesLimit),
			q.PendingRecords, q.PendingBatches, orNone(strings.Join(q.Subscriptions, ",")))
	}
}

func showQueue(c *call, name string) error {
	all := &spillwayv1.GetQueueResponse{}
	err := c.pages(func(ctx context.Context, token string) (string, error) {
		page, err := c.buffer().GetQueue(ctx, &spillwayv1.GetQueueRequest{Name: name, PageToken: token})
		if page.GetQueue() != nil && token == "" {
			all.Queue = shards.AddQueue(all.Queue, page.Queue)
		}
		all.Partitions = append(all.Partitions, page.GetPartitions()...)
		return page.GetNextPageToken(), err
	})
	if err != nil {
		return err
	}
	return c.show(all, func(w io.Writer) {
		row(w, "CLUSTER", "TOPIC", "PARTITION", "APPENDED", "SAFE", "RESUME")
		for _, p := range all.Partitions {
			row(w, p.Source.Cluster, topicOf(p.Source), p.Source.Partition, p.AppendedOffset, p.SafeOffset, p.ResumeOffset)
		}
	})
}

func newSessions() *cobra.Command {
	t := bufferTarget()
	cmd := &cobra.Command{
		Use:   "sessions [QUEUE/SUBSCRIPTION]",
		Short: "Lists the deliveries that are connected to a buffer",
		Long: "Asks a running buffer which instances of deliveries have a session, and what they hold. Dead sessions are\n" +
			"listed as long as they have left something, such as files in use, that no other session has taken over.",
		Example: "  spillway sessions\n  spillway sessions logs/hdfs",
		Args:    atMostOneName("queue/subscription"),
		RunE: t.run(func(c *call, args []string) error {
			all := &spillwayv1.ListSessionsResponse{}
			err := c.pages(func(ctx context.Context, token string) (string, error) {
				page, err := c.buffer().ListSessions(ctx, &spillwayv1.ListSessionsRequest{Subscription: strings.Join(args, ""), PageToken: token})
				all.Sessions = append(all.Sessions, page.GetSessions()...)
				return page.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			return c.show(all, func(w io.Writer) {
				row(w, "SUBSCRIPTION", "CONSUMER", "LIVE", "OPEN FOR", "BATCHES", "CREDIT", "STATE", "SESSION")
				for _, s := range all.Sessions {
					open := "-"
					if s.OpenedAt != nil {
						open = since(s.OpenedAt.AsTime())
					}
					row(w, s.Subscription, orNone(s.Consumer), yesNo(s.Live), open, s.LeasedBatches, bytesOf(s.CreditBytes), s.StateEntries, s.Id)
				}
			})
		}),
	}
	t.register(cmd)
	cmd.ValidArgsFunction = t.complete(subscriptionNames)
	return cmd
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// outcomes are those that ListUndelivered can tell apart, as users write them.
var outcomes = map[string]spillwayv1.Outcome{
	"dead-lettered": spillwayv1.Outcome_OUTCOME_DEAD_LETTERED,
	"dropped":       spillwayv1.Outcome_OUTCOME_DROPPED,
	"lost":          spillwayv1.Outcome_OUTCOME_LOST,
}

func newDeadLetters() *cobra.Command {
	t := bufferTarget()
	var outcome string
	var limit int
	cmd := &cobra.Command{
		Use:   "dead-letters QUEUE/SUBSCRIPTION",
		Short: "Lists what a subscription settled without delivering it, and why; shows, redrives and forgets it",
		Long: "Asks a running buffer for the records that could never be delivered, with the reason, and for what a policy\n" +
			"dropped or Kafka no longer had. The buffer keeps the records of dead letters (KEPT), the newest 64 MiB of a subscription; others\n" +
			"can be read from Kafka as long as it has them.",
		Example: "  spillway dead-letters logs/hdfs\n  spillway dead-letters show logs/hdfs orders/0/1207\n  spillway dead-letters redrive logs/hdfs orders/0/1207\n  spillway dead-letters logs/kafka --outcome dropped -o json",
		Args:    oneName("queue/subscription"),
		RunE: t.run(func(c *call, args []string) error {
			wanted, ok := outcomes[outcome]
			if outcome != "" && !ok {
				return &usageError{fmt.Errorf("--outcome %q: want dead-lettered, dropped or lost", outcome)}
			}
			if limit < 1 {
				return &usageError{fmt.Errorf("--limit %d: want 1 or more", limit)}
			}
			all := &spillwayv1.ListUndeliveredResponse{}
			more := false
			err := c.pages(func(ctx context.Context, token string) (string, error) {
				page, err := c.buffer().ListUndelivered(ctx, &spillwayv1.ListUndeliveredRequest{Subscription: args[0], Outcome: wanted, PageToken: token})
				all.Ranges = append(all.Ranges, page.GetRanges()...)
				if len(all.Ranges) >= limit {
					more = more || page.GetNextPageToken() != "" || len(all.Ranges) > limit
					all.Ranges = all.Ranges[:limit]
					return "", err
				}
				return page.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			err = c.show(all, func(w io.Writer) {
				row(w, "TOPIC", "PARTITION", "FROM", "TO", "OFFSETS", "OUTCOME", "KEPT", "SETTLED", "REASON")
				for _, u := range all.Ranges {
					settled := "-"
					if u.SettledAt != nil {
						settled = u.SettledAt.AsTime().Local().Format(time.DateTime)
					}
					row(w, topicOf(u.Source), u.Source.Partition, u.Range.First, u.Range.Next, u.Range.Next-u.Range.First,
						outcomeName(u.Outcome), yesNo(u.Kept), settled, orNone(u.Reason))
				}
			})
			if err == nil && more && c.output != "json" {
				fmt.Fprintf(c.out, "and more: --limit %d is reached\n", limit)
			}
			return err
		}),
	}
	t.register(cmd)
	cmd.ValidArgsFunction = t.complete(subscriptionNames)
	cmd.AddCommand(showDeadLetter(t), redriveDeadLetters(t), forgetDeadLetters(t))
	cmd.Flags().StringVar(&outcome, "outcome", "", "only dead-lettered, dropped or lost")
	cmd.Flags().IntVar(&limit, "limit", 1000, "how many ranges to list")
	return cmd
}

func outcomeName(o spillwayv1.Outcome) string {
	for name, outcome := range outcomes {
		if outcome == o {
			return name
		}
	}
	return strings.ToLower(strings.TrimPrefix(o.String(), "OUTCOME_"))
}
