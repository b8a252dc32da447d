package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// errHoles ends an audit that found some. What there is to say is printed already.
var errHoles = errors.New("the audit found offsets that are accounted for nowhere")

func newAudit() *cobra.Command {
	var address, path, output string
	var timeout time.Duration
	var ranges bool
	cmd := &cobra.Command{
		Use:   "audit [QUEUE[/SUBSCRIPTION]]",
		Short: "Accounts for every offset of every subscription: delivered, otherwise settled, pending, or a hole",
		Long: `Asks a running buffer to account for all offsets of its subscriptions, from where each began to the last one
appended. Every offset is delivered, dead-lettered, dropped, filtered or lost upstream, or it is pending: in
memory, on disk, leased to a delivery, or deferred, which is to be refetched from Kafka. An offset that is none of
these is a hole, which must not be: it is a bug, or a damaged ledger. The exit status is 1 when there is one.`,
		Example: "  spillway audit\n  spillway audit logs/hdfs --ranges\n  spillway audit -c pipeline.yaml --output json",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return &usageError{errors.New("want at most one argument: a queue, or queue/subscription")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			if path != "" && cmd.Flags().Changed("buffer") {
				return &usageError{errors.New("--buffer and --config both say where the buffer is; want one")}
			}
			if path != "" {
				cfg, err := loadConfig(path)
				if err != nil {
					return err
				}
				address = cfg.Buffers[0]
			}
			request := &spillwayv1.AuditRequest{Name: strings.Join(args, "")}
			audit, err := askAudit(cmd.Context(), address, timeout, request)
			if err != nil {
				return err
			}
			if output == "json" {
				b, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(audit)
				if err == nil {
					_, err = fmt.Fprintln(cmd.OutOrStdout(), string(b))
				}
				return errors.Join(err, auditVerdict(audit))
			}
			return errors.Join(printAudit(cmd.OutOrStdout(), audit, ranges), auditVerdict(audit))
		},
	}
	cmd.Flags().StringVarP(&address, "buffer", "b", "localhost:7400", "gRPC address of the buffer")
	cmd.Flags().StringVarP(&path, "config", "c", "", "take the buffer's address from this file of the pipeline")
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Second, "how long to wait for the answer")
	cmd.Flags().BoolVar(&ranges, "ranges", false, "also print what lies above the settled offset, range by range")
	registerOutput(cmd, &output)
	return cmd
}

func askAudit(ctx context.Context, address string, timeout time.Duration, request *spillwayv1.AuditRequest) (*spillwayv1.AuditResponse, error) {
	conn, err := rpc.Dial(address)
	if err != nil {
		return nil, err
	}
	defer conn.Close() // nothing is under way any more
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	audit, err := spillwayv1.NewBufferAdminServiceClient(conn).Audit(ctx, request)
	if err != nil {
		return nil, fmt.Errorf("ask the buffer at %s: %w", address, err)
	}
	return audit, nil
}

func auditVerdict(audit *spillwayv1.AuditResponse) error {
	for _, p := range audit.Partitions {
		if p.HoleOffsets > 0 {
			return errHoles
		}
	}
	return nil
}

func printAudit(out io.Writer, audit *spillwayv1.AuditResponse, ranges bool) error {
	outcomes := []string{"delivered", "filtered", "dead_lettered", "dropped", "lost"}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SUBSCRIPTION\tTOPIC\tPARTITION\tFROM\tTO\tSETTLED\tSAFE\tDELIVERED\tFILTERED\tDEAD\tDROPPED\tLOST\tPENDING\tHOLES")
	for _, p := range audit.Partitions {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\t%d", p.Subscription, topicOf(p.Source), p.Source.Partition, p.StartOffset, p.AppendedOffset, p.SettledOffset, p.SafeOffset)
		for _, o := range outcomes {
			fmt.Fprintf(w, "\t%d", p.Outcomes[o])
		}
		fmt.Fprintf(w, "\t%d\t%d\n", p.PendingOffsets, p.HoleOffsets)
	}
	if err := w.Flush(); err != nil || !ranges {
		return err
	}
	fmt.Fprintln(out)
	fmt.Fprintln(w, "SUBSCRIPTION\tTOPIC\tPARTITION\tFROM\tTO\tOFFSETS\tSTATE")
	for _, p := range audit.Partitions {
		for _, r := range p.Ranges {
			fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d\t%s\n", p.Subscription, topicOf(p.Source), p.Source.Partition, r.Range.First, r.Range.Next, r.Range.Next-r.Range.First, r.State)
		}
	}
	return w.Flush()
}

// topicOf names later lives of a topic that was created again.
func topicOf(s *spillwayv1.SourcePartition) string {
	if s.Incarnation == 0 {
		return s.Topic
	}
	return fmt.Sprintf("%s (life %d)", s.Topic, s.Incarnation+1)
}
