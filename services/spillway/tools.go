package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
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
	cmd := &cobra.Command{
		Use:     "check",
		Short:   "Reads the pipeline's file and says what is wrong with it",
		Long:    "Reads the pipeline's file as the services do, with the SPILLWAY_ variables of the environment, and prints its parts.\nNothing is connected to. The exit status is 2 when something is wrong.",
		Example: "  spillway check -c pipeline.yaml",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
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
			if output == "json" {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"file": path, "parts": parts})
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

// newHealth is what health checks of containers run: the image has nothing else in it.
func newHealth() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "health URL",
		Short: "Asks a service whether it is ready: for health checks where there is no curl",
		Long: `Asks a service by HTTP, and prints the answer. The exit status is 0 when it is 200, else 1.
/readyz says whether the service is ready, and why not; /healthz whether its process runs. The ports are buffer.http (7401),
ingest.http (7411) and delivery.NAME.http (7421).`,
		Example: "  spillway health http://localhost:7401/readyz",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &usageError{errors.New("want one argument: a URL, as in http://localhost:7401/readyz")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, args[0], nil)
			if err != nil || request.URL.Scheme != "http" && request.URL.Scheme != "https" || request.URL.Host == "" {
				return &usageError{fmt.Errorf("%q: want a URL, as in http://localhost:7401/readyz", args[0])}
			}
			client := &http.Client{Transport: &http.Transport{}} // without the proxy of the environment
			response, err := client.Do(request)
			if err != nil {
				return err
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
	return cmd
}
