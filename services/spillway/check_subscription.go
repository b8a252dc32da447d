package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/rpc"
	"github.com/spillwayio/spillway/services/internal/shards"
)

// The exit statuses of monitoring plugins, as Nagios and its heirs read them (Monitoring Plugins
// Development Guidelines, "Plugin Return Codes").
const (
	pluginOK = iota
	pluginWarning
	pluginCritical
	pluginUnknown
)

var pluginWords = [...]string{"OK", "WARNING", "CRITICAL", "UNKNOWN"}

func newCheckSubscription() *cobra.Command {
	t := bufferTarget()
	var warning, critical time.Duration
	cmd := &cobra.Command{
		Use:   "subscription QUEUE/SUBSCRIPTION",
		Short: "Says whether a subscription is too far behind, for Nagios and cron",
		Long: "Asks a running buffer how old the oldest record is that a subscription still needs. It prints one line with performance\n" +
			"data, and its exit status is that of a monitoring plugin: 0 OK, 1 warning, 2 critical, 3 unknown, such as when the buffer\ndoes not answer.",
		Example: "  spillway check subscription logs/hdfs --age-warning 2m --age-critical 10m -b buffer:7400",
		Args:    oneName("queue/subscription"),
	}
	run := t.run(func(c *call, args []string) error {
		var sum *spillwayv1.Subscription
		err := c.askEach(func(ctx context.Context) error {
			r, err := c.buffer().GetSubscription(ctx, &spillwayv1.GetSubscriptionRequest{Name: args[0], PageSize: 1})
			if err == nil {
				sum = shards.AddSubscription(sum, r.Subscription)
			}
			return err
		})
		status, line := pluginUnknown, ""
		if err != nil {
			line = strings.ReplaceAll(rpc.Explain(err, t.service, t.address).Error(), "\n", "; ")
		} else {
			status, line = judge(sum, warning, critical)
		}
		if _, err := fmt.Fprintf(c.out, "%s: %s\n", pluginWords[status], line); err != nil {
			return err
		}
		if status == pluginOK {
			return nil
		}
		return &statusError{status}
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if warning < 0 || critical <= 0 {
			return &usageError{fmt.Errorf("--age-critical %s, --age-warning %s: want durations above 0", critical, warning)}
		}
		return run(cmd, args)
	}
	t.register(cmd)
	cmd.ValidArgsFunction = t.complete(subscriptionNames)
	cmd.Flags().DurationVar(&warning, "age-warning", 0, "age of the oldest pending record from which on it is a warning; 0: never")
	cmd.Flags().DurationVar(&critical, "age-critical", 10*time.Minute, "age from which on it is critical")
	return cmd
}

// judge says how a subscription does. A paused one is judged like any other: somebody waits for
// its records.
func judge(s *spillwayv1.Subscription, warning, critical time.Duration) (status int, line string) {
	age := s.OldestPendingAge.AsDuration()
	switch {
	case age >= critical:
		status = pluginCritical
	case warning > 0 && age >= warning:
		status = pluginWarning
	}
	if s.PendingRecords == 0 && s.DeferredOffsets == 0 {
		line = fmt.Sprintf("%s is caught up", s.Name)
	} else {
		line = fmt.Sprintf("%s is %s behind, %s, %d records pending", s.Name, short(age), stateOf(s), s.PendingRecords+s.DeferredOffsets)
	}
	warn := ""
	if warning > 0 {
		warn = fmt.Sprintf("%.0f", warning.Seconds())
	}
	return status, fmt.Sprintf("%s | age=%.0fs;%s;%.0f;0 pending=%d;;;0", line, age.Seconds(), warn, critical.Seconds(), s.PendingRecords+s.DeferredOffsets)
}
