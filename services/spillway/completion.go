package main

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/spf13/cobra"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
)

// completionTimeout bounds how long a shell waits for names.
const completionTimeout = 2 * time.Second

var shells = []string{"bash", "zsh", "fish"}

func newCompletion() *cobra.Command {
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "Prints what completes commands, flags and names in a shell: bash, zsh or fish",
		Long: "Prints a script for a shell. It completes commands and flags, and asks the buffer, which flags or the context name, for\n" +
			"the names of queues and subscriptions. bash needs the package bash-completion.",
		Example: "  source <(spillway completion bash)                                        # in ~/.bashrc\n" +
			"  spillway completion zsh > \"${fpath[1]}/_spillway\"                         # once\n" +
			"  spillway completion fish > ~/.config/fish/completions/spillway.fish       # once",
		ValidArgs: shells,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || !slices.Contains(shells, args[0]) {
				return &usageError{errors.New("want one argument, the shell: bash, zsh or fish")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			root, out := cmd.Root(), cmd.OutOrStdout()
			write := map[string]func() error{
				"bash": func() error { return root.GenBashCompletionV2(out, true) },
				"zsh":  func() error { return root.GenZshCompletion(out) },
				"fish": func() error { return root.GenFishCompletion(out, true) },
			}
			return write[args[0]]()
		},
	}
}

// complete makes a completion of the one argument of a command that t is the target of. A service
// that does not answer has no names.
func (t *target) complete(names func(*call) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) (found []cobra.Completion, _ cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		t.timeout, t.output = completionTimeout, "table"
		err := t.run(func(c *call, _ []string) (err error) {
			found, err = names(c)
			return err
		})(cmd, nil)
		if err != nil {
			cobra.CompDebugln(err.Error(), false)
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

func queueNames(c *call) (names []string, err error) {
	queues, err := c.queues()
	for _, q := range queues {
		names = append(names, q.Name)
	}
	return distinct(names), err
}

func subscriptionNames(c *call) (names []string, err error) {
	queues, err := c.queues()
	for _, q := range queues {
		for _, s := range q.Subscriptions {
			names = append(names, q.Name+"/"+s)
		}
	}
	return distinct(names), err
}

// distinct sorts names, of which several buffers may have told the same.
func distinct(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}

// bothNames are those of queues, and of subscriptions.
func bothNames(c *call) ([]string, error) {
	queues, err := queueNames(c)
	if err != nil {
		return nil, err
	}
	subscriptions, err := subscriptionNames(c)
	return append(queues, subscriptions...), err
}

// queues lists the queues of the buffers that c talks to.
func (c *call) queues() ([]*spillwayv1.Queue, error) {
	var all []*spillwayv1.Queue
	err := c.pages(func(ctx context.Context, token string) (string, error) {
		page, err := c.buffer().ListQueues(ctx, &spillwayv1.ListQueuesRequest{PageToken: token})
		all = append(all, page.GetQueues()...)
		return page.GetNextPageToken(), err
	})
	return all, err
}
