package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/spillwayio/spillway/services/internal/config"
)

var errOneName = errors.New("want one argument: the name of a delivery in the file; see spillway delivery --help")

// part is a line of what check prints.
type part struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	From string `json:"from"`
	To   string `json:"to"`
}

func newCheck() *cobra.Command {
	var path, output string
	var f connectFlags
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Reads the pipeline's file and says what is wrong with it; tries what it connects to",
		Long: `Reads the pipeline's file as the services do, with the SPILLWAY_ variables of the environment, and prints its parts.
The exit status is 2 when something is wrong with it. Warnings are about options without effect, and settings
that do not go together well.

With --connect it then tries from this machine what the services will do, and says what to do where that fails: brokers
and logins, topics and rights on them, the group, the leaders' addresses; the NameNode, and a file in a directory of its own
where records will go, which it removes; ports, data_dir and disk space; topics that a source would read again; and where
sample records go. Nothing is read from topics or produced, and no group is joined. The exit status is 1 when
something failed. Run it where the service is to run: --part buffer, ingest or delivery.NAME.`,
		Example: "  spillway check -c pipeline.yaml\n  spillway check --connect -c pipeline.yaml\n  spillway check --connect --part delivery.hdfs --samples records.json -c pipeline.yaml",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			if err := f.check(cmd); err != nil {
				return err
			}
			cfg, err := loadConfig(path)
			if err != nil {
				return err
			}
			parts := partsOf(cfg)
			if len(parts) == 0 {
				return &usageError{fmt.Errorf("%s: describes no source, no queue and no delivery", path)}
			}
			if len(cfg.Buffer.Queues) > 0 {
				if err := cfg.ForBuffer(); err != nil {
					return &usageError{err}
				}
			}
			warnings := []string{} // [] in JSON
			for _, w := range cfg.Warnings() {
				warnings = append(warnings, w.String())
			}
			answer := map[string]any{"file": path, "parts": parts, "warnings": warnings}
			if f.connect && output == "json" {
				return f.run(cmd, cfg, func(found []finding) error {
					answer["probes"] = found
					return json.NewEncoder(cmd.OutOrStdout()).Encode(answer)
				})
			}
			if output == "json" {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(answer)
			}
			for _, w := range warnings {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
			}
			if f.connect {
				return f.run(cmd, cfg, func(found []finding) error { return writeFindings(cmd.OutOrStdout(), found) })
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "KIND\tNAME\tFROM\tTO")
			for _, p := range parts {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", p.Kind, p.Name, p.From, p.To)
			}
			return w.Flush()
		},
	}
	registerConfig(cmd, &path)
	registerOutput(cmd, &output)
	f.register(cmd)
	cmd.AddCommand(newCheckSubscription())
	return cmd
}

// partsOf lists the pipeline in the order records flow.
func partsOf(cfg *config.Config) []part {
	var parts []part
	for _, name := range slices.Sorted(maps.Keys(cfg.Ingest.Sources)) {
		s := cfg.Ingest.Sources[name]
		parts = append(parts, part{"source", name, fmt.Sprintf("%s of %s", strings.Join(s.Topics, ","), strings.Join(s.Brokers, ",")), s.Queue})
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Buffer.Queues)) {
		q := cfg.Buffer.Queues[name]
		for _, sub := range slices.Sorted(maps.Keys(q.Subscriptions)) {
			parts = append(parts, part{"subscription", name + "/" + sub, strings.Join(q.Subscriptions[sub].Topics, ","), ""})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Delivery)) {
		d := cfg.Delivery[name]
		to := ""
		if d.Kafka != nil {
			to = fmt.Sprintf("%s of %s", d.Kafka.Topic, strings.Join(d.Kafka.Brokers, ","))
		} else {
			to = strings.TrimSuffix(d.HDFS.URL, "/") + d.HDFS.Path
		}
		parts = append(parts, part{"delivery", name, d.Subscription, to})
	}
	return parts
}

// explainHTTP says what to do about a request without an answer.
func explainHTTP(err error, timeout time.Duration) error {
	var timedOut net.Error
	var dial *net.OpError
	switch inner := new(url.Error); {
	case errors.As(err, &timedOut) && timedOut.Timeout():
		return fmt.Errorf("no answer within %s; the process may be stopped or overloaded, or something else has the port", timeout)
	case errors.Is(err, syscall.ECONNREFUSED):
		return errors.New("nothing listens there (connection refused); is the service running, and is this its http port, as buffer.http?")
	case !errors.As(err, &inner):
		return err
	case errors.As(err, &dial) && dial.Op == "dial" || inner.Err == nil || strings.Contains(err.Error(), "tls: ") || strings.Contains(err.Error(), "HTTPS"):
		return inner.Err
	}
	return errors.New("what listens there does not speak HTTP; the port for this is http, as buffer.http, and not listen, which is for gRPC")
}

// newHealth is what health checks of containers run: the image has nothing else in it.
func newHealth() *cobra.Command {
	var timeout time.Duration
	var flags clientFlags
	cmd := &cobra.Command{
		Use:   "health URL",
		Short: "Asks a service whether it is ready: for health checks where there is no curl",
		Long: `Asks a service by HTTP, and prints the answer. The exit status is 0 when it is 200, else 1.
/readyz says whether the service is ready, and why not; /healthz whether its process runs. The ports are buffer.http (7401),
ingest.http (7411) and delivery.NAME.http (7421). With security.tls, want https:// and --ca.`,
		Example: "  spillway health http://localhost:7401/readyz",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &usageError{errors.New("want one argument: a URL, as in http://localhost:7401/readyz")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkTimeout(timeout); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, args[0], nil)
			if err != nil || request.URL.Scheme != "http" && request.URL.Scheme != "https" || request.URL.Host == "" {
				return &usageError{fmt.Errorf("%q: want a URL, as in http://localhost:7401/readyz", args[0])}
			}
			client, err := flags.client(config.Security{})
			if err != nil {
				return err
			}
			response, err := client.HTTPClient().Do(request)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], explainHTTP(err, timeout))
			}
			body, err := io.ReadAll(io.LimitReader(response.Body, 4096))
			if err := errors.Join(err, response.Body.Close()); err != nil {
				return fmt.Errorf("read the answer of %s: %w", args[0], err)
			}
			text := strings.TrimSpace(string(body))
			if response.StatusCode != http.StatusOK {
				return fmt.Errorf("%s: %s: %s", args[0], response.Status, text)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
			return err
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 3*time.Second, "how long to wait for the answer")
	flags.register(cmd)
	return cmd
}
