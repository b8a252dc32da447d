package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	spillwayv1 "github.com/spillwayio/spillway/gen/spillway/v1"
	"github.com/spillwayio/spillway/services/internal/config"
	"github.com/spillwayio/spillway/services/internal/rpc"
)

func newReload() *cobra.Command {
	var file, contextName string
	var dry bool
	var timeout time.Duration
	var flags clientFlags
	cmd := &cobra.Command{
		Use:   "reload [HOST:PORT ...]",
		Short: "Has running services read their configuration file again, and says what needs a restart",
		Long: `Asks services, by their gRPC addresses, to read their configuration file again: those of a file (--config: this machine's, and
buffers), of a context, or those that are named. SIGHUP does the same to a process.

In force at once: security.tokens, identities, oidc and limits; certificates and the files of tokens; of a buffer's queues
disk.bytes and disk.records, and of their subscriptions topics, required, on_full and limit. What was set at run time
(spillway queues update, subscriptions update) counts no more where the file says otherwise than before. All other keys that
the process uses are named: they need a restart. A file that cannot be used changes nothing.`,
		Example: "  spillway reload -c pipeline.yaml --dry-run\n  spillway reload -c pipeline.yaml\n  spillway reload buffer.prod:7400 --token-file admin.token --ca ca.crt",
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkTimeout(timeout); err != nil {
			return err
		}
		addresses, shown, err := servicesOf(args, file, contextName)
		if err != nil {
			return err
		}
		client, err := flags.client(shown)
		if err != nil {
			return err
		}
		var failed []error
		for _, address := range addresses {
			conn, err := client.Dial(address)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			got, err := spillwayv1.NewProcessAdminServiceClient(conn).ReloadConfiguration(ctx, &spillwayv1.ReloadConfigurationRequest{ValidateOnly: dry})
			cancel()
			_ = conn.Close() // nothing is under way any more
			if err != nil {
				failed = append(failed, fmt.Errorf("%s: %w", address, rpc.Explain(err, "service", address)))
				continue
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", address, reloaded(got, dry))
		}
		return errors.Join(failed...)
	}
	f := cmd.Flags()
	f.StringVarP(&file, "config", "c", "", "file of the pipeline, for the addresses of its services")
	f.StringVar(&contextName, "context", "", "take the addresses from this context; see spillway context --help")
	f.BoolVar(&dry, "dry-run", false, "only say what would change")
	f.DurationVar(&timeout, "timeout", 40*time.Second, "how long to wait for each answer")
	flags.register(cmd)
	for _, err := range []error{cmd.MarkFlagFilename("config", "yaml", "yml"), cmd.RegisterFlagCompletionFunc("context", contextNames)} {
		if err != nil {
			panic(err)
		}
	}
	return cmd
}

// servicesOf returns the gRPC addresses that were named, or those of a file or a context, and what
// to show to them.
func servicesOf(named []string, file, contextName string) (addresses []string, shown config.Security, err error) {
	switch {
	case file != "" && contextName != "":
		return nil, shown, &usageError{errors.New("--context and --config both say where the services are; want one")}
	case file != "":
		cfg, err := loadConfig(file)
		if err != nil {
			return nil, shown, err
		}
		shown = cfg.Security
		addresses = slices.Clone(cfg.Buffers)
		if len(cfg.Ingest.Sources) > 0 {
			addresses = append(addresses, reachable(cfg.Ingest.Listen))
		}
		for _, name := range slices.Sorted(maps.Keys(cfg.Delivery)) {
			addresses = append(addresses, reachable(cfg.Delivery[name].Listen))
		}
	default:
		name, x, err := findContext(contextName)
		if err != nil {
			return nil, shown, err
		}
		if name != "" && (contextName != "" || len(named) == 0) {
			shown.Client = x.Client
			addresses = []string{x.Buffer, x.Ingest, x.Delivery}
		}
	}
	if len(named) > 0 {
		addresses = named
	}
	addresses = slices.DeleteFunc(addresses, func(a string) bool { return a == "" })
	if len(addresses) == 0 {
		return nil, shown, &usageError{errors.New("want the services: --config FILE, --context NAME, or their addresses")}
	}
	for _, address := range addresses {
		if !config.IsAddress(address) {
			return nil, shown, &usageError{fmt.Errorf("%q: want host:port", address)}
		}
	}
	return slices.Compact(addresses), shown, nil
}
