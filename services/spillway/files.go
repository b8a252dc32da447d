package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/delivery/filesink"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/rpc"
	"github.com/spillwayio/spillway/services/internal/security"
)

func newFiles() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "files",
		Short:   "Finds and finishes files in use that no delivery finishes",
		Long:    "Finds and finishes files in use that no delivery finishes, as what was known of them is lost with a buffer's ledger.",
		Example: "  spillway files recover archive --path /logs -c pipeline.yaml",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newFilesRecover())
	return cmd
}

// recoverFlags are those of files recover.
type recoverFlags struct {
	config, output, confirm string
	paths                   []string
	timeout                 time.Duration
}

func newFilesRecover() *cobra.Command {
	var f recoverFlags
	cmd := &cobra.Command{
		Use:   "recover DELIVERY",
		Short: "Makes files in use final that have no entry in the ledger",
		Long: `Lists the files in use of a delivery to files, by path patterns and by the names that its configuration gives to such files,
and, with --confirm, makes those final that no delivery will: whose entries were lost with the ledger of a data_dir, or of
the journal in Kafka. The buffers of the delivery's queue must run, and are asked which files they know of: these are left
to the deliveries. So are files that somebody writes, or wrote a minute ago.

How much of a file was acknowledged nobody knows any more. So it keeps what it has, and what of it was not acknowledged is
delivered once more, to another file. A part of a line at its end is cut off, an empty file is removed, and a Parquet file
without its footer is left as it is. On HDFS the NameNode takes the lease away first (recoverLease).

--path is a pattern for paths below the delivery's url: * is any text, ? any character, [a-z] one of a set, none of them a
slash. What is below a directory that matches is meant, too.`,
		Example: "  spillway files recover archive --path /logs/2026-11-* -c pipeline.yaml\n  spillway files recover archive --path /logs --confirm archive -c pipeline.yaml",
		Args:    oneName("a delivery"),
		RunE:    func(cmd *cobra.Command, args []string) error { return f.run(cmd, args[0]) },
	}
	registerConfig(cmd, &f.config)
	registerOutput(cmd, &f.output)
	cmd.Flags().StringArrayVar(&f.paths, "path", nil, "pattern of paths; may be given several times")
	cmd.Flags().StringVar(&f.confirm, "confirm", "", "the name of the delivery: finish the files that are listed")
	cmd.Flags().DurationVar(&f.timeout, "timeout", 5*time.Minute, "how long HDFS may take to finish files")
	return cmd
}

// recoveredFile is a line of the answer.
type recoveredFile struct {
	filesink.Leftover
	Result string `json:"result"`
}

const (
	wouldFinish = "would be made final"
	hasEntry    = "left: it has an entry, and its delivery finishes it"
)

func (f *recoverFlags) run(cmd *cobra.Command, name string) error {
	if err := errors.Join(checkOutput(f.output), checkTimeout(f.timeout)); err != nil {
		return err
	}
	cfg, err := loadConfig(f.config)
	if err != nil {
		return err
	}
	d := cfg.Delivery[name]
	switch {
	case d == nil || d.HDFS == nil:
		var to []string
		for name, d := range cfg.Delivery {
			if d.HDFS != nil {
				to = append(to, name)
			}
		}
		slices.Sort(to)
		return &usageError{fmt.Errorf("no delivery %q to files; there is %s", name, orNone(strings.Join(to, ", ")))}
	case len(f.paths) == 0:
		return &usageError{errors.New("want --path PATTERN, as in --path /logs")}
	case f.confirm != "" && f.confirm != name:
		return &usageError{fmt.Errorf("--confirm %s is not the name of the delivery, %s", f.confirm, name)}
	}
	fs, err := newFS(d.HDFS, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer fs.Close() // nothing is open
	left, err := filesink.NewLeftovers(d.HDFS, fs)
	if err != nil {
		return err
	}
	found, err := left.Find(cmd.Context(), f.paths)
	if err != nil {
		return &usageError{err}
	}
	// After the files: an entry is there before its file, and goes after it.
	known, err := entriesOf(cmd.Context(), cfg, d.Subscription)
	if err != nil {
		return err
	}
	all := make([]*recoveredFile, len(found))
	for i, one := range found {
		all[i] = &recoveredFile{one, wouldFinish}
		if slices.ContainsFunc(one.Keys, func(key string) bool { return known[key] }) {
			all[i].Result = hasEntry
		}
	}
	slices.SortFunc(all, func(a, b *recoveredFile) int { return strings.Compare(a.Path, b.Path) })
	failed := 0
	if f.confirm != "" {
		failed = f.finish(cmd.Context(), left, all)
	}
	if err := f.show(cmd, all); err != nil {
		return err
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d files are not finished", failed, len(all))
	}
	return nil
}

// finish finishes the files that no delivery does, and returns how many it could not.
func (f *recoverFlags) finish(ctx context.Context, left *filesink.Leftovers, all []*recoveredFile) (failed int) {
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	for waiting := true; waiting; {
		waiting, failed = false, 0
		for _, one := range all {
			if one.Result != wouldFinish && !strings.HasPrefix(one.Result, "not yet") {
				if strings.HasPrefix(one.Result, "FAILED") {
					failed++
				}
				continue
			}
			result, err := left.Finish(ctx, &one.Leftover)
			switch {
			case err == nil:
				one.Result = result
			case errors.Is(err, filesink.ErrWait):
				one.Result = "not yet: " + err.Error()
				waiting = true
				failed++
			case errors.Is(err, filesink.ErrLive):
				one.Result = "left: " + err.Error()
			default:
				one.Result = "FAILED: " + err.Error()
				failed++
			}
		}
		if waiting {
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return failed
			}
		}
	}
	return failed
}

