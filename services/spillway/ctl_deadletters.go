package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// placeOf reads TOPIC/PARTITION/OFFSET, or TOPIC/PARTITION/FROM-TO, which has both ends.
func placeOf(text string) (*spillwayv1.SourcePartition, *spillwayv1.OffsetRange, error) {
	bad := &usageError{fmt.Errorf("%q: want TOPIC/PARTITION/OFFSET, as in orders/0/1207, or TOPIC/PARTITION/FIRST-LAST", text)}
	parts := strings.Split(text, "/")
	if len(parts) != 3 || parts[0] == "" {
		return nil, nil, bad
	}
	first, last, isRange := strings.Cut(parts[2], "-")
	if !isRange {
		last = first
	}
	partition, err := strconv.ParseInt(parts[1], 10, 32)
	from, errFrom := strconv.ParseInt(first, 10, 64)
	to, errTo := strconv.ParseInt(last, 10, 64)
	if errors.Join(err, errFrom, errTo) != nil || partition < 0 || from < 0 || to < from {
		return nil, nil, bad
	}
	return &spillwayv1.SourcePartition{Topic: parts[0], Partition: int32(partition)}, &spillwayv1.OffsetRange{First: from, Next: to + 1}, nil
}

func showDeadLetter(t *target) *cobra.Command {
	return &cobra.Command{
		Use:   "show QUEUE/SUBSCRIPTION TOPIC/PARTITION/OFFSET",
		Short: "Shows a dead letter: key, value, headers, and why it was not delivered",
		Long: "Shows the record of a dead letter that the buffer keeps, and the records next to it that were given up with it. What is no text\n" +
			"is shown as Go writes it; --output json has it in base64.",
		Example: "  spillway dead-letters show logs/hdfs orders/0/1207",
		Args:    nameAndPlace,
		RunE: t.run(func(c *call, args []string) error {
			source, r, err := placeOf(args[1])
			if err != nil {
				return err
			}
			var got *spillwayv1.ReadUndeliveredResponse
			err = c.askEach(func(ctx context.Context) error {
				one, err := c.buffer().ReadUndelivered(ctx, &spillwayv1.ReadUndeliveredRequest{Subscription: args[0], Source: source, Offset: r.First})
				if err == nil {
					got = one
				}
				return err
			}, "NO_COPY", "MALFORMED") // the latter: it has never heard of the partition
			if got == nil {
				return err
			}
			return c.show(got, func(w io.Writer) { recordTable(w, got) }) // whatever the others say
		}),
	}
}

func nameAndPlace(cmd *cobra.Command, args []string) error {
	if len(args) != 2 {
		return &usageError{fmt.Errorf("%s wants two arguments: queue/subscription, and topic/partition/offset; see %[1]s --help", cmd.CommandPath())}
	}
	return nil
}

// recordTable prints records, one below the other.
func recordTable(w io.Writer, got *spillwayv1.ReadUndeliveredResponse) {
	if u := got.Undelivered; u != nil {
		row(w, "reason:", orNone(u.Reason))
		if u.SettledAt != nil {
			row(w, "given up:", u.SettledAt.AsTime().Local().Format(time.DateTime))
		}
	}
	for _, r := range got.Records {
		fmt.Fprintln(w)
		row(w, "record:", fmt.Sprintf("%s/%d/%d", topicOf(r.Source), r.Source.Partition, r.Offset))
		row(w, "time:", time.UnixMilli(r.Record.GetTimestampMs()).Local().Format(time.DateTime))
		row(w, "key:", shown(r.Record.GetKey()))
		for _, h := range r.Record.GetHeaders() {
			row(w, "header:", shown(h.Name)+" = "+shown(h.Value))
		}
		row(w, "value:", shown(r.Record.GetValue()))
		if r.CutBytes > 0 {
			row(w, "left out:", bytesOf(r.CutBytes))
		}
	}
}

// shown is a text as it is, unless it could do something to a terminal.
func shown(b []byte) string {
	switch {
	case b == nil:
		return "(null)"
	case utf8.Valid(b) && !strings.ContainsFunc(string(b), func(r rune) bool { return !strconv.IsPrint(r) }):
		return string(b)
	}
	return strconv.Quote(string(b))
}

// chosenFlags choose among undelivered ranges.
type chosenFlags struct {
	all                                   bool
	outcome, topic, reason, since, before string
}

func (f *chosenFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.BoolVar(&f.all, "all", false, "all of that outcome")
	flags.StringVar(&f.outcome, "outcome", "dead-lettered", "dead-lettered, dropped or lost")
	flags.StringVar(&f.topic, "topic", "", "only of topics that match this glob")
	flags.StringVar(&f.reason, "reason", "", "only with this text in the reason")
	flags.StringVar(&f.since, "since", "", "only given up since: a time, or how long ago, such as 90m")
	flags.StringVar(&f.before, "before", "", "only given up before: a time, or how long ago")
}

