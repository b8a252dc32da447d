package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/spillwayio/spillway/services/internal/config"
)

// contextVariable names the context of commands without --context.
const contextVariable = "SPILLWAY_CONTEXT"

// loadContexts reads the user's file; what is wrong with it is the user's to mend.
func loadContexts() (*config.Contexts, error) {
	file, err := config.ContextsFile()
	if err != nil {
		return nil, &usageError{fmt.Errorf("the file of contexts: %w", err)}
	}
	all, err := config.LoadContexts(file)
	if err != nil {
		return nil, &usageError{err}
	}
	return all, nil
}

// findContext returns a context of the user's file: the named one, or that of the environment, or
// the current one. Its name is empty when there is none of these.
func findContext(named string) (name string, x config.Context, err error) {
	name = cmp.Or(named, os.Getenv(contextVariable))
	if _, err := config.ContextsFile(); err != nil && name == "" {
		return "", x, nil // a process without a home has no context
	}
	all, err := loadContexts()
	if err != nil {
		return "", x, err
	}
	if name = cmp.Or(name, all.Current); name == "" {
		return "", x, nil
	}
	if x, err = all.Get(name); err != nil {
		return "", x, &usageError{err}
	}
	return name, x, nil
}

// contextNames completes names of contexts.
func contextNames(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	all, err := loadContexts()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return slices.Sorted(maps.Keys(all.Contexts)), cobra.ShellCompDirectiveNoFileComp
}

func newContext() *cobra.Command {
	var output string
	list := func(cmd *cobra.Command, _ []string) error {
		if err := checkOutput(output); err != nil {
			return err
		}
		all, err := loadContexts()
		if err != nil {
			return err
		}
		return listContexts(cmd.OutOrStdout(), all, output)
	}
	cmd := &cobra.Command{
		Use:   "context",
		Short: "Lists, makes and chooses contexts: where a pipeline's services are, and what to show to them",
		Long: `Keeps addresses and credentials under a name, so that commands need no flags: in spillway/contexts.yaml below
$XDG_CONFIG_HOME, or ~/.config, with mode 0600. It names the files of tokens and keys, and has none itself.

What a command talks to is said, the first that is there, by
  1. --buffer, --ingest, --delivery or --config on its command line; no context counts then
  2. --context NAME
  3. the variable SPILLWAY_CONTEXT
  4. the current context, which "spillway context use" chooses
  5. nothing: localhost
With --context, other flags replace single values of the context, addresses as well.`,
		Example: "  spillway context set prod --buffer buffer.prod:7400 --ca ca.crt --token-file ~/.spillway/prod.token\n" +
			"  spillway context use prod\n  spillway subscriptions",
		Args: noArgs,
		RunE: list,
	}
	cmd.PersistentFlags().StringVarP(&output, "output", "o", "table", "table or json; of the list")
	cmd.AddCommand(
		&cobra.Command{Use: "list", Short: "Lists the contexts", Args: noArgs, RunE: list},
		&cobra.Command{Use: "use NAME", Short: "Makes a context the current one", Args: oneName("a context"), ValidArgsFunction: contextNames,
			RunE: changeContexts(func(all *config.Contexts, name string) (string, error) {
				_, err := all.Get(name)
				all.Current = name
				return "commands talk to " + name + " now", err
			})},
		setContext(),
		&cobra.Command{Use: "delete NAME", Short: "Deletes a context; files that it names stay", Args: oneName("a context"), ValidArgsFunction: contextNames,
			RunE: changeContexts(func(all *config.Contexts, name string) (string, error) {
				_, err := all.Get(name)
				delete(all.Contexts, name)
				if all.Current == name {
					all.Current = ""
				}
				return name + " is deleted", err
			})})
	return cmd
}

// changeContexts makes a cobra function of a change, which says what was done.
func changeContexts(change func(all *config.Contexts, name string) (string, error)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		all, err := loadContexts()
		if err != nil {
			return err
		}
		done, err := change(all, args[0])
		if err != nil {
			return &usageError{err}
		}
		if err := all.Save(); err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), done)
		return err
	}
}

func setContext() *cobra.Command {
	var x config.Context
	cmd := &cobra.Command{
		Use:     "set NAME",
		Short:   "Makes a context, or changes what is given of one",
		Long:    "Makes a context, or changes what is given of one and leaves the rest. An empty value takes one away.",
		Example: "  spillway context set prod --buffer buffer.prod:7400 --ingest ingest.prod:7410 --ca ca.crt --cert me.crt --key me.key",
		Args:    oneName("a context"), ValidArgsFunction: contextNames,
	}
	values := map[string]func(*config.Context) *string{}
	add := func(flag, usage string, of func(*config.Context) *string) {
		cmd.Flags().StringVar(of(&x), flag, "", usage)
		values[flag] = of
	}
	add("buffer", "gRPC address of the buffer", func(c *config.Context) *string { return &c.Buffer })
	add("ingest", "gRPC address of an ingest", func(c *config.Context) *string { return &c.Ingest })
	add("delivery", "gRPC address of a delivery", func(c *config.Context) *string { return &c.Delivery })
	for _, f := range clientFlagList {
		add(f.name, f.usage, func(c *config.Context) *string { return f.of(&c.Client) })
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		changed := false
		for flag := range values {
			changed = changed || cmd.Flags().Changed(flag)
		}
		if !changed {
			return &usageError{errors.New("nothing to set: give --buffer, --ingest, --delivery, --ca, --token-file and so on; see spillway context set --help")}
		}
		return changeContexts(func(all *config.Contexts, name string) (string, error) {
			c := all.Contexts[name]
			for flag, of := range values {
				if cmd.Flags().Changed(flag) {
					*of(&c) = *of(&x)
				}
			}
			for _, f := range clientFlagList {
				if path := f.of(&c.Client); f.file && *path != "" {
					absolute, err := filepath.Abs(*path)
					if err != nil {
						return "", err
					}
					*path = absolute
				}
			}
			return name + " is set", all.Set(name, c)
		})(cmd, args)
	}
	return cmd
}

// contextLine is what is listed of a context.
type contextLine struct {
	Name        string   `json:"name"`
	Current     bool     `json:"current"`
	Buffer      string   `json:"buffer"`
	Ingest      string   `json:"ingest"`
	Delivery    string   `json:"delivery"`
	Credentials []string `json:"credentials"` // flags and their files
}

func listContexts(out io.Writer, all *config.Contexts, output string) error {
	lines := []contextLine{}
	for _, name := range slices.Sorted(maps.Keys(all.Contexts)) {
		x := all.Contexts[name]
		line := contextLine{Name: name, Current: name == all.Current, Buffer: x.Buffer, Ingest: x.Ingest, Delivery: x.Delivery, Credentials: []string{}}
		for _, f := range clientFlagList {
			if value := *f.of(&x.Client); value != "" {
				line.Credentials = append(line.Credentials, f.name+"="+value)
			}
		}
		lines = append(lines, line)
	}
	if output == "json" {
		return printJSON(out, map[string]any{"contexts": lines})
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row(w, "CURRENT", "CONTEXT", "BUFFER", "INGEST", "DELIVERY", "CREDENTIALS")
	for _, l := range lines {
		current := ""
		if l.Current {
			current = "*"
		}
		row(w, current, l.Name, orNone(l.Buffer), orNone(l.Ingest), orNone(l.Delivery), orNone(strings.Join(l.Credentials, " ")))
	}
	return w.Flush()
}