func (f *recoverFlags) show(cmd *cobra.Command, all []*recoveredFile) error {
	if f.output == "json" {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"files": all, "confirmed": f.confirm != ""})
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	row(w, "FILE", "BYTES", "WRITTEN", "RESULT")
	for _, one := range all {
		row(w, one.Path, bytesOf(one.Bytes), since(one.Modified)+" ago", one.Result)
	}
	return w.Flush()
}

// entriesOf returns the keys of all entries of sink state of a subscription. It fails when a shard
// of the queue is open at no buffer, as nobody knows then what it has.
func entriesOf(ctx context.Context, cfg *config.Config, subscription string) (keys map[string]bool, err error) {
	client, err := security.NewClient(&cfg.Security, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	queue, _, _ := strings.Cut(subscription, "/")
	keys, shards, of := make(map[string]bool), make(map[int32]bool), int32(1)
	var failed []error
	for _, address := range cfg.Buffers {
		err := func() error {
			conn, err := client.Dial(address)
			if err != nil {
				return err
			}
			defer conn.Close() // nothing is under way
			return entriesAt(ctx, conn, queue, subscription, func(s *spillwayv1.Shard) { shards[s.Number], of = true, s.Of }, keys)
		}()
		if err != nil {
			failed = append(failed, rpc.Explain(err, "buffer", address))
		}
	}
	for shard := range of {
		if !shards[shard] {
			return nil, errors.Join(fmt.Errorf("no buffer has shard %d of queue %s open, and only the buffers know which files deliveries will finish: start them first", shard, queue),
				errors.Join(failed...))
		}
	}
	return keys, nil
}

// entriesAt adds what one buffer has.
func entriesAt(ctx context.Context, conn *grpc.ClientConn, queue, subscription string, has func(*spillwayv1.Shard), keys map[string]bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	open, err := openAt(ctx, conn, queue)
	if err != nil || len(open) == 0 {
		return err
	}
	here := make(map[string]bool)
	for token := ""; ; {
		page, err := spillwayv1.NewBufferAdminServiceClient(conn).ListSinkState(ctx, &spillwayv1.ListSinkStateRequest{Subscription: subscription, PageSize: 1000, PageToken: token})
		if err != nil {
			return err
		}
		for _, e := range page.Entries {
			here[e.Key] = true
		}
		if token = page.NextPageToken; token == "" {
			break
		}
	}
	maps.Copy(keys, here)
	still, err := openAt(ctx, conn, queue) // one that was closed meanwhile may have told nothing
	for number, s := range open {
		if now := still[number]; now != nil && now.Life == s.Life && now.Epoch == s.Epoch {
			has(s)
		}
	}
	return err
}

// openAt are the shards of a queue that a buffer has open.
func openAt(ctx context.Context, conn *grpc.ClientConn, queue string) (map[int32]*spillwayv1.Shard, error) {
	open := make(map[int32]*spillwayv1.Shard)
	for token := ""; ; {
		list, err := spillwayv1.NewClusterServiceClient(conn).ListShards(ctx, &spillwayv1.ListShardsRequest{Queue: queue, PageToken: token})
		if err != nil {
			return nil, err
		}
		for _, s := range list.Shards {
			if s.Life != "" {
				open[s.Number] = s
			}
		}
		if token = list.NextPageToken; token == "" {
			return open, nil
		}
	}
}