// filters returns what the flags and the arguments behind the subscription choose: what any of
// them chooses is meant. A topic is a glob that matches only itself.
func (f *chosenFlags) filters(args []string) ([]*spillwayv1.UndeliveredFilter, error) {
	outcome, ok := outcomes[f.outcome]
	if !ok {
		return nil, &usageError{fmt.Errorf("--outcome %q: want dead-lettered, dropped or lost", f.outcome)}
	}
	if !f.all && len(args) == 0 && f.topic+f.reason+f.since+f.before == "" {
		return nil, &usageError{errors.New("which ones? want TOPIC/PARTITION/OFFSET, --topic, --reason, --since, --before, or --all")}
	}
	if f.all && len(args) > 0 {
		return nil, &usageError{errors.New("--all and single records: want one of them")}
	}
	base := func() (*spillwayv1.UndeliveredFilter, error) {
		filter := &spillwayv1.UndeliveredFilter{Outcome: outcome, Topic: f.topic, Reason: f.reason}
		for _, x := range []struct {
			flag, text string
			into       **timestamppb.Timestamp
		}{{"since", f.since, &filter.SettledFrom}, {"before", f.before, &filter.SettledBefore}} {
			if x.text == "" {
				continue
			}
			at, ok := timeOf(x.text)
			if !ok {
				return nil, &usageError{fmt.Errorf("--%s %q: want a time such as 2026-11-30T12:00Z, or how long ago, such as 90m", x.flag, x.text)}
			}
			*x.into = timestamppb.New(at)
		}
		return filter, nil
	}
	if len(args) == 0 {
		filter, err := base()
		return []*spillwayv1.UndeliveredFilter{filter}, err
	}
	var filters []*spillwayv1.UndeliveredFilter
	for _, arg := range args {
		source, r, err := placeOf(arg)
		if err != nil {
			return nil, err
		}
		filter, err := base()
		if err != nil {
			return nil, err
		}
		if f.topic != "" {
			return nil, &usageError{errors.New("--topic and single records: want one of them")}
		}
		filter.Topic, filter.Partition, filter.Range = source.Topic, &source.Partition, r
		filters = append(filters, filter)
	}
	return filters, nil
}

func atLeastAName(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return &usageError{fmt.Errorf("%s wants an argument: queue/subscription; see %[1]s --help", cmd.CommandPath())}
	}
	return nil
}

func redriveDeadLetters(t *target) *cobra.Command {
	var f chosenFlags
	cmd := &cobra.Command{
		Use:   "redrive QUEUE/SUBSCRIPTION [TOPIC/PARTITION/OFFSET ...]",
		Short: "Delivers dead letters once more, or what was dropped",
		Long: "Delivers once more what was not delivered, some or all of it: dead letters from the copies that the buffer keeps, the others\n" +
			"from Kafka, which may have lost them. They leave the list, and come back to it when they are not delivered again. Mend what\n" +
			"was in the way before.",
		Example: "  spillway dead-letters redrive logs/hdfs orders/0/1207\n  spillway dead-letters redrive logs/hdfs --reason 'quota' --since 2h\n" +
			"  spillway dead-letters redrive logs/copy --outcome dropped --all",
		Args: atLeastAName,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		filters, err := f.filters(args[1:])
		if err != nil {
			return err
		}
		return t.run(func(c *call, _ []string) error {
			return c.eachFilter(args[0], filters, "delivered once more", func(ctx context.Context, a spillwayv1.BufferAdminServiceClient, filter *spillwayv1.UndeliveredFilter) (int64, error) {
				r, err := a.RedriveUndelivered(ctx, &spillwayv1.RedriveUndeliveredRequest{Subscription: args[0], Filter: filter})
				return r.GetOffsets(), err
			})
		})(cmd, args)
	}
	f.register(cmd)
	return cmd
}

func forgetDeadLetters(t *target) *cobra.Command {
	var f chosenFlags
	var confirm string
	cmd := &cobra.Command{
		Use:   "forget QUEUE/SUBSCRIPTION [TOPIC/PARTITION/OFFSET ...]",
		Short: "Takes dead letters off the list, and gives up their copies",
		Long: "Takes what was not delivered off the list, some or all of it, with the copies that the buffer keeps. The audit counts it as\n" +
			"before. It asks for the name, or takes it from --confirm.",
		Example: "  spillway dead-letters forget logs/hdfs orders/0/1207\n  spillway dead-letters forget logs/hdfs --all --before 2026-11-01 --confirm logs/hdfs",
		Args:    atLeastAName,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		filters, err := f.filters(args[1:])
		if err != nil {
			return err
		}
		if err := confirmed(cmd, confirm, args[0], fmt.Sprintf("dead letters of %s are to be forgotten", args[0])); err != nil {
			return err
		}
		return t.run(func(c *call, _ []string) error {
			return c.eachFilter(args[0], filters, "forgotten", func(ctx context.Context, a spillwayv1.BufferAdminServiceClient, filter *spillwayv1.UndeliveredFilter) (int64, error) {
				r, err := a.ForgetUndelivered(ctx, &spillwayv1.ForgetUndeliveredRequest{Subscription: args[0], Filter: filter})
				return r.GetOffsets(), err
			})
		})(cmd, args)
	}
	f.register(cmd)
	cmd.Flags().StringVar(&confirm, "confirm", "", "the subscription's name, to go ahead without being asked")
	return cmd
}

// eachFilter changes what each filter chooses, at each buffer, and prints how many offsets that
// were.
func (c *call) eachFilter(name string, filters []*spillwayv1.UndeliveredFilter, done string,
	change func(context.Context, spillwayv1.BufferAdminServiceClient, *spillwayv1.UndeliveredFilter) (int64, error)) error {
	offsets := int64(0)
	for _, filter := range filters {
		err := c.askEach(func(ctx context.Context) error {
			n, err := change(ctx, c.buffer(), filter)
			offsets += n
			return err
		}, "NOTHING_CHOSEN")
		if err != nil {
			if offsets > 0 {
				err = fmt.Errorf("%d offsets of %s are %s; then: %w", offsets, name, done, err)
			}
			return err
		}
	}
	if c.output == "json" {
		return c.json(map[string]any{"subscription": name, "offsets": offsets})
	}
	_, err := fmt.Fprintf(c.out, "%d offsets of %s are %s\n", offsets, name, done)
	return err
}
