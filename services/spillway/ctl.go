package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/picture"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

// A command of an operator asks the admin API of one service, or of all buffers, prints a table or
// JSON, and ends. What all of these commands share is here.

// target is the service that a command talks to.
type target struct {
	service string // buffer, ingest or delivery
	flag    string // names the address
	short   string
	address string
	more    []string // addresses, when the file names several buffers
	config  string
	context string
	timeout time.Duration
	output  string
	client  clientFlags
	// of returns the addresses in a pipeline's file, several when they are the buffers'; in that
	// of a context.
	of func(*config.Config) ([]string, error)
	in func(config.Context) string
}

// register adds the flags to cmd and, persistently, to its subcommands.
func (t *target) register(cmd *cobra.Command) {
	f := cmd.PersistentFlags()
	f.StringVarP(&t.address, t.flag, t.short, t.address, "gRPC address of the "+t.service)
	f.StringVarP(&t.config, "config", "c", "", "take the address, and what to show to it, from this file of the pipeline")
	f.StringVar(&t.context, "context", "", "take them from this context; see spillway context --help")
	f.DurationVar(&t.timeout, "timeout", 10*time.Second, "how long to wait for each answer")
	f.StringVarP(&t.output, "output", "o", "table", "table or json")
	t.client.register(cmd)
	for flag, values := range map[string]cobra.CompletionFunc{
		"context": contextNames, "output": cobra.FixedCompletions([]cobra.Completion{"table", "json"}, cobra.ShellCompDirectiveNoFileComp),
	} {
		if err := cmd.RegisterFlagCompletionFunc(flag, values); err != nil {
			panic(err)
		}
	}
}

func bufferTarget() *target {
	return &target{service: "buffer", flag: "buffer", short: "b", address: "localhost:7400",
		of: func(c *config.Config) ([]string, error) { return c.Buffers, nil }, in: func(x config.Context) string { return x.Buffer }}
}

// call is one run of a command.
type call struct {
	*target
	ctx  context.Context
	out  io.Writer
	err  io.Writer
	all  []*grpc.ClientConn
	conn *grpc.ClientConn // the one of all that is asked now
}

// run makes a cobra function of f. Errors of calls say which service, where, and what to do.
func (t *target) run(f func(c *call, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := checkOutput(t.output); err != nil {
			return err
		}
		if err := checkTimeout(t.timeout); err != nil {
			return err
		}
		shown, from, err := t.find(cmd)
		if err != nil {
			return err
		}
		if !config.IsAddress(t.address) {
			return &usageError{fmt.Errorf("%s %q: want host:port, as in localhost:7400", from, t.address)}
		}
		client, err := t.client.client(shown)
		if err != nil {
			return err
		}
		c := &call{target: t, ctx: cmd.Context(), out: cmd.OutOrStdout(), err: cmd.ErrOrStderr()}
		for _, address := range append([]string{t.address}, t.more...) {
			conn, err := client.Dial(address)
			if err != nil {
				return err
			}
			defer conn.Close() // nothing is under way any more
			c.all = append(c.all, conn)
		}
		c.conn = c.all[0]
		return rpc.Explain(f(c, args), t.service, t.address)
	}
}

// each calls f for one buffer after the other, with c.conn to it, and leaves out those that do not
// have the queue, or whose error has one of the reasons elsewhere: what is asked for is another's.
// When it is nobody's, the first of the reasons counts. It goes on after a failure, and says which
// failed.
func (c *call) each(f func() error, elsewhere ...string) error {
	if len(c.all) == 1 {
		return f()
	}
	var failed, strange []error
	told := len(elsewhere) // which reason strange[0] has
	for _, conn := range c.all {
		c.conn, c.address = conn, rpc.Address(conn)
		err := f()
		reason := rpc.Reason(err)
		at := slices.Index(elsewhere, reason)
		switch {
		case at >= 0 && at < told:
			strange, told = slices.Insert(strange, 0, err), at
		case at >= 0, reason == "NOT_OWNER":
			strange = append(strange, err)
		case err != nil:
			failed = append(failed, fmt.Errorf("the buffer at %s: %w", c.address, rpc.Explain(err, c.service, c.address)))
		}
	}
	if len(strange) == len(c.all) {
		return strange[0]
	}
	return errors.Join(failed...)
}

