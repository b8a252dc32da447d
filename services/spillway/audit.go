package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// errHoles ends an audit that found some. What there is to say is printed already.
var errHoles = errors.New("the audit found offsets that are accounted for nowhere")

func newAudit() *cobra.Command {
	t := bufferTarget()
	var ranges bool
	cmd := &cobra.Command{
		Use:   "audit [QUEUE[/SUBSCRIPTION]]",
		Short: "Accounts for every offset of every subscription: delivered, otherwise settled, pending, or a hole",
		Long: `Asks a running buffer, or with --config all of them, to account for all offsets of its subscriptions, from where each
began to the last one appended. Every offset is delivered, dead-lettered, dropped, filtered or lost upstream, or it is pending:
in memory, on disk, leased to a delivery, or deferred, which is to be refetched from Kafka. An offset that is none of these is a
hole, which must not be: it is a bug, or a damaged ledger. The exit status is 1 when there is one.`,
		Example: "  spillway audit\n  spillway audit logs/hdfs --ranges\n  spillway audit -c pipeline.yaml --output json",
		Args:    atMostOneName("a queue, or queue/subscription"),
		RunE: t.run(func(c *call, args []string) error {
			all := &spillwayv1.AuditResponse{}
			err := c.pages(func(ctx context.Context, token string) (string, error) {
				page, err := c.buffer().Audit(ctx, &spillwayv1.AuditRequest{Name: strings.Join(args, ""), PageSize: 1000, PageToken: token})
				all.Partitions = append(all.Partitions, page.GetPartitions()...)
				return page.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			return errors.Join(c.show(all, func(w io.Writer) { auditTable(w, all, ranges) }), auditVerdict(all))
		}),
	}
	t.register(cmd)
	cmd.ValidArgsFunction = t.complete(bothNames)
	cmd.Flags().BoolVar(&ranges, "ranges", false, "also print what lies above the settled offset, range by range")
	return cmd
}

func auditVerdict(audit *spillwayv1.AuditResponse) error {
	for _, p := range audit.Partitions {
		if p.HoleOffsets > 0 {
			return errHoles
		}
	}
	return nil
}

func auditTable(w io.Writer, audit *spillwayv1.AuditResponse, ranges bool) {
	row(w, "SUBSCRIPTION", "TOPIC", "PARTITION", "FROM", "TO", "SETTLED", "SAFE", "DELIVERED", "FILTERED", "DEAD", "DROPPED", "LOST", "PENDING", "HOLES")
	for _, p := range audit.Partitions {
		row(w, p.Subscription, topicOf(p.Source), p.Source.Partition, p.StartOffset, p.AppendedOffset, p.SettledOffset, p.SafeOffset,
			p.Outcomes["delivered"], p.Outcomes["filtered"], p.Outcomes["dead_lettered"], p.Outcomes["dropped"], p.Outcomes["lost"],
			p.PendingOffsets, p.HoleOffsets)
	}
	if !ranges {
		return
	}
	fmt.Fprintln(w)
	row(w, "SUBSCRIPTION", "TOPIC", "PARTITION", "FROM", "TO", "OFFSETS", "STATE")
	for _, p := range audit.Partitions {
		for _, r := range p.Ranges {
			row(w, p.Subscription, topicOf(p.Source), p.Source.Partition, r.Range.First, r.Range.Next, r.Range.Next-r.Range.First, r.State)
		}
	}
}

// topicOf names later lives of a topic that was created again.
func topicOf(s *spillwayv1.SourcePartition) string {
	if s.Incarnation == 0 {
		return s.Topic
	}
	return fmt.Sprintf("%s (life %d)", s.Topic, s.Incarnation+1)
}