// find sets the address where no flag did. It returns what to show to the service, and where the
// address is from: a flag, the file of a pipeline, a context, or the default. Credentials of a
// context go to no other address, unless the command line names the context.
func (t *target) find(cmd *cobra.Command) (shown config.Security, from string, err error) {
	flag := "--" + t.flag
	given := cmd.Flags().Changed(t.flag)
	switch {
	case t.config != "" && given:
		return shown, "", &usageError{fmt.Errorf("%s and --config both say where the %s is; want one", flag, t.service)}
	case t.config != "" && t.context != "":
		return shown, "", &usageError{fmt.Errorf("--context and --config both say where the %s is; want one", t.service)}
	case t.config != "":
		cfg, err := loadConfig(t.config)
		if err != nil {
			return shown, "", err
		}
		addresses, err := t.of(cfg)
		if err != nil {
			return shown, "", &usageError{err}
		}
		t.address, t.more = addresses[0], addresses[1:]
		return cfg.Security, t.config, nil
	case given && t.context == "":
		return shown, flag, nil
	}
	name, x, err := findContext(t.context)
	if err != nil || name == "" {
		return shown, flag, err
	}
	shown.Client = x.Client
	if given {
		return shown, flag, nil
	}
	if t.address = t.in(x); t.address == "" {
		return shown, "", &usageError{fmt.Errorf("the context %s does not say where the %s is; want %s, or spillway context set %[1]s %[3]s HOST:PORT", name, t.service, flag)}
	}
	return shown, "context " + name, nil
}

// ask calls f with the time that one answer may take.
func (c *call) ask(f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(c.ctx, c.timeout)
	defer cancel()
	return f(ctx)
}

// askEach is ask for each buffer.
func (c *call) askEach(f func(context.Context) error, elsewhere ...string) error {
	return c.each(func() error { return c.ask(f) }, elsewhere...)
}

// pages calls f for page after page, with its token, until there is no next one; of all buffers.
func (c *call) pages(f func(ctx context.Context, token string) (next string, err error)) error {
	return c.each(func() error { return c.pagesOfOne(f) })
}

func (c *call) pagesOfOne(f func(ctx context.Context, token string) (next string, err error)) error {
	for token := ""; ; {
		var next string
		err := c.ask(func(ctx context.Context) (err error) {
			next, err = f(ctx, token)
			return err
		})
		if err != nil || next == "" {
			return err
		}
		if next == token {
			return fmt.Errorf("the %s at %s answers with the same page again", c.service, c.address)
		}
		token = next
	}
}

// show prints m as JSON, or what table writes into aligned columns.
func (c *call) show(m proto.Message, table func(w io.Writer)) error {
	if c.output == "json" {
		b, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m)
		if err != nil {
			return err
		}
		return c.json(json.RawMessage(b))
	}
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	table(w)
	return w.Flush()
}

func (c *call) json(v any) error { return printJSON(c.out, v) }

func printJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// row writes one line of a table.
func row(w io.Writer, cells ...any) {
	for i, cell := range cells {
		if i > 0 {
			fmt.Fprint(w, "\t")
		}
		fmt.Fprint(w, cell)
	}
	fmt.Fprintln(w)
}

// orNone shows that there is nothing.
func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// since is a time as a distance from now.
func since(at time.Time) string { return short(time.Since(at)) }

// short is a duration for a table: two digits or three say enough.
func short(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(time.Second / 10).String()
	case d < 48*time.Hour:
		return d.Round(time.Second).String()
	default:
		return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	}
}

// bytesOf is a number of bytes for a table.
func bytesOf(n int64) string { return picture.Bytes(n) }

// confirmed returns nil when the operator means it: the name was given with --confirm, or is
// typed now, on a terminal.
func confirmed(cmd *cobra.Command, given, name, what string) error {
	switch {
	case given == name:
		return nil
	case given != "":
		return &usageError{fmt.Errorf("--confirm %s is not the name of what is to be changed, %s", given, name)}
	}
	if in, ok := cmd.InOrStdin().(*os.File); !ok || !isTerminal(in) {
		return &usageError{fmt.Errorf("%s; to go ahead without being asked: --confirm %s", what, name)}
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s.\nType the name to go ahead: ", what)
	line, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	if strings.TrimSpace(line) != name {
		return errors.Join(errors.New("nothing was changed: the name was not typed"), ignoreEOF(err))
	}
	return nil
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// oneName is for commands that take the name of one thing.
func oneName(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return &usageError{fmt.Errorf("%s wants one argument: %s; see %[1]s --help", cmd.CommandPath(), what)}
		}
		return nil
	}
}

// atMostOneName is for commands that take all when no name is given.
func atMostOneName(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return &usageError{fmt.Errorf("%s wants at most one argument: %s; see %[1]s --help", cmd.CommandPath(), what)}
		}
		return nil
	}
}
